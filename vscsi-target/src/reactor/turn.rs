//! The turn of a reactor: events, completions, flushes, sleep.

use super::Postboxes;
use crate::engine::{Completion, Engine};
use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, Mutex},
};

/// An endpoint on one reactor. A stale id reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId {
    /// Slot.
    pub index: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// Input, end of input, or an error to read.
    pub readable: bool,
    /// Output.
    pub writable: bool,
    /// The peer hung up or the descriptor failed.
    pub hangup: bool,
}

/// What owns queues on a reactor: a listener, a connection in login, a session, a vhost-user
/// controller. Called only on its reactor's thread.
pub trait Endpoint: Sized + std::fmt::Debug + 'static {
    /// What makes a new endpoint; sent between threads.
    type Seed: Send + std::fmt::Debug + 'static;
    /// A message to an existing endpoint.
    type Note: Send + std::fmt::Debug + 'static;

    /// Makes an endpoint of a seed. `None` when it came to nothing.
    fn open(seed: Self::Seed, cx: &mut Cx<'_>) -> Option<Self>;
    /// A message arrived. Notes to endpoints that are gone are dropped.
    fn note(&mut self, note: Self::Note, cx: &mut Cx<'_>);
    /// A watched descriptor (by the `source` given to [`Cx::watch`]) is ready.
    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>);
    /// The engine finished a task of this endpoint.
    fn completed(&mut self, completion: Completion, cx: &mut Cx<'_>);
    /// The time given to [`Cx::wake_at`] has come.
    fn expired(&mut self, cx: &mut Cx<'_>);
    /// The turn ends: publish what was gathered. Called once for each endpoint touched in it.
    fn flush(&mut self, cx: &mut Cx<'_>);
    /// Called instead of sleeping while the reactor polls: true if there was work.
    fn poll(&mut self, cx: &mut Cx<'_>) -> bool;
}

/// What an endpoint may use during a call.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The command core.
    pub engine: &'a mut Engine,
    /// Which reactor this is.
    pub reactor: u16,
    /// The endpoint being called.
    pub me: EndpointId,
    /// Monotonic time at the start of the turn, in nanoseconds.
    pub now: u64,
    /// Shared by all endpoints of a reactor: input is received here, and what is left of it at the
    /// end of a call is kept by the endpoint.
    pub scratch: &'a mut Vec<u8>,
    close: bool,
}

impl Cx<'_> {
    /// Watches a descriptor. `source` comes back in [`Endpoint::ready`]. Level-triggered.
    pub fn watch(&mut self, _fd: RawFd, _source: u32, _read: bool, _write: bool) -> io::Result<()> {
        Ok(())
    }

    /// Changes what is watched for.
    pub fn rewatch(
        &mut self,
        _fd: RawFd,
        _source: u32,
        _read: bool,
        _write: bool,
    ) -> io::Result<()> {
        Ok(())
    }

    /// Stops watching; always before the descriptor is closed.
    pub fn unwatch(&mut self, _fd: RawFd) {}

    /// Calls [`Endpoint::expired`] at this monotonic time (nanoseconds); replaces an earlier wish.
    pub fn wake_at(&mut self, _time: u64) {}

    /// Drops this endpoint after the call: its descriptors are unwatched, its tasks abandoned.
    pub fn close(&mut self) {
        self.close = true;
    }
}

/// How other threads reach the endpoints of a reactor.
#[derive(Debug)]
pub struct Inbox<E: Endpoint> {
    reactor: u16,
    postboxes: Arc<Postboxes>,
    seeds: Mutex<Vec<E::Seed>>,
    notes: Mutex<Vec<(EndpointId, E::Note)>>,
}

impl<E: Endpoint> Inbox<E> {
    /// An inbox of a reactor.
    pub fn new(reactor: u16, postboxes: Arc<Postboxes>) -> Arc<Self> {
        Arc::new(Self { reactor, postboxes, seeds: Mutex::default(), notes: Mutex::default() })
    }

    /// Makes an endpoint there.
    pub fn open(&self, seed: E::Seed) {
        self.seeds.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seed);
        self.postboxes.wake(self.reactor);
    }

    /// Sends a message to an endpoint there.
    pub fn note(&self, to: EndpointId, note: E::Note) {
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((to, note));
        self.postboxes.wake(self.reactor);
    }
}

/// A reactor.
#[derive(Debug)]
pub struct Reactor<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
}

impl<E: Endpoint> Reactor<E> {
    /// A reactor whose engine is `engine`.
    pub fn new(_engine: Engine, inbox: Arc<Inbox<E>>) -> io::Result<Self> {
        Ok(Self { inbox })
    }

    /// Runs until `stop` is set (and the reactor woken) and every endpoint is gone.
    pub fn run(self, _stop: &std::sync::atomic::AtomicBool) {
        let _ = &self.inbox;
    }
}
