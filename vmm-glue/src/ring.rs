//! Virtqueues as a device sees them (VIRTIO 1.3, 2.6 to 2.8).
//!
//! Rings of our own, with pointers into mapped guest memory kept: virtio-queue, whose descriptor
//! layouts are used here, translates every access anew and has no packed ring, no in-flight log and
//! no publishing in batches (`benches` measure both).
//!
//! A guest writes to a ring at any time. Every field is read once, and what was read is checked and
//! then used. An index that cannot be means the ring is broken: nothing more is taken from it. A
//! chain that cannot be is given back with length 0.
#![allow(unsafe_code)] // Rings are raw memory shared with a guest.

pub mod chain;
pub mod inflight;
mod order;
pub mod packed;
#[cfg(test)]
mod rig;
pub mod split;

use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::{virtio_config, virtio_ring};

use crate::memory::{GuestMap, dirty::DirtyLog};
pub use chain::Chain;
use inflight::InflightArea;
use packed::PackedRing;
use split::SplitRing;

/// Feature bits of rings, as masks of the 64-bit feature word.
pub mod feature {
    use super::{virtio_config, virtio_ring};

    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
    /// VIRTIO_F_RING_PACKED.
    pub const RING_PACKED: u64 = 1 << virtio_config::VIRTIO_F_RING_PACKED;
    /// VIRTIO_F_IN_ORDER.
    pub const IN_ORDER: u64 = 1 << virtio_config::VIRTIO_F_IN_ORDER;
    /// VIRTIO_F_RING_RESET.
    pub const RING_RESET: u64 = 1 << virtio_config::VIRTIO_F_RING_RESET;
}

/// Where the three areas of a ring are (VIRTIO 1.3, 2.6: descriptor, driver and device area).
#[derive(Clone, Copy, Debug)]
pub struct Areas {
    /// Descriptor table, or descriptor ring.
    pub descriptor: *mut u8,
    /// Available ring, or driver event suppression.
    pub driver: *mut u8,
    /// Used ring, or device event suppression.
    pub device: *mut u8,
}

// SAFETY: addresses in a guest map, whose `Arc` whoever has the ring holds too.
unsafe impl Send for Areas {}

impl Areas {
    /// How many bytes each area of a ring of `size` entries has, in the order of the fields.
    pub fn sizes(size: u16, features: u64) -> [usize; 3] {
        let n = usize::from(size);
        if features & feature::RING_PACKED != 0 {
            [16 * n, 4, 4]
        } else {
            [16 * n, 6 + 2 * n, 6 + 8 * n]
        }
    }

    /// How each area is aligned.
    pub fn alignments(features: u64) -> [usize; 3] {
        if features & feature::RING_PACKED != 0 { [16, 4, 4] } else { [16, 2, 4] }
    }

    fn check(&self, features: u64) -> Result<(), RingError> {
        let places = [self.descriptor, self.driver, self.device];
        let aligned = places
            .iter()
            .zip(Self::alignments(features))
            .all(|(place, to)| (*place as usize).is_multiple_of(to));
        if aligned { Ok(()) } else { Err(RingError::Unaligned) }
    }
}

/// What a ring is made of.
#[derive(Debug)]
pub struct Setup {
    /// Entries: a power of two for a split ring.
    pub size: u16,
    /// Its memory, [`Areas::sizes`] long.
    pub areas: Areas,
    /// Where to go on, as the front end says it (SET_VRING_BASE).
    pub base: u32,
    /// The features that the driver accepted.
    pub features: u64,
    /// The in-flight log and this ring's number in it.
    pub inflight: Option<(Arc<InflightArea>, u16)>,
}

/// Why a ring cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The size cannot be.
    #[error("a ring of {0} entries is not possible")]
    Size(u16),
    /// An area is not aligned.
    #[error("an area of the ring is not aligned")]
    Unaligned,
    /// The front end's base is outside the ring, or has buffers in flight that nobody knows.
    #[error("a packed ring cannot go on at base {0:#010x}")]
    Base(u32),
    /// The in-flight log is too small, or contradicts itself.
    #[error("the in-flight log has no room for this ring, or contradicts itself")]
    Inflight,
    /// The available index jumped.
    #[error("the available index is {index}, more than the ring has entries after {expected}")]
    AvailableIndex {
        /// What the guest says.
        index: u16,
        /// Where the device is.
        expected: u16,
    },
    /// A packed ring has more descriptors available, or chained, than are left.
    #[error("more than all {0} descriptors of the ring are available at once")]
    TooMany(u16),
    /// The head of a chain (packed: its buffer id) is no descriptor of this ring.
    #[error("descriptor {0} is not in the ring")]
    Head(u16),
    /// A chain was made available again before it was used.
    #[error("descriptor {0} was made available again while it is in use")]
    Busy(u16),
    /// The file behind guest memory was truncated.
    #[error("the guest's memory was taken away while it was in use")]
    MemoryLost,
}

/// What [`Ring::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// Nothing is available.
    Empty,
    /// A chain: it is in the [`Chain`] given.
    Chain,
    /// A chain that cannot be (a loop, an address that is not memory): only its `id` is known. Give
    /// it back with length 0.
    Bad,
}

/// A ring of either layout.
#[derive(Debug)]
pub enum Ring {
    /// VIRTIO 1.3, 2.7.
    Split(SplitRing),
    /// VIRTIO 1.3, 2.8.
    Packed(PackedRing),
}

macro_rules! each {
    ($self:expr, $ring:ident => $call:expr) => {
        match $self {
            Self::Split($ring) => $call,
            Self::Packed($ring) => $call,
        }
    };
}

impl Ring {
    /// Takes a ring into use. With an in-flight log, what was taken and not used before a crash is
    /// popped again first, in its order, marked [`Chain::again`].
    pub fn open(setup: Setup) -> Result<Self, RingError> {
        setup.areas.check(setup.features)?;
        if setup.features & feature::RING_PACKED != 0 {
            PackedRing::open(setup).map(Self::Packed)
        } else {
            SplitRing::open(setup).map(Self::Split)
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        each!(self, ring => ring.size())
    }

    /// Takes the next chain. `chain` is reused: what was in it is gone.
    #[inline]
    pub fn pop(&mut self, map: &GuestMap, chain: &mut Chain) -> Result<Popped, RingError> {
        each!(self, ring => ring.pop(map, chain))
    }

    /// Gives a chain back: `len` bytes were written into it. The driver sees it after
    /// [`Ring::publish`].
    #[inline]
    pub fn push(&mut self, id: u16, len: u32) {
        each!(self, ring => ring.push(id, len));
    }

    /// Shows the driver everything pushed so far; true if it wants an interrupt for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        each!(self, ring => ring.publish())
    }

    /// Asks the driver not to notify: the ring is polled.
    pub fn suppress(&mut self) {
        each!(self, ring => ring.suppress());
    }

    /// Asks the driver to notify again; true if something is available already, which it then may
    /// not have notified for.
    pub fn rearm(&mut self) -> bool {
        each!(self, ring => ring.rearm())
    }

    /// Whether chains are given back that the driver sees only when older ones are, too
    /// (VIRTIO_F_IN_ORDER).
    pub fn holds_back(&self) -> bool {
        each!(self, ring => ring.holds_back())
    }

    /// Whether chains that were taken before a crash are still to be taken again.
    pub fn resumes(&self) -> bool {
        each!(self, ring => ring.resumes())
    }

    /// Where to go on, as GET_VRING_BASE answers it. Nothing may be in flight.
    pub fn base(&self) -> u32 {
        each!(self, ring => ring.base())
    }

    /// The memory is elsewhere now (a new memory table).
    pub fn move_to(&mut self, areas: Areas) -> Result<(), RingError> {
        each!(self, ring => ring.move_to(areas))
    }

    /// Logs what is written to the ring from now on, or stops it.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, map: &GuestMap) {
        each!(self, ring => ring.set_log(log, map));
    }
}

/// Whether an index that passed from `old` to `new` crossed the one the other side waits for
/// (VIRTIO 1.3, 2.7.7.2).
#[inline]
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
