use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::round_trip;

const TAG: Tag = Tag([8, 7, 6, 5, 4, 3, 2, 1]);
const BUFFER: u64 = 0x1122_3344_5566_7788;

fn header(kind: u8, len: u8) -> Vec<u8> {
    std::vec![0, 0, 0, kind, 0, 0, 0, len, 8, 7, 6, 5, 4, 3, 2, 1]
}

fn request(body: MadBody, len: u16) -> Mad {
    Mad { tag: TAG, status: MadStatus::Success, len, body }
}

#[test]
fn datagrams_with_a_buffer_round_trip() {
    let bodies = [
        (0x02, MadBody::ErrorLog { buffer: BUFFER }),
        (0x03, MadBody::AdapterInfo { buffer: BUFFER }),
        (0x04, MadBody::HostConfig { buffer: BUFFER }),
        (0x05, MadBody::Capabilities { buffer: BUFFER }),
        (0x06, MadBody::PhysicalAdapterInfo { buffer: BUFFER }),
    ];
    for (kind, body) in bodies {
        let mut bytes = header(kind, 148);
        bytes.extend(BUFFER.to_be_bytes());
        round_trip!(bytes, request(body, 148), Mad::parse, Mad::emit);
    }
}

#[test]
fn empty_iu_round_trips() {
    let mut bytes = header(0x01, 0);
    bytes.extend(BUFFER.to_be_bytes());
    bytes.extend([0, 0, 0, 9]);
    let body = MadBody::EmptyIu { buffer: BUFFER, port: 9 };
    round_trip!(bytes, request(body, 0), Mad::parse, Mad::emit);
}

#[test]
fn tape_passthrough_round_trips() {
    let mut bytes = header(0x07, 16);
    bytes.extend([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    let lun = Lun([0x80, 1, 0, 0, 0, 0, 0, 0]);
    let body = MadBody::TapePassthrough { lun, version: 1, passthrough: 2 };
    round_trip!(bytes, request(body, 16), Mad::parse, Mad::emit);
}

#[test]
fn enable_fast_fail_round_trips() {
    round_trip!(header(8, 0), request(MadBody::EnableFastFail, 0), Mad::parse, Mad::emit);
}

#[test]
fn unknown_type_is_kept_to_be_answered_not_supported() {
    let bytes = header(0x55, 0);
    let mad = request(MadBody::Unknown(0x55), 0);
    round_trip!(bytes, mad, Mad::parse, Mad::emit);
    let mut out = [0xA5; 16];
    assert_eq!(mad.with_status(MadStatus::NotSupported).emit_header(&mut out), Ok(16));
    assert_eq!(out, [0, 0, 0, 0x55, 0, 0xF1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn answer_writes_the_header_only() {
    let mad = request(MadBody::AdapterInfo { buffer: BUFFER }, 148);
    let mut out = [0xA5; 24];
    assert_eq!(mad.with_status(MadStatus::Failed).emit_header(&mut out), Ok(16));
    assert_eq!(out[..8], [0, 0, 0, 3, 0, 0xF7, 0, 148]);
    assert_eq!(out[16..], [0xA5; 8]);
}

#[test]
fn datagram_without_its_body_can_be_answered() {
    for (kind, needed) in [(1, 12), (2, 8), (3, 8), (4, 8), (5, 8), (6, 8), (7, 16)] {
        let error = WireError::Truncated { needed, got: 0 };
        let expected = MadError::Body { kind: kind.into(), tag: TAG, error };
        assert_eq!(Mad::parse(&header(kind, 0)), Err(expected));
    }
}

#[test]
fn header_short_by_one_byte_cannot_be_answered() {
    let error = WireError::Truncated { needed: 16, got: 15 };
    assert_eq!(Mad::parse(&header(8, 0)[..15]), Err(MadError::Header(error)));
}

#[test]
fn unknown_status_is_kept() {
    let mut bytes = header(8, 0);
    bytes[4] = 0x12;
    assert_eq!(Mad::parse(&bytes).unwrap().status, MadStatus::Unknown(0x1200));
}

proptest! {
    #[test]
    fn what_was_parsed_emits_to_the_same_value(
        mut bytes in prop::collection::vec(any::<u8>(), 0..40), kind in 0..10_u8,
    ) {
        if let Some(field) = bytes.get_mut(..4) {
            field.copy_from_slice(&[0, 0, 0, kind]);
        }
        if let Ok(mad) = Mad::parse(&bytes) {
            let mut out = [0xA5; 64];
            let len = mad.emit(&mut out).unwrap();
            prop_assert_eq!(&out[..len], &bytes[..len]);
            prop_assert_eq!(Mad::parse(&out[..len]), Ok(mad));
        }
    }
}
