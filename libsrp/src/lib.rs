//! SRP and VIOSRP on the wire, and the currency of a SCSI target.
//!
//! Whatever the fabric, a target receives a [`Command`] or a [`TaskManagement`] and gives back a
//! [`Response`]. For an SRP initiator or a partition these are parsed from information units
//! ([`iu::InitiatorIu`], [`rsp::Rsp`]); for iSCSI and virtio-scsi the transport fills the same
//! plain values directly. What surrounds an information unit between partitions is in [`viosrp`].
//!
//! Nothing here allocates, reads a clock or panics on a peer's bytes. `parse` makes every check;
//! nobody checks again. Codes without a name are kept as numbers. Layouts follow the T10 SRP
//! standard with the SRP2 immediate data that Linux uses, and LoPAR for VIOSRP.
//!
//! [`channel`] is the target's half of a channel as a value: login, credit, and what each unit asks
//! for. Not here: InfiniBand device management.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod aer;
pub mod channel;
pub mod cmd;
pub mod credit;
mod currency;
pub mod descriptor;
pub mod iu;
pub mod login;
pub mod logout;
pub mod opcode;
pub mod rsp;
pub mod tsk_mgmt;
pub mod viosrp;
pub mod wire;

#[cfg(test)]
mod testing;

pub use currency::{
    Command, Lun, Residual, Response, ResponseCode, SENSE_MAX, SenseData, Status, Tag,
    TaskAttribute, TaskFunction, TaskManagement,
};
