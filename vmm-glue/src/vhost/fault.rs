//! Why a message of the VMM is refused.

use std::io;

use thiserror::Error;

use super::transfer::TransferError;
use crate::{memory::MemoryError, ring::RingError};

/// Why a message cannot be done.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// A queue that the controller does not have.
    #[error(
        "the VMM uses queue {index}, but the last one of this controller is {last}: give the VMM no \
         more than {} request queues (num_queues), or the controller more (--queues)",
        last.saturating_sub(1)
    )]
    Index {
        /// The queue.
        index: u32,
        /// The last one there is.
        last: u16,
    },
    /// More entries than a ring has.
    #[error("a ring of {0} entries is not possible")]
    Size(u32),
    /// A ring without memory.
    #[error("queue {0} starts before the VMM has shared any memory")]
    NoMemory(u16),
    /// A ring outside the memory.
    #[error(
        "queue {index}: the ring at {address:#x} is not in the memory that the VMM shares. All of the \
         guest's memory has to be shared: with QEMU a memory-backend-memfd or memory-backend-file \
         with share=on, with Cloud Hypervisor --memory shared=on"
    )]
    Unshared {
        /// The queue.
        index: u16,
        /// Where the ring is for the VMM.
        address: u64,
    },
    /// A feature that changes how rings look, and that was not offered.
    #[error("queue {0}: the VMM chose packed rings, which are not offered (with QEMU: packed=off)")]
    Packed(u16),
    /// The ring cannot be.
    #[error("queue {index}: {source}")]
    Ring {
        /// The queue.
        index: u16,
        /// What is wrong.
        source: RingError,
    },
    /// The memory cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The in-flight log is smaller than it has to be.
    #[error("an in-flight log of {len} bytes is too small for {queues} queues of {size} entries")]
    Inflight {
        /// Bytes.
        len: u64,
        /// Queues.
        queues: u16,
        /// Entries of each.
        size: u16,
    },
    /// The device's state does not arrive.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A descriptor that does not notify.
    #[error("the descriptor for queue {0} is not an eventfd")]
    NotEvent(u8),
    /// The system refused.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    /// The reactors are stopping.
    #[error("queue {0} cannot be reached: the target is stopping")]
    Gone(u16),
    /// Not negotiated.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

impl From<Fault> for vhost::vhost_user::Error {
    fn from(fault: Fault) -> Self {
        Self::ReqHandlerError(io::Error::other(fault))
    }
}
