//! What one VMM has set up: features, memory, rings and logs, and what the queues are told of it.

mod messages;

use std::{
    fmt,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use vhost::vhost_user::{
    self, Backend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
    message::{VhostUserInflight, VhostUserMemoryRegion},
};
use vmm_sys_util::eventfd::EventFd;

pub use messages::PROTOCOL;

use super::{
    fault::Fault,
    transfer::Transfer,
    vring::{self, Vring},
};
use crate::{
    controller::Controller,
    door::{holding::Holding, reach},
    memory::{GuestMap, Region, dirty::DirtyLog},
    queue::{Note, Start},
    ring::{Ring, Setup, feature, inflight::InflightArea},
    scsi::{self, config::Config},
};

type Answer<T> = vhost_user::Result<T>;

/// What one VMM has set up.
pub(super) struct Device {
    /// What SET_STATUS said, for GET_STATUS. Nothing depends on it: QEMU never says DRIVER_OK.
    pub(super) status: u64,
    controller: Arc<Controller>,
    /// Queues that run, for who wants to know.
    running: Arc<AtomicU16>,
    /// What the driver accepted, and LOG_ALL and PROTOCOL_FEATURES.
    features: u64,
    protocol: VhostUserProtocolFeatures,
    map: Option<Arc<GuestMap>>,
    vrings: Vec<Vring>,
    inflight: Option<Arc<InflightArea>>,
    /// The log that the VMM gave, used while LOG_ALL is set.
    log: Option<Arc<DirtyLog>>,
    config: Config,
    holding: Holding,
    transfer: Option<Transfer>,
    /// Kept open for the VMM; this device has nothing to say there.
    _backend: Option<Backend>,
    /// The last message could not be done.
    refused: bool,
}

impl Device {
    pub(super) fn new(controller: Arc<Controller>, running: Arc<AtomicU16>) -> Self {
        Self {
            status: 0,
            running,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            map: None,
            vrings: (0..controller.virtqueues()).map(Vring::new).collect(),
            inflight: None,
            log: None,
            config: Config::new(controller.queues),
            holding: Holding::default(),
            transfer: None,
            _backend: None,
            refused: false,
            controller,
        }
    }

    /// Whether the last message was refused; asked once.
    pub(super) fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// How often [`Device::tick`] is wanted between messages, in milliseconds.
    pub(super) fn period(&self) -> Option<u16> {
        if self.vrings.iter().any(|vring| vring.waits) {
            Some(RETRY_EVERY)
        } else {
            self.holding.holds().then_some(LOOK_EVERY)
        }
    }

    /// Tries again to get the images that rings wait for, and those of new logical units.
    pub(super) fn tick(&mut self) {
        if self.holding.try_acquire(&self.controller)
            && let Err(fault) = self.start_waiting()
        {
            tracing::error!(controller = self.controller.name, "{fault}");
        }
    }

    /// Whether memory was taken away that the VMM shared before.
    pub(super) fn has_lost_memory(&self) -> bool {
        self.map.as_ref().is_some_and(|map| map.is_lost())
    }

    /// Whether messages are acknowledged that ask for it.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    pub(super) fn read_config(&self, offset: u32, len: u32) -> Vec<u8> {
        self.config.read(offset, len)
    }

    pub(super) fn write_config(&mut self, offset: u32, bytes: &[u8]) {
        self.config.write(offset, bytes);
    }

    /// Stops all queues when they have finished what is in flight.
    pub(super) fn stop(&mut self) {
        let answers = self.tell(|_, _, done| Some(Note::Stop(done)));
        for (index, answer) in answers {
            let base = reach::wait(&self.controller, index, &answer).flatten();
            if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
                vring.stopped(base.unwrap_or(vring.base));
            }
        }
        self.count();
    }

    /// Notes a refusal.
    fn answer<T>(&mut self, result: Result<T, Fault>) -> Answer<T> {
        result.map_err(|fault| {
            self.refused = true;
            tracing::error!(controller = self.controller.name, "{fault}");
            fault.into()
        })
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Fault> {
        let last = self.controller.virtqueues() - 1;
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        self.vrings.get_mut(at).ok_or(Fault::Index { index, last })
    }

    /// Starts a ring if all is known of it, anew if it runs with something else.
    fn start(&mut self, index: u32) -> Result<(), Fault> {
        if self.vring(index)?.running {
            // A base that the VMM gave since is meant; else the ring goes on where it is.
            let vring = self.vring(index)?;
            let given = vring.based.then_some(vring.base);
            let events = (vring.kick.take(), vring.call.take());
            self.stop_one(index)?;
            let vring = self.vring(index)?;
            (vring.kick, vring.call) = events;
            vring.kicked = true;
            vring.base = given.unwrap_or(vring.base);
        }
        let is_ready = self.vring(index)?.is_ready();
        // Memory may still come.
        if !is_ready || self.map.is_none() {
            return Ok(());
        }
        let has_images = self.holding.try_acquire(&self.controller);
        self.vring(index)?.waits = !has_images;
        let done = if has_images { self.run(index) } else { Ok(()) };
        self.count();
        done
    }

    /// Gives a ring to its queue.
    fn run(&mut self, index: u32) -> Result<(), Fault> {
        let features = self.features;
        let (map, log, layout) = (self.map.clone(), self.dirty_log(), self.layout());
        let (inflight, offered) = (self.inflight.clone(), self.controller.features());
        let is_enabled = !has_protocol(features);
        let vring = self.vring(index)?;
        let number = vring.index;
        if features & !offered & feature::RING_PACKED != 0 {
            return Err(Fault::Packed(number));
        }
        let map = map.ok_or(Fault::NoMemory(number))?;
        let setup = Setup {
            size: vring.size,
            areas: vring.areas(&map, features)?,
            base: vring.base,
            features,
            inflight: inflight.map(|area| (area, number)),
        };
        let ring = Ring::open(setup).map_err(|source| Fault::Ring { index: number, source })?;
        let start = Box::new(Start {
            ring,
            map,
            kick: vring::copy(&vring.kick)?,
            call: vring::copy(&vring.call)?,
            error: vring::copy(&vring.error)?,
            layout,
            features,
            log,
            enabled: vring.enabled || is_enabled,
            tracks: false,
        });
        let place = reach::place(&self.controller, number).ok_or(Fault::Gone(number))?;
        let (done, answer) = sync_channel(1);
        self.controller.router().note(place, Note::Start(start, done));
        if reach::wait(&self.controller, number, &answer).is_none() {
            self.controller.set_place(number, None);
            return Err(Fault::Gone(number));
        }
        let vring = self.vring(index)?;
        (vring.running, vring.changed, vring.based) = (true, false, false);
        Ok(())
    }

    /// Starts the rings that waited for memory.
    fn start_waiting(&mut self) -> Result<(), Fault> {
        let waiting: Vec<u32> = self
            .vrings
            .iter()
            .filter(|vring| vring.is_ready() && !vring.running)
            .map(|vring| vring.index.into())
            .collect();
        waiting.into_iter().try_for_each(|index| self.start(index))
    }

    /// Stops a ring when it has finished what is in flight: where it goes on.
    fn stop_one(&mut self, index: u32) -> Result<u32, Fault> {
        let vring = self.vring(index)?;
        let (number, running, mut base) = (vring.index, vring.running, vring.base);
        if running && let Some(place) = self.controller.place(number) {
            let (done, answer) = sync_channel(1);
            self.controller.router().note(place, Note::Stop(done));
            base = reach::wait(&self.controller, number, &answer).flatten().unwrap_or(base);
        }
        self.vring(index)?.stopped(base);
        self.count();
        Ok(base)
    }

    /// Sends a note to each queue that runs: whose answers to wait for.
    fn tell<T>(
        &self,
        note: impl Fn(&Self, &Vring, SyncSender<T>) -> Option<Note>,
    ) -> Vec<(u16, Receiver<T>)> {
        let running = self.vrings.iter().filter(|vring| vring.running);
        let told = running.filter_map(|vring| {
            let place = self.controller.place(vring.index)?;
            let (done, answer) = sync_channel(1);
            self.controller.router().note(place, note(self, vring, done)?);
            Some((vring.index, answer))
        });
        told.collect()
    }

    /// As [`Device::tell`], and waits until all have done it.
    fn tell_and_wait(&self, note: impl Fn(&Self, &Vring, SyncSender<()>) -> Option<Note>) {
        for (index, answer) in self.tell(note) {
            let _ = reach::wait(&self.controller, index, &answer);
        }
    }

    /// Moves the rings that run to another map, and starts those that waited for it.
    fn remap(&mut self, map: GuestMap) -> Result<(), Fault> {
        let map = Arc::new(map);
        self.tell_and_wait(|device, vring, done| {
            let areas = vring.areas(&map, device.features);
            if let Err(fault) = &areas {
                tracing::error!(controller = device.controller.name, "{fault}");
            }
            Some(Note::Remap(Arc::clone(&map), areas.ok(), done))
        });
        self.map = Some(map);
        self.start_waiting()
    }

    /// The log to write to.
    fn dirty_log(&self) -> Option<Arc<DirtyLog>> {
        let logs = self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.log.clone().filter(|_| logs)
    }

    /// Tells the queues that run where to log now; all do when this returns.
    fn change_log(&self) {
        let log = self.dirty_log();
        self.tell_and_wait(|_, _, done| Some(Note::Log(log.clone(), done)));
    }

    fn layout(&self) -> scsi::Layout {
        // QEMU may let the driver accept it though it was not offered.
        scsi::Layout { pi: self.features & scsi::feature::T10_PI != 0, ..self.config.layout }
    }

    /// Tells how many queues run, and gives the images up after the last one.
    fn count(&mut self) {
        let running = self.vrings.iter().filter(|vring| vring.running).count();
        self.running.store(running as u16, Ordering::Relaxed);
        if running == 0 && !self.vrings.iter().any(|vring| vring.waits) {
            self.holding.release();
        }
    }

    /// Replaces one of a ring's eventfds.
    fn set_event(
        &mut self,
        index: u8,
        file: Option<File>,
        slot: fn(&mut Vring) -> &mut Option<EventFd>,
        note: fn(Option<EventFd>) -> Note,
    ) -> Result<(), Fault> {
        let event = vring::event(index, file)?;
        let vring = self.vring(index.into())?;
        let copy = vring::copy(&event)?;
        *slot(vring) = event;
        if vring.running {
            let index = vring.index;
            reach::note(&self.controller, index, note(copy));
        }
        Ok(())
    }

    fn set_mem(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), Fault> {
        let mapped = regions.iter().zip(files).map(|(region, file)| map_region(region, file));
        let map = GuestMap::new(mapped.collect::<Result<_, _>>()?)?;
        self.remap(map)
    }

    fn add_region(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<(), Fault> {
        let region = map_region(region, file)?;
        let map = match &self.map {
            Some(map) => map.with(region)?,
            None => GuestMap::new(vec![region])?,
        };
        self.remap(map)
    }

    fn remove_region(&mut self, region: &VhostUserMemoryRegion) -> Result<(), Fault> {
        let none = GuestMap::default();
        let map = self.map.as_deref().unwrap_or(&none);
        let map = map.without(region.guest_phys_addr, region.memory_size, region.user_addr)?;
        self.remap(map)
    }

    fn map_inflight(&mut self, log: &VhostUserInflight, file: File) -> Result<(), Fault> {
        let (len, queues, size) = (log.mmap_size, log.num_queues, log.queue_size);
        let area = InflightArea::map(len, log.mmap_offset, file, size, self.features)?;
        if !area.has_room(queues) {
            return Err(Fault::Inflight { len, queues, size });
        }
        self.inflight = Some(area);
        Ok(())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("vrings", &self.vrings).finish_non_exhaustive()
    }
}

fn map_region(region: &VhostUserMemoryRegion, file: File) -> Result<Region, Fault> {
    let (gpa, size) = (region.guest_phys_addr, region.memory_size);
    Ok(Region::map(gpa, size, region.user_addr, region.mmap_offset, file)?)
}

fn has_protocol(features: u64) -> bool {
    features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
}

/// How often images are asked for that another process has, in milliseconds.
const RETRY_EVERY: u16 = 100;
/// How often new logical units are looked for where images move, in milliseconds.
const LOOK_EVERY: u16 = 1000;
