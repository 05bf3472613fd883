//! An I/O queue pair: a submission queue, its completion queue, and the operations that are on it.
//!
//! A pair belongs to one thread at a time and takes no lock. An operation is accepted whole, however
//! long or scattered, and reported once: it is cut into commands that the controller can take, and
//! what does not fit into the queue waits here. After warm-up nothing allocates.
//!
//! When the controller is reset, its supervisor stops it first. Then each pair takes its operations
//! back and starts them anew once the controller works again; when it does not, they fail.

mod slot;

use crate::{
    device::Device,
    iova::Table,
    prp::{self, Limits, Run},
    shared::{Phase, Shared, Want},
    wire::{Cqe, Csts, Sqe, Status, offset},
};
use slot::Slot;
use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, atomic::Ordering},
};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Medium to memory.
    Read,
    /// Memory to medium.
    Write {
        /// On the medium before it completes.
        fua: bool,
    },
    /// Everything written so far to the medium.
    Flush,
    /// Makes blocks read as zeroes.
    Zero {
        /// Giving their space back.
        deallocate: bool,
    },
    /// Gives the space of blocks back.
    Deallocate,
}

/// The blocks an operation is about.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// The namespace.
    pub nsid: u32,
    /// The first block.
    pub lba: u64,
    /// How many; for reads and writes the memory says it.
    pub count: u64,
    /// Bytes a block, a power of two.
    pub size: u32,
}

/// What became of an operation that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Started {
    /// It is reported under its key.
    Queued,
    /// The device cannot reach its memory as it is.
    Unreachable,
    /// The controller is gone.
    Gone,
}

/// A queue pair.
pub struct Pair {
    shared: Arc<Shared>,
    /// Its place among the pairs of the controller; its queue number is one more.
    place: usize,
    /// `None` once the controller is gone.
    device: Option<Arc<Device>>,
    epoch: u32,
    depth: usize,
    tail: usize,
    /// The tail that the controller was told.
    told: usize,
    head: usize,
    phase: bool,
    free: Vec<u16>,
    /// The operation of each command in flight.
    flights: Vec<Option<u32>>,
    flying: usize,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// Operations with commands left to issue.
    backlog: VecDeque<u32>,
    /// Operations that ended without the controller.
    returned: Vec<(u64, i32)>,
    table: Arc<Table>,
    generation: u64,
    hint: usize,
    /// Reused for the pages of a command.
    pages: Vec<u64>,
}

impl Pair {
    pub(crate) fn new(shared: &Arc<Shared>, place: usize, device: &Arc<Device>) -> Self {
        let depth = shared.depth;
        let (generation, table) = shared.space.table();
        Self {
            shared: Arc::clone(shared),
            place,
            device: Some(Arc::clone(device)),
            epoch: shared.epoch(),
            depth,
            tail: 0,
            told: 0,
            head: 0,
            phase: true,
            // One entry of a queue stays empty.
            free: (0..depth as u16 - 1).rev().collect(),
            flights: vec![None; depth - 1],
            flying: 0,
            slots: Vec::new(),
            free_slots: Vec::new(),
            backlog: VecDeque::new(),
            returned: Vec::new(),
            table,
            generation,
            hint: 0,
            pages: Vec::new(),
        }
    }

    /// Which controller it belongs to.
    pub fn controller(&self) -> u64 {
        self.shared.number
    }

    /// What becomes readable when there may be something to reap: interrupts write it, unless the
    /// pair is polled, and the controller's supervisor. It stays open until the pair is dropped.
    pub fn fd(&self) -> RawFd {
        self.shared.queues.get(self.place).map_or(-1, |queue| queue.event.0.as_raw_fd())
    }

    /// Waits until [`Pair::fd`] is readable, at most so many milliseconds.
    pub(crate) fn wait(&self, milliseconds: u16) {
        if let Some(queue) = self.shared.queues.get(self.place) {
            queue.event.wait(milliseconds.into());
        }
    }

    /// Takes [`Pair::fd`] down.
    pub fn lower(&self) {
        if let Some(queue) = self.shared.queues.get(self.place) {
            queue.event.lower();
        }
    }

    /// Operations that are not finished.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free_slots.len() + self.returned.len()
    }

    /// There are operations of which nothing but a look will tell.
    pub fn must_be_polled(&self) -> bool {
        let interrupts = self.shared.queues.get(self.place).is_some_and(|queue| queue.interrupts);
        !interrupts && self.flying > 0
    }

    /// The controller is gone for good and nothing is left here: drop the pair.
    pub fn is_over(&self) -> bool {
        self.device.is_none() && self.in_flight() == 0
    }

    /// Whether a device can reach all of this memory.
    pub fn reaches(&mut self, address: usize, len: usize) -> bool {
        self.refresh();
        self.table.find(&mut self.hint, address).is_some_and(|(_, rest)| rest >= len)
    }

    /// Takes a read or write of memory, pieces of an address and a length each, which stays valid
    /// until the operation is reported. It is issued by [`Pair::submit`].
    pub fn start(
        &mut self,
        key: u64,
        kind: Kind,
        blocks: Blocks,
        memory: impl IntoIterator<Item = (usize, usize)>,
    ) -> Started {
        if self.device.is_none() {
            return Started::Gone;
        }
        self.refresh();
        let index = self.slot();
        let mut runs = self
            .slots
            .get_mut(index as usize)
            .map(|slot| std::mem::take(&mut slot.runs))
            .unwrap_or_default();
        runs.clear();
        let reached = memory.into_iter().all(|piece| self.resolve(piece, &mut runs));
        let limits = Limits { block: blocks.size, ..self.shared.limits };
        let moves = matches!(kind, Kind::Read | Kind::Write { .. });
        let fits = !moves || reached && prp::fits(&runs, &limits, &mut self.pages);
        let Some(slot) = self.slots.get_mut(index as usize) else { return Started::Gone };
        slot.runs = runs;
        if !fits {
            self.free_slots.push(index);
            return Started::Unreachable;
        }
        (slot.live, slot.key, slot.kind, slot.blocks) = (true, key, kind, blocks);
        (slot.retries, slot.cancelled) = (0, false);
        slot.rewind();
        self.backlog.push_back(index);
        Started::Queued
    }

    /// Asks an operation back. It is reported as any other: with ECANCELED if it was not issued yet.
    /// What the controller has can only be taken back by a reset, which this asks for; then it is
    /// reported with ECANCELED too, unless it was done before.
    pub fn cancel(&mut self, key: u64) {
        for (index, slot) in (0u32..).zip(&mut self.slots) {
            if !slot.live || slot.key != key || slot.cancelled {
                continue;
            }
            slot.cancelled = true;
            if slot.flying > 0 {
                self.shared.ask(Want::Reset, "a command is past its deadline");
            } else {
                self.backlog.retain(|waiting| *waiting != index);
                slot.live = false;
                self.returned.push((key, libc::ECANCELED));
                self.free_slots.push(index);
            }
        }
    }

    /// Looks, now and then while there are operations, whether the controller still works.
    pub fn tick(&mut self) {
        let Some(device) = self.device.as_ref().filter(|_| self.in_flight() > 0) else { return };
        if self.shared.phase() != Phase::Live {
            return;
        }
        let status = Csts(device.read(offset::CSTS));
        if status.is_gone() {
            self.shared.ask(Want::Reset, "it does not answer");
        } else if status.is_fatal() {
            self.shared.ask(Want::Reset, "it reports a fatal status");
        } else if !status.is_ready() {
            self.shared.ask(Want::Reset, "somebody else has reset it");
        }
    }

    /// Issues what waits, as far as there is room: once a turn.
    pub fn submit(&mut self) {
        if self.backlog.is_empty() || self.epoch != self.shared.epoch() {
            return;
        }
        if Phase::of(self.epoch) != Phase::Live {
            return;
        }
        'all: while let Some(&index) = self.backlog.front() {
            while !self.slots.get(index as usize).is_none_or(Slot::is_all_issued) {
                let Some(cid) = self.free.pop() else { break 'all };
                if !self.issue(index, cid) {
                    self.free.push(cid);
                    break;
                }
            }
            self.backlog.pop_front();
            // Otherwise its commands in flight tell of it.
            if let Some(slot) = self.slots.get_mut(index as usize)
                && slot.error.is_some()
                && slot.flying == 0
            {
                slot.live = false;
                self.returned.push((slot.key, libc::EIO));
                self.free_slots.push(index);
            }
        }
        if self.told != self.tail {
            self.told = self.tail;
            self.doorbell(0, self.tail);
        }
    }

    /// Calls `done` for each finished operation, with the key it was handed in under.
    pub fn reap(&mut self, mut done: impl FnMut(u64, io::Result<()>)) {
        if self.epoch != self.shared.epoch() {
            self.adopt();
        }
        for (key, errno) in self.returned.drain(..) {
            done(key, Err(io::Error::from_raw_os_error(errno)));
        }
        if self.flying == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let Some(queue) = shared.queues.get(self.place) else { return };
        let before = self.head;
        while let Some(cqe) =
            queue.memory.completion(queue.completions + self.head * Cqe::BYTES, self.phase)
        {
            self.head += 1;
            if self.head == self.depth {
                (self.head, self.phase) = (0, !self.phase);
            }
            self.landed(cqe, &mut done);
            if self.flying == 0 {
                break;
            }
        }
        if self.head != before {
            self.doorbell(1, self.head);
        }
    }

    /// A command ended.
    fn landed(&mut self, cqe: Cqe, done: &mut impl FnMut(u64, io::Result<()>)) {
        let flight = self.flights.get_mut(usize::from(cqe.cid)).and_then(Option::take);
        let Some(index) = flight.filter(|_| usize::from(cqe.queue) == self.place + 1) else {
            self.shared.ask(Want::Reset, "it completes a command that it was not given");
            return;
        };
        self.free.push(cqe.cid);
        self.flying -= 1;
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.flying = slot.flying.saturating_sub(1);
        if !cqe.status.is_success() {
            slot.error.get_or_insert(cqe.status);
        }
        if slot.flying > 0 || !slot.is_all_issued() {
            return;
        }
        match slot.error {
            Some(status) if status.may_retry() && slot.retries < RETRIES && !slot.cancelled => {
                slot.retries += 1;
                slot.rewind();
                self.backlog.retain(|waiting| *waiting != index);
                self.backlog.push_back(index);
            }
            error => {
                slot.live = false;
                let key = slot.key;
                // Where an error ended it early.
                if error.is_some() {
                    self.backlog.retain(|waiting| *waiting != index);
                }
                self.free_slots.push(index);
                done(key, error.and_then(Status::as_error).map_or(Ok(()), Err));
            }
        }
    }

    /// Lays out one command of an operation. False if none can be made, which does not happen to what
    /// was accepted.
    fn issue(&mut self, index: u32, cid: u16) -> bool {
        let Some(slot) = self.slots.get_mut(index as usize) else { return false };
        let Some(queue) = self.shared.queues.get(self.place) else { return false };
        let list = queue.lists + usize::from(cid) * LIST_BYTES;
        let limits = Limits { block: slot.blocks.size, ..self.shared.limits };
        let Some(mut sqe) = slot.next(&limits, self.shared.zero_limit, &mut self.pages) else {
            slot.error.get_or_insert(Status(0x06));
            return false;
        };
        let written = match (slot.kind, &self.pages[..]) {
            (Kind::Deallocate, _) => {
                sqe.prp1 = queue.memory.iova(list);
                let count = (slot.issued - slot.before).min(u64::from(u32::MAX)) as u32;
                queue.memory.write(list, &Sqe::range(slot.blocks.lba + slot.before, count))
            }
            (_, []) => true,
            (_, [first]) => {
                sqe.prp1 = *first;
                true
            }
            (_, [first, second]) => {
                (sqe.prp1, sqe.prp2) = (*first, *second);
                true
            }
            (_, [first, rest @ ..]) => {
                (sqe.prp1, sqe.prp2) = (*first, queue.memory.iova(list));
                rest.len() * 8 <= LIST_BYTES
                    && rest
                        .iter()
                        .enumerate()
                        .all(|(i, page)| queue.memory.write(list + 8 * i, &[page.to_le()]))
            }
        };
        if !written {
            slot.error.get_or_insert(Status(0x06));
            return false;
        }
        sqe.cid = cid;
        let bytes = sqe.emit();
        for (i, chunk) in bytes.chunks_exact(8).enumerate() {
            let word = chunk.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            queue.memory.write(self.tail * Sqe::BYTES + 8 * i, &[word]);
        }
        slot.flying += 1;
        if let Some(flight) = self.flights.get_mut(usize::from(cid)) {
            *flight = Some(index);
        }
        self.flying += 1;
        self.tail = (self.tail + 1) % self.depth;
        true
    }

    /// Follows the controller into another phase.
    fn adopt(&mut self) {
        let epoch = self.shared.epoch();
        self.epoch = epoch;
        match Phase::of(epoch) {
            // What waits is issued by the next submission.
            Phase::Live => {}
            // It is stopped: it has nothing any more.
            Phase::Down => {
                self.take_back(None);
                if let Some(queue) = self.shared.queues.get(self.place) {
                    queue.memory.zero(0, queue.lists);
                    queue.follows.store(epoch, Ordering::Release);
                }
            }
            Phase::Gone => {
                self.take_back(Some(libc::ENODEV));
                self.device = None;
                if let Some(queue) = self.shared.queues.get(self.place) {
                    queue.follows.store(epoch, Ordering::Release);
                }
            }
        }
    }

    /// Takes all operations back from a controller that is stopped, to start them again or, with an
    /// error number, to end them.
    fn take_back(&mut self, errno: Option<i32>) {
        (self.tail, self.told, self.head, self.phase) = (0, 0, 0, true);
        self.flying = 0;
        self.flights.fill(None);
        self.free.clear();
        self.free.extend((0..self.depth as u16 - 1).rev());
        self.backlog.clear();
        for (index, slot) in (0u32..).zip(&mut self.slots) {
            if !slot.live {
                continue;
            }
            let was_flying = slot.flying > 0;
            slot.rewind();
            slot.retries += u8::from(was_flying);
            let end = match errno {
                Some(errno) => Some(errno),
                None if slot.cancelled => Some(libc::ECANCELED),
                None if slot.retries > RETRIES => Some(libc::EIO),
                None => None,
            };
            match end {
                Some(errno) => {
                    slot.live = false;
                    self.returned.push((slot.key, errno));
                    self.free_slots.push(index);
                }
                None => self.backlog.push_back(index),
            }
        }
    }

    /// The device's addresses of a piece of memory.
    fn resolve(&mut self, (address, len): (usize, usize), runs: &mut Vec<Run>) -> bool {
        let (mut address, mut len) = (address, len);
        while len > 0 {
            let Some((iova, rest)) = self.table.find(&mut self.hint, address) else { return false };
            let part = rest.min(len);
            match runs.last_mut() {
                Some(last) if last.iova + last.len as u64 == iova => last.len += part,
                _ => runs.push(Run { iova, len: part }),
            }
            address += part;
            len -= part;
        }
        true
    }

    fn refresh(&mut self) {
        if self.generation != self.shared.space.generation() {
            (self.generation, self.table) = self.shared.space.table();
        }
    }

    fn slot(&mut self) -> u32 {
        self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(Slot::empty());
            self.slots.len() as u32 - 1
        })
    }

    /// Rings the doorbell of the submission queue (0) or the completion queue (1).
    fn doorbell(&self, which: usize, value: usize) {
        if let Some(device) = &self.device {
            let number = 2 * (self.place + 1) + which;
            device.write(offset::DOORBELLS + number * self.shared.stride, value as u32);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.flying > 0 {
            // What it has would be written to memory that is about to be freed.
            self.shared.stop_at_once();
        }
        if let Some(queue) = self.shared.queues.get(self.place) {
            queue.follows.store(Shared::NOBODY, Ordering::Release);
        }
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("controller", &self.shared.name)
            .field("place", &self.place)
            .field("flying", &self.flying)
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

/// Bytes of the list of pages of each command: so many pages that a transfer of 1 MiB fits.
pub(crate) const LIST_BYTES: usize = 2048;
/// How often a command is tried again, after errors that may pass and after resets.
const RETRIES: u8 = 3;

#[cfg(test)]
mod tests;
