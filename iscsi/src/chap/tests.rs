//! Known answers, computed with Python's hashlib, and what must not pass.

use proptest::prelude::*;

use super::*;

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

fn chap(mutual: Option<&str>) -> Chap {
    Chap {
        initiators: vec![
            Credential { name: "alice".into(), secret: secret("alice's secret") },
            Credential { name: "bob".into(), secret: secret("bob's own secret") },
        ],
        target: mutual.map(|text| Credential { name: "san".into(), secret: secret(text) }),
        algorithms: Algorithms::ALL,
    }
}

fn challenge() -> Challenge {
    Challenge { algorithm: Algorithm::Sha256, identifier: 3, bytes: [0x5A; 32] }
}

fn respond(text: &str) -> Response {
    Algorithm::Sha256.respond(3, &secret(text), &[0x5A; 32])
}

fn hex(response: Response) -> String {
    response.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn each_algorithm_gives_its_known_answer() {
    for (algorithm, known) in [
        (Algorithm::Md5, "3bfa6667b451d18b9818fc1b4fc8b5d2"),
        (Algorithm::Sha1, "85220c11eb691daa709f189b3e15b625839fb8a0"),
        (Algorithm::Sha256, "ed8f3cdcfeae9e28b14af618b68155342b7a540f72789e7180ba0b6d528ea2e7"),
        (Algorithm::Sha3_256, "a80af6d9e7ccfd729cf5c26035d2191d30ae4c94bd96ff93c12b39152480380a"),
    ] {
        let response = algorithm.respond(1, &secret("secretsecret"), b"0123456789abcdef");
        assert_eq!(hex(response), known, "{algorithm:?}");
    }
}

#[test]
fn first_allowed_algorithm_of_the_list_is_chosen() {
    assert_eq!(Algorithms::ALL.choose("5,7"), Some(Algorithm::Md5));
    assert_eq!(Algorithms::ALL.choose("7,5"), Some(Algorithm::Sha256));
    assert_eq!(Algorithms::STRONG.choose("5,6,8,7"), Some(Algorithm::Sha3_256));
    assert_eq!(Algorithms::ALL.without(Algorithm::Md5).choose("5"), None);
    assert_eq!(Algorithms::ALL.choose("9,,x,0x6"), Some(Algorithm::Sha1));
    assert_eq!(Algorithms::ALL.choose(""), None);
}

#[test]
fn secret_of_11_bytes_is_too_short() {
    assert_eq!(Secret::new("12345678901").unwrap_err(), ShortSecret(11));
    assert!(Secret::new("123456789012").is_ok());
}

#[test]
fn secret_does_not_show() {
    assert_eq!(format!("{:?}", secret("secretsecret")), "Secret(..)");
}

#[test]
fn right_response_passes_for_each_initiator() {
    let chap = chap(None);
    for (name, text) in [("alice", "alice's secret"), ("bob", "bob's own secret")] {
        let response = respond(text);
        let answer = Answer { name, response: response.as_bytes(), mutual: None };
        assert!(chap.verify(&challenge(), answer).unwrap().is_none());
    }
}

#[test]
fn response_of_another_initiator_fails() {
    let response = respond("bob's own secret");
    let answer = Answer { name: "alice", response: response.as_bytes(), mutual: None };
    assert_eq!(
        chap(None).verify(&challenge(), answer).unwrap_err(),
        ChapError::WrongResponse("alice".into())
    );
}

#[test]
fn response_cut_short_fails() {
    let response = respond("alice's secret");
    for len in 0..response.as_bytes().len() {
        let answer = Answer { name: "alice", response: &response.as_bytes()[..len], mutual: None };
        assert!(chap(None).verify(&challenge(), answer).is_err(), "{len} bytes");
    }
}

#[test]
fn unknown_name_fails() {
    let response = respond("alice's secret");
    let answer = Answer { name: "Alice", response: response.as_bytes(), mutual: None };
    assert_eq!(
        chap(None).verify(&challenge(), answer).unwrap_err(),
        ChapError::UnknownName("Alice".into())
    );
}

#[test]
fn mutual_request_is_answered_with_the_targets_secret() {
    let response = respond("alice's secret");
    let answer = Answer {
        name: "alice",
        response: response.as_bytes(),
        mutual: Some((9, b"their challenge")),
    };
    let chap = chap(Some("the target's secret"));
    let (name, response) = chap.verify(&challenge(), answer).unwrap().unwrap();
    let expected = Algorithm::Sha256.respond(9, &secret("the target's secret"), b"their challenge");
    assert_eq!((name, hex(response)), ("san", hex(expected)));
}

#[test]
fn mutual_request_without_a_target_credential_fails() {
    let response = respond("alice's secret");
    let answer =
        Answer { name: "alice", response: response.as_bytes(), mutual: Some((9, b"theirs")) };
    assert_eq!(chap(None).verify(&challenge(), answer).unwrap_err(), ChapError::NoTargetCredential);
}

#[test]
fn reflected_challenge_fails() {
    let response = respond("alice's secret");
    let answer =
        Answer { name: "alice", response: response.as_bytes(), mutual: Some((4, &[0x5A; 32])) };
    assert_eq!(
        chap(Some("the target's secret")).verify(&challenge(), answer).unwrap_err(),
        ChapError::Reflection
    );
}

#[test]
fn one_secret_for_both_directions_fails() {
    let response = respond("alice's secret");
    let answer =
        Answer { name: "alice", response: response.as_bytes(), mutual: Some((4, b"theirs")) };
    assert_eq!(
        chap(Some("alice's secret")).verify(&challenge(), answer).unwrap_err(),
        ChapError::EqualSecrets
    );
}

proptest! {
    #[test]
    fn only_the_right_response_passes(response: Vec<u8>) {
        let answer = Answer { name: "alice", response: &response, mutual: None };
        let right = respond("alice's secret").as_bytes() == response;
        prop_assert_eq!(chap(None).verify(&challenge(), answer).is_ok(), right);
    }

    #[test]
    fn any_list_is_chosen_from_or_not(list: String) {
        let _ = Algorithms::ALL.choose(&list);
    }
}
