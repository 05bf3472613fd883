use proptest::prelude::*;

use super::*;
use crate::testing::round_trip;
use crate::{SENSE_MAX, SenseData};

const TAG: Tag = Tag([1, 2, 3, 4, 5, 6, 7, 8]);

#[rustfmt::skip]
const GOOD: [u8; 36] = [
    0xC1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// CHECK CONDITION with 8 sense bytes and 3584 bytes of Data-In not used.
#[rustfmt::skip]
const CHECK: [u8; 44] = [
    0xC1, 1, 0, 0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0x22, 0x02, 0, 0, 0, 0, 0, 0, 0x0E, 0, 0, 0, 0, 8, 0, 0, 0, 0,
    0x72, 5, 0x24, 0, 0, 0, 0, 0,
];

#[rustfmt::skip]
const TASK_MANAGEMENT: [u8; 40] = [
    0xC1, 0, 0, 0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8,
    0, 0, 0x01, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4,
    0, 0, 0, 0x05,
];

fn good() -> Rsp<'static> {
    Rsp {
        tag: TAG,
        limit_delta: 1,
        solicited: false,
        status: Status::GOOD,
        data_out: Residual::None,
        data_in: Residual::None,
        code: None,
        sense: &[],
    }
}

fn check(sense_len: usize) -> Response {
    Response {
        status: Status::CHECK_CONDITION,
        sense: SenseData::new(&[0x72; SENSE_MAX][..sense_len]),
        ..Response::good(TAG)
    }
}

#[test]
fn good_round_trips() {
    round_trip!(GOOD, good(), Rsp::parse, Rsp::emit);
}

#[test]
fn check_condition_with_sense_and_underrun_round_trips() {
    let rsp = Rsp {
        limit_delta: 2,
        solicited: true,
        status: Status::CHECK_CONDITION,
        data_in: Residual::Under(3584),
        sense: &CHECK[36..],
        ..good()
    };
    round_trip!(CHECK, rsp, Rsp::parse, Rsp::emit);
}

#[test]
fn task_management_outcome_round_trips() {
    let rsp = Rsp { limit_delta: 2, code: Some(RspCode::Failed), ..good() };
    round_trip!(TASK_MANAGEMENT, rsp, Rsp::parse, Rsp::emit);
}

#[test]
fn sense_lies_behind_response_data_even_without_its_flag() {
    let mut bytes = [0; 44];
    bytes[..36].copy_from_slice(&CHECK[..36]);
    bytes[31] = 4;
    bytes[35] = 4;
    bytes[36..].copy_from_slice(&[9, 9, 9, 9, 0x70, 1, 2, 3]);
    let rsp = Rsp::parse(&bytes).unwrap();
    assert_eq!((rsp.code, rsp.sense), (None, &[0x70, 1, 2, 3][..]));
}

#[test]
fn lengths_beyond_the_unit_are_truncated() {
    let mut bytes = CHECK;
    bytes[28..36].fill(0xFF);
    let needed = 36 + 2 * 0xFFFF_FFFF;
    let error = RspError::Wire(WireError::Truncated { needed, got: 44 });
    assert_eq!(Rsp::parse(&bytes), Err(error));
}

#[test]
fn response_data_without_a_code_is_refused() {
    let mut bytes = TASK_MANAGEMENT;
    bytes[35] = 3;
    assert_eq!(Rsp::parse(&bytes), Err(RspError::ResponseDataLength(3)));
}

#[test]
fn residual_flags_are_told_apart() {
    let cases = [
        (0x04, Residual::Over(7), Residual::None),
        (0x08, Residual::Under(7), Residual::None),
        (0x0C, Residual::Under(7), Residual::None),
        (0x10, Residual::None, Residual::Over(9)),
        (0x20, Residual::None, Residual::Under(9)),
        (0x28, Residual::Under(7), Residual::Under(9)),
        (0x00, Residual::None, Residual::None),
    ];
    for (flags, data_out, data_in) in cases {
        let mut bytes = GOOD;
        bytes[18] = flags;
        bytes[23] = 7;
        bytes[27] = 9;
        let rsp = Rsp::parse(&bytes).unwrap();
        assert_eq!((rsp.data_out, rsp.data_in), (data_out, data_in), "{flags:#x}");
    }
}

#[test]
fn short_read_is_an_underrun_in_srp() {
    let response = Response { data_in: Residual::of(512, 4096), ..Response::good(TAG) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Srp, 256);
    let mut out = [0xA5; 36];
    assert_eq!(rsp.emit(&mut out), Ok(36));
    assert_eq!(out[18], 0x20);
    assert_eq!(out[24..28], 3584_u32.to_be_bytes());
}

#[test]
fn short_read_is_an_overrun_to_a_partition() {
    let response = Response { data_in: Residual::of(512, 4096), ..Response::good(TAG) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Vscsi, 256);
    let mut out = [0xA5; 36];
    assert_eq!(rsp.emit(&mut out), Ok(36));
    assert_eq!(out[18], 0x10);
    assert_eq!(out[24..28], 3584_u32.to_be_bytes());
}

#[test]
fn short_write_is_an_overrun_to_a_partition() {
    let response = Response { data_out: Residual::Under(8), ..Response::good(TAG) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Vscsi, 256);
    let mut out = [0xA5; 36];
    rsp.emit(&mut out).unwrap();
    assert_eq!((out[18], out[23]), (0x04, 8));
}

#[test]
fn wanting_more_than_the_buffer_says_nothing_to_a_partition() {
    let response = Response { data_in: Residual::Over(8), ..Response::good(TAG) };
    assert_eq!(Rsp::new(&response, 1, ResidualFlavour::Vscsi, 256), good());
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Srp, 256);
    assert_eq!(rsp.data_in, Residual::Over(8));
}

#[test]
fn sense_is_cut_to_the_longest_unit() {
    let response = check(SENSE_MAX);
    for (max_len, sense_len) in [(256, 96), (132, 96), (131, 95), (37, 1), (36, 0), (0, 0)] {
        let rsp = Rsp::new(&response, 1, ResidualFlavour::Srp, max_len);
        assert_eq!(rsp.sense.len(), sense_len);
        assert!(rsp.encoded_len() <= max_len.max(36));
    }
}

#[test]
fn sense_is_cut_behind_response_data() {
    let response = Response { code: ResponseCode::InvalidFields, ..check(18) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Srp, 50);
    assert_eq!((rsp.code, rsp.sense.len()), (Some(RspCode::InvalidFields), 10));
    assert_eq!(rsp.encoded_len(), 50);
}

#[test]
fn partition_gets_sense_but_no_response_data_with_check_condition() {
    let response = Response { code: ResponseCode::InvalidFields, ..check(18) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Vscsi, 256);
    assert_eq!((rsp.code, rsp.sense.len()), (None, 18));
}

#[test]
fn partition_gets_response_data_but_no_sense_otherwise() {
    let response =
        Response { code: ResponseCode::FunctionComplete, status: Status::GOOD, ..check(18) };
    let rsp = Rsp::new(&response, 1, ResidualFlavour::Vscsi, 256);
    assert_eq!((rsp.code, rsp.sense.len()), (Some(RspCode::Complete), 0));
}

#[test]
fn every_outcome_has_its_code() {
    let outcomes = [
        (ResponseCode::None, None),
        (ResponseCode::FunctionComplete, Some(0)),
        (ResponseCode::FunctionSucceeded, Some(0)),
        (ResponseCode::TaskDoesNotExist, Some(0)),
        (ResponseCode::InvalidFields, Some(2)),
        (ResponseCode::IncorrectLun, Some(2)),
        (ResponseCode::FunctionRejected, Some(4)),
        (ResponseCode::FunctionFailed, Some(5)),
    ];
    for (outcome, code) in outcomes {
        assert_eq!(RspCode::of(outcome).map(RspCode::code), code, "{outcome:?}");
    }
}

#[test]
fn unknown_codes_are_kept() {
    let mut bytes = TASK_MANAGEMENT;
    bytes[39] = 0x77;
    assert_eq!(Rsp::parse(&bytes).unwrap().code, Some(RspCode::Unknown(0x77)));
}

fn any_residual() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::None),
        any::<u32>().prop_map(Residual::Under),
        any::<u32>().prop_map(Residual::Over),
    ]
}

proptest! {
    #[test]
    fn any_response_parses_to_what_was_emitted(
        tag: [u8; 8], status: u8, limit_delta: i32, solicited: bool,
        data_out in any_residual(), data_in in any_residual(),
        code in proptest::option::of(any::<u8>()),
        sense in prop::collection::vec(any::<u8>(), 0..96),
    ) {
        let rsp = Rsp {
            tag: Tag(tag),
            limit_delta,
            solicited,
            status: Status(status),
            data_out,
            data_in,
            code: code.map(RspCode::from_code),
            sense: &sense,
        };
        let mut out = [0xA5; 256];
        let len = rsp.emit(&mut out).unwrap();
        prop_assert_eq!(len, rsp.encoded_len());
        prop_assert_eq!(Rsp::parse(&out[..len]), Ok(rsp));
        prop_assert!(Rsp::parse(&out[..len - 1]).is_err());
    }
}
