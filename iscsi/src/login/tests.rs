//! The login matrix: stage by authentication by C bit by version by repetition.

mod chap;

use proptest::prelude::*;

use super::*;
use crate::chap::{Algorithm, Algorithms, Credential, Secret};
use crate::names::NameError;
use crate::negotiate::{DigestPolicy, Transport};
use crate::pdu::RESERVED_TAG;
use crate::text::{Hex, TextError};

const HOST: &str = "iqn.1994-05.com.redhat:host9";
const SAN: &str = "iqn.2026-11.org.example:san";
const WHO: &str =
    "InitiatorName=iqn.1994-05.com.redhat:host9\0TargetName=iqn.2026-11.org.example:san\0";
const WHO_DISCOVERS: &str = "InitiatorName=iqn.1994-05.com.redhat:host9\0SessionType=Discovery\0";

/// A gate that answers what it was made with, and counts how often it was asked.
struct Door {
    answer: Result<Admission, Refusal>,
    asked: u32,
    challenge: [u8; 32],
}

impl Gate for Door {
    fn admit(&mut self, applicant: &Applicant<'_>) -> Result<Admission, Refusal> {
        self.asked += 1;
        assert_eq!(applicant.initiator.as_str(), HOST);
        self.answer.clone()
    }

    fn challenge(&mut self) -> (u8, [u8; 32]) {
        (42, self.challenge)
    }
}

fn admission(chap: Option<Chap>) -> Admission {
    Admission { chap, portal_group_tag: 3, target_alias: None, preferences: Preferences::default() }
}

fn door(answer: Result<Admission, Refusal>) -> Door {
    Door { answer, asked: 0, challenge: [0xC5; 32] }
}

fn open() -> Door {
    door(Ok(admission(None)))
}

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

fn guarded() -> Door {
    door(Ok(admission(Some(Chap {
        initiators: vec![Credential { name: "alice".into(), secret: secret("alice's secret") }],
        target: Some(Credential { name: "san".into(), secret: secret("target's secret") }),
        algorithms: Algorithms::ALL,
    }))))
}

/// A request without T, C and text in its stage.
fn at(current: Stage) -> LoginRequest {
    LoginRequest {
        immediate: true,
        transit: false,
        more: false,
        current,
        next: Stage::Security,
        version_max: 0,
        version_min: 0,
        data_len: 0,
        isid: Isid([0, 2, 0x3D, 0, 0, 1]),
        tsih: 0,
        itt: 5,
        cid: 1,
        cmd_sn: 100,
        exp_stat_sn: 200,
    }
}

fn to(current: Stage, next: Stage) -> LoginRequest {
    LoginRequest { transit: true, next, ..at(current) }
}

const SECURITY: Stage = Stage::Security;
const OPERATIONAL: Stage = Stage::Operational;
const FULL: Stage = Stage::FullFeature;

fn reply(step: Step) -> LoginReply {
    match step {
        Step::Reply(reply) => {
            assert_eq!(reply.pdu.status, LoginStatus::SUCCESS);
            assert_eq!(reply.pdu.data_len as usize, reply.text.len());
            reply
        }
        other => panic!("expected a reply and got {other:?}"),
    }
}

fn ready(step: Step) -> Ready {
    match step {
        Step::NeedSession(ready) => *ready,
        other => panic!("expected to need a session and got {other:?}"),
    }
}

fn refused(step: Step) -> Refused {
    match step {
        Step::Refused(refused) => *refused,
        other => panic!("expected a refusal and got {other:?}"),
    }
}

fn text(reply: &LoginReply) -> String {
    String::from_utf8_lossy(&reply.text).replace('\0', " ").trim_end().to_owned()
}

/// What one first request leads to.
fn first(request: LoginRequest, data: &str, gate: &mut Door) -> Step {
    Login::new().request(&request, data.as_bytes(), gate)
}

fn reason(request: LoginRequest, data: &str) -> Refusal {
    refused(first(request, data, &mut open())).reason
}

#[test]
fn operational_stage_alone_logs_in() {
    let data = format!("{WHO}MaxRecvDataSegmentLength=65536\0InitialR2T=No\0");
    let ready = ready(first(to(OPERATIONAL, FULL), &data, &mut open()));
    assert_eq!(ready.connection().tsih, 0);
    let (reply, connection) = ready.finish(Granted { tsih: 9, exp_cmd_sn: 100, max_cmd_sn: 227 });
    assert_eq!(
        text(&reply),
        "TargetPortalGroupTag=3 InitialR2T=No MaxRecvDataSegmentLength=262144"
    );
    let LoginResponse { transit, current, next, tsih, itt, numbers, status, .. } = reply.pdu;
    assert_eq!((transit, current, next, tsih, itt), (true, OPERATIONAL, FULL, 9, 5));
    assert_eq!(numbers, Numbers { stat_sn: 200, exp_cmd_sn: 100, max_cmd_sn: 227 });
    assert_eq!(status, LoginStatus::SUCCESS);
    assert_eq!(connection.initiator.as_str(), HOST);
    assert_eq!(connection.target.as_ref().map(IscsiName::as_str), Some(SAN));
    assert_eq!((connection.tsih, connection.cid, connection.stat_sn), (9, 1, 201));
    assert_eq!(connection.parameters.initiator_mrdsl, 65_536);
    assert_eq!(connection.parameters.target_mrdsl, 262_144);
    assert!(!connection.parameters.initial_r2t);
}

#[test]
fn security_without_authentication_then_operational_logs_in() {
    let (mut login, mut gate) = (Login::new(), open());
    let data = format!("{WHO}AuthMethod=CHAP,None\0");
    let step = login.request(&to(SECURITY, OPERATIONAL), data.as_bytes(), &mut gate);
    let first = reply(step);
    assert_eq!(text(&first), "TargetPortalGroupTag=3 AuthMethod=None");
    assert!(first.pdu.transit && first.pdu.next == OPERATIONAL && first.pdu.tsih == 0);
    let step = login.request(&to(OPERATIONAL, FULL), b"InitialR2T=Yes\0", &mut gate);
    let (last, connection) =
        ready(step).finish(Granted { tsih: 1, exp_cmd_sn: 100, max_cmd_sn: 101 });
    assert_eq!(last.pdu.numbers.stat_sn, 201);
    assert_eq!(connection.stat_sn, 202);
    assert_eq!(gate.asked, 1);
}

#[test]
fn security_straight_to_full_feature_keeps_the_defaults() {
    let ready = ready(first(to(SECURITY, FULL), WHO, &mut open()));
    assert_eq!(ready.connection().parameters, Parameters::default());
}

#[test]
fn discovery_needs_no_target_and_gets_no_portal_group() {
    let ready = ready(first(to(SECURITY, FULL), WHO_DISCOVERS, &mut open()));
    let (reply, connection) = ready.finish(Granted { tsih: 1, exp_cmd_sn: 100, max_cmd_sn: 101 });
    assert_eq!(text(&reply), "");
    assert_eq!(connection.session_type, SessionType::Discovery);
    assert_eq!(connection.target, None);
}

#[test]
fn target_alias_comes_with_the_portal_group() {
    let alias = Some("big disk".to_owned());
    let mut gate = door(Ok(Admission { target_alias: alias, ..admission(None) }));
    let reply = reply(first(at(SECURITY), WHO, &mut gate));
    assert_eq!(text(&reply), "TargetPortalGroupTag=3 TargetAlias=big disk");
}

#[test]
fn initiator_alias_is_kept() {
    let data = format!("{WHO}InitiatorAlias=host nine\0");
    let ready = ready(first(to(OPERATIONAL, FULL), &data, &mut open()));
    assert_eq!(ready.connection().initiator_alias.as_deref(), Some("host nine"));
}

#[test]
fn text_in_several_requests_is_read_as_one() {
    let (mut login, mut gate) = (Login::new(), open());
    let whole = format!("{WHO}InitialR2T=No\0");
    let (head, tail) = whole.split_at(50);
    let more = LoginRequest { more: true, ..at(OPERATIONAL) };
    let empty = reply(login.request(&more, head.as_bytes(), &mut gate));
    assert!(empty.text.is_empty() && !empty.pdu.transit && !empty.pdu.more);
    assert_eq!(gate.asked, 0, "nobody is admitted on half a name");
    let ready = ready(login.request(&to(OPERATIONAL, FULL), tail.as_bytes(), &mut gate));
    assert!(!ready.connection().parameters.initial_r2t);
}

#[test]
fn text_of_more_than_64_kib_is_refused() {
    let (mut login, mut gate) = (Login::new(), open());
    let more = LoginRequest { more: true, ..at(OPERATIONAL) };
    for _ in 0..8 {
        reply(login.request(&more, &[b'a'; 8192], &mut gate));
    }
    let refused = refused(login.request(&more, &[b'a'; 8192], &mut gate));
    assert_eq!(refused.reason, Refusal::Text(TextError::TooLong));
}

#[test]
fn answers_above_8_kib_come_in_pieces_before_the_transition() {
    let mut admission = admission(None);
    admission.target_alias = Some("x".repeat(10_000));
    let (mut login, mut gate) = (Login::new(), door(Ok(admission)));
    let first = reply(login.request(&to(OPERATIONAL, FULL), WHO.as_bytes(), &mut gate));
    assert!(first.pdu.more && !first.pdu.transit && first.text.len() == 8192);
    let last = ready(login.request(&to(OPERATIONAL, FULL), b"", &mut gate));
    let (last, _) = last.finish(Granted { tsih: 1, exp_cmd_sn: 1, max_cmd_sn: 1 });
    assert!(!last.pdu.more && last.pdu.transit);
    let whole = [first.text, last.text].concat();
    assert!(whole.ends_with(b"MaxRecvDataSegmentLength=262144\0"));
}

#[test]
fn text_before_the_targets_is_complete_is_refused() {
    let mut admission = admission(None);
    admission.target_alias = Some("x".repeat(10_000));
    let (mut login, mut gate) = (Login::new(), door(Ok(admission)));
    reply(login.request(&at(SECURITY), WHO.as_bytes(), &mut gate));
    let refused = refused(login.request(&at(SECURITY), b"AuthMethod=None\0", &mut gate));
    assert_eq!(refused.reason, Refusal::TextOutOfTurn);
}

#[test]
fn version_above_0_is_refused() {
    for (min, max, taken) in [(0, 0, true), (0, 5, true), (1, 1, false), (1, 5, false)] {
        let request = LoginRequest { version_min: min, version_max: max, ..at(SECURITY) };
        match first(request, WHO, &mut open()) {
            Step::Reply(reply) => {
                assert!(taken);
                assert_eq!((reply.pdu.version_max, reply.pdu.version_active), (0, 0));
            }
            step => {
                assert!(!taken);
                assert_eq!(refused(step).reason, Refusal::Version { min, max });
            }
        }
    }
}

#[test]
fn request_that_is_not_immediate_is_refused() {
    let request = LoginRequest { immediate: false, ..at(SECURITY) };
    assert_eq!(reason(request, WHO), Refusal::NotImmediate);
}

#[test]
fn stages_and_transitions_that_do_not_exist_are_refused() {
    let two = Stage::Unknown(2);
    for found in [two, FULL] {
        assert_eq!(reason(at(found), WHO), Refusal::Stage { expected: None, found });
    }
    for (from, next) in [
        (SECURITY, SECURITY),
        (SECURITY, two),
        (OPERATIONAL, SECURITY),
        (OPERATIONAL, OPERATIONAL),
        (OPERATIONAL, two),
    ] {
        assert_eq!(reason(to(from, next), WHO), Refusal::Transition { from, to: next });
    }
}

#[test]
fn stage_that_was_left_is_not_entered_again() {
    let (mut login, mut gate) = (Login::new(), open());
    reply(login.request(&to(SECURITY, OPERATIONAL), WHO.as_bytes(), &mut gate));
    let refused = refused(login.request(&at(SECURITY), b"", &mut gate));
    assert_eq!(refused.reason, Refusal::Stage { expected: Some(OPERATIONAL), found: SECURITY });
}

#[test]
fn transit_with_unfinished_text_is_refused() {
    let request = LoginRequest { more: true, ..to(SECURITY, OPERATIONAL) };
    assert_eq!(reason(request, WHO), Refusal::TransitWithMore);
}

#[test]
fn identifiers_that_change_during_login_are_refused() {
    let base = at(SECURITY);
    for (request, what) in [
        (LoginRequest { itt: 6, ..base }, "the initiator task tag"),
        (LoginRequest { isid: Isid([1; 6]), ..base }, "ISID"),
        (LoginRequest { tsih: 1, ..base }, "TSIH"),
        (LoginRequest { cid: 2, ..base }, "CID"),
    ] {
        let (mut login, mut gate) = (Login::new(), open());
        reply(login.request(&base, WHO.as_bytes(), &mut gate));
        let refused = refused(login.request(&request, b"", &mut gate));
        assert_eq!(refused.reason, Refusal::Changed(what));
        assert_eq!(refused.reason.status(), LoginStatus::INITIATOR_ERROR);
    }
}

#[test]
fn keys_that_are_missing_are_named() {
    let initiator = format!("InitiatorName={HOST}\0");
    assert_eq!(reason(at(SECURITY), ""), Refusal::Missing("InitiatorName"));
    assert_eq!(reason(at(SECURITY), "SessionType=Discovery\0"), Refusal::Missing("InitiatorName"));
    assert_eq!(reason(at(SECURITY), &initiator), Refusal::Missing("TargetName"));
    assert_eq!(Refusal::Missing("TargetName").status(), LoginStatus::MISSING_PARAMETER);
}

#[test]
fn names_that_are_none_are_refused() {
    let initiator = reason(at(SECURITY), "InitiatorName=host9\0");
    assert_eq!(initiator, Refusal::InitiatorName(NameError::UnknownType("host9".into())));
    assert_eq!(initiator.status(), LoginStatus::INITIATOR_ERROR);
    let target = reason(at(SECURITY), &format!("InitiatorName={HOST}\0TargetName=san\0"));
    assert_eq!(target, Refusal::TargetName(NameError::UnknownType("san".into())));
    assert_eq!(target.status(), LoginStatus::NOT_FOUND);
}

#[test]
fn normal_session_over_rdma_needs_rdma_extensions() {
    let over_rdma = || {
        let preferences = Preferences::default().over(Transport::Rdma);
        door(Ok(Admission { preferences, ..admission(None) }))
    };
    let last = LoginRequest { transit: true, next: Stage::FullFeature, ..at(Stage::Operational) };
    let try_with = |keys: &str| {
        let text = format!("{WHO}{keys}");
        Login::new().request(&last, text.as_bytes(), &mut over_rdma())
    };
    assert!(matches!(try_with("RDMAExtensions=Yes\0"), Step::NeedSession(_)));
    for keys in ["", "RDMAExtensions=No\0"] {
        let Step::Refused(refused) = try_with(keys) else { panic!("{keys:?} was not refused") };
        assert_eq!(refused.reason, Refusal::Missing("RDMAExtensions=Yes"));
        assert_eq!(refused.reply.unwrap().pdu.status, LoginStatus::MISSING_PARAMETER);
    }
    let step = Login::new().request(&last, WHO_DISCOVERS.as_bytes(), &mut over_rdma());
    assert!(matches!(step, Step::NeedSession(_)));
}

#[test]
fn unknown_session_type_is_not_supported() {
    let refusal = reason(at(SECURITY), &format!("{WHO}SessionType=Other\0"));
    assert_eq!(refusal, Refusal::SessionType("Other".into()));
    assert_eq!(refusal.status(), LoginStatus::SESSION_TYPE_NOT_SUPPORTED);
}

#[test]
fn repeated_keys_are_refused_in_every_stage() {
    for (stage, keys, name) in [
        (SECURITY, format!("InitiatorName={HOST}\0"), "InitiatorName"),
        (SECURITY, format!("TargetName={SAN}\0"), "TargetName"),
        (SECURITY, "SessionType=Normal\0SessionType=Normal\0".into(), "SessionType"),
        (SECURITY, "AuthMethod=None\0AuthMethod=None\0".into(), "AuthMethod"),
        (OPERATIONAL, "InitialR2T=No\0InitialR2T=No\0".into(), "InitialR2T"),
    ] {
        let refusal = reason(at(stage), &format!("{WHO}{keys}"));
        assert_eq!(refusal, Refusal::Negotiation(NegotiationError::Repeated(name)));
        assert_eq!(refusal.status(), LoginStatus::INITIATOR_ERROR);
    }
}

#[test]
fn identity_repeated_in_a_later_request_is_taken_when_it_is_the_same() {
    let (mut login, mut gate) = (Login::new(), open());
    reply(login.request(&to(SECURITY, OPERATIONAL), WHO.as_bytes(), &mut gate));
    let data = format!("{WHO}SessionType=Normal\0");
    let ready = ready(login.request(&to(OPERATIONAL, FULL), data.as_bytes(), &mut gate));
    assert_eq!(ready.connection().session_type, SessionType::Normal);
}

#[test]
fn identity_that_changes_behind_the_gate_is_refused() {
    for (before, after, name) in [
        (WHO, "SessionType=Discovery\0", "SessionType"),
        (WHO_DISCOVERS, "SessionType=Normal\0", "SessionType"),
        (WHO_DISCOVERS, "TargetName=iqn.2026-11.org.example:san\0", "TargetName"),
        (WHO, "TargetName=iqn.2026-11.org.example:other\0", "TargetName"),
        (WHO, "InitiatorName=iqn.2026-11.org.example:other\0", "InitiatorName"),
    ] {
        let (mut login, mut gate) = (Login::new(), open());
        reply(login.request(&to(SECURITY, OPERATIONAL), before.as_bytes(), &mut gate));
        let step = login.request(&to(OPERATIONAL, FULL), after.as_bytes(), &mut gate);
        assert_eq!(refused(step).reason, Refusal::Changed(name), "{after:?}");
    }
}

#[test]
fn auth_method_in_a_second_request_is_refused() {
    let (mut login, mut gate) = (Login::new(), open());
    let data = format!("{WHO}AuthMethod=None\0");
    reply(login.request(&at(SECURITY), data.as_bytes(), &mut gate));
    let refused = refused(login.request(&at(SECURITY), b"AuthMethod=None\0", &mut gate));
    assert_eq!(refused.reason, Refusal::Negotiation(NegotiationError::Repeated("AuthMethod")));
}

#[test]
fn keys_in_the_wrong_stage_are_refused() {
    for (stage, keys, name) in [
        (SECURITY, "InitialR2T=No\0", "InitialR2T"),
        (OPERATIONAL, "AuthMethod=None\0", "AuthMethod"),
        (OPERATIONAL, "SendTargets=All\0", "SendTargets"),
    ] {
        let refusal = reason(at(stage), &format!("{WHO}{keys}"));
        assert_eq!(refusal, Refusal::Negotiation(NegotiationError::OutOfPhase(name)));
    }
}

#[test]
fn unknown_key_is_not_understood_in_both_stages() {
    for stage in [SECURITY, OPERATIONAL] {
        let reply = reply(first(at(stage), &format!("{WHO}X-foo=1\0"), &mut open()));
        assert!(text(&reply).contains("X-foo=NotUnderstood"), "{stage:?}");
    }
}

#[test]
fn malformed_text_is_refused() {
    assert_eq!(reason(at(SECURITY), "InitiatorName"), Refusal::Text(TextError::NotTerminated));
}

#[test]
fn required_digest_keeps_the_operational_stage_until_it_is_answered() {
    let mut admission = admission(None);
    admission.preferences.header_digest = DigestPolicy::Required;
    let (mut login, mut gate) = (Login::new(), door(Ok(admission)));
    let first = reply(login.request(&to(OPERATIONAL, FULL), WHO.as_bytes(), &mut gate));
    assert!(!first.pdu.transit && text(&first).contains("HeaderDigest=CRC32C"));
    let ready = ready(login.request(&to(OPERATIONAL, FULL), b"HeaderDigest=CRC32C\0", &mut gate));
    assert!(ready.connection().parameters.header_digest);
}

#[test]
fn required_digest_that_is_evaded_is_refused() {
    let mut admission = admission(None);
    admission.preferences.data_digest = DigestPolicy::Required;
    let data = format!("{WHO}DataDigest=None\0");
    for (request, data) in [(to(SECURITY, FULL), WHO), (to(OPERATIONAL, FULL), data.as_str())] {
        let refused = refused(first(request, data, &mut door(Ok(admission.clone()))));
        assert_eq!(refused.reason, Refusal::DigestRequired("DataDigest"));
    }
}

#[test]
fn login_that_never_ends_is_refused() {
    let (mut login, mut gate) = (Login::new(), open());
    reply(login.request(&at(SECURITY), WHO.as_bytes(), &mut gate));
    for _ in 1..MAX_EXCHANGES {
        reply(login.request(&at(SECURITY), b"", &mut gate));
    }
    let refused = refused(login.request(&at(SECURITY), b"", &mut gate));
    assert_eq!(refused.reason, Refusal::TooManyExchanges(MAX_EXCHANGES));
}

#[test]
fn request_after_the_last_is_refused() {
    let (mut login, mut gate) = (Login::new(), open());
    ready(login.request(&to(OPERATIONAL, FULL), WHO.as_bytes(), &mut gate));
    let refused = refused(login.request(&to(OPERATIONAL, FULL), b"", &mut gate));
    assert_eq!(refused.reason, Refusal::Over);
}

#[test]
fn every_refusal_of_the_gate_reaches_the_initiator() {
    for (refusal, status) in [
        (Refusal::MovedTemporarily("192.0.2.2:3260".into()), 0x0101),
        (Refusal::MovedPermanently("192.0.2.2:3260,1".into()), 0x0102),
        (Refusal::Denied("its allow list has 1 entry".into()), 0x0202),
        (Refusal::NotFound, 0x0203),
        (Refusal::Removed, 0x0204),
        (Refusal::CannotInclude("not on this portal".into()), 0x0208),
        (Refusal::SessionType("Discovery".into()), 0x0209),
        (Refusal::TargetError("broken".into()), 0x0300),
        (Refusal::Unavailable("shutting down".into()), 0x0301),
        (Refusal::OutOfResources("too many logins".into()), 0x0302),
    ] {
        let refused = refused(first(at(SECURITY), WHO, &mut door(Err(refusal.clone()))));
        let reply = refused.reply.clone().unwrap();
        assert_eq!(reply.pdu.status, LoginStatus(status));
        assert!(!reply.pdu.transit);
        let text = text(&reply);
        match refusal {
            Refusal::MovedTemporarily(to) | Refusal::MovedPermanently(to) => {
                assert_eq!(text, format!("TargetAddress={to}"));
            }
            _ => assert_eq!(text, ""),
        }
    }
}

#[test]
fn every_refusal_of_the_session_table_reaches_the_initiator() {
    for (refusal, status) in [
        (Refusal::TooManyConnections(1), LoginStatus::TOO_MANY_CONNECTIONS),
        (Refusal::CannotInclude("another type".into()), LoginStatus::CANNOT_INCLUDE_IN_SESSION),
        (Refusal::NoSession(9), LoginStatus::SESSION_DOES_NOT_EXIST),
        (Refusal::OutOfResources("sessions".into()), LoginStatus::OUT_OF_RESOURCES),
    ] {
        let request = LoginRequest { tsih: 9, ..to(OPERATIONAL, FULL) };
        let ready = ready(first(request, WHO, &mut open()));
        assert_eq!(ready.connection().tsih, 9);
        let reply = ready.refuse(refusal).reply.unwrap();
        assert_eq!((reply.pdu.status, reply.pdu.tsih), (status, 9));
        assert!(!reply.pdu.transit && reply.text.is_empty());
    }
}

#[test]
fn refusal_says_who_what_and_why() {
    let refused = refused(first(
        at(SECURITY),
        WHO,
        &mut door(Err(Refusal::Denied("its allow list has 1 entry".into()))),
    ));
    assert_eq!(
        refused.to_string(),
        "initiator iqn.1994-05.com.redhat:host9 may not log in to \
         iqn.2026-11.org.example:san: its allow list has 1 entry"
    );
}

#[test]
fn other_pdu_during_login_is_invalid_and_before_it_silence() {
    let mut header = [0; BHS_LEN];
    (header[0], header[19]) = (0x01, 77);
    let (mut login, mut gate) = (Login::new(), open());
    assert_eq!(refused(login.receive(&header, b"", &mut gate)).reply, None);
    let mut login = Login::new();
    reply(login.request(&at(SECURITY), WHO.as_bytes(), &mut gate));
    let refused = refused(login.receive(&header, b"", &mut gate));
    let reply = refused.reply.unwrap();
    assert_eq!(reply.pdu.status, LoginStatus::INVALID_DURING_LOGIN);
    assert_eq!(reply.pdu.itt, 77);
}

#[test]
fn reply_is_emitted_with_padding() {
    let reply = reply(first(at(SECURITY), WHO, &mut open()));
    let mut bytes = Vec::new();
    reply.emit(&mut bytes);
    assert_eq!(bytes.len(), (48 + reply.text.len()).next_multiple_of(4));
    let header: Bhs = bytes[..48].try_into().unwrap();
    assert_eq!(LoginResponse::parse(&header), Ok(reply.pdu));
    assert_eq!(bytes[48..][..reply.text.len()], reply.text);
}

fn keys() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        WHO,
        WHO_DISCOVERS,
        "AuthMethod=CHAP,None\0",
        "CHAP_A=5,7\0",
        "CHAP_N=alice\0CHAP_R=0x00\0",
        "CHAP_I=1\0CHAP_C=0bZm8=\0",
        "InitialR2T=No\0",
        "FirstBurstLength=1\0",
        "MaxRecvDataSegmentLength=512\0",
        "X-x=1\0",
        "broken",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn any_sequence_of_requests_ends_in_an_answer(
        guard: bool,
        requests in proptest::collection::vec((any::<u8>(), any::<bool>(), keys()), 1..12),
    ) {
        let mut gate = if guard { guarded() } else { open() };
        let mut login = Login::new();
        for (flags, same_tag, data) in requests {
            let mut header = [0; BHS_LEN];
            let itt = if same_tag { 5 } else { RESERVED_TAG };
            LoginRequest { itt, ..at(SECURITY) }.emit(&mut header);
            header[1] = flags;
            match login.receive(&header, data.as_bytes(), &mut gate) {
                Step::Reply(reply) => {
                    prop_assert_eq!(reply.pdu.status, LoginStatus::SUCCESS);
                    prop_assert!(reply.text.len() <= 8192);
                    prop_assert!(!(reply.pdu.transit && reply.pdu.more));
                }
                Step::Refused(refused) => {
                    prop_assert!(refused.reply.unwrap().pdu.status.class() >= 2);
                    break;
                }
                Step::NeedSession(ready) => {
                    prop_assert!(!guard, "nobody knows the secret here");
                    prop_assert_eq!(ready.connection().initiator.as_str(), HOST);
                    break;
                }
            }
        }
    }
}
