//! A front end without a VMM, of vhost-user-scsi and of vfio-user: what tests and benches drive a
//! back end with.
//!
//! * [`Device`] is the polite driver: it connects, negotiates, starts every ring and offers
//!   blocking [`Device::request`], [`Device::task_management`] and [`Device::event`].
//! * [`vfio::Client`] is a vfio-user socket, and `Device::plug` drives the function behind it.
//! * [`Link`] is the socket alone. Its [`Link::send`] takes any bytes and any descriptors, so a
//!   test can break every rule of the protocol.
//! * [`Memory`] is guest memory in memfds; a [`Window`] is a checked view of a part of it.
//! * [`Queue`] is a virtqueue seen from the driver: [`Ring::Split`] or [`Ring::Packed`], polite
//!   (`add`, `publish`, `take`) or hostile (`set_descriptor`, `set_available_index`).
//! * [`Log`] is the dirty log of a migration, from [`Device::start_log`].
//!
//! Everything is in one thread; nothing is started in the background. A back end that does not
//! answer gives [`Error::Timeout`] or an error of the socket after [`TIMEOUT`].
//!
//! ```no_run
//! # fn main() -> Result<(), vhost_frontend::Error> {
//! use vhost_frontend::{Device, Setup, scsi};
//!
//! let mut device = Device::connect("/tmp/vscsi.sock", &Setup::default())?;
//! let response = device.request(scsi::lun(0, 0), &scsi::inquiry(96), &[], 96)?;
//! assert_eq!((response.response, response.status), (0, 0));
//! # Ok(())
//! # }
//! ```

mod device;
mod link;
mod log;
mod memory;
mod packed;
mod queue;
pub mod scsi;
mod split;
pub mod vfio;

pub use device::{Device, Event, Inflight, Response, Setup};
pub use link::{Header, Link, Message, request};
pub use log::{Log, covers};
pub use memory::{Memory, Window};
pub use packed::{PackedDescriptor, PackedRing};
pub use queue::{Buffer, Queue, Ring, Table, Used};
pub use split::{Descriptor, SplitRing};
pub use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use std::time::Duration;

/// How long a back end may take for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Feature bits of the device: VIRTIO 1.3 clauses 5.6.3 and 6, and the vhost-user ones.
pub mod feature {
    /// SCSI: one command may have data both ways.
    pub const INOUT: u64 = 1 << 0;
    /// SCSI: events tell of logical units that come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// SCSI: events tell of changed parameters.
    pub const CHANGE: u64 = 1 << 2;
    /// SCSI: protection information.
    pub const T10_PI: u64 = 1 << 3;
    /// vhost: the back end logs what it writes.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Descriptor tables outside the ring.
    pub const INDIRECT: u64 = 1 << 28;
    /// Notifications at an index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features follow.
    pub const PROTOCOL: u64 = 1 << 30;
    /// A device of VIRTIO 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device is behind the platform's IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed or was closed.
    #[error("the vhost-user socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The back end broke the protocol, or refused a message.
    #[error("vhost-user: {0}")]
    Vhost(#[from] vhost::Error),
    /// The back end answered a message with an error.
    #[error("the back end refused message {request}: it answered {answer:#x}")]
    Refused {
        /// Number of the message.
        request: u32,
        /// The answer: not zero.
        answer: u64,
    },
    /// The back end answered something else than what was asked.
    #[error("an answer to message {found} came where {expected} was waited for")]
    Unexpected {
        /// The message that was asked.
        expected: u32,
        /// The message that was answered.
        found: u32,
    },
    /// The back end does not offer what the test needs.
    #[error("the back end offers features {offered:#x}, of which {missing:#x} is missing")]
    Missing {
        /// What it offers.
        offered: u64,
        /// What it should offer as well.
        missing: u64,
    },
    /// Guest memory could not be made.
    #[error("guest memory: {0}")]
    Memory(String),
    /// An address is not in guest memory.
    #[error("{bytes} bytes at {address:#x} are not in one region of guest memory")]
    Outside {
        /// Guest physical address.
        address: u64,
        /// Bytes from there.
        bytes: u64,
    },
    /// A region of guest memory is used up.
    #[error("no {0} bytes are left in the region")]
    Exhausted(u64),
    /// The ring has too few free descriptors.
    #[error("the ring has {free} free descriptors, {needed} are needed")]
    Full {
        /// Free descriptors.
        free: u16,
        /// Descriptors that the chain takes.
        needed: usize,
    },
    /// The back end used a descriptor that was not available, or used it twice.
    #[error("the back end returned descriptor {0}, which it did not own")]
    NotOwned(u32),
    /// Nothing came in [`TIMEOUT`].
    #[error("the back end did not complete a request within {} s", TIMEOUT.as_secs())]
    Timeout,
}
