//! The VMM's handle: hypervisor calls of the client, and events that the hypervisor makes.
//!
//! Every call returns at once. H_SEND_CRQ puts an element into the server's queue and wakes its
//! reactor only if that sleeps. The others change what is known of the client's queue under a lock
//! that nobody holds for long, and leave an *order* for the reactor, which carries them out one after
//! the other. A *generation* counts queues and whatever else makes elements worthless: those of an
//! earlier one are passed over.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use libsrp::viosrp::crq::TransportEvent;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vscsi_target::model::{
    Nexus, Target,
    reservation::{NexusId, TransportId},
};

use super::{
    Hcall, Seed,
    config::Config,
    mailbox::{Mailbox, Sent},
    queue::Delivery,
    shared::{Control, Freeze, Lease, OPEN, Order, Shared},
    watch::Watch,
    window::Window,
};
use crate::controller::Export;

/// How an adapter reaches the reactors.
pub trait Router {
    /// How many reactors there are, at least one.
    fn reactors(&self) -> u16;
    /// Makes an adapter's endpoint.
    fn open(&self, reactor: u16, seed: Seed);
}

/// A virtual SCSI server adapter, as the hypervisor side of its client has it. Every method may be
/// called from any thread, those of virtual processors among them, and none waits for the server
/// except where it says so.
///
/// Dropping it ends the adapter; what is in flight then still ends in the guest's memory, which is
/// kept mapped as long.
#[derive(Debug)]
pub struct Adapter {
    shared: Arc<Shared>,
}

/// A client's queue as it stands, for another process that the partition migrates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedQueue {
    /// Its I/O bus address.
    pub ioba: u64,
    /// Its bytes.
    pub len: u64,
    /// The slot that is written next.
    pub next: u32,
    /// The client wants interrupts.
    pub signal: bool,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Queues that the client has registered and freed, and whatever else made it begin anew.
    pub generation: u64,
    /// Logins, those that Open Firmware leaves out among them.
    pub logins: u64,
    /// SCSI commands taken.
    pub commands: u64,
    /// Times that the client's queue was full when there was something for it.
    pub full: u64,
    /// Commands refused because their memory could not be reached.
    pub faults: u64,
    /// Connections that this side ended because of what the client sent.
    pub violations: u64,
    /// Elements that H_SEND_CRQ dropped because the server's queue was full.
    pub dropped: u64,
}

impl Adapter {
    /// An adapter whose client reaches these targets, by number: 0 to 63 are those of bus 0, 64 to
    /// 127 those of bus 1, and so on. Logical units above 31 have no address. Elements go to
    /// `delivery`, and the partition's memory is what `window` maps.
    ///
    /// Its endpoint lives on one reactor; adapters take turns.
    ///
    /// # Errors
    /// The system has no event descriptors left.
    pub fn new(
        config: Config,
        exports: Vec<Export>,
        window: Arc<Window>,
        router: &dyn Router,
        delivery: Delivery,
    ) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let config = Arc::new(config.bounded());
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        // A client that keeps to its limit never finds it full.
        let room = (config.request_limit as usize + MANAGEMENT).max(LEAST_ROOM);
        let shared = Arc::new_cyclic(|shared| {
            let observe = |target| Some(Arc::new(Watch { target, shared: shared.clone() }) as _);
            let first = exports.first().map(|export| export.initiator.clone());
            let nexuses = exports.into_iter().map(|export| {
                let Export { id, target, port, initiator } = export;
                warn_of_hidden(&config.name, id, &target);
                let name = config.name.clone();
                let nexus = Nexus::establish_observed(target, port, initiator, name, observe(id));
                (id, nexus)
            });
            let nexuses: Vec<_> = nexuses.collect();
            let nobody = nobody(first, &config.name);
            Shared {
                window,
                mailbox: Mailbox::new(room),
                kick,
                armed: AtomicBool::new(true),
                link: AtomicU64::new(0),
                news: AtomicBool::new(false),
                signal: AtomicBool::new(false),
                control: Mutex::new(Control::new()),
                settled: Condvar::new(),
                has_queue: matches!(delivery, Delivery::Memory(_)),
                nexuses,
                nobody,
                next: AtomicU32::new(0),
                commands: AtomicU64::new(0),
                logins: AtomicU64::new(0),
                full: AtomicU64::new(0),
                faults: AtomicU64::new(0),
                violations: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                config,
            }
        });
        let turn = NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(router.reactors().max(1));
        router.open(turn as u16, Seed { shared: Lease(Arc::clone(&shared)), delivery });
        Ok(Self { shared })
    }

    /// H_REG_CRQ: registers the client's queue, `len` bytes at an I/O bus address.
    ///
    /// [`Hcall::Success`] and [`Hcall::Closed`] register it, the latter while the server is not
    /// there. [`Hcall::Resource`]: there is one, or the last one is not free yet. [`Hcall::Parameter`]:
    /// it is not made of whole pages that the window maps for reading and writing.
    pub fn reg_crq(&self, ioba: u64, len: u64) -> Hcall {
        self.register(ioba, len, 0)
    }

    fn register(&self, ioba: u64, len: u64, next: u32) -> Hcall {
        let shared = &self.shared;
        let (map, _) = shared.window.map();
        let mut control = shared.lock();
        if control.is_registered || control.is_freeing && !control.has_ended {
            return Hcall::Resource;
        }
        let Ok(queue) = shared.queue(&map, ioba, len, next) else { return Hcall::Parameter };
        control.generation += 1;
        control.extent = (ioba, len);
        shared.next.store(next, Ordering::Relaxed);
        (control.is_registered, control.is_lost, control.is_suspended) = (true, false, false);
        let generation = control.generation;
        shared.order(&mut control, Order::Open(queue, generation));
        if control.takes() { Hcall::Success } else { Hcall::Closed }
    }

    /// The client's queue as it stands, `None` without one; exact only while the adapter is suspended
    /// ([`Adapter::prepare_suspend`]). For queues that this process writes.
    pub fn save_queue(&self) -> Option<SavedQueue> {
        let control = self.shared.lock();
        let (ioba, len) = control.extent;
        let next = self.shared.next.load(Ordering::Relaxed);
        let signal = self.shared.signal.load(Ordering::SeqCst);
        control.is_registered.then_some(SavedQueue { ioba, len, next, signal })
    }

    /// Takes over a queue from another process, with the slot that is next there; results are those
    /// of [`Adapter::reg_crq`]. [`Adapter::migrated`] follows, and then the client goes on.
    pub fn restore_queue(&self, saved: &SavedQueue) -> Hcall {
        let _ = self.vio_signal(saved.signal);
        self.register(saved.ioba, saved.len, saved.next)
    }

    /// H_FREE_CRQ: the client has no queue any more. [`Hcall::Busy`] as long as something may still
    /// read or write its memory; then call again.
    pub fn free_crq(&self) -> Hcall {
        let shared = &self.shared;
        let mut control = shared.lock();
        if control.is_registered {
            (control.is_registered, control.is_suspended) = (false, false);
            control.is_freeing = true;
            control.generation += 1;
            shared.order(&mut control, Order::Free);
        }
        if control.is_freeing && !control.has_ended { Hcall::Busy } else { Hcall::Success }
    }

    /// H_SEND_CRQ: an element for the server, as its two big-endian halves.
    ///
    /// [`Hcall::Parameter`]: the client may not send that. [`Hcall::Closed`]: there is no connection.
    /// [`Hcall::Dropped`]: the server's queue is full.
    #[inline]
    pub fn send_crq(&self, first: u64, second: u64) -> Hcall {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_be_bytes());
        bytes[8..].copy_from_slice(&second.to_be_bytes());
        if bytes[0] & VALID == 0 || bytes[0] == EVENT {
            return Hcall::Parameter;
        }
        let shared = &self.shared;
        let link = shared.link.load(Ordering::Acquire);
        if link & OPEN == 0 {
            return Hcall::Closed;
        }
        if !shared.mailbox.send(Sent { generation: link >> 1, bytes }) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return Hcall::Dropped;
        }
        shared.wake();
        Hcall::Success
    }

    /// H_ENABLE_CRQ: the client goes on after it was migrated. [`Hcall::LongBusy`] until it may;
    /// [`Hcall::Parameter`] without a queue.
    pub fn enable_crq(&self) -> Hcall {
        let shared = &self.shared;
        let mut control = shared.lock();
        if !control.is_registered {
            return Hcall::Parameter;
        }
        if control.is_migrating && !control.has_ended {
            return Hcall::LongBusy;
        }
        control.is_suspended = false;
        shared.set_link(&control);
        Hcall::Success
    }

    /// H_VIO_SIGNAL: whether the client wants interrupts. It looks at its queue once more after it
    /// has enabled them; what came before makes none.
    pub fn vio_signal(&self, enable: bool) -> Hcall {
        self.shared.signal.store(enable, Ordering::SeqCst);
        Hcall::Success
    }

    /// The partition was reset: its queue is gone, and it wants no interrupts. As with
    /// [`Adapter::free_crq`], call it again while it gives [`Hcall::Busy`], before the memory is used
    /// for anything else. The window is the VMM's to clear.
    pub fn reset(&self) -> Hcall {
        self.shared.signal.store(false, Ordering::SeqCst);
        self.free_crq()
    }

    /// The hypervisor ends the connection: the client is told by this event, and registers its queue
    /// anew. What was in progress is not answered. For [`TransportEvent::PartnerFailed`],
    /// [`TransportEvent::PartnerDeregistered`] and [`TransportEvent::PartnerTerminated`].
    pub fn disconnect(&self, event: TransportEvent) {
        let shared = &self.shared;
        let mut control = shared.lock();
        if control.is_registered && !control.is_lost {
            control.is_lost = true;
            control.generation += 1;
            let generation = control.generation;
            shared.order(&mut control, Order::Lose(event, generation));
        }
    }

    /// Whether the server is there. While it is not, the client can register its queue and send
    /// nothing; one that was connected is told that its partner has deregistered. When it comes back,
    /// it begins to initialize with a client that has a queue.
    pub fn set_online(&self, online: bool) {
        {
            let mut control = self.shared.lock();
            if control.is_online == online {
                return;
            }
            control.is_online = online;
            self.shared.set_link(&control);
            if online && control.takes() {
                self.shared.order(&mut control, Order::Invite);
            }
        }
        if !online {
            self.disconnect(TransportEvent::PartnerDeregistered);
        }
    }

    /// The client's partition was migrated, and runs here from now on: it is told, enables its queue
    /// and initializes again. What was in progress before is not answered; the client sends it again.
    pub fn migrated(&self) {
        let shared = &self.shared;
        let mut control = shared.lock();
        if control.is_registered && !control.is_lost {
            (control.is_suspended, control.is_migrating) = (true, true);
            control.generation += 1;
            let generation = control.generation;
            shared.order(&mut control, Order::Migrated(generation));
        }
    }

    /// The partition is about to be suspended: what is in progress is finished and told, and nothing
    /// more is taken, though elements still fit the server's queue. See [`Adapter::wait_suspended`].
    pub fn prepare_suspend(&self) {
        let mut control = self.shared.lock();
        if control.freeze == Freeze::No {
            control.freeze = Freeze::Coming;
            self.shared.order(&mut control, Order::Freeze);
        }
    }

    /// Waits until nothing is in progress after [`Adapter::prepare_suspend`]; false if that takes
    /// longer than `limit`, or nobody has prepared it.
    pub fn wait_suspended(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut control = self.shared.lock();
        while control.freeze == Freeze::Coming && !control.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.settled.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        control.freeze != Freeze::No
    }

    /// The partition goes on after [`Adapter::prepare_suspend`].
    pub fn resume(&self) {
        let mut control = self.shared.lock();
        if control.freeze != Freeze::No {
            control.freeze = Freeze::No;
            self.shared.order(&mut control, Order::Thaw);
        }
    }

    /// The window of the partition's memory.
    pub fn window(&self) -> &Arc<Window> {
        &self.shared.window
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        Stats {
            generation: shared.link.load(Ordering::Relaxed) >> 1,
            logins: get(&shared.logins),
            commands: get(&shared.commands),
            full: get(&shared.full),
            faults: get(&shared.faults),
            violations: get(&shared.violations),
            dropped: get(&shared.dropped),
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let mut control = self.shared.lock();
        control.is_registered = false;
        self.shared.order(&mut control, Order::Close);
    }
}

/// A nexus to a target without logical units.
fn nobody(first: Option<NexusId>, name: &str) -> Arc<Nexus> {
    let target = Target::new(String::new());
    let port = target.add_port(1, SRP_PROTOCOL, String::new());
    // Nothing can be reserved there: any identity will do.
    let identity = first.unwrap_or_else(|| NexusId::new(TransportId::srp([0; 16]), port));
    Nexus::establish(target, port, identity, name.to_owned())
}

fn warn_of_hidden(adapter: &str, id: u8, target: &Target) {
    for (number, _) in target.luns().iter().filter(|(number, _)| *number > 31) {
        tracing::warn!(
            adapter,
            target = id,
            number,
            "a partition cannot address logical units above 31, so it will not reach this one"
        );
    }
}

/// The bit that every element of a client has in its first byte.
const VALID: u8 = 0x80;
/// The first byte of an event, which only the hypervisor makes.
const EVENT: u8 = 0xFF;
/// Room for elements that spend no credit: datagrams, initialization.
const MANAGEMENT: usize = 32;
/// Elements of a queue of one page.
const LEAST_ROOM: usize = 256;
/// SRP's protocol identifier (SPC-5).
const SRP_PROTOCOL: u8 = 4;
