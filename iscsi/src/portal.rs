//! Portals: the addresses that initiators connect to, and the listeners behind them.

use crate::{endpoint::Seed, negotiate::Transport, registry::Place, shared::Shared};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use vscsi_target::reactor::Cx;

/// The port of iSCSI targets (RFC 7143 clause 14).
pub const PORT: u16 = 3260;

/// A portal.
#[derive(Debug)]
pub struct Portal {
    /// Where it listens.
    pub address: SocketAddr,
    /// Tag of its portal group.
    pub tag: u16,
    /// What initiators reach it over.
    pub transport: Transport,
    half_open: AtomicUsize,
}

impl Portal {
    /// A portal on which nothing is open yet.
    pub fn new(address: SocketAddr, tag: u16, transport: Transport) -> Arc<Self> {
        Arc::new(Self { address, tag, transport, half_open: AtomicUsize::new(0) })
    }

    /// Whether an initiator that came in at `local` can reach it: the same address family, and
    /// loopback only from loopback.
    pub fn is_reachable_like(&self, local: SocketAddr) -> bool {
        let (own, local) = (self.address.ip().to_canonical(), local.ip().to_canonical());
        own.is_ipv4() == local.is_ipv4()
            && (own.is_unspecified() || own.is_loopback() == local.is_loopback())
    }

    /// Connections that have not finished login.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }
}

/// A portal cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {reason}")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub reason: io::Error,
}

impl BindError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self.reason.kind() {
            io::ErrorKind::AddrInUse => format!(
                "find who listens there (ss -ltnp 'sport = :{}'), or choose another port",
                self.address.port()
            ),
            io::ErrorKind::AddrNotAvailable => {
                "choose an address of this host (ip address), or 0.0.0.0 or [::]".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "choose a port above 1023, or grant CAP_NET_BIND_SERVICE".to_owned()
            }
            _ => "choose another address".to_owned(),
        }
    }
}

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Bound {
    /// The portal.
    pub portal: Arc<Portal>,
    socket: TcpListener,
}

impl Bound {
    /// Binds and listens. An IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can be
    /// used beside each other.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(address: SocketAddr, tag: u16) -> Result<Self, BindError> {
        let socket = bound_socket(address).map_err(|reason| BindError { address, reason })?;
        let address = socket.local_addr().map_err(|reason| BindError { address, reason })?;
        Ok(Self { portal: Portal::new(address, tag, Transport::Tcp), socket })
    }

    /// What makes the listener on a reactor.
    pub fn seed(self, shared: Arc<Shared>) -> Seed {
        Seed::Listener(ListenerSeed { shared, bound: self })
    }
}

/// A listener on its way to its reactor.
#[derive(Debug)]
pub struct ListenerSeed {
    shared: Arc<Shared>,
    bound: Bound,
}

fn bound_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(1024)?)?;
    Ok(TcpListener::from(fd))
}

/// Holds a place among the connections of a portal that have not finished login.
pub struct HalfOpen {
    portal: Arc<Portal>,
}

impl HalfOpen {
    /// A place, unless `limit` of them are taken.
    pub fn take(portal: &Arc<Portal>, limit: usize) -> Option<Self> {
        let before = portal.half_open.fetch_add(1, Ordering::Relaxed);
        let place = Self { portal: Arc::clone(portal) };
        (before < limit).then_some(place)
    }

    /// The portal.
    pub fn portal(&self) -> &Arc<Portal> {
        &self.portal
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.portal.half_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for HalfOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.portal, f)
    }
}

/// The endpoint of a portal: accepts connections and deals them out over the reactors.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    portal: Arc<Portal>,
    socket: TcpListener,
    next: u16,
    paused: bool,
}

/// Connections accepted in one turn.
const BATCH: usize = 64;

/// How long accepting rests when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Listener {
    /// Starts to accept. `None` when the socket cannot be watched.
    pub fn open(seed: ListenerSeed, cx: &mut Cx<'_>) -> Option<Self> {
        let ListenerSeed { shared, bound: Bound { portal, socket } } = seed;
        if shared.is_stopping() {
            return None;
        }
        if let Err(error) = cx.watch(socket.as_raw_fd(), 0, true, false) {
            tracing::error!(address = %portal.address, %error, "cannot watch a listener");
            return None;
        }
        shared.add_portal(Arc::clone(&portal));
        shared.enter(Place { reactor: cx.reactor, endpoint: cx.me });
        Some(Self { shared, portal, socket, next: cx.reactor, paused: false })
    }

    /// Connections wait.
    pub fn ready(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..BATCH {
            match self.socket.accept() {
                Ok((stream, peer)) => self.accepted(stream, peer),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Out of descriptors or memory: the backlog waits.
                        tracing::warn!(address = %self.portal.address, %error, "cannot accept");
                        self.paused = cx.rewatch(self.socket.as_raw_fd(), 0, false, false).is_ok();
                        cx.wake_at(cx.now + PAUSE.as_nanos() as u64);
                        return;
                    }
                },
            }
        }
    }

    /// The pause is over.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        if self.paused && cx.rewatch(self.socket.as_raw_fd(), 0, true, false).is_ok() {
            self.paused = false;
        }
    }

    /// Accepts no more.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        cx.unwatch(self.socket.as_raw_fd());
        self.shared.remove_portal(&self.portal);
        self.shared.leave(Place { reactor: cx.reactor, endpoint: cx.me });
        cx.close();
    }

    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Some(slot) = HalfOpen::take(&self.portal, self.shared.limits.half_open) else {
            tracing::debug!(%peer, "too many connections in login");
            return;
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%peer, %error, "connection lost before login");
            return;
        }
        let local = stream.local_addr().unwrap_or(self.portal.address);
        let seed = Seed::Connection(crate::applicant::Arrival {
            shared: Arc::clone(&self.shared),
            link: stream.into(),
            peer,
            local,
            slot,
        });
        let reactors = self.shared.router.reactors().max(1);
        self.shared.router.open(self.next % reactors, seed);
        self.next = (self.next + 1) % reactors;
    }
}

/// Socket options of every connection.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &10)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    // Data that a peer does not acknowledge for this long (ms) ends the connection.
    setsockopt(stream, sockopt::TcpUserTimeout, &30_000)?;
    Ok(())
}
