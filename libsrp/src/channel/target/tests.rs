use super::*;
use crate::channel::LoginParameters;
use crate::login::{BufferFormats, LoginReq, MultiChannelAction, PortId};
use crate::wire::WireError;
use crate::{ResponseCode, SenseData, Status, TaskFunction};

const TAG: [u8; 8] = [0, 0, 0, 0, 0, 3, 0, 7];

/// A channel as Linux logs in, with this request limit.
fn channel(request_limit: u32) -> Channel {
    let login = LoginReq {
        tag: Tag::default(),
        max_initiator_iu: 8260,
        formats: BufferFormats::ALL,
        action: MultiChannelAction::Single,
        solicit_logout: false,
        solicit_credit: false,
        solicit_aer: false,
        immediate: Some(68),
        initiator_port: PortId::new(0, 1),
        target_port: PortId::new(2, 2),
    };
    let offer = LoginParameters { request_limit, ..LoginParameters::SRP };
    Channel::new(offer.agree(&login).unwrap())
}

/// TEST UNIT READY.
fn command() -> [u8; 48] {
    let mut iu = [0; 48];
    iu[0] = 0x02;
    iu[8..16].copy_from_slice(&TAG);
    iu
}

fn abort() -> [u8; 48] {
    let mut iu = [0; 48];
    iu[0] = 0x01;
    iu[15] = 0x99;
    iu[30] = 0x01;
    iu[32..40].copy_from_slice(&TAG);
    iu
}

fn short(opcode: u8, tag: u8) -> [u8; 16] {
    let mut iu = [0; 16];
    iu[0] = opcode;
    iu[15] = tag;
    iu
}

#[test]
fn command_is_answered_with_its_own_credit() {
    let mut channel = channel(2);
    let iu = command();
    let Ok(Asks::Command(cmd)) = channel.receive(&iu) else { panic!() };
    assert_eq!((cmd.tag, channel.limit().available()), (Tag(TAG), 1));
    let mut out = [0xA5; 256];
    let len = channel.answer(&Response::good(cmd.tag), false, &mut out).unwrap();
    let mut expected = [0; 36];
    expected[0] = 0xC1;
    expected[7] = 1;
    expected[8..16].copy_from_slice(&TAG);
    assert_eq!((&out[..len], out[len]), (&expected[..], 0xA5));
    assert_eq!(channel.limit().available(), 2);
}

#[test]
fn aborted_command_is_credited_with_the_answer_to_its_abort() {
    let mut channel = channel(2);
    assert!(matches!(channel.receive(&command()), Ok(Asks::Command(_))));
    let iu = abort();
    let Ok(Asks::Function(function)) = channel.receive(&iu) else { panic!() };
    assert_eq!(function.request().function, TaskFunction::AbortTask);
    channel.abandon();
    let response =
        Response { code: ResponseCode::FunctionComplete, ..Response::good(function.tag) };
    let mut out = [0xA5; 256];
    let len = channel.answer(&response, false, &mut out).unwrap();
    assert_eq!((len, &out[4..8], &out[8..16]), (40, &[0, 0, 0, 2][..], &abort()[8..16]));
    // RSPVALID, four bytes of response data, FUNCTION COMPLETE.
    assert_eq!((out[18], out[35], out[39]), (0x01, 4, 0x00));
}

#[test]
fn third_request_of_a_limit_of_two_is_a_violation() {
    let mut channel = channel(2);
    for _ in 0..2 {
        channel.receive(&command()).unwrap();
    }
    let error = channel.receive(&abort()).unwrap_err();
    assert_eq!(error, Violation::Limit(LimitExceeded { outstanding: 2 }));
    assert_eq!(error.reason(), LogoutReason::None);
}

#[test]
fn command_with_bad_descriptors_takes_credit_and_is_answered() {
    let mut channel = channel(2);
    let mut iu = command();
    iu[5] = 0x01;
    let fault = DataError::Truncated { needed: 64, got: 48 };
    let lun = Lun::default();
    assert_eq!(channel.receive(&iu), Ok(Asks::Unusable { tag: Tag(TAG), lun, fault }));
    assert_eq!(channel.limit().outstanding(), 1);
}

#[test]
fn units_that_cannot_be_read_are_violations() {
    let mut iu = command();
    let mut channel = channel(4);
    for len in 0..48 {
        let error = channel.receive(&iu[..len]).unwrap_err();
        assert_eq!(error.reason(), LogoutReason::InvalidIu, "{len} bytes");
    }
    for opcode in [0x00, 0x04, 0x40, 0x80, 0xC1, 0xFF] {
        iu[0] = opcode;
        let error = channel.receive(&iu).unwrap_err();
        assert_eq!(error.reason(), LogoutReason::InvalidIu, "opcode {opcode:#x}");
    }
    let truncated = IuError::Wire(WireError::Truncated { needed: 1, got: 0 });
    assert_eq!(channel.receive(&[]), Err(Violation::Unit(truncated)));
    assert_eq!(channel.limit(), &RequestLimit::new(4));
}

#[test]
fn credit_is_asked_for_once_until_it_is_answered() {
    let mut channel = channel(3);
    let mut out = [0xA5; 256];
    assert_eq!(channel.request_credit(&mut out), None);
    for _ in 0..2 {
        channel.receive(&command()).unwrap();
        channel.abandon();
    }
    let len = channel.request_credit(&mut out).unwrap();
    assert_eq!(out[..len], [0x81, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(channel.limit(), &RequestLimit::new(3));

    channel.receive(&command()).unwrap();
    channel.abandon();
    assert_eq!(channel.request_credit(&mut out), None);
    assert_eq!(channel.receive(&short(0x41, 1)), Ok(Asks::Nothing));
    let len = channel.request_credit(&mut out).unwrap();
    assert_eq!(out[..len], [0x81, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
}

#[test]
fn answers_to_no_request_are_violations() {
    let mut channel = channel(3);
    for iu in [short(0x41, 1), short(0x42, 0)] {
        let error = channel.receive(&iu).unwrap_err();
        assert_eq!(error.reason(), LogoutReason::UnexpectedResponse);
    }
}

#[test]
fn logout_goes_both_ways() {
    let mut channel = channel(3);
    assert_eq!(channel.receive(&short(0x03, 9)), Ok(Asks::Logout));
    let mut out = [0xA5; 16];
    assert_eq!(channel.logout(LogoutReason::MultiChannel, &mut out), Ok(16));
    assert_eq!(out, [0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn sense_is_cut_to_what_the_initiator_receives() {
    let mut channel = channel(3);
    channel.parameters.max_target_iu = 64;
    channel.receive(&command()).unwrap();
    let response = Response {
        status: Status::CHECK_CONDITION,
        sense: SenseData::new(&[0x72; 96]),
        ..Response::good(Tag(TAG))
    };
    let mut out = [0xA5; 64];
    assert_eq!(channel.answer(&response, true, &mut out), Ok(64));
    assert_eq!((out[1], out[18], out[31]), (1, 0x02, 28));
}

#[test]
fn answer_without_room_keeps_the_credit() {
    let mut channel = channel(3);
    channel.receive(&command()).unwrap();
    let mut out = [0xA5; 35];
    assert!(channel.answer(&Response::good(Tag(TAG)), false, &mut out).is_err());
    assert_eq!((channel.limit().outstanding(), out), (1, [0xA5; 35]));
}
