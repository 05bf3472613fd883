//! A virtual SCSI server for partitions: the hypervisor's command/response queue (CRQ) and what goes
//! over it, as IBM's `ibmvscsi` clients have it (LoPAR, "Virtual SCSI").
//!
//! A VMM embeds an [`Adapter`] for each virtual adapter of a partition. It gives it the partition's
//! memory by a [`Window`], and passes on the hypervisor calls of the client: H_REG_CRQ, H_FREE_CRQ,
//! H_SEND_CRQ, H_ENABLE_CRQ, H_VIO_SIGNAL to the adapter, H_PUT_TCE and its relatives to the window.
//! The adapter writes responses and events into the client's queue itself, and raises interrupts by
//! what it was given for that; a VMM that has the queue elsewhere takes elements as a [`Partner`].
//!
//! Behind it a [`Server`] is an endpoint of a reactor, with the same command core and logical units as
//! every other transport. [`crate::embed`] starts reactors for who has none.
//!
//! The connection as a value is in [`session`]: it needs no memory, and is what the fuzzer and most
//! tests work on.

mod adapter;
mod config;
mod hcall;
mod mailbox;
mod queue;
mod server;
pub mod session;
mod shared;
mod watch;
mod window;

pub use adapter::{Adapter, Router, SavedQueue, Stats};
pub use config::{Config, OsType};
pub use hcall::Hcall;
pub use libsrp::viosrp::crq::TransportEvent;
pub use queue::{Delivered, Delivery, Interrupt, Partner};
pub use server::{Note, Seed, Server};
pub use window::{Access, Fault, Window};
