//! What a partition's request costs: an information unit out of its memory, a read of 4096 bytes from
//! a RAM disk into it, the answer over the unit, and an element in the client's queue.
//!
//! The reactor, the server's endpoint and a client share one thread, so that the time is that of one
//! core, and it is processor time. The client keeps 32 requests in flight; its own time is measured and
//! taken off, so that what is left is the server and the reactor. `straight` hands the same commands to the command core with
//! the same memory and without a unit: the difference is what VIOSRP costs.

#![allow(missing_docs)]
#![allow(unsafe_code)] // The client's side reads and writes guest memory.
#![allow(clippy::unwrap_used)] // A benchmark may just stop.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use libsrp::{
    Command, Lun, Tag, TaskAttribute,
    cmd::{Cmd, SolicitedNotification},
    descriptor::{DataBuffer, DataBuffers, Descriptor, Descriptors, Indirect},
    viosrp::{
        crq::{Element, ElementStatus, Format, Message},
        lun::VscsiLun,
    },
};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    time::{ClockId, clock_gettime},
};
use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};
use vmm_glue::{
    crq::{self, Adapter, Config, Delivery, Hcall, Server, Window},
    embed::{Reactors, ram_disk},
    memory::{GuestMap, Region},
};
use vscsi_target::{
    engine::{Completion, Memory, Owner, Submitted},
    model::{Nexus, NexusView},
    reactor::{Cx, Endpoint, Ready, sg::Segment},
};

/// Processor time of this thread: others that use the machine meanwhile are not in it.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// How many descriptors a request has.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    descriptors: u64,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "direct", descriptors: 1 },
    Shape { name: "10 indirect", descriptors: 10 },
    Shape { name: "16 external", descriptors: 16 },
];

/// The endpoints of the one reactor.
#[derive(Debug)]
enum Any {
    Server(Box<Server>),
    Client(Box<Client>),
    Straight(Box<Straight>),
}

#[derive(Debug)]
enum Seed {
    Server(crq::Seed),
    Client(Box<Client>, Receiver<Run>),
    Straight(Box<Straight>, Receiver<Run>),
}

/// So many requests, and whom to tell how long they took.
#[derive(Debug)]
struct Run(u64, SyncSender<Duration>);

/// What a run has done.
#[derive(Debug)]
struct Progress {
    runs: Receiver<Run>,
    run: Option<Run>,
    begun: Duration,
    sent: u64,
    done: u64,
    /// The client's own time.
    own: Duration,
}

impl Progress {
    fn new(runs: Receiver<Run>) -> Self {
        Self { runs, run: None, begun: Duration::ZERO, sent: 0, done: 0, own: Duration::ZERO }
    }

    /// The length of the run in progress.
    fn count(&mut self) -> Option<u64> {
        if self.run.is_none() {
            self.run = self.runs.try_recv().ok();
            (self.begun, self.sent, self.done, self.own) = (cpu_time(), 0, 0, Duration::ZERO);
        }
        self.run.as_ref().map(|run| run.0)
    }

    fn ended(&mut self) {
        if let Some(Run(_, told)) = self.run.take_if(|run| run.0 == self.done) {
            told.send(cpu_time() - self.begun - self.own).unwrap();
        }
    }
}

/// A client as a guest's driver is one.
#[derive(Debug)]
struct Client {
    adapter: Adapter,
    map: Arc<GuestMap>,
    units: Vec<[u8; 256]>,
    next: u64,
    progress: Option<Progress>,
}

impl Client {
    fn at(&self, gpa: u64) -> *mut u8 {
        self.map.at(gpa, 256).unwrap()
    }

    fn send(&self, slot: u64) {
        let unit = &self.units[slot as usize];
        let place = self.at(UNITS + 256 * slot);
        // SAFETY: 256 bytes of the benchmark's own memory, which the server does not use now.
        unsafe { std::ptr::copy_nonoverlapping(unit.as_ptr(), place, 256) };
        let pointer = (IOBA + UNITS + 256 * slot).to_be_bytes();
        let (format, status) = (Format::Srp, ElementStatus::Ok);
        let message = Message { format, status, timeout: 0, len: 256, pointer };
        self.element(Element::Message(message));
    }

    fn element(&self, element: Element) {
        let word = u128::from_be_bytes(element.to_bytes());
        let sent = self.adapter.send_crq((word >> 64) as u64, word as u64);
        assert_eq!(sent, Hcall::Success);
    }

    /// The slot of the next answer.
    fn take(&mut self) -> Option<u64> {
        let place = self.at(16 * self.next);
        // SAFETY: inside the queue.
        let valid = unsafe { AtomicU8::from_ptr(place) };
        if valid.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: as above; the tag of an answer, or nothing of interest.
        let tag = unsafe { place.add(8).cast::<u64>().read() };
        valid.store(0, Ordering::Release);
        self.next = (self.next + 1) % 256;
        Some(u64::from_be(tag))
    }

    fn work(&mut self) -> bool {
        let mut progress = self.progress.take().unwrap();
        let Some(count) = progress.count() else {
            self.progress = Some(progress);
            return false;
        };
        let begun = cpu_time();
        while progress.sent < count.min(DEPTH) {
            self.send(progress.sent);
            progress.sent += 1;
        }
        while let Some(slot) = self.take() {
            progress.done += 1;
            if progress.sent < count {
                self.send(slot);
                progress.sent += 1;
            }
        }
        progress.own += cpu_time() - begun;
        progress.ended();
        self.progress = Some(progress);
        true
    }
}

/// The same commands without units.
#[derive(Debug)]
struct Straight {
    nexus: Arc<Nexus>,
    /// Keeps the memory of the lists.
    _map: Arc<GuestMap>,
    view: Option<NexusView>,
    lists: Vec<Vec<Segment>>,
    progress: Option<Progress>,
}

impl Straight {
    fn submit(&mut self, slot: u64, cx: &mut Cx<'_>) {
        let cdb = read_10(slot);
        let command = Command {
            tag: Tag::from_u64(slot),
            lun: Lun([0; 8]),
            attribute: TaskAttribute::Simple,
            priority: 0,
            cdb: &cdb,
            data_out: 0,
            data_in: LEN,
        };
        let owner = Owner { endpoint: cx.me, cookie: slot };
        let memory = Memory::Own { out: &[], into: &self.lists[slot as usize] };
        let view = self.view.as_mut().unwrap();
        let submitted = cx.engine.submit(view, &command, memory, owner);
        assert!(matches!(submitted, Submitted::Accepted));
    }

    fn work(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut progress = self.progress.take().unwrap();
        let count = progress.count();
        if let Some(count) = count {
            while progress.sent < count && progress.sent - progress.done < DEPTH {
                self.submit(progress.sent % DEPTH, cx);
                progress.sent += 1;
            }
            progress.ended();
        }
        self.progress = Some(progress);
        count.is_some()
    }
}

impl Endpoint for Any {
    type Seed = Seed;
    type Note = ();

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        Some(match seed {
            Seed::Server(seed) => Self::Server(Box::new(Server::open(seed, cx)?)),
            Seed::Client(mut client, runs) => {
                client.progress = Some(Progress::new(runs));
                Self::Client(client)
            }
            Seed::Straight(mut straight, runs) => {
                straight.progress = Some(Progress::new(runs));
                straight.view = Some(NexusView::new(Arc::clone(&straight.nexus)));
                Self::Straight(straight)
            }
        })
    }

    fn note(&mut self, (): (), _cx: &mut Cx<'_>) {}

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        if let Self::Server(server) = self {
            server.ready(source, ready, cx);
        }
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        match self {
            Self::Server(server) => server.completed(completion, cx),
            Self::Straight(straight) => straight.progress.as_mut().unwrap().done += 1,
            Self::Client(_) => {}
        }
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        if let Self::Server(server) = self {
            server.expired(cx);
        }
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Self::Server(server) = self {
            server.flush(cx);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Server(server) => server.poll(cx),
            Self::Client(client) => client.work(),
            Self::Straight(straight) => straight.work(cx),
        }
    }

    fn rest(&mut self, cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Server(server) => server.rest(cx),
            // Never at rest, so that a run begins at once.
            _ => true,
        }
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        match self {
            Self::Server(server) => server.stop(cx),
            _ => cx.close(),
        }
    }
}

struct Only<'a>(&'a Reactors<Any>);

impl crq::Router for Only<'_> {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, reactor: u16, seed: crq::Seed) {
        self.0.inbox(reactor).unwrap().open(Seed::Server(seed));
    }
}

fn read_10(slot: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x28;
    cdb[5] = (8 * (slot % 16)) as u8;
    cdb[8] = 8;
    cdb
}

/// Where the data of a request is.
fn list(shape: Shape, slot: u64) -> Vec<(u64, u32)> {
    let base = DATA + 0x4_0000 * slot;
    match shape.descriptors {
        1 => vec![(base, LEN)],
        // Pages of their own, as a guest's page cache has them; all but the last as long.
        count => (0..count)
            .map(|n| {
                let part = LEN / count as u32 / 8 * 8;
                let last = LEN - part * (count as u32 - 1);
                (base + 0x2000 * n, if n + 1 == count { last } else { part })
            })
            .collect(),
    }
}

/// The unit of a request; a list of more than ten is in memory besides.
fn unit(map: &GuestMap, shape: Shape, slot: u64) -> [u8; 256] {
    let parts: Vec<_> = list(shape, slot)
        .into_iter()
        .map(|(gpa, len)| Descriptor { address: IOBA + gpa, key: 0, len })
        .collect();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_bytes()).collect();
    let table = TABLES + 4096 * slot;
    // SAFETY: the benchmark's own memory, which nobody uses yet.
    unsafe {
        let place = map.at(table, bytes.len()).unwrap();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
    }
    let head = Descriptor { address: IOBA + table, key: 0, len: bytes.len() as u32 };
    let data_in = match parts.as_slice() {
        [one] => DataBuffer::Direct(*one),
        _ => {
            let listed = Descriptors::from_table(&bytes[..16 * parts.len().min(10)]).unwrap();
            DataBuffer::Indirect(Indirect::new(head, LEN, listed))
        }
    };
    let cmd = Cmd {
        tag: Tag::from_u64(slot),
        notify: SolicitedNotification::default(),
        lun: VscsiLun::new(0, 0, 0).unwrap().to_lun(),
        attribute: TaskAttribute::Simple,
        cdb: &read_10(slot),
        data: DataBuffers { data_in, ..DataBuffers::default() },
    };
    let mut unit = [0; 256];
    cmd.emit(&mut unit).unwrap();
    unit
}

fn memory() -> Arc<GuestMap> {
    let file = File::from(memfd_create("partition", MFdFlags::empty()).unwrap());
    file.set_len(MEMORY).unwrap();
    Arc::new(GuestMap::new(vec![Region::map(0, MEMORY, 0, 0, file).unwrap()]).unwrap())
}

fn reactors() -> (Reactors<Any>, vmm_glue::controller::Export) {
    let reactors = Reactors::<Any>::start(1).unwrap();
    let disk = ram_disk(reactors.postboxes(), 64 << 20, "BENCH").unwrap();
    let export = reactors.export(0, "eui.1", vec![(0, disk)]).unwrap();
    (reactors, export)
}

fn measure(runs: &SyncSender<Run>, count: u64) -> Duration {
    let (told, time) = sync_channel(1);
    runs.send(Run(count, told)).unwrap();
    time.recv().unwrap()
}

fn over_viosrp(c: &mut Criterion) {
    let mut group = c.benchmark_group("crq");
    group.throughput(Throughput::Elements(1));
    for shape in SHAPES {
        let (reactors, export) = reactors();
        let map = memory();
        let window = Window::new(Arc::clone(&map), 1, IOBA, MEMORY / 4096);
        for page in (0..MEMORY).step_by(4096) {
            let _ = window.put_tce(IOBA + page, page | 3);
        }
        let delivery = Delivery::Memory(Box::new(|| {}));
        let config = Config::new("bench");
        let adapter =
            Adapter::new(config, vec![export], window, &Only(&reactors), delivery).unwrap();
        assert_eq!(adapter.reg_crq(IOBA, 4096), Hcall::Success);
        let _ = adapter.vio_signal(true);
        let units = (0..DEPTH).map(|slot| unit(&map, shape, slot)).collect();
        let mut client = Box::new(Client { adapter, map, units, next: 0, progress: None });
        client.element(Element::Init(libsrp::viosrp::crq::Init::Init));
        while client.take().is_none() {}
        // The unit attention of a power-on.
        client.send(0);
        while client.take().is_none() {}
        let (runs, receiver) = sync_channel(1);
        reactors.inbox(0).unwrap().open(Seed::Client(client, receiver));
        group.bench_function(shape.name, |b| b.iter_custom(|count| measure(&runs, count)));
    }
    group.finish();
}

fn straight(c: &mut Criterion) {
    let mut group = c.benchmark_group("straight");
    group.throughput(Throughput::Elements(1));
    for shape in SHAPES {
        let (reactors, export) = reactors();
        let map = memory();
        let nexus =
            Nexus::establish(export.target, export.port, export.initiator, "bench".to_owned());
        let segments = |slot| {
            let mut into = Vec::new();
            for (gpa, len) in list(shape, slot) {
                assert!(map.translate(&mut 0, gpa, len, &mut into));
            }
            into
        };
        let lists = (0..DEPTH).map(segments).collect();
        nexus.table().at(0).unwrap().take_attention();
        let straight = Box::new(Straight { nexus, _map: map, view: None, lists, progress: None });
        let (runs, receiver) = sync_channel(1);
        reactors.inbox(0).unwrap().open(Seed::Straight(straight, receiver));
        group.bench_function(shape.name, |b| b.iter_custom(|count| measure(&runs, count)));
    }
    group.finish();
}

/// Where the window begins.
const IOBA: u64 = 0x4000_0000;
/// Bytes of memory: the queue first, then units, tables and data.
const MEMORY: u64 = 16 << 20;
const UNITS: u64 = 0x1_0000;
const TABLES: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;
/// Requests in flight.
const DEPTH: u64 = 32;
/// Bytes of a request.
const LEN: u32 = 4096;

criterion_group!(benches, over_viosrp, straight);
criterion_main!(benches);
