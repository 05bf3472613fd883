//! A controller in software, for tests: it runs on a thread of its own, reads and writes the same
//! memory as a device would, and misbehaves as it is told.

use crate::{
    controller::{Controller, Options},
    device::Device,
    error::OpenError,
    registers::Registers,
    space::Space,
    sysfs::Bdf,
    wire::{Cqe, IDENTIFY_BYTES, Sqe, Status, offset},
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    num::NonZeroUsize,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Bytes a block of the model's namespace 1.
pub const BLOCK: usize = 512;
/// Its blocks.
pub const BLOCKS: usize = 8192;
/// The most bytes a command moves.
pub const MOST: usize = 64 << 10;

/// How the model misbehaves. What counts commands counts those of I/O queues.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// So many commands fail with this status.
    pub failures: VecDeque<Status>,
    /// So many commands are taken and never completed.
    pub lost: usize,
    /// A completion that nobody asked for comes first.
    pub stray: Option<Cqe>,
    /// A fatal status is reported.
    pub fatal: bool,
    /// Every register reads as all ones from now on.
    pub gone: bool,
    /// It does not become ready any more.
    pub stuck: bool,
    /// The namespace has no volatile write cache, Write Zeroes or Dataset Management.
    pub plain: bool,
}

/// A model of a controller.
#[derive(Debug)]
pub struct Model {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    space: Arc<Space>,
    behaviour: Mutex<Behaviour>,
    medium: Mutex<Vec<u8>>,
    /// The commands of I/O queues so far.
    commands: Mutex<Vec<Sqe>>,
    stop: AtomicBool,
}

impl Model {
    /// A model that is off.
    ///
    /// # Panics
    /// There is no memory for it.
    #[expect(clippy::expect_used, reason = "for tests")]
    pub fn new(behaviour: Behaviour) -> Self {
        let file: File = memfd_create("nvme-model", MFdFlags::MFD_CLOEXEC).expect("a memfd").into();
        file.set_len(BYTES.get() as u64).expect("memory");
        let registers = Registers::map(file.as_fd(), BYTES, 0).expect("a mapping");
        // 64 entries, 2 s, NVM, pages of 4 KiB.
        registers.write(offset::CAP, 4 << 24 | 63);
        registers.write(offset::CAP + 4, 1 << 5);
        registers.write(offset::VS, 0x0001_0400);
        let shared = Arc::new(Shared {
            file,
            space: Space::of_model(),
            behaviour: Mutex::new(behaviour),
            medium: Mutex::new(vec![0; BLOCK * BLOCKS]),
            commands: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let run = Arc::clone(&shared);
        let mut running =
            Running { shared: run, registers, enabled: false, queues: BTreeMap::new() };
        let thread = thread::spawn(move || running.run());
        Self { shared, thread: Some(thread) }
    }

    /// Opens it as a controller.
    ///
    /// # Errors
    /// As [`Controller::open`], if it misbehaves then.
    ///
    /// # Panics
    /// Its registers cannot be mapped.
    #[expect(clippy::expect_used, reason = "for tests")]
    pub fn open(&self, pairs: u16) -> Result<Controller, OpenError> {
        let bdf = Bdf::parse("ffff:00:00.0").expect("an address");
        let registers = Registers::map(self.shared.file.as_fd(), BYTES, 0).expect("a mapping");
        let device = Device::of_model(bdf, Arc::clone(&self.shared.space), registers);
        Controller::on(device, &Options { bdf, pairs, polled: true, interface: None })
    }

    /// What it does wrong, to change it.
    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.shared.behaviour)
    }

    /// What is on its medium.
    pub fn medium(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.shared.medium)
    }

    /// The commands of I/O queues that it was given since this was last asked.
    pub fn commands(&self) -> Vec<Sqe> {
        std::mem::take(&mut *lock(&self.shared.commands))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The model at work.
struct Running {
    shared: Arc<Shared>,
    registers: Registers,
    enabled: bool,
    /// By number; 0 is the admin queue.
    queues: BTreeMap<usize, Queue>,
}

/// A submission queue with its completion queue.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    submissions: u64,
    completions: u64,
    entries: usize,
    head: usize,
    tail: usize,
    phase: bool,
}

impl Running {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let (gone, fatal, stuck) = {
                let behaviour = lock(&self.shared.behaviour);
                (behaviour.gone, behaviour.fatal, behaviour.stuck)
            };
            if gone {
                for at in (0..0x40).step_by(4) {
                    self.registers.write(at, u32::MAX);
                }
                return;
            }
            let configuration = self.registers.read(offset::CC);
            if configuration >> 14 & 3 == 1 {
                self.registers.write(offset::CSTS, 9);
            } else if fatal && self.enabled {
                self.registers.write(offset::CSTS, 3);
            }
            match (configuration & 1 != 0, self.enabled) {
                (true, false) if !stuck => self.enable(),
                (false, true) => {
                    lock(&self.shared.behaviour).fatal = false;
                    self.queues.clear();
                    self.enabled = false;
                    self.registers.write(offset::CSTS, 0);
                }
                (true, true) if !fatal => self.serve(),
                _ => {}
            }
            thread::sleep(Duration::from_micros(20));
        }
    }

    fn enable(&mut self) {
        for at in (offset::DOORBELLS..offset::DOORBELLS + 64).step_by(4) {
            self.registers.write(at, 0);
        }
        let long =
            |at| u64::from(self.registers.read(at)) | u64::from(self.registers.read(at + 4)) << 32;
        let admin = Queue {
            submissions: long(offset::ASQ),
            completions: long(offset::ACQ),
            entries: (self.registers.read(offset::AQA) & 0xFFF) as usize + 1,
            phase: true,
            ..Queue::default()
        };
        self.queues.insert(0, admin);
        self.enabled = true;
        self.registers.write(offset::CSTS, 1);
    }

    fn serve(&mut self) {
        let numbers: Vec<usize> = self.queues.keys().copied().collect();
        for number in numbers {
            let told = self.registers.read(offset::DOORBELLS + 8 * number) as usize;
            while let Some(queue) = self.queues.get(&number).copied() {
                if queue.head == told || queue.entries == 0 {
                    break;
                }
                let mut bytes = [0; Sqe::BYTES];
                self.copy(queue.submissions + (queue.head * Sqe::BYTES) as u64, &mut bytes, false);
                if let Some(queue) = self.queues.get_mut(&number) {
                    queue.head = (queue.head + 1) % queue.entries;
                }
                let sqe = Sqe::parse(&bytes);
                let outcome = match number {
                    0 => Some(self.admin(&sqe)),
                    _ => self.command(number, &sqe),
                };
                if let Some((status, result)) = outcome {
                    let (cid, queue) = (sqe.cid, number as u16);
                    self.complete(
                        number,
                        Cqe { result, head: 0, queue, cid, phase: false, status },
                    );
                }
            }
        }
    }

    fn admin(&mut self, sqe: &Sqe) -> (Status, u32) {
        let good = (Status(0), 0);
        let plain = lock(&self.shared.behaviour).plain;
        match (sqe.opcode, sqe.words[0] & 0xFF) {
            (0x06, structure) => {
                let mut data = [0; IDENTIFY_BYTES];
                match structure {
                    1 => {
                        data[4..24].copy_from_slice(b"model-1             ");
                        data[24..64].fill(b'M');
                        data[77] = 4;
                        if !plain {
                            data[520] = 0x0C;
                            data[525] = 1;
                        }
                    }
                    2 => data[0] = 1,
                    _ if sqe.nsid == 1 => {
                        data[..8].copy_from_slice(&(BLOCKS as u64).to_le_bytes());
                        data[33] = if plain { 0 } else { 1 };
                        data[130] = 9;
                    }
                    _ => {}
                }
                self.copy(sqe.prp1, &mut data, true);
                good
            }
            (0x09, 7) => (Status(0), sqe.words[1].min(3 << 16 | 3)),
            (0x0A, 6) => (Status(0), 1),
            (0x05, _) => {
                let number = (sqe.words[0] & 0xFFFF) as usize;
                let queue = Queue { completions: sqe.prp1, phase: true, ..Queue::default() };
                self.queues.insert(number, queue);
                good
            }
            (0x01, _) => {
                if let Some(queue) = self.queues.get_mut(&((sqe.words[0] & 0xFFFF) as usize)) {
                    queue.submissions = sqe.prp1;
                    queue.entries = (sqe.words[0] >> 16) as usize + 1;
                }
                good
            }
            _ => (Status(1 | 1 << 14), 0),
        }
    }

    fn command(&mut self, number: usize, sqe: &Sqe) -> Option<(Status, u32)> {
        lock(&self.shared.commands).push(*sqe);
        let stray = {
            let mut behaviour = lock(&self.shared.behaviour);
            if behaviour.lost > 0 {
                behaviour.lost -= 1;
                return None;
            }
            if let Some(status) = behaviour.failures.pop_front() {
                return Some((status, 0));
            }
            behaviour.stray.take()
        };
        if let Some(stray) = stray {
            self.complete(number, stray);
        }
        let start = (u64::from(sqe.words[0]) | u64::from(sqe.words[1]) << 32) as usize * BLOCK;
        let len = ((sqe.words[2] & 0xFFFF) as usize + 1) * BLOCK;
        let shared = Arc::clone(&self.shared);
        let mut medium = lock(&shared.medium);
        if matches!(sqe.opcode, 1 | 2 | 8) && start + len > medium.len() {
            return Some((Status(0x80 | 1 << 14), 0));
        }
        match sqe.opcode {
            1 | 2 => {
                let mut at = start;
                for (place, part) in self.pages(sqe, len) {
                    self.copy(place, &mut medium[at..at + part], sqe.opcode == 2);
                    at += part;
                }
            }
            8 => medium[start..start + len].fill(0),
            9 => {
                let mut range = [0; 16];
                self.copy(sqe.prp1, &mut range, false);
                let blocks = u32::from_le_bytes([range[4], range[5], range[6], range[7]]) as usize;
                let lba = u32::from_le_bytes([range[8], range[9], range[10], range[11]]) as usize;
                medium[lba * BLOCK..(lba + blocks) * BLOCK].fill(0);
            }
            _ => {}
        }
        Some((Status(0), 0))
    }

    /// Where the data of a command is, and how much there.
    fn pages(&self, sqe: &Sqe, len: usize) -> Vec<(u64, usize)> {
        let mut places = Vec::new();
        let first = len.min(4096 - (sqe.prp1 % 4096) as usize);
        places.push((sqe.prp1, first));
        let (mut left, mut list) = (len - first, sqe.prp2);
        let is_list = left > 4096;
        while left > 0 {
            let mut entry = list.to_le_bytes();
            if is_list {
                self.copy(list, &mut entry, false);
                list += 8;
            }
            let page = u64::from_le_bytes(entry);
            assert!(page.is_multiple_of(4096), "a PRP entry {page:#x} is not at a page");
            places.push((page, left.min(4096)));
            left -= left.min(4096);
        }
        places
    }

    fn complete(&mut self, number: usize, cqe: Cqe) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let cqe = Cqe { phase: queue.phase, head: queue.head as u16, ..cqe };
        let place = queue.completions + (queue.tail * Cqe::BYTES) as u64;
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= queue.tail == 0;
        let mut bytes = cqe.emit();
        let (data, last) = bytes.split_at_mut(12);
        self.copy(place, data, true);
        self.copy(place + 12, last, true);
    }

    /// Moves memory that the device knows under an address: into `bytes`, or out of them.
    ///
    /// # Panics
    /// It is not mapped, which an IOMMU would not allow.
    fn copy(&self, iova: u64, bytes: &mut [u8], out: bool) {
        assert!(self.shared.space.model_copy(iova, bytes, out), "{iova:#x} is not mapped");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const BYTES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(0x1FFF);
