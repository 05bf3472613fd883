//! Descriptor chains: from a head to the memory behind it (VIRTIO 1.3, 2.7.5).
#![allow(unsafe_code)] // Descriptors are read from guest memory.

use virtio_queue::desc::split::Descriptor;
use vscsi_target::reactor::sg::{self, Segment};

use crate::memory::GuestMap;

/// A request's memory. Reused from request to request.
#[derive(Debug, Default)]
pub struct Chain {
    /// What [`super::Ring::push`] wants back.
    pub id: u16,
    /// It was taken before a crash already, and may have been executed.
    pub again: bool,
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
    /// Bytes in `readable`.
    pub readable_len: u32,
    /// Bytes in `writable`.
    pub writable_len: u32,
    /// The region the last address was found in.
    hint: usize,
}

// SAFETY: segments are only addresses in the guest map that the owner of the chain holds.
unsafe impl Send for Chain {}

impl Chain {
    #[inline]
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len, self.again) = (0, 0, false);
    }

    /// Adds what one descriptor describes; false if it cannot be.
    #[inline]
    pub(super) fn add(&mut self, map: &GuestMap, addr: u64, len: u32, write: bool) -> bool {
        let (total, into) = if write {
            (&mut self.writable_len, &mut self.writable)
        } else if self.writable_len == 0 && self.writable.is_empty() {
            (&mut self.readable_len, &mut self.readable)
        } else {
            // What is read comes before what is written.
            return false;
        };
        let Some(sum) = total.checked_add(len) else { return false };
        *total = sum;
        map.translate(&mut self.hint, addr, len, into)
    }

    /// Adds a table of indirect descriptors: `len` bytes at `addr`. `follow` is the order in which a
    /// split ring has them, by their `next`; a packed ring has them one after another.
    pub(super) fn add_indirect(
        &mut self,
        map: &GuestMap,
        addr: u64,
        len: u32,
        follow: bool,
    ) -> bool {
        let count = len / DESCRIPTOR;
        if !len.is_multiple_of(DESCRIPTOR) || count == 0 || count > MOST_INDIRECT {
            return false;
        }
        let Some(table) = Table::at(map, addr, len as usize) else { return false };
        let mut at = 0;
        // Each descriptor once: a longer way through the table is a loop.
        for _ in 0..count {
            let Some(entry) = table.entry(at) else { return false };
            if entry.refers_to_indirect_table()
                || !self.add(map, entry.addr().0, entry.len(), entry.is_write_only())
            {
                return false;
            }
            at = match (follow, entry.has_next()) {
                (true, false) => return true,
                (true, true) => u32::from(entry.next()),
                (false, _) if at + 1 == count => return true,
                (false, _) => at + 1,
            };
        }
        false
    }
}

/// An indirect table: where it is, or a copy when it lies across regions.
enum Table {
    Mapped(*const Descriptor, u32),
    Copied(Vec<u8>),
}

impl Table {
    fn at(map: &GuestMap, addr: u64, len: usize) -> Option<Self> {
        match map.at(addr, len) {
            Some(place) => Some(Self::Mapped(place.cast_const().cast(), len as u32 / DESCRIPTOR)),
            None => {
                let mut segments = Vec::new();
                let mut bytes = vec![0; len];
                let all = map.translate(&mut 0, addr, len as u32, &mut segments);
                (all && sg::gather(&segments, &mut bytes) == len).then_some(Self::Copied(bytes))
            }
        }
    }

    fn entry(&self, at: u32) -> Option<Descriptor> {
        let place = match self {
            Self::Mapped(base, count) => (at < *count).then(|| base.wrapping_add(at as usize))?,
            Self::Copied(bytes) => {
                let start = at as usize * DESCRIPTOR as usize;
                bytes.get(start..start + DESCRIPTOR as usize)?.as_ptr().cast()
            }
        };
        // SAFETY: inside the table, which is mapped memory or our own; any bytes make a descriptor,
        // and tables need no alignment. Read once: the guest may change it at any time.
        Some(unsafe { place.read_unaligned() })
    }
}

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;
/// The most descriptors in an indirect table: drivers use up to the size of the ring, at most 1024
/// in practice.
const MOST_INDIRECT: u32 = 4096;
