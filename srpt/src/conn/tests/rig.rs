//! Channels on reactors of their own, over connections that the test holds the other end of.

use super::*;
use crate::{
    channel::tests::login,
    endpoint::Seed,
    link::Memory as _,
    registry::{Claim, Claimed, NexusKey},
    shared::{Limits, Router},
};
use libsrp::{
    channel::LoginParameters,
    login::{MultiChannelAction, MultiChannelResult},
};
use rdma::{TooLong, WorkError};
use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vscsi_target::{
    backend::{Backend, Mem},
    engine::Engine,
    model::{
        Identity, LogicalUnit, LuConfig, Model, Nexus, Target,
        reservation::{NexusId, Reservations, TransportId},
    },
    reactor::{
        self, EndpointId, Inbox, Postboxes, Reactor, Ready,
        pool::{Pool, PoolBuf},
        ring::Ring,
        workers::Workers,
    },
    spc::mode::Modes,
};

/// The initiator's side of a connection.
#[derive(Debug, Default)]
pub struct Wire {
    arriving: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    /// Its memory, by address.
    pub memory: Vec<u8>,
    /// What has come, in order.
    pub sent: Vec<Sent>,
    /// RDMA Reads wait to be posted.
    pub holds_posting: bool,
    /// RDMA Reads that were posted do not end.
    pub holds_reads: bool,
    pub asked_reads: usize,
    pub posted_reads: usize,
    /// Times that a read was taken back, or would have been.
    pub cancels: usize,
    /// Times that work was posted.
    pub doorbells: usize,
    pub disconnected: bool,
    pub dropped: bool,
    pub broken: bool,
}

/// What came from the target.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    Write { address: usize, len: usize },
    Message(Vec<u8>),
}

/// Both sides' view.
#[derive(Clone, Debug)]
pub struct Cable {
    wire: Arc<(Mutex<Wire>, Condvar)>,
    events: Arc<EventFd>,
    completions: Arc<EventFd>,
}

impl Cable {
    fn new() -> Self {
        let wire = Wire { memory: vec![0; 1 << 20], ..Wire::default() };
        let fd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { wire: Arc::new((Mutex::new(wire), Condvar::new())), events: fd(), completions: fd() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes something, and has the target look.
    pub fn change(&self, change: impl FnOnce(&mut Wire)) {
        change(&mut self.lock());
        self.completions.write(1).unwrap();
    }

    pub fn event(&self, event: Event) {
        self.lock().events.push_back(event);
        self.events.write(1).unwrap();
    }

    pub fn send(&self, units: &[Vec<u8>]) {
        self.change(|wire| wire.arriving.extend(units.iter().cloned()));
    }

    /// Waits until something holds.
    pub fn wait(&self, what: &str, holds: impl Fn(&Wire) -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        let mut wire = self.lock();
        while !holds(&wire) {
            assert!(Instant::now() < until, "waited for {what} in vain: {:?}", wire.sent);
            wire = self.wire.1.wait_timeout(wire, Duration::from_millis(20)).unwrap().0;
        }
    }

    /// The next message.
    pub fn message(&self) -> Vec<u8> {
        let is_message = |sent: &Sent| matches!(sent, Sent::Message(_));
        self.wait("a message", |wire| wire.sent.iter().any(is_message));
        let mut wire = self.lock();
        let at = wire.sent.iter().position(is_message).unwrap();
        match wire.sent.remove(at) {
            Sent::Message(message) => message,
            Sent::Write { .. } => unreachable!(),
        }
    }
}

/// The target's side of a connection.
#[derive(Debug)]
pub struct Fake {
    cable: Cable,
    queue: Vec<Queued>,
    reads: VecDeque<Read>,
    posted: VecDeque<Read>,
    messages: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Queued {
    Write(Bytes, usize, Vec<Remote>),
    Message(Vec<u8>),
}

#[derive(Debug)]
struct Read {
    memory: Bytes,
    len: usize,
    remote: Vec<Remote>,
    cookie: u64,
}

#[derive(Debug)]
pub struct Bytes(PoolBuf, usize);

impl crate::link::Memory for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes()[..self.1]
    }

    fn into_buffer(self) -> PoolBuf {
        self.0
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.cable.lock().dropped = true;
        self.cable.wire.1.notify_all();
    }
}

impl Link for Fake {
    type Received = usize;
    type Memory = Bytes;

    fn event_fd(&self) -> RawFd {
        self.cable.events.as_raw_fd()
    }

    fn completion_fd(&self) -> RawFd {
        self.cable.completions.as_raw_fd()
    }

    fn event(&mut self) -> Option<Event> {
        let _ = self.cable.events.read();
        self.cable.lock().events.pop_front()
    }

    fn notified(&mut self) {
        let _ = self.cable.completions.read();
    }

    fn arm(&mut self) -> bool {
        let wire = self.cable.lock();
        !wire.arriving.is_empty() || !self.posted.is_empty() && !wire.holds_reads
    }

    fn poll(&mut self, into: &mut Vec<Came<Self>>) -> bool {
        let mut wire = self.cable.lock();
        let before = into.len();
        if wire.broken {
            wire.broken = false;
            into.push(Came::Broken(WorkError { status: 10 }));
        }
        while let Some(unit) = wire.arriving.pop_front() {
            into.push(Came::Message { buffer: self.messages.len(), len: unit.len() });
            self.messages.push(unit);
        }
        while !wire.holds_reads
            && let Some(mut read) = self.posted.pop_front()
        {
            let mut at = 0;
            for part in &read.remote {
                let (from, len) = (part.addr as usize, (part.len as usize).min(read.len - at));
                read.memory.0.bytes_mut()[at..at + len]
                    .copy_from_slice(&wire.memory[from..from + len]);
                at += len;
            }
            into.push(Came::Read { cookie: read.cookie, memory: read.memory });
        }
        into.len() > before
    }

    fn received<R>(&self, buffer: &usize, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        look(&self.messages[*buffer][..len])
    }

    fn repost(&mut self, _buffer: usize) {}

    fn send(&mut self, message: &[u8], _solicited: bool) -> Result<(), TooLong> {
        self.queue.push(Queued::Message(message.to_vec()));
        Ok(())
    }

    fn memory(&self, buffer: PoolBuf, len: usize) -> io::Result<Bytes> {
        Ok(Bytes(buffer, len))
    }

    fn write(&mut self, memory: Bytes, len: usize, remote: &[Remote]) {
        self.queue.push(Queued::Write(memory, len, remote.to_vec()));
    }

    fn read(&mut self, memory: Bytes, len: usize, remote: &[Remote], cookie: u64) -> Option<Bytes> {
        self.reads.push_back(Read { memory, len, remote: remote.to_vec(), cookie });
        self.cable.lock().asked_reads += 1;
        self.cable.wire.1.notify_all();
        None
    }

    fn cancel(&mut self, cookie: u64) -> Option<Bytes> {
        self.cable.lock().cancels += 1;
        self.cable.wire.1.notify_all();
        let at = self.reads.iter().position(|read| read.cookie == cookie)?;
        self.reads.remove(at).map(|read| read.memory)
    }

    fn flush(&mut self) -> Result<(), WorkError> {
        let mut wire = self.cable.lock();
        let reads = if wire.holds_posting { 0 } else { self.reads.len() };
        wire.doorbells += usize::from(reads > 0 || !self.queue.is_empty());
        wire.posted_reads += reads;
        self.posted.extend(self.reads.drain(..reads));
        for queued in self.queue.drain(..) {
            match queued {
                Queued::Message(message) => wire.sent.push(Sent::Message(message)),
                Queued::Write(memory, len, remote) => {
                    let mut at = 0;
                    for part in &remote {
                        let (to, len) = (part.addr as usize, (part.len as usize).min(len - at));
                        wire.memory[to..to + len].copy_from_slice(&memory.bytes()[at..at + len]);
                        wire.sent.push(Sent::Write { address: to, len });
                        at += len;
                    }
                }
            }
        }
        self.cable.wire.1.notify_all();
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    fn disconnect(&mut self) {
        self.cable.lock().disconnected = true;
        self.cable.wire.1.notify_all();
        // The peer does the same.
        self.cable.event(Event::Disconnected);
    }
}

/// A channel as an endpoint.
#[derive(Debug)]
pub struct Only(Box<Conn<Fake>>);

/// What makes one.
#[derive(Debug)]
pub struct Start {
    shared: Arc<Shared>,
    member: Member,
    agreed: ChannelParameters,
    cable: Cable,
}

impl reactor::Endpoint for Only {
    type Seed = Start;
    type Note = Note;

    fn open(start: Start, cx: &mut Cx<'_>) -> Option<Self> {
        let Start { shared, member, agreed, cable } = start;
        let mut conn = Conn::new(shared, member, agreed, cx);
        let link = Fake {
            cable,
            queue: Vec::new(),
            reads: VecDeque::new(),
            posted: VecDeque::new(),
            messages: Vec::new(),
        };
        conn.attach(link, cx).unwrap();
        Some(Self(conn))
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        self.0.note(&note, cx);
    }

    fn ready(&mut self, source: u32, _ready: Ready, cx: &mut Cx<'_>) {
        self.0.ready(source, cx);
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        self.0.completed(completion, cx);
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        self.0.expired(cx);
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        self.0.flush(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.0.poll(cx)
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        self.0.rest()
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        self.0.note(&Note::Stop { grace: self.0.stop_grace() }, cx);
    }
}

#[derive(Debug)]
struct Ways(Vec<Arc<Inbox<Only>>>);

impl Router for Ways {
    fn reactors(&self) -> u16 {
        self.0.len() as u16
    }

    fn open(&self, _reactor: u16, _seed: Seed) {}

    fn note(&self, to: Place, note: Note) {
        self.0[usize::from(to.reactor)].note(to.endpoint, note);
    }
}

/// Two reactors with a RAM disk of 1 MiB as LUN 0.
pub struct Rig {
    pub shared: Arc<Shared>,
    target: Arc<Target>,
    inboxes: Vec<Arc<Inbox<Only>>>,
    postboxes: Arc<Postboxes>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Endpoints opened on each reactor.
    opened: [u32; 2],
}

pub const CREDIT: u32 = 32;

impl Rig {
    pub fn new() -> Self {
        let postboxes = Postboxes::new(2).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("t").unwrap();
        let backend = Backend::Mem(Mem::new(1 << 20, 512).unwrap());
        let config = LuConfig {
            identity: Identity::derive("srpt tests", None),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let boxes = Arc::clone(&postboxes);
        let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, boxes);
        target.map(0, lu, None).unwrap();
        let inboxes: Vec<_> =
            (0..2).map(|reactor| Inbox::new(reactor, Arc::clone(&postboxes))).collect();
        let limits = Limits { close: Duration::from_millis(500), ..Limits::default() };
        let shared = Shared::new(Arc::clone(&model), Arc::new(Ways(inboxes.clone())), limits);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0u16..).zip(inboxes.iter().cloned()).map(|(reactor, inbox)| {
            let (model, stop) = (Arc::clone(&model), Arc::clone(&stop));
            thread::spawn(move || {
                let workers = Arc::new(Workers::new(1));
                let engine =
                    Engine::new(model, reactor, Pool::new(64 << 20), Ring::new(64), workers);
                Reactor::new(engine, inbox).unwrap().run(&stop);
            })
        });
        let threads = threads.collect();
        Self { shared, target, inboxes, postboxes, stop, threads, opened: [0; 2] }
    }

    /// The registry's answer to a login of the initiator.
    fn claim(&self, reactor: u16, index: u32, action: MultiChannelAction) -> Claimed {
        let port = PortId::new(0, 1);
        let claim = Claim {
            key: NexusKey::new(port, PortId::new(2, 2)),
            initiator: port,
            target: "t",
            action,
            place: Place { reactor, endpoint: EndpointId { index, generation: 0 } },
            peer: ([192, 0, 2, 7], 4).into(),
            terminated: false,
        };
        let establish = || {
            let identity = NexusId::new(TransportId::srp([1; 16]), 1);
            let nexus = Nexus::establish(Arc::clone(&self.target), 1, identity, "i".to_owned());
            for (_, itl) in nexus.table().iter() {
                while itl.take_attention().is_some() {}
            }
            Ok(nexus)
        };
        self.shared.registry.claim(&claim, self.shared.most(), establish).unwrap()
    }

    pub fn log_in_again(&self) -> Claimed {
        self.claim(0, u32::MAX, MultiChannelAction::Single)
    }

    /// A channel on a reactor whose connection is not established.
    pub fn accept(&mut self, reactor: u16, action: MultiChannelAction) -> Cable {
        let index = self.opened[usize::from(reactor)];
        self.opened[usize::from(reactor)] += 1;
        let Claimed::In(member) = self.claim(reactor, index, action) else { panic!() };
        let offer = LoginParameters { request_limit: CREDIT, ..LoginParameters::SRP };
        let agreed = offer.agree(&login()).unwrap();
        let cable = Cable::new();
        let shared = Arc::clone(&self.shared);
        self.inboxes[usize::from(reactor)].open(Start {
            shared,
            member,
            agreed,
            cable: cable.clone(),
        });
        cable
    }

    /// The first channel, open.
    pub fn channel(&mut self) -> Cable {
        let cable = self.accept(0, MultiChannelAction::Single);
        cable.event(Event::Established);
        cable
    }

    /// Another one, on the other reactor.
    pub fn another(&mut self) -> Cable {
        let cable = self.accept(1, MultiChannelAction::Multi);
        cable.event(Event::Established);
        cable
    }

    /// Waits until the nexus is gone.
    pub fn wait_for_the_end(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.shared.sessions().is_empty() || !self.target.nexuses().is_empty() {
            assert!(Instant::now() < until, "the nexus does not end");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(
            self.log_in_again(),
            Claimed::In(Member { result: MultiChannelResult::NoOthers, .. })
        ));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        (0..2).for_each(|reactor| self.postboxes.wake(reactor));
        for thread in self.threads.drain(..) {
            // Reactors end only when the engine has no task left.
            let joined = thread.join();
            assert!(joined.is_ok() || thread::panicking());
        }
    }
}
