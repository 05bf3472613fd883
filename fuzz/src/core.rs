//! vscsi-target: commands and task management against an engine, parameter lists, saved state.

use std::collections::BTreeMap;
use std::fs;
use std::process;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use libsrp::{
    Command, Lun, Residual, Response, Status, Tag, TaskAttribute, TaskFunction, TaskManagement,
};
use vscsi_target::backend::{Backend, Mem};
use vscsi_target::engine::{
    Completion, DataIn, DataOut, Engine, Memory, Outcome, Owner, Submitted,
};
use vscsi_target::model::reservation::{Capabilities, NexusId, Reservations, TransportId};
use vscsi_target::model::snapshot;
use vscsi_target::model::{Identity, LogicalUnit, LuConfig, Model, Nexus, NexusView, Target};
use vscsi_target::opcode::{Row, Transfer};
use vscsi_target::reactor::sg::Segment;
use vscsi_target::reactor::{
    EndpointId, Mail, Postboxes, pool::Pool, ring::Ring, workers::Workers,
};
use vscsi_target::sense::Sense;
use vscsi_target::spc::mode::{self, Modes};

use crate::Seed;

/// What initiators do, one step after another: commands, Data-Out brought or not, task management,
/// nexuses that go. Whatever it was, each command ends once and nothing of it stays.
pub fn command(data: &[u8]) {
    let Some(mut rig) = Rig::new() else { return };
    let mut input = Input(data);
    for _ in 0..MAX_STEPS {
        let Some(step) = input.byte() else { break };
        match step {
            0xFF => rig.manage(&mut input),
            0xFE => rig.turn(),
            0xFD => rig.kept.clear(),
            0xFC => rig.leave(input.pick()),
            0xF8..=0xFB => rig.bring(step & 3, &mut input),
            _ => rig.submit(step, &mut input),
        }
    }
    rig.finish();
}

/// A parameter list for one of the commands that take one, and what can be read afterwards: the
/// first byte chooses the command, the second its service action or mode.
pub fn parameters(data: &[u8]) {
    let [choice, action, list @ ..] = data else { return };
    let Some(mut rig) = Rig::new() else { return };
    let list = &list[..list.len().min(1024)];
    let [high, low] = (list.len() as u16).to_be_bytes();
    let register = [[0; 8], KEY, [0; 8]].concat();
    rig.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register, 0);
    let cdb: &[u8] = match choice % 7 {
        0 => &[0x15, 0x10 | action & 1, 0, 0, low, 0],
        1 => &[0x55, 0x10 | action & 1, 0, 0, 0, 0, 0, high, low, 0],
        2 => &[0x5F, action & 0x1F, action >> 5, 0, 0, 0, 0, high, low, 0],
        3 => &[0x42, action & 1, 0, 0, 0, 0, 0, high, low, 0],
        4 => &[0x04, 0x10 | action & 0x38, 0, 0, 0, 0],
        5 => &[0x3B, action & 0x1F, 0, 0, 0, 0, 0, high, low, 0],
        _ => &[0x1D, action & 0xF7, 0, high, low, 0],
    };
    rig.call(cdb, list, 0);
    // While it formats, some of these are NOT READY; that is a status like others.
    let (status, modes) = rig.call(&[0x5A, 0, 0x3F, 0xFF, 0, 0, 0, 4, 0, 0], &[], 1024);
    if let (Status::GOOD, Some(length)) = (status, modes.first_chunk()) {
        assert_eq!(usize::from(u16::from_be_bytes(*length)) + 2, modes.len());
    }
    for action in 0..4 {
        let (status, data) = rig.call(&[0x5E, action, 0, 0, 0, 0, 0, 4, 0, 0], &[], 1024);
        assert_eq!(status, Status::GOOD);
        assert!((8..=1024).contains(&data.len()));
    }
    rig.finish();
}

/// What a file of saved state may hold: reservations, or mode parameters after an odd first byte.
pub fn saved(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    if kind & 1 == 0 {
        let capabilities =
            Capabilities { persist_through_power_loss: true, ..Capabilities::default() };
        let Ok(mut state) = Reservations::from_json(text, capabilities) else { return };
        let again = state.to_json().map(|text| Reservations::from_json(&text, capabilities));
        assert_eq!(again.ok().and_then(Result::ok).as_ref(), Some(&state));
        state.power_on();
        for (nexus, key) in state.registrations() {
            assert_ne!(key, 0);
            let _ = (state.denied(nexus), state.is_holder(nexus));
        }
        return;
    }
    let path = std::env::temp_dir().join(format!("vscsi-fuzz-{}", process::id()));
    if fs::write(&path, text).is_ok()
        && let Ok(Some(settings)) = mode::load(&path)
    {
        assert!(mode::save(&path, settings).is_ok());
        assert_eq!(mode::load(&path).ok().flatten(), Some(settings));
        if let Ok(memory) = Mem::new(1 << 16, 512) {
            Modes::for_backend(Backend::Mem(memory).properties(), Some(settings)).reset();
        }
    }
    let _ = fs::remove_file(&path);
}

/// The live state of logical units as another host may send it: what is taken over is what is given
/// on, and the logical unit works with it.
pub fn live(data: &[u8]) {
    let Some(mut rig) = Rig::new() else { return };
    rig.nexuses.truncate(1);
    let nexus = Arc::clone(rig.nexuses[0].nexus());
    if snapshot::restore(&nexus, data).is_ok() {
        let once = snapshot::save(&nexus);
        assert!(snapshot::restore(&nexus, &once).is_ok());
        assert_eq!(snapshot::save(&nexus), once);
        rig.call(&[0; 6], &[], 0);
        rig.call(&[0x1A, 0, 0x3F, 0, 255, 0], &[], 255);
        rig.call(&[0x5E, 3, 0, 0, 0, 0, 0, 4, 0, 0], &[], 1024);
        rig.call(&[0x1B, 0, 0, 0, 2, 0], &[], 0);
        rig.lu.update(|state| state.waiting.clear());
    }
    drop(nexus);
    rig.finish();
}

/// Seeds of [`command`]: each is a command with what its CDB needs, then one of each other step.
pub fn command_seeds() -> Vec<Seed> {
    let seed = |name, steps: &[&[u8]]| Seed { name, bytes: steps.concat() };
    // Step, attribute and nexus, LUN, capacities, CDB with its length in front.
    let ask =
        |cdb: &[u8], out: u8, into: u8| [&[0, 0, 0, out, into, cdb.len() as u8][..], cdb].concat();
    let read = ask(&[0x28, 0, 0, 0, 0, 4, 0, 0, 2, 0], 0, 0x8A);
    let write = ask(&[0x2A, 0, 0, 0, 0, 4, 0, 0, 2, 0], 0x8A, 0);
    let swap = ask(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0], 0x8A, 0);
    let inquiry = ask(&[0x12, 1, 0x83, 0, 255, 0], 0, 0x88);
    let register = ask(&[0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0], 24, 0);
    let preempt = ask(&[0x5F, 5, 1, 0, 0, 0, 0, 0, 24, 0], 24, 0);
    let keys = [&[0xF8, 0, 24][..], &[0; 8], &KEY, &[0; 8]].concat();
    let ordered = [&[0, 2][..], &read[2..]].concat();
    vec![
        seed("read_write", &[&write, &[0xF8, 0, 0], &read, &[0xFD]]),
        seed("compare_and_write", &[&read, &swap, &[0xF8, 0, 0], &ordered, &[0xFD, 0xFE]]),
        seed("inquiry", &[&inquiry]),
        seed("reserve", &[&register, &keys, &[0xFE], &preempt, &keys, &preempt, &keys]),
        seed("reset", &[&write, &[0xFF, 3, 0, 0], &[0xF9, 0], &[0xFC, 0]]),
        seed("abort", &[&write, &[0xFF, 0, 0, 1], &[0xFA, 0], &[0xFF, 2, 1, 0]]),
    ]
}

/// Seeds of [`parameters`].
pub fn parameters_seeds() -> Vec<Seed> {
    let seed = |name, parts: &[&[u8]]| Seed { name, bytes: parts.concat() };
    let control = [0x0A, 0x0A, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    let caching = [&[0x08, 0x12, 0x04][..], &[0; 17]].concat();
    let id = TransportId::iscsi("iqn.2026-11.org.example:c", [0; 6]);
    let id = id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    let id_length = (id.len() as u32).to_be_bytes();
    vec![
        seed("mode_select_6", &[&[0, 0, 0, 0, 0, 0], &control]),
        seed("mode_select_10", &[&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], &caching, &control]),
        seed("register", &[&[2, 0], &KEY, &[1; 8], &[0; 8]]),
        seed(
            "register_for_others",
            &[&[2, 0], &KEY, &KEY, &[0, 0, 0, 0, 8, 0, 0, 0], &id_length, &id],
        ),
        seed("move", &[&[2, 7], &KEY, &KEY, &[0, 0, 0, 1], &id_length, &id]),
        seed("reserve", &[&[2, 0x21], &KEY, &[0; 16]]),
        seed("clear", &[&[2, 3], &KEY, &[0; 16]]),
        seed("preempt", &[&[2, 0x25], &KEY, &KEY, &[0; 8]]),
        seed(
            "unmap",
            &[&[3, 0, 0, 22, 0, 16, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]],
        ),
        seed("format", &[&[4, 0, 0, 0x82, 0, 0]]),
        seed("write_buffer", &[&[5, 0x0A], &[7; 64]]),
        seed("diagnostic", &[&[6, 0x10], &[0, 0, 0, 0]]),
    ]
}

/// Seeds of [`saved`].
pub fn saved_seeds() -> Vec<Seed> {
    let modes = "\u{1}{\"version\":1,\"settings\":{\"write_cache\":true,\"descriptor_sense\":false,\
                 \"write_protect\":false,\"task_aborted\":true}}";
    let mut reservations = vec![0];
    if let Some(mut rig) = Rig::new() {
        let register = [[0; 8], KEY, [0; 8]].concat();
        rig.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register, 0);
        let reserve = [&KEY[..], &[0; 16]].concat();
        rig.call(&[0x5F, 1, 5, 0, 0, 0, 0, 0, 24, 0], &reserve, 0);
        reservations.extend(rig.lu.state().reservations.to_json().unwrap_or_default());
    }
    vec![
        Seed { name: "modes", bytes: modes.as_bytes().to_vec() },
        Seed { name: "reservations", bytes: reservations },
    ]
}

/// Seeds of [`live`].
pub fn live_seeds() -> Vec<Seed> {
    let Some(mut rig) = Rig::new() else { return Vec::new() };
    let seed = |name, rig: &Rig| Seed { name, bytes: snapshot::save(rig.nexuses[0].nexus()) };
    let calm = seed("calm", &rig);
    let register = [[0; 8], KEY, [0; 8]].concat();
    rig.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register, 0);
    rig.call(&[0x5F, 1, 5, 0, 0, 0, 0, 0, 24, 0], &[&KEY[..], &[0; 16]].concat(), 0);
    rig.call(&[0x1E, 0, 0, 0, 1, 0], &[], 0);
    rig.lu.resized();
    let registered = seed("registered", &rig);
    rig.lu.update(|state| {
        state.reservations = Reservations::default();
        (state.stopped, state.ejected, state.sanitize_failed) = (true, true, true);
    });
    while rig.nexuses[0].find(Lun::default()).is_some_and(|itl| itl.take_attention().is_some()) {}
    rig.call(&[0x16, 0, 0, 0, 0, 0], &[], 0);
    vec![calm, registered, seed("reserved", &rig)]
}

/// The rest of an input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn pick(&mut self) -> usize {
        self.byte().unwrap_or_default().into()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A size: itself below 128, then powers of two and one less.
    fn size(&mut self) -> u32 {
        match self.byte().unwrap_or_default() {
            small @ 0..0x80 => u32::from(small),
            big => (1 << (big & 0x1F).min(18)) - u32::from(big >> 5 & 1),
        }
    }

    fn lun(&mut self) -> Lun {
        match self.byte().unwrap_or_default() {
            0xFF => Lun::REPORT_LUNS,
            0xFE => Lun::from_number(1).unwrap_or_default(),
            flat @ 0xC0.. => Lun([flat, 1, 2, 3, 4, 5, 6, 7]),
            _ => Lun::default(),
        }
    }
}

/// A command in progress.
struct Asked {
    nexus: u64,
    is_command: bool,
    transfer: Option<Transfer>,
    capacity_in: u32,
    /// What its segments point into.
    _memory: [Vec<u8>; 2],
}

/// A target with a logical unit of memory, and three initiators.
struct Rig {
    engine: Engine,
    target: Arc<Target>,
    lu: Arc<LogicalUnit>,
    nexuses: Vec<NexusView>,
    dying: BTreeMap<u64, NexusView>,
    asked: BTreeMap<u64, Asked>,
    awaited: Vec<(u64, u64, DataOut)>,
    kept: Vec<DataIn>,
    mail: Vec<Mail>,
    done: Vec<Completion>,
    cookie: u64,
}

impl Rig {
    /// `None` when the system has no memory for it.
    fn new() -> Option<Self> {
        static WORKERS: OnceLock<Arc<Workers>> = OnceLock::new();
        let postboxes = Postboxes::new(1).ok()?;
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.org.example:t").ok()?;
        target.add_port(1, 5, "iqn.2026-11.org.example:t,t,0x0001".to_owned());
        let backend = Backend::Mem(Mem::new(1 << 16, 512).ok()?);
        let config = LuConfig {
            identity: Identity::derive("fuzz", None),
            removable: true,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, postboxes);
        target.map(0, Arc::clone(&lu), None).ok()?;
        let workers = WORKERS.get_or_init(|| Arc::new(Workers::new(1)));
        let engine =
            Engine::new(model, 0, Pool::new(1 << 20), Ring::disabled(), Arc::clone(workers));
        let mut rig = Self {
            engine,
            target,
            lu,
            nexuses: Vec::new(),
            dying: BTreeMap::new(),
            asked: BTreeMap::new(),
            awaited: Vec::new(),
            kept: Vec::new(),
            mail: Vec::new(),
            done: Vec::new(),
            cookie: 0,
        };
        for _ in 0..NEXUSES {
            rig.join()?;
        }
        Some(rig)
    }

    fn join(&mut self) -> Option<()> {
        let name = format!("iqn.2026-11.org.example:{}", self.owner().cookie);
        let identity = NexusId::new(TransportId::iscsi(&name, [0; 6]).ok()?, 1);
        let mut nexus =
            NexusView::new(Nexus::establish(Arc::clone(&self.target), 1, identity, name));
        let itl = Arc::clone(nexus.find(Lun::default())?);
        while itl.take_attention().is_some() {}
        self.nexuses.push(nexus);
        Some(())
    }

    fn owner(&mut self) -> Owner {
        self.cookie += 1;
        Owner { endpoint: EndpointId { index: 0, generation: 0 }, cookie: self.cookie }
    }

    fn submit(&mut self, step: u8, input: &mut Input<'_>) {
        let flags = input.byte().unwrap_or_default();
        let attribute = match flags & 7 {
            1 => TaskAttribute::HeadOfQueue,
            2 => TaskAttribute::Ordered,
            4 => TaskAttribute::Aca,
            other @ 5.. => TaskAttribute::Unknown(other),
            _ => TaskAttribute::Simple,
        };
        let lun = input.lun();
        let (data_out, data_in) = (input.size(), input.size());
        let len = input.pick() % 41;
        let cdb = input.bytes(len);
        let owner = self.owner();
        let tag = Tag::from_u64(owner.cookie);
        let command = Command { tag, lun, attribute, priority: 0, cdb, data_out, data_in };
        let mut memory = [Vec::new(), Vec::new()];
        if step & 1 != 0 {
            memory = [vec![step; data_out as usize], vec![0; data_in as usize]];
        }
        let lists = memory.each_mut().map(|bytes| {
            let middle = bytes.len().min(100);
            let (front, back) = bytes.split_at_mut(middle);
            [Segment::of(front), Segment::of(back)]
        });
        let memory_of_command = match step & 1 {
            0 => Memory::Pool,
            _ => Memory::Own { out: &lists[0], into: &lists[1] },
        };
        let at = usize::from(flags >> 4) % self.nexuses.len();
        let nexus = self.nexuses[at].info().id;
        let asked = Asked {
            nexus,
            is_command: true,
            transfer: Row::find(cdb).ok().map(|row| row.transfer),
            capacity_in: data_in,
            _memory: memory,
        };
        self.asked.insert(owner.cookie, asked);
        let submitted =
            self.engine.submit(&mut self.nexuses[at], &command, memory_of_command, owner);
        if let Submitted::NeedsData(data) = submitted {
            assert!((1..=data_out as usize).contains(&data.len));
            assert!(data.buffer.capacity() >= data.len);
            self.awaited.push((owner.cookie, nexus, data));
        }
    }

    fn bring(&mut self, how: u8, input: &mut Input<'_>) {
        let at = input.pick();
        if self.awaited.is_empty() {
            return;
        }
        let (cookie, _, mut data) = self.awaited.swap_remove(at % self.awaited.len());
        match how {
            1 => self.engine.fail(data.token, Sense::INTERNAL_FAILURE),
            2 => {
                self.collect();
                self.asked.remove(&cookie);
                self.engine.abandon(data.token);
            }
            _ => {
                let len = input.pick().min(data.len);
                let given = input.bytes(len);
                let (front, rest) = data.buffer.bytes_mut().split_at_mut(given.len());
                front.copy_from_slice(given);
                rest.fill(0);
                self.engine.data_arrived(data.token, data.buffer);
            }
        }
    }

    fn manage(&mut self, input: &mut Input<'_>) {
        let function = match input.byte().unwrap_or_default() {
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
            other => TaskFunction::Unknown(other),
        };
        let at = input.pick() % self.nexuses.len();
        let owner = self.owner();
        let managed = owner.cookie.saturating_sub(input.pick() as u64);
        let lun = input.lun();
        let (tag, managed) = (Tag::from_u64(owner.cookie), Tag::from_u64(managed));
        self.expect(at, owner);
        let request = TaskManagement { tag, lun, function, managed };
        self.engine.manage(&mut self.nexuses[at], &request, owner);
    }

    fn expect(&mut self, at: usize, owner: Owner) {
        let asked = Asked {
            nexus: self.nexuses[at].info().id,
            is_command: false,
            transfer: None,
            capacity_in: 0,
            _memory: Default::default(),
        };
        self.asked.insert(owner.cookie, asked);
    }

    /// A nexus goes in the midst of its commands, and another comes.
    fn leave(&mut self, at: usize) {
        let at = at % self.nexuses.len();
        let owner = self.owner();
        self.expect(at, owner);
        let nexus = self.nexuses.swap_remove(at);
        self.engine.abort_nexus(&nexus, owner);
        self.collect();
        let id = nexus.info().id;
        let (gone, stay): (Vec<_>, _) = self.awaited.drain(..).partition(|(_, of, _)| *of == id);
        self.awaited = stay;
        for (cookie, _, data) in gone {
            assert!(!self.asked.contains_key(&cookie), "the abort ended it");
            self.engine.abandon(data.token);
        }
        if self.asked.contains_key(&owner.cookie) {
            self.dying.insert(owner.cookie, nexus);
        }
        assert!(self.join().is_some());
    }

    fn turn(&mut self) {
        self.engine.model.postboxes.take(0, &mut self.mail);
        self.engine.turn(&mut self.mail);
        self.collect();
    }

    fn collect(&mut self) {
        self.engine.completions(&mut self.done);
        for done in self.done.drain(..) {
            let cookie = done.owner.cookie;
            let asked = self.asked.remove(&cookie);
            assert!(asked.is_some(), "a completion of nothing that is in progress");
            let Some(asked) = asked else { continue };
            if self.dying.remove(&cookie).is_some() {
                let left = self.asked.values().filter(|other| other.nexus == asked.nexus);
                assert_eq!(left.filter(|other| other.is_command).count(), 0);
            }
            if asked.is_command && done.outcome == Outcome::Respond {
                check(&done, &asked);
            }
            self.kept.push(done.data);
        }
    }

    /// A command by itself: its status and Data-In.
    fn call(&mut self, cdb: &[u8], out: &[u8], data_in: u32) -> (Status, Vec<u8>) {
        let owner = self.owner();
        let command = Command {
            tag: Tag::from_u64(owner.cookie),
            lun: Lun::default(),
            attribute: TaskAttribute::Simple,
            priority: 0,
            cdb,
            data_out: out.len() as u32,
            data_in,
        };
        let submitted = self.engine.submit(&mut self.nexuses[0], &command, Memory::Pool, owner);
        if let Submitted::NeedsData(DataOut { token, mut buffer, len }) = submitted {
            buffer.bytes_mut()[..len].copy_from_slice(&out[..len]);
            self.engine.data_arrived(token, buffer);
        }
        let start = Instant::now();
        loop {
            self.engine.completions(&mut self.done);
            if let Some(done) = self.done.pop() {
                assert!(self.done.is_empty() && done.data.len() <= data_in as usize);
                let data = match &done.data {
                    DataIn::Buffer(buffer, len) => buffer.bytes()[..*len].to_vec(),
                    _ => Vec::new(),
                };
                return (done.response.status, data);
            }
            wait(start);
            self.engine.model.postboxes.take(0, &mut self.mail);
            self.engine.turn(&mut self.mail);
        }
    }

    /// Everything ends, and another initiator finds the logical unit working.
    fn finish(mut self) {
        while !self.awaited.is_empty() {
            self.bring(0, &mut Input(&[]));
        }
        let start = Instant::now();
        while !self.asked.is_empty() || self.engine.is_busy() {
            self.turn();
            self.kept.clear();
            if !self.asked.is_empty() {
                wait(start);
            }
        }
        while self.lu.state().busy.is_some_and(|busy| busy.key == NOT_READY) {
            wait(start);
        }
        self.kept.clear();
        self.nexuses.clear();
        assert_eq!(self.engine.pool.lent(), 0);
        assert!(self.join().is_some());
        self.lu.update(|state| {
            assert_eq!(state.aca, None);
            state.reservations = Reservations::default();
            (state.stopped, state.ejected, state.sanitize_failed) = (false, false, false);
            state.busy = None;
        });
        let (status, _) = self.call(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512);
        assert_eq!(status, Status::GOOD);
        let ordered = self.lu.gate.enter(0);
        assert!(ordered.is_some(), "the gate stayed raised");
    }
}

/// Data-In fits; what was moved and the residual add up to the initiator's capacity.
fn check(done: &Completion, asked: &Asked) {
    let moved = done.data.len();
    assert!(moved <= asked.capacity_in as usize);
    let Response { status, data_in, .. } = done.response;
    if status == Status::TASK_ABORTED {
        return;
    }
    let rest = match data_in {
        Residual::Under(rest) => rest,
        Residual::None | Residual::Over(_) => 0,
    };
    assert_eq!(moved + rest as usize, asked.capacity_in as usize, "{:?}", asked.transfer);
    assert_eq!(status == Status::CHECK_CONDITION, !done.response.sense.as_bytes().is_empty());
}

fn wait(since: Instant) {
    assert!(since.elapsed() < PATIENCE, "something never ends");
    thread::sleep(Duration::from_micros(20));
}

const KEY: [u8; 8] = *b"key of A";
const NEXUSES: usize = 3;
const MAX_STEPS: usize = 64;
const NOT_READY: u8 = 2;
const PATIENCE: Duration = Duration::from_secs(10);
