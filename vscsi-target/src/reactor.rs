//! Reactors: one thread a core, each with an event manager, one io_uring, its buffer pool and its
//! share of the endpoints (connections, sessions, rings).
//!
//! While work arrives a reactor polls; after a short adaptive while it sleeps, so that an idle
//! target costs no CPU. Everything an endpoint does happens on its reactor, in batches: events in,
//! completions out, one flush an endpoint at the end of each turn.

mod devices;
pub mod dma;
mod inbox;
pub(crate) mod pages;
mod poller;
pub mod pool;
pub mod postbox;
pub mod ring;
pub mod sg;
mod slab;
mod spin;
mod timers;
pub mod turn;
pub mod workers;

pub use devices::Devices;
pub use inbox::Inbox;
pub use postbox::{Mail, Postboxes};
pub use turn::{Cx, Endpoint, EndpointId, Reactor, Ready};
