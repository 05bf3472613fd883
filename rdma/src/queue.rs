//! What a connection has to send: ordered, bounded by the depth of the send queue and by the RDMA
//! Reads the peer serves at a time, and kept until the device is done with it.
//!
//! This is bookkeeping only: [`SendQueue::chain`] says which work requests to post next, and
//! [`SendQueue::completed`] what a completion sets free. A reliable connection completes its work in
//! order, so that one completion stands for all before it: only the last request of a chain is
//! signaled, and the last of each read.

use std::collections::VecDeque;

use crate::memory::{Local, Registered, Remote};

/// The most bytes one RDMA Write moves; larger ones are cut.
pub(crate) const WRITE_CHUNK: usize = 1 << 20;

/// The most bytes one RDMA Read moves. Smaller than a write's, so that several are under way.
pub(crate) const READ_CHUNK: usize = 256 << 10;

/// How a message is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// Invalidates this remote key at the peer (Send with Invalidate).
    pub invalidate: Option<u32>,
    /// Starts only when all RDMA Reads before it are complete.
    pub fence: bool,
    /// Raises a completion event at a peer that waits for solicited ones.
    pub solicited: bool,
}

/// One work request to post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Its place in the order of all requests of the connection.
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) key: u32,
    /// A completion is wanted.
    pub(crate) signaled: bool,
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Send(SendFlags),
    Write { addr: u64, key: u32 },
    Read { addr: u64, key: u32 },
}

/// What a completion sets free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Freed<O> {
    /// A send slot.
    Slot(u16),
    /// What a write or a long send pointed to.
    Owner(O),
    /// A read: all its data has come.
    Read { cookie: u64, owner: O },
}

/// What waits in order.
#[derive(Debug)]
enum Item<O> {
    Write { addr: u64, len: u32, key: u32, remote_addr: u64, remote_key: u32 },
    Send { at: Place, len: u32, flags: SendFlags },
    Keep(O),
}

/// Where a message is.
#[derive(Debug)]
enum Place {
    Slot(u16),
    /// It waits for a slot to be copied into.
    Heap(Box<[u8]>),
    Memory {
        addr: u64,
        key: u32,
    },
}

#[derive(Debug)]
struct Read<O> {
    addr: u64,
    len: u32,
    key: u32,
    remote_addr: u64,
    remote_key: u32,
    cookie: u64,
    /// Of the last piece of a read.
    end: Option<O>,
}

/// Send slots: registered memory that messages are copied into.
pub(crate) trait Slots {
    /// The address and the key of a slot.
    fn at(&self, slot: u16) -> (u64, u32);
    /// Copies a message into a slot.
    fn fill(&mut self, slot: u16, message: &[u8]);
}

/// The queue.
#[derive(Debug)]
pub(crate) struct SendQueue<O> {
    depth: u64,
    reads_at_once: usize,
    ordered: VecDeque<Item<O>>,
    reads: VecDeque<Read<O>>,
    free_slots: Vec<u16>,
    /// Messages that wait for a slot.
    late: usize,
    /// The next sequence number.
    next: u64,
    /// All before are complete.
    done: u64,
    posted: VecDeque<(u64, Freed<O>)>,
    reading: VecDeque<u64>,
}

impl<O: Registered> SendQueue<O> {
    /// A queue of `depth` work requests, of which `reads_at_once` are reads at most, with `slots`
    /// send slots.
    pub(crate) fn new(depth: u32, reads_at_once: u8, slots: u16) -> Self {
        Self {
            depth: depth.max(1).into(),
            reads_at_once: usize::from(reads_at_once),
            ordered: VecDeque::new(),
            reads: VecDeque::new(),
            free_slots: (0..slots).rev().collect(),
            late: 0,
            next: 0,
            done: 0,
            posted: VecDeque::new(),
            reading: VecDeque::new(),
        }
    }

    /// A slot for a message that is copied at once. `None` while others wait for slots already.
    pub(crate) fn take_slot(&mut self) -> Option<u16> {
        if self.late > 0 {
            // One that comes later must not take what an earlier one waits for.
            return None;
        }
        self.free_slots.pop()
    }

    pub(crate) fn free_slots(&self) -> usize {
        self.free_slots.len()
    }

    /// A message in a slot.
    pub(crate) fn send(&mut self, slot: u16, len: u32, flags: SendFlags) {
        self.ordered.push_back(Item::Send { at: Place::Slot(slot), len, flags });
    }

    /// A message for which there was no slot.
    pub(crate) fn send_later(&mut self, message: Box<[u8]>, flags: SendFlags) {
        let len = message.len() as u32;
        self.late += 1;
        self.ordered.push_back(Item::Send { at: Place::Heap(message), len, flags });
    }

    /// A message in the first `len` bytes of the owner's memory.
    pub(crate) fn send_owned(&mut self, owner: O, len: usize, flags: SendFlags) {
        let Local { addr, len: most, key } = owner.local();
        let len = len.min(most) as u32;
        self.ordered.push_back(Item::Send { at: Place::Memory { addr, key }, len, flags });
        self.ordered.push_back(Item::Keep(owner));
    }

    /// RDMA Writes of the owner's memory from `offset` on, spread over `remote` in order.
    pub(crate) fn write(&mut self, owner: O, offset: usize, len: usize, remote: &[Remote]) {
        let local = owner.local();
        each_piece(local, offset, len, remote, WRITE_CHUNK, |addr, len, remote| {
            self.ordered.push_back(Item::Write {
                addr,
                len,
                key: local.key,
                remote_addr: remote.addr,
                remote_key: remote.key,
            });
        });
        self.ordered.push_back(Item::Keep(owner));
    }

    /// RDMA Reads into the owner's memory from `offset` on, out of `remote` in order. Gives the
    /// owner back when there is nothing to read.
    pub(crate) fn read(
        &mut self,
        owner: O,
        offset: usize,
        len: usize,
        remote: &[Remote],
        cookie: u64,
    ) -> Option<O> {
        let local = owner.local();
        let before = self.reads.len();
        each_piece(local, offset, len, remote, READ_CHUNK, |addr, len, remote| {
            self.reads.push_back(Read {
                addr,
                len,
                key: local.key,
                remote_addr: remote.addr,
                remote_key: remote.key,
                cookie,
                end: None,
            });
        });
        if self.reads.len() == before {
            return Some(owner);
        }
        if let Some(last) = self.reads.back_mut() {
            last.end = Some(owner);
        }
        None
    }

    /// Takes back what was not posted yet of a read. Gives the owner if that was all of it;
    /// otherwise the read ends when what was posted has ended.
    pub(crate) fn cancel(&mut self, cookie: u64) -> Option<O> {
        let mut owner = None;
        self.reads.retain_mut(|read| {
            if read.cookie == cookie {
                owner = read.end.take().or_else(|| owner.take());
            }
            read.cookie != cookie
        });
        let owner = owner?;
        // Pieces are posted in order, so that those in progress are of reads before this one, or of
        // this one: only the oldest read left can have been posted in part.
        if self.reading.is_empty() {
            return Some(owner);
        }
        self.posted.push_back((self.next.saturating_sub(1), Freed::Read { cookie, owner }));
        None
    }

    /// Takes as many work requests as may be posted now into `chain`, which must be empty.
    pub(crate) fn chain(&mut self, slots: &mut impl Slots, chain: &mut Vec<Work>) {
        self.chain_reads(chain);
        self.chain_ordered(slots, chain);
        if let Some(last) = chain.last_mut() {
            last.signaled = true;
        }
    }

    fn chain_reads(&mut self, chain: &mut Vec<Work>) {
        while self.room() && self.reading.len() < self.reads_at_once {
            let Some(read) = self.reads.pop_front() else { return };
            let sequence = self.take_number();
            self.reading.push_back(sequence);
            chain.push(Work {
                sequence,
                kind: Kind::Read { addr: read.remote_addr, key: read.remote_key },
                addr: read.addr,
                len: read.len,
                key: read.key,
                signaled: read.end.is_some(),
            });
            if let Some(owner) = read.end {
                self.posted.push_back((sequence, Freed::Read { cookie: read.cookie, owner }));
            }
        }
    }

    fn chain_ordered(&mut self, slots: &mut impl Slots, chain: &mut Vec<Work>) {
        loop {
            match self.ordered.front() {
                None => return,
                Some(Item::Keep(_)) => {
                    if let Some(Item::Keep(owner)) = self.ordered.pop_front() {
                        // Without anything in progress the device has no use for it either.
                        if self.next > self.done {
                            self.posted.push_back((self.next - 1, Freed::Owner(owner)));
                        }
                    }
                    continue;
                }
                Some(Item::Send { at: Place::Heap(_), .. }) if self.free_slots.is_empty() => return,
                Some(_) if !self.room() => return,
                Some(_) => {}
            }
            let sequence = self.take_number();
            let work = match self.ordered.pop_front() {
                Some(Item::Write { addr, len, key, remote_addr, remote_key }) => {
                    let kind = Kind::Write { addr: remote_addr, key: remote_key };
                    Work { sequence, kind, addr, len, key, signaled: false }
                }
                Some(Item::Send { at, len, flags }) => {
                    let (addr, key) = match at {
                        Place::Memory { addr, key } => (addr, key),
                        Place::Slot(slot) => self.in_slot(slot, sequence, slots),
                        Place::Heap(message) => match self.free_slots.pop() {
                            Some(slot) => {
                                self.late = self.late.saturating_sub(1);
                                slots.fill(slot, &message);
                                self.in_slot(slot, sequence, slots)
                            }
                            // Looked at above.
                            None => return,
                        },
                    };
                    Work { sequence, kind: Kind::Send(flags), addr, len, key, signaled: false }
                }
                Some(Item::Keep(_)) | None => return,
            };
            chain.push(work);
        }
    }

    fn in_slot(&mut self, slot: u16, sequence: u64, slots: &impl Slots) -> (u64, u32) {
        self.posted.push_back((sequence, Freed::Slot(slot)));
        slots.at(slot)
    }

    /// The request of this number is complete, and with it all before.
    pub(crate) fn completed(&mut self, sequence: u64, mut freed: impl FnMut(Freed<O>)) {
        self.done = self.done.max(sequence.saturating_add(1)).min(self.next);
        while self.reading.front().is_some_and(|read| *read < self.done) {
            self.reading.pop_front();
        }
        while self.posted.front().is_some_and(|(of, _)| *of < self.done) {
            match self.posted.pop_front() {
                Some((_, Freed::Slot(slot))) => self.free_slots.push(slot),
                Some((_, other)) => freed(other),
                None => return,
            }
        }
    }

    /// Nothing waits, and nothing posted is incomplete.
    pub(crate) fn is_idle(&self) -> bool {
        self.ordered.is_empty() && self.reads.is_empty() && self.next == self.done
    }

    /// What waits to be posted, in work requests and owners.
    pub(crate) fn waiting(&self) -> usize {
        self.ordered.len() + self.reads.len()
    }

    /// Work requests posted and not known to be complete.
    #[cfg(test)]
    fn in_progress(&self) -> u64 {
        self.next - self.done
    }

    fn room(&self) -> bool {
        self.next - self.done < self.depth
    }

    fn take_number(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        sequence
    }
}

/// Cuts `len` bytes of local memory from `offset` on along the pieces of remote memory, into parts of
/// at most `chunk` bytes. What one side has more than the other is left alone.
fn each_piece(
    local: Local,
    offset: usize,
    len: usize,
    remote: &[Remote],
    chunk: usize,
    mut each: impl FnMut(u64, u32, Remote),
) {
    let mut at = offset.min(local.len);
    let end = at.saturating_add(len).min(local.len);
    for piece in remote {
        let mut of_piece = 0;
        while of_piece < piece.len as usize && at < end {
            let part = (piece.len as usize - of_piece).min(end - at).min(chunk);
            let there = Remote {
                addr: piece.addr.wrapping_add(of_piece as u64),
                key: piece.key,
                len: part as u32,
            };
            each(local.addr + at as u64, part as u32, there);
            of_piece += part;
            at += part;
        }
    }
}

#[cfg(test)]
mod tests;
