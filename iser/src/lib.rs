//! iSER (RFC 7145): iSCSI whose data moves by RDMA.
//!
//! Sessions, connections and logins are those of the `iscsi` crate. What is here is their datamover,
//! [`mover::Iser`], over a connection of the `rdma` crate, and portals that accept over RDMA.
//!
//! # One command, end to end
//!
//! An initiator connects by the connection manager, says what it can do ([`greeting`]), and logs in:
//! unlike in the RFC's first use, from the first Login Request on every PDU is a message (RDMA Send)
//! with an iSER [`header`] in front. The receive buffers of full feature phase are there from the
//! beginning, since initiators send commands right behind the last Login Response.
//!
//! A READ brings the key and the address of the memory its data goes to. When the command completes,
//! [`mover::Iser`] writes the data there out of the buffer it was read into (an RDMA Write), and sends
//! the SCSI Response behind it; both are posted together at the end of the turn. Data-In PDUs and
//! status in them do not exist. Where both sides can, the response takes the initiator's key back
//! (Send with Invalidate).
//!
//! A WRITE brings the key and the address its data is at, but for what came with the command. The
//! pool buffer of the task goes to the device, which reads into it, and comes back when all is there.
//! [`source`] knows what address that is, on which Linux and the RFC disagree. R2Ts and solicited
//! Data-Out do not exist.
//!
//! # What Linux does not say
//!
//! It has posted 128 bytes for the data of a PDU to it, so that sense data, ping data and texts of a
//! normal session are cut to that. Its login fails on keys it does not know, so the target declares
//! none that were not asked for.
//!
//! # Not supported
//!
//! Bidirectional commands (no disk command is one), several connections a session, zero-based
//! addresses, error recovery above level 0, login over TCP before the change to RDMA.

pub mod endpoint;
pub mod greeting;
pub mod header;
pub mod memory;
pub mod message;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod mover;
pub mod portal;
pub mod source;
pub mod verbs;
