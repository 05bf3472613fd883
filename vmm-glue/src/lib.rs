//! What a VMM plugs into: guest memory, rings, the virtio-scsi device with its front doors, vhost-user
//! and vfio-user, a virtual SCSI server for partitions ([`crq`]), and the kernel's backstores in user space
//! ([`tcmu`]).
//!
//! A [`controller::Controller`] is one virtio-scsi device. Each of its virtqueues is an endpoint of a
//! reactor ([`queue::Queue`]), which takes requests from a [`ring::Ring`] in batches, hands them to
//! the command core with the guest's own memory, and publishes what is done once a turn. How a VMM
//! describes memory and rings is the front door's business; the device does not know which door it
//! stands behind.

pub mod controller;
pub mod crq;
pub mod door;
pub mod embed;
pub mod memory;
pub mod queue;
pub mod ring;
pub mod scsi;
pub mod tcmu;
pub mod vfio_user;
pub mod vhost;
