//! The log of requests in flight that outlives this process (vhost-user, "Inflight I/O tracking").
//!
//! The front end keeps the memory; the layout of each queue's part is the specification's, so that a
//! front end may hand it to any back end.
#![allow(unsafe_code)] // The log is memory shared with the front end.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence},
    },
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::feature;
use crate::memory::{MemoryError, Region};

/// The memory of all queues' logs.
#[derive(Debug)]
pub struct InflightArea {
    memory: Region,
    /// Bytes of each queue's part.
    stride: usize,
}

impl InflightArea {
    /// New, zeroed memory for `queues` queues of `size` entries.
    pub fn create(queues: u16, size: u16, features: u64) -> io::Result<(fs::File, u64)> {
        let len = part(size, features) as u64 * u64::from(queues);
        let file = fs::File::from(memfd_create("vscsi-inflight", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(len.max(4096))?;
        Ok((file, len))
    }

    /// Maps what the front end gives back: `len` bytes for queues of at most `size` entries.
    pub fn map(
        len: u64,
        offset: u64,
        file: fs::File,
        size: u16,
        features: u64,
    ) -> Result<Arc<Self>, MemoryError> {
        let memory = Region::map(0, len, 0, offset, file)?;
        Ok(Arc::new(Self { memory, stride: part(size, features) }))
    }

    /// Whether there is room for that many queues.
    pub fn has_room(&self, queues: u16) -> bool {
        self.stride as u64 * u64::from(queues) <= self.memory.size
    }

    /// The part of queue `number`, of `size` entries.
    pub(super) fn part(&self, number: u16, size: u16, features: u64) -> Option<*mut u8> {
        let start = self.stride as u64 * u64::from(number);
        // A driver may use fewer entries than the queue has room for, but not more.
        let fits = part(size, features) <= self.stride;
        self.memory.rest(start).filter(|&rest| fits && rest >= self.stride as u64)?;
        let place = self.memory.host_at(start);
        (place as usize).is_multiple_of(align_of::<AtomicU64>()).then_some(place)
    }
}

/// Bytes of a queue's part.
fn part(size: u16, features: u64) -> usize {
    let entries = usize::from(size);
    let len = match features & feature::RING_PACKED {
        0 => HEADER + ENTRY * entries,
        _ => PACKED_HEADER + PACKED_ENTRY * entries,
    };
    len.next_multiple_of(64)
}

/// The log of a split ring.
#[derive(Debug)]
pub(super) struct SplitInflight {
    _area: Arc<InflightArea>,
    base: *mut u8,
    counter: u64,
    /// Chains used since the last publication, newest first, as the log links them.
    batch: Vec<u16>,
}

impl SplitInflight {
    /// Takes a log into use: the heads to be taken again, oldest first. `used` is the used index
    /// that the driver sees.
    pub(super) fn open(
        area: Arc<InflightArea>,
        number: u16,
        size: u16,
        used: u16,
    ) -> Option<(Self, Vec<u16>)> {
        let base = area.part(number, size, 0)?;
        let mut log = Self { _area: area, base, counter: 0, batch: Vec::new() };
        if log.version().load(Ordering::Relaxed) != VERSION {
            log.entries().store(size, Ordering::Relaxed);
            log.used_index().store(used, Ordering::Relaxed);
            log.version().store(VERSION, Ordering::Release);
            return Some((log, Vec::new()));
        }
        if log.entries().load(Ordering::Relaxed) != size {
            return None;
        }
        log.finish_batch(size, used);
        let mut again: Vec<(u64, u16)> = (0..size)
            .filter(|&head| log.in_flight(head).load(Ordering::Relaxed) != 0)
            .map(|head| (log.counter_of(head).load(Ordering::Relaxed), head))
            .collect();
        again.sort_unstable();
        log.counter = again.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some((log, again.into_iter().map(|(_, head)| head).collect()))
    }

    /// What was published, but not yet taken off the log when the process ended.
    fn finish_batch(&mut self, size: u16, used: u16) {
        let known = self.used_index().load(Ordering::Relaxed);
        let mut head = self.last_head().load(Ordering::Relaxed);
        for _ in 0..used.wrapping_sub(known).min(size) {
            if head >= size {
                break;
            }
            self.in_flight(head).store(0, Ordering::Relaxed);
            head = self.next_of(head).load(Ordering::Relaxed);
        }
        self.used_index().store(used, Ordering::Release);
    }

    #[inline]
    pub(super) fn take(&mut self, head: u16) {
        self.counter_of(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // In this order for whoever reads it after a crash.
        self.in_flight(head).store(1, Ordering::Release);
    }

    #[inline]
    pub(super) fn used(&mut self, head: u16) {
        self.next_of(head).store(self.last_head().load(Ordering::Relaxed), Ordering::Relaxed);
        self.last_head().store(head, Ordering::Release);
        self.batch.push(head);
    }

    #[inline]
    pub(super) fn published(&mut self, used: u16) {
        fence(Ordering::SeqCst);
        for head in &self.batch {
            self.in_flight(*head).store(0, Ordering::Relaxed);
        }
        self.batch.clear();
        self.used_index().store(used, Ordering::Release);
    }

    fn version(&self) -> &AtomicU16 {
        self.word(8)
    }

    fn entries(&self) -> &AtomicU16 {
        self.word(10)
    }

    fn last_head(&self) -> &AtomicU16 {
        self.word(12)
    }

    fn used_index(&self) -> &AtomicU16 {
        self.word(14)
    }

    fn next_of(&self, head: u16) -> &AtomicU16 {
        self.word(HEADER + ENTRY * usize::from(head) + 6)
    }

    fn in_flight(&self, head: u16) -> &AtomicU8 {
        let place = self.base.wrapping_add(HEADER + ENTRY * usize::from(head));
        // SAFETY: an entry of this part, whose length `open` has checked: heads are less than its
        // size. The memory stays mapped with `_area`.
        unsafe { AtomicU8::from_ptr(place) }
    }

    fn counter_of(&self, head: u16) -> &AtomicU64 {
        let place = self.base.wrapping_add(HEADER + ENTRY * usize::from(head) + 8);
        // SAFETY: as above; parts are aligned to 64 bytes.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as above; every offset is even.
        unsafe { AtomicU16::from_ptr(self.base.wrapping_add(offset).cast()) }
    }
}

// SAFETY: one reactor has the ring and its log at a time.
unsafe impl Send for SplitInflight {}

const VERSION: u16 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 16;
const PACKED_HEADER: usize = 32;
const PACKED_ENTRY: usize = 32;
