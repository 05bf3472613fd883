//! Portals: the addresses that initiators connect to, and the listeners behind them.

use crate::{applicant::Arrival, endpoint::Seed, registry::Place, shared::Shared};
use rdma::{ListenError, Request};
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use vscsi_target::reactor::Cx;

/// A portal.
#[derive(Debug)]
pub struct Portal {
    /// Where it listens.
    pub address: SocketAddr,
    half_open: AtomicUsize,
}

impl Portal {
    /// Connections that are not established.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }
}

/// An address that is listened on, but where nobody is accepted yet.
#[derive(Debug)]
pub struct Bound {
    /// The portal.
    pub portal: Arc<Portal>,
    listener: rdma::Listener,
}

impl Bound {
    /// Listens by RDMA/CM: on InfiniBand, RoCE or iWARP, whichever the address belongs to.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = rdma::Listener::bind(address, BACKLOG)?;
        let address = listener.address();
        Ok(Self { portal: Arc::new(Portal { address, half_open: AtomicUsize::new(0) }), listener })
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

/// Holds a place among the connections of a portal that are not established.
pub struct HalfOpen {
    portal: Arc<Portal>,
}

impl HalfOpen {
    fn take(portal: &Arc<Portal>, limit: usize) -> Option<Self> {
        let before = portal.half_open.fetch_add(1, Ordering::Relaxed);
        let place = Self { portal: Arc::clone(portal) };
        (before < limit).then_some(place)
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

/// The endpoint of a portal: takes requests for connections and deals them out over the reactors, so
/// that the channels of a nexus are spread.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    portal: Arc<Portal>,
    listener: rdma::Listener,
    next: u16,
    paused: bool,
}

/// Requests taken in one turn.
const BATCH: usize = 64;

/// Requests that the connection manager keeps.
const BACKLOG: i32 = 1024;

/// How long the listener rests when it cannot take requests, or its device is away.
const PAUSE: Duration = Duration::from_millis(500);

impl Listener {
    /// Starts to accept. `None` when the listener cannot be watched.
    pub fn open(seed: ListenerSeed, cx: &mut Cx<'_>) -> Option<Self> {
        let ListenerSeed { shared, bound: Bound { portal, listener } } = seed;
        if shared.is_stopping() {
            return None;
        }
        if let Err(error) = cx.watch(listener.fd(), 0, true, false) {
            tracing::error!(address = %portal.address, %error, "cannot watch a listener");
            return None;
        }
        shared.enter(Place { reactor: cx.reactor, endpoint: cx.me });
        Some(Self { shared, portal, listener, next: cx.reactor, paused: false })
    }

    /// Requests wait, or the device has gone.
    pub fn ready(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..BATCH {
            match self.listener.accept() {
                Ok(Some(request)) => self.asked(request),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(address = %self.portal.address, %error, "cannot accept");
                    self.paused = cx.rewatch(self.listener.fd(), 0, false, false).is_ok();
                    cx.wake_at(cx.now + PAUSE.as_nanos() as u64);
                    return;
                }
            }
        }
        if self.listener.is_away() {
            tracing::warn!(address = %self.portal.address, "the RDMA device of a portal is gone");
            cx.wake_at(cx.now + PAUSE.as_nanos() as u64);
        }
    }

    /// The pause is over.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        if self.paused && cx.rewatch(self.listener.fd(), 0, true, false).is_ok() {
            self.paused = false;
        }
        if self.listener.is_away() {
            match self.listener.listen_again() {
                Ok(()) => tracing::info!(address = %self.portal.address, "listening again"),
                Err(_) => cx.wake_at(cx.now + PAUSE.as_nanos() as u64),
            }
        }
    }

    /// Accepts no more.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        cx.unwatch(self.listener.fd());
        self.shared.leave(Place { reactor: cx.reactor, endpoint: cx.me });
        cx.close();
    }

    fn asked(&mut self, request: Request) {
        let Some(slot) = HalfOpen::take(&self.portal, self.shared.limits.half_open) else {
            tracing::debug!(peer = %request.peer(), "too many connections in login");
            return;
        };
        let seed = Seed::Login(Arrival { shared: Arc::clone(&self.shared), request, slot });
        let reactors = self.shared.router.reactors().max(1);
        self.shared.router.open(self.next % reactors, seed);
        self.next = (self.next + 1) % reactors;
    }
}
