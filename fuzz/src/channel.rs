//! srpt: a whole channel, and logins by both connection managers.

use libsrp::channel::LoginParameters;
use libsrp::iu::TargetIu;
use libsrp::login::{BufferFormats, LoginReq, MultiChannelAction, PortId};
use libsrp::{Response, ResponseCode, Tag};
use srpt::channel::{Channel, Drained, Ended, Fetched, MAX_TARGET_IU, Step, TaskId, Unit};
use srpt::login::{Manager, Offer, acceptance, parse, rejection};
use vscsi_target::engine::Outcome;

use crate::{Seed, srp};

/// What happens on a channel: records of an operation (in its low three bits, with a choice of a
/// task in the others), a length of two bytes, and as many bytes.
pub fn channel(data: &[u8]) {
    let mut world = World::new();
    let mut rest = data;
    while let [op, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (bytes, tail) = tail.split_at(len);
        rest = tail;
        if !world.step(*op, bytes) {
            return;
        }
        world.check();
    }
    world.finish();
}

/// Private data of a connect request; the first byte says which connection manager brought it.
pub fn login(data: &[u8]) {
    let Some((first, private)) = data.split_first() else { return };
    let manager = if first & 1 == 0 { Manager::Rdma } else { Manager::InfiniBand };
    match parse(private, manager) {
        Ok(request) => match Offer(LoginParameters::SRP).agree(&request) {
            Ok(agreed) => {
                assert!(agreed.max_initiator_iu <= LoginParameters::SRP.max_initiator_iu);
                assert!(agreed.max_initiator_iu >= 64);
                let out =
                    acceptance(&agreed, &request, libsrp::login::MultiChannelResult::NoOthers);
                assert!(TargetIu::parse(&out).is_ok());
            }
            Err(refusal) => {
                assert!(TargetIu::parse(&rejection(Some(&request), &refusal)).is_ok());
            }
        },
        Err(refusal) => assert!(TargetIu::parse(&rejection(None, &refusal)).is_ok()),
    }
}

/// A read, a write and an abort, each to its end.
pub fn channel_seeds() -> Vec<Seed> {
    let unit = |name: &str| {
        let found = srp::iu_seeds().into_iter().find(|seed| seed.name == name);
        found.map(|seed| seed.bytes).unwrap_or_default()
    };
    let record = |op: u8, bytes: &[u8]| {
        let len = (bytes.len() as u16).to_le_bytes();
        [&[op, len[0], len[1]], bytes].concat()
    };
    let take = |name| record(RECEIVE, &unit(name));
    let next = |op| record(op, &[]);
    let seed = |name, records: &[Vec<u8>]| Seed { name, bytes: records.concat() };
    let table = [0x11; 32];
    vec![
        seed("read", &[take("cmd_read_direct"), next(END)]),
        seed(
            "read_indirect_and_abort",
            &[take("cmd_read_indirect"), take("tsk_mgmt_abort"), next(END | SILENT), next(END)],
        ),
        seed(
            "external_table",
            &[take("cmd_read_external"), record(FETCHED, &table), next(END), next(SETTLE)],
        ),
        seed(
            "external_table_and_abort",
            &[
                take("cmd_read_external"),
                take("tsk_mgmt_abort"),
                next(END | 1 << 4),
                record(FETCHED, &table),
                next(SETTLE),
            ],
        ),
        seed("immediate", &[take("cmd_write_immediate"), next(READING), next(DRAINED), next(END)]),
        seed(
            "aborted_while_read",
            &[
                take("cmd_read_direct"),
                next(READING),
                take("tsk_mgmt_abort"),
                next(END | SILENT),
                next(DRAINED),
                next(END),
            ],
        ),
        seed("both_ways_and_logout", &[take("cmd_long_cdb_both_ways"), take("i_logout")]),
    ]
}

/// Logins in both layouts.
pub fn login_seeds() -> Vec<Seed> {
    let unit = |name: &str, manager: u8| {
        let found = srp::iu_seeds().into_iter().find(|seed| seed.name == name);
        let mut bytes = vec![manager];
        bytes.extend(found.map(|seed| seed.bytes).unwrap_or_default());
        bytes
    };
    vec![
        Seed { name: "compact", bytes: unit("login_req_compact", 0) },
        Seed { name: "ordinary", bytes: unit("login_req", 1) },
    ]
}

/// A channel, and what the core and the reads have of it.
struct World {
    channel: Channel,
    commands: Vec<Command>,
    functions: Vec<TaskId>,
    requests: u32,
    answers: u32,
    abandoned: u32,
}

struct Command {
    task: TaskId,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    Started,
    Reading,
    Draining,
}

impl World {
    fn new() -> Self {
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
        let offer = LoginParameters { request_limit: LIMIT, ..LoginParameters::SRP };
        Self {
            channel: Channel::new(offer.agree(&login).expect("Linux's login is granted")),
            commands: Vec::new(),
            functions: Vec::new(),
            requests: 0,
            answers: 0,
            abandoned: 0,
        }
    }

    /// False when the channel is over.
    fn step(&mut self, op: u8, bytes: &[u8]) -> bool {
        let choice = usize::from(op >> 4);
        let silent = op & SILENT != 0;
        let count = self.commands.len().max(1);
        match op & 7 {
            FETCHED => self.fetched(choice % count, bytes),
            END => self.end(choice, silent),
            READING => {
                if let Some(command) = self.commands.get_mut(choice % count)
                    && command.state == State::Started
                {
                    command.state = State::Reading;
                    self.channel.reading(command.task);
                }
            }
            DRAINED => self.drained(choice % count),
            SETTLE => {
                let mut out = [0; MAX_TARGET_IU];
                if let Some(unit) = self.channel.settle(&mut out) {
                    let Ok(TargetIu::CredReq(request)) = TargetIu::parse(&out[..unit.len]) else {
                        panic!("no CRED_REQ")
                    };
                    assert!(request.limit_delta > 0);
                }
            }
            _ => return self.receive(bytes),
        }
        true
    }

    fn receive(&mut self, bytes: &[u8]) -> bool {
        let mut out = [0; MAX_TARGET_IU];
        match self.channel.receive(bytes) {
            Ok(Step::Start(start)) => {
                assert!(start.command.data_in == 0 || start.command.data_out == 0);
                let (task, immediate) = (start.task, start.immediate.is_some());
                let capacity = u64::from(start.command.data_in | start.command.data_out);
                let listed: u64 =
                    self.channel.segments(task).iter().map(|part| u64::from(part.len)).sum();
                assert!(immediate || listed >= capacity);
                self.commands.push(Command { task, state: State::Started });
            }
            Ok(Step::Fetch { task, table }) => {
                assert!(table.len <= 16 * LoginParameters::SRP.max_descriptors);
                self.commands.push(Command { task, state: State::Fetching });
            }
            Ok(Step::Manage { task, .. }) => self.functions.push(task),
            Ok(Step::Refuse(refused)) => {
                let unit = self.channel.refuse(refused, &mut out);
                self.answered(unit, &out);
            }
            Ok(Step::Nothing) => return true,
            Ok(Step::Logout) | Err(_) => return false,
        }
        self.requests += 1;
        true
    }

    fn fetched(&mut self, at: usize, table: &[u8]) {
        let Some(command) = self.commands.get_mut(at) else { return };
        if command.state != State::Fetching {
            return;
        }
        let mut out = [0; MAX_TARGET_IU];
        match self.channel.fetched(command.task, table) {
            Fetched::Start(_) => command.state = State::Started,
            Fetched::Refuse(refused) => {
                self.commands.swap_remove(at);
                let unit = self.channel.refuse(refused, &mut out);
                self.answered(unit, &out);
            }
            Fetched::Ended => {
                self.commands.swap_remove(at);
                self.abandoned += 1;
                self.answer_due();
            }
        }
    }

    /// The core completes a command or a function.
    fn end(&mut self, choice: usize, silent: bool) {
        let all = self.commands.len() + self.functions.len();
        let at = choice % all.max(1);
        let task = match self.commands.get(at) {
            Some(command) if matches!(command.state, State::Started | State::Reading) => {
                command.task
            }
            Some(_) => return,
            None => match self.functions.get(at - self.commands.len()) {
                Some(task) => *task,
                None => return,
            },
        };
        let is_function = at >= self.commands.len();
        let outcome = if silent && !is_function { Outcome::Silent } else { Outcome::Respond };
        let code = if is_function { ResponseCode::FunctionComplete } else { ResponseCode::None };
        let response = Response { code, ..Response::good(Tag::default()) };
        let mut out = [0; MAX_TARGET_IU];
        match self.channel.ended(task, outcome, &response) {
            Ended::Answer => {
                let unit = self.channel.answer(task, &response, &mut out);
                self.answered(unit, &out);
            }
            Ended::Silent => self.abandoned += 1,
            Ended::Wait if is_function => {}
            Ended::Wait => {
                assert!(self.commands[at].state == State::Reading);
                self.commands[at].state = State::Draining;
                return;
            }
        }
        if is_function {
            self.functions.swap_remove(at - self.commands.len());
        } else {
            self.commands.swap_remove(at);
        }
    }

    fn drained(&mut self, at: usize) {
        let Some(command) = self.commands.get_mut(at) else { return };
        if !matches!(command.state, State::Reading | State::Draining) {
            return;
        }
        let task = command.task;
        let mut out = [0; MAX_TARGET_IU];
        match self.channel.drained(task) {
            Drained::Deliver => command.state = State::Started,
            Drained::Answer(response) => {
                self.commands.swap_remove(at);
                let unit = self.channel.answer(task, &response, &mut out);
                self.answered(unit, &out);
            }
            Drained::Over => {
                self.commands.swap_remove(at);
                self.abandoned += 1;
            }
        }
    }

    fn answer_due(&mut self) {
        let mut out = [0; MAX_TARGET_IU];
        while let Some((task, response)) = self.channel.due() {
            let unit = self.channel.answer(task, &response, &mut out);
            self.answered(unit, &out);
        }
    }

    fn answered(&mut self, unit: Option<Unit>, out: &[u8]) {
        let unit = unit.expect("what is in progress is answered");
        assert!(matches!(TargetIu::parse(&out[..unit.len]), Ok(TargetIu::Rsp(_))));
        self.answers += 1;
    }

    fn check(&self) {
        let limit = self.channel.limit();
        assert_eq!(limit.available() + limit.outstanding() + limit.owed(), LIMIT);
    }

    /// Everything ends, and everything was answered once or not at all.
    fn finish(&mut self) {
        while !self.commands.is_empty() {
            match self.commands[0].state {
                State::Fetching => self.fetched(0, &[]),
                State::Started => self.end(0, false),
                State::Reading | State::Draining => self.drained(0),
            }
            self.check();
        }
        while !self.functions.is_empty() {
            self.end(0, false);
        }
        assert!(self.channel.is_idle());
        assert_eq!(self.requests, self.answers + self.abandoned);
        assert_eq!(self.channel.limit().outstanding(), 0);
    }
}

const LIMIT: u32 = 8;

// Operations. The bit behind them has a command end silently; above it a task is chosen.
const RECEIVE: u8 = 0;
const FETCHED: u8 = 1;
const END: u8 = 2;
const READING: u8 = 3;
const DRAINED: u8 = 4;
const SETTLE: u8 = 5;
const SILENT: u8 = 8;
