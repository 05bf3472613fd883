//! SRP and VIOSRP on the wire, and the currency of a SCSI target.
//!
//! Whatever the fabric, a target receives a [`Command`] or a [`TaskManagement`] and gives back a
//! [`Response`]. For an SRP initiator or a partition these are parsed from information units; for
//! iSCSI and virtio-scsi the transport fills the same plain values directly.
//!
//! Nothing here allocates, reads a clock or panics on a peer's bytes.

#![no_std]
#![forbid(unsafe_code)]

mod currency;

pub use currency::{
    Command, Lun, Residual, Response, ResponseCode, SENSE_MAX, SenseData, Status, Tag,
    TaskAttribute, TaskFunction, TaskManagement,
};
