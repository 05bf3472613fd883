//! One connection of a partition as a value: elements and units in, steps and bytes out.
//!
//! It reads no clock and no memory but the bytes it is given. Whoever drives it
//!
//! 1. gives each element to [`Session::element`], fetches the unit that it points at, gives that to
//!    [`Session::unit`], and does what the [`Step`] says,
//! 2. tells [`Session::ended`] what the command core completed,
//! 3. writes the bytes of a [`Reply`] over the unit it answers, and puts its element into the
//!    client's queue, in this order.
//!
//! Rules that clients depend on are kept here. A tag is given back byte for byte. Sense data is where
//! they look for it, without response data before it. Nothing of an earlier connection is answered:
//! what was in progress when it ended is *dead*. The credit of an aborted command is not given back,
//! because Linux's client takes it back by itself.

mod address;
mod login;
mod mad;
mod task;

use std::{collections::VecDeque, sync::Arc};

use libsrp::{
    Response, SenseData, Status, Tag, TaskManagement,
    channel::{Asks, Channel},
    cmd::Cmd,
    opcode::Opcode,
    viosrp::crq::{Element, ElementStatus, Format, Init, Message},
    wire::WireError,
};
use thiserror::Error;
use vscsi_target::{engine::Outcome, sense::Sense};

use super::{config::Config, window::Fault};
use mad::Parked;
use task::Tasks;

pub use address::{Addressed, addressed, lun_of};
pub use mad::{Aer, Payload};
pub use task::TaskId;

/// The longest unit in either direction, in bytes, and the least room for one that is written.
pub const MOST_UNIT: usize = 256;

/// A connection.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    state: State,
    channel: Option<Channel>,
    tasks: Tasks,
    fast_fail: bool,
    /// Buffers for units of the server, oldest first.
    parked: VecDeque<Parked>,
    /// Tags of AER_REQs that are not answered.
    reported: VecDeque<Tag>,
    next_tag: u64,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The client has no queue.
    Closed,
    /// It has one, and initialization has not begun.
    Waiting,
    /// Both sides are initialized.
    Connected,
    /// The client is logged in.
    LoggedIn,
}

/// What an element asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Put this into the client's queue.
    Deliver([u8; 16]),
    /// The client begins anew. Give up everything that is in progress, and when nothing of it is left
    /// call [`Session::restarted`].
    Restart,
    /// Read `len` bytes there and give them to [`Session::unit`].
    Fetch {
        /// The element.
        message: Message,
        /// Bytes to read.
        len: u32,
    },
    /// The connection cannot go on: call [`Session::lost`].
    Violated(Violation),
}

/// What a unit asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing.
    Nothing,
    /// Answer it.
    Reply(Reply),
    /// Hand a command to the core.
    Start {
        /// Its name here.
        task: TaskId,
        /// The command, and where its data is.
        cmd: Cmd<'a>,
    },
    /// Hand a task management function to the core.
    Manage {
        /// Its name here.
        task: TaskId,
        /// What it asks.
        request: TaskManagement,
    },
    /// Read the payload of a datagram and give it to [`Session::payload`].
    Payload(Payload),
    /// The connection cannot go on: call [`Session::lost`].
    Violated(Violation),
}

/// An answer: the first `len` bytes of the buffer for units, and an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Reply {
    /// Bytes to write over the unit.
    pub len: usize,
    /// What then goes into the client's queue.
    pub element: [u8; 16],
}

/// What a connection does not survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A unit cannot be read from the client's memory.
    #[error("a unit cannot be read: {0}")]
    Unreadable(Fault),
    /// An element points at a unit of no bytes, or of so few that it has no tag.
    #[error("a unit of {0} bytes")]
    Short(usize),
    /// A command came before a login, which the configuration asks for.
    #[error("{0:?} before a login")]
    NotLoggedIn(Opcode),
    /// A unit that is against the rules of the channel.
    #[error(transparent)]
    Channel(#[from] libsrp::channel::Violation),
    /// A datagram without a header.
    #[error("a datagram: {0}")]
    Datagram(WireError),
    /// The client logged out.
    #[error("the client logged out")]
    LoggedOut,
}

impl Session {
    /// A client without a queue.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            tasks: Tasks::new(config.request_limit as usize + SLACK as usize),
            config,
            state: State::Closed,
            channel: None,
            fast_fail: false,
            parked: VecDeque::new(),
            reported: VecDeque::new(),
            next_tag: 1,
        }
    }

    /// Where the connection is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Requests that the core has, those of earlier connections among them.
    pub fn in_progress(&self) -> usize {
        self.tasks.len()
    }

    /// The client has registered a queue.
    pub fn opened(&mut self) {
        self.forget(State::Waiting);
    }

    /// The client's queue is gone.
    pub fn closed(&mut self) {
        self.forget(State::Closed);
    }

    /// The connection is lost, and the client has to initialize it again.
    pub fn lost(&mut self) {
        if self.state != State::Closed {
            self.forget(State::Waiting);
        }
    }

    /// The client began anew, and nothing that was in progress then is left: the element that says
    /// so to the client.
    pub fn restarted(&mut self) -> [u8; 16] {
        self.forget(State::Connected);
        COMPLETE
    }

    fn forget(&mut self, state: State) {
        self.state = state;
        self.channel = None;
        self.fast_fail = false;
        self.parked.clear();
        self.reported.clear();
        self.tasks.bury();
    }

    /// Takes an element of the client.
    #[inline]
    pub fn element(&mut self, bytes: &[u8; 16]) -> Next {
        match Element::parse(bytes) {
            Element::Message(message) => self.message(message),
            Element::Init(init) => self.initialize(init),
            // Only the hypervisor makes events; the others mean nothing.
            Element::Event(_) | Element::Reserved(_) | Element::Invalid(_) | Element::Free => {
                Next::Nothing
            }
        }
    }

    fn initialize(&mut self, init: Init) -> Next {
        match (init, self.state) {
            (_, State::Closed) => Next::Nothing,
            (Init::Init, State::LoggedIn) => Next::Restart,
            (Init::Init, _) if self.tasks.len() > 0 => Next::Restart,
            (Init::Init, _) => Next::Deliver(self.restarted()),
            (Init::Complete, State::Waiting) => {
                self.state = State::Connected;
                Next::Nothing
            }
            // It crossed one of ours, or is one too many.
            (Init::Complete | Init::Unknown(_), _) => Next::Nothing,
        }
    }

    #[inline]
    fn message(&mut self, message: Message) -> Next {
        if !matches!(self.state, State::Connected | State::LoggedIn) {
            return Next::Nothing;
        }
        match message.format {
            Format::Srp | Format::Mad | Format::Os400 | Format::Aix | Format::Five => {
                match message.len {
                    0 => Next::Violated(Violation::Short(0)),
                    len => Next::Fetch { message, len: u32::from(len).min(MOST_UNIT as u32) },
                }
            }
            Format::Six | Format::Seven | Format::Unknown(_) => match message.pong() {
                Some(pong) => Next::Deliver(Element::Message(pong).to_bytes()),
                None => Next::Nothing,
            },
        }
    }

    /// Takes a unit that an element pointed at.
    #[inline]
    pub fn unit<'a>(&mut self, message: &Message, iu: &'a [u8], out: &mut [u8]) -> Step<'a> {
        let Some(tag) = tag_of(iu) else { return Step::Violated(Violation::Short(iu.len())) };
        if usize::from(message.len) > MOST_UNIT {
            // What lies behind was not read, so that nothing is executed.
            return Step::Reply(fail(message.format, ElementStatus::MaxTransfer, tag));
        }
        if message.format != Format::Srp {
            return self.datagram(message, iu, out);
        }
        let opcode = iu.first().map_or(Opcode::Unknown(0xFF), |code| Opcode::from_code(*code));
        match (opcode, self.state) {
            (Opcode::LoginReq, _) => return self.login(iu, tag, out),
            (Opcode::AerRsp, _) if self.is_reported(tag) => return Step::Nothing,
            (_, State::LoggedIn) => {}
            (Opcode::Cmd | Opcode::TskMgmt, _) if self.config.implicit_login => self.log_in(),
            (opcode, _) => return Step::Violated(Violation::NotLoggedIn(opcode)),
        }
        let Some(channel) = &mut self.channel else {
            return Step::Violated(Violation::NotLoggedIn(opcode));
        };
        match channel.receive(iu) {
            Ok(Asks::Command(cmd)) => self.command(cmd, out),
            Ok(Asks::Unusable { tag, .. }) => {
                Step::Reply(self.refuse(tag, Sense::INVALID_FIELD_IN_CDB, out))
            }
            Ok(Asks::Function(function)) => {
                let task = self.tasks.insert(function.tag, false);
                Step::Manage { task, request: function.request() }
            }
            Ok(Asks::Nothing) => Step::Nothing,
            Ok(Asks::Logout) => Step::Violated(Violation::LoggedOut),
            Err(violation) => Step::Violated(violation.into()),
        }
    }

    #[inline]
    fn command<'a>(&mut self, cmd: Cmd<'a>, out: &mut [u8]) -> Step<'a> {
        // No command of a disk moves data both ways.
        if cmd.data.data_out.capacity() > 0 && cmd.data.data_in.capacity() > 0 {
            return Step::Reply(self.refuse(cmd.tag, Sense::INVALID_FIELD_IN_CDB, out));
        }
        let is_transfer = self.fast_fail && is_transfer(cmd.cdb);
        Step::Start { task: self.tasks.insert(cmd.tag, is_transfer), cmd }
    }

    /// Writes the answer to a command that was never handed to the core: CHECK CONDITION.
    fn refuse(&mut self, tag: Tag, sense: Sense, out: &mut [u8]) -> Reply {
        let response = Response {
            status: Status::CHECK_CONDITION,
            sense: sense.encode(false),
            ..Response::good(tag)
        };
        self.answer(&response, ElementStatus::Ok, out)
    }

    /// A command that was to be handed to the core cannot be: it ends with this sense.
    pub fn refused(&mut self, task: TaskId, sense: Sense, out: &mut [u8]) -> Option<Reply> {
        let (tag, _, is_dead) = self.tasks.remove(task)?;
        (!is_dead).then(|| self.refuse(tag, sense, out))
    }

    /// The core has completed a command or a function: what to answer, if anything.
    #[inline]
    pub fn ended(
        &mut self,
        task: TaskId,
        outcome: Outcome,
        response: &Response,
        out: &mut [u8],
    ) -> Option<Reply> {
        let (tag, is_transfer, is_dead) = self.tasks.remove(task)?;
        if is_dead {
            return None;
        }
        if outcome == Outcome::Silent {
            if let Some(channel) = &mut self.channel {
                channel.forget();
            }
            return None;
        }
        if is_transfer && is_path_failure(response) {
            // Clients look at the element's status then, and at nothing else.
            let good = Response {
                data_out: response.data_out,
                data_in: response.data_in,
                ..Response::good(tag)
            };
            return Some(self.answer(&good, ElementStatus::AdapterFail, out));
        }
        // Everything of the response but its tag stands.
        let reply = if response.tag == tag {
            self.answer(response, ElementStatus::Ok, out)
        } else {
            self.answer(&Response { tag, ..*response }, ElementStatus::Ok, out)
        };
        Some(reply)
    }

    #[inline]
    fn answer(&mut self, response: &Response, status: ElementStatus, out: &mut [u8]) -> Reply {
        let tag = response.tag;
        let written = match &mut self.channel {
            Some(channel) => channel.answer(response, false, out).ok(),
            None => None,
        };
        match written {
            Some(len) => Reply { len, element: answer(Format::Srp, status, len, tag) },
            // A buffer for units holds the longest.
            None => fail(Format::Srp, ElementStatus::Nonrecoverable, tag),
        }
    }

    fn is_reported(&mut self, tag: Tag) -> bool {
        let Some(at) = self.reported.iter().position(|reported| *reported == tag) else {
            return false;
        };
        self.reported.remove(at);
        true
    }
}

/// The answer to a unit over which nothing can be written, or whose response nobody would read.
pub fn fail(format: Format, status: ElementStatus, tag: Tag) -> Reply {
    Reply { len: 0, element: answer(format, status, 0, tag) }
}

/// An element of the server that something happened to.
pub fn with_status(element: &[u8; 16], status: ElementStatus) -> [u8; 16] {
    match Element::parse(element) {
        Element::Message(message) => Element::Message(Message { status, ..message }).to_bytes(),
        _ => *element,
    }
}

/// The tag of a unit or a datagram, which have it at the same place.
pub fn tag_of(unit: &[u8]) -> Option<Tag> {
    unit.get(TAG..).and_then(<[u8]>::first_chunk).map(|tag| Tag(*tag))
}

fn answer(format: Format, status: ElementStatus, len: usize, tag: Tag) -> [u8; 16] {
    // Units have at most 256 bytes.
    Element::Message(Message::answer(format, status, len as u16, tag)).to_bytes()
}

/// Whether a command reads or writes blocks.
fn is_transfer(cdb: &[u8]) -> bool {
    matches!(cdb.first(), Some(0x08 | 0x0A | 0x28 | 0x2A | 0x88 | 0x8A | 0xA8 | 0xAA))
}

/// Whether a response says that the way to the medium failed: it broke, or did not answer in time.
fn is_path_failure(response: &Response) -> bool {
    response.status == Status::CHECK_CONDITION && is_path_sense(&response.sense)
}

fn is_path_sense(sense: &SenseData) -> bool {
    use vscsi_target::sense::key::{ABORTED_COMMAND, HARDWARE_ERROR};
    let bytes = sense.as_bytes();
    let is_descriptor = bytes.first().is_some_and(|code| code & 0x7E == 0x72);
    let (key, asc) = if is_descriptor { (1, 2) } else { (2, 12) };
    let at = |at: usize| bytes.get(at).copied().unwrap_or(0);
    match at(key) & 0x0F {
        HARDWARE_ERROR => true,
        // LOGICAL UNIT COMMUNICATION FAILURE and TIME-OUT.
        ABORTED_COMMAND => at(asc) == 0x08,
        _ => false,
    }
}

/// INIT COMPLETE.
const COMPLETE: [u8; 16] = [0xC0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// INIT.
pub(super) const INIT: [u8; 16] = [0xC0, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Where the tag is.
const TAG: usize = 8;
/// Requests beyond the limit that are taken: sides may differ by a few after aborts.
const SLACK: u32 = 8;

#[cfg(test)]
mod tests;
