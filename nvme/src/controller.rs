//! A controller: opened, identified, shared by threads, reset by its supervisor.

use crate::{
    admin::Admin,
    device::Device,
    error::{Fault, OpenError},
    event::Event,
    pair::{Blocks, Kind, LIST_BYTES, Pair, Started},
    prp::Limits,
    shared::{Phase, Queue, Shared, Want},
    space::{Dma, Interface, Space},
    supervisor,
    sysfs::{self, Bdf},
    wire::{
        Cap, ControllerData, Cqe, NamespaceData, Sqe, Version, active_namespaces, admin, offset,
    },
};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How to open a controller.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which.
    pub bdf: Bdf,
    /// Pairs of queues, besides the one for [`Controller::call`]; it may give fewer.
    pub pairs: u16,
    /// Without interrupts.
    pub polled: bool,
    /// How; `None` for iommufd where the kernel has it for the device.
    pub interface: Option<Interface>,
}

/// An open controller.
#[derive(Debug)]
pub struct Controller {
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
    data: ControllerData,
    version: Version,
    bdf: Bdf,
}

/// The pairs that no thread has taken.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub(crate) pairs: Mutex<Vec<Option<Pair>>>,
    /// For calls that wait, one at a time.
    pub(crate) calls: Mutex<Pair>,
}

/// The NVMe controllers of this machine, each with how it would be opened, or what keeps it from
/// that as far as can be seen without opening it.
pub fn controllers() -> Vec<(Bdf, Result<Interface, OpenError>)> {
    sysfs::all().into_iter().map(|bdf| (bdf, sysfs::check(bdf).map(|()| usual(bdf)))).collect()
}

/// How a controller is opened unless it is said.
fn usual(bdf: Bdf) -> Interface {
    match sysfs::has_cdev(bdf) {
        true => Interface::Iommufd,
        false => Interface::Container,
    }
}

impl Controller {
    /// Opens a controller that is bound to VFIO, resets it and makes its queues.
    ///
    /// # Errors
    /// What is in the way, with what to do about it.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let bdf = options.bdf;
        sysfs::check(bdf)?;
        let interface = options.interface.unwrap_or_else(|| usual(bdf));
        Self::on(Device::open(bdf, interface)?, options)
    }

    /// On a device that is open.
    pub(crate) fn on(device: Device, options: &Options) -> Result<Self, OpenError> {
        let bdf = options.bdf;
        let device = Arc::new(device);
        let interface = device.space().interface();
        let wrong = |fault| OpenError::Controller { bdf, fault };
        let memory = |source| OpenError::Memory { bdf, source };
        let eventfd = || {
            Event::new().map_err(|error| OpenError::Vfio {
                bdf,
                what: "eventfd",
                reason: error.to_string(),
            })
        };
        let cap = Cap(device.read_long(offset::CAP));
        if cap.0 == u64::MAX {
            return Err(wrong(Fault::Gone));
        }
        if !cap.has_nvm() {
            return Err(wrong(Fault::CommandSet));
        }
        let page = cap.smallest_page();
        if page > LARGEST_PAGE {
            return Err(wrong(Fault::Page(page)));
        }
        let mut admin = Admin::new(device.space()).map_err(memory)?;
        admin.disable(&device).map_err(wrong)?;
        admin.enable(&device, page).map_err(wrong)?;
        admin.run(&device, "Identify", admin::identify_controller()).map_err(wrong)?;
        let data = ControllerData::parse(&admin.data());

        let asked = options.pairs.saturating_add(1);
        let given = admin
            .run(&device, "Set Features (queues)", admin::set_queues(asked))
            .map(admin::queues_given)
            .map_err(wrong)?;
        let stride = cap.doorbell_stride();
        // Doorbells of queues up to this number are mapped.
        let reached = device.len().saturating_sub(offset::DOORBELLS) / (2 * stride);
        let count = usize::from(asked.min(given)).min(reached.saturating_sub(1));
        if count == 0 {
            return Err(wrong(Fault::Registers(device.len() as u64)));
        }
        let depth = DEPTH.min(cap.most_entries() as usize);
        let vectors = if options.polled { 0 } else { device.vectors().min(count) };
        let queues = (0..count)
            .map(|place| {
                let completions = depth * Sqe::BYTES;
                // The completion queue begins a page, as the lists do.
                let completions = completions.next_multiple_of(page as usize);
                let lists = (completions + depth * Cqe::BYTES).next_multiple_of(page as usize);
                let len = lists + depth * LIST_BYTES;
                Ok(Queue {
                    memory: Dma::new(device.space(), len).map_err(memory)?,
                    completions,
                    lists,
                    event: eventfd()?,
                    interrupts: place < vectors,
                    follows: AtomicU32::new(Shared::NOBODY),
                })
            })
            .collect::<Result<Box<[Queue]>, OpenError>>()?;
        let events = queues.iter().take(vectors).map(|queue| &queue.event.0).collect();
        device.set_vectors(events).map_err(|error| OpenError::Vfio {
            bdf,
            what: "interrupts",
            reason: error.to_string(),
        })?;
        let most = data.most_bytes(page).min(MOST_BYTES as u64) as usize;
        let limits = Limits { page, most, block: 512 };
        // Without another word from the controller zeroing is as limited as transfers are.
        let zero_limit = match data.mdts {
            0 => 65536,
            _ => (data.most_bytes(page) / 4096).clamp(1, 65536) as u32,
        };
        let shared = Arc::new(Shared::new(
            bdf.to_string(),
            Arc::clone(&device),
            admin,
            queues,
            depth,
            stride,
            limits,
            zero_limit,
            eventfd()?,
        ));
        make_queues(&shared, &device).map_err(wrong)?;
        let (request, error) = (eventfd()?, eventfd()?);
        device.set_notices(&request.0, &error.0);
        let owned = |place: usize| {
            if let Some(queue) = shared.queues.get(place) {
                queue.follows.store(shared.epoch(), Ordering::Release);
            }
            Pair::new(&shared, place, &device)
        };
        let pairs = (1..count).map(|place| Some(owned(place))).collect();
        let lanes = Arc::new(Lanes { pairs: Mutex::new(pairs), calls: Mutex::new(owned(0)) });
        supervisor::start(&shared, &lanes, request, error);
        let version = Version(device.read(offset::VS));
        tracing::info!(
            controller = %bdf, model = data.model, firmware = data.firmware, %version,
            interface = interface.name(), pairs = count - 1, depth, interrupts = vectors > 0,
            most_bytes = most, "an NVMe controller is open"
        );
        Ok(Self { shared, lanes, data, version, bdf })
    }

    /// Its address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Which one it is; never the same twice in a process.
    pub fn number(&self) -> u64 {
        self.shared.number
    }

    /// What it says of itself.
    pub fn data(&self) -> &ControllerData {
        &self.data
    }

    /// The version of the specification it follows.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The addresses that it sees memory under.
    pub fn space(&self) -> &Arc<Space> {
        &self.shared.space
    }

    /// The most bytes that one of its commands moves here.
    pub fn most_bytes(&self) -> usize {
        self.shared.limits.most
    }

    /// How often it was reset because it, or a command, did not work.
    pub fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Relaxed)
    }

    /// It will not work again: it was removed, or cannot be reset.
    pub fn is_gone(&self) -> bool {
        self.shared.phase() == Phase::Gone
    }

    /// The queue pair for a thread, by a number below [`Options::pairs`]; `None` if it is taken or
    /// the controller gave fewer.
    pub fn take(&self, number: u16) -> Option<Pair> {
        let mut pairs = self.lanes.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.get_mut(usize::from(number))?.take()
    }

    /// The numbers of its active namespaces, up to 1024 of them.
    ///
    /// # Errors
    /// The controller does not answer, or not as it should.
    pub fn namespaces(&self) -> Result<Vec<u32>, OpenError> {
        self.ask("Identify (active namespaces)", admin::identify_active(0))
            .map(|data| active_namespaces(&data))
    }

    /// What it says of a namespace.
    ///
    /// # Errors
    /// As [`Controller::namespaces`]; or the namespace cannot be used.
    pub fn namespace(&self, nsid: u32) -> Result<NamespaceData, OpenError> {
        let data = self.ask("Identify (namespace)", admin::identify_namespace(nsid))?;
        let bdf = self.bdf;
        NamespaceData::parse(&data).map_err(|reason| OpenError::Namespace { bdf, nsid, reason })
    }

    /// Whether its volatile write cache is on.
    pub fn caches_writes(&self) -> bool {
        let on = |shared: &Shared| {
            let device = shared.device()?;
            let mut admin = shared.lock_admin();
            admin.run(&device, "Get Features (write cache)", admin::get_write_cache()).ok()
        };
        // One that does not say is taken to have it on.
        self.data.volatile_cache && on(&self.shared).is_none_or(|value| value & 1 != 0)
    }

    fn ask(
        &self,
        what: &'static str,
        sqe: Sqe,
    ) -> Result<Box<[u8; crate::wire::IDENTIFY_BYTES]>, OpenError> {
        let wrong = |fault| OpenError::Controller { bdf: self.bdf, fault };
        let device = self.shared.device().ok_or_else(|| wrong(Fault::Gone))?;
        let mut admin = self.shared.lock_admin();
        admin.run(&device, what, sqe).map_err(wrong)?;
        Ok(admin.data())
    }

    /// Does an operation and waits for it, one at a time. `None` if the device cannot reach the
    /// memory as it is.
    pub fn call(
        &self,
        kind: Kind,
        blocks: Blocks,
        memory: Option<(usize, usize)>,
    ) -> Option<io::Result<()>> {
        let mut pair = self.lanes.calls.lock().unwrap_or_else(PoisonError::into_inner);
        match pair.start(0, kind, blocks, memory) {
            Started::Queued => {}
            Started::Unreachable => return None,
            Started::Gone => return Some(Err(io::Error::from_raw_os_error(libc::ENODEV))),
        }
        let start = Instant::now();
        let (mut looked, mut cancelled, mut result) = (0, false, None);
        loop {
            pair.submit();
            pair.lower();
            pair.reap(|_, ended| result = Some(ended));
            if let Some(result) = result {
                return Some(result);
            }
            let seconds = start.elapsed().as_secs();
            if seconds > looked {
                looked = seconds;
                pair.tick();
            }
            if seconds >= CALL_SECONDS && !cancelled {
                cancelled = true;
                pair.cancel(0);
                continue;
            }
            if pair.must_be_polled() {
                thread::sleep(Duration::from_micros(50));
            } else {
                pair.wait(CALL_PAUSE);
            }
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // The supervisor does it: this may be the thread of a pair.
        self.shared.ask(Want::Stop, "nobody uses it");
    }
}

/// Makes all queues of an enabled controller, empty.
pub(crate) fn make_queues(shared: &Shared, device: &Device) -> Result<(), Fault> {
    let mut admin = shared.lock_admin();
    let entries = u16::try_from(shared.depth).unwrap_or(u16::MAX);
    for (place, queue) in (0u16..).zip(&shared.queues) {
        let (qid, vector) = (place + 1, queue.interrupts.then_some(place));
        let (low, high) = (queue.memory.iova(0), queue.memory.iova(queue.completions));
        let completions = admin::create_completion_queue(qid, entries, vector, high);
        admin.run(device, "Create I/O Completion Queue", completions)?;
        let submissions = admin::create_submission_queue(qid, entries, low);
        admin.run(device, "Create I/O Submission Queue", submissions)?;
    }
    Ok(())
}

/// Entries of a queue, unless the controller has fewer.
const DEPTH: usize = 256;
/// The most bytes of a command; see `LIST_BYTES`.
const MOST_BYTES: usize = 1 << 20;
/// Memory is mapped by pages of this size, so a controller must take them.
const LARGEST_PAGE: u32 = 4096;
/// How long a call sleeps at most before it looks again, in milliseconds.
const CALL_PAUSE: u16 = 100;
/// How long a call may take.
const CALL_SECONDS: u64 = 60;
