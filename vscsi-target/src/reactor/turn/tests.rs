//! A reactor with endpoints that echo what a socket brings.

use super::*;
use crate::{
    backend::{Backend, Null},
    engine::{Memory, Owner, Submitted, TaskKey},
    model::{
        Identity, LogicalUnit, LuConfig, Model, Nexus, NexusView, Target,
        gate::Need,
        reservation::{NexusId, Reservations, TransportId},
    },
    reactor::{Postboxes, pool::Pool, ring::Ring, workers::Workers},
    spc::mode::Modes,
};
use libsrp::{Command, Lun, Status, Tag, TaskAttribute};
use std::{
    io::{ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Instant,
};

#[derive(Debug)]
struct Toy {
    socket: UnixStream,
    out: Vec<u8>,
    log: Sender<Log>,
    nexus: Option<NexusView>,
}

#[derive(Debug)]
struct Seed {
    socket: UnixStream,
    log: Sender<Log>,
    refuse: bool,
    target: Option<Arc<Target>>,
}

#[derive(Debug, PartialEq)]
enum Log {
    Opened(EndpointId),
    Noted(EndpointId),
    Cpu(Duration),
    Completed(Status),
    Cached(usize),
    Dropped,
}

#[derive(Debug)]
enum Note {
    Answer(Sender<Log>),
    Cpu,
    WakeAt(u64),
    Buffer,
    Cached,
    Command { then_close: bool },
}

impl Toy {
    fn receive(&mut self, cx: &mut Cx<'_>) -> bool {
        cx.scratch.resize(4096, 0);
        match self.socket.read(cx.scratch) {
            Ok(0) => cx.close(),
            Ok(n) => self.out.extend_from_slice(&cx.scratch[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }
}

impl Endpoint for Toy {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        seed.socket.set_nonblocking(true).unwrap();
        cx.watch(seed.socket.as_raw_fd(), 7, true, false).unwrap();
        if seed.refuse {
            cx.unwatch(seed.socket.as_raw_fd());
            return None;
        }
        let nexus = seed.target.map(|target| {
            let identity = NexusId::new(TransportId::iscsi("iqn.a:i", [0; 6]).unwrap(), 1);
            NexusView::new(Nexus::establish(target, 1, identity, "iqn.a:i".to_owned()))
        });
        let _ = seed.log.send(Log::Opened(cx.me));
        Some(Self { socket: seed.socket, out: Vec::new(), log: seed.log, nexus })
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match note {
            Note::Answer(to) => to.send(Log::Noted(cx.me)).unwrap(),
            Note::Cpu => {
                let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
                self.log.send(Log::Cpu(spent.into())).unwrap();
            }
            Note::Buffer => {
                drop(cx.engine.pool.take(1).unwrap());
                self.log.send(Log::Cached(cx.engine.pool.cached())).unwrap();
            }
            Note::Cached => self.log.send(Log::Cached(cx.engine.pool.cached())).unwrap(),
            Note::WakeAt(time) => cx.wake_at(time),
            Note::Command { then_close } => {
                let command = Command {
                    tag: Tag([5; 8]),
                    lun: Lun::default(),
                    attribute: TaskAttribute::Simple,
                    priority: 0,
                    cdb: &[0x12, 0, 0, 0, 36, 0],
                    data_out: 0,
                    data_in: 36,
                };
                let owner = Owner { endpoint: cx.me, cookie: 1 };
                let view = self.nexus.as_mut().unwrap();
                let submitted = cx.engine.submit(view, &command, Memory::Pool, owner);
                assert!(matches!(submitted, Submitted::Accepted));
                if then_close {
                    cx.close();
                }
            }
        }
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        assert!(source == 7 && ready.readable);
        self.receive(cx);
    }

    fn completed(&mut self, completion: &mut Completion, _cx: &mut Cx<'_>) {
        assert_eq!(completion.owner.cookie, 1);
        self.log.send(Log::Completed(completion.response.status)).unwrap();
    }

    fn expired(&mut self, _cx: &mut Cx<'_>) {
        self.out.push(b'!');
    }

    fn flush(&mut self, _cx: &mut Cx<'_>) {
        if !self.out.is_empty() {
            // The peer may be gone.
            let _ = self.socket.write_all(&self.out);
            self.out.clear();
        }
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        false
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.receive(cx)
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        let _ = self.socket.write_all(b"bye");
        cx.close();
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        let _ = self.log.send(Log::Dropped);
    }
}

/// A running reactor.
struct Rig {
    inbox: Arc<Inbox<Toy>>,
    model: Arc<Model>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An endpoint as its peer sees it.
struct Peer {
    socket: UnixStream,
    log: Receiver<Log>,
    id: EndpointId,
}

const LONG: Duration = Duration::from_secs(20);

impl Rig {
    fn new() -> Self {
        let postboxes = Postboxes::new(1).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let inbox = Inbox::new(0, postboxes);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (inbox, stop, model) = (inbox.clone(), stop.clone(), model.clone());
            move || {
                let workers = Arc::new(Workers::new(1));
                let mut engine = Engine::new(model, 0, Pool::new(1 << 20), Ring::new(8), workers);
                engine.set_io_timeout(1);
                Reactor::new(engine, inbox).unwrap().run(&stop);
            }
        });
        Self { inbox, model, stop, thread: Some(thread) }
    }

    fn seed(&self) -> (Seed, UnixStream, Receiver<Log>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LONG)).unwrap();
        let (log, receiver) = channel();
        (Seed { socket: theirs, log, refuse: false, target: None }, ours, receiver)
    }

    fn peer(&self, target: Option<Arc<Target>>) -> Peer {
        let (seed, socket, log) = self.seed();
        self.inbox.open(Seed { target, ..seed });
        let Log::Opened(id) = log.recv_timeout(LONG).unwrap() else { panic!() };
        Peer { socket, log, id }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.postboxes.wake(0);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

impl Peer {
    fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        self.socket.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes);
    }

    fn next(&self) -> Log {
        self.log.recv_timeout(LONG).unwrap()
    }
}

fn null_target(rig: &Rig) -> Arc<Target> {
    let target = rig.model.add_target("iqn.a:t").unwrap();
    target.add_port(1, 5, "iqn.a:t,t,0x0001".to_owned());
    let backend = Backend::Null(Null::new(1 << 20, 512));
    let config = LuConfig {
        identity: Identity::derive("reactor tests", None),
        removable: false,
        read_only: false,
        state_dir: None,
    };
    let modes = Modes::for_backend(backend.properties(), None);
    let boxes = Arc::clone(&rig.inbox.postboxes);
    let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, boxes);
    target.map(0, lu, None).unwrap();
    target
}

#[test]
fn bytes_of_many_endpoints_come_back_to_each() {
    let rig = Rig::new();
    let mut peers: Vec<_> = (0..50).map(|_| rig.peer(None)).collect();
    for round in 0..20u8 {
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.socket.write_all(&[round, i as u8]).unwrap();
        }
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.expect(&[round, i as u8]);
        }
    }
}

#[test]
fn timer_comes_at_its_time_and_is_replaced_by_a_later_wish() {
    let rig = Rig::new();
    let mut peer = rig.peer(None);
    let start = Instant::now();
    let now = monotonic();
    rig.inbox.note(peer.id, Note::WakeAt(now + 10_000_000));
    rig.inbox.note(peer.id, Note::WakeAt(now + 50_000_000));
    peer.expect(b"!");
    assert!(start.elapsed() >= Duration::from_millis(50));
    peer.socket.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    assert!(peer.socket.read(&mut [0]).is_err());
}

#[test]
fn timer_in_the_past_does_not_stop_the_others() {
    let rig = Rig::new();
    let (mut a, mut b) = (rig.peer(None), rig.peer(None));
    rig.inbox.note(a.id, Note::WakeAt(0));
    a.expect(b"!");
    b.socket.write_all(b"x").unwrap();
    b.expect(b"x");
}

#[test]
fn note_reaches_its_endpoint_and_a_stale_one_nobody() {
    let rig = Rig::new();
    let peer = rig.peer(None);
    let (sender, answers) = channel();
    let stale = EndpointId { generation: peer.id.generation + 1, ..peer.id };
    rig.inbox.note(stale, Note::Answer(sender.clone()));
    rig.inbox.note(peer.id, Note::Answer(sender));
    assert_eq!(answers.iter().collect::<Vec<_>>(), [Log::Noted(peer.id)]);
}

#[test]
fn broadcast_reaches_every_endpoint_once_and_then_ends() {
    let rig = Rig::new();
    let peers: Vec<_> = (0..3).map(|_| rig.peer(None)).collect();
    let (sender, answers) = channel();
    rig.inbox.broadcast(move || Note::Answer(sender.clone()));
    let want: Vec<_> = peers.iter().map(|peer| Log::Noted(peer.id)).collect();
    assert_eq!(answers.iter().collect::<Vec<_>>(), want);
}

#[test]
fn broadcast_to_a_reactor_that_is_gone_ends_at_once() {
    let mut rig = Rig::new();
    rig.stop();
    let (sender, answers) = channel();
    rig.inbox.broadcast(move || Note::Answer(sender.clone()));
    assert_eq!(answers.iter().count(), 0);
}

#[test]
fn hangup_of_the_peer_lets_the_endpoint_go_and_its_slot_is_used_again() {
    let rig = Rig::new();
    let peer = rig.peer(None);
    drop(peer.socket);
    assert_eq!(peer.log.recv_timeout(LONG).unwrap(), Log::Dropped);
    let again = rig.peer(None);
    assert_eq!(again.id.index, peer.id.index);
    assert_ne!(again.id.generation, peer.id.generation);
}

#[test]
fn seed_that_comes_to_nothing_leaves_nothing_watched() {
    let rig = Rig::new();
    let (seed, mut socket, _log) = rig.seed();
    rig.inbox.open(Seed { refuse: true, ..seed });
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    // The same descriptor number comes again and can be watched.
    let mut peer = rig.peer(None);
    peer.socket.write_all(b"x").unwrap();
    peer.expect(b"x");
}

#[test]
fn stop_lets_endpoints_finish_and_ends_the_thread() {
    let mut rig = Rig::new();
    let mut peer = rig.peer(None);
    rig.stop();
    peer.expect(b"bye");
    assert_eq!(peer.next(), Log::Dropped);
    let (seed, mut socket, _log) = rig.seed();
    rig.inbox.open(seed);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn completion_comes_back_to_the_endpoint_that_submitted() {
    let rig = Rig::new();
    let peer = rig.peer(Some(null_target(&rig)));
    rig.inbox.note(peer.id, Note::Command { then_close: false });
    assert_eq!(peer.next(), Log::Completed(Status::GOOD));
}

#[test]
fn completion_for_an_endpoint_that_closed_reaches_nobody() {
    let rig = Rig::new();
    let peer = rig.peer(Some(null_target(&rig)));
    rig.inbox.note(peer.id, Note::Command { then_close: true });
    assert_eq!(peer.next(), Log::Dropped);
    let again = rig.peer(None);
    assert_eq!(again.id.index, peer.id.index);
    rig.inbox.note(again.id, Note::Cpu);
    assert!(matches!(again.next(), Log::Cpu(_)));
}

#[test]
fn idle_reactor_uses_no_cpu() {
    let rig = Rig::new();
    let mut peer = rig.peer(None);
    // Busy first, so that it has learnt to poll.
    for _ in 0..1000 {
        peer.socket.write_all(b"x").unwrap();
        peer.expect(b"x");
    }
    let spent = || {
        rig.inbox.note(peer.id, Note::Cpu);
        match peer.next() {
            Log::Cpu(spent) => spent,
            other => panic!("{other:?}"),
        }
    };
    let before = spent();
    // The wake of the last note may be late like this.
    rig.inbox.postboxes.raise(0);
    thread::sleep(Duration::from_millis(300));
    let used = spent() - before;
    assert!(used < Duration::from_millis(5), "{used:?}");
}

#[test]
fn idle_reactor_gives_its_buffers_back_after_a_while() {
    let rig = Rig::new();
    let peer = rig.peer(None);
    rig.inbox.note(peer.id, Note::Buffer);
    assert_eq!(peer.next(), Log::Cached(4096));
    thread::sleep(Duration::from_millis(TRIM_AFTER as u64 + 300));
    rig.inbox.note(peer.id, Note::Cached);
    assert_eq!(peer.next(), Log::Cached(0));
}

#[test]
fn sleeping_reactor_ends_a_task_that_is_past_its_deadline() {
    let rig = Rig::new();
    let target = null_target(&rig);
    let lu = Arc::clone(&target.luns()[0].1);
    let peer = rig.peer(Some(target));
    let held = TaskKey(u64::MAX);
    let epoch = lu.gate.enter_or_wait(0, held, Need::All).unwrap();
    let start = Instant::now();
    rig.inbox.note(peer.id, Note::Command { then_close: false });
    assert_eq!(peer.next(), Log::Completed(Status::CHECK_CONDITION));
    assert!((Duration::from_secs(1)..LONG).contains(&start.elapsed()));
    lu.gate.lower(0, held, epoch);
}
