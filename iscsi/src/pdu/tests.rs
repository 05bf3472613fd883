//! Headers as literal bytes, both ways: bytes to value, and value into a buffer of 0xA5.

use libsrp::{Lun, Residual, ResponseCode, Status, TaskAttribute, TaskFunction};
use proptest::prelude::*;

use super::*;

/// Sixteen-byte rows are easier to hold against the RFC's figures.
fn header(rows: [[u8; 16]; 3]) -> Bhs {
    let mut header = [0; BHS_LEN];
    for (to, from) in header.chunks_exact_mut(16).zip(rows) {
        to.copy_from_slice(&from);
    }
    header
}

fn request_round_trips(bytes: Bhs, request: Request) {
    assert_eq!(Request::parse(&bytes), Ok(request));
    let mut buffer = [0xA5; BHS_LEN];
    request.emit(&mut buffer);
    assert_eq!(buffer, bytes);
}

fn reply_round_trips(bytes: Bhs, reply: Reply) {
    assert_eq!(Reply::parse(&bytes), Ok(reply));
    let mut buffer = [0xA5; BHS_LEN];
    reply.emit(&mut buffer);
    assert_eq!(buffer, bytes);
}

const LUN_2: Lun = Lun([0, 2, 0, 0, 0, 0, 0, 0]);

const NUMBERS: Numbers =
    Numbers { stat_sn: 0x0102_0304, exp_cmd_sn: 0x1112_1314, max_cmd_sn: 0x2122_2324 };

#[test]
fn scsi_command_write_10_round_trips() {
    request_round_trips(
        header([
            [0x01, 0xA1, 0x30, 0, 0, 0, 0x10, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 7, 0, 0, 0x20, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18],
            [0x2A, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Request::ScsiCommand(ScsiCommand {
            immediate: false,
            is_final: true,
            read: false,
            write: true,
            attribute: TaskAttribute::Simple,
            priority: 3,
            ahs_words: 0,
            data_len: 4096,
            lun: LUN_2,
            itt: 7,
            edtl: 8192,
            cmd_sn: 0x14,
            exp_stat_sn: 0x18,
            cdb: [0x2A, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0],
        }),
    );
}

#[test]
fn task_attributes_have_iscsis_codes() {
    let mut bytes = [0; BHS_LEN];
    bytes[0] = 0x01;
    for (code, attribute) in [
        (0, TaskAttribute::Simple),
        (1, TaskAttribute::Simple),
        (2, TaskAttribute::Ordered),
        (3, TaskAttribute::HeadOfQueue),
        (4, TaskAttribute::Aca),
        (5, TaskAttribute::Unknown(5)),
        (7, TaskAttribute::Unknown(7)),
    ] {
        bytes[1] = 0x80 | code;
        assert_eq!(ScsiCommand::parse(&bytes).unwrap().attribute, attribute);
    }
}

#[test]
fn command_that_announces_data_it_does_not_write_is_refused() {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[1], bytes[19]) = (0x01, 0x41, 9);
    assert_eq!(ScsiCommand::parse(&bytes), Err(PduError::UnsolicitedDataWithoutWrite { itt: 9 }));
}

#[test]
fn expected_length_goes_to_the_direction_of_the_flags() {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[23]) = (0x01, 100);
    for (flags, bidi, out, into) in [
        (0x80, None, 0, 0),
        (0xC0, None, 0, 100),
        (0xA0, None, 100, 0),
        (0xE0, Some(50), 100, 50),
        (0xE0, None, 100, 0),
    ] {
        bytes[1] = flags;
        let command = ScsiCommand::parse(&bytes).unwrap();
        let core = command.command(None, bidi);
        assert_eq!((core.data_out, core.data_in), (out, into), "{flags:#x}");
    }
}

#[test]
fn scsi_response_round_trips() {
    reply_round_trips(
        header([
            [0x21, 0x92, 0, 2, 0, 0, 0, 0x14, 0x12, 0x34, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 7, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 2, 0],
        ]),
        Reply::ScsiResponse(ScsiResponse {
            response: ServiceResponse::Completed,
            status: Status::CHECK_CONDITION,
            qualifier: 0x1234,
            data_len: 20,
            itt: 7,
            snack_tag: 0,
            numbers: NUMBERS,
            exp_data_sn: 5,
            bidi_residual: Residual::Over(1),
            residual: Residual::Under(512),
        }),
    );
}

#[test]
fn data_out_round_trips() {
    request_round_trips(
        header([
            [0x05, 0x80, 0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0x18],
            [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 6, 0, 0, 0, 0, 0],
        ]),
        Request::DataOut(DataOut {
            is_final: true,
            data_len: 512,
            lun: LUN_2,
            itt: 7,
            ttt: 9,
            exp_stat_sn: 0x18,
            data_sn: 3,
            offset: 1536,
        }),
    );
}

#[test]
fn data_in_with_status_round_trips() {
    reply_round_trips(
        header([
            [0x25, 0x83, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 3, 0, 0, 6, 0, 0, 0, 0, 16],
        ]),
        Reply::DataIn(DataIn {
            is_final: true,
            acknowledge: false,
            status: Some(Status::GOOD),
            residual: Residual::Under(16),
            data_len: 512,
            lun: Lun::default(),
            itt: 7,
            ttt: RESERVED_TAG,
            numbers: NUMBERS,
            data_sn: 3,
            offset: 1536,
        }),
    );
}

#[test]
fn data_in_without_status_sends_no_stat_sn_and_no_residual() {
    let pdu = DataIn {
        is_final: false,
        acknowledge: false,
        status: None,
        residual: Residual::Over(9),
        data_len: 1,
        lun: Lun::default(),
        itt: 7,
        ttt: RESERVED_TAG,
        numbers: NUMBERS,
        data_sn: 0,
        offset: 0,
    };
    let mut bytes = [0xA5; BHS_LEN];
    pdu.emit(&mut bytes);
    assert_eq!((bytes[1], bytes[3]), (0, 0));
    assert_eq!((&bytes[24..28], &bytes[44..48]), (&[0; 4][..], &[0; 4][..]));
}

#[test]
fn data_in_with_status_but_not_final_is_refused() {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[1], bytes[19]) = (0x25, 0x01, 9);
    assert_eq!(DataIn::parse(&bytes), Err(PduError::StatusWithoutFinal { itt: 9 }));
}

#[test]
fn r2t_round_trips() {
    reply_round_trips(
        header([
            [0x31, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 7, 0, 0, 0, 9, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 1, 0, 1, 0, 0, 0, 4, 0, 0],
        ]),
        Reply::R2t(R2t {
            lun: LUN_2,
            itt: 7,
            ttt: 9,
            numbers: NUMBERS,
            r2t_sn: 1,
            offset: 65_536,
            desired_len: 262_144,
        }),
    );
}

#[test]
fn r2t_for_nothing_is_refused() {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[19]) = (0x31, 9);
    assert_eq!(R2t::parse(&bytes), Err(PduError::EmptyR2t { itt: 9 }));
}

#[test]
fn snack_round_trips() {
    request_round_trips(
        header([
            [0x10, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0x18],
            [0; 16],
        ]),
        Request::Snack(Snack::all_status(0x18)),
    );
}

#[test]
fn task_request_round_trips() {
    request_round_trips(
        header([
            [0x42, 0x81, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0x15, 0, 0, 0, 0x18],
            [0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Request::TaskRequest(TaskRequest {
            immediate: true,
            function: TaskFunctionCode::AbortTask,
            lun: LUN_2,
            itt: 8,
            referenced: 7,
            cmd_sn: 0x15,
            exp_stat_sn: 0x18,
            ref_cmd_sn: 0x14,
            exp_data_sn: 1,
        }),
    );
}

#[test]
fn task_response_round_trips() {
    reply_round_trips(
        header([
            [0x22, 0x80, 7, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0],
            [0, 0, 0, 8, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Reply::TaskResponse(TaskResponse {
            response: TaskResponseCode::Succeeded,
            information: [1, 2, 3],
            itt: 8,
            numbers: NUMBERS,
        }),
    );
}

#[test]
fn task_functions_of_the_core_survive_the_wire() {
    for code in 0..=127 {
        let function = TaskFunctionCode::from_code(code);
        let back = TaskFunctionCode::from_function(function.function());
        match function {
            // One reset of the core stands for both.
            TaskFunctionCode::TargetColdReset => {
                assert_eq!(back, TaskFunctionCode::TargetWarmReset);
            }
            _ => assert_eq!(back, function),
        }
    }
    assert_eq!(TaskFunctionCode::TaskReassign.function(), TaskFunction::Unknown(8));
}

#[test]
fn outcomes_of_the_core_have_iscsis_codes() {
    for (outcome, code) in [
        (ResponseCode::FunctionComplete, 0),
        (ResponseCode::TaskDoesNotExist, 1),
        (ResponseCode::IncorrectLun, 2),
        (ResponseCode::FunctionRejected, 5),
        (ResponseCode::FunctionSucceeded, 7),
        (ResponseCode::FunctionFailed, 255),
    ] {
        let response = TaskResponseCode::from_response(outcome);
        assert_eq!(response.code(), code);
        assert_eq!(response.response(), outcome);
    }
}

#[test]
fn login_request_round_trips() {
    request_round_trips(
        header([
            [0x43, 0x87, 0, 0, 0, 0, 0x01, 0x02, 0, 2, 0x3D, 0, 0, 1, 0, 0],
            [0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18],
            [0; 16],
        ]),
        Request::LoginRequest(LoginRequest {
            immediate: true,
            transit: true,
            more: false,
            current: Stage::Operational,
            next: Stage::FullFeature,
            version_max: 0,
            version_min: 0,
            data_len: 258,
            isid: Isid([0, 2, 0x3D, 0, 0, 1]),
            tsih: 0,
            itt: 5,
            cid: 1,
            cmd_sn: 0x14,
            exp_stat_sn: 0x18,
        }),
    );
}

#[test]
fn login_response_round_trips() {
    reply_round_trips(
        header([
            [0x23, 0x87, 0, 0, 0, 0, 0, 0, 0, 2, 0x3D, 0, 0, 1, 0, 9],
            [0, 0, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 2, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Reply::LoginResponse(LoginResponse {
            transit: true,
            more: false,
            current: Stage::Operational,
            next: Stage::FullFeature,
            version_max: 0,
            version_active: 0,
            data_len: 0,
            isid: Isid([0, 2, 0x3D, 0, 0, 1]),
            tsih: 9,
            itt: 5,
            numbers: NUMBERS,
            status: LoginStatus::SESSION_DOES_NOT_EXIST,
        }),
    );
}

#[test]
fn text_request_round_trips() {
    request_round_trips(
        header([
            [0x44, 0x80, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 5, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x14, 0, 0, 0, 0x18],
            [0; 16],
        ]),
        Request::TextRequest(TextRequest {
            immediate: true,
            is_final: true,
            more: false,
            data_len: 16,
            lun: Lun::default(),
            itt: 5,
            ttt: RESERVED_TAG,
            cmd_sn: 0x14,
            exp_stat_sn: 0x18,
        }),
    );
}

#[test]
fn text_response_round_trips() {
    reply_round_trips(
        header([
            [0x24, 0x40, 0, 0, 0, 0, 0x20, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 5, 0, 0, 0, 1, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Reply::TextResponse(TextResponse {
            is_final: false,
            more: true,
            data_len: 8192,
            lun: LUN_2,
            itt: 5,
            ttt: 1,
            numbers: NUMBERS,
        }),
    );
}

#[test]
fn logout_request_round_trips() {
    request_round_trips(
        header([
            [0x46, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 5, 0, 3, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18],
            [0; 16],
        ]),
        Request::LogoutRequest(LogoutRequest {
            immediate: true,
            reason: LogoutReason::CloseConnection,
            itt: 5,
            cid: 3,
            cmd_sn: 0x14,
            exp_stat_sn: 0x18,
        }),
    );
}

#[test]
fn logout_response_round_trips() {
    reply_round_trips(
        header([
            [0x26, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0, 0, 2, 0, 20, 0, 0, 0, 0],
        ]),
        Reply::LogoutResponse(LogoutResponse {
            response: LogoutOutcome::CidNotFound,
            itt: 5,
            numbers: NUMBERS,
            time2wait: 2,
            time2retain: 20,
        }),
    );
}

#[test]
fn nop_out_round_trips() {
    request_round_trips(
        header([
            [0x40, 0x80, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0],
            [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 6, 0, 0, 0, 0x14, 0, 0, 0, 0x18],
            [0; 16],
        ]),
        Request::NopOut(NopOut {
            immediate: true,
            data_len: 4,
            lun: LUN_2,
            itt: RESERVED_TAG,
            ttt: 6,
            cmd_sn: 0x14,
            exp_stat_sn: 0x18,
        }),
    );
}

#[test]
fn nop_in_round_trips() {
    reply_round_trips(
        header([
            [0x20, 0x80, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 5, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Reply::NopIn(NopIn {
            data_len: 4,
            lun: LUN_2,
            itt: 5,
            ttt: RESERVED_TAG,
            numbers: NUMBERS,
        }),
    );
}

#[test]
fn async_message_round_trips() {
    reply_round_trips(
        header([
            [0x32, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 2, 0, 0, 3, 0, 2, 0, 20, 0, 0, 0, 0],
        ]),
        Reply::AsyncMessage(AsyncMessage {
            event: AsyncEvent::ConnectionDrop,
            vendor_code: 0,
            lun: Lun::default(),
            data_len: 0,
            numbers: NUMBERS,
            parameter1: 3,
            parameter2: 2,
            parameter3: 20,
        }),
    );
}

#[test]
fn reject_round_trips() {
    reply_round_trips(
        header([
            [0x3F, 0x80, 9, 0, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0],
            [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14],
            [0x21, 0x22, 0x23, 0x24, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        ]),
        Reply::Reject(Reject {
            reason: RejectReason::InvalidPduField,
            data_len: 48,
            numbers: NUMBERS,
            data_sn: 2,
        }),
    );
}

#[test]
fn common_fields_are_read_from_any_header() {
    let bytes = header([
        [0xC1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 2, 0, 0, 0, 0, 0, 0],
        [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0; 16],
    ]);
    assert_eq!(opcode(&bytes), Opcode::ScsiCommand);
    assert!(is_immediate(&bytes));
    assert_eq!(total_ahs_len(&bytes), 1020);
    assert_eq!(data_segment_len(&bytes), 0xFF_FFFF);
    assert_eq!(initiator_task_tag(&bytes), 0x0102_0304);
    assert_eq!(lun(&bytes), LUN_2);
}

#[test]
fn unknown_opcode_is_a_value() {
    let mut bytes = [0; BHS_LEN];
    bytes[0] = 0x1C;
    assert_eq!(opcode(&bytes), Opcode::Unknown(0x1C));
    assert_eq!(Request::parse(&bytes), Err(PduError::NotARequest(Opcode::Unknown(0x1C))));
    assert_eq!(Reply::parse(&bytes), Err(PduError::NotAReply(Opcode::Unknown(0x1C))));
}

#[test]
fn another_opcode_is_refused() {
    assert_eq!(
        DataOut::parse(&[0; BHS_LEN]),
        Err(PduError::Opcode { expected: Opcode::DataOut, found: Opcode::NopOut })
    );
}

fn frame(ahs_words: u8, data_len: u32, digests: Digests, max: u32) -> Result<Frame, FrameError> {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[4]) = (0x01, ahs_words);
    bytes[5..8].copy_from_slice(&len24(data_len));
    Frame::of(&bytes, digests, max)
}

const BOTH: Digests = Digests { header: true, data: true };

#[test]
fn parts_of_a_pdu_have_their_lengths() {
    let parts = frame(2, 5, BOTH, 8192).unwrap();
    assert_eq!(parts, Frame { ahs: 8, header_digest: 4, data: 5, pad: 3, data_digest: 4 });
    assert_eq!((parts.data_start(), parts.total()), (60, 72));
}

#[test]
fn pdu_without_data_has_no_data_digest() {
    assert_eq!(frame(0, 0, BOTH, 8192).unwrap().total(), 52);
    assert_eq!(frame(0, 0, Digests::NONE, 8192).unwrap().total(), 48);
}

#[test]
fn data_of_the_declared_length_is_taken_and_of_one_more_is_not() {
    assert!(frame(0, 8192, BOTH, 8192).is_ok());
    assert_eq!(frame(0, 8193, BOTH, 8192), Err(FrameError::DataTooLong { len: 8193, max: 8192 }));
}

#[test]
fn additional_header_on_a_pdu_that_has_none_is_refused() {
    let mut bytes = [0; BHS_LEN];
    (bytes[0], bytes[4]) = (0x43, 1);
    assert_eq!(
        Frame::of(&bytes, Digests::NONE, 8192),
        Err(FrameError::UnexpectedAhs { opcode: Opcode::LoginRequest, len: 4 })
    );
}

#[test]
fn extended_cdb_and_bidi_length_are_found() {
    let bytes = [0, 6, 1, 0, 16, 17, 18, 19, 20, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0x10, 0];
    assert_eq!(
        parse_ahs(&bytes),
        Ok(Ahs { extended_cdb: &[16, 17, 18, 19, 20], bidi_read_len: Some(4096) })
    );
}

#[test]
fn no_additional_header_says_nothing() {
    assert_eq!(parse_ahs(&[]), Ok(Ahs::default()));
}

#[test]
fn unknown_additional_header_is_refused() {
    assert_eq!(parse_ahs(&[0, 1, 3, 0]), Err(AhsError::UnknownType(3)));
}

#[test]
fn additional_header_longer_than_there_is_is_refused() {
    assert_eq!(parse_ahs(&[0, 5, 2, 0, 0, 0, 0]), Err(AhsError::Truncated { needed: 8, left: 7 }));
    assert_eq!(
        parse_ahs(&[0xFF, 0xFF, 1, 0]),
        Err(AhsError::Truncated { needed: 65_540, left: 4 })
    );
    assert_eq!(parse_ahs(&[0]), Err(AhsError::Truncated { needed: 4, left: 1 }));
}

#[test]
fn additional_header_of_a_wrong_length_is_refused() {
    assert_eq!(parse_ahs(&[0, 1, 1, 0]), Err(AhsError::Length { kind: 1, len: 1 }));
    assert_eq!(parse_ahs(&[0, 1, 2, 0]), Err(AhsError::Length { kind: 2, len: 1 }));
}

#[test]
fn repeated_additional_header_is_refused() {
    let one = [0, 5, 2, 0, 0, 0, 0, 1];
    assert_eq!(parse_ahs(&[one, one].concat()), Err(AhsError::Duplicate(2)));
}

proptest! {
    #[test]
    fn any_header_parses_or_does_not_and_what_parses_survives(
        head: [u8; 16], middle: [u8; 16], tail: [u8; 16], max in 0_u32..0x100_0000,
    ) {
        let bytes = header([head, middle, tail]);
        let mut again = [0xA5; BHS_LEN];
        if let Ok(request) = Request::parse(&bytes) {
            request.emit(&mut again);
            prop_assert_eq!(Request::parse(&again), Ok(request));
        }
        if let Ok(reply) = Reply::parse(&bytes) {
            reply.emit(&mut again);
            prop_assert_eq!(Reply::parse(&again), Ok(reply));
        }
        if let Ok(frame) = Frame::of(&bytes, BOTH, max) {
            prop_assert!(frame.data <= max as usize);
            prop_assert!(frame.total().is_multiple_of(4));
        }
    }

    #[test]
    fn any_bytes_are_additional_headers_or_not(bytes: Vec<u8>) {
        if let Ok(ahs) = parse_ahs(&bytes) {
            prop_assert!(ahs.extended_cdb.len() <= 244);
        }
    }
}
