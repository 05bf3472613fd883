//! The admin queue: one command at a time, waited for. Only set-up and resets use it.

use crate::{
    device::Device,
    error::{Fault, MapError},
    space::{Dma, Space},
    wire::{Cap, Configuration, Cqe, Csts, IDENTIFY_BYTES, Sqe, offset},
};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The admin queue pair of a controller and a buffer for what its commands give.
#[derive(Debug)]
pub(crate) struct Admin {
    memory: Dma,
    tail: usize,
    head: usize,
    phase: bool,
    cid: u16,
}

/// Entries of each queue.
const ENTRIES: usize = 32;
const COMPLETIONS: usize = 4096;
const BUFFER: usize = 8192;
/// How long an admin command may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl Admin {
    pub(crate) fn new(space: &Arc<Space>) -> Result<Self, MapError> {
        let memory = Dma::new(space, BUFFER + IDENTIFY_BYTES)?;
        Ok(Self { memory, tail: 0, head: 0, phase: true, cid: 0 })
    }

    /// Stops the controller: when this is well, it reaches no memory any more.
    pub(crate) fn disable(&self, device: &Device) -> Result<(), Fault> {
        let cap = Cap(device.read_long(offset::CAP));
        let configuration = device.read(offset::CC);
        if configuration == u32::MAX {
            return Err(Fault::Gone);
        }
        if configuration & 1 != 0 {
            device.write(offset::CC, configuration & !1);
        }
        wait(device, cap, false)
    }

    /// Starts the controller with these queues, empty.
    pub(crate) fn enable(&mut self, device: &Device, page: u32) -> Result<(), Fault> {
        let cap = Cap(device.read_long(offset::CAP));
        self.memory.zero(0, BUFFER);
        (self.tail, self.head, self.phase) = (0, 0, true);
        let entries = ENTRIES as u32 - 1;
        device.write(offset::AQA, entries << 16 | entries);
        device.write_long(offset::ASQ, self.memory.iova(0));
        device.write_long(offset::ACQ, self.memory.iova(COMPLETIONS));
        device.write(offset::CC, Configuration { page }.emit());
        wait(device, cap, true)
    }

    /// Tells the controller that it will be powered off or left alone, so that it saves what it
    /// caches.
    pub(crate) fn shut_down(&self, device: &Device) {
        let configuration = device.read(offset::CC);
        if configuration == u32::MAX || configuration & 1 == 0 {
            return;
        }
        device.write(offset::CC, Configuration::shutdown(configuration));
        let start = Instant::now();
        while start.elapsed() < SHUTDOWN {
            let status = Csts(device.read(offset::CSTS));
            if status.is_shut_down() || status.is_gone() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        tracing::warn!("an NVMe controller does not shut down in time");
    }

    /// Runs a command, with the buffer as its data, and gives dword 0 of its completion.
    pub(crate) fn run(
        &mut self,
        device: &Device,
        what: &'static str,
        mut sqe: Sqe,
    ) -> Result<u32, Fault> {
        self.cid = self.cid.wrapping_add(1);
        sqe.cid = self.cid;
        if sqe.prp1 == 0 {
            sqe.prp1 = self.memory.iova(BUFFER);
        }
        self.memory.write(self.tail * Sqe::BYTES, &sqe.emit());
        self.tail = (self.tail + 1) % ENTRIES;
        device.write(offset::DOORBELLS, self.tail as u32);
        let stride = Cap(device.read_long(offset::CAP)).doorbell_stride();
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        while start.elapsed() < PATIENCE {
            let at = COMPLETIONS + self.head * Cqe::BYTES;
            if let Some(cqe) = self.memory.completion(at, self.phase) {
                self.head = (self.head + 1) % ENTRIES;
                self.phase ^= self.head == 0;
                device.write(offset::DOORBELLS + stride, self.head as u32);
                // What was given up earlier may still come.
                if cqe.cid != self.cid {
                    continue;
                }
                return match cqe.status.is_success() {
                    true => Ok(cqe.result),
                    false => Err(Fault::Admin { what, status: cqe.status }),
                };
            }
            let status = Csts(device.read(offset::CSTS));
            if status.is_gone() {
                return Err(Fault::Gone);
            }
            if status.is_fatal() {
                return Err(Fault::Fatal);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
        Err(Fault::Silent(what))
    }

    /// What the last command put into the buffer.
    pub(crate) fn data(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        Box::new(self.memory.bytes(BUFFER))
    }
}

/// Waits until the controller is ready, or is not any more.
fn wait(device: &Device, cap: Cap, ready: bool) -> Result<(), Fault> {
    let (start, millis) = (Instant::now(), cap.timeout());
    loop {
        let status = Csts(device.read(offset::CSTS));
        if status.is_gone() {
            return Err(Fault::Gone);
        }
        if status.is_ready() == ready {
            return Ok(());
        }
        if ready && status.is_fatal() {
            return Err(Fault::Fatal);
        }
        if start.elapsed() > Duration::from_millis(millis) {
            return Err(Fault::Slow { ready, millis });
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// How long a controller may take to save what it caches.
const SHUTDOWN: Duration = Duration::from_secs(5);
