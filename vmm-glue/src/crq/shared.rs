//! What an adapter and its endpoint have in common: the state of the client's queue, orders, and how
//! the endpoint is woken.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use libsrp::{Lun, viosrp::crq::TransportEvent};
use vmm_sys_util::eventfd::EventFd;
use vscsi_target::model::{Attention, Nexus};

use super::{
    config::Config,
    mailbox::Mailbox,
    queue::ClientQueue,
    window::{PAGE, Window},
};
use crate::memory::GuestMap;

/// What the adapter and its endpoint have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) window: Arc<Window>,
    pub(super) mailbox: Mailbox,
    pub(super) kick: EventFd,
    /// The endpoint is to be woken.
    pub(super) armed: AtomicBool,
    /// The generation, and in the lowest bit whether elements are taken.
    pub(super) link: AtomicU64,
    /// There are orders or reports.
    pub(super) news: AtomicBool,
    /// The client wants interrupts.
    pub(super) signal: AtomicBool,
    pub(super) control: Mutex<Control>,
    pub(super) settled: Condvar,
    /// Whether this process writes the client's queue.
    pub(super) has_queue: bool,
    /// By target.
    pub(super) nexuses: Vec<(u8, Arc<Nexus>)>,
    /// To a target without logical units, which stands for those that are not there.
    pub(super) nobody: Arc<Nexus>,
    /// The slot of the client's queue that was next when it was last looked at.
    pub(super) next: AtomicU32,
    pub(super) commands: AtomicU64,
    pub(super) logins: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) violations: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// What the hypervisor knows of the client's queue.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) generation: u64,
    pub(super) is_registered: bool,
    /// Where the queue is, and its bytes.
    pub(super) extent: (u64, u64),
    /// It was freed, and something may still touch it.
    pub(super) is_freeing: bool,
    /// The client was told that the server is gone, and has not registered since.
    pub(super) is_lost: bool,
    /// The client was migrated and has not enabled its queue since.
    pub(super) is_suspended: bool,
    /// The same, and something of before may still be in progress.
    pub(super) is_migrating: bool,
    pub(super) freeze: Freeze,
    pub(super) is_online: bool,
    /// The endpoint is about to end: it takes nothing any more.
    pub(super) is_over: bool,
    /// It has ended: nothing of it is in progress.
    pub(super) has_ended: bool,
    pub(super) orders: VecDeque<Order>,
    pub(super) reports: VecDeque<Report>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freeze {
    No,
    Coming,
    Frozen,
}

/// What the endpoint is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// There is a queue. A queue that somebody else writes is `None`.
    Open(Option<ClientQueue>, u64),
    /// There is none any more.
    Free,
    /// Tell the client of this, and start over.
    Lose(TransportEvent, u64),
    /// The client was migrated: tell it, and start over.
    Migrated(u64),
    /// Begin to initialize.
    Invite,
    /// Finish what is in progress, and take nothing.
    Freeze,
    /// Go on.
    Thaw,
    /// The adapter ends.
    Close,
}

/// A condition to tell the client of, if it has given a buffer for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) lun: Lun,
    pub(super) condition: Attention,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            generation: 0,
            is_registered: false,
            extent: (0, 0),
            is_freeing: false,
            is_lost: false,
            is_suspended: false,
            is_migrating: false,
            freeze: Freeze::No,
            is_online: true,
            is_over: false,
            has_ended: false,
            orders: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// Whether elements of the client are taken.
    pub(super) fn takes(&self) -> bool {
        let is_open = self.is_registered && !self.is_lost && !self.is_suspended;
        is_open && self.is_online && !self.is_over
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_link(&self, control: &Control) {
        let open = if control.takes() { OPEN } else { 0 };
        self.link.store(control.generation << 1 | open, Ordering::Release);
    }

    /// Leaves an order. The link changes before the endpoint looks.
    pub(super) fn order(&self, control: &mut Control, order: Order) {
        self.set_link(control);
        if !control.is_over {
            control.orders.push_back(order);
            self.news.store(true, Ordering::Release);
            self.wake();
        }
    }

    pub(super) fn queue(
        &self,
        map: &GuestMap,
        ioba: u64,
        len: u64,
        next: u32,
    ) -> Result<Option<ClientQueue>, ()> {
        if self.has_queue {
            return ClientQueue::new(&self.window, map, ioba, len, next).map(Some).ok_or(());
        }
        let whole = ioba.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        whole.then_some(None).ok_or(())
    }

    /// Wakes the endpoint if it wants to be.
    #[inline]
    pub(super) fn wake(&self) {
        // Either the endpoint sees what was sent before it sleeps, or this sees that it sleeps.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            // A full counter is awake already.
            let _ = self.kick.write(1);
        }
    }

    /// The endpoint wants to be woken: whether there is something for it already. Elements are of
    /// interest only if it `takes` them.
    pub(super) fn arm(&self, takes: bool) -> bool {
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.news.load(Ordering::Acquire) || takes && self.mailbox.peek().is_some()
    }

    /// The endpoint looks by itself.
    #[inline]
    pub(super) fn disarm(&self) {
        if self.armed.load(Ordering::Relaxed) {
            self.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether there are orders or reports since the last time.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::AcqRel)
    }

    pub(super) fn next_order(&self) -> Option<Order> {
        self.lock().orders.pop_front()
    }

    pub(super) fn next_report(&self) -> Option<Report> {
        self.lock().reports.pop_front()
    }

    /// Nobody could be told.
    pub(super) fn forget_reports(&self) {
        self.lock().reports.clear();
    }

    /// Nothing touches the freed queue any more.
    pub(super) fn freed(&self) {
        self.lock().is_freeing = false;
        self.settled.notify_all();
    }

    /// Nothing of before the migration is left.
    pub(super) fn is_here(&self) {
        self.lock().is_migrating = false;
        self.settled.notify_all();
    }

    /// Nothing is in progress, nothing is taken, and this slot of the client's queue is next.
    pub(super) fn frozen(&self, next: u32) {
        self.next.store(next, Ordering::Relaxed);
        let mut control = self.lock();
        if control.freeze == Freeze::Coming {
            control.freeze = Freeze::Frozen;
        }
        drop(control);
        self.settled.notify_all();
    }

    /// The endpoint is about to end: nobody is connected any more.
    pub(super) fn over(&self) {
        self.end(false);
    }

    fn end(&self, has_ended: bool) {
        let mut control = self.lock();
        control.is_over = true;
        control.has_ended |= has_ended;
        control.orders.clear();
        control.reports.clear();
        self.set_link(&control);
        drop(control);
        self.settled.notify_all();
    }
}

/// The endpoint's part of what both have in common. The adapter learns when it is dropped.
#[derive(Debug)]
pub(super) struct Lease(pub(super) Arc<Shared>);

impl Deref for Lease {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end(true);
    }
}

/// In the link: elements are taken.
pub(super) const OPEN: u64 = 1;
