//! iSCSI (RFC 7143) over the command core.
//!
//! # One command, end to end
//!
//! A READ of 4 KiB arrives in a TCP segment with others. The reactor calls
//! [`session::Session::ready`] with the number of the connection, whose datamover [`tcp::Tcp`] takes
//! everything that is there into the buffer all endpoints of the reactor share, with one `readv`.
//! It walks over the bytes PDU by PDU: [`pdu::Frame`] gives the lengths, the header digest is
//! checked, and [`session::receive`] parses a [`pdu::ScsiCommand`] once. [`session::command`] judges
//! its CmdSN by the [`session::window`], enters the task in a slab, and hands the core a
//! `libsrp::Command` by `Engine::submit`, named by a cookie of slot and generation.
//!
//! In the same turn or later the engine completes it. [`session::reply`] finds the task by the
//! cookie, and the datamover cuts the data into Data-In PDUs by what the initiator receives, and puts
//! GOOD into the last one. [`output::Output`] keeps the 48-byte headers in an arena and only points
//! at the data, which stays in the core's memory until it is sent. When the turn ends, one `sendmsg`
//! takes all PDUs of all commands that completed in it.
//!
//! A WRITE differs in the middle: the engine answers `NeedsData` with a buffer, and
//! [`session::transfer`] fills it with immediate data, unsolicited Data-Out and what R2Ts bring;
//! the rest of a long data segment is received straight into it.
//!
//! # The datamover
//!
//! Sessions and logins are generic over [`datamover::Datamover`], which carries PDUs and data of a
//! connection. What is a matter of sequence numbers, tasks and phases is theirs; what is a matter of
//! bytes on a wire is the datamover's: digests, R2Ts and Data-In PDUs over TCP, RDMA over iSER.
//!
//! # Before and after
//!
//! A [`portal::Listener`] accepts and deals connections out over the reactors. Each is an
//! [`applicant::Applicant`] that drives the [`login`] state machine, and when that is satisfied asks
//! the [`registry`]: it becomes a [`session::Session`] in place, waits until a session it
//! replaces has ended, or is posted to the reactor of the session it joins. Error recovery level
//! is 0: the loss of a connection is the loss of its session, whose tasks end before anybody who
//! logs in anew gets the final response.

pub mod applicant;
pub mod chap;
pub mod conn;
pub mod datamover;
pub mod digest;
pub mod discovery;
pub mod endpoint;
pub mod exchange;
pub mod keys;
pub mod login;
pub mod names;
pub mod negotiate;
pub mod output;
pub mod pdu;
pub mod portal;
pub mod registry;
pub mod session;
pub mod shared;
pub mod tcp;
pub mod text;
