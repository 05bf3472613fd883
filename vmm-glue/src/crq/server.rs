//! An adapter's endpoint on its reactor.
//!
//! A turn takes elements from the server's queue in a batch, hands commands to the core with the
//! partition's own memory, writes the answers of what is done over the units they answer, and ends
//! with one delivery: elements into the client's queue, and at most one interrupt. What the client's
//! queue has no room for is held, and offered again every millisecond or when there is more.
//!
//! Orders of the hypervisor side are carried out one by one. Those that end a connection wait until
//! the core has given back everything of it, and meanwhile nothing is taken: so the client learns
//! that its queue is free, or that it may begin anew, only when nothing can touch its memory.

mod memory;
mod orders;
mod outgoing;
mod request;

use std::{os::fd::AsRawFd, sync::Arc};

use vscsi_target::{
    engine::Completion,
    log_budget::LogBudget,
    model::NexusView,
    reactor::{Cx, Endpoint, Ready, sg::Segment},
};

use super::{
    queue::Delivery,
    session::{MOST_UNIT, Next, Session, Violation},
    shared::Lease,
};
use crate::memory::guard;
use memory::Memory;
use orders::Waiting;
use outgoing::Outgoing;
use request::Place;

/// What makes an adapter's endpoint.
#[derive(Debug)]
pub struct Seed {
    pub(super) shared: Lease,
    pub(super) delivery: Delivery,
}

/// A message to the endpoints of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Look at the LUN maps: what was removed is not held any more.
    Refresh,
}

/// An adapter's endpoint.
#[derive(Debug)]
pub struct Server {
    shared: Lease,
    session: Session,
    /// Elements of others are passed over.
    generation: u64,
    memory: Memory,
    outgoing: Outgoing,
    /// By target.
    views: Vec<Option<NexusView>>,
    /// The first target, for the well-known logical unit.
    first: Option<usize>,
    nobody: NexusView,
    /// Where the units of requests in progress are, by slot.
    places: Vec<Place>,
    /// What has to wait until nothing is in progress.
    waiting: Waiting,
    frozen: bool,
    stopping: bool,
    /// How often any guest's memory was lost when it was last asked whether this one was.
    losses: u64,
    log: LogBudget,
    // Reused.
    unit: Vec<u8>,
    out: [u8; MOST_UNIT],
    list: Vec<Segment>,
    data: Vec<Segment>,
    table: Vec<u8>,
    payload: Vec<u8>,
}

impl Endpoint for Server {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        let Seed { shared, delivery } = seed;
        if let Err(error) = cx.watch(shared.kick.as_raw_fd(), 0, true, false) {
            tracing::error!(adapter = shared.config.name, %error, "cannot watch an adapter");
            return None;
        }
        let mut views: Vec<Option<NexusView>> = Vec::new();
        for (target, nexus) in &shared.nexuses {
            let at = usize::from(*target);
            if views.len() <= at {
                views.resize_with(at + 1, || None);
            }
            if let Some(view) = views.get_mut(at) {
                *view = Some(NexusView::new(Arc::clone(nexus)));
            }
        }
        let mut server = Self {
            session: Session::new(Arc::clone(&shared.config)),
            generation: 0,
            memory: Memory::new(Arc::clone(&shared.window)),
            outgoing: Outgoing::new(delivery, shared.mailbox.room()),
            first: views.iter().position(Option::is_some),
            views,
            nobody: NexusView::new(Arc::clone(&shared.nobody)),
            places: Vec::new(),
            waiting: Waiting::No,
            frozen: false,
            stopping: false,
            losses: guard::losses(),
            log: LogBudget::default(),
            unit: vec![0; MOST_UNIT],
            out: [0; MOST_UNIT],
            list: Vec::new(),
            data: Vec::new(),
            table: Vec::new(),
            payload: Vec::new(),
            shared,
        };
        // What was sent before it was watched is in the counter; what comes by now is looked for.
        server.fetch(cx);
        Some(server)
    }

    fn note(&mut self, note: Note, _cx: &mut Cx<'_>) {
        match note {
            Note::Refresh => {
                for view in self.views.iter_mut().flatten() {
                    view.table();
                }
            }
        }
    }

    fn ready(&mut self, _source: u32, _ready: Ready, cx: &mut Cx<'_>) {
        // An empty counter was read already.
        let _ = self.shared.kick.read();
        self.fetch(cx);
    }

    #[inline]
    fn completed(&mut self, completion: &mut Completion, _cx: &mut Cx<'_>) {
        self.ended(completion);
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        self.fetch(cx);
    }

    #[inline]
    fn flush(&mut self, cx: &mut Cx<'_>) {
        if self.waiting != Waiting::No || self.frozen {
            self.settle(cx);
        }
        self.deliver();
        if self.outgoing.len() > 0 {
            cx.wake_at(cx.now + RETRY);
        }
        if self.losses != guard::losses() {
            self.look_for_losses(cx);
        }
        if self.frozen && self.is_idle() {
            let next = self.outgoing.queue().map_or(0, |queue| queue.next());
            self.shared.frozen(next);
        }
    }

    #[inline]
    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.fetch(cx)
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        // What cannot be taken now is taken when something completes or is delivered.
        self.shared.arm(self.may_take())
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        self.stopping = true;
        self.settle(cx);
    }
}

impl Server {
    /// Takes orders, and a batch of elements: whether there was anything.
    #[inline]
    fn fetch(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut any = false;
        if self.shared.has_news() {
            any = true;
            self.settle(cx);
            self.report();
        }
        if self.memory.refresh() {
            self.moved(cx);
        }
        for _ in 0..BATCH {
            if !self.may_take() {
                break;
            }
            let Some(sent) = self.shared.mailbox.peek() else { break };
            if sent.generation > self.generation {
                // The order that says so is there already.
                self.settle(cx);
                if sent.generation > self.generation {
                    break;
                }
            }
            any = true;
            self.shared.mailbox.skip();
            if sent.generation == self.generation {
                self.take(&sent.bytes, cx);
            }
        }
        if any {
            self.shared.disarm();
        }
        any
    }

    /// Whether elements are taken now.
    #[inline]
    fn may_take(&self) -> bool {
        let is_held = self.outgoing.len() >= self.shared.mailbox.room();
        self.waiting == Waiting::No && !self.frozen && !is_held
    }

    /// Whether nothing is in progress, and nothing waits for the client.
    fn is_idle(&self) -> bool {
        self.session.in_progress() == 0 && self.outgoing.len() == 0
    }

    #[inline]
    fn take(&mut self, bytes: &[u8; 16], cx: &mut Cx<'_>) {
        match self.session.element(bytes) {
            Next::Fetch { message, len } => self.request(&message, len, cx),
            Next::Nothing => {}
            Next::Deliver(element) => self.outgoing.push(element),
            Next::Restart => self.restart(cx),
            Next::Violated(violation) => self.violated(&violation, cx),
        }
    }

    #[inline]
    fn deliver(&mut self) {
        if self.outgoing.len() > 0 {
            self.outgoing.deliver(&self.shared);
            if self.outgoing.len() > 0 {
                count(&self.shared.full);
            }
        }
    }

    /// The connection cannot go on because of what the client sent.
    fn violated(&mut self, violation: &Violation, cx: &mut Cx<'_>) {
        count(&self.shared.violations);
        if let Some(suppressed) = self.log.spend() {
            tracing::warn!(
                adapter = self.shared.config.name,
                suppressed,
                "the connection to a partition ends: {violation}"
            );
        }
        self.lose(libsrp::viosrp::crq::TransportEvent::PartnerDeregistered, cx);
    }
}

/// Adds one to a counter.
#[inline]
fn count(counter: &std::sync::atomic::AtomicU64) {
    use std::sync::atomic::Ordering::Relaxed;
    // One thread writes it.
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Elements taken before the others have their turn.
const BATCH: usize = 64;
/// When what the client's queue has no room for is offered again, in nanoseconds.
const RETRY: u64 = 1_000_000;
