//! The load: a driver that keeps a number of requests in flight on one queue.

use std::{
    hint::spin_loop,
    sync::atomic::Ordering::{Relaxed, Release},
    time::{Duration, Instant},
};
use vhost_frontend::{
    Buffer, Device, Error, Memory, Queue, Ring, Setup, TIMEOUT, Table, Window, feature, scsi,
};

/// What to load a back end with.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub write: bool,
    pub bytes: usize,
    pub depth: usize,
    /// Descriptors that the data is spread over.
    pub parts: usize,
    pub indirect: bool,
    /// Regions of guest memory; the buffers are spread over all.
    pub regions: usize,
    /// Wait for calls instead of polling.
    pub calls: bool,
    /// Features on top of the usual ones, without which the case makes no sense.
    pub features: u64,
}

/// A disk filled with [`pattern`]: reads take the lower half, writes the upper one.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub blocks: u64,
    pub block: usize,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub requests: u64,
    pub time: Duration,
}

const LUN: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];
const FILL: usize = 1 << 20;

impl Case {
    /// Descriptors in a queue: what a VMM gives, or as many as the case needs.
    pub fn queue_size(&self) -> u16 {
        let each = if self.indirect { 1 } else { self.parts + 2 };
        (each * self.depth).next_power_of_two().max(128) as u16
    }

    pub fn setup(&self) -> Setup {
        let usual = Setup::default();
        let data = (self.bytes * self.depth) as u64;
        Setup {
            size: self.queue_size(),
            regions: self.regions,
            region: (data + (8 << 20)).next_multiple_of(1 << 21),
            required: usual.required | self.features,
            ..usual
        }
    }
}

/// The byte pattern of the disk at an offset.
pub fn pattern(offset: u64, into: &mut [u8]) {
    for (word, bytes) in (offset / 8..).zip(into.chunks_exact_mut(8)) {
        let mixed = (word + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bytes.copy_from_slice(&(mixed ^ mixed >> 29).to_le_bytes());
    }
}

/// Looks at the disk of a back end and, unless it is `filled`, writes the pattern to all of it;
/// then reads some of it back, through both a small and a large request.
pub fn prepare<L>(device: &mut Device<L>, filled: bool) -> Result<Disk, Error> {
    device.settle(LUN)?;
    let (blocks, block) = device.capacity(LUN)?;
    let disk = Disk { blocks, block: block as usize };
    let mut data = vec![0; FILL];
    let count = FILL / disk.block;
    let slots = disk.blocks / count as u64;
    for slot in 0..if filled { 0 } else { slots } {
        pattern(slot * FILL as u64, &mut data);
        let cdb = scsi::write(slot as u32 * count as u32, count as u16);
        let written = device.request(LUN, &cdb, &data, 0)?;
        assert!(written.is_good() && written.residual == 0, "a WRITE of 1 MiB: {written:?}");
    }
    for step in 0..64 {
        let bytes = if step % 2 == 0 { 4096 } else { 1 << 17 };
        let offset = slots * FILL as u64 / 64 * step / 4096 * 4096;
        let (lba, count) = (offset / disk.block as u64, bytes / disk.block);
        let read = device.request(LUN, &scsi::read(lba as u32, count as u16), &[], bytes)?;
        pattern(offset, &mut data[..bytes]);
        assert!(read.is_good() && read.residual == 0, "a READ of {bytes}: {:?}", read.sense);
        assert!(read.data == data[..bytes], "what was read at {offset} is not what was written");
    }
    Ok(disk)
}

/// A request that may be in flight.
struct Slot {
    header: Window,
    response: Window,
    data: Vec<Window>,
    table: Option<Table>,
    chain: Vec<Buffer>,
    /// Byte offset of the last transfer.
    offset: u64,
}

impl Slot {
    fn new(memory: &std::sync::Arc<Memory>, case: Case, number: usize) -> Result<Self, Error> {
        let mut region = number;
        let mut window = |bytes: usize, align: u64| {
            region += 1;
            memory.window_in(region % case.regions, bytes as u64, align)
        };
        let header = window(scsi::REQUEST, 64)?;
        let response = window(scsi::RESPONSE, 64)?;
        let part = case.bytes / case.parts;
        let data = (0..case.parts)
            .map(|_| window(part, 4096.min(part.next_power_of_two() as u64)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut chain = vec![Buffer::out(&header)];
        if case.write {
            chain.extend(data.iter().map(Buffer::out));
            chain.push(Buffer::into(&response));
        } else {
            chain.push(Buffer::into(&response));
            chain.extend(data.iter().map(Buffer::into));
        }
        let table = case.indirect.then(|| Table::new(memory, chain.len())).transpose()?;
        for (index, window) in data.iter().enumerate() {
            // Also makes the kernel find the pages before the clock runs.
            window.fill((number * 31 + index) as u8 | 1);
        }
        response.fill(0xEE);
        Ok(Self { header, response, data, table, chain, offset: 0 })
    }

    fn contents(&self) -> Vec<u8> {
        self.data.iter().flat_map(|window| window.bytes(0, window.len())).collect()
    }
}

/// What sends requests and takes answers, with everything found beforehand.
struct Load {
    case: Case,
    disk: Disk,
    slots: Vec<Slot>,
    idle: Vec<u16>,
    by_head: Vec<u16>,
    random: u64,
    places: u64,
}

impl Load {
    fn new(memory: &std::sync::Arc<Memory>, case: Case, disk: Disk) -> Result<Self, Error> {
        let half = disk.blocks / 2 * disk.block as u64;
        Ok(Self {
            case,
            disk,
            slots: (0..case.depth)
                .map(|number| Slot::new(memory, case, number))
                .collect::<Result<_, _>>()?,
            idle: (0..case.depth as u16).collect(),
            by_head: vec![0; usize::from(case.queue_size())],
            random: 0x4D59_5DF4_D0F3_3173,
            // A place of its own for each slot, so that what was written last is known.
            places: half / (case.bytes * case.depth) as u64,
        })
    }

    /// Adds a request for every idle slot; tells whether there was one.
    #[inline]
    fn send(&mut self, queue: &mut Queue) -> Result<bool, Error> {
        let any = !self.idle.is_empty();
        while let Some(number) = self.idle.pop() {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            // The upper half of the product is as random as the factor, and needs no division.
            let place = ((u128::from(self.random) * u128::from(self.places)) >> 64) as u64;
            let slot = &mut self.slots[usize::from(number)];
            let place = place * self.case.depth as u64 + u64::from(number);
            slot.offset = place * self.case.bytes as u64;
            if self.case.write {
                slot.offset += self.disk.blocks / 2 * self.disk.block as u64;
            }
            let lba = (slot.offset / self.disk.block as u64) as u32;
            let blocks = (self.case.bytes / self.disk.block) as u16;
            let cdb =
                if self.case.write { scsi::write(lba, blocks) } else { scsi::read(lba, blocks) };
            slot.header.write(0, &scsi::request(LUN, u64::from(number), &cdb));
            let head = queue.add(&slot.chain, slot.table.as_ref())?;
            self.by_head[usize::from(head)] = number;
        }
        Ok(any)
    }

    /// Takes every answer that is there; gives how many.
    #[inline]
    fn receive(&mut self, queue: &mut Queue) -> Result<u64, Error> {
        let mut count = 0;
        while let Some(used) = queue.take()? {
            let number = self.by_head[usize::from(used.head)];
            let slot = &self.slots[usize::from(number)];
            // Status qualifier, status and response at once: all zero.
            let outcome = slot.response.u32(8).load(Relaxed);
            assert!(outcome == 0, "a request failed: {:02x?}", slot.response.bytes(0, 64));
            self.idle.push(number);
            count += 1;
        }
        Ok(count)
    }

    /// Sends and receives until `until`, polling.
    fn poll(&mut self, queue: &mut Queue, until: Instant) -> Result<u64, Error> {
        let mut total = 0;
        let (mut turns, mut last) = (0u32, Instant::now());
        loop {
            if self.send(queue)? {
                queue.submit()?;
            }
            let count = self.receive(queue)?;
            total += count;
            if count == 0 {
                spin_loop();
            }
            turns += 1;
            if turns.is_multiple_of(256) {
                let now = Instant::now();
                if total > 0 {
                    last = now;
                }
                if now > until {
                    return Ok(total);
                }
                if now - last > TIMEOUT {
                    return Err(Error::Timeout);
                }
            }
        }
    }

    /// Sends and receives until `until`, asleep while nothing is there, as Linux's driver does.
    fn wait(&mut self, queue: &mut Queue, until: Instant) -> Result<u64, Error> {
        let mut total = 0;
        loop {
            if self.send(queue)? {
                queue.submit()?;
            }
            if !queue.want_calls(true) && !queue.wait_call(TIMEOUT)? {
                return Err(Error::Timeout);
            }
            queue.want_calls(false);
            total += self.receive(queue)?;
            if Instant::now() > until {
                return Ok(total);
            }
        }
    }

    /// Takes what is still in flight, and looks at what every slot transferred last.
    fn finish<L>(&mut self, device: &mut Device<L>) -> Result<(), Error> {
        let since = Instant::now();
        while self.idle.len() < self.slots.len() {
            self.receive(&mut device.queues[2])?;
            if since.elapsed() > TIMEOUT {
                return Err(Error::Timeout);
            }
        }
        let mut expected = vec![0; self.case.bytes];
        for slot in &self.slots {
            let found = if self.case.write {
                let lba = (slot.offset / self.disk.block as u64) as u32;
                let cdb = scsi::read(lba, (self.case.bytes / self.disk.block) as u16);
                expected.copy_from_slice(&slot.contents());
                device.request(LUN, &cdb, &[], self.case.bytes)?.data
            } else {
                pattern(slot.offset, &mut expected);
                slot.contents()
            };
            assert!(found == expected, "wrong data at {} in {}", slot.offset, self.case.name);
        }
        Ok(())
    }
}

/// Loads a connected device for `time` after a warm-up of a fifth of it. `begin` runs between
/// the two.
pub fn run<L>(
    device: &mut Device<L>,
    case: Case,
    disk: Disk,
    time: Duration,
    begin: impl FnOnce(),
) -> Result<Run, Error> {
    device.settle(LUN)?;
    let mut load = Load::new(&device.memory, case, disk)?;
    let pass = if case.calls { Load::wait } else { Load::poll };
    let queue = &mut device.queues[2];
    queue.want_calls(case.calls);
    pass(&mut load, queue, Instant::now() + time / 5)?;
    begin();
    let since = Instant::now();
    let requests = pass(&mut load, queue, since + time)?;
    let time = since.elapsed();
    queue.want_calls(true);
    load.finish(device)?;
    Ok(Run { requests, time })
}

/// What the driver alone takes for a request, in nanoseconds: a loop in the same thread stands
/// for the device and touches the used ring only.
pub fn alone(case: Case) -> Result<f64, Error> {
    let setup = case.setup();
    let memory = Memory::new(case.regions, setup.region)?;
    let mut queue = Queue::new(&memory, 2, setup.size, feature::VERSION_1)?;
    let disk = Disk { blocks: 1 << 21, block: 512 };
    let mut load = Load::new(&memory, case, disk)?;
    for slot in &load.slots {
        slot.response.fill(0);
    }
    let rounds = 4_000_000 / case.depth;
    let since = Instant::now();
    for _ in 0..rounds {
        load.send(&mut queue)?;
        queue.publish();
        let Ring::Split(ring) = &queue.ring else { return Ok(f64::NAN) };
        let [_, available, used] = ring.areas();
        let (first, size) = (ring.taken(), usize::from(ring.size()));
        for n in 0..case.depth as u16 {
            let at = usize::from(first.wrapping_add(n)) % size;
            let head = available.u16(4 + 2 * at).load(Relaxed);
            used.u32(4 + 8 * at).store(u32::from(head), Relaxed);
        }
        used.u16(2).store(first.wrapping_add(case.depth as u16), Release);
        load.receive(&mut queue)?;
    }
    Ok(since.elapsed().as_nanos() as f64 / (rounds * case.depth) as f64)
}
