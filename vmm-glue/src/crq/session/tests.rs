//! Whole conversations with a session, and rules of one client each.

use super::*;
use libsrp::{
    Lun, Residual, ResponseCode, TaskFunction,
    cmd::SolicitedNotification,
    descriptor::{DataBuffers, Descriptor},
    login::{LoginRej, LoginRsp, RejectReason},
    rsp::{Rsp, RspCode},
    tsk_mgmt::{FunctionCode, TskMgmt},
};

mod mads;
mod random;

pub(super) const ADDRESS: u64 = 0x1234_5000;

/// A session, and the buffer for units.
pub(super) struct Rig {
    pub session: Session,
    pub out: [u8; 256],
}

impl Rig {
    pub fn with(config: Config) -> Self {
        let mut session = Session::new(Arc::new(config));
        session.opened();
        Self { session, out: [0xA5; 256] }
    }

    /// A client that is initialized.
    pub fn connected() -> Self {
        let mut rig = Self::with(Config::new("test"));
        assert_eq!(rig.session.element(&INIT), Next::Deliver(COMPLETE));
        rig
    }

    /// A client that is logged in.
    pub fn logged_in() -> Self {
        let mut rig = Self::connected();
        let unit = login(256, 6);
        rig.unit(&unit, 256);
        assert_eq!(rig.session.state(), State::LoggedIn);
        rig
    }

    /// Gives a unit by its element: the answer, if there is one at once.
    pub fn unit(&mut self, iu: &[u8], len: u16) -> Option<(Message, Vec<u8>)> {
        match self.step(iu, len, Format::Srp) {
            Step::Reply(reply) => Some(self.answer(reply)),
            Step::Nothing => None,
            step => panic!("{step:?}"),
        }
    }

    pub fn step<'a>(&mut self, iu: &'a [u8], len: u16, format: Format) -> Step<'a> {
        let element = element(format, len);
        let Next::Fetch { message, len } = self.session.element(&element) else {
            panic!("the element is not taken");
        };
        assert_eq!(message.address(), ADDRESS);
        self.out.fill(0xA5);
        self.session.unit(&message, &iu[..iu.len().min(len as usize)], &mut self.out)
    }

    /// What the client reads.
    pub fn answer(&self, reply: Reply) -> (Message, Vec<u8>) {
        let Element::Message(message) = Element::parse(&reply.element) else {
            panic!("{reply:?}");
        };
        assert_eq!(usize::from(message.len), reply.len);
        assert!(self.out[reply.len..].iter().all(|byte| *byte == 0xA5 || reply.len == 0));
        (message, self.out[..reply.len].to_vec())
    }

    /// Starts a command.
    pub fn start(&mut self, iu: &[u8]) -> TaskId {
        match self.step(iu, 256, Format::Srp) {
            Step::Start { task, .. } => task,
            step => panic!("{step:?}"),
        }
    }

    pub fn end(&mut self, task: TaskId, response: &Response) -> Option<(Message, Vec<u8>)> {
        self.out.fill(0xA5);
        let reply = self.session.ended(task, Outcome::Respond, response, &mut self.out);
        reply.map(|reply| self.answer(reply))
    }
}

pub(super) fn element(format: Format, len: u16) -> [u8; 16] {
    let pointer = ADDRESS.to_be_bytes();
    let status = ElementStatus::Ok;
    Element::Message(Message { format, status, timeout: 0, len, pointer }).to_bytes()
}

/// A login of 256 bytes, as Linux sends it.
fn login(max_iu: u32, formats: u16) -> [u8; 256] {
    let mut unit = [0; 256];
    unit[8..16].copy_from_slice(&[9; 8]);
    unit[16..20].copy_from_slice(&max_iu.to_be_bytes());
    unit[24..26].copy_from_slice(&formats.to_be_bytes());
    unit
}

pub(super) const READ_10: [u8; 16] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// READ(10) of a block into 512 bytes.
pub(super) fn read(tag: u8) -> Vec<u8> {
    let mut unit = vec![0; 64];
    unit[0] = 2;
    unit[5] = 1;
    unit[8..16].copy_from_slice(&[tag; 8]);
    unit[20] = 0x80;
    unit[32..48].copy_from_slice(&READ_10);
    unit[48..64].copy_from_slice(&Descriptor { address: 0x7000, key: 0, len: 512 }.to_bytes());
    unit
}

fn function(tag: u8, function: FunctionCode, managed: u8) -> [u8; 48] {
    let mut unit = [0; 48];
    let lun = Lun([0x80, 0, 0, 0, 0, 0, 0, 0]);
    let notify = SolicitedNotification::default();
    let (tag, managed) = (Tag([tag; 8]), Tag([managed; 8]));
    TskMgmt { tag, notify, lun, function, managed }.emit(&mut unit).unwrap();
    unit
}

fn good(tag: u8) -> Response {
    Response::good(Tag([tag; 8]))
}

#[test]
fn init_is_answered_with_init_complete_and_nothing_before_it() {
    let mut rig = Rig::with(Config::new("test"));
    assert_eq!(rig.session.state(), State::Waiting);
    // Open Firmware takes nothing else as the first element.
    assert_eq!(rig.session.element(&INIT), Next::Deliver(COMPLETE));
    assert_eq!(rig.session.state(), State::Connected);
}

#[test]
fn init_complete_without_an_init_connects() {
    let mut rig = Rig::with(Config::new("test"));
    assert_eq!(rig.session.element(&COMPLETE), Next::Nothing);
    assert_eq!(rig.session.state(), State::Connected);
}

#[test]
fn inits_that_cross_connect_and_duplicates_are_harmless() {
    // The server's INIT was sent before: the client's comes, then its answer to the server's.
    let mut rig = Rig::with(Config::new("test"));
    assert_eq!(rig.session.element(&INIT), Next::Deliver(COMPLETE));
    assert_eq!(rig.session.element(&COMPLETE), Next::Nothing);
    assert_eq!(rig.session.element(&COMPLETE), Next::Nothing);
    assert_eq!(rig.session.element(&INIT), Next::Deliver(COMPLETE));
    assert_eq!(rig.session.state(), State::Connected);
    // The other way round.
    let mut rig = Rig::with(Config::new("test"));
    assert_eq!(rig.session.element(&COMPLETE), Next::Nothing);
    assert_eq!(rig.session.element(&INIT), Next::Deliver(COMPLETE));
    assert_eq!(rig.session.state(), State::Connected);
}

#[test]
fn init_while_commands_run_restarts_and_their_tags_are_never_answered() {
    let mut rig = Rig::logged_in();
    let task = rig.start(&read(1));
    assert_eq!(rig.session.element(&INIT), Next::Restart);
    rig.session.lost();
    assert_eq!(rig.session.in_progress(), 1);
    // Nothing is taken in between.
    assert_eq!(rig.session.element(&element(Format::Srp, 256)), Next::Nothing);
    assert_eq!(rig.end(task, &good(1)), None);
    assert_eq!(rig.session.restarted(), COMPLETE);
    assert_eq!(rig.session.state(), State::Connected);
    assert_eq!(rig.end(task, &good(1)), None);
}

#[test]
fn nothing_is_taken_before_initialization_or_without_a_queue() {
    let mut rig = Rig::with(Config::new("test"));
    assert_eq!(rig.session.element(&element(Format::Srp, 256)), Next::Nothing);
    rig.session.closed();
    assert_eq!(rig.session.element(&INIT), Next::Nothing);
    assert_eq!(rig.session.state(), State::Closed);
    rig.session.lost();
    assert_eq!(rig.session.state(), State::Closed);
}

#[test]
fn elements_that_only_the_hypervisor_makes_are_passed_over() {
    let mut rig = Rig::logged_in();
    for first in [0x00, 0x01, 0x7F, 0x81, 0xBF, 0xC1, 0xFE, 0xFF] {
        let mut bytes = element(Format::Srp, 256);
        bytes[0] = first;
        assert_eq!(rig.session.element(&bytes), Next::Nothing, "{first:#x}");
    }
    assert_eq!(rig.session.state(), State::LoggedIn);
}

#[test]
fn ping_is_answered_and_other_inline_messages_are_not() {
    let mut rig = Rig::connected();
    let ping = [0x80, 6, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pong = [0x80, 6, 0, 0xF6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(rig.session.element(&ping), Next::Deliver(pong));
    for format in [6, 7, 0x55] {
        let bytes = [0x80, format, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(rig.session.element(&bytes), Next::Nothing);
    }
}

#[test]
fn linux_login_sets_the_request_limit() {
    let mut rig = Rig::connected();
    let (message, unit) = rig.unit(&login(256, 6), 256).unwrap();
    assert_eq!((message.format, message.status), (Format::Srp, ElementStatus::Ok));
    assert_eq!(message.tag(), Tag([9; 8]));
    let answer = LoginRsp::parse(&unit).unwrap();
    assert_eq!(
        (answer.limit_delta, answer.max_initiator_iu, answer.max_target_iu),
        (128, 256, 256)
    );
}

#[test]
fn freebsd_login_with_length_0_and_shifted_formats_is_accepted() {
    let mut rig = Rig::connected();
    let mut unit = login(0, 3);
    // It writes a length of 64 bits.
    unit[20..24].copy_from_slice(&256u32.to_be_bytes());
    let (_, unit) = rig.unit(&unit[..64], 64).unwrap();
    assert_eq!(LoginRsp::parse(&unit).unwrap().max_initiator_iu, 256);
}

#[test]
fn a_second_login_is_rejected_and_the_connection_goes_on() {
    let mut rig = Rig::logged_in();
    let (_, unit) = rig.unit(&login(256, 6), 256).unwrap();
    let rejection = LoginRej::parse(&unit).unwrap();
    assert_eq!((rejection.reason, rejection.tag), (RejectReason::ChannelLimit, Tag([9; 8])));
    assert_eq!(rig.session.state(), State::LoggedIn);
}

#[test]
fn a_login_without_formats_or_cut_short_is_rejected() {
    let mut rig = Rig::connected();
    let (_, unit) = rig.unit(&login(256, 0), 256).unwrap();
    assert_eq!(LoginRej::parse(&unit).unwrap().reason, RejectReason::Formats);
    let (_, unit) = rig.unit(&login(256, 6)[..40], 40).unwrap();
    assert_eq!(LoginRej::parse(&unit).unwrap().reason, RejectReason::Unspecified);
    assert_eq!(rig.session.state(), State::Connected);
}

#[test]
fn open_firmware_commands_without_a_login_are_taken() {
    let mut rig = Rig::connected();
    let mut unit = read(0);
    unit[7] = 1;
    unit[8..16].copy_from_slice(&1u64.to_be_bytes());
    let Step::Start { task, cmd } = rig.step(&unit, 64, Format::Srp) else { panic!() };
    assert_eq!(cmd.command().data_in, 512);
    let (message, unit) = rig.end(task, &Response::good(Tag::from_u64(1))).unwrap();
    assert_eq!((message.tag(), message.format), (Tag::from_u64(1), Format::Srp));
    assert_eq!(Rsp::parse(&unit).unwrap().tag, Tag::from_u64(1));
}

#[test]
fn commands_without_a_login_end_the_connection_where_that_is_configured() {
    let mut rig = Rig::with(Config { implicit_login: false, ..Config::new("test") });
    rig.session.element(&INIT);
    let unit = read(1);
    let step = rig.step(&unit, 64, Format::Srp);
    assert_eq!(step, Step::Violated(Violation::NotLoggedIn(Opcode::Cmd)));
}

#[test]
fn a_short_read_is_told_as_over_with_what_is_missing() {
    let mut rig = Rig::logged_in();
    let task = rig.start(&read(1));
    let response = Response { data_in: Residual::Under(3584), ..good(1) };
    let (_, unit) = rig.end(task, &response).unwrap();
    // DIOVER and the count: Linux reads nothing else.
    assert_eq!(unit[18], 0x10);
    assert_eq!(unit[24..28], 3584u32.to_be_bytes());
    assert_eq!(unit.len(), 36);
}

#[test]
fn sense_data_stands_behind_the_header_and_nothing_before_it() {
    let mut rig = Rig::logged_in();
    let task = rig.start(&read(1));
    let sense = Sense::READ_ERROR.encode(false);
    let status = Status::CHECK_CONDITION;
    let (message, unit) = rig.end(task, &Response { status, sense, ..good(1) }).unwrap();
    assert_eq!(message.status, ElementStatus::Ok);
    assert_eq!((unit[18] & 0x03, unit[19]), (0x02, 0x02));
    assert_eq!(&unit[36..], sense.as_bytes());
}

#[test]
fn every_answer_gives_one_credit_and_an_abort_two_answers_at_most() {
    let mut rig = Rig::logged_in();
    let task = rig.start(&read(1));
    let unit = function(2, FunctionCode::AbortTask, 1);
    let Step::Manage { task: function, request } = rig.step(&unit, 256, Format::Srp) else {
        panic!();
    };
    assert_eq!((request.function, request.managed), (TaskFunction::AbortTask, Tag([1; 8])));
    // The command ends without an answer; Linux takes its credit back by itself.
    let none = rig.session.ended(task, Outcome::Silent, &good(1), &mut [0; 256]);
    assert_eq!(none, None);
    let response = Response { code: ResponseCode::FunctionComplete, ..good(2) };
    let (message, unit) = rig.end(function, &response).unwrap();
    assert_eq!(message.tag(), Tag([2; 8]));
    let rsp = Rsp::parse(&unit).unwrap();
    assert_eq!((rsp.limit_delta, rsp.code), (1, Some(RspCode::Complete)));
    assert_eq!(unit.len(), 40);
    assert_eq!(unit[36..40], [0; 4]);
}

#[test]
fn an_abort_of_an_unknown_tag_is_complete_and_of_an_unknown_unit_is_not() {
    let mut rig = Rig::logged_in();
    for (code, byte) in [(ResponseCode::TaskDoesNotExist, 0), (ResponseCode::IncorrectLun, 2)] {
        let unit = function(2, FunctionCode::AbortTask, 77);
        let Step::Manage { task, .. } = rig.step(&unit, 256, Format::Srp) else { panic!() };
        let (_, unit) = rig.end(task, &Response { code, ..good(2) }).unwrap();
        assert_eq!(unit[36..40], [0, 0, 0, byte]);
    }
}

#[test]
fn a_thousand_aborts_leave_the_credit_as_it_was() {
    let mut rig = Rig::logged_in();
    let mut credit = 128;
    for _ in 0..1000 {
        let task = rig.start(&read(1));
        let unit = function(2, FunctionCode::AbortTask, 1);
        let Step::Manage { task: abort, .. } = rig.step(&unit, 256, Format::Srp) else { panic!() };
        credit -= 2;
        rig.session.ended(task, Outcome::Silent, &good(1), &mut [0; 256]);
        let (_, unit) = rig.end(abort, &good(2)).unwrap();
        credit += Rsp::parse(&unit).unwrap().limit_delta;
        // As Linux does.
        credit += 1;
    }
    assert_eq!(credit, 128);
    assert_eq!(rig.session.in_progress(), 0);
}

#[test]
fn a_few_requests_beyond_the_limit_are_taken_and_more_end_the_connection() {
    let mut rig = Rig::logged_in();
    let unit = read(1);
    for _ in 0..128 + SLACK {
        rig.start(&unit);
    }
    let step = rig.step(&unit, 256, Format::Srp);
    assert!(matches!(step, Step::Violated(Violation::Channel(_))), "{step:?}");
}

#[test]
fn data_both_ways_is_refused_with_sense() {
    let mut rig = Rig::logged_in();
    let mut unit = read(1);
    unit[5] = 0x11;
    unit.extend(Descriptor { address: 0x9000, key: 0, len: 512 }.to_bytes());
    let (message, unit) = rig.unit(&unit, 256).unwrap();
    let rsp = Rsp::parse(&unit).unwrap();
    assert_eq!((message.tag(), rsp.status), (Tag([1; 8]), Status::CHECK_CONDITION));
    assert_eq!((rsp.sense[2], rsp.sense[12], rsp.limit_delta), (5, 0x24, 1));
}

#[test]
fn descriptors_that_cannot_be_used_are_refused_with_sense() {
    let mut rig = Rig::logged_in();
    let mut unit = read(1);
    unit[5] = 0x07;
    let (_, unit) = rig.unit(&unit, 256).unwrap();
    assert_eq!(Rsp::parse(&unit).unwrap().status, Status::CHECK_CONDITION);
}

#[test]
fn freebsd_list_behind_the_unit_has_to_be_fetched() {
    let mut rig = Rig::logged_in();
    let mut unit = read(1);
    unit.truncate(48);
    unit[5] = 2;
    unit.extend(Descriptor { address: ADDRESS + 68, key: 0, len: 32 }.to_bytes());
    unit.extend(8192u32.to_be_bytes());
    assert_eq!(unit.len(), 68);
    let Step::Start { cmd, .. } = rig.step(&unit, 68, Format::Srp) else { panic!() };
    let DataBuffers { data_in: libsrp::descriptor::DataBuffer::Indirect(indirect), .. } = cmd.data
    else {
        panic!();
    };
    assert_eq!(indirect.external_table().unwrap().address, ADDRESS + 68);
    assert_eq!(indirect.total_len(), 8192);
}

#[test]
fn units_without_a_tag_end_the_connection_and_long_ones_are_answered() {
    let mut rig = Rig::connected();
    assert_eq!(rig.session.element(&element(Format::Srp, 0)), Next::Violated(Violation::Short(0)));
    let step = rig.step(&[2; 15], 15, Format::Srp);
    assert_eq!(step, Step::Violated(Violation::Short(15)));
    let (message, unit) = rig.unit(&[3; 256], 257).unwrap();
    assert_eq!((message.status, message.len), (ElementStatus::MaxTransfer, 0));
    assert_eq!((message.tag(), unit), (Tag([3; 8]), vec![]));
}

#[test]
fn units_that_no_client_sends_end_the_connection() {
    for opcode in [0x03, 0x41, 0x42, 0x80, 0xC1, 0x55] {
        let mut rig = Rig::logged_in();
        let mut unit = [0; 64];
        unit[0] = opcode;
        let step = rig.step(&unit, 64, Format::Srp);
        assert!(matches!(step, Step::Violated(_)), "{opcode:#x}: {step:?}");
    }
}

fn failing(fast_fail: bool, iu: &[u8], sense: Sense) -> (ElementStatus, Status) {
    let mut rig = Rig::connected();
    if fast_fail {
        let mut mad = [0; 16];
        mad[3] = 8;
        let Step::Reply(reply) = rig.step(&mad, 256, Format::Mad) else { panic!() };
        assert_eq!(rig.answer(reply).1[4..6], [0, 0]);
    }
    rig.unit(&login(256, 6), 256);
    let task = rig.start(iu);
    let (status, sense) = (Status::CHECK_CONDITION, sense.encode(false));
    let data_in = Residual::Under(512);
    let (message, unit) = rig.end(task, &Response { status, sense, data_in, ..good(1) }).unwrap();
    let rsp = Rsp::parse(&unit).unwrap();
    assert_eq!(rsp.data_in, Residual::Over(512));
    (message.status, rsp.status)
}

#[test]
fn fast_fail_tells_failed_paths_of_transfers_by_the_element() {
    let told = (ElementStatus::AdapterFail, Status::GOOD);
    let not = (ElementStatus::Ok, Status::CHECK_CONDITION);
    assert_eq!(failing(true, &read(1), Sense::INTERNAL_FAILURE), told);
    assert_eq!(failing(true, &read(1), Sense::TIMED_OUT), told);
    assert_eq!(failing(true, &read(1), Sense::READ_ERROR), not);
    assert_eq!(failing(false, &read(1), Sense::INTERNAL_FAILURE), not);
    let mut inquiry = read(1);
    inquiry[32] = 0x12;
    assert_eq!(failing(true, &inquiry, Sense::INTERNAL_FAILURE), not);
}

#[test]
fn a_lost_connection_forgets_login_fast_fail_and_requests() {
    let mut rig = Rig::logged_in();
    let task = rig.start(&read(1));
    rig.session.lost();
    assert_eq!(rig.session.state(), State::Waiting);
    assert_eq!(rig.end(task, &good(1)), None);
    rig.session.element(&INIT);
    rig.unit(&login(256, 6), 256);
    let again = rig.start(&read(2));
    assert_ne!(again, task);
    assert_eq!(rig.end(task, &good(1)), None);
    assert!(rig.end(again, &good(2)).is_some());
}
