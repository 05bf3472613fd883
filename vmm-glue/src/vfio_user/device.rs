//! The PCI function: registers in front, the queues of a controller behind.

mod queues;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::AtomicU16,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    courier::Courier,
    irq::{Interrupts, Route},
    memory::Memory,
    message::{DmaMap, DmaUnmap, SetIrqs, region},
    pci,
    virtio::{self, Registers},
};
use crate::{
    controller::Controller,
    door::{holding::Holding, reach},
    memory::guard,
    queue::{Exchange, Note},
    ring::feature,
    scsi::config::Config,
};

/// The function that one client has.
#[derive(Debug)]
pub(super) struct Device {
    controller: Arc<Controller>,
    /// Queues that run, for who wants to know.
    running: Arc<AtomicU16>,
    registers: Registers,
    pci: pci::Config,
    interrupts: Interrupts,
    config: Config,
    memory: Memory,
    /// Doorbells, by queue. They stay the same, so that a client may have them.
    kicks: Vec<EventFd>,
    /// Queues that cannot go on write to it.
    faults: EventFd,
    queues: Vec<Option<Running>>,
    /// Those of rings in memory without a descriptor.
    couriers: Vec<Option<Courier>>,
    /// Their queues write to it when they have used something.
    carried: EventFd,
    /// Counts resets of the device and of queues.
    epoch: u64,
    /// Queues that finish what is in flight.
    stopping: Vec<(u16, Receiver<Option<u32>>)>,
    /// All of them do, and then the device begins anew.
    is_resetting: bool,
    holding: Holding,
    /// The queues start when this process has the images.
    waits: bool,
    losses: u64,
}

/// A queue that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    route: Route,
}

impl Device {
    pub(super) fn new(controller: Arc<Controller>, running: Arc<AtomicU16>) -> io::Result<Self> {
        let queues = controller.virtqueues();
        let vectors = queues + 1;
        let event = || EventFd::new(EFD_NONBLOCK);
        Ok(Self {
            registers: Registers::new(features(&controller), queues, vectors),
            pci: pci::Config::new(vectors),
            interrupts: Interrupts::new(vectors)?,
            config: Config::new(controller.queues),
            memory: Memory::default(),
            kicks: (0..queues).map(|_| event()).collect::<io::Result<_>>()?,
            faults: event()?,
            queues: vec![None; queues.into()],
            couriers: (0..queues).map(|_| None).collect(),
            carried: event()?,
            epoch: 0,
            stopping: Vec::new(),
            is_resetting: false,
            holding: Holding::default(),
            waits: false,
            losses: guard::losses(),
            controller,
            running,
        })
    }

    /// The device without what a client of before left: what one that connects finds.
    pub(super) fn stop(&mut self) {
        self.stop_queues();
        self.finish(None);
        self.holding.release();
    }

    /// Begins anew, when everything in flight is finished.
    pub(super) fn reset(&mut self) {
        self.reset_function();
        self.finish(None);
    }

    /// Bytes of a region, 0 of one that is not there.
    pub(super) fn region_size(index: u32) -> u64 {
        match index {
            region::REGISTERS | region::MSIX => pci::BAR_LEN.into(),
            region::CONFIG => pci::LEN as u64,
            _ => 0,
        }
    }

    /// Reads from a region: the errno if that cannot be.
    pub(super) fn read(&mut self, index: u32, offset: u64, into: &mut [u8]) -> Result<(), i32> {
        let offset = place(index, offset, into.len())?;
        match index {
            region::CONFIG => self.read_pci(offset, into),
            _ => self.read_bar(index, offset, into),
        }
        Ok(())
    }

    /// Writes to a region: the errno if that cannot be.
    pub(super) fn write(&mut self, index: u32, offset: u64, from: &[u8]) -> Result<(), i32> {
        let offset = place(index, offset, from.len())?;
        match index {
            region::CONFIG => self.write_pci(offset, from),
            _ => self.write_bar(index, offset, from),
        }
        Ok(())
    }

    fn read_pci(&mut self, offset: usize, into: &mut [u8]) {
        if let Some(window) = self.pci.window(offset, into.len()) {
            let mut data = [0; 4];
            let data = data.get_mut(..window.len).unwrap_or_default();
            if self.read_window(&window, data).is_ok()
                && let Some(place) = self.pci.window_data().get_mut(..window.len)
            {
                place.copy_from_slice(data);
            }
        }
        self.pci.show_pin(self.interrupts.is_asserted());
        self.pci.read(offset, into);
    }

    fn read_window(&mut self, window: &pci::Window, into: &mut [u8]) -> Result<(), i32> {
        let index = bar(window)?;
        self.read(index, window.offset.into(), into)
    }

    fn write_pci(&mut self, offset: usize, from: &[u8]) {
        let action = self.pci.write(offset, from);
        if let Some(window) = self.pci.window(offset, from.len()) {
            let data = self.pci.window_data().to_vec();
            let data = data.get(..window.len).unwrap_or_default();
            // A window outside all BARs means nothing.
            let _ = bar(&window).and_then(|index| self.write(index, window.offset.into(), data));
        }
        match action {
            Some(pci::Action::Interrupts) => {
                self.interrupts.configure(self.pci.msix(), self.pci.is_pin_off());
                self.route();
            }
            Some(pci::Action::Reset) => {
                self.reset_function();
                self.finish(Some(PATIENCE));
            }
            None => {}
        }
    }

    fn read_bar(&mut self, index: u32, offset: usize, into: &mut [u8]) {
        if index == region::MSIX {
            return self.interrupts.read(offset, pci::PENDING as usize, into);
        }
        let (part, at) = (offset / PART, offset % PART);
        match part {
            COMMON => {
                // Who reads wants to know whether something has stopped.
                self.finish(Some(Duration::ZERO));
                self.registers.read(at, into);
            }
            ISR => {
                into.fill(0);
                if let (0, Some(first)) = (at, into.first_mut()) {
                    *first = self.interrupts.read_status();
                }
            }
            SPECIFIC => {
                let bytes = self.config.read(at as u32, into.len() as u32);
                into.copy_from_slice(&bytes);
            }
            _ => into.fill(0),
        }
    }

    fn write_bar(&mut self, index: u32, offset: usize, from: &[u8]) {
        if index == region::MSIX {
            self.interrupts.write(offset, from);
            return self.route();
        }
        let (part, at) = (offset / PART, offset % PART);
        match part {
            // A device that resets has no driver that would be heard.
            COMMON if !self.is_resetting => self.write_common(at, from),
            SPECIFIC => self.config.write(at as u32, from),
            NOTIFY => {
                if let Some(kick) = self.kicks.get(at / pci::NOTIFY_STEP as usize) {
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }

    fn write_common(&mut self, at: usize, from: &[u8]) {
        match self.registers.write(at, from) {
            Some(virtio::Action::Reset) => {
                self.stop_queues();
                self.is_resetting = true;
                self.finish(Some(PATIENCE));
            }
            Some(virtio::Action::Start) => self.start_all(),
            Some(virtio::Action::Enable(index)) => self.start(index),
            Some(virtio::Action::ResetQueue(index)) => {
                self.stop_queue(index);
                self.finish(Some(PATIENCE));
            }
            Some(virtio::Action::Vectors) => self.route(),
            None => {}
        }
    }

    /// Says where interrupts go: the errno if that cannot be.
    pub(super) fn set_irqs(
        &mut self,
        set: &SetIrqs,
        data: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), i32> {
        let done = self.interrupts.set(set, data, descriptors);
        self.route();
        done
    }

    /// How many interrupts of a kind there are.
    pub(super) fn irqs(&self, index: u32) -> u32 {
        self.interrupts.count(index)
    }

    /// The doorbells, by queue.
    pub(super) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Makes memory known: the errno if that cannot be. It can be used after [`Device::commit`].
    pub(super) fn map(&mut self, map: &DmaMap, descriptor: Option<OwnedFd>) -> Result<(), i32> {
        self.memory.add(map, descriptor)
    }

    /// Forgets memory: the errno if that cannot be. Nothing uses it after [`Device::commit`].
    pub(super) fn unmap(&mut self, unmap: &DmaUnmap) -> Result<(), i32> {
        self.memory.remove(unmap)
    }

    /// Lets the queues have the memory as it is now.
    pub(super) fn commit(&mut self) {
        let Some(gone) = self.memory.commit() else { return };
        self.registers.offer(self.features());
        let mut answers = Vec::new();
        for (index, running) in (0u16..).zip(&self.queues) {
            let Some(place) = running.and_then(|_| self.controller.place(index)) else { continue };
            // VMMs take memory away and give it back when only its borders change.
            let map = self.map_of(index);
            let areas = self.areas(index, map).ok();
            let exchange = Exchange { map: Arc::clone(map), gone: Arc::clone(&gone), areas };
            let (done, answer) = sync_channel(1);
            self.controller.router().note(place, Note::Exchange(exchange, done));
            answers.push((index, answer));
        }
        for (index, answer) in answers {
            let _ = reach::wait(&self.controller, index, &answer);
        }
    }

    /// Whether memory was taken away that the client shared before.
    pub(super) fn has_lost_memory(&mut self) -> bool {
        let losses = guard::losses();
        std::mem::replace(&mut self.losses, losses) != losses && self.memory.map().is_lost()
    }

    /// What is to be waited for between messages; [`Device::collect`] takes it, or who carries.
    pub(super) fn sources(&self) -> impl Iterator<Item = &EventFd> {
        let (line, unmask) = self.interrupts.sources();
        let doorbells = self.couriers.iter().zip(&self.kicks);
        let doorbells = doorbells.filter_map(|(courier, kick)| courier.as_ref().map(|_| kick));
        [line, &self.faults, &self.carried].into_iter().chain(unmask).chain(doorbells)
    }

    /// The queues with a courier whose doorbell was rung since the last time.
    pub(super) fn rung(&self) -> Vec<u16> {
        let indices = (0u16..).zip(self.couriers.iter().zip(&self.kicks));
        let rung = indices.filter(|(_, (courier, kick))| courier.is_some() && kick.read().is_ok());
        rung.map(|(index, _)| index).collect()
    }

    /// Whether a queue with a courier has used something since the last time.
    pub(super) fn has_carried(&self) -> bool {
        self.carried.read().is_ok()
    }

    /// The queues with a courier.
    pub(super) fn carried(&self) -> Vec<u16> {
        let couriers = (0u16..).zip(&self.couriers);
        couriers.filter(|(_, courier)| courier.is_some()).map(|(index, _)| index).collect()
    }

    /// The ring of a courier: entries and areas.
    pub(super) fn ring(&self, index: u16) -> Option<(u16, [u64; 3])> {
        let courier = self.couriers.get(usize::from(index))?.as_ref()?;
        Some((courier.size, courier.areas))
    }

    /// The courier of a queue, if nothing was reset since `epoch`.
    pub(super) fn courier(&mut self, index: u16, epoch: u64) -> Option<&mut Courier> {
        let courier = self.couriers.get_mut(usize::from(index))?.as_mut();
        courier.filter(|_| self.epoch == epoch)
    }

    /// Changes when anything is reset.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The memory.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Interrupts for a queue with a courier.
    pub(super) fn interrupt(&mut self, index: u16) {
        let vector = self.registers.queue(index).map_or(virtio::NO_VECTOR, |queue| queue.vector);
        if let Ok(Some(event)) = self.interrupts.event(self.interrupts.route(vector)) {
            let _ = event.write(1);
        }
        self.interrupts.collect();
    }

    /// Takes what the sources have.
    pub(super) fn collect(&mut self) {
        if self.faults.read().is_ok() {
            self.fail();
        }
        self.interrupts.collect();
    }

    /// How often [`Device::tick`] is wanted between messages, in milliseconds.
    pub(super) fn period(&self) -> Option<u16> {
        if !self.stopping.is_empty() {
            Some(STOPPING_EVERY)
        } else if self.waits {
            Some(RETRY_EVERY)
        } else {
            self.holding.holds().then_some(LOOK_EVERY)
        }
    }

    /// Goes on with what takes its time.
    pub(super) fn tick(&mut self) {
        self.finish(Some(Duration::ZERO));
        if self.waits {
            self.start_all();
        } else if self.holding.holds() {
            self.holding.try_acquire(&self.controller);
        }
    }

    /// Lets the queues that run interrupt where that is now.
    fn route(&mut self) {
        for (index, running) in (0u16..).zip(&mut self.queues) {
            let Some(running) = running else { continue };
            if self.couriers.get(usize::from(index)).is_some_and(Option::is_some) {
                continue;
            }
            let vector = self.registers.queue(index).map_or(virtio::NO_VECTOR, |q| q.vector);
            let route = self.interrupts.route(vector);
            if route == running.route {
                continue;
            }
            match self.interrupts.event(route) {
                Ok(event) => {
                    running.route = route;
                    reach::note(&self.controller, index, Note::Call(event));
                }
                Err(error) => tracing::error!(
                    controller = self.controller.name,
                    queue = index,
                    "the queue cannot interrupt the guest: {error}"
                ),
            }
        }
    }

    /// The device cannot go on until the driver resets it.
    pub(super) fn fail(&mut self) {
        if self.registers.need_reset() {
            self.interrupts.change(self.registers.config_vector);
        }
    }

    /// A reset of the whole function.
    fn reset_function(&mut self) {
        self.stop_queues();
        self.is_resetting = true;
        self.pci.reset();
        self.interrupts.reset();
        self.route();
    }

    /// All queues have stopped, and the driver begins anew.
    fn begin_anew(&mut self) {
        // What a reset changes is kept with the image. Nobody misses it in a process without the image.
        let _ = self.holding.acquire(&self.controller);
        self.controller.reset();
        self.holding.release();
        self.registers.reset();
        self.registers.offer(self.features());
        self.config = Config::new(self.controller.queues);
        self.memory.forget_copies();
        let _ = self.interrupts.read_status();
        self.waits = false;
        for kick in &self.kicks {
            let _ = kick.read();
        }
    }

    /// What is offered. The device is behind the guest's IOMMU, if there is one. Rings that are carried
    /// are simple ones.
    fn features(&self) -> u64 {
        let simple = !(feature::RING_PACKED | feature::EVENT_IDX | feature::IN_ORDER);
        let offered = features(&self.controller);
        if self.memory.is_mostly_copied() { offered & simple } else { offered }
    }
}

/// The features of a controller behind this door.
fn features(controller: &Controller) -> u64 {
    controller.features() | ACCESS_PLATFORM
}

/// An access to a region that is there, and all of it inside.
fn place(index: u32, offset: u64, len: usize) -> Result<usize, i32> {
    let end = offset.checked_add(len as u64).ok_or(libc::EINVAL)?;
    if end > Device::region_size(index) {
        return Err(libc::EINVAL);
    }
    Ok(offset as usize)
}

/// The region of a window.
fn bar(window: &pci::Window) -> Result<u32, i32> {
    let index = u32::from(window.bar);
    if matches!(index, region::REGISTERS | region::MSIX) { Ok(index) } else { Err(libc::EINVAL) }
}

const PART: usize = pci::PART as usize;
const COMMON: usize = pci::COMMON as usize / PART;
const ISR: usize = pci::ISR as usize / PART;
const SPECIFIC: usize = pci::SPECIFIC as usize / PART;
const NOTIFY: usize = pci::NOTIFY as usize / PART;
/// VIRTIO_F_ACCESS_PLATFORM.
const ACCESS_PLATFORM: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
/// How long a register access waits for queues that stop. The driver asks again.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often queues that stop are looked at, in milliseconds.
const STOPPING_EVERY: u16 = 1;
/// How often images are asked for that another process has, in milliseconds.
const RETRY_EVERY: u16 = 100;
/// How often new logical units are looked for where images move, in milliseconds.
const LOOK_EVERY: u16 = 1000;
