//! The other side: connects to a listener, for programs that test one.
//!
//! Unlike the rest of the crate it waits.
#![allow(unsafe_code)] // Connection manager calls on ids this module makes, and C's address format.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdma_sys::{rdma_cm_event, rdma_cm_event_type, rdma_port_space};
use thiserror::Error;

use crate::{
    connection::{Connection, Setup},
    error::RdmaError,
    listener::{Channel, Id, MOST_PRIVATE, Request, to_storage},
    memory::Registered,
    table::table,
};

/// A connection that the peer accepted.
#[derive(Debug)]
pub struct Dialed<O: Registered> {
    /// The connection.
    pub connection: Connection<O>,
    /// Private data of the acceptance.
    pub private: Vec<u8>,
}

/// No connection was made.
#[derive(Debug, Error)]
pub enum DialError {
    /// A call failed.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
    /// The peer turned this side away.
    #[error("rejected with status {status}")]
    Rejected {
        /// Reason of the connection manager: 28 over InfiniBand when the peer gave private data.
        status: i32,
        /// Private data of the rejection.
        private: Vec<u8>,
    },
    /// Something else came than what was waited for.
    #[error("event {event} with status {status} instead of {wanted}")]
    Event {
        /// `enum rdma_cm_event_type`.
        event: u32,
        /// Its status.
        status: i32,
        /// What was waited for.
        wanted: u32,
    },
    /// Nothing came in time.
    #[error("no answer within the time allowed")]
    TimedOut,
}

/// Connects to `address` with private data of at most 56 bytes.
///
/// # Errors
/// There is no way to the peer, it rejects, or `limit` passes.
pub fn dial<O: Registered>(
    address: SocketAddr,
    private: &[u8],
    setup: &Setup,
    limit: Duration,
) -> Result<Dialed<O>, DialError> {
    use rdma_cm_event_type as event;
    let until = Instant::now() + limit;
    let table = table().map_err(RdmaError::from)?;
    let channel = Arc::new(Channel::new()?);
    let mut raw = std::ptr::null_mut();
    // SAFETY: an open channel, a place for the id.
    let made = unsafe {
        (table.rdma_create_id)(
            channel.raw(),
            &raw mut raw,
            std::ptr::null_mut(),
            rdma_port_space::RDMA_PS_TCP,
        )
    };
    if made != 0 {
        return Err(RdmaError::last("making a connection manager id").into());
    }
    let id = Id { table, raw, channel: Arc::clone(&channel) };
    let mut storage = to_storage(address);
    // SAFETY: an id just made, an address that outlives the call.
    let asked = unsafe {
        (table.rdma_resolve_addr)(raw, std::ptr::null_mut(), (&raw mut storage).cast(), 2000)
    };
    if asked != 0 {
        return Err(RdmaError::last("finding the way to the peer").into());
    }
    wait(&channel, event::RDMA_CM_EVENT_ADDR_RESOLVED, until)?;
    // SAFETY: an id whose address is resolved.
    if unsafe { (table.rdma_resolve_route)(raw, 2000) } != 0 {
        return Err(RdmaError::last("finding a route to the peer").into());
    }
    wait(&channel, event::RDMA_CM_EVENT_ROUTE_RESOLVED, until)?;
    let mut connection =
        Connection::open(Request::of(id, channel), setup).map_err(|(error, _)| error)?;
    connection.connect(private)?;
    let channel = Arc::clone(connection.channel());
    let private = wait(&channel, event::RDMA_CM_EVENT_ESTABLISHED, until)?;
    Ok(Dialed { connection, private })
}

/// Waits for one kind of event, and gives its private data.
fn wait(
    channel: &Channel,
    wanted: rdma_cm_event_type::Type,
    until: Instant,
) -> Result<Vec<u8>, DialError> {
    loop {
        let found = channel
            .next(|event| {
                let private = private_data(event);
                match event.event {
                    kind if kind == wanted && event.status == 0 => Ok(private),
                    rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => {
                        Err(DialError::Rejected { status: event.status, private })
                    }
                    kind => Err(DialError::Event { event: kind, status: event.status, wanted }),
                }
            })
            .map_err(|reason| RdmaError::Call { what: "asking for events", reason })?;
        if let Some(result) = found {
            return result;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DialError::TimedOut);
        }
        // SAFETY: the channel, and with it the descriptor, outlives the wait.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(channel.fd()) };
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                let reason = io::Error::from(error);
                return Err(RdmaError::Call { what: "waiting for events", reason }.into());
            }
        }
    }
}

fn private_data(event: &rdma_cm_event) -> Vec<u8> {
    // SAFETY: events of connection-oriented ids have connection parameters.
    let parameters = unsafe { event.param.conn };
    let len = usize::from(parameters.private_data_len).min(MOST_PRIVATE);
    if parameters.private_data.is_null() {
        return Vec::new();
    }
    // SAFETY: the event has that many bytes of private data until it is acknowledged.
    unsafe { std::slice::from_raw_parts(parameters.private_data.cast::<u8>(), len) }.to_vec()
}
