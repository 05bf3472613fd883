//! Hostile initiators: any CDB, any length, any amount of data, aborted at any moment, from several
//! nexuses on one and two reactors. Whatever they do, each command ends once and nothing stays.

use super::*;
use crate::{
    backend::{File, FileOptions, Null},
    opcode::TABLE,
    reactor::sg::Segment,
};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// A reproducible source of bad ideas (xorshift64*).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Zero, small, or anything.
    fn byte(&mut self) -> u8 {
        match self.below(8) {
            0..=4 => 0,
            5 | 6 => self.below(8) as u8,
            _ => self.next() as u8,
        }
    }

    /// A CDB of a known command with only bits it evaluates, or any bytes.
    fn cdb(&mut self) -> Vec<u8> {
        if self.one_in(4) {
            let len = self.below(41);
            let mut cdb: Vec<_> = (0..len).map(|_| self.next() as u8).collect();
            if let Some(opcode) = cdb.first_mut() {
                *opcode = self.next() as u8;
            }
            return cdb;
        }
        let row = &TABLE[self.below(TABLE.len())];
        let mut cdb: Vec<_> = row.usage.iter().map(|used| self.byte() & used).collect();
        cdb[0] = row.opcode;
        match row.service_action {
            Some(action) if row.opcode == 0x7F => {
                cdb[8..10].copy_from_slice(&action.to_be_bytes());
            }
            Some(action) => cdb[1] = cdb[1] & 0xE0 | action as u8,
            None => {}
        }
        match self.below(16) {
            0 => cdb.truncate(self.below(row.usage.len() + 1)),
            1 => cdb.resize(row.usage.len() + self.below(9), 0),
            _ => {}
        }
        cdb
    }

    fn capacity(&mut self) -> u32 {
        match self.below(8) {
            0..=2 => 0,
            3 => 1,
            4 => 1 + self.below(2000) as u32,
            5 => 512 << self.below(8),
            6 => 24,
            _ => 1 << 20,
        }
    }

    fn attribute(&mut self) -> TaskAttribute {
        match self.below(12) {
            0 => TaskAttribute::Ordered,
            1 => TaskAttribute::HeadOfQueue,
            2 => TaskAttribute::Aca,
            3 => TaskAttribute::Unknown(self.next() as u8),
            _ => TaskAttribute::Simple,
        }
    }

    fn function(&mut self) -> TaskFunction {
        match self.below(11) {
            0 => TaskFunction::AbortTask,
            1 => TaskFunction::AbortTaskSet,
            2 => TaskFunction::ClearTaskSet,
            3 => TaskFunction::LogicalUnitReset,
            4 => TaskFunction::ClearAca,
            5 => TaskFunction::ItNexusReset,
            6 => TaskFunction::QueryTask,
            7 => TaskFunction::QueryTaskSet,
            8 => TaskFunction::QueryAsynchronousEvent,
            9 => TaskFunction::TargetReset,
            _ => TaskFunction::Unknown(self.next() as u8),
        }
    }

    fn lun(&mut self) -> Lun {
        match self.below(12) {
            0 => Lun::REPORT_LUNS,
            1 => Lun(self.next().to_be_bytes()),
            2 => Lun::from_number(1).unwrap(),
            _ => Lun::default(),
        }
    }
}

/// A request that has not been answered.
struct Asked {
    nexus: u64,
    /// It is a command, of this logical unit.
    command: Option<Lun>,
    function: Option<TaskFunction>,
    capacity_out: u32,
    capacity_in: u32,
    /// What its segments point into.
    _memory: [Vec<u8>; 2],
}

/// One reactor and the initiators on it.
pub(super) struct Peers {
    pub(super) engine: Engine,
    reactor: u16,
    dice: Dice,
    target: Arc<Target>,
    nexuses: Vec<NexusView>,
    /// Nexuses that wait for their tasks to be aborted, by the cookie of that.
    dying: HashMap<u64, NexusView>,
    asked: HashMap<u64, Asked>,
    awaited: Vec<(u64, u64, DataOut)>,
    lent: Vec<DataIn>,
    mail: Vec<Mail>,
    done: Vec<Completion>,
    names: usize,
}

impl Peers {
    pub(super) fn new(world: &World, reactor: u16, seed: u64) -> Self {
        let model = Arc::clone(&world.model);
        let ring = if world.has_ring { Ring::new(16) } else { Ring::disabled() };
        let workers = Arc::clone(&world.workers);
        Self {
            engine: Engine::new(model, reactor, Pool::new(8 << 20), ring, workers),
            reactor,
            dice: Dice::new(seed),
            target: Arc::clone(&world.target),
            nexuses: Vec::new(),
            dying: HashMap::new(),
            asked: HashMap::new(),
            awaited: Vec::new(),
            lent: Vec::new(),
            mail: Vec::new(),
            done: Vec::new(),
            names: 0,
        }
    }

    /// A new initiator, whose logical units have told it that they were powered on.
    pub(super) fn nexus(&mut self) -> NexusView {
        self.names += 1;
        let name = format!("iqn.r{}.n{}", self.reactor, self.names);
        let identity = NexusId::new(TransportId::iscsi(&name, [0; 6]).unwrap(), 1);
        let nexus = Nexus::establish(Arc::clone(&self.target), 1, identity, name);
        let mut view = NexusView::new(nexus);
        let itl = Arc::clone(view.find(Lun::default()).unwrap());
        while itl.take_attention().is_some() {}
        view
    }

    fn owner(&self) -> Owner {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let cookie = NEXT.fetch_add(1, SeqCst);
        Owner { endpoint: EndpointId { index: 0, generation: 0 }, cookie }
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0 => self.manage(),
            1 if self.dice.one_in(3) => self.leave(),
            2..=5 => self.bring(),
            6..=9 => self.lent.truncate(self.dice.below(4)),
            10..=15 => self.turn(),
            _ => self.submit(),
        }
    }

    fn pick(&mut self) -> usize {
        while self.nexuses.len() < 3 {
            let nexus = self.nexus();
            self.nexuses.push(nexus);
        }
        self.dice.below(self.nexuses.len())
    }

    fn submit(&mut self) {
        let at = self.pick();
        let owner = self.owner();
        let cdb = self.dice.cdb();
        let (capacity_out, capacity_in) = (self.dice.capacity(), self.dice.capacity());
        let lun = self.dice.lun();
        let command = Command {
            tag: Tag::from_u64(owner.cookie),
            lun,
            attribute: self.dice.attribute(),
            priority: 0,
            cdb: &cdb,
            data_out: capacity_out,
            data_in: capacity_in,
        };
        let is_own = self.dice.one_in(3);
        let mut memory =
            [capacity_out, capacity_in].map(|len| vec![0; if is_own { len as usize } else { 0 }]);
        for byte in memory[0].iter_mut().take(64) {
            *byte = self.dice.byte();
        }
        let lists = memory.each_mut().map(|bytes| {
            let middle = bytes.len().min(700);
            let (front, back) = bytes.split_at_mut(middle);
            [Segment::of(front), Segment::of(back)]
        });
        let nexus = &mut self.nexuses[at];
        let asked = Asked {
            nexus: nexus.info().id,
            command: Some(lun),
            function: None,
            capacity_out,
            capacity_in,
            _memory: memory,
        };
        let id = asked.nexus;
        self.asked.insert(owner.cookie, asked);
        let memory = match is_own {
            true => Memory::Own { out: &lists[0], into: &lists[1] },
            false => Memory::Pool,
        };
        if let Submitted::NeedsData(data) = self.engine.submit(nexus, &command, memory, owner) {
            assert!(!is_own && (1..=capacity_out as usize).contains(&data.len));
            assert!(data.buffer.capacity() >= data.len);
            self.awaited.push((owner.cookie, id, data));
        }
    }

    /// Brings the Data-Out of some command, or does not.
    fn bring(&mut self) {
        if self.awaited.is_empty() {
            return;
        }
        let at = self.dice.below(self.awaited.len());
        let (cookie, _, mut data) = self.awaited.swap_remove(at);
        match self.dice.below(8) {
            0 => self.engine.fail(data.token, Sense::INTERNAL_FAILURE),
            1 => self.abandon(cookie, data),
            _ => {
                let is_blank = self.dice.one_in(3);
                for byte in data.buffer.bytes_mut().iter_mut().take(data.len.min(64)) {
                    *byte = if is_blank { 0 } else { self.dice.byte() };
                }
                self.engine.data_arrived(data.token, data.buffer);
            }
        }
    }

    fn abandon(&mut self, cookie: u64, data: DataOut) {
        // The completion of an aborted task may be there already, but not seen yet.
        self.collect();
        self.asked.remove(&cookie);
        self.engine.abandon(data.token);
    }

    fn manage(&mut self) {
        let at = self.pick();
        let owner = self.owner();
        let managed = owner.cookie.saturating_sub(self.dice.next() % 8);
        let request = TaskManagement {
            tag: Tag::from_u64(owner.cookie),
            lun: self.dice.lun(),
            function: self.dice.function(),
            managed: Tag::from_u64(managed),
        };
        self.expect(at, owner, request.function, request.lun);
        self.engine.manage(&mut self.nexuses[at], &request, owner);
    }

    fn expect(&mut self, at: usize, owner: Owner, function: TaskFunction, lun: Lun) {
        let is_here = lun == Lun::default() || function == TaskFunction::TargetReset;
        let asked = Asked {
            nexus: self.nexuses[at].info().id,
            command: None,
            function: is_here.then_some(function),
            capacity_out: 0,
            capacity_in: 0,
            _memory: Default::default(),
        };
        self.asked.insert(owner.cookie, asked);
    }

    /// An initiator goes in the midst of its commands.
    fn leave(&mut self) {
        let at = self.pick();
        let owner = self.owner();
        self.expect(at, owner, TaskFunction::ItNexusReset, Lun::default());
        let nexus = self.nexuses.swap_remove(at);
        self.engine.abort_nexus(&nexus, owner);
        self.collect();
        let (gone, stay): (Vec<_>, _) =
            self.awaited.drain(..).partition(|(_, id, _)| *id == nexus.info().id);
        self.awaited = stay;
        for (cookie, _, data) in gone {
            assert!(!self.asked.contains_key(&cookie), "the abort ended {cookie}");
            self.engine.abandon(data.token);
        }
        if self.asked.contains_key(&owner.cookie) {
            self.dying.insert(owner.cookie, nexus);
        }
    }

    fn turn(&mut self) {
        self.engine.model.postboxes.take(self.reactor, &mut self.mail);
        self.engine.turn(&mut self.mail);
        self.collect();
    }

    /// Holds each completion to what was asked.
    fn collect(&mut self) {
        self.engine.completions(&mut self.done);
        for done in mem::take(&mut self.done) {
            let cookie = done.owner.cookie;
            let asked = self.asked.remove(&cookie).expect("one completion, of something asked");
            self.dying.remove(&cookie);
            if let Some(function) = asked.function {
                self.check_function(cookie, asked.nexus, function);
            }
            if asked.command.is_some() && done.outcome == Outcome::Respond {
                assert_eq!(done.response.code, ResponseCode::None);
                check(&done, &asked);
            }
            self.lent.push(done.data);
        }
    }

    /// None of what a function aborts ends after it.
    fn check_function(&self, cookie: u64, nexus: u64, function: TaskFunction) {
        let ends_all = matches!(
            function,
            TaskFunction::LogicalUnitReset | TaskFunction::ClearTaskSet | TaskFunction::TargetReset
        );
        let ends_own = matches!(function, TaskFunction::AbortTaskSet);
        let ends_nexus = matches!(function, TaskFunction::ItNexusReset);
        for (other, asked) in &self.asked {
            let is_at_lun = asked.command == Some(Lun::default());
            let is_of_it = asked.nexus == nexus && asked.command.is_some();
            let should_be_gone = is_at_lun && ends_all
                || is_at_lun && is_of_it && ends_own
                || is_of_it && ends_nexus;
            assert!(
                *other > cookie || !should_be_gone,
                "{function:?} {cookie} ended before command {other}"
            );
        }
    }

    /// Brings everything to its end.
    fn finish(&mut self) {
        while !self.awaited.is_empty() {
            self.bring();
        }
        let start = Instant::now();
        while !self.asked.is_empty() || self.engine.is_busy() {
            self.turn();
            self.lent.clear();
            assert!(start.elapsed() < PATIENCE, "{} never end", self.asked.len());
            thread::sleep(Duration::from_micros(50));
        }
        self.nexuses.clear();
        assert!(self.dying.is_empty());
    }

    /// A command from submission to completion, in a test that has no other.
    pub(super) fn call(
        &mut self,
        nexus: &mut NexusView,
        cdb: &[u8],
        how: &How<'_>,
    ) -> (Status, Vec<u8>) {
        let owner = self.owner();
        let command = how.command(owner.cookie, cdb);
        let submitted = self.engine.submit(nexus, &command, Memory::Pool, owner);
        if let Submitted::NeedsData(DataOut { token, mut buffer, len }) = submitted {
            buffer.bytes_mut()[..len].copy_from_slice(&how.out[..len]);
            self.engine.data_arrived(token, buffer);
        }
        let start = Instant::now();
        loop {
            self.engine.completions(&mut self.done);
            if let Some(done) = self.done.pop() {
                assert!(self.done.is_empty() && done.owner == owner);
                return (done.response.status, bytes(&done.data));
            }
            assert!(start.elapsed() < PATIENCE, "{cdb:02X?} never ends");
            self.idle();
        }
    }

    /// Does what the other reactor asks for.
    pub(super) fn idle(&mut self) {
        self.engine.model.postboxes.take(self.reactor, &mut self.mail);
        self.engine.turn(&mut self.mail);
        thread::yield_now();
    }
}

/// Data-In fits, and what was moved and the residual add up to the capacity.
fn check(done: &Completion, asked: &Asked) {
    let moved = done.data.len();
    assert!(moved <= asked.capacity_in as usize);
    let Response { status, data_in, data_out, .. } = done.response;
    if status == Status::TASK_ABORTED {
        return;
    }
    match data_in {
        Residual::Under(rest) => assert_eq!(moved + rest as usize, asked.capacity_in as usize),
        Residual::None | Residual::Over(_) => assert_eq!(moved, asked.capacity_in as usize),
    }
    if let Residual::Under(rest) = data_out {
        assert!((1..=asked.capacity_out).contains(&rest));
    }
    assert_eq!(status == Status::CHECK_CONDITION, !done.response.sense.as_bytes().is_empty());
}

/// A target with one logical unit that several reactors share.
pub(super) struct World {
    model: Arc<Model>,
    target: Arc<Target>,
    pub(super) lu: Arc<LogicalUnit>,
    workers: Arc<Workers>,
    has_ring: bool,
    file: Option<PathBuf>,
}

#[derive(Clone, Copy)]
pub(super) enum Medium {
    Ram,
    Null,
    File { has_ring: bool },
}

impl World {
    pub(super) fn new(medium: Medium, block_size: u32, reactors: usize) -> Self {
        let mut file = None;
        let backend = match medium {
            Medium::Ram => Backend::Mem(Mem::new(LEN, block_size).unwrap()),
            Medium::Null => Backend::Null(Null::new(LEN, block_size)),
            Medium::File { .. } => {
                static NEXT: AtomicU64 = AtomicU64::new(1);
                let number = NEXT.fetch_add(1, SeqCst);
                let name = format!("vscsi-engine-{}-{number}", std::process::id());
                let path = file.insert(std::env::temp_dir().join(name)).clone();
                std::fs::File::create(&path).unwrap().set_len(LEN).unwrap();
                let options = FileOptions { path, block_size, read_only: false, direct: false };
                Backend::File(File::open(&options).unwrap())
            }
        };
        let postboxes = Postboxes::new(reactors).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.example:t").unwrap();
        target.add_port(1, 5, "iqn.2026-11.example:t,t,0x0001".to_owned());
        let config = LuConfig {
            identity: Identity::derive("engine tests", None),
            removable: true,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, postboxes);
        target.map(0, Arc::clone(&lu), None).unwrap();
        let has_ring = !matches!(medium, Medium::File { has_ring: false });
        Self { model, target, lu, workers: Arc::new(Workers::new(2)), has_ring, file }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Lets random initiators loose, on as many threads as there are reactors, and looks at what is
/// left: the nexus that reserved the logical unit still holds it, and reads.
fn storm(medium: Medium, block_size: u32, reactors: u16, steps: usize) {
    let world = World::new(medium, block_size, usize::from(reactors));
    let (finished, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let reserved = Barrier::new(usize::from(reactors));
    thread::scope(|scope| {
        for reactor in 0..reactors {
            let (world, finished, is_over) = (&world, &finished, &is_over);
            let reserved = &reserved;
            scope.spawn(move || {
                let seed = u64::from(block_size) << 8 | u64::from(reactor);
                let mut peers = Peers::new(world, reactor, seed);
                let mut holder = (reactor == 0).then(|| reserve(&mut peers));
                reserved.wait();
                for _ in 0..steps {
                    peers.step();
                }
                peers.finish();
                finished.fetch_add(1, SeqCst);
                while finished.load(SeqCst) < usize::from(reactors) {
                    peers.idle();
                }
                if let Some(holder) = &mut holder {
                    aftermath(world, &mut peers, holder);
                    is_over.store(1, SeqCst);
                }
                while is_over.load(SeqCst) == 0 && !thread::panicking() {
                    peers.idle();
                }
                assert!(!peers.engine.is_busy());
                assert_eq!(peers.engine.pool.lent(), 0);
            });
        }
    });
}

/// A nexus that has reserved the logical unit: write exclusive, so that the others may read.
fn reserve(peers: &mut Peers) -> NexusView {
    let mut nexus = peers.nexus();
    let list = |key: u64, new: u64| [&key.to_be_bytes()[..], &new.to_be_bytes(), &[0; 8]].concat();
    for (action, list) in [(0, list(0, KEY)), (1, list(KEY, 0))] {
        let cdb = [0x5F, action, action, 0, 0, 0, 0, 0, 24, 0];
        assert_eq!(peers.call(&mut nexus, &cdb, &out(&list)).0, Status::GOOD);
    }
    nexus
}

fn aftermath(world: &World, peers: &mut Peers, holder: &mut NexusView) {
    let start = Instant::now();
    while world.lu.state().busy.is_some_and(|busy| busy.key == 2) && start.elapsed() < PATIENCE {
        peers.idle();
    }
    assert!(world.lu.gate.enter(0).map(|epoch| world.lu.gate.leave(0, epoch)).is_some());
    let state = world.lu.state();
    assert!(state.reservations.is_holder(&holder.info().identity));
    assert_eq!(state.aca, None);
    drop(state);
    world.lu.update(|state| (state.stopped, state.ejected) = (false, false));
    let itl = Arc::clone(holder.find(Lun::default()).unwrap());
    while itl.take_attention().is_some() {}
    let block = world.lu.block_size();
    let (status, data) = peers.call(holder, &read_10(0, 1), &room(block));
    assert_eq!((status, data.len()), (Status::GOOD, block as usize));
}

#[test]
fn ram_survives_any_commands() {
    storm(Medium::Ram, 512, 1, 30_000);
}

#[test]
fn ram_of_4096_byte_blocks_survives_any_commands_on_two_reactors() {
    storm(Medium::Ram, 4096, 2, 16_000);
}

#[test]
fn null_survives_any_commands_on_two_reactors() {
    storm(Medium::Null, 512, 2, 16_000);
}

#[test]
fn a_file_survives_any_commands_on_two_reactors() {
    storm(Medium::File { has_ring: true }, 512, 2, 8000);
}

#[test]
fn a_file_without_io_uring_survives_any_commands() {
    storm(Medium::File { has_ring: false }, 4096, 1, 8000);
}

/// Bytes of the medium.
const LEN: u64 = 1 << 20;

/// No other nexus guesses it.
const KEY: u64 = 0x5EC2_E7C0_DE00_0001;

/// Time after which something is lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
