//! CHAP during login.

use super::*;

/// Goes through AuthMethod and CHAP_A; gives the login that waits for CHAP_N and CHAP_R.
fn challenged(gate: &mut Door, algorithm: Algorithm) -> Login {
    let mut login = Login::new();
    let data = format!("{WHO}AuthMethod=None,CHAP\0");
    let first = reply(login.request(&to(SECURITY, OPERATIONAL), data.as_bytes(), gate));
    assert_eq!(text(&first), "TargetPortalGroupTag=3 AuthMethod=CHAP");
    assert!(!first.pdu.transit, "the target is not through with security");
    let data = format!("CHAP_A={}\0", algorithm.number());
    let second = reply(login.request(&at(SECURITY), data.as_bytes(), gate));
    let (number, challenge) = (algorithm.number(), "c5".repeat(32));
    assert_eq!(text(&second), format!("CHAP_A={number} CHAP_I=42 CHAP_C=0x{challenge}"));
    login
}

fn response(algorithm: Algorithm, text: &str) -> String {
    let response = algorithm.respond(42, &secret(text), &[0xC5; 32]);
    Hex(response.as_bytes()).to_string()
}

#[test]
fn chap_passes_with_every_algorithm() {
    for algorithm in [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3_256] {
        let mut gate = guarded();
        let mut login = challenged(&mut gate, algorithm);
        let data = format!("CHAP_N=alice\0CHAP_R={}\0", response(algorithm, "alice's secret"));
        let third = reply(login.request(&to(SECURITY, OPERATIONAL), data.as_bytes(), &mut gate));
        assert!(third.pdu.transit && third.text.is_empty());
        let ready = ready(login.request(&to(OPERATIONAL, FULL), b"", &mut gate));
        assert_eq!(ready.connection().chap_name.as_deref(), Some("alice"));
    }
}

#[test]
fn mutual_chap_answers_with_the_targets_response() {
    let mut gate = guarded();
    let mut login = challenged(&mut gate, Algorithm::Sha256);
    let ours = response(Algorithm::Sha256, "alice's secret");
    let data = format!("CHAP_N=alice\0CHAP_R={ours}\0CHAP_I=0x7\0CHAP_C=0bZm9vYmFy\0");
    let third = reply(login.request(&to(SECURITY, FULL), data.as_bytes(), &mut gate).into_reply());
    let theirs = Algorithm::Sha256.respond(7, &secret("target's secret"), b"foobar");
    assert_eq!(text(&third), format!("CHAP_N=san CHAP_R={}", Hex(theirs.as_bytes())));
}

impl Step {
    /// The reply of either way a request may succeed.
    fn into_reply(self) -> Self {
        match self {
            Self::NeedSession(ready) => {
                let granted = Granted { tsih: 1, exp_cmd_sn: 1, max_cmd_sn: 1 };
                Self::Reply(ready.finish(granted).0)
            }
            other => other,
        }
    }
}

#[test]
fn chap_that_does_not_pass_is_an_authentication_failure() {
    let right = response(Algorithm::Md5, "alice's secret");
    let wrong = response(Algorithm::Md5, "mallory's secret");
    for (data, reason) in [
        (format!("CHAP_N=alice\0CHAP_R={wrong}\0"), "CHAP response of \"alice\" is wrong"),
        (format!("CHAP_N=bob\0CHAP_R={right}\0"), "CHAP name \"bob\" is unknown"),
        (format!("CHAP_R={right}\0"), "CHAP_N is missing"),
        ("CHAP_N=alice\0".into(), "CHAP_R is missing"),
        (format!("CHAP_N=alice\0CHAP_R={right}ab\0"), "CHAP response of \"alice\" is wrong"),
        ("CHAP_N=alice\0CHAP_R=hello\0".into(), "value of CHAP_R is malformed"),
        (format!("CHAP_N=alice\0CHAP_R={right}\0CHAP_I=1\0"), "CHAP_C is missing"),
        (format!("CHAP_N=alice\0CHAP_R={right}\0CHAP_C=0x00\0"), "CHAP_I is missing"),
        (
            format!("CHAP_N=alice\0CHAP_R={right}\0CHAP_I=256\0CHAP_C=0x00\0"),
            "value of CHAP_I is malformed",
        ),
        (
            format!("CHAP_N=alice\0CHAP_R={right}\0CHAP_I=1\0CHAP_C=0x{}\0", "00".repeat(1025)),
            "value of CHAP_C is malformed",
        ),
        (
            format!("CHAP_N=alice\0CHAP_R={right}\0CHAP_I=1\0CHAP_C=0x{}\0", "c5".repeat(32)),
            "the initiator sent the target's challenge back",
        ),
        ("CHAP_A=5\0".into(), "CHAP_A is out of order"),
    ] {
        let mut gate = guarded();
        let mut login = challenged(&mut gate, Algorithm::Md5);
        let refused =
            refused(login.request(&to(SECURITY, OPERATIONAL), data.as_bytes(), &mut gate));
        assert_eq!(refused.reason.to_string(), format!("authentication failed: {reason}"));
        assert_eq!(refused.reason.status(), LoginStatus::AUTHENTICATION_FAILURE);
    }
}

#[test]
fn leaving_security_without_an_answer_to_the_challenge_is_not_agreed_to() {
    let mut gate = guarded();
    let mut login = challenged(&mut gate, Algorithm::Md5);
    let reply = reply(login.request(&to(SECURITY, FULL), b"", &mut gate));
    assert!(!reply.pdu.transit);
    let refused = refused(login.request(&to(OPERATIONAL, FULL), b"", &mut gate));
    assert_eq!(refused.reason, Refusal::Stage { expected: Some(SECURITY), found: OPERATIONAL });
}

#[test]
fn initiator_that_evades_required_authentication_is_refused() {
    for (request, keys) in [
        (to(SECURITY, OPERATIONAL), "AuthMethod=None\0"),
        (to(SECURITY, OPERATIONAL), ""),
        (to(SECURITY, FULL), ""),
        (to(OPERATIONAL, FULL), ""),
        (at(OPERATIONAL), "InitialR2T=No\0"),
    ] {
        let refused = refused(first(request, &format!("{WHO}{keys}"), &mut guarded()));
        assert_eq!(refused.reason, Refusal::AuthenticationRequired, "{request:?} {keys:?}");
        assert_eq!(refused.reason.status(), LoginStatus::AUTHENTICATION_FAILURE);
    }
}

#[test]
fn chap_only_initiator_without_credentials_here_is_refused() {
    let data = format!("{WHO}AuthMethod=CHAP\0");
    assert_eq!(reason(at(SECURITY), &data), Refusal::NoAuthMethod("CHAP".into()));
}

#[test]
fn algorithm_the_policy_refuses_is_an_authentication_failure() {
    let mut gate = guarded();
    if let Ok(Admission { chap: Some(chap), .. }) = &mut gate.answer {
        chap.algorithms = Algorithms::STRONG;
    }
    let mut login = Login::new();
    let data = format!("{WHO}AuthMethod=CHAP\0");
    reply(login.request(&at(SECURITY), data.as_bytes(), &mut gate));
    let refused = refused(login.request(&at(SECURITY), b"CHAP_A=5,6\0", &mut gate));
    assert_eq!(
        refused.reason.to_string(),
        r#"authentication failed: no CHAP algorithm of "5,6" is allowed"#
    );
}
