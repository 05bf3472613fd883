//! One SRP channel as a value: units in, steps for the command core out, and the answers as bytes.
//!
//! It reads no clock and no memory but the unit it is given, and knows neither RDMA nor the core.
//! Whoever drives it
//!
//! 1. gives each unit to [`Channel::receive`] and does what the [`Step`] says,
//! 2. reads a descriptor table that stays with the initiator and hands it to [`Channel::fetched`],
//! 3. says with [`Channel::reading`] and [`Channel::drained`] when it moves Data-Out of a command,
//! 4. tells [`Channel::ended`] what the core completed, and sends what [`Channel::answer`] writes.
//!
//! Two rules are kept here that Linux's initiator depends on. A command whose ABORT TASK has arrived
//! is never answered, whatever becomes of it, and its credit goes back with the answer to the
//! ABORT TASK. And that answer waits until nothing of the command is being read any more.

mod task;

use libsrp::{
    Command, Lun, Response, ResponseCode, Status, Tag, TaskManagement,
    channel::{Asks, ChannelParameters, RequestLimit, Violation},
    cmd::{Cmd, SolicitedNotification},
    descriptor::{DataBuffer, Descriptor, Descriptors},
    logout::LogoutReason,
    tsk_mgmt::{FunctionCode, TskMgmt},
};
use task::{State, Tasks};
use vscsi_target::{engine::Outcome, sense::Sense};

pub use task::TaskId;

/// The longest unit a target sends, in bytes.
pub const MAX_TARGET_IU: usize = 256;

/// An open channel.
#[derive(Debug)]
pub struct Channel {
    wire: libsrp::channel::Channel,
    tasks: Tasks,
    /// Task management functions that are not answered.
    functions: u32,
    /// Commands that a function has ended while their descriptor table is being read.
    draining: u32,
}

/// What a unit asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Hand a command to the core.
    Start(Start<'a>),
    /// Read this memory of the initiator, and give it to [`Channel::fetched`].
    Fetch {
        /// The command whose descriptors it holds.
        task: TaskId,
        /// Where it is.
        table: Descriptor,
    },
    /// Hand a task management function to the core, and try to take back the reads of
    /// [`Channel::ended_fetches`].
    Manage {
        /// The function.
        task: TaskId,
        /// What it asks.
        request: TaskManagement,
    },
    /// Send what [`Channel::refuse`] writes.
    Refuse(Refused),
    /// The initiator ends the channel.
    Logout,
    /// Nothing.
    Nothing,
}

/// A command for the core.
#[derive(Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// Its name here.
    pub task: TaskId,
    /// The command.
    pub command: Command<'a>,
    /// Its Data-Out, where it came with the command; otherwise that is at [`Channel::segments`].
    pub immediate: Option<&'a [u8]>,
}

/// A command that cannot be started because of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    tag: Tag,
    solicited: bool,
}

/// What becomes of a command whose descriptor table was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched<'a> {
    /// Hand it to the core.
    Start(Start<'a>),
    /// Send what [`Channel::refuse`] writes.
    Refuse(Refused),
    /// A function has ended it: look for [`Channel::due`].
    Ended,
}

/// What to do when the core has completed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Move its Data-In, and send what [`Channel::answer`] writes.
    Answer,
    /// Nothing: it is not answered, and gone.
    Silent,
    /// Something is still being read: stop that if possible, and say when it has ended.
    Wait,
}

/// A unit in the buffer it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its length in bytes.
    pub len: usize,
    /// Whether the initiator wants a solicited event with it.
    pub solicited: bool,
}

impl Channel {
    /// A channel with nothing in progress, as it was agreed on.
    pub fn new(parameters: ChannelParameters) -> Self {
        Self {
            tasks: Tasks::new(parameters.request_limit),
            wire: libsrp::channel::Channel::new(parameters),
            functions: 0,
            draining: 0,
        }
    }

    /// The request limit now.
    pub fn limit(&self) -> &RequestLimit {
        self.wire.limit()
    }

    /// Whether nothing is in progress.
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Takes a unit of the initiator. What it needs of the unit's descriptors is copied, so that
    /// the buffer can be used again once the step is done.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn receive<'a>(&mut self, iu: &'a [u8]) -> Result<Step<'a>, Violation> {
        Ok(match self.wire.receive(iu)? {
            Asks::Command(cmd) => self.command(&cmd),
            Asks::Unusable { tag, .. } => Step::Refuse(Refused { tag, solicited: false }),
            Asks::Function(function) => self.function(&function),
            Asks::Logout => Step::Logout,
            Asks::Nothing => Step::Nothing,
        })
    }

    fn command<'a>(&mut self, cmd: &Cmd<'a>) -> Step<'a> {
        let command = cmd.command();
        let refused = Refused { tag: cmd.tag, solicited: cmd.notify.on_failure };
        // No command of a disk moves data both ways.
        if command.data_out > 0 && command.data_in > 0 {
            return Step::Refuse(refused);
        }
        let buffer = if command.data_in > 0 { cmd.data.data_in } else { cmd.data.data_out };
        let (id, task) = self.tasks.insert(cmd.tag, cmd.lun, cmd.notify);
        let list = match buffer {
            _ if buffer.capacity() == 0 => Ok(()),
            DataBuffer::None => Ok(()),
            DataBuffer::Immediate(immediate) => {
                let immediate = Some(immediate.data);
                return Step::Start(Start { task: id, command, immediate });
            }
            DataBuffer::Direct(segment) => task.list([segment].into_iter()),
            DataBuffer::Indirect(indirect) => match indirect.external_table() {
                Some(table) => {
                    task.state = State::Fetching;
                    task.remember(&command);
                    return Step::Fetch { task: id, table };
                }
                None => task.list(indirect.list().iter()),
            },
        };
        if list.is_err() {
            self.tasks.remove(id);
            return Step::Refuse(refused);
        }
        Step::Start(Start { task: id, command, immediate: None })
    }

    /// The descriptor table of a command was read.
    pub fn fetched(&mut self, id: TaskId, table: &[u8]) -> Fetched<'_> {
        let Some(task) = self.tasks.at(id).filter(|task| task.state == State::Fetching) else {
            return Fetched::Ended;
        };
        let refused = Refused { tag: task.tag, solicited: task.notify.on_failure };
        if task.aborted {
            self.fetch_ended(id);
            return Fetched::Ended;
        }
        let list = Descriptors::from_table(table);
        if list.is_none_or(|list| task.take_table(list).is_err()) {
            self.tasks.remove(id);
            return Fetched::Refuse(refused);
        }
        // It was there a moment ago.
        let Some(task) = self.tasks.get(id) else { return Fetched::Ended };
        Fetched::Start(Start { task: id, command: task.command(), immediate: None })
    }

    /// The tag and the logical unit of a command whose descriptor table is being read, unless a
    /// function of this channel has ended it.
    pub fn fetching(&self, id: TaskId) -> Option<(Tag, Lun)> {
        let task = self.tasks.get(id)?;
        (task.state == State::Fetching && !task.aborted).then_some((task.tag, task.lun))
    }

    /// A function of another channel has ended a command whose descriptor table was being read.
    pub fn ended_elsewhere(&mut self, id: TaskId) {
        if self.fetching(id).is_some() {
            self.abandon(id);
        }
    }

    /// Commands that a function has ended while their descriptor table is being read. Whoever can
    /// take such a read back says so with [`Channel::fetch_ended`].
    pub fn ended_fetches(&self) -> impl Iterator<Item = TaskId> {
        self.tasks
            .iter()
            .filter(|(_, task)| task.state == State::Fetching && task.aborted)
            .map(|(id, _)| id)
    }

    /// The table of a command that a function has ended is not being read any more: look for
    /// [`Channel::due`].
    pub fn fetch_ended(&mut self, id: TaskId) {
        if self.tasks.at(id).is_some_and(|task| task.state == State::Fetching && task.aborted) {
            self.draining -= 1;
            self.tasks.remove(id);
            self.wire.abandon();
        }
    }

    fn function<'a>(&mut self, function: &TskMgmt) -> Step<'a> {
        let is_set = matches!(
            function.function,
            FunctionCode::AbortTaskSet
                | FunctionCode::ClearTaskSet
                | FunctionCode::LogicalUnitReset
        );
        for task in self.tasks.commands_mut() {
            if !is_same_unit(task.lun, function.lun) || task.aborted {
                continue;
            }
            let is_fetching = task.state == State::Fetching;
            let named =
                function.function == FunctionCode::AbortTask && task.tag == function.managed;
            // The core does not know a command yet whose table is being read. Those that it knows
            // it ends itself, before it says that a set is done.
            if named || is_set && is_fetching {
                task.aborted = true;
                self.draining += u32::from(is_fetching);
            }
        }
        let (id, task) = self.tasks.insert(function.tag, function.lun, function.notify);
        task.state = State::Managing;
        self.functions += 1;
        Step::Manage { task: id, request: function.request() }
    }

    /// Where the data of a command is in the initiator's memory.
    pub fn segments(&self, id: TaskId) -> &[Descriptor] {
        self.tasks.get(id).map_or(&[], |task| &task.segments)
    }

    /// Data-Out of a command is being read from the initiator.
    pub fn reading(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.at(id) {
            task.state = State::Reading;
        }
    }

    /// The Data-Out of a command was read: whether the core still wants it. If not, the command is
    /// over, and [`Channel::answer`] is to be called where this gives a response.
    pub fn drained(&mut self, id: TaskId) -> Drained {
        let Some(task) = self.tasks.at(id) else { return Drained::Over };
        match task.state {
            State::Draining(Some(status)) if !task.aborted => {
                Drained::Answer(Response { status, ..Response::good(task.tag) })
            }
            State::Draining(_) => {
                self.abandon(id);
                Drained::Over
            }
            _ => {
                task.state = State::Started;
                Drained::Deliver
            }
        }
    }

    /// The core has completed a command or a function.
    pub fn ended(&mut self, id: TaskId, outcome: Outcome, response: &Response) -> Ended {
        let Some(task) = self.tasks.at(id) else { return Ended::Silent };
        let answers = outcome == Outcome::Respond && !task.aborted;
        match task.state {
            State::Managing if self.draining > 0 => {
                task.state = State::Managed(response.code);
                Ended::Wait
            }
            State::Managing => Ended::Answer,
            State::Reading => {
                task.state = State::Draining(answers.then_some(response.status));
                Ended::Wait
            }
            State::Started if answers => Ended::Answer,
            State::Started => {
                self.abandon(id);
                Ended::Silent
            }
            State::Free | State::Fetching | State::Draining(_) | State::Managed(_) => Ended::Wait,
        }
    }

    /// A function that the core has carried out, and that waited for reads which have ended now.
    /// Answer it, and ask again.
    pub fn due(&self) -> Option<(TaskId, Response)> {
        if self.draining > 0 {
            return None;
        }
        self.tasks.iter().find_map(|(id, task)| match task.state {
            State::Managed(code) => Some((id, Response { code, ..Response::good(task.tag) })),
            _ => None,
        })
    }

    /// Writes the answer to a command or a function, which thereby is over. `None` if it was not
    /// in progress, or `out` has less than [`MAX_TARGET_IU`] bytes.
    pub fn answer(&mut self, id: TaskId, response: &Response, out: &mut [u8]) -> Option<Unit> {
        let task = self.tasks.at(id)?;
        let is_function = task.is_function();
        let solicited = match response.status {
            Status::GOOD if is_success(response.code) => task.notify.on_success,
            _ => task.notify.on_failure,
        };
        let response = Response { tag: task.tag, ..*response };
        let len = self.wire.answer(&response, solicited, out).ok()?;
        self.functions -= u32::from(is_function);
        self.tasks.remove(id);
        Some(Unit { len, solicited })
    }

    /// Writes the answer to a command that was refused: CHECK CONDITION with INVALID FIELD IN CDB,
    /// and for who looks at that, SRP's code for fields that are invalid.
    pub fn refuse(&mut self, refused: Refused, out: &mut [u8]) -> Option<Unit> {
        let response = Response {
            status: Status::CHECK_CONDITION,
            code: ResponseCode::InvalidFields,
            sense: Sense::INVALID_FIELD_IN_CDB.encode(false),
            ..Response::good(refused.tag)
        };
        let len = self.wire.answer(&response, refused.solicited, out).ok()?;
        Some(Unit { len, solicited: refused.solicited })
    }

    /// Writes a request that gives back the credit of commands that were never answered, if no
    /// answer will do that soon. Call it when everything there is to answer was answered.
    pub fn settle(&mut self, out: &mut [u8]) -> Option<Unit> {
        let limit = self.wire.limit();
        let runs_dry = limit.available() < 2;
        if self.functions > 0 || limit.outstanding() > 0 && !runs_dry {
            return None;
        }
        let len = self.wire.request_credit(out)?;
        Some(Unit { len, solicited: false })
    }

    /// Writes the unit that ends the channel.
    pub fn logout(&mut self, reason: LogoutReason, out: &mut [u8]) -> Option<Unit> {
        let len = self.wire.logout(reason, out).ok()?;
        Some(Unit { len, solicited: false })
    }

    fn abandon(&mut self, id: TaskId) {
        self.tasks.remove(id);
        self.wire.abandon();
    }
}

/// What becomes of Data-Out that was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    /// The core waits for it.
    Deliver,
    /// The command ended meanwhile, and is to be answered now.
    Answer(Response),
    /// The command ended meanwhile, and is gone.
    Over,
}

/// Whether two LUN fields address one logical unit: there are two ways to write a number.
pub(crate) fn is_same_unit(a: Lun, b: Lun) -> bool {
    a == b || a.number().is_some() && a.number() == b.number()
}

fn is_success(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::None
            | ResponseCode::FunctionComplete
            | ResponseCode::FunctionSucceeded
            | ResponseCode::TaskDoesNotExist
    )
}

#[cfg(test)]
pub(crate) mod tests;
