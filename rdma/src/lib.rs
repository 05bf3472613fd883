//! The one place of vscsi that speaks RDMA verbs: listeners, connections and memory registration
//! over InfiniBand, RoCE and iWARP, as safe values.
//!
//! Types and inline functions come from rdma-sys; everything else is called through a table
//! ([`libraries`]) that is filled by `dlopen` when RDMA is first used. So a program that links this
//! crate starts on machines without rdma-core, and says what is missing only when it is asked for
//! RDMA.
//!
//! A [`Connection`] belongs to one thread. It owns its queue pair, its completion queue, its
//! connection manager events, its receive buffers, and everything that work requests in progress
//! point to: what is given to [`Connection::write`] or [`Connection::read`] comes back or is dropped
//! when the device is done with it, and never before. Nothing here waits, except for the kernel
//! while resources are made and destroyed. No byte that a peer sends can make it panic.

mod connection;
mod device;
mod dial;
mod error;
mod facts;
mod listener;
mod memory;
mod queue;
mod receive;
mod table;

pub use connection::{Connection, Counters, Done, Event, Setup};
pub use device::{Device, Registration};
pub use dial::{DialError, Dialed, dial};
pub use error::{ListenError, RdmaError, TooLong, WorkError};
pub use facts::{DeviceFacts, PortFacts, Problem, Usability, devices, usability};
pub use listener::{Listener, Request};
pub use memory::{Local, Registered, Remote};
pub use queue::SendFlags;
pub use receive::Buffer;
pub use table::{Missing, libraries};
