//! The memory of a TCMU device, which the kernel and this process write at the same time.
//!
//! Every access is checked against the mapping's end and is one volatile or atomic access of a
//! machine word: what is read is a copy, and is never read again to be trusted.
#![allow(unsafe_code)] // Raw memory shared with the kernel.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};

use vscsi_target::reactor::sg::Segment;

use crate::memory::Region;

/// A mapping by offsets from its start. Places outside of it read as 0 and are not written.
#[derive(Debug)]
pub(super) struct Area {
    region: Region,
}

impl Area {
    pub(super) fn new(region: Region) -> Self {
        Self { region }
    }

    /// Bytes of the mapping.
    pub(super) fn len(&self) -> u64 {
        self.region.size
    }

    /// Whether a page of it was not there when it was needed.
    pub(super) fn is_lost(&self) -> bool {
        self.region.is_lost()
    }

    /// `len` bytes from `at` on as memory for data, if all of them are in the mapping.
    pub(super) fn segment(&self, at: u64, len: u64) -> Option<Segment> {
        let rest = self.len().checked_sub(at)?;
        (len <= rest).then(|| Segment { base: self.region.host_at(at), len: len as usize })
    }

    pub(super) fn load16(&self, at: u32) -> u16 {
        let Some(place) = self.place(at, 2) else { return 0 };
        // SAFETY: in the mapping and aligned, by `place`; any bytes are a valid number.
        unsafe { place.cast::<u16>().read_volatile() }
    }

    /// Orders what is read afterwards behind it.
    pub(super) fn load32(&self, at: u32) -> u32 {
        self.place(at, 4).map_or(0, |place| {
            // SAFETY: in the mapping and aligned, by `place`.
            unsafe { AtomicU32::from_ptr(place.cast()) }.load(Acquire)
        })
    }

    /// Orders what is read afterwards behind it.
    pub(super) fn load64(&self, at: u32) -> u64 {
        self.place(at, 8).map_or(0, |place| {
            // SAFETY: in the mapping and aligned, by `place`.
            unsafe { AtomicU64::from_ptr(place.cast()) }.load(Acquire)
        })
    }

    /// Orders what was written before it.
    pub(super) fn store64(&self, at: u32, value: u64) {
        if let Some(place) = self.place(at, 8) {
            // SAFETY: in the mapping and aligned, by `place`.
            unsafe { AtomicU64::from_ptr(place.cast()) }.store(value, Release);
        }
    }

    /// Writes a word if it is still `old`, and orders what was written before it.
    pub(super) fn exchange32(&self, at: u32, old: u32, new: u32) -> bool {
        self.place(at, 4).is_some_and(|place| {
            // SAFETY: in the mapping and aligned, by `place`.
            let word = unsafe { AtomicU32::from_ptr(place.cast()) };
            word.compare_exchange(old, new, AcqRel, Acquire).is_ok()
        })
    }

    /// Where a number of `size` bytes is, at a multiple of that size.
    fn place(&self, at: u32, size: u32) -> Option<*mut u8> {
        let fits = u64::from(at) + u64::from(size) <= self.len();
        (fits && at.is_multiple_of(size)).then(|| self.region.host_at(at.into()))
    }
}
