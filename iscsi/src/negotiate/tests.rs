//! Every rule by its table: offer in, answer and outcome out.

use proptest::prelude::*;

use super::*;

fn wanted() -> Preferences {
    Preferences {
        initial_r2t: false,
        immediate_data: true,
        max_burst: 65_536,
        first_burst: 32_768,
        ..Preferences::default()
    }
}

fn negotiate_with(
    session: SessionType,
    leading: bool,
    wanted: Preferences,
    offers: &str,
) -> Result<(String, Parameters), NegotiationError> {
    let mut negotiation = Negotiation::new(session, leading, wanted);
    let mut answers = Text::new();
    let pairs = offers.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    negotiation.receive(pairs, &mut answers)?;
    let answers = String::from_utf8(answers.into_bytes()).unwrap();
    Ok((answers.replace('\0', " ").trim_end().to_owned(), negotiation.parameters()))
}

fn negotiate(offers: &str) -> Result<(String, Parameters), NegotiationError> {
    negotiate_with(SessionType::Normal, true, wanted(), offers)
}

fn answer(offers: &str) -> String {
    negotiate(offers).unwrap().0
}

#[test]
fn silence_leaves_the_defaults_of_the_rfc() {
    assert_eq!(negotiate("").unwrap(), (String::new(), Parameters::default()));
}

#[test]
fn boolean_or_is_yes_when_either_says_yes() {
    for (ours, theirs, both) in
        [(false, "No", "No"), (false, "Yes", "Yes"), (true, "No", "Yes"), (true, "Yes", "Yes")]
    {
        let preferences = Preferences { initial_r2t: ours, ..wanted() };
        let offer = format!("InitialR2T={theirs}");
        let (answer, agreed) =
            negotiate_with(SessionType::Normal, true, preferences, &offer).unwrap();
        assert_eq!(answer, format!("InitialR2T={both}"), "{ours} and {theirs}");
        assert_eq!(agreed.initial_r2t, both == "Yes");
    }
}

#[test]
fn boolean_and_is_yes_when_both_say_yes() {
    for (ours, theirs, both) in
        [(false, "No", "No"), (false, "Yes", "No"), (true, "No", "No"), (true, "Yes", "Yes")]
    {
        let preferences = Preferences { immediate_data: ours, ..wanted() };
        let offer = format!("ImmediateData={theirs}");
        let (answer, agreed) =
            negotiate_with(SessionType::Normal, true, preferences, &offer).unwrap();
        assert_eq!(answer, format!("ImmediateData={both}"), "{ours} and {theirs}");
        assert_eq!(agreed.immediate_data, both == "Yes");
    }
}

#[test]
fn order_keys_are_or_keys() {
    assert_eq!(
        answer("DataPDUInOrder=No DataSequenceInOrder=Yes"),
        "DataPDUInOrder=Yes DataSequenceInOrder=Yes"
    );
}

#[test]
fn word_that_is_not_a_boolean_is_rejected() {
    let (answer, agreed) = negotiate("InitialR2T=no ImmediateData=1").unwrap();
    assert_eq!(answer, "InitialR2T=Reject ImmediateData=Reject");
    assert_eq!(agreed, Parameters::default());
}

#[test]
fn numbers_are_clamped_by_their_rule() {
    for (offer, expected) in [
        ("MaxBurstLength=16776192", "MaxBurstLength=65536"),
        ("MaxBurstLength=512", "MaxBurstLength=512"),
        ("MaxBurstLength=0x400", "MaxBurstLength=1024"),
        ("FirstBurstLength=262144", "FirstBurstLength=32768"),
        ("MaxConnections=65535", "MaxConnections=1"),
        ("MaxOutstandingR2T=1", "MaxOutstandingR2T=1"),
        ("MaxOutstandingR2T=99", "MaxOutstandingR2T=8"),
        ("DefaultTime2Wait=0", "DefaultTime2Wait=2"),
        ("DefaultTime2Wait=3600", "DefaultTime2Wait=3600"),
        ("DefaultTime2Retain=20", "DefaultTime2Retain=0"),
        ("ErrorRecoveryLevel=2", "ErrorRecoveryLevel=0"),
        ("iSCSIProtocolLevel=31", "iSCSIProtocolLevel=2"),
        ("iSCSIProtocolLevel=1", "iSCSIProtocolLevel=1"),
    ] {
        assert_eq!(answer(offer), expected, "{offer}");
    }
}

#[test]
fn numbers_out_of_range_are_rejected() {
    for offer in [
        "MaxBurstLength=511",
        "MaxBurstLength=16777216",
        "FirstBurstLength=0",
        "MaxConnections=0",
        "MaxConnections=65536",
        "DefaultTime2Wait=3601",
        "ErrorRecoveryLevel=3",
        "iSCSIProtocolLevel=32",
        "MaxOutstandingR2T=x",
        "MaxRecvDataSegmentLength=511",
        "MaxRecvDataSegmentLength=16777216",
    ] {
        let (answer, agreed) = negotiate(offer).unwrap();
        assert_eq!(answer, format!("{}=Reject", offer.split_once('=').unwrap().0));
        assert_eq!(agreed, Parameters::default(), "{offer}");
    }
}

#[test]
fn first_burst_never_exceeds_the_agreed_max_burst() {
    let (answer, agreed) = negotiate("FirstBurstLength=8192 MaxBurstLength=4096").unwrap();
    assert_eq!(answer, "MaxBurstLength=4096 FirstBurstLength=4096");
    assert_eq!((agreed.first_burst, agreed.max_burst), (4096, 4096));
}

#[test]
fn default_first_burst_shrinks_with_max_burst() {
    assert_eq!(negotiate("MaxBurstLength=4096").unwrap().1.first_burst, 4096);
}

#[test]
fn first_burst_is_irrelevant_without_unsolicited_data() {
    assert_eq!(
        answer("FirstBurstLength=8192 InitialR2T=Yes ImmediateData=No"),
        "InitialR2T=Yes ImmediateData=No FirstBurstLength=Irrelevant"
    );
}

#[test]
fn first_supported_digest_of_the_list_is_chosen() {
    for (policy, offer, expected) in [
        (DigestPolicy::Allowed, "CRC32C,None", "CRC32C"),
        (DigestPolicy::Allowed, "None,CRC32C", "None"),
        (DigestPolicy::Allowed, "X-md5,CRC32C", "CRC32C"),
        (DigestPolicy::Allowed, "X-md5", "Reject"),
        (DigestPolicy::Off, "CRC32C,None", "None"),
        (DigestPolicy::Off, "CRC32C", "Reject"),
        (DigestPolicy::Required, "None,CRC32C", "CRC32C"),
        (DigestPolicy::Required, "None", "Reject"),
    ] {
        let preferences = Preferences { header_digest: policy, ..wanted() };
        let (answer, agreed) = negotiate_with(
            SessionType::Normal,
            true,
            preferences,
            &format!("HeaderDigest={offer}"),
        )
        .unwrap();
        assert_eq!(answer, format!("HeaderDigest={expected}"), "{policy:?} {offer}");
        assert_eq!(agreed.header_digest, expected == "CRC32C");
        assert!(!agreed.data_digest);
    }
}

#[test]
fn task_reporting_is_the_first_the_target_can() {
    let preferences = Preferences { task_reporting: &[TaskReporting::FastAbort], ..wanted() };
    let (answer, agreed) = negotiate_with(
        SessionType::Normal,
        true,
        preferences,
        "TaskReporting=ResponseFence,FastAbort,RFC3720",
    )
    .unwrap();
    assert_eq!(answer, "TaskReporting=FastAbort");
    assert_eq!(agreed.task_reporting, TaskReporting::FastAbort);
}

#[test]
fn declared_segment_length_has_no_answer() {
    let (answer, agreed) = negotiate("MaxRecvDataSegmentLength=262144").unwrap();
    assert_eq!((answer.as_str(), agreed.initiator_mrdsl), ("", 262_144));
}

#[test]
fn unknown_keys_are_not_understood() {
    assert_eq!(
        answer("X-com.example=1 initialr2t=Yes"),
        "X-com.example=NotUnderstood initialr2t=NotUnderstood"
    );
}

#[test]
fn more_unknown_keys_than_anybody_has_end_the_negotiation() {
    let offers = "X-a=1 ".repeat(65);
    assert_eq!(negotiate(&offers), Err(NegotiationError::TooManyUnknown));
}

#[test]
fn marker_keys_are_never_not_understood() {
    assert_eq!(
        answer("IFMarker=Yes OFMarker=No IFMarkInt=1~65535 OFMarkInt=2048"),
        "IFMarker=No OFMarker=No IFMarkInt=Reject OFMarkInt=Reject"
    );
}

#[test]
fn scsi_keys_are_irrelevant_in_discovery() {
    for (offer, expected) in [
        ("MaxConnections=1", "MaxConnections=Irrelevant"),
        ("InitialR2T=No", "InitialR2T=Irrelevant"),
        ("ImmediateData=Yes", "ImmediateData=Irrelevant"),
        ("MaxBurstLength=512", "MaxBurstLength=Irrelevant"),
        ("FirstBurstLength=512", "FirstBurstLength=Irrelevant"),
        ("MaxOutstandingR2T=1", "MaxOutstandingR2T=Irrelevant"),
        ("DataPDUInOrder=Yes", "DataPDUInOrder=Irrelevant"),
        ("DataSequenceInOrder=Yes", "DataSequenceInOrder=Irrelevant"),
        ("TaskReporting=FastAbort", "TaskReporting=Irrelevant"),
        ("iSCSIProtocolLevel=2", "iSCSIProtocolLevel=Irrelevant"),
        ("DefaultTime2Wait=2", "DefaultTime2Wait=2"),
        ("ErrorRecoveryLevel=0", "ErrorRecoveryLevel=0"),
        ("HeaderDigest=None", "HeaderDigest=None"),
    ] {
        let (answer, _) = negotiate_with(SessionType::Discovery, true, wanted(), offer).unwrap();
        assert_eq!(answer, expected, "{offer}");
    }
}

#[test]
fn leading_only_keys_are_rejected_on_another_connection() {
    let offers = "MaxBurstLength=512 HeaderDigest=CRC32C";
    let (answer, agreed) = negotiate_with(SessionType::Normal, false, wanted(), offers).unwrap();
    assert_eq!(answer, "MaxBurstLength=Reject HeaderDigest=CRC32C");
    let session = Parameters { max_burst: 1024, first_burst: 1024, ..Parameters::default() };
    let joined = agreed.joined_to(&session);
    assert_eq!((joined.max_burst, joined.header_digest), (1024, true));
}

#[test]
fn repeated_keys_end_the_negotiation() {
    for (offers, key) in [
        ("InitialR2T=No InitialR2T=No", "InitialR2T"),
        ("FirstBurstLength=512 FirstBurstLength=512", "FirstBurstLength"),
        ("MaxRecvDataSegmentLength=512 MaxRecvDataSegmentLength=512", "MaxRecvDataSegmentLength"),
        ("IFMarker=No IFMarker=No", "IFMarker"),
    ] {
        assert_eq!(negotiate(offers), Err(NegotiationError::Repeated(key)), "{offers}");
    }
}

#[test]
fn key_agreed_on_in_an_earlier_text_cannot_be_renegotiated() {
    let mut negotiation = Negotiation::new(SessionType::Normal, true, wanted());
    let mut answers = Text::new();
    negotiation.receive([("FirstBurstLength", "512")], &mut answers).unwrap();
    assert_eq!(
        negotiation.receive([("FirstBurstLength", "1024")], &mut answers),
        Err(NegotiationError::Repeated("FirstBurstLength"))
    );
}

#[test]
fn keys_out_of_place_end_the_negotiation() {
    assert_eq!(negotiate("SendTargets=All"), Err(NegotiationError::OutOfPhase("SendTargets")));
    assert_eq!(negotiate("CHAP_A=5"), Err(NegotiationError::OutOfPhase("CHAP_A")));
    assert_eq!(negotiate("TargetAlias=x"), Err(NegotiationError::TargetOnly("TargetAlias")));
}

#[test]
fn answer_to_an_offer_nobody_made_ends_the_negotiation() {
    assert_eq!(
        negotiate("InitialR2T=Irrelevant"),
        Err(NegotiationError::UnexpectedAnswer { key: "InitialR2T", value: "Irrelevant".into() })
    );
}

fn offer(negotiation: &mut Negotiation) -> String {
    let mut text = Text::new();
    negotiation.offer(&mut text);
    String::from_utf8(text.into_bytes()).unwrap()
}

#[test]
fn target_declares_its_segment_length_once() {
    let mut negotiation = Negotiation::new(SessionType::Normal, true, Preferences::default());
    assert_eq!(offer(&mut negotiation), "MaxRecvDataSegmentLength=262144\0");
    assert_eq!(offer(&mut negotiation), "");
    assert_eq!(negotiation.parameters().target_mrdsl, 262_144);
    let theirs = [("MaxRecvDataSegmentLength", "4096")];
    negotiation.receive(theirs, &mut Text::new()).unwrap();
    assert_eq!(negotiation.parameters().initiator_mrdsl, 4096);
}

#[test]
fn rejected_segment_length_falls_back_to_the_default() {
    let mut negotiation = Negotiation::new(SessionType::Normal, true, wanted());
    offer(&mut negotiation);
    let theirs = [("MaxRecvDataSegmentLength", "Reject")];
    negotiation.receive(theirs, &mut Text::new()).unwrap();
    assert_eq!(negotiation.parameters().target_mrdsl, DEFAULT_MRDSL);
}

#[test]
fn required_digest_is_offered_to_a_silent_initiator_and_its_answer_taken() {
    let preferences = Preferences { header_digest: DigestPolicy::Required, ..wanted() };
    let mut negotiation = Negotiation::new(SessionType::Discovery, true, preferences);
    assert!(offer(&mut negotiation).contains("HeaderDigest=CRC32C\0"));
    assert!(!negotiation.is_settled());
    let mut answers = Text::new();
    negotiation.receive([("HeaderDigest", "CRC32C")], &mut answers).unwrap();
    assert!(answers.is_empty(), "an answer must not be answered: {answers:?}");
    assert!(negotiation.is_settled());
    assert_eq!(negotiation.unmet_digest(), None);
    assert!(negotiation.parameters().header_digest);
}

#[test]
fn required_digest_that_is_declined_ends_the_negotiation() {
    let preferences = Preferences { data_digest: DigestPolicy::Required, ..wanted() };
    let mut negotiation = Negotiation::new(SessionType::Normal, true, preferences);
    offer(&mut negotiation);
    for value in ["None", "Reject", "NotUnderstood"] {
        assert_eq!(
            negotiation.clone().receive([("DataDigest", value)], &mut Text::new()),
            Err(NegotiationError::OfferRefused { key: "DataDigest", value: value.into() })
        );
    }
    assert_eq!(negotiation.unmet_digest(), Some("DataDigest"));
}

#[test]
fn bursts_below_the_default_are_offered_and_the_answer_taken() {
    let mut negotiation = Negotiation::new(SessionType::Normal, true, wanted());
    let offers = offer(&mut negotiation);
    assert!(offers.contains("MaxBurstLength=65536\0FirstBurstLength=32768\0"), "{offers}");
    let answers = [("MaxBurstLength", "4096"), ("FirstBurstLength", "4096")];
    negotiation.receive(answers, &mut Text::new()).unwrap();
    let agreed = negotiation.parameters();
    assert_eq!((agreed.max_burst, agreed.first_burst), (4096, 4096));
}

#[test]
fn answer_above_the_targets_offer_ends_the_negotiation() {
    let mut negotiation = Negotiation::new(SessionType::Normal, true, wanted());
    offer(&mut negotiation);
    assert_eq!(
        negotiation.receive([("MaxBurstLength", "262144")], &mut Text::new()),
        Err(NegotiationError::OfferRefused { key: "MaxBurstLength", value: "262144".into() })
    );
}

#[test]
fn unwanted_immediate_data_is_offered_away() {
    let preferences = Preferences { immediate_data: false, ..Preferences::default() };
    let mut negotiation = Negotiation::new(SessionType::Normal, true, preferences);
    assert!(offer(&mut negotiation).contains("ImmediateData=No\0"));
    negotiation.receive([("ImmediateData", "No")], &mut Text::new()).unwrap();
    assert!(!negotiation.parameters().immediate_data);
}

proptest! {
    #[test]
    fn any_offers_leave_parameters_within_their_ranges(
        offers in proptest::collection::vec(
            (0..keys::KEYS.len(), "(Yes|No|None|CRC32C|Reject|[0-9]{1,8}|0x[0-9a-f]{1,8}|.{0,9})"),
            0..12,
        ),
    ) {
        let mut negotiation = Negotiation::new(SessionType::Normal, true, wanted());
        for (row, value) in &offers {
            let mut answers = Text::new();
            if negotiation.receive([(keys::KEYS[*row].name, value.as_str())], &mut answers).is_err()
            {
                break;
            }
            negotiation.offer(&mut answers);
        }
        let agreed = negotiation.parameters();
        prop_assert!((512..=0xFF_FFFF).contains(&agreed.initiator_mrdsl));
        prop_assert!((512..=0xFF_FFFF).contains(&agreed.max_burst));
        prop_assert!((512..=agreed.max_burst).contains(&agreed.first_burst));
        prop_assert!(agreed.max_connections >= 1 && agreed.max_outstanding_r2t >= 1);
        prop_assert!(agreed.time2wait <= 3600 && agreed.error_recovery_level == 0);
    }
}

/// What open-iscsi sends over RDMA, RDMAExtensions after the keys that depend on it.
const OPEN_ISCSI: &str = "DefaultTime2Wait=2 DefaultTime2Retain=0 IFMarker=No OFMarker=No \
    ErrorRecoveryLevel=0 InitialR2T=No ImmediateData=Yes MaxBurstLength=16776192 \
    FirstBurstLength=262144 MaxOutstandingR2T=1 MaxConnections=1 DataPDUInOrder=Yes \
    DataSequenceInOrder=Yes InitiatorRecvDataSegmentLength=262144 \
    TargetRecvDataSegmentLength=262144 RDMAExtensions=Yes";

fn over_rdma(session: SessionType, offers: &str) -> (String, Parameters) {
    negotiate_with(session, true, wanted().over(Transport::Rdma), offers).unwrap()
}

#[test]
fn open_iscsi_over_rdma_gets_rdma_and_fetched_data() {
    let (answers, agreed) = over_rdma(SessionType::Normal, OPEN_ISCSI);
    assert_eq!(
        answers,
        "DefaultTime2Wait=2 DefaultTime2Retain=0 IFMarker=No OFMarker=No ErrorRecoveryLevel=0 \
         InitialR2T=Yes ImmediateData=Yes MaxBurstLength=65536 MaxOutstandingR2T=1 \
         MaxConnections=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes \
         InitiatorRecvDataSegmentLength=262144 TargetRecvDataSegmentLength=8192 \
         RDMAExtensions=Yes FirstBurstLength=32768"
    );
    assert!(agreed.initial_r2t && agreed.immediate_data);
    let rdma = RdmaParameters {
        extensions: true,
        initiator_recv: 262_144,
        target_recv: 8192,
        ..RdmaParameters::default()
    };
    assert_eq!(agreed.rdma, rdma);
}

#[test]
fn rdma_keys_in_any_order_agree_on_the_same() {
    let reversed: Vec<&str> = OPEN_ISCSI.split_whitespace().rev().collect();
    let (_, agreed) = over_rdma(SessionType::Normal, &reversed.join(" "));
    assert_eq!(agreed, over_rdma(SessionType::Normal, OPEN_ISCSI).1);
}

#[test]
fn rdma_keys_over_tcp_are_answered_no_and_irrelevant() {
    assert_eq!(
        answer(
            "InitiatorRecvDataSegmentLength=262144 TargetRecvDataSegmentLength=8192 \
             RDMAExtensions=Yes MaxOutstandingUnexpectedPDUs=8 MaxAHSLength=64 \
             TaggedBufferForSolicitedDataOnly=Yes iSERHelloRequired=No"
        ),
        "InitiatorRecvDataSegmentLength=Irrelevant TargetRecvDataSegmentLength=Irrelevant \
         RDMAExtensions=No MaxOutstandingUnexpectedPDUs=Irrelevant MaxAHSLength=Irrelevant \
         TaggedBufferForSolicitedDataOnly=Irrelevant iSERHelloRequired=Irrelevant"
    );
}

#[test]
fn digest_over_rdma_is_none_whatever_is_required_over_tcp() {
    let required = Preferences { header_digest: DigestPolicy::Required, ..wanted() };
    let (answers, agreed) = negotiate_with(
        SessionType::Normal,
        true,
        required.over(Transport::Rdma),
        "HeaderDigest=CRC32C,None DataDigest=None,CRC32C MaxConnections=8",
    )
    .unwrap();
    assert_eq!(answers, "HeaderDigest=None DataDigest=None MaxConnections=1");
    assert_eq!((agreed.header_digest, agreed.max_connections), (false, 1));
}

#[test]
fn unexpected_pdus_and_header_segments_are_declared_to_who_declares_them() {
    let (answers, agreed) =
        over_rdma(SessionType::Normal, "MaxOutstandingUnexpectedPDUs=4294967295 MaxAHSLength=0");
    assert_eq!(answers, "MaxOutstandingUnexpectedPDUs=16 MaxAHSLength=256");
    assert_eq!(agreed.rdma.unexpected_pdus, u32::MAX);
    let (answers, _) = over_rdma(SessionType::Normal, "MaxOutstandingUnexpectedPDUs=1");
    assert_eq!(answers, "MaxOutstandingUnexpectedPDUs=Reject");
}

#[test]
fn what_the_write_buffer_covers_is_known_only_when_said() {
    let tagged = |offers| over_rdma(SessionType::Normal, offers).1.rdma.tagged_is_solicited;
    assert_eq!(tagged(""), None);
    assert_eq!(tagged("TaggedBufferForSolicitedDataOnly=Yes"), Some(true));
    assert_eq!(tagged("TaggedBufferForSolicitedDataOnly=No"), Some(false));
    let (answers, agreed) =
        over_rdma(SessionType::Normal, "iSERHelloRequired=Yes TaggedBufferForSolicitedDataOnly=1");
    assert_eq!(answers, "TaggedBufferForSolicitedDataOnly=Reject");
    assert!(agreed.rdma.hello_required);
}

#[test]
fn session_over_rdma_without_rdma_extensions_lacks_them() {
    let lacks = |session, offers: &str| {
        let mut negotiation = Negotiation::new(session, true, wanted().over(Transport::Rdma));
        let pairs = offers.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        negotiation.receive(pairs, &mut Text::new()).unwrap();
        negotiation.lacks_rdma()
    };
    assert!(lacks(SessionType::Normal, ""));
    assert!(lacks(SessionType::Normal, "RDMAExtensions=No"));
    assert!(!lacks(SessionType::Normal, "RDMAExtensions=Yes"));
    assert!(!lacks(SessionType::Discovery, ""));
}

#[test]
fn segment_length_is_declared_over_rdma_in_discovery_only() {
    for (session, declared) in [(SessionType::Normal, false), (SessionType::Discovery, true)] {
        let mut negotiation = Negotiation::new(session, true, wanted().over(Transport::Rdma));
        let mut answers = Text::new();
        negotiation.offer(&mut answers);
        let text = String::from_utf8(answers.into_bytes()).unwrap();
        assert_eq!(text.contains("MaxRecvDataSegmentLength="), declared, "{session:?}");
        assert!(!text.contains("Unexpected") && !text.contains("AHS"), "{text}");
    }
}
