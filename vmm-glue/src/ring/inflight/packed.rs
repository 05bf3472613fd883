//! The in-flight log of a packed ring.
//!
//! A list of free entries links the log's copies of descriptors; taking a buffer moves the list's
//! head over the entries it needs. What is published as one is recorded as one: until the driver can
//! see it the `old` fields keep what was before, and each commit is a single store, so that the log
//! is whole between any two instructions.
#![allow(unsafe_code)] // The log is memory shared with the front end.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence},
};

use virtio_queue::desc::packed::Descriptor;

use super::{InflightArea, PACKED_ENTRY, PACKED_HEADER, VERSION};
use crate::ring::{
    feature,
    packed::{BOTH, Position},
};

/// The log of a packed ring.
///
/// The front end can write to the memory. After `open` nothing is read from it any more but copies
/// of descriptors, which are checked like a guest's.
#[derive(Debug)]
pub(in crate::ring) struct PackedInflight {
    _area: Arc<InflightArea>,
    base: *mut u8,
    size: u16,
    counter: u64,
    /// The entry after each, in the free list or in a buffer. The list ends with `size`.
    next: Box<[u16]>,
    /// The first free entry.
    free: u16,
    /// Where the next descriptor of a buffer on its way is copied to, and where the last one was.
    cursor: u16,
    last: u16,
    /// First and last entry of each buffer in flight, by its id.
    buffers: Box<[(u16, u16)]>,
    /// The used index that the driver sees.
    used: Position,
    /// First and last entries of buffers used since the last publication.
    batch: Vec<(u16, u16)>,
}

/// A buffer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ring) struct Taken {
    /// Its id.
    pub(in crate::ring) id: u16,
    /// Descriptors.
    pub(in crate::ring) count: u16,
    /// Its first entry in the log.
    pub(in crate::ring) head: u16,
}

impl PackedInflight {
    /// Takes a log into use: with it come the used index that the driver sees and the buffers in
    /// flight, oldest first. A new log starts at `start`. `flags` reads the flags of a descriptor of
    /// the ring. `None` if the log is not one of this ring.
    pub(in crate::ring) fn open(
        area: &Arc<InflightArea>,
        number: u16,
        size: u16,
        start: Position,
        flags: impl Fn(u16) -> u16,
    ) -> Option<(Self, Position, Vec<Taken>)> {
        let base = area.part(number, size, feature::RING_PACKED)?;
        let entries = usize::from(size);
        let mut log = Self {
            _area: Arc::clone(area),
            base,
            size,
            counter: 0,
            next: (1..=size).collect(),
            free: 0,
            cursor: 0,
            last: 0,
            buffers: vec![(0, 0); entries].into(),
            used: start,
            batch: Vec::with_capacity(entries),
        };
        let is_whole = log.half(VERSION_AT).load(Ordering::Relaxed) == VERSION;
        if !is_whole || !area.is_of(log.half(ENTRIES_AT).load(Ordering::Relaxed), size) {
            log.begin();
            return Some((log, start, Vec::new()));
        }
        let taken = log.recover(flags)?;
        let used = log.used;
        Some((log, used, taken))
    }

    /// Makes an empty log.
    fn begin(&mut self) {
        for entry in 0..self.size {
            self.store_next(entry, entry + 1);
            self.in_flight(entry).store(0, Ordering::Relaxed);
        }
        self.commit_free();
        self.commit_used();
        self.half(ENTRIES_AT).store(self.size, Ordering::Relaxed);
        self.half(VERSION_AT).store(VERSION, Ordering::Release);
    }

    /// Undoes what was not published, completes what was, and finds what is in flight.
    fn recover(&mut self, flags: impl Fn(u16) -> u16) -> Option<Vec<Taken>> {
        let place = |index: u16, wrap: u8| {
            (index < self.size).then_some(Position { at: index, wrap: wrap != 0 })
        };
        let [i0, i1, o0, o1, wrap, old_wrap, ..] =
            self.used_word().load(Ordering::Acquire).to_ne_bytes();
        let used = place(u16::from_ne_bytes([i0, i1]), wrap)?;
        let old_used = place(u16::from_ne_bytes([o0, o1]), old_wrap)?;
        // Published means that the first descriptor of the batch is not as the driver left it.
        let published = used == old_used || flags(old_used.at) & BOTH != old_used.available_flags();
        let from = if used != old_used && published { FREE_AT } else { OLD_FREE_AT };
        self.used = if published { used } else { old_used };
        self.free = self.half(from).load(Ordering::Relaxed);
        self.cursor = self.free;
        self.next = (0..self.size)
            .map(|entry| self.half_of(entry, NEXT_AT).load(Ordering::Relaxed))
            .collect();
        let mut seen = vec![false; usize::from(self.size)];
        let mut entry = self.free;
        while let Some(seen) = seen.get_mut(usize::from(entry)) {
            if std::mem::replace(seen, true) {
                return None;
            }
            // The end of a batch, or the begin of a buffer, that the log did not get to.
            self.in_flight(entry).store(0, Ordering::Relaxed);
            entry = self.next_of(entry);
        }
        let mut taken = Vec::new();
        for head in 0..self.size {
            if self.in_flight(head).load(Ordering::Relaxed) == 0 {
                continue;
            }
            let count = self.half_of(head, COUNT_AT).load(Ordering::Relaxed);
            let (mut last, mut entry) = (head, head);
            for _ in 0..count {
                let seen = seen.get_mut(usize::from(entry))?;
                if std::mem::replace(seen, true) {
                    return None;
                }
                last = entry;
                entry = self.next_of(entry);
            }
            let id = self.half_of(last, ID_AT).load(Ordering::Relaxed);
            let is_new = taken.iter().all(|(_, taken): &(u64, Taken)| taken.id != id);
            let buffer = self.buffers.get_mut(usize::from(id)).filter(|_| count > 0 && is_new)?;
            *buffer = (head, last);
            let counter = self.counter_of(head).load(Ordering::Relaxed);
            taken.push((counter, Taken { id, count, head }));
        }
        taken.sort_unstable_by_key(|(counter, taken)| (*counter, taken.head));
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.commit_free();
        self.commit_used();
        Some(taken.into_iter().map(|(_, taken)| taken).collect())
    }

    /// Copies the next descriptor of a buffer that is being taken, its `nth`.
    #[inline]
    pub(in crate::ring) fn copy(&mut self, nth: u16, descriptor: Descriptor) {
        if nth == 0 {
            self.cursor = self.free;
        }
        // The ring has as many descriptors as the log has entries.
        if let Some(place) = self.descriptor_place(self.cursor) {
            // SAFETY: an entry of this part, aligned to 8 (see `byte`).
            unsafe { place.write_volatile(Stored::of(descriptor)) };
            self.last = self.cursor;
            self.cursor = self.next_of(self.cursor);
        }
    }

    /// Records that the descriptors copied, `count` of them, are in flight as buffer `id`.
    #[inline]
    pub(in crate::ring) fn take(&mut self, id: u16, count: u16) {
        let head = self.free;
        let Some(buffer) = self.buffers.get_mut(usize::from(id)) else { return };
        *buffer = (head, self.last);
        self.half_of(head, LAST_AT).store(self.last, Ordering::Relaxed);
        self.half_of(head, COUNT_AT).store(count, Ordering::Relaxed);
        self.counter_of(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.in_flight(head).store(1, Ordering::Release);
        self.free = self.cursor;
        self.commit_free();
    }

    /// The `nth` descriptor of the buffer whose first entry is `head`.
    pub(in crate::ring) fn descriptor(&self, head: u16, nth: u16) -> Option<Descriptor> {
        let entry = (0..nth).fold(head, |entry, _| self.next_of(entry));
        let place = self.descriptor_place(entry)?;
        // SAFETY: as in `copy`. Read once: the front end may change it.
        let Stored { id, flags, len, addr } = unsafe { place.read_volatile() };
        Some(Descriptor::new(addr, len, id, flags))
    }

    /// A buffer was given back.
    #[inline]
    pub(in crate::ring) fn used(&mut self, id: u16) {
        if let Some(buffer) = self.buffers.get(usize::from(id)) {
            self.batch.push(*buffer);
        }
    }

    /// What was given back is about to be published: `used` is the used index then.
    #[inline]
    pub(in crate::ring) fn publishing(&mut self, used: Position) {
        for (head, last) in &self.batch {
            self.half_of(*last, NEXT_AT).store(self.free, Ordering::Relaxed);
            if let Some(next) = self.next.get_mut(usize::from(*last)) {
                *next = self.free;
            }
            self.free = *head;
        }
        self.half(FREE_AT).store(self.free, Ordering::Release);
        self.used_word().store(used_word(used, self.used), Ordering::Release);
        self.used = used;
    }

    /// It is published.
    #[inline]
    pub(in crate::ring) fn published(&mut self) {
        // Not before the driver can see it.
        compiler_fence(Ordering::SeqCst);
        for (head, _) in &self.batch {
            self.in_flight(*head).store(0, Ordering::Relaxed);
        }
        self.batch.clear();
        self.commit_free();
        self.commit_used();
    }

    /// Both heads of the free list at once.
    #[inline]
    fn commit_free(&self) {
        let [a, b] = self.free.to_ne_bytes();
        let word = u32::from_ne_bytes([a, b, a, b]);
        // SAFETY: both fields, in the header and aligned to 4 (see `byte`).
        unsafe { AtomicU32::from_ptr(self.byte(FREE_AT).cast()) }.store(word, Ordering::Release);
    }

    /// Both used indices with their wrap counters at once.
    #[inline]
    fn commit_used(&self) {
        self.used_word().store(used_word(self.used, self.used), Ordering::Release);
    }

    #[inline]
    fn next_of(&self, entry: u16) -> u16 {
        self.next.get(usize::from(entry)).copied().unwrap_or(self.size)
    }

    fn store_next(&mut self, entry: u16, next: u16) {
        self.half_of(entry, NEXT_AT).store(next, Ordering::Relaxed);
    }

    #[inline]
    fn used_word(&self) -> &AtomicU64 {
        // SAFETY: in the header and aligned to 8 (see `byte`).
        unsafe { AtomicU64::from_ptr(self.byte(USED_AT).cast()) }
    }

    #[inline]
    fn half(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in the header; every offset of a half word is even (see `byte`).
        unsafe { AtomicU16::from_ptr(self.byte(offset).cast()) }
    }

    #[inline]
    fn half_of(&self, entry: u16, offset: usize) -> &AtomicU16 {
        // SAFETY: in an entry; every offset of a half word is even (see `byte`).
        unsafe { AtomicU16::from_ptr(self.byte(self.offset_of(entry) + offset).cast()) }
    }

    #[inline]
    fn in_flight(&self, entry: u16) -> &AtomicU8 {
        // SAFETY: in an entry (see `byte`).
        unsafe { AtomicU8::from_ptr(self.byte(self.offset_of(entry))) }
    }

    #[inline]
    fn counter_of(&self, entry: u16) -> &AtomicU64 {
        // SAFETY: in an entry and aligned to 8 (see `byte`).
        unsafe { AtomicU64::from_ptr(self.byte(self.offset_of(entry) + COUNTER_AT).cast()) }
    }

    #[inline]
    fn descriptor_place(&self, entry: u16) -> Option<*mut Stored> {
        (entry < self.size).then(|| self.byte(self.offset_of(entry) + ID_AT).cast())
    }

    /// Where an entry begins. Entries come from lists that end with `size`; what is not in the log
    /// is its last entry here, to be sure.
    #[inline]
    fn offset_of(&self, entry: u16) -> usize {
        PACKED_HEADER + PACKED_ENTRY * usize::from(entry.min(self.size - 1))
    }

    /// A place in this part of the log. `open` has checked that the part has a header and `size`
    /// entries, which is at least one, and is aligned to 8; it stays mapped with `_area`.
    #[inline]
    fn byte(&self, offset: usize) -> *mut u8 {
        self.base.wrapping_add(offset)
    }
}

// SAFETY: one reactor has the ring and its log at a time.
unsafe impl Send for PackedInflight {}

/// A descriptor as an entry has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stored {
    id: u16,
    flags: u16,
    len: u32,
    addr: u64,
}

impl Stored {
    #[inline]
    fn of(descriptor: Descriptor) -> Self {
        let (id, flags) = (descriptor.id(), descriptor.flags());
        Self { id, flags, len: descriptor.len(), addr: descriptor.addr().0 }
    }
}

/// The used fields of the header: index, old index, wrap counter, old wrap counter.
#[inline]
fn used_word(used: Position, old: Position) -> u64 {
    let ([a, b], [c, d]) = (used.at.to_ne_bytes(), old.at.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, used.wrap.into(), old.wrap.into(), 0, 0])
}

// Offsets in the header.
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
// Offsets in an entry, whose first byte says whether it is in flight.
const NEXT_AT: usize = 2;
const LAST_AT: usize = 4;
const COUNT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ID_AT: usize = 16;
