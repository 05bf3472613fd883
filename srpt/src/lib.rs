//! SRP over RDMA: a target that initiators reach by RDMA/CM on InfiniBand, RoCE and iWARP.
//!
//! # One command, end to end
//!
//! A CMD arrives in a receive buffer. [`conn::Conn::poll`] takes a batch of such completions;
//! [`channel::Channel::receive`] parses each once, counts its credit, copies its descriptors into
//! the list of a slot and says what to do: hand a `libsrp::Command` to the core, named by the slot.
//! The receive buffer is free again then.
//!
//! For a WRITE the engine asks for data with a pool buffer. Immediate data is copied from the
//! receive buffer; otherwise RDMA Reads bring it from the segments straight into the pool buffer.
//! For a READ the engine's completion has the data in a pool buffer, which RDMA Writes carry to the
//! segments; the response follows in the same chain of work requests, and cannot overtake them. At
//! the end of the turn everything that was gathered is posted at once.
//!
//! # Before and after
//!
//! A [`portal::Listener`] takes requests for connections and deals them out over the reactors. Each
//! is a login ([`login`]), and an [`applicant::Applicant`] asks [`shared`] whether it may come in and
//! the [`registry`] for a place: it becomes a [`conn::Conn`], or waits until the channels that it
//! replaces have ended. Channels with the same port identifiers are one I_T nexus, which lives as
//! long as one of them.
//!
//! Not here: InfiniBand's own connection manager and device management, which librdmacm does not
//! give; AER_REQ, since unit attentions are reported by CHECK CONDITION; commands that move data
//! both ways, which are refused.

pub mod applicant;
pub mod buffer;
pub mod channel;
pub mod conn;
pub mod endpoint;
pub mod functions;
pub mod link;
pub mod login;
pub mod names;
pub mod portal;
pub mod registry;
pub mod shared;
