//! The log of requests in flight that outlives this process (vhost-user, "Inflight I/O tracking").
//!
//! The front end keeps the memory; the layout of each queue's part is the specification's, so that a
//! front end may hand it to any back end.

pub(super) mod packed;
pub(super) mod split;

use std::{
    fs, io,
    sync::{Arc, atomic::AtomicU64},
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
    /// Entries that a part has room for.
    entries: u16,
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
        Ok(Arc::new(Self { memory, stride: part(size, features), entries: size }))
    }

    /// Whether there is room for that many queues.
    pub fn has_room(&self, queues: u16) -> bool {
        self.stride as u64 * u64::from(queues) <= self.memory.size
    }

    /// The part of queue `number`, of `size` entries.
    fn part(&self, number: u16, size: u16, features: u64) -> Option<*mut u8> {
        let start = self.stride as u64 * u64::from(number);
        // A driver may use fewer entries than the queue has room for, but not more.
        let fits = part(size, features) <= self.stride;
        self.memory.rest(start).filter(|&rest| fits && rest >= self.stride as u64)?;
        let place = self.memory.host_at(start);
        (place as usize).is_multiple_of(align_of::<AtomicU64>()).then_some(place)
    }

    /// Whether a part that says it has `found` entries is one of a ring of `size`. What another ring
    /// left behind is not in flight any more.
    fn is_of(&self, found: u16, size: u16) -> bool {
        found == size || found == self.entries
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

const VERSION: u16 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 16;
const PACKED_HEADER: usize = 32;
const PACKED_ENTRY: usize = 32;

#[cfg(test)]
mod tests;
