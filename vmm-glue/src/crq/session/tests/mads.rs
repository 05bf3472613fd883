//! Management datagrams.

use libsrp::{aer::AerReq, viosrp::mad::MadStatus};

use super::*;

/// A datagram of a type, with a length, and a payload of these bytes.
fn datagram(rig: &mut Rig, kind: u8, len: u16, payload: &[u8]) -> (MadStatus, Vec<u8>) {
    let mut unit = [0; 32];
    unit[3] = kind;
    unit[6..8].copy_from_slice(&len.to_be_bytes());
    unit[8..16].copy_from_slice(&[0xEE; 8]);
    unit[16..24].copy_from_slice(&0x9000u64.to_be_bytes());
    let mut write = Vec::new();
    let reply = match rig.step(&unit, 256, Format::Mad) {
        Step::Reply(reply) => reply,
        Step::Payload(asked) => {
            assert_eq!(asked.buffer, 0x9000);
            assert!(asked.len <= u32::from(len) && asked.len <= 4096);
            let read = payload.get(..asked.len as usize);
            let reply = rig.session.payload(&asked, read, &mut write, &mut rig.out);
            assert!(write.len() <= asked.len as usize);
            reply
        }
        step => panic!("{step:?}"),
    };
    let (message, header) = rig.answer(reply);
    assert_eq!((message.format, message.tag()), (Format::Mad, Tag([0xEE; 8])));
    assert_eq!((header.len(), header[3]), (16, kind));
    (MadStatus::from_code(u16::from_be_bytes([header[4], header[5]])), write)
}

fn statuses(kind: u8) -> Vec<MadStatus> {
    let lengths = [0, 15, 68, 92, 4097];
    let payload = vec![0; 8192];
    lengths.map(|len| datagram(&mut Rig::connected(), kind, len, &payload).0).to_vec()
}

#[test]
fn every_type_is_answered_whatever_its_length() {
    use MadStatus::{Failed as F, NotSupported as N, Success as S};
    // ERROR LOG, ADAPTER INFO, HOST CONFIG, CAPABILITIES, PHYSICAL ADAPTER INFO, TAPE PASSTHROUGH,
    // ENABLE FAST FAIL, and one nobody knows.
    let expected = [
        (2, [F, F, F, F, S]),
        (3, [F, S, S, S, S]),
        (4, [N, N, N, N, N]),
        (5, [F, F, S, F, F]),
        (6, [F, S, S, S, S]),
        (7, [N, N, N, N, N]),
        (8, [S, S, S, S, S]),
        (0x55, [N, N, N, N, N]),
    ];
    for (kind, expected) in expected {
        assert_eq!(statuses(kind), expected, "{kind:#x}");
    }
}

#[test]
fn adapter_info_tells_what_is_configured() {
    let config =
        Config { partition_name: "server".into(), partition_number: 7, ..Config::new("a") };
    let mut rig = Rig::with(config);
    rig.session.element(&INIT);
    let (status, info) = datagram(&mut rig, 3, 148, &[0; 148]);
    assert_eq!((status, info.len()), (MadStatus::Success, 148));
    assert_eq!(&info[..8], b"16.a\0\0\0\0");
    assert_eq!(&info[8..15], b"server\0");
    // Partition 7, version 1, AIX, 1 MiB.
    assert_eq!(info[104..120], [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0x10, 0, 0]);
    // A client with less room gets what fits.
    assert_eq!(datagram(&mut rig, 3, 100, &[0; 148]).1, info[..100]);
}

/// What Linux asks: migration and SCSI-2 reserve.
fn linux_capabilities() -> [u8; 92] {
    let mut payload = [0; 92];
    // Migrated, and with a list.
    payload[3] = 0x05;
    payload[68..80].copy_from_slice(&[0, 0, 0, 1, 0, 12, 0, 1, 0, 0, 0, 1]);
    payload[80..92].copy_from_slice(&[0, 0, 0, 2, 0, 12, 0, 1, 0, 0, 0, 1]);
    payload
}

#[test]
fn capabilities_are_answered_one_by_one() {
    let answer = |migration| {
        let mut rig = Rig::with(Config { migration, ..Config::new("a") });
        rig.session.element(&INIT);
        let (status, list) = datagram(&mut rig, 5, 92, &linux_capabilities());
        assert_eq!((status, list.len(), &list[..5]), (MadStatus::Success, 92, &b"\0\0\0\x04a"[..]));
        (list[75], list[87])
    };
    assert_eq!(answer(true), (1, 1));
    assert_eq!(answer(false), (0, 1));
}

#[test]
fn capabilities_with_an_entry_of_no_length_fail() {
    let mut payload = linux_capabilities();
    payload[73] = 0;
    let (status, write) = datagram(&mut Rig::connected(), 5, 92, &payload);
    assert_eq!((status, write), (MadStatus::Failed, vec![]));
}

#[test]
fn a_payload_that_cannot_be_read_fails() {
    let (status, write) = datagram(&mut Rig::connected(), 3, 148, &[]);
    assert_eq!((status, write), (MadStatus::Failed, vec![]));
}

#[test]
fn physical_adapter_information_is_that_of_the_configuration() {
    let config = Config { serial_number: "S1".into(), location: "U1".into(), ..Config::new("a") };
    let mut rig = Rig::with(config);
    rig.session.element(&INIT);
    let mut payload = [0; 528];
    payload[..2].copy_from_slice(&[0x80, 2]);
    let (status, info) = datagram(&mut rig, 6, 528, &payload);
    assert_eq!((status, info.len()), (MadStatus::Success, 528));
    assert_eq!(info[..12], [0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!((&info[140..142], &info[268..270]), (&b"S1"[..], &b"U1"[..]));
}

#[test]
fn fast_fail_after_the_login_fails() {
    assert_eq!(datagram(&mut Rig::logged_in(), 8, 0, &[]).0, MadStatus::Failed);
}

#[test]
fn a_datagram_without_the_body_of_its_type_fails_and_without_a_header_ends_the_connection() {
    let mut rig = Rig::connected();
    let mut unit = [0; 16];
    unit[3] = 3;
    let Step::Reply(reply) = rig.step(&unit, 16, Format::Mad) else { panic!() };
    assert_eq!(rig.answer(reply).1[4..6], [0, 0xF7]);
    assert_eq!(rig.step(&unit[..15], 15, Format::Mad), Step::Violated(Violation::Short(15)));
}

#[test]
fn datagrams_of_other_systems_are_answered_in_their_format() {
    for format in [Format::Os400, Format::Aix, Format::Five] {
        let mut rig = Rig::connected();
        let mut unit = [0; 16];
        unit[3] = 0x55;
        let Step::Reply(reply) = rig.step(&unit, 16, format) else { panic!() };
        assert_eq!(rig.answer(reply).0.format, format);
    }
}

/// Gives a buffer of the client.
fn park(rig: &mut Rig, tag: u8, len: u16) -> bool {
    let mut unit = [0; 28];
    unit[3] = 1;
    unit[6..8].copy_from_slice(&len.to_be_bytes());
    unit[8..16].copy_from_slice(&[tag; 8]);
    unit[16..24].copy_from_slice(&0xB000u64.to_be_bytes());
    matches!(rig.step(&unit, 28, Format::Mad), Step::Nothing)
}

#[test]
fn an_empty_unit_is_kept_until_there_is_something_to_report() {
    let mut rig = Rig::logged_in();
    let lun = lun_of(2, 3).unwrap();
    let out = &mut [0xA5; 256];
    assert_eq!(rig.session.report(lun, Attention::LUNS_CHANGED, out), None);
    assert!(park(&mut rig, 5, 256));
    assert!(rig.session.can_report());
    let aer = rig.session.report(lun, Attention::LUNS_CHANGED, out).unwrap();
    assert_eq!((aer.buffer, aer.header), (0xB000, ADDRESS));
    let request = AerReq::parse(&out[..aer.len]).unwrap();
    assert_eq!((request.lun, request.limit_delta), (Lun([0x82, 3, 0, 0, 0, 0, 0, 0]), 0));
    assert_eq!((request.sense[2], request.sense[12], request.sense[13]), (6, 0x3F, 0x0E));
    let Element::Message(message) = Element::parse(&aer.element) else { panic!() };
    assert_eq!((message.format, message.tag()), (Format::Mad, Tag([5; 8])));
    assert_eq!(aer.datagram[..6], [0, 0, 0, 1, 0, 0]);
    // The client answers it, once.
    let mut answer = [0; 16];
    answer[0] = 0x42;
    answer[8..].copy_from_slice(&request.tag.0);
    assert_eq!(rig.step(&answer, 16, Format::Srp), Step::Nothing);
    assert!(matches!(rig.step(&answer, 16, Format::Srp), Step::Violated(_)));
    assert!(!rig.session.can_report());
}

use vscsi_target::model::Attention;

#[test]
fn more_empty_units_than_are_kept_and_too_short_ones_fail() {
    let mut rig = Rig::logged_in();
    assert!(!park(&mut rig, 0, 53));
    assert!(park(&mut rig, 0, 54));
    assert!((1..16).all(|tag| park(&mut rig, tag, 0)));
    assert!(!park(&mut rig, 99, 0));
}
