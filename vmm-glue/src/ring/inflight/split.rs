//! The in-flight log of a split ring.
#![allow(unsafe_code)] // The log is memory shared with the front end.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence},
};

use super::{ENTRY, HEADER, InflightArea, VERSION};

/// The log of a split ring.
#[derive(Debug)]
pub(in crate::ring) struct SplitInflight {
    area: Arc<InflightArea>,
    base: *mut u8,
    counter: u64,
    /// Chains used since the last publication, newest first, as the log links them.
    batch: Vec<u16>,
}

impl SplitInflight {
    /// Takes a log into use: the heads to be taken again, oldest first. `used` is the used index
    /// that the driver sees.
    pub(in crate::ring) fn open(
        area: Arc<InflightArea>,
        number: u16,
        size: u16,
        used: u16,
    ) -> Option<(Self, Vec<u16>)> {
        let base = area.part(number, size, 0)?;
        let mut log = Self { area, base, counter: 0, batch: Vec::new() };
        let is_whole = log.version().load(Ordering::Relaxed) == VERSION;
        if !is_whole || !log.area.is_of(log.entries().load(Ordering::Relaxed), size) {
            (0..size).for_each(|head| log.in_flight(head).store(0, Ordering::Relaxed));
            log.entries().store(size, Ordering::Relaxed);
            log.used_index().store(used, Ordering::Relaxed);
            log.version().store(VERSION, Ordering::Release);
            return Some((log, Vec::new()));
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
    pub(in crate::ring) fn take(&mut self, head: u16) {
        self.counter_of(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // In this order for whoever reads it after a crash.
        self.in_flight(head).store(1, Ordering::Release);
    }

    #[inline]
    pub(in crate::ring) fn used(&mut self, head: u16) {
        self.next_of(head).store(self.last_head().load(Ordering::Relaxed), Ordering::Relaxed);
        self.last_head().store(head, Ordering::Release);
        self.batch.push(head);
    }

    #[inline]
    pub(in crate::ring) fn published(&mut self, used: u16) {
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
        // size. The memory stays mapped with `area`.
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
