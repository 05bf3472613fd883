//! The tasks of a channel: as many slots as the initiator has credit, used again and again, so that
//! a command allocates nothing.

use super::{Descriptor, Descriptors, Lun, SolicitedNotification, Tag};
use libsrp::{Command, ResponseCode, Status, TaskAttribute};

/// Names a task of a channel; stale ones name nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// The number given to [`TaskId::from_cookie`]; below 2^63.
    pub const fn cookie(self) -> u64 {
        self.0
    }

    /// The task of a cookie.
    pub const fn from_cookie(cookie: u64) -> Self {
        Self(cookie)
    }

    /// Its slot: below the request limit of the channel.
    pub const fn slot(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody uses the slot.
    Free,
    /// Its descriptor table is being read; the core does not know it yet.
    Fetching,
    /// The core has it.
    Started,
    /// The core waits for its Data-Out, which is being read.
    Reading,
    /// The core has completed it while its Data-Out was being read. Then it is answered with this
    /// status, or not.
    Draining(Option<Status>),
    /// A task management function that the core has.
    Managing,
    /// A task management function with this outcome, which waits for reads to end.
    Managed(ResponseCode),
}

/// A task. Tag, LUN and lists are those of a command or a task management function.
#[derive(Debug)]
pub(super) struct Task {
    generation: u32,
    pub(super) state: State,
    pub(super) tag: Tag,
    pub(super) lun: Lun,
    pub(super) notify: SolicitedNotification,
    /// A function has ended it: it is not answered any more.
    pub(super) aborted: bool,
    /// Where its data is, without segments of length 0.
    pub(super) segments: Vec<Descriptor>,
    /// What the core is told once the descriptor table is there.
    attribute: TaskAttribute,
    cdb: Vec<u8>,
    pub(super) data_out: u32,
    pub(super) data_in: u32,
}

/// A segment leaves the address space.
#[derive(Debug)]
pub(super) struct Wraps;

impl Task {
    pub(super) fn is_function(&self) -> bool {
        matches!(self.state, State::Managing | State::Managed(_))
    }

    /// Takes over a list of segments.
    pub(super) fn list(&mut self, list: impl Iterator<Item = Descriptor>) -> Result<(), Wraps> {
        for segment in list.filter(|segment| segment.len > 0) {
            segment.address.checked_add(u64::from(segment.len)).ok_or(Wraps)?;
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Takes over the list of a descriptor table that was read.
    pub(super) fn take_table(&mut self, list: Descriptors<'_>) -> Result<(), Wraps> {
        self.list(list.iter())?;
        let capacity = list.capacity(self.data_out.max(self.data_in));
        match self.data_in {
            0 => self.data_out = capacity,
            _ => self.data_in = capacity,
        }
        self.state = State::Started;
        Ok(())
    }

    /// Keeps what the core will be told.
    pub(super) fn remember(&mut self, command: &Command<'_>) {
        self.attribute = command.attribute;
        self.cdb.clear();
        self.cdb.extend_from_slice(command.cdb);
        (self.data_out, self.data_in) = (command.data_out, command.data_in);
    }

    /// What was kept.
    pub(super) fn command(&self) -> Command<'_> {
        Command {
            tag: self.tag,
            lun: self.lun,
            attribute: self.attribute,
            priority: 0,
            cdb: &self.cdb,
            data_out: self.data_out,
            data_in: self.data_in,
        }
    }
}

/// The slots.
#[derive(Debug)]
pub(super) struct Tasks {
    slots: Vec<Task>,
    free: Vec<u32>,
}

impl Tasks {
    /// Room for this many.
    pub(super) fn new(most: u32) -> Self {
        let most = most as usize;
        Self { slots: Vec::with_capacity(most), free: Vec::with_capacity(most) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Adds a task that the core is about to get. The request limit bounds how many there are.
    pub(super) fn insert(
        &mut self,
        tag: Tag,
        lun: Lun,
        notify: SolicitedNotification,
    ) -> (TaskId, &mut Task) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Task {
                generation: 0,
                state: State::Free,
                tag,
                lun,
                notify,
                aborted: false,
                segments: Vec::new(),
                attribute: TaskAttribute::Simple,
                cdb: Vec::new(),
                data_out: 0,
                data_in: 0,
            });
            (self.slots.len() - 1) as u32
        });
        let task = &mut self.slots[slot as usize];
        (task.state, task.aborted) = (State::Started, false);
        (task.tag, task.lun, task.notify) = (tag, lun, notify);
        task.segments.clear();
        (TaskId(u64::from(task.generation) << 32 | u64::from(slot)), task)
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        let task = self.slots.get(id.slot())?;
        let is_it = task.state != State::Free && u64::from(task.generation) == id.0 >> 32;
        is_it.then_some(task)
    }

    pub(super) fn at(&mut self, id: TaskId) -> Option<&mut Task> {
        self.get(id)?;
        self.slots.get_mut(id.slot())
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        if let Some(task) = self.at(id) {
            task.state = State::Free;
            // Cookies stay below 2^63.
            task.generation = (task.generation + 1) & 0x7FFF_FFFF;
            self.free.push(id.slot() as u32);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.slots
            .iter()
            .zip(0u64..)
            .filter(|(task, _)| task.state != State::Free)
            .map(|(task, slot)| (TaskId(u64::from(task.generation) << 32 | slot), task))
    }

    /// Commands in progress.
    pub(super) fn commands_mut(&mut self) -> impl Iterator<Item = &mut Task> {
        self.slots.iter_mut().filter(|task| task.state != State::Free && !task.is_function())
    }
}
