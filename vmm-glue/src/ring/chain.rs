//! Descriptor chains: from a head to the memory behind it (VIRTIO 1.3, 2.7.5).
#![allow(unsafe_code)] // Descriptors are read from guest memory.

use virtio_bindings::virtio_ring;
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
        map.translate_for(&mut self.hint, addr, len, write, into)
    }

    /// Adds a split ring's table of indirect descriptors, `len` bytes at `addr`, in the order of
    /// their `next` (VIRTIO 1.3, 2.7.5.3).
    pub(super) fn add_table(&mut self, map: &GuestMap, addr: u64, len: u32) -> bool {
        let Some((table, count)) = Table::at(map, addr, len) else { return false };
        let mut at = 0;
        // Each descriptor once: a longer way through the table is a loop.
        for _ in 0..count {
            let Some([addr, rest]) = table.entry(at) else { return false };
            let (flags, next) = ((rest >> 32) as u16, (rest >> 48) as u16);
            if flags & INDIRECT != 0 || !self.add(map, addr, rest as u32, flags & WRITE != 0) {
                return false;
            }
            if flags & NEXT == 0 {
                return true;
            }
            at = next.into();
        }
        false
    }

    /// Adds a packed ring's table of indirect descriptors: all of them, one after another. Other
    /// flags than that of writing mean nothing there (VIRTIO 1.3, 2.8.7).
    pub(super) fn add_packed_table(&mut self, map: &GuestMap, addr: u64, len: u32) -> bool {
        let Some((table, count)) = Table::at(map, addr, len) else { return false };
        (0..count).all(|at| {
            table.entry(at).is_some_and(|[addr, rest]| {
                let flags = (rest >> 48) as u16;
                self.add(map, addr, rest as u32, flags & WRITE != 0)
            })
        })
    }
}

/// An indirect table: where it is, or a copy when it lies across regions or askew.
enum Table {
    Mapped(*const [u64; 2], u32),
    Copied(Vec<u8>),
}

impl Table {
    /// The table and how many descriptors it has.
    fn at(map: &GuestMap, addr: u64, len: u32) -> Option<(Self, u32)> {
        let count = len / DESCRIPTOR;
        if !len.is_multiple_of(DESCRIPTOR) || count == 0 || count > MOST_INDIRECT {
            return None;
        }
        let table =
            match map.at(addr, len as usize).filter(|place| (*place as usize).is_multiple_of(8)) {
                Some(place) => Self::Mapped(place.cast_const().cast(), count),
                None => {
                    let mut segments = Vec::new();
                    let mut bytes = vec![0; len as usize];
                    let all = map.translate_for(&mut 0, addr, len, false, &mut segments);
                    (all && sg::gather(&segments, &mut bytes) == bytes.len())
                        .then_some(Self::Copied(bytes))?
                }
            };
        Some((table, count))
    }

    /// A descriptor: the address, and what follows it (the length in the lower half).
    #[inline]
    fn entry(&self, at: u32) -> Option<[u64; 2]> {
        let words = match self {
            Self::Mapped(base, count) => {
                let place = (at < *count).then(|| base.wrapping_add(at as usize))?;
                // SAFETY: inside the table, which is mapped guest memory and aligned to 8. Read
                // once: the guest may change it at any time.
                unsafe { place.read_volatile() }
            }
            Self::Copied(bytes) => {
                let start = at as usize * DESCRIPTOR as usize;
                let [addr, rest] = *bytes.get(start..start + DESCRIPTOR as usize)?.as_chunks().0
                else {
                    return None;
                };
                [u64::from_ne_bytes(addr), u64::from_ne_bytes(rest)]
            }
        };
        Some(words.map(u64::from_le))
    }
}

const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
/// The most descriptors in an indirect table: drivers use up to the size of the ring, at most 1024
/// in practice.
const MOST_INDIRECT: u32 = 4096;
