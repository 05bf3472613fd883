//! What a partition sends: elements and units to a connection as a value, and hypervisor calls with
//! any memory to a whole adapter.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libsrp::iu::TargetIu;
use libsrp::viosrp::crq::{Element, Format};
use libsrp::viosrp::mad::Mad;
use libsrp::{Response, Status, Tag};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_glue::controller::Export;
use vmm_glue::crq::session::{MOST_UNIT, Next, Reply, Session, State, Step, TaskId, lun_of};
use vmm_glue::crq::{Adapter, Config, Delivery, Hcall, Server, TransportEvent, Window};
use vmm_glue::embed::{Reactors, ram_disk};
use vmm_glue::memory::{GuestMap, Region};
use vscsi_target::engine::Outcome;
use vscsi_target::model::{Attention, LogicalUnit};
use vscsi_target::sense::Sense;

use crate::{Seed, srp};

/// A connection: records of an operation (in its low three bits, with a choice of a task in the
/// others), a length of two bytes, and as many bytes. An element has its unit behind it.
pub fn session(data: &[u8]) {
    let mut config = Config::new("fuzz");
    let Some((&first, mut rest)) = data.split_first() else { return };
    config.implicit_login = first & 1 == 0;
    config.request_limit = 4;
    let mut world = World::new(config);
    while let [op, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (bytes, tail) = tail.split_at(len);
        rest = tail;
        world.step(*op, bytes);
        assert_eq!(world.session.in_progress(), world.tasks.len());
    }
    for (task, ..) in std::mem::take(&mut world.tasks) {
        world.end(task, Outcome::Respond, Tag::default());
    }
    assert_eq!(world.session.in_progress(), 0);
}

const ELEMENT: u8 = 0;
const END: u8 = 1;
const LOST: u8 = 2;
const REOPENED: u8 = 3;
const REPORT: u8 = 4;
const REFUSE: u8 = 5;
const FLAG: u8 = 0x08;

struct World {
    session: Session,
    /// What the core has: its tag, and on which connection it came.
    tasks: Vec<(TaskId, Tag, u32)>,
    connection: u32,
    out: [u8; MOST_UNIT],
}

impl World {
    fn new(config: Config) -> Self {
        let mut session = Session::new(Arc::new(config));
        session.opened();
        Self { session, tasks: Vec::new(), connection: 0, out: [0; MOST_UNIT] }
    }

    fn step(&mut self, op: u8, bytes: &[u8]) {
        match op & 7 {
            ELEMENT => self.element(bytes, op & FLAG != 0),
            END | REFUSE if !self.tasks.is_empty() => {
                let at = usize::from(op >> 4) % self.tasks.len();
                let (task, tag, connection) = self.tasks.swap_remove(at);
                let is_silent = op & 7 == END && op & FLAG != 0;
                let answered = if op & 7 == REFUSE {
                    let reply = self.session.refused(task, Sense::MISCOMPARE, &mut self.out);
                    reply.map(|reply| self.check(&reply, Some(tag))).is_some()
                } else {
                    let outcome = if is_silent { Outcome::Silent } else { Outcome::Respond };
                    self.end(task, outcome, tag)
                };
                assert_eq!(answered, connection == self.connection && !is_silent);
            }
            LOST => {
                self.connection += 1;
                self.session.lost();
            }
            REOPENED => {
                self.connection += 1;
                self.session.closed();
                assert_eq!(self.session.state(), State::Closed);
                self.session.opened();
            }
            REPORT => {
                let lun = lun_of(op >> 4, 0).expect("a number below 32");
                let told = self.session.report(lun, Attention::LUNS_CHANGED, &mut self.out);
                if let Some(aer) = told {
                    assert!(TargetIu::parse(&self.out[..aer.len]).is_ok());
                    assert!(matches!(Element::parse(&aer.element), Element::Message(_)));
                }
            }
            _ => {}
        }
    }

    fn element(&mut self, bytes: &[u8], readable: bool) {
        let mut element = [0; 16];
        let (head, unit) = bytes.split_at(bytes.len().min(16));
        element[..head.len()].copy_from_slice(head);
        match self.session.element(&element) {
            Next::Nothing => {}
            Next::Deliver(element) => {
                if let Element::Init(_) = Element::parse(&element) {
                    self.connection += 1;
                }
            }
            Next::Restart => {
                self.connection += 1;
                self.session.lost();
                for (task, tag, _) in std::mem::take(&mut self.tasks) {
                    assert!(!self.end(task, Outcome::Respond, tag));
                }
                self.session.restarted();
                assert_eq!(self.session.state(), State::Connected);
            }
            Next::Violated(_) => self.lose(),
            Next::Fetch { message, len } => {
                let mut padded = unit.to_vec();
                padded.resize(len as usize, 0);
                let before = self.session.state();
                match self.session.unit(&message, &padded, &mut self.out) {
                    Step::Nothing => {}
                    Step::Reply(reply) => self.check(&reply, None),
                    Step::Start { task, cmd } => {
                        self.tasks.push((task, cmd.tag, self.connection));
                    }
                    Step::Manage { task, request } => {
                        self.tasks.push((task, request.tag, self.connection));
                    }
                    Step::Payload(payload) => {
                        assert!(payload.len <= 4096);
                        let read = vec![unit.last().copied().unwrap_or(0); payload.len as usize];
                        let read = readable.then_some(read.as_slice());
                        let mut write = Vec::new();
                        let reply = self.session.payload(&payload, read, &mut write, &mut self.out);
                        assert!(write.len() <= payload.len as usize);
                        self.check(&reply, None);
                    }
                    Step::Violated(_) => {
                        assert_ne!(before, State::Waiting);
                        self.lose();
                    }
                }
            }
        }
    }

    fn lose(&mut self) {
        self.connection += 1;
        self.session.lost();
    }

    fn end(&mut self, task: TaskId, outcome: Outcome, tag: Tag) -> bool {
        let mut response = Response::good(tag);
        response.status = Status::CHECK_CONDITION;
        response.sense = Sense::TIMED_OUT.encode(false);
        let reply = self.session.ended(task, outcome, &response, &mut self.out);
        assert_eq!(self.session.ended(task, outcome, &response, &mut [0; MOST_UNIT]), None);
        let tag = (tag != Tag::default()).then_some(tag);
        reply.map(|reply| self.check(&reply, tag)).is_some()
    }

    /// An answer is a unit or a datagram, and names its request.
    fn check(&self, reply: &Reply, tag: Option<Tag>) {
        let Element::Message(message) = Element::parse(&reply.element) else {
            panic!("{reply:?}");
        };
        assert_eq!(usize::from(message.len), reply.len);
        if let Some(tag) = tag {
            assert_eq!(message.tag(), tag);
        }
        let unit = &self.out[..reply.len];
        match message.format {
            _ if unit.is_empty() => {}
            Format::Srp => assert!(TargetIu::parse(unit).is_ok()),
            // The rest of a datagram is not written.
            _ => assert_eq!(unit.len(), Mad::HEADER_LEN),
        }
    }
}

/// A partition: records of an operation, an address in its memory of two bytes (in steps of 16), a
/// length of two bytes, and as many bytes. The window maps the memory where the input does not say
/// otherwise.
pub fn adapter(data: &[u8]) {
    let Some(host) = host() else { return };
    // One partition at a time: they share the logical unit.
    let _turn = host.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = File::from(memfd_create(c"fuzz", MFdFlags::empty()).expect("memory"));
    memory.set_len(MEMORY).expect("memory");
    let region = Region::map(0, MEMORY, 0, 0, memory.try_clone().expect("a descriptor"));
    let map = GuestMap::new(vec![region.expect("memory")]).expect("one region");
    let window = Window::new(Arc::new(map), 1, 0, MEMORY / 4096);
    for page in (0..MEMORY).step_by(4096) {
        let _ = window.put_tce(page, page | 3);
    }
    let delivery = Delivery::Memory(Box::new(|| {}));
    let exports = vec![host.export.clone()];
    let config = Config { request_limit: 8, ..Config::new("fuzz") };
    let adapter = Adapter::new(config, exports, Arc::clone(&window), &host.reactors, delivery);
    let adapter = adapter.expect("a descriptor");
    let mut rest = data;
    while let [op, a, b, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (bytes, tail) = tail.split_at(len);
        rest = tail;
        let at = u64::from(u16::from_le_bytes([*a, *b])) * 16;
        call(&adapter, &window, &memory, *op, at, bytes);
    }
    let since = Instant::now();
    while adapter.reset() == Hcall::Busy {
        assert!(since.elapsed() < Duration::from_secs(10), "a queue is never free");
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn call(adapter: &Adapter, window: &Window, memory: &File, op: u8, at: u64, bytes: &[u8]) {
    let word = |at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_be_bytes(*word))
    };
    match op % 14 {
        0 => {
            let room = bytes.len().min((MEMORY.saturating_sub(at)) as usize);
            memory.write_all_at(&bytes[..room], at).expect("memory");
        }
        1 => {
            for element in bytes.chunks_exact(16) {
                let word = u128::from_be_bytes(element.try_into().expect("sixteen bytes"));
                let _ = adapter.send_crq((word >> 64) as u64, word as u64);
            }
        }
        2 => drop(adapter.reg_crq(at, word(0))),
        3 => drop(adapter.free_crq()),
        4 => drop(adapter.enable_crq()),
        5 => drop(adapter.vio_signal(at == 0)),
        6 => drop(window.put_tce(at, word(0))),
        7 => adapter.migrated(),
        8 => adapter.disconnect(TransportEvent::PartnerFailed),
        9 => adapter.set_online(at == 0),
        10 => {
            adapter.prepare_suspend();
            adapter.wait_suspended(Duration::from_millis(at & 1));
        }
        11 => adapter.resume(),
        12 => window.set_bypass(at == 0),
        // The client takes what there is, and time passes.
        _ => {
            std::thread::sleep(Duration::from_micros(100));
            memory.write_all_at(&[0; 4096], QUEUE).expect("memory");
        }
    }
}

/// A target in this process, for all inputs.
struct Host {
    reactors: Reactors<Server>,
    export: Export,
    _disk: Arc<LogicalUnit>,
    turn: Mutex<()>,
}

fn host() -> Option<&'static Host> {
    static HOST: OnceLock<Option<Host>> = OnceLock::new();
    HOST.get_or_init(|| {
        let reactors = Reactors::start(1).ok()?;
        let disk = ram_disk(reactors.postboxes(), 1 << 20, "FUZZ").ok()?;
        let export = reactors.export(0, "eui.1", vec![(0, Arc::clone(&disk))]).ok()?;
        Some(Host { reactors, export, _disk: disk, turn: Mutex::new(()) })
    })
    .as_ref()
}

fn unit(name: &str) -> Vec<u8> {
    let found = srp::iu_seeds().into_iter().find(|seed| seed.name == name);
    found.map(|seed| seed.bytes).unwrap_or_default()
}

/// An element that points at a unit.
fn pointing(format: u8, len: usize, at: u64) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    [&[0x80, format, 0, 0, 0, 0, len[0], len[1]][..], &at.to_be_bytes()].concat()
}

const INIT: [u8; 16] = [0xC0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// ADAPTER INFO, and one datagram of each other type.
fn datagram(kind: u8, len: u16) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[3] = kind;
    bytes[6..8].copy_from_slice(&len.to_be_bytes());
    bytes[8..16].copy_from_slice(&[kind; 8]);
    bytes[16..24].copy_from_slice(&DATA.to_be_bytes());
    bytes
}

/// Connections to their end.
pub fn session_seeds() -> Vec<Seed> {
    let record = |op: u8, bytes: &[u8]| {
        let len = (bytes.len() as u16).to_le_bytes();
        [&[op, len[0], len[1]], bytes].concat()
    };
    let srp = |name: &str| {
        let unit = unit(name);
        record(ELEMENT, &[pointing(1, unit.len(), 0x1000), unit].concat())
    };
    let mad = |kind: u8, len: u16| {
        let unit = datagram(kind, len);
        record(ELEMENT | FLAG, &[pointing(2, unit.len(), 0x1000), unit].concat())
    };
    let init = || record(ELEMENT, &INIT);
    let next = |op| record(op, &[]);
    let seed = |name, first: u8, records: &[Vec<u8>]| {
        let bytes = [&[first][..], &records.concat()].concat();
        Seed { name, bytes }
    };
    let read = || srp("cmd_read_direct");
    vec![
        seed("login_and_read", 1, &[init(), mad(3, 148), srp("login_req"), read(), next(END)]),
        seed(
            "open_firmware_then_a_kernel",
            0,
            &[init(), read(), next(END), next(REOPENED), init(), srp("login_req"), read()],
        ),
        seed(
            "restart_while_a_command_runs",
            0,
            &[init(), read(), init(), read(), next(END), next(LOST), init()],
        ),
        seed(
            "abort",
            0,
            &[init(), read(), srp("tsk_mgmt_abort"), next(END | FLAG), next(END), next(REFUSE)],
        ),
        seed(
            "datagrams",
            0,
            &[init(), mad(5, 68), mad(8, 0), mad(1, 0), mad(2, 104), mad(6, 528), mad(0x55, 0)],
        ),
        seed("aer", 0, &[init(), read(), mad(1, 256), next(REPORT), srp("aer_rsp")]),
    ]
}

/// Partitions to their end.
pub fn adapter_seeds() -> Vec<Seed> {
    let record = |op: u8, at: u64, bytes: &[u8]| {
        let at = ((at / 16) as u16).to_le_bytes();
        let len = (bytes.len() as u16).to_le_bytes();
        [&[op, at[0], at[1], len[0], len[1]], bytes].concat()
    };
    let registered = || {
        let register = record(2, QUEUE, &4096u64.to_be_bytes());
        [register, record(1, 0, &INIT)].concat()
    };
    let request = |at: u64, unit: &[u8], format: u8| {
        [record(0, at, unit), record(1, 0, &pointing(format, unit.len(), at))].concat()
    };
    let pause = || record(13, 0, &[]);
    let seed = |name, records: &[Vec<u8>]| Seed { name, bytes: records.concat() };
    let read = || {
        let mut unit = unit("cmd_read_direct");
        // Into this memory.
        if let Some(address) = unit.get_mut(48..56) {
            address.copy_from_slice(&DATA.to_be_bytes());
        }
        request(0x2000, &unit, 1)
    };
    let login = || request(0x3000, &unit("login_req"), 1);
    vec![
        seed("login_and_read", &[registered(), login(), read(), pause(), read(), pause()]),
        seed("datagram", &[registered(), request(0x3000, &datagram(3, 148), 2), pause()]),
        seed(
            "migrated",
            &[registered(), read(), record(7, 0, &[]), pause(), record(4, 0, &[]), read()],
        ),
        seed(
            "away_and_back",
            &[record(9, 16, &[]), registered(), record(9, 0, &[]), pause(), login(), pause()],
        ),
        seed(
            "suspended",
            &[registered(), record(10, 16, &[]), read(), record(11, 0, &[]), pause()],
        ),
        seed("unmapped", &[registered(), record(6, 0x2000, &[0; 8]), read(), pause()]),
        seed(
            "freed_while_busy",
            &[registered(), read(), record(3, 0, &[]), record(8, 0, &[]), registered(), pause()],
        ),
    ]
}

/// Bytes of a partition's memory.
const MEMORY: u64 = 0x2_0000;
const QUEUE: u64 = 0x1000;
const DATA: u64 = 0x8000;
