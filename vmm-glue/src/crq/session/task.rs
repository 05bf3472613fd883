//! Requests in progress: as many slots as the client has credit, used again and again.

use libsrp::Tag;

/// Names a request of a session; stale ones name nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// The number given to [`TaskId::from_cookie`]; below 2^63.
    pub const fn cookie(self) -> u64 {
        self.0
    }

    /// The request of a cookie.
    pub const fn from_cookie(cookie: u64) -> Self {
        Self(cookie)
    }

    /// Its slot.
    pub const fn slot(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Task {
    generation: u32,
    is_busy: bool,
    pub(super) tag: Tag,
    /// It reads or writes the medium.
    pub(super) is_transfer: bool,
    /// Its connection is gone: whatever becomes of it, nobody is told.
    pub(super) is_dead: bool,
}

/// The slots.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    slots: Vec<Task>,
    free: Vec<u32>,
}

impl Tasks {
    /// Room for this many without allocating.
    pub(super) fn new(most: usize) -> Self {
        Self { slots: Vec::with_capacity(most), free: Vec::with_capacity(most) }
    }

    /// How many are in progress, those of connections that are gone among them.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds one. The request limit bounds how many there are.
    #[inline]
    pub(super) fn insert(&mut self, tag: Tag, is_transfer: bool) -> TaskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Task {
                generation: 0,
                is_busy: false,
                tag,
                is_transfer,
                is_dead: false,
            });
            (self.slots.len() - 1) as u32
        });
        let mut generation = 0;
        if let Some(task) = self.slots.get_mut(slot as usize) {
            (task.is_busy, task.is_dead) = (true, false);
            (task.tag, task.is_transfer) = (tag, is_transfer);
            generation = task.generation;
        }
        TaskId(u64::from(generation) << 32 | u64::from(slot))
    }

    #[inline]
    fn at(&mut self, id: TaskId) -> Option<&mut Task> {
        let task = self.slots.get_mut(id.slot())?;
        (task.is_busy && u64::from(task.generation) == id.0 >> 32).then_some(task)
    }

    /// Takes one out: its tag, whether it is a transfer, and whether it is dead.
    #[inline]
    pub(super) fn remove(&mut self, id: TaskId) -> Option<(Tag, bool, bool)> {
        let task = self.at(id)?;
        task.is_busy = false;
        // Cookies stay below 2^63.
        task.generation = (task.generation + 1) & 0x7FFF_FFFF;
        let found = (task.tag, task.is_transfer, task.is_dead);
        self.free.push(id.slot() as u32);
        Some(found)
    }

    /// All that are in progress are dead from now on.
    pub(super) fn bury(&mut self) {
        self.slots.iter_mut().for_each(|task| task.is_dead = true);
    }
}
