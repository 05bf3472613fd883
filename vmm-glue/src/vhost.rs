//! The vhost-user front door: a controller as a Unix socket that a VMM plugs into.
//!
//! A [`Server`] is one socket of one controller. Its thread accepts a VMM, answers its messages, and
//! tells the queues on the reactors what they mean; when the VMM is gone it waits for the next one.
//! A second VMM waits until the first is gone. The controller, its nexuses and its queues outlive the
//! connection, so a VMM that connects again finds everything as it was.
//!
//! * A ring starts with SET_VRING_KICK, as soon as its size, its addresses and the memory are known,
//!   and takes requests when it is enabled. The available ring is looked at without waiting for a
//!   notification.
//! * GET_VRING_BASE, RESET_DEVICE and the end of the connection finish what is in flight first. So do
//!   a new memory table and a new dirty log on a ring that runs; the answer follows afterwards.
//! * Images that move between processes are taken over before the first ring starts, and given up
//!   when the last one has stopped. While another process has one, the rings wait.
//! * A message that is broken closes this connection and nothing else. A message that cannot be done
//!   is answered with an error if the VMM asked for an answer, and closes the connection if not.
//! * Messages that a VMM sends though they were not negotiated are tolerated: SET_STATUS, GET_STATUS,
//!   SET_LOG_FD, SEND_RARP, SET_VRING_ENDIAN (little), a descriptor with REM_MEM_REG, feature bits
//!   that were not offered, accesses beyond the end of the configuration space, and any unknown
//!   request.
//!
//! The vhost-user specification names the messages; `vhost` reads most of them from the socket.

mod connection;
mod device;
mod fault;
mod transfer;
mod vring;

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
pub use device::PROTOCOL;

/// Serves the VMMs that connect to a socket, one after the other.
///
/// # Errors
/// When the system gives no thread.
pub fn listen(listener: UnixListener, controller: Arc<Controller>) -> io::Result<Server> {
    Server::listen(VHOST_USER, listener, controller)
}

/// Serves the one VMM at the other end of a socket; [`Server::wait`] tells its end.
///
/// # Errors
/// When the system gives no thread.
pub fn connected(stream: UnixStream, controller: Arc<Controller>) -> io::Result<Server> {
    Server::connected(VHOST_USER, stream, controller)
}

fn serve(
    stream: UnixStream,
    controller: &Arc<Controller>,
    running: &Arc<AtomicU16>,
) -> Result<(), Broken> {
    let device = device::Device::new(Arc::clone(controller), Arc::clone(running));
    Ok(connection::serve(stream, device)?)
}

const VHOST_USER: Protocol = Protocol { name: "vhost-user", serve };
