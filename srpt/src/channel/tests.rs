use super::*;
use libsrp::{
    SenseData, TaskFunction,
    channel::LoginParameters,
    descriptor::{DataBuffers, Immediate, Indirect},
    iu::TargetIu,
    login::{BufferFormats, LoginReq, MultiChannelAction, PortId},
    rsp::{Rsp, RspCode},
};

mod random;

/// The login of Linux's initiator.
pub fn login() -> LoginReq {
    LoginReq {
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
    }
}

fn channel(request_limit: u32) -> Channel {
    let offer = LoginParameters { request_limit, ..LoginParameters::SRP };
    Channel::new(offer.agree(&login()).unwrap())
}

fn cmd<'a>(tag: u8, lun: u8, data_out: DataBuffer<'a>, data_in: DataBuffer<'a>) -> Vec<u8> {
    let unit = Cmd {
        tag: Tag([0, 0, 0, 0, 0, 0, 0, tag]),
        notify: SolicitedNotification { on_success: false, on_failure: true },
        lun: Lun([0, lun, 0, 0, 0, 0, 0, 0]),
        attribute: libsrp::TaskAttribute::Ordered,
        cdb: &[0x28; 16],
        data: DataBuffers { data_out, data_in },
    };
    let mut iu = vec![0; 9000];
    let len = unit.emit(&mut iu).unwrap();
    iu.truncate(len);
    iu
}

fn function(tag: u8, lun: u8, function: FunctionCode, managed: u8) -> Vec<u8> {
    let unit = TskMgmt {
        tag: Tag([0x80, 0, 0, 0, 0, 0, 0, tag]),
        notify: SolicitedNotification::default(),
        lun: Lun([0, lun, 0, 0, 0, 0, 0, 0]),
        function,
        managed: Tag([0, 0, 0, 0, 0, 0, 0, managed]),
    };
    let mut iu = vec![0; 48];
    unit.emit(&mut iu).unwrap();
    iu
}

fn segment(address: u64, len: u32) -> Descriptor {
    Descriptor { address, key: 7, len }
}

/// A list of `total` bytes in `count` segments, of which none are in the unit.
fn external(count: u32, total: u32) -> DataBuffer<'static> {
    let table = segment(0x9000, 16 * count);
    DataBuffer::Indirect(Indirect::new(table, total, Descriptors::default()))
}

fn table(segments: &[Descriptor]) -> Vec<u8> {
    segments.iter().flat_map(|segment| segment.to_bytes()).collect()
}

fn start<'a>(channel: &mut Channel, iu: &'a [u8]) -> Start<'a> {
    match channel.receive(iu) {
        Ok(Step::Start(start)) => start,
        other => panic!("{other:?}"),
    }
}

fn manage(channel: &mut Channel, iu: &[u8]) -> TaskId {
    match channel.receive(iu) {
        Ok(Step::Manage { task, .. }) => task,
        other => panic!("{other:?}"),
    }
}

fn fetch(channel: &mut Channel, iu: &[u8]) -> TaskId {
    match channel.receive(iu) {
        Ok(Step::Fetch { task, .. }) => task,
        other => panic!("{other:?}"),
    }
}

/// What a unit that was written says.
fn rsp(unit: Option<Unit>, out: &[u8]) -> Rsp<'_> {
    match TargetIu::parse(&out[..unit.unwrap().len]) {
        Ok(TargetIu::Rsp(rsp)) => rsp,
        other => panic!("{other:?}"),
    }
}

fn answer<'a>(channel: &mut Channel, task: TaskId, out: &'a mut [u8]) -> Rsp<'a> {
    let response = Response::good(Tag::default());
    assert_eq!(channel.ended(task, Outcome::Respond, &response), Ended::Answer);
    let unit = channel.answer(task, &response, out);
    rsp(unit, out)
}

const COMPLETE: Response =
    Response { code: ResponseCode::FunctionComplete, ..Response::good(Tag([0; 8])) };
const NONE: DataBuffer<'static> = DataBuffer::None;

#[test]
fn read_with_a_direct_descriptor_is_started_and_answered() {
    let mut channel = channel(2);
    let iu = cmd(1, 3, NONE, DataBuffer::Direct(segment(0x1000, 4096)));
    let Start { task, command, immediate } = start(&mut channel, &iu);
    assert_eq!((command.data_out, command.data_in, immediate), (0, 4096, None));
    assert_eq!((command.cdb.len(), command.lun.number()), (16, Some(3)));
    assert_eq!(command.attribute, libsrp::TaskAttribute::Ordered);
    assert_eq!(channel.segments(task), [segment(0x1000, 4096)]);
    let mut out = [0xA5; MAX_TARGET_IU];
    let rsp = answer(&mut channel, task, &mut out);
    assert_eq!((rsp.tag.0[7], rsp.limit_delta, rsp.code), (1, 1, None));
    assert!(channel.is_idle());
}

#[test]
fn capacity_is_what_the_segments_of_a_list_hold() {
    let mut channel = channel(2);
    let segments = [segment(0x1000, 512), segment(0x8000, 0), segment(0x2000, 1024)];
    let bytes = table(&segments);
    let list = Descriptors::from_table(&bytes).unwrap();
    let indirect = Indirect::new(segment(0x9000, 48), u32::MAX, list);
    let iu = cmd(1, 0, DataBuffer::Indirect(indirect), NONE);
    let Start { task, command, .. } = start(&mut channel, &iu);
    assert_eq!((command.data_out, command.data_in), (1536, 0));
    assert_eq!(channel.segments(task), [segments[0], segments[2]]);
}

#[test]
fn immediate_data_comes_with_the_command() {
    let mut channel = channel(2);
    let data = DataBuffer::Immediate(Immediate { offset: 68, data: &[0xDA; 8192] });
    let iu = cmd(1, 0, data, NONE);
    let Start { command, immediate, .. } = start(&mut channel, &iu);
    assert_eq!((iu.len(), command.data_out), (8260, 8192));
    assert_eq!(immediate, Some(&[0xDA; 8192][..]));
    // One byte less has come than was announced.
    let Ok(Step::Refuse(_)) = channel.receive(&iu[..8259]) else { panic!() };
}

#[test]
fn external_table_is_read_before_the_command_starts() {
    let mut channel = channel(2);
    let iu = cmd(1, 0, NONE, external(3, 2000));
    let Ok(Step::Fetch { task, table: at }) = channel.receive(&iu) else { panic!() };
    assert_eq!(at, segment(0x9000, 48));
    let segments = [segment(0x1000, 512), segment(0x2000, 512), segment(0x3000, 512)];
    let Fetched::Start(start) = channel.fetched(task, &table(&segments)) else { panic!() };
    assert_eq!((start.command.data_in, start.command.cdb), (1536, &[0x28; 16][..]));
    assert_eq!(start.command.attribute, libsrp::TaskAttribute::Ordered);
    assert_eq!(channel.segments(task), segments);
    answer(&mut channel, task, &mut [0; MAX_TARGET_IU]);
}

#[test]
fn table_of_segments_beyond_the_address_space_is_refused() {
    let mut channel = channel(2);
    let task = fetch(&mut channel, &cmd(1, 0, NONE, external(1, 2000)));
    let wraps = segment(u64::MAX - 10, 512);
    assert!(matches!(channel.fetched(task, &table(&[wraps])), Fetched::Refuse(_)));
    let iu = cmd(1, 0, NONE, DataBuffer::Direct(wraps));
    assert!(matches!(channel.receive(&iu), Ok(Step::Refuse(_))));
    assert!(channel.is_idle());
}

#[test]
fn bad_descriptors_are_answered_with_invalid_field_in_cdb() {
    let mut channel = channel(2);
    let mut iu = cmd(1, 0, NONE, DataBuffer::Direct(segment(0x1000, 512)));
    // A descriptor is announced, but not there.
    iu.truncate(63);
    let Ok(Step::Refuse(refused)) = channel.receive(&iu) else { panic!() };
    let mut out = [0xA5; MAX_TARGET_IU];
    let unit = channel.refuse(refused, &mut out);
    let rsp = rsp(unit, &out);
    assert_eq!((rsp.status, rsp.limit_delta), (Status::CHECK_CONDITION, 1));
    assert_eq!(rsp.code, Some(RspCode::InvalidFields));
    assert_eq!((rsp.sense[2] & 0x0F, rsp.sense[12], rsp.sense[13]), (5, 0x24, 0));
    assert_eq!(channel.limit(), &RequestLimit::new(2));
}

#[test]
fn command_that_moves_data_both_ways_is_refused() {
    let mut channel = channel(2);
    let both = DataBuffer::Direct(segment(0x1000, 512));
    let iu = cmd(1, 0, both, both);
    let Ok(Step::Refuse(refused)) = channel.receive(&iu) else { panic!() };
    let mut out = [0; MAX_TARGET_IU];
    let unit = channel.refuse(refused, &mut out);
    assert!(unit.unwrap().solicited && out[1] == 1);
    // A buffer of length 0 is none.
    let none = DataBuffer::Direct(segment(0x1000, 0));
    assert_eq!(start(&mut channel, &cmd(1, 0, both, none)).command.data_out, 512);
}

#[test]
fn aborted_command_is_never_answered_even_if_the_core_had_completed_it() {
    let mut channel = channel(2);
    let iu = cmd(1, 0, NONE, NONE);
    let task = start(&mut channel, &iu).task;
    let abort = manage(&mut channel, &function(9, 0, FunctionCode::AbortTask, 1));
    assert_eq!(channel.limit().available(), 0);
    let response = Response::good(Tag::default());
    assert_eq!(channel.ended(task, Outcome::Respond, &response), Ended::Silent);
    assert_eq!(channel.answer(task, &response, &mut [0; MAX_TARGET_IU]), None);
    // Its credit waits for the answer to the ABORT TASK.
    assert_eq!(channel.settle(&mut [0; MAX_TARGET_IU]), None);
    let gone = Response { code: ResponseCode::TaskDoesNotExist, ..response };
    assert_eq!(channel.ended(abort, Outcome::Respond, &gone), Ended::Answer);
    let mut out = [0; MAX_TARGET_IU];
    let unit = channel.answer(abort, &gone, &mut out);
    let rsp = rsp(unit, &out);
    assert_eq!((rsp.limit_delta, rsp.code), (2, Some(RspCode::Complete)));
    assert_eq!(channel.limit(), &RequestLimit::new(2));
}

#[test]
fn abort_at_another_unit_leaves_the_command_alone() {
    let mut channel = channel(2);
    let iu = cmd(1, 0, NONE, NONE);
    let task = start(&mut channel, &iu).task;
    manage(&mut channel, &function(9, 1, FunctionCode::AbortTask, 1));
    answer(&mut channel, task, &mut [0; MAX_TARGET_IU]);
}

#[test]
fn abort_finds_its_command_by_either_way_to_write_the_unit() {
    let mut channel = channel(2);
    let iu = cmd(1, 5, NONE, NONE);
    let task = start(&mut channel, &iu).task;
    let mut abort = function(9, 5, FunctionCode::AbortTask, 1);
    abort[20] = 0x40;
    manage(&mut channel, &abort);
    let response = Response::good(Tag::default());
    assert_eq!(channel.ended(task, Outcome::Respond, &response), Ended::Silent);
}

#[test]
fn answer_to_an_abort_waits_until_the_table_is_read() {
    let mut channel = channel(4);
    let task = fetch(&mut channel, &cmd(1, 0, NONE, external(1, 512)));
    let abort = manage(&mut channel, &function(9, 0, FunctionCode::AbortTask, 1));
    assert_eq!(channel.ended_fetches().collect::<Vec<_>>(), [task]);
    assert_eq!(channel.ended(abort, Outcome::Respond, &COMPLETE), Ended::Wait);
    assert_eq!(channel.due(), None);
    assert_eq!(channel.fetched(task, &table(&[segment(1, 512)])), Fetched::Ended);
    let (due, response) = channel.due().unwrap();
    assert_eq!((due, response.code), (abort, ResponseCode::FunctionComplete));
    let mut out = [0; MAX_TARGET_IU];
    let unit = channel.answer(due, &response, &mut out);
    assert_eq!(rsp(unit, &out).limit_delta, 2);
    assert_eq!(channel.due(), None);
}

#[test]
fn unit_reset_ends_commands_of_that_unit_whose_table_is_read() {
    let mut channel = channel(4);
    let ended = fetch(&mut channel, &cmd(1, 0, NONE, external(1, 512)));
    let other = fetch(&mut channel, &cmd(2, 1, NONE, external(1, 512)));
    let reset = manage(&mut channel, &function(9, 0, FunctionCode::LogicalUnitReset, 0xFF));
    assert_eq!(channel.ended_fetches().collect::<Vec<_>>(), [ended]);
    // The read was taken back.
    channel.fetch_ended(ended);
    assert_eq!(channel.due(), None);
    assert_eq!(channel.ended(reset, Outcome::Respond, &COMPLETE), Ended::Answer);
    assert!(channel.answer(reset, &COMPLETE, &mut [0; MAX_TARGET_IU]).is_some());
    let fetched = channel.fetched(other, &table(&[segment(1, 512)]));
    assert!(matches!(fetched, Fetched::Start(_)));
}

#[test]
fn command_aborted_while_its_data_is_read_is_over_when_the_read_is() {
    let mut channel = channel(4);
    let data = DataBuffer::Direct(segment(0x1000, 512));
    let iu = cmd(1, 0, data, NONE);
    let task = start(&mut channel, &iu).task;
    channel.reading(task);
    manage(&mut channel, &function(9, 0, FunctionCode::AbortTask, 1));
    let silent = Response::good(Tag::default());
    assert_eq!(channel.ended(task, Outcome::Silent, &silent), Ended::Wait);
    assert_eq!(channel.limit().owed(), 0);
    assert_eq!(channel.drained(task), Drained::Over);
    assert_eq!(channel.limit().owed(), 1);
}

#[test]
fn task_aborted_by_another_nexus_is_reported_when_its_read_has_ended() {
    let mut channel = channel(4);
    let data = DataBuffer::Direct(segment(0x1000, 512));
    let iu = cmd(1, 0, data, NONE);
    let task = start(&mut channel, &iu).task;
    channel.reading(task);
    let response = Response { status: Status::TASK_ABORTED, ..Response::good(Tag::default()) };
    assert_eq!(channel.ended(task, Outcome::Respond, &response), Ended::Wait);
    let Drained::Answer(response) = channel.drained(task) else { panic!() };
    let mut out = [0; MAX_TARGET_IU];
    let unit = channel.answer(task, &response, &mut out);
    assert_eq!(rsp(unit, &out).status, Status::TASK_ABORTED);
}

#[test]
fn data_that_was_read_is_delivered_while_the_core_waits() {
    let mut channel = channel(4);
    let data = DataBuffer::Direct(segment(0x1000, 512));
    let iu = cmd(1, 0, data, NONE);
    let task = start(&mut channel, &iu).task;
    channel.reading(task);
    assert_eq!(channel.drained(task), Drained::Deliver);
    answer(&mut channel, task, &mut [0; MAX_TARGET_IU]);
}

#[test]
fn credit_of_commands_that_another_channel_ended_is_asked_back_once() {
    let mut channel = channel(4);
    let mut tasks = Vec::new();
    for tag in 0..2 {
        let iu = cmd(tag, 0, NONE, NONE);
        tasks.push(start(&mut channel, &iu).task);
    }
    let response = Response::good(Tag::default());
    let mut out = [0; MAX_TARGET_IU];
    assert_eq!(channel.ended(tasks[0], Outcome::Silent, &response), Ended::Silent);
    // The other command's answer will carry it.
    assert_eq!(channel.settle(&mut out), None);
    assert_eq!(channel.ended(tasks[1], Outcome::Silent, &response), Ended::Silent);
    let unit = channel.settle(&mut out).unwrap();
    let Ok(TargetIu::CredReq(request)) = TargetIu::parse(&out[..unit.len]) else { panic!() };
    assert_eq!((request.limit_delta, channel.settle(&mut out)), (2, None));
    assert_eq!(channel.limit(), &RequestLimit::new(4));
}

#[test]
fn credit_is_asked_back_before_the_initiator_runs_dry() {
    let mut channel = channel(2);
    let mut tasks = Vec::new();
    for tag in 0..2 {
        let iu = cmd(tag, 0, NONE, NONE);
        tasks.push(start(&mut channel, &iu).task);
    }
    let response = Response::good(Tag::default());
    assert_eq!(channel.ended(tasks[0], Outcome::Silent, &response), Ended::Silent);
    assert!(channel.settle(&mut [0; MAX_TARGET_IU]).is_some());
    assert_eq!((channel.limit().available(), channel.limit().outstanding()), (1, 1));
}

#[test]
fn solicited_events_follow_the_outcome() {
    let mut channel = channel(4);
    let mut out = [0; MAX_TARGET_IU];
    for (status, wanted) in [(Status::GOOD, false), (Status::CHECK_CONDITION, true)] {
        let iu = cmd(1, 0, NONE, NONE);
        let task = start(&mut channel, &iu).task;
        let sense = SenseData::new(&[0x70]);
        let response = Response { status, sense, ..Response::good(Tag::default()) };
        let unit = channel.answer(task, &response, &mut out);
        assert_eq!(unit.unwrap().solicited, wanted);
        assert_eq!(rsp(unit, &out).solicited, wanted);
    }
}

#[test]
fn functions_reach_the_core_as_they_are() {
    let mut channel = channel(4);
    let iu = function(9, 3, FunctionCode::Unknown(0x20), 0);
    let Ok(Step::Manage { request, .. }) = channel.receive(&iu) else { panic!() };
    assert_eq!(request.function, TaskFunction::Unknown(0x20));
    assert_eq!((request.lun.number(), request.tag.0[0]), (Some(3), 0x80));
}

#[test]
fn more_commands_than_credit_end_the_channel() {
    let mut channel = channel(2);
    let iu = cmd(1, 0, NONE, NONE);
    let tasks = [start(&mut channel, &iu).task, start(&mut channel, &iu).task];
    assert_ne!(tasks[0], tasks[1]);
    assert!(matches!(channel.receive(&iu), Err(Violation::Limit(_))));
    let mut out = [0; MAX_TARGET_IU];
    let unit = channel.logout(LogoutReason::None, &mut out).unwrap();
    assert_eq!((unit.len, out[0]), (16, 0x80));
}

#[test]
fn stale_names_find_nothing() {
    let mut channel = channel(2);
    let iu = cmd(1, 0, NONE, DataBuffer::Direct(segment(1, 2)));
    let task = start(&mut channel, &iu).task;
    answer(&mut channel, task, &mut [0; MAX_TARGET_IU]);
    let again = start(&mut channel, &iu).task;
    assert_eq!((task.slot(), task != again), (again.slot(), true));
    assert!(channel.segments(task).is_empty());
    assert_eq!(channel.ended(task, Outcome::Respond, &COMPLETE), Ended::Silent);
    assert_eq!(channel.answer(task, &COMPLETE, &mut [0; MAX_TARGET_IU]), None);
    assert_eq!(TaskId::from_cookie(again.cookie()), again);
}
