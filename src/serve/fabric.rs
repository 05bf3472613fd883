//! Every fabric's endpoints as one type, so that they share the reactors, and the way to them.

use std::sync::Arc;

use iscsi::{endpoint, registry::Place, shared::Router};
use vmm_glue::{
    controller, queue,
    tcmu::{disk, watch},
};
use vscsi_target::{
    engine::Completion,
    reactor::{Cx, Endpoint, Inbox, Ready},
};

/// An endpoint of any fabric.
#[derive(Debug)]
pub enum AnyEndpoint {
    /// iSCSI over TCP.
    Iscsi(endpoint::Endpoint),
    /// A virtqueue of a vhost-user-scsi controller.
    Vhost(queue::Queue),
    /// A TCMU device of the kernel.
    Tcmu(Box<disk::Disk>),
    /// iSCSI over RDMA.
    #[cfg(feature = "rdma")]
    Iser(iser::endpoint::Endpoint),
    /// SRP over RDMA.
    #[cfg(feature = "rdma")]
    Srp(srpt::endpoint::Endpoint),
}

/// What makes one.
#[derive(Debug)]
pub enum AnySeed {
    /// iSCSI over TCP.
    Iscsi(endpoint::Seed),
    /// A virtqueue of a vhost-user-scsi controller.
    Vhost(queue::Seed),
    /// A TCMU device of the kernel.
    Tcmu(disk::Seed),
    /// iSCSI over RDMA.
    #[cfg(feature = "rdma")]
    Iser(iser::endpoint::Seed),
    /// SRP over RDMA.
    #[cfg(feature = "rdma")]
    Srp(srpt::endpoint::Seed),
}

/// A message to one.
#[derive(Debug)]
pub enum AnyNote {
    /// iSCSI over TCP or RDMA.
    Iscsi(endpoint::Note),
    /// A virtqueue of a vhost-user-scsi controller.
    Vhost(queue::Note),
    /// A TCMU device of the kernel.
    Tcmu(disk::Note),
    /// SRP over RDMA.
    #[cfg(feature = "rdma")]
    Srp(srpt::endpoint::Note),
}

/// Calls what has the same name in every fabric.
macro_rules! each {
    ($any:expr, $endpoint:ident => $call:expr) => {
        match $any {
            Self::Iscsi($endpoint) => $call,
            Self::Vhost($endpoint) => $call,
            Self::Tcmu($endpoint) => $call,
            #[cfg(feature = "rdma")]
            Self::Iser($endpoint) => $call,
            #[cfg(feature = "rdma")]
            Self::Srp($endpoint) => $call,
        }
    };
}

impl Endpoint for AnyEndpoint {
    type Seed = AnySeed;
    type Note = AnyNote;

    fn open(seed: AnySeed, cx: &mut Cx<'_>) -> Option<Self> {
        match seed {
            AnySeed::Iscsi(seed) => endpoint::Endpoint::open(seed, cx).map(Self::Iscsi),
            AnySeed::Vhost(seed) => queue::Queue::open(seed, cx).map(Self::Vhost),
            AnySeed::Tcmu(seed) => disk::Disk::open(seed, cx).map(Box::new).map(Self::Tcmu),
            #[cfg(feature = "rdma")]
            AnySeed::Iser(seed) => iser::endpoint::Endpoint::open(seed, cx).map(Self::Iser),
            #[cfg(feature = "rdma")]
            AnySeed::Srp(seed) => srpt::endpoint::Endpoint::open(seed, cx).map(Self::Srp),
        }
    }

    fn note(&mut self, note: AnyNote, cx: &mut Cx<'_>) {
        match (self, note) {
            (Self::Iscsi(endpoint), AnyNote::Iscsi(note)) => endpoint.note(note, cx),
            (Self::Vhost(queue), AnyNote::Vhost(note)) => queue.note(note, cx),
            (Self::Tcmu(disk), AnyNote::Tcmu(note)) => disk.note(note, cx),
            #[cfg(feature = "rdma")]
            (Self::Iser(endpoint), AnyNote::Iscsi(note)) => endpoint.note(note, cx),
            #[cfg(feature = "rdma")]
            (Self::Srp(endpoint), AnyNote::Srp(note)) => endpoint.note(note, cx),
            // Places name generations, so that a message never reaches another endpoint.
            _ => {}
        }
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        each!(self, endpoint => endpoint.ready(source, ready, cx));
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        each!(self, endpoint => endpoint.completed(completion, cx));
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        each!(self, endpoint => endpoint.expired(cx));
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        each!(self, endpoint => endpoint.flush(cx));
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        each!(self, endpoint => endpoint.poll(cx))
    }

    fn rest(&mut self, cx: &mut Cx<'_>) -> bool {
        each!(self, endpoint => endpoint.rest(cx))
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        each!(self, endpoint => endpoint.stop(cx));
    }
}

/// The inboxes of all reactors.
pub struct Reactors {
    inboxes: Vec<Arc<Inbox<AnyEndpoint>>>,
}

impl Reactors {
    /// The way to these.
    pub fn new(inboxes: Vec<Arc<Inbox<AnyEndpoint>>>) -> Self {
        Self { inboxes }
    }
}

impl std::fmt::Debug for Reactors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} reactors", self.inboxes.len())
    }
}

impl Router for Reactors {
    fn reactors(&self) -> u16 {
        self.inboxes.len() as u16
    }

    fn open(&self, reactor: u16, seed: endpoint::Seed) {
        if let Some(inbox) = self.inboxes.get(usize::from(reactor)) {
            inbox.open(AnySeed::Iscsi(seed));
        }
    }

    fn note(&self, to: Place, note: endpoint::Note) {
        if let Some(inbox) = self.inboxes.get(usize::from(to.reactor)) {
            inbox.note(to.endpoint, AnyNote::Iscsi(note));
        }
    }
}

impl controller::Router for Reactors {
    fn reactors(&self) -> u16 {
        self.inboxes.len() as u16
    }

    fn open(&self, reactor: u16, seed: queue::Seed) {
        if let Some(inbox) = self.inboxes.get(usize::from(reactor)) {
            inbox.open(AnySeed::Vhost(seed));
        }
    }

    fn note(&self, to: controller::Place, note: queue::Note) {
        if let Some(inbox) = self.inboxes.get(usize::from(to.reactor)) {
            inbox.note(to.endpoint, AnyNote::Vhost(note));
        }
    }
}

impl watch::Router for Reactors {
    fn reactors(&self) -> u16 {
        self.inboxes.len() as u16
    }

    fn open(&self, reactor: u16, seed: disk::Seed) {
        if let Some(inbox) = self.inboxes.get(usize::from(reactor)) {
            inbox.open(AnySeed::Tcmu(seed));
        }
    }

    fn note(&self, to: controller::Place, note: disk::Note) {
        if let Some(inbox) = self.inboxes.get(usize::from(to.reactor)) {
            inbox.note(to.endpoint, AnyNote::Tcmu(note));
        }
    }
}

#[cfg(feature = "rdma")]
impl iser::portal::Router for Reactors {
    fn reactors(&self) -> u16 {
        self.inboxes.len() as u16
    }

    fn open(&self, reactor: u16, seed: iser::endpoint::Seed) {
        if let Some(inbox) = self.inboxes.get(usize::from(reactor)) {
            inbox.open(AnySeed::Iser(seed));
        }
    }
}

#[cfg(feature = "rdma")]
impl srpt::shared::Router for Reactors {
    fn reactors(&self) -> u16 {
        self.inboxes.len() as u16
    }

    fn open(&self, reactor: u16, seed: srpt::endpoint::Seed) {
        if let Some(inbox) = self.inboxes.get(usize::from(reactor)) {
            inbox.open(AnySeed::Srp(seed));
        }
    }

    fn note(&self, to: srpt::registry::Place, note: srpt::endpoint::Note) {
        if let Some(inbox) = self.inboxes.get(usize::from(to.reactor)) {
            inbox.note(to.endpoint, AnyNote::Srp(note));
        }
    }
}
