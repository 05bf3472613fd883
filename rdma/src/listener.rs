//! Listeners, and the connect requests that come to them.
#![allow(unsafe_code)] // Handles of C, and unions that the kind of event tells apart.

use std::{
    fmt, io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::RawFd,
    sync::Arc,
};

use rdma_sys::{
    rdma_cm_event, rdma_cm_event_type, rdma_cm_id, rdma_event_channel, rdma_port_space,
};

use crate::{
    device::Device,
    error::{ListenError, RdmaError},
    table::{Table, table},
};

/// The most private data a connect request carries: iWARP's; InfiniBand has 56 bytes of it left.
pub(crate) const MOST_PRIVATE: usize = 512;

/// A nonblocking channel for the events of ids.
pub(crate) struct Channel {
    table: &'static Table,
    raw: *mut rdma_event_channel,
}

// SAFETY: a descriptor, in effect: librdmacm lets any thread use it.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    pub(crate) fn new() -> Result<Self, RdmaError> {
        let table = table()?;
        // SAFETY: no arguments.
        let raw = unsafe { (table.rdma_create_event_channel)() };
        if raw.is_null() {
            return Err(RdmaError::last("opening the connection manager"));
        }
        let channel = Self { table, raw };
        channel.nonblocking().map_err(|reason| RdmaError::Call {
            what: "preparing the connection manager's events",
            reason,
        })?;
        Ok(channel)
    }

    fn nonblocking(&self) -> io::Result<()> {
        set_nonblocking(self.fd())
    }

    pub(crate) fn raw(&self) -> *mut rdma_event_channel {
        self.raw
    }

    pub(crate) fn fd(&self) -> RawFd {
        // SAFETY: a channel that is open.
        unsafe { (*self.raw).fd }
    }

    /// The next event, which `look` is shown; then it is acknowledged. `None` when there is none.
    pub(crate) fn next<R>(&self, look: impl FnOnce(&rdma_cm_event) -> R) -> io::Result<Option<R>> {
        let mut event = std::ptr::null_mut();
        // SAFETY: an open channel and a place for the event.
        if unsafe { (self.table.rdma_get_cm_event)(self.raw, &raw mut event) } != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: an event that is ours until it is acknowledged.
        let result = look(unsafe { &*event });
        // SAFETY: acknowledged once.
        unsafe { (self.table.rdma_ack_cm_event)(event) };
        Ok(Some(result))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: every id of the channel is gone: each holds it.
        unsafe { (self.table.rdma_destroy_event_channel)(self.raw) };
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({})", self.fd())
    }
}

pub(crate) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on a descriptor that the caller keeps open.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// An id and the channel of its events.
pub(crate) struct Id {
    pub(crate) table: &'static Table,
    pub(crate) raw: *mut rdma_cm_id,
    pub(crate) channel: Arc<Channel>,
}

// SAFETY: a handle that one thread at a time uses; librdmacm has no thread of its own.
unsafe impl Send for Id {}

impl Id {
    /// Moves the id to a channel of its own. Its events so far must have been acknowledged.
    pub(crate) fn migrate(&mut self, channel: Arc<Channel>) -> Result<(), RdmaError> {
        // SAFETY: both are open; no event of the id is outstanding.
        if unsafe { (self.table.rdma_migrate_id)(self.raw, channel.raw()) } != 0 {
            return Err(RdmaError::last("moving a connection's events"));
        }
        self.channel = channel;
        Ok(())
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: no queue pair of the id is left and all its events were acknowledged.
        unsafe { (self.table.rdma_destroy_id)(self.raw) };
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({:?})", self.channel)
    }
}

/// Listens for connections of the TCP port space.
#[derive(Debug)]
pub struct Listener {
    /// None while the device is away that the address belongs to.
    id: Option<Id>,
    channel: Arc<Channel>,
    address: SocketAddr,
    backlog: i32,
}

impl Listener {
    /// Listens on an address of an RDMA device, or with an unspecified address on all of them, also
    /// on those that come later.
    ///
    /// # Errors
    /// The address cannot be used; [`ListenError::fix`] says what to do.
    pub fn bind(address: SocketAddr, backlog: i32) -> Result<Self, ListenError> {
        let failed = |error| ListenError {
            address,
            reason: match error {
                RdmaError::Call { reason, .. } => reason,
                other => io::Error::new(io::ErrorKind::NotFound, other.to_string()),
            },
        };
        let channel = Arc::new(Channel::new().map_err(failed)?);
        let mut listener = Self { id: None, channel, address, backlog };
        listener.listen().map_err(|reason| ListenError { address, reason })?;
        Ok(listener)
    }

    fn listen(&mut self) -> io::Result<()> {
        let table = self.channel.table;
        let mut raw = std::ptr::null_mut();
        // SAFETY: an open channel, a place for the id.
        let made = unsafe {
            (table.rdma_create_id)(
                self.channel.raw(),
                &raw mut raw,
                std::ptr::null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let id = Id { table, raw, channel: Arc::clone(&self.channel) };
        let mut storage = to_storage(self.address);
        // SAFETY: an id just made, an address of its family.
        unsafe {
            if (table.rdma_bind_addr)(raw, (&raw mut storage).cast()) != 0
                || (table.rdma_listen)(raw, self.backlog) != 0
            {
                return Err(io::Error::last_os_error());
            }
            if let Some(bound) = from_storage(&(*raw).route.addr.src_addr_union.src_storage) {
                self.address.set_port(bound.port());
            }
        }
        self.id = Some(id);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Readable when there is something for [`Listener::accept`].
    pub fn fd(&self) -> RawFd {
        self.channel.fd()
    }

    /// Whether the device of the address was removed: nothing comes until
    /// [`Listener::listen_again`] succeeds.
    pub fn is_away(&self) -> bool {
        self.id.is_none()
    }

    /// Listens again after the device was removed.
    ///
    /// # Errors
    /// It is not back yet.
    pub fn listen_again(&mut self) -> io::Result<()> {
        if self.id.is_none() { self.listen() } else { Ok(()) }
    }

    /// The next connect request; `None` when there is none now.
    ///
    /// # Errors
    /// The connection manager cannot be asked.
    pub fn accept(&mut self) -> io::Result<Option<Request>> {
        // Events that are no requests end before the next one is looked at.
        loop {
            let own = self.id.as_ref().map_or(std::ptr::null_mut(), |id| id.raw);
            let channel = Arc::clone(&self.channel);
            let found = channel.next(|event| match event.event {
                rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST => {
                    Found::Request(Box::new(Request::new(event, &channel)))
                }
                rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => Found::Removed(event.id),
                _ => Found::Nothing,
            })?;
            match found {
                None => return Ok(None),
                Some(Found::Nothing) => {}
                Some(Found::Removed(id)) if id == own => self.id = None,
                Some(Found::Removed(id)) => Device::removed(id),
                Some(Found::Request(request)) => return Ok(Some(*request)),
            }
        }
    }
}

enum Found {
    Request(Box<Request>),
    Removed(*mut rdma_cm_id),
    Nothing,
}

/// A peer that wants to connect. Dropped, it is rejected without a reason.
pub struct Request {
    pub(crate) id: Id,
    /// The listener's, to which events of the device go.
    pub(crate) listener: Arc<Channel>,
    private: Box<[u8]>,
    peer: SocketAddr,
    local: SocketAddr,
    pub(crate) reads_allowed: u8,
}

impl Request {
    fn new(event: &rdma_cm_event, channel: &Arc<Channel>) -> Self {
        // SAFETY: events of connection-oriented ids have connection parameters.
        let parameters = unsafe { event.param.conn };
        let len = usize::from(parameters.private_data_len).min(MOST_PRIVATE);
        let private = if parameters.private_data.is_null() {
            Box::default()
        } else {
            // SAFETY: the event has that many bytes of private data until it is acknowledged.
            unsafe { std::slice::from_raw_parts(parameters.private_data.cast::<u8>(), len) }.into()
        };
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        // SAFETY: the id of a connect request, which is ours now, with both addresses set.
        let (local, peer) = unsafe {
            let addresses = &(*event.id).route.addr;
            (
                from_storage(&addresses.src_addr_union.src_storage),
                from_storage(&addresses.dst_addr_union.dst_storage),
            )
        };
        Self {
            id: Id { table: channel.table, raw: event.id, channel: Arc::clone(channel) },
            listener: Arc::clone(channel),
            private,
            peer: peer.unwrap_or(nowhere),
            local: local.unwrap_or(nowhere),
            reads_allowed: parameters.initiator_depth,
        }
    }

    /// An id that has no connection yet: of a request whose connection could not be made, or of this
    /// side's own. Its device's events go to `listener`.
    pub(crate) fn of(id: Id, listener: Arc<Channel>) -> Self {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            id,
            listener,
            private: Box::default(),
            peer: nowhere,
            local: nowhere,
            reads_allowed: 0,
        }
    }

    /// The private data of the request. The connection manager may have padded it.
    pub fn private_data(&self) -> &[u8] {
        &self.private
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address it came to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How many RDMA Reads the peer serves at a time.
    pub fn reads_allowed(&self) -> u8 {
        self.reads_allowed
    }

    /// The device it came by.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn device(&self) -> Result<Arc<Device>, RdmaError> {
        // SAFETY: the id of a connect request is bound to a device.
        unsafe { Device::of(self.id.raw, &self.listener) }
    }

    /// Turns the peer away with private data of at most 148 bytes.
    pub fn reject(self, private: &[u8]) {
        let len = private.len().min(MOST_REJECT);
        // SAFETY: the id of a request that was not answered; the data outlives the call.
        unsafe { (self.id.table.rdma_reject)(self.id.raw, private.as_ptr().cast(), len as u8) };
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Private data of a rejection over InfiniBand.
pub(crate) const MOST_REJECT: usize = 148;

/// A socket address as C has it.
pub(crate) fn to_storage(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: plain numbers and arrays.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in>();
            // SAFETY: the storage is large enough and aligned for any socket address.
            unsafe {
                (*to).sin_family = libc::AF_INET as libc::sa_family_t;
                (*to).sin_port = v4.port().to_be();
                (*to).sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            }
        }
        SocketAddr::V6(v6) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            unsafe {
                (*to).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                (*to).sin6_port = v6.port().to_be();
                (*to).sin6_addr.s6_addr = v6.ip().octets();
                (*to).sin6_scope_id = v6.scope_id();
            }
        }
    }
    storage
}

/// A socket address of C; `None` for other families.
pub(crate) fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is.
            let v4 = unsafe { &*from.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_c_and_back() {
        for text in ["10.9.0.1:3260", "[fe80::1%3]:5555", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_storage(&to_storage(address)), Some(address));
        }
        // SAFETY: plain numbers and arrays.
        assert_eq!(from_storage(&unsafe { mem::zeroed() }), None);
    }

    #[test]
    fn listening_without_a_device_says_what_to_do() {
        let Err(error) = Listener::bind("127.0.0.1:0".parse().unwrap(), 8) else { return };
        assert!(error.to_string().contains("127.0.0.1:0"), "{error}");
        assert!(!error.fix().is_empty());
    }
}
