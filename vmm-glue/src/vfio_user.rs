//! The vfio-user front door: a controller as a PCI function that a VMM plugs in.
//!
//! A [`Server`] is one socket of one controller, as in [`crate::vhost`]; the VMM at its other end (the
//! client) finds a virtio-scsi function of VIRTIO 1 on PCI, whose registers are served here and whose
//! queues are those of every other door.
//!
//! * The registers are in BAR 0, reached by messages. MSI-X, with a vector for each queue and one for
//!   the configuration, is in BAR 1; INTx works too. Doorbells can be had as ioeventfds.
//! * Interrupts of a vector go from the reactor straight to the client's eventfd.
//! * Memory is what the client maps with a descriptor, at the addresses that the guest's device
//!   drivers use: those of the IOMMU, where there is one. Mapping and unmapping does not stop the
//!   queues; an unmapping is answered when no request in flight uses the memory.
//! * Memory without a descriptor is carried by DMA_READ and DMA_WRITE to a copy that the queue works on,
//!   and back. Reactors do not wait for that; the connection's thread does.
//! * A reset by the driver is complete when the device status reads 0, a reset by the client when it is
//!   answered: all requests in flight are finished then.
//! * What cannot be is answered with an errno. What is no message, and anything before the version,
//!   closes this connection and nothing else. The next client finds a device that was reset.
//! * No client moves a device to another process, so the messages for that are refused.
//!
//! The specification of the protocol comes with libvfio-user and QEMU.

mod carry;
mod connection;
mod courier;
mod device;
mod irq;
mod memory;
mod message;
mod pci;
mod socket;
mod virtio;

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, atomic::AtomicU16},
};

pub use crate::door::{Server, Status};
use crate::{
    controller::Controller,
    door::{Broken, Protocol},
};

/// Serves the VMMs that connect to a socket, one after the other.
///
/// # Errors
/// When the system gives no thread.
pub fn listen(listener: UnixListener, controller: Arc<Controller>) -> io::Result<Server> {
    Server::listen(VFIO_USER, listener, controller)
}

/// Serves the one VMM at the other end of a socket; [`Server::wait`] tells its end.
///
/// # Errors
/// When the system gives no thread.
pub fn connected(stream: UnixStream, controller: Arc<Controller>) -> io::Result<Server> {
    Server::connected(VFIO_USER, stream, controller)
}

fn serve(
    stream: UnixStream,
    controller: &Arc<Controller>,
    running: &Arc<AtomicU16>,
) -> Result<(), Broken> {
    let device = device::Device::new(Arc::clone(controller), Arc::clone(running))?;
    Ok(connection::serve(stream, device)?)
}

const VFIO_USER: Protocol = Protocol { name: "vfio-user", serve };
