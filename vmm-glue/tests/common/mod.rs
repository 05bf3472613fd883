//! A controller with RAM logical units behind a socket, on real reactors in this process.

#![allow(dead_code)] // Each test file uses a part of it.
#![allow(clippy::unwrap_used)] // A test fails by it.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use vmm_glue::{
    controller::{Controller, Export, Place, Router},
    queue::{Note, Queue, Seed},
    vhost::{self, Server},
};
use vscsi_target::{
    backend::{Backend, File, FileOptions, Mem},
    engine::{Completion, Engine},
    model::{
        Identity, LogicalUnit, LuConfig, Model, Target,
        reservation::{Capabilities, NexusId, Reservations, TransportId},
    },
    reactor::{
        Cx, Endpoint, Inbox, Postboxes, Reactor, Ready, pool::Pool, ring::Ring, workers::Workers,
    },
    spc::mode::Modes,
};

/// Only queues run on these reactors.
#[derive(Debug)]
pub struct Only(Queue);

impl Endpoint for Only {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        Queue::open(seed, cx).map(Self)
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        self.0.note(note, cx);
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        self.0.ready(source, ready, cx);
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

    fn rest(&mut self, cx: &mut Cx<'_>) -> bool {
        self.0.rest(cx)
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        self.0.stop(cx);
    }
}

#[derive(Debug)]
struct Inboxes(Vec<Arc<Inbox<Only>>>);

impl Router for Inboxes {
    fn reactors(&self) -> u16 {
        self.0.len() as u16
    }

    fn open(&self, reactor: u16, seed: Seed) {
        self.0[usize::from(reactor)].open(seed);
    }

    fn note(&self, to: Place, note: Note) {
        self.0[usize::from(to.reactor)].note(to.endpoint, note);
    }
}

/// How a front door is opened.
pub type Listen = fn(UnixListener, Arc<Controller>) -> std::io::Result<Server>;

/// Reactors, and the RAM that outlives them.
pub struct Host {
    pub controller: Arc<Controller>,
    pub target: Arc<Target>,
    postboxes: Arc<Postboxes>,
    server: Option<Server>,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A target with LUN 0.
pub struct Disk(Arc<Model>, Arc<Postboxes>, Arc<Target>, u16);

impl Disk {
    /// 8 MiB of RAM.
    pub fn new(reactors: usize) -> Self {
        Self::of(Backend::Mem(Mem::new(8 << 20, 512).unwrap()), reactors)
    }

    /// An image that moves between processes.
    pub fn moving(path: &Path) -> Self {
        let options =
            FileOptions { path: path.to_owned(), block_size: 512, read_only: false, direct: false };
        Self::of(Backend::File(File::open_for_handover(&options).unwrap()), 1)
    }

    fn of(backend: Backend, reactors: usize) -> Self {
        let postboxes = Postboxes::new(reactors).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.test:t").unwrap();
        let port = target.add_port(1, 5, "iqn.2026-11.test:t,t,0x0001".to_owned());
        target.map(0, unit(backend, &postboxes), None).unwrap();
        Self(model, postboxes, target, port)
    }
}

fn unit(backend: Backend, postboxes: &Arc<Postboxes>) -> Arc<LogicalUnit> {
    let config = LuConfig {
        identity: Identity::derive("seed", Some("SN0001")),
        removable: false,
        read_only: false,
        state_dir: None,
    };
    let modes = Modes::for_backend(backend.properties(), None);
    let reservations = Reservations::new(Capabilities::default());
    let lu = LogicalUnit::new(config, backend, reservations, modes, Arc::clone(postboxes));
    lu.keep().unwrap();
    lu
}

impl Host {
    /// A controller with this many request queues.
    pub fn start(queues: u16, reactors: usize) -> Self {
        Self::with(&Disk::new(reactors), queues)
    }

    pub fn with(disk: &Disk, queues: u16) -> Self {
        Self::behind(disk, queues, vhost::listen)
    }

    /// As [`Host::with`], behind another front door.
    pub fn behind(disk: &Disk, queues: u16, listen: Listen) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Disk(model, postboxes, target, port) = disk;
        let inboxes: Vec<_> =
            (0..postboxes.len() as u16).map(|n| Inbox::new(n, Arc::clone(postboxes))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let workers = Arc::new(Workers::new(2));
        let threads = inboxes.iter().zip(0u16..).map(|(inbox, number)| {
            let (inbox, model) = (Arc::clone(inbox), Arc::clone(model));
            let (workers, stop) = (Arc::clone(&workers), Arc::clone(&stop));
            std::thread::spawn(move || {
                let pool = Pool::new(64 << 20);
                let engine = Engine::new(model, number, pool, Ring::new(64), workers);
                Reactor::new(engine, inbox).unwrap().run(&stop);
            })
        });
        let threads = threads.collect();
        let initiator = TransportId::iscsi("iqn.2026-11.test:guest", [0; 6]).unwrap();
        let export = Export {
            id: 0,
            target: Arc::clone(target),
            port: *port,
            initiator: NexusId::new(initiator, *port),
        };
        let router = Arc::new(Inboxes(inboxes));
        let controller = Controller::new("guest".to_owned(), queues, vec![export], router);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vscsi-vhost-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let server = listen(listener, Arc::clone(&controller)).unwrap();
        Self {
            controller,
            target: Arc::clone(target),
            postboxes: Arc::clone(postboxes),
            server: Some(server),
            path,
            stop,
            threads,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Waits until `ready` holds.
    pub fn wait_for(&self, what: &str, mut ready: impl FnMut(&Server) -> bool) {
        let since = Instant::now();
        while !ready(self.server()) {
            assert!(since.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = fs::remove_file(&self.path);
        self.stop.store(true, Ordering::SeqCst);
        for n in 0..self.threads.len() as u16 {
            self.postboxes.wake(n);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}
