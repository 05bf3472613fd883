//! The function's queues: how they start, finish what is in flight, and stop.

use std::{
    io,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Device, Running};
use crate::{
    door::reach,
    memory::GuestMap,
    queue::{Note, Start},
    ring::{Areas, Ring, RingError, Setup, feature},
    scsi,
    vfio_user::courier::Courier,
};

/// Why a queue does not start.
#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error("the ring at {0:#x} is not in the memory that the VMM shares")]
    Unshared(u64),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    #[error("it cannot be reached: the target is stopping")]
    Gone,
}
impl Device {
    /// Starts all queues that are enabled.
    pub(super) fn start_all(&mut self) {
        for index in 0..self.controller.virtqueues() {
            self.start(index);
        }
    }

    /// Starts a queue, if the driver wants it.
    pub(super) fn start(&mut self, index: u16) {
        let is_enabled = self.registers.queue(index).is_some_and(|queue| queue.enabled);
        let runs = self.queues.get(usize::from(index)).is_none_or(Option::is_some);
        let stops = self.stopping.iter().any(|(other, _)| *other == index);
        if !is_enabled || runs || stops || !self.registers.is_live() {
            return;
        }
        self.waits = !self.holding.try_acquire(&self.controller);
        if self.waits {
            return;
        }
        if let Err(fault) = self.run(index) {
            let name = &self.controller.name;
            tracing::error!(controller = name, queue = index, "the queue does not start: {fault}");
            self.fail();
        }
        self.count();
    }

    /// Gives a ring to its queue.
    fn run(&mut self, index: u16) -> Result<(), Fault> {
        let features = self.registers.features;
        let (size, vector) =
            self.registers.queue(index).map_or((0, 0), |queue| (queue.size, queue.vector));
        let is_plain = features & (feature::RING_PACKED | feature::EVENT_IDX) == 0;
        let shared = self.areas(index, self.memory.map());
        // A ring of which nobody else can tell what is in it is carried.
        let is_carried = shared.is_err() && is_plain && self.carries(index, size)?;
        let areas = if is_carried { self.areas(index, self.memory.all())? } else { shared? };
        let packed = features & feature::RING_PACKED != 0;
        let base = if packed { PACKED_BASE } else { 0 };
        let ring = Ring::open(Setup { size, areas, base, features, inflight: None })?;
        let route = self.interrupts.route(vector);
        let courier = self.couriers.get(usize::from(index)).and_then(Option::as_ref);
        let (kick, call) = match courier {
            Some(courier) => (Some(&courier.kick), Some(self.carried.try_clone()?)),
            None => (self.kicks.get(usize::from(index)), self.interrupts.event(route)?),
        };
        let kick = kick.map(EventFd::try_clone).transpose()?;
        let start = Box::new(Start {
            ring,
            map: Arc::clone(self.map_of(index)),
            kick,
            call,
            error: Some(self.faults.try_clone()?),
            layout: scsi::Layout { pi: false, ..self.config.layout },
            features,
            log: None,
            enabled: true,
            tracks: true,
        });
        let place = reach::place(&self.controller, index).ok_or(Fault::Gone)?;
        let (done, answer) = sync_channel(1);
        self.controller.router().note(place, Note::Start(start, done));
        if reach::wait(&self.controller, index, &answer).is_none() {
            self.controller.set_place(index, None);
            return Err(Fault::Gone);
        }
        if let Some(place) = self.queues.get_mut(usize::from(index)) {
            *place = Some(Running { route });
        }
        Ok(())
    }

    /// Makes the courier of a queue, if all of its ring has a copy.
    fn carries(&mut self, index: u16, size: u16) -> Result<bool, Fault> {
        if self.areas(index, self.memory.all()).is_err() {
            return Ok(false);
        }
        let areas = self.registers.queue(index).map_or([0; 3], |queue| queue.areas);
        let sizes = Areas::sizes(size, 0);
        for (area, len) in areas.into_iter().zip(sizes) {
            // What a ring of before left in the copy.
            self.memory.put(area, &vec![0; len]);
        }
        let courier = Courier::new(size, areas, EventFd::new(EFD_NONBLOCK)?);
        if let Some(place) = self.couriers.get_mut(usize::from(index)) {
            *place = Some(courier);
        }
        // What is available already was perhaps not told.
        if let Some(kick) = self.kicks.get(usize::from(index)) {
            let _ = kick.write(1);
        }
        Ok(true)
    }

    /// The map that a queue works on.
    pub(super) fn map_of(&self, index: u16) -> &Arc<GuestMap> {
        let has_courier = self.couriers.get(usize::from(index)).is_some_and(Option::is_some);
        if has_courier { self.memory.all() } else { self.memory.map() }
    }

    /// Where the ring of a queue is now.
    pub(super) fn areas(&self, index: u16, map: &GuestMap) -> Result<Areas, Fault> {
        let Some(queue) = self.registers.queue(index) else { return Err(Fault::Gone) };
        let features = self.registers.features;
        let sizes = Areas::sizes(queue.size, features);
        let [descriptor, driver, device] = queue.areas;
        let at = |address, len| map.at(address, len).ok_or(Fault::Unshared(address));
        let areas = Areas {
            descriptor: at(descriptor, sizes[0])?,
            driver: at(driver, sizes[1])?,
            device: at(device, sizes[2])?,
        };
        let packed = features & feature::RING_PACKED != 0;
        if !map.is_writable(device, sizes[2]) {
            return Err(Fault::Unshared(device));
        }
        if packed && !map.is_writable(descriptor, sizes[0]) {
            return Err(Fault::Unshared(descriptor));
        }
        Ok(areas)
    }

    pub(super) fn stop_queues(&mut self) {
        for index in 0..self.controller.virtqueues() {
            self.stop_queue(index);
        }
    }

    pub(super) fn stop_queue(&mut self, index: u16) {
        if let Some(courier) = self.couriers.get_mut(usize::from(index)) {
            *courier = None;
        }
        self.epoch += 1;
        let runs = self.queues.get_mut(usize::from(index)).and_then(Option::take).is_some();
        match self.controller.place(index).filter(|_| runs) {
            Some(place) => {
                let (done, answer) = sync_channel(1);
                self.controller.router().note(place, Note::Stop(done));
                self.stopping.push((index, answer));
            }
            None if self.stopping.iter().all(|(other, _)| *other != index) => {
                self.registers.reset_queue(index);
            }
            None => {}
        }
    }

    /// Waits for the queues that stop, at most so long, and does what waited for them.
    pub(super) fn finish(&mut self, patience: Option<Duration>) {
        let until = patience.map(|patience| Instant::now() + patience);
        let stopping = std::mem::take(&mut self.stopping);
        for (index, answer) in stopping {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let outcome = match left {
                Some(left) => answer.recv_timeout(left).map(drop),
                None => {
                    let _ = reach::wait(&self.controller, index, &answer);
                    Ok(())
                }
            };
            match outcome {
                Err(RecvTimeoutError::Timeout) => self.stopping.push((index, answer)),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => self.registers.reset_queue(index),
            }
        }
        if !self.stopping.is_empty() {
            return;
        }
        self.count();
        if std::mem::take(&mut self.is_resetting) {
            self.begin_anew();
        }
    }

    /// Tells how many queues run, and gives the images up after the last one.
    pub(super) fn count(&mut self) {
        let running = self.queues.iter().flatten().count();
        self.running.store(running as u16, Ordering::Relaxed);
        if running == 0 && !self.waits && !self.is_resetting {
            self.holding.release();
        }
    }
}

/// The first entry of a packed ring, both wrap counters 1.
const PACKED_BASE: u32 = 0x8000_8000;
