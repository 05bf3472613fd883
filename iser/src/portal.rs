//! Portals over RDMA, and the listeners behind them.

use crate::{endpoint::Seed, mover::Link};
use iscsi::{
    applicant::Arrival,
    negotiate::Transport,
    portal::{HalfOpen, Portal},
    registry::Place,
    shared::Shared,
};
use rdma::{ListenError, Request};
use std::{fmt::Debug, net::SocketAddr, sync::Arc, time::Duration};
use vscsi_target::reactor::Cx;

/// Settings of a portal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IserOptions {
    /// The memory that comes with a write covers all its data, as RFC 7145 has it, unless the
    /// initiator declares otherwise. Linux does not declare, and lets it cover what is not sent with
    /// the command.
    pub strict: bool,
    /// Receive buffers that the connections of a reactor share, instead of some for each.
    pub shared_receives: Option<u32>,
}

/// How listeners reach the reactors. Notes go by [`iscsi::shared::Router`].
pub trait Router: Send + Sync + Debug {
    /// How many reactors there are.
    fn reactors(&self) -> u16;
    /// Makes an endpoint on a reactor.
    fn open(&self, reactor: u16, seed: Seed);
}

/// A bound address at which nobody is accepted yet.
#[derive(Debug)]
pub struct Bound {
    /// The portal.
    pub portal: Arc<Portal>,
    listener: rdma::Listener,
    options: IserOptions,
}

impl Bound {
    /// Binds and listens.
    ///
    /// # Errors
    /// The address cannot be used; [`ListenError::fix`] says what to do.
    pub fn new(address: SocketAddr, tag: u16, options: IserOptions) -> Result<Self, ListenError> {
        let listener = rdma::Listener::bind(address, BACKLOG)?;
        let portal = Portal::new(listener.address(), tag, Transport::Rdma);
        Ok(Self { portal, listener, options })
    }

    /// What makes the listener on a reactor.
    pub fn seed(self, shared: Arc<Shared>, router: Arc<dyn Router>) -> Seed {
        Seed::Listener(Box::new(ListenerSeed { shared, router, bound: self }))
    }
}

/// A listener on its way to its reactor.
#[derive(Debug)]
pub struct ListenerSeed {
    shared: Arc<Shared>,
    router: Arc<dyn Router>,
    bound: Bound,
}

/// The endpoint of a portal: takes connect requests and deals them out over the reactors.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    router: Arc<dyn Router>,
    portal: Arc<Portal>,
    listener: rdma::Listener,
    options: IserOptions,
    next: u16,
}

impl Listener {
    /// Starts to accept. `None` when the listener cannot be watched.
    pub fn open(seed: ListenerSeed, cx: &mut Cx<'_>) -> Option<Self> {
        let ListenerSeed { shared, router, bound: Bound { portal, listener, options } } = seed;
        if shared.is_stopping() {
            return None;
        }
        if let Err(error) = cx.watch(listener.fd(), 0, true, false) {
            tracing::error!(address = %portal.address, %error, "cannot watch a listener");
            return None;
        }
        shared.add_portal(Arc::clone(&portal));
        shared.enter(Place { reactor: cx.reactor, endpoint: cx.me });
        Some(Self { shared, router, portal, listener, options, next: cx.reactor })
    }

    /// Connect requests wait.
    pub fn ready(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..BATCH {
            match self.listener.accept() {
                Ok(Some(request)) => self.accepted(request),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(address = %self.portal.address, %error, "cannot accept");
                    break;
                }
            }
        }
        if self.listener.is_away() {
            tracing::warn!(address = %self.portal.address, "the RDMA device of a portal was removed");
            cx.wake_at(cx.now + RETRY.as_nanos() as u64);
        }
    }

    /// The device may be back.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        if self.listener.is_away() {
            match self.listener.listen_again() {
                Ok(()) => tracing::info!(address = %self.portal.address, "a portal is back"),
                Err(_) => cx.wake_at(cx.now + RETRY.as_nanos() as u64),
            }
        }
    }

    /// Accepts no more.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        cx.unwatch(self.listener.fd());
        self.shared.remove_portal(&self.portal);
        self.shared.leave(Place { reactor: cx.reactor, endpoint: cx.me });
        cx.close();
    }

    fn accepted(&mut self, request: Request) {
        let (peer, local) = (request.peer(), request.local());
        let limit = self.shared.limits.half_open.min(MOST_HALF_OPEN);
        let Some(slot) = HalfOpen::take(&self.portal, limit) else {
            tracing::debug!(%peer, "too many connections in login");
            request.reject(&[]);
            return;
        };
        let shared = Arc::clone(&self.shared);
        let link = Link {
            request,
            strict: self.options.strict,
            shared_receives: self.options.shared_receives,
            window: shared.limits.window,
            wanted: shared.preferences.rdma,
        };
        let seed = Seed::Connection(Box::new(Arrival { shared, link, peer, local, slot }));
        let reactors = self.router.reactors().max(1);
        self.router.open(self.next % reactors, seed);
        self.next = (self.next + 1) % reactors;
    }
}

/// Requests that may wait for the listener.
const BACKLOG: i32 = 128;
/// Requests taken in one turn.
const BATCH: usize = 64;
/// Connections in login at a time. Each has its receive buffers already, more than a megabyte.
const MOST_HALF_OPEN: usize = 64;
/// How often a device that was removed is looked for.
const RETRY: Duration = Duration::from_secs(1);
