use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::round_trip;

#[rustfmt::skip]
const LOGIN_REQ: [u8; 64] = [
    0x00, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0x20, 0x44, 0, 0, 0, 0, 0, 0x06, 0xE1, 0, 0, 68, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0xFF, 0xFE, 0, 0, 0x01,
    0x11, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0x33,
];

#[rustfmt::skip]
const COMPACT: [u8; 56] = [
    1, 2, 3, 4, 5, 6, 7, 8, 0, 0x06, 0xE1, 0x00, 0, 0, 0x20, 0x44,
    0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0xFF, 0xFE, 0, 0, 0x01,
    0x11, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0x33,
    0, 68, 0, 0, 0, 0, 0, 0,
];

#[rustfmt::skip]
const LOGIN_RSP: [u8; 52] = [
    0xC0, 0, 0, 0, 0, 0, 0, 128, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0x20, 0x54, 0, 0, 1, 0, 0, 0x06, 0x82, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[rustfmt::skip]
const LOGIN_REJ: [u8; 32] = [
    0xC2, 0, 0, 0, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x06, 0, 0, 0, 0, 0, 0,
];

const TAG: Tag = Tag([1, 2, 3, 4, 5, 6, 7, 8]);

fn request() -> LoginReq {
    LoginReq {
        tag: TAG,
        max_initiator_iu: 8260,
        formats: BufferFormats::ALL,
        action: MultiChannelAction::Multi,
        solicit_logout: false,
        solicit_credit: true,
        solicit_aer: true,
        immediate: Some(68),
        initiator_port: PortId::new(0, 0x0200_00FF_FE00_0001),
        target_port: PortId::new(0x1100_0000_0000_0000, 0x2200_0000_0000_0033),
    }
}

#[test]
fn login_req_round_trips() {
    round_trip!(LOGIN_REQ, request(), LoginReq::parse, LoginReq::emit);
}

#[test]
fn compact_login_req_round_trips_to_the_same_value() {
    round_trip!(COMPACT, request(), LoginReq::parse_compact, LoginReq::emit_compact);
}

#[test]
fn compact_login_with_another_opcode_is_refused() {
    let mut bytes = COMPACT;
    bytes[11] = 0x02;
    let error = WireError::Opcode { expected: 0, found: 2 };
    assert_eq!(LoginReq::parse_compact(&bytes), Err(error));
}

#[test]
fn immediate_offset_without_its_flag_is_ignored() {
    let mut bytes = LOGIN_REQ;
    bytes[26] &= 0x7F;
    assert_eq!(LoginReq::parse(&bytes).unwrap().immediate, None);
}

#[test]
fn undefined_multichannel_action_is_kept() {
    let mut bytes = LOGIN_REQ;
    bytes[26] = 0x02;
    assert_eq!(LoginReq::parse(&bytes).unwrap().action, MultiChannelAction::Unknown(2));
}

#[test]
fn freebsd_login_reads_length_zero_and_direct_descriptors() {
    let mut bytes = [0; 64];
    bytes[16..24].copy_from_slice(&256_u64.to_be_bytes());
    bytes[24..26].copy_from_slice(&[0, 3]);
    let login = LoginReq::parse(&bytes).unwrap();
    assert_eq!(login.max_initiator_iu, 0);
    assert_eq!(login.formats.leniently(), BufferFormats::DIRECT);
}

#[test]
fn login_rsp_round_trips() {
    let unit = LoginRsp {
        tag: TAG,
        limit_delta: 128,
        max_initiator_iu: 8276,
        max_target_iu: 256,
        formats: BufferFormats::ALL,
        result: MultiChannelResult::Maintained,
        immediate: true,
    };
    round_trip!(LOGIN_RSP, unit, LoginRsp::parse, LoginRsp::emit);
}

#[test]
fn login_rej_round_trips() {
    let unit = LoginRej { tag: TAG, reason: RejectReason::IuTooLong, formats: BufferFormats::ALL };
    round_trip!(LOGIN_REJ, unit, LoginRej::parse, LoginRej::emit);
}

#[test]
fn reject_reasons_have_consecutive_codes() {
    let reasons = [
        RejectReason::Unspecified,
        RejectReason::NoResources,
        RejectReason::IuTooLong,
        RejectReason::NoNexus,
        RejectReason::Formats,
        RejectReason::NoMultiChannel,
        RejectReason::ChannelLimit,
        RejectReason::Unknown(0x0001_0007),
    ];
    for (code, reason) in (0x0001_0000..).zip(reasons) {
        assert_eq!((RejectReason::from_code(code), reason.code()), (reason, code));
    }
}

#[test]
fn lenient_formats_read_bit_zero_as_direct() {
    let read: Vec<_> = (0..8).map(|bits| BufferFormats(bits).leniently().0).collect();
    assert_eq!(read, [0, 2, 2, 2, 4, 6, 6, 6]);
}

#[test]
fn port_identifier_halves_are_swapped_by_io_class() {
    assert_eq!(PortId::new(1, 2).halves(), (1, 2));
    assert_eq!(PortId::new_rev10(1, 2).halves(), (2, 1));
    assert_eq!(PortId::new(1, 2).0[7..], [1, 0, 0, 0, 0, 0, 0, 0, 2]);
}

proptest! {
    #[test]
    fn any_login_survives_both_layouts(
        tag: [u8; 8], max_initiator_iu: u32, formats: u16, flags: u8, offset: u16,
        initiator: [u8; 16], target: [u8; 16],
    ) {
        let login = LoginReq {
            tag: Tag(tag),
            max_initiator_iu,
            formats: BufferFormats(formats),
            initiator_port: PortId(initiator),
            target_port: PortId(target),
            ..LoginReq::with_flags(flags, offset)
        };
        let mut out = [0xA5; 64];
        prop_assert_eq!(login.emit(&mut out), Ok(64));
        prop_assert_eq!(LoginReq::parse(&out), Ok(login));
        prop_assert_eq!(login.emit_compact(&mut out), Ok(56));
        prop_assert_eq!(LoginReq::parse_compact(&out), Ok(login));
    }
}
