//! A virtqueue as an endpoint of a reactor.
//!
//! The front door starts it with a ring and the memory, and stops it; in between it takes requests in
//! batches while its reactor polls, hands them to the command core with the guest's own memory, and
//! publishes what is done at the end of each turn with at most one interrupt. Whatever must not
//! happen while requests are in flight (stopping, another memory table, a log) waits until there are
//! none, and nothing new is taken meanwhile.

mod control;
mod event;
mod request;
mod slot;

use std::{
    collections::VecDeque,
    io,
    os::fd::AsRawFd,
    sync::{Arc, mpsc::SyncSender},
};

use vmm_sys_util::eventfd::EventFd;
use vscsi_target::{
    engine::Completion,
    model::NexusView,
    reactor::{Cx, Ready},
};

use crate::{
    controller::{CONTROL_QUEUE, Controller, EVENT_QUEUE, Place},
    memory::{GuestMap, Region, dirty::DirtyLog, guard},
    ring::{Areas, Chain, Ring, RingError},
    scsi::Layout,
};
use slot::Slots;

/// What makes a queue's endpoint.
#[derive(Debug)]
pub struct Seed {
    /// The device it belongs to.
    pub controller: Arc<Controller>,
    /// Which queue of the device.
    pub index: u16,
    /// Told where the endpoint is.
    pub opened: SyncSender<Place>,
}

/// A message to a queue. Those with a sender are answered when they are done; a sender that is
/// dropped means the queue is gone.
#[derive(Debug)]
pub enum Note {
    /// Serve this ring.
    Start(Box<Start>, SyncSender<()>),
    /// Finish what is in flight and let go of the ring: answers with its base, `None` if there was
    /// no ring.
    Stop(SyncSender<Option<u32>>),
    /// Whether to take requests (SET_VRING_ENABLE).
    Enable(bool, SyncSender<()>),
    /// Interrupts go there.
    Call(Option<EventFd>),
    /// Faults of the ring are told there.
    Error(Option<EventFd>),
    /// Notifications come from there.
    Kick(Option<EventFd>),
    /// The memory is elsewhere now, and the ring with it. `None` areas break the ring.
    Remap(Arc<GuestMap>, Option<Areas>, SyncSender<()>),
    /// The memory is what this map has from now on. Requests in flight go on; the answer comes when
    /// none of them has to do with what is gone.
    Exchange(Exchange, SyncSender<()>),
    /// Log writes to guest memory from now on, or stop it.
    Log(Option<Arc<DirtyLog>>, SyncSender<()>),
    /// There are events to tell.
    Event,
    /// Look at the LUN map: what was removed is not held any more.
    Refresh,
    /// Keep this until everything completed so far is published.
    Barrier(Arc<control::Barrier>),
    /// Everything that a task management function (by its chain) aborted is published.
    Passed(u16),
    /// Finish what is in flight and end.
    Close(SyncSender<Option<u32>>),
}

/// Another map of the same memory, more or less.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The new map.
    pub map: Arc<GuestMap>,
    /// What the old one had and the new one has not.
    pub gone: Arc<[Region]>,
    /// Where the ring is now; `None` if it is in what is gone. Then it rests until it is back.
    pub areas: Option<Areas>,
}

/// What a queue needs to run.
#[derive(Debug)]
pub struct Start {
    /// The ring, whose memory `map` has.
    pub ring: Ring,
    /// The guest's memory.
    pub map: Arc<GuestMap>,
    /// Where notifications come from; without one the queue is looked at every millisecond.
    pub kick: Option<EventFd>,
    /// Where interrupts go.
    pub call: Option<EventFd>,
    /// Where faults of the ring are told.
    pub error: Option<EventFd>,
    /// How requests look.
    pub layout: Layout,
    /// The features the driver accepted.
    pub features: u64,
    /// The log of writes to guest memory.
    pub log: Option<Arc<DirtyLog>>,
    /// Whether to take requests.
    pub enabled: bool,
    /// Whether to remember the memory of each request, for [`Note::Exchange`].
    pub tracks: bool,
}

/// A queue's endpoint.
#[derive(Debug)]
pub struct Queue {
    controller: Arc<Controller>,
    index: u16,
    running: Option<Box<Running>>,
    /// What waits until nothing is in flight, in order.
    changes: VecDeque<Change>,
    /// Memory that is gone as soon as no request uses it, and who waits for that.
    leaving: Vec<(Arc<[Region]>, SyncSender<()>)>,
    barriers: Vec<Arc<control::Barrier>>,
}

/// A queue with a ring.
#[derive(Debug)]
struct Running {
    ring: Ring,
    map: Arc<GuestMap>,
    /// The map that the ring lies in, while its memory is away.
    last_map: Option<Arc<GuestMap>>,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    error: Option<EventFd>,
    layout: Layout,
    log: Option<Arc<DirtyLog>>,
    enabled: bool,
    tracks: bool,
    /// The driver notifies of what it makes available.
    armed: bool,
    /// The ring cannot be read any further.
    broken: bool,
    /// How often any guest's memory was lost when it was last asked whether this one was.
    losses: u64,
    /// By target id.
    views: Vec<Option<NexusView>>,
    slots: Slots,
    chain: Chain,
}

/// What waits until nothing is in flight.
#[derive(Debug)]
enum Change {
    Stop(SyncSender<Option<u32>>),
    Close(SyncSender<Option<u32>>),
    Remap(Arc<GuestMap>, Option<Areas>, SyncSender<()>),
    Log(Option<Arc<DirtyLog>>, SyncSender<()>),
}

impl Queue {
    /// Makes the endpoint of a queue, without a ring.
    pub fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        let Seed { controller, index, opened } = seed;
        let place = Place { reactor: cx.reactor, endpoint: cx.me };
        controller.set_place(index, Some(place));
        // Whoever asked may have given up.
        opened.send(place).ok()?;
        Some(Self {
            controller,
            index,
            running: None,
            changes: VecDeque::new(),
            leaving: Vec::new(),
            barriers: Vec::new(),
        })
    }

    /// A message arrived.
    pub fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match note {
            Note::Start(start, done) => {
                self.start(*start, cx);
                let _ = done.send(());
            }
            Note::Stop(done) => self.changes.push_back(Change::Stop(done)),
            Note::Close(done) => self.changes.push_back(Change::Close(done)),
            Note::Remap(map, areas, done) => {
                self.changes.push_back(Change::Remap(map, areas, done));
            }
            Note::Exchange(exchange, done) => {
                self.exchange(exchange, done);
                self.fetch(cx);
            }
            Note::Log(log, done) => self.changes.push_back(Change::Log(log, done)),
            Note::Enable(enabled, done) => {
                if let Some(running) = &mut self.running {
                    running.enabled = enabled;
                }
                self.fetch(cx);
                let _ = done.send(());
            }
            Note::Call(call) => {
                if let Some(running) = &mut self.running {
                    running.call = call;
                    // What was published before may not have been told.
                    running.interrupt();
                }
            }
            Note::Error(error) => {
                if let Some(running) = &mut self.running {
                    running.error = error;
                }
            }
            Note::Kick(kick) => self.set_kick(kick, cx),
            Note::Event => {
                self.fetch(cx);
            }
            Note::Refresh => {
                let views = self.running.iter_mut().flat_map(|running| &mut running.views);
                for view in views.flatten() {
                    view.table();
                }
            }
            Note::Barrier(barrier) => self.barriers.push(barrier),
            Note::Passed(id) => {
                if let Some(running) = &mut self.running {
                    running.passed(id);
                }
            }
        }
    }

    /// The driver notified.
    pub fn ready(&mut self, _source: u32, _ready: Ready, cx: &mut Cx<'_>) {
        if let Some(kick) = self.running.as_ref().and_then(|running| running.kick.as_ref()) {
            // An empty counter was read already.
            let _ = kick.read();
        }
        self.fetch(cx);
    }

    /// The core finished a request.
    #[inline]
    pub fn completed(&mut self, completion: &mut Completion, _cx: &mut Cx<'_>) {
        let Some(running) = &mut self.running else { return };
        if self.index == CONTROL_QUEUE {
            running.managed(&self.controller, completion);
        } else {
            running.completed(completion);
        }
    }

    /// A queue without notifications is looked at.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        self.fetch(cx);
        if self.running.as_ref().is_some_and(|running| running.kick.is_none()) {
            cx.wake_at(cx.now + LOOK_EVERY);
        }
    }

    /// Publishes what is done, and makes the changes that waited for it.
    #[inline]
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Some(running) = &mut self.running {
            running.publish();
            if running.losses != guard::losses() && running.has_lost_memory() {
                self.fail(RingError::MemoryLost);
            }
        }
        if !self.changes.is_empty() {
            self.change(cx);
        }
        if !self.leaving.is_empty() {
            self.leave();
        }
        // What a task management function aborted may wait for older requests, where the driver
        // wants them in order; it must see them before the answer all the same.
        if !self.barriers.is_empty()
            && self.running.as_ref().is_none_or(|running| !running.ring.holds_back())
        {
            self.barriers.clear();
        }
    }

    /// Takes requests, if there are any.
    #[inline]
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.fetch(cx)
    }

    /// Asks the driver to notify again; true if it has made something available already.
    pub fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        let is_event = self.index == EVENT_QUEUE;
        let may_take = self.changes.is_empty();
        let Some(running) = &mut self.running else { return false };
        if !running.takes() || !may_take {
            return false;
        }
        running.armed = true;
        let more = running.ring.rearm();
        // Buffers for events wait in the ring until there is an event.
        more && (!is_event || self.controller.events().is_waiting())
    }

    /// The reactor stops: what is in flight is finished first.
    pub fn stop(&mut self, _cx: &mut Cx<'_>) {
        let (nobody, _) = std::sync::mpsc::sync_channel(1);
        self.changes.push_back(Change::Close(nobody));
    }

    /// Takes a batch of requests; whether there were any.
    #[inline]
    fn fetch(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(running) = &mut self.running else { return false };
        // What was in flight before a crash is finished before the ring is let go.
        let may_take = self.changes.is_empty() || running.ring.resumes();
        if !running.takes() || !may_take {
            return false;
        }
        let taken = match self.index {
            CONTROL_QUEUE => running.take_control(cx),
            EVENT_QUEUE => running.take_events(&self.controller),
            _ => running.take_requests(cx),
        };
        match taken {
            Ok(taken) => {
                if taken && running.armed {
                    running.armed = false;
                    running.ring.suppress();
                }
                taken
            }
            Err(error) => {
                self.fail(error);
                true
            }
        }
    }

    fn start(&mut self, start: Start, cx: &mut Cx<'_>) {
        let Start { mut ring, map, kick, call, error, layout, features, log, enabled, tracks } =
            start;
        ring.set_log(log.clone(), &map);
        let mut views: Vec<Option<NexusView>> = Vec::new();
        for (id, nexus) in self.controller.nexuses() {
            let at = usize::from(*id);
            if views.len() <= at {
                views.resize_with(at + 1, || None);
            }
            if let Some(view) = views.get_mut(at) {
                *view = Some(NexusView::new(Arc::clone(nexus)));
            }
        }
        let slots = Slots::new(ring.size());
        let running = Box::new(Running {
            ring,
            map,
            last_map: None,
            kick: None,
            call,
            error,
            layout,
            log,
            enabled,
            tracks,
            armed: false,
            broken: false,
            losses: 0,
            views,
            slots,
            chain: Chain::default(),
        });
        // What was published before a restart may not have been told.
        running.interrupt();
        self.running = Some(running);
        self.set_kick(kick, cx);
        if self.index == EVENT_QUEUE {
            let place = Place { reactor: cx.reactor, endpoint: cx.me };
            self.controller.events().attach(place, features);
        }
        // Nobody notifies of what was available before.
        self.fetch(cx);
    }

    fn set_kick(&mut self, kick: Option<EventFd>, cx: &mut Cx<'_>) {
        let Some(running) = &mut self.running else { return };
        if let Some(old) = running.kick.take() {
            cx.unwatch(old.as_raw_fd());
        }
        if let Some(kick) = kick {
            if let Err(error) = cx.watch(kick.as_raw_fd(), 0, true, false) {
                tracing::error!(%error, "cannot watch a queue's notifications");
            }
            running.kick = Some(kick);
            cx.wake_at(u64::MAX);
        } else {
            cx.wake_at(cx.now + LOOK_EVERY);
        }
    }

    /// Makes the changes that wait, if nothing is in flight.
    fn change(&mut self, cx: &mut Cx<'_>) {
        if self.running.as_ref().is_some_and(|running| running.ring.resumes()) {
            self.fetch(cx);
        }
        while self.running.as_ref().is_none_or(|running| running.may_change())
            && let Some(change) = self.changes.pop_front()
        {
            match change {
                Change::Stop(done) => {
                    let _ = done.send(self.let_go(cx));
                }
                Change::Close(done) => {
                    let base = self.let_go(cx);
                    self.controller.set_place(self.index, None);
                    cx.close();
                    let _ = done.send(base);
                }
                Change::Remap(map, areas, done) => {
                    self.remap(map, areas);
                    let _ = done.send(());
                }
                Change::Log(log, done) => {
                    if let Some(running) = &mut self.running {
                        running.ring.set_log(log.clone(), &running.map);
                        running.log = log;
                    }
                    let _ = done.send(());
                }
            }
            if self.changes.is_empty() {
                self.fetch(cx);
            }
        }
    }

    fn remap(&mut self, map: Arc<GuestMap>, areas: Option<Areas>) {
        let Some(running) = &mut self.running else { return };
        let moved = areas.ok_or(RingError::Unaligned).and_then(|areas| running.ring.move_to(areas));
        running.map = map;
        match moved {
            Ok(()) => running.ring.set_log(running.log.clone(), &running.map),
            Err(error) => self.fail(error),
        }
    }

    fn exchange(&mut self, exchange: Exchange, done: SyncSender<()>) {
        let Exchange { map, gone, areas } = exchange;
        if let Some(running) = &mut self.running {
            running.publish();
            let old = std::mem::replace(&mut running.map, map);
            match areas {
                None => {
                    // What is in flight still writes to the ring.
                    running.last_map.get_or_insert(old);
                }
                Some(areas) => {
                    let moved = running.ring.move_to(areas);
                    running.last_map = None;
                    if let Err(error) = moved {
                        self.fail(error);
                    }
                }
            }
        }
        self.leaving.push((gone, done));
        self.leave();
    }

    /// Answers those who wait for memory that no request uses any more.
    fn leave(&mut self) {
        let running = self.running.as_deref();
        self.leaving.retain(|(gone, done)| {
            let is_used = running.is_some_and(|running| running.uses(gone));
            if !is_used {
                let _ = done.send(());
            }
            is_used
        });
    }

    /// Lets go of the ring: its base, where the next one goes on.
    fn let_go(&mut self, cx: &mut Cx<'_>) -> Option<u32> {
        self.set_kick(None, cx);
        cx.wake_at(u64::MAX);
        if self.index == EVENT_QUEUE {
            self.controller.events().detach();
        }
        let mut running = self.running.take()?;
        running.publish();
        Some(running.ring.base())
    }

    /// The ring is broken: nothing more is taken from it until it is started anew.
    fn fail(&mut self, error: RingError) {
        let Some(running) = &mut self.running else { return };
        running.broken = true;
        tracing::warn!(
            controller = self.controller.name,
            queue = self.index,
            "the guest's driver broke the queue, which stops until the guest resets it: {error}"
        );
        if let Some(error) = &running.error {
            let _ = error.write(1);
        }
    }
}

impl Running {
    /// Shows the driver what is done.
    #[inline]
    fn publish(&mut self) {
        if self.ring.publish() {
            self.interrupt();
        }
    }

    /// Whether anything is to be taken from the ring.
    fn takes(&self) -> bool {
        self.enabled && !self.broken && self.last_map.is_none()
    }

    /// Whether nothing is in flight, nor was before a crash.
    fn may_change(&self) -> bool {
        let resumes = self.enabled && !self.broken && self.ring.resumes();
        self.slots.is_idle() && !resumes
    }

    /// Whether a request in flight has to do with memory.
    fn uses(&self, gone: &[Region]) -> bool {
        // What is not remembered may be anywhere, and every end is written to the ring.
        let is_precise = self.tracks && self.last_map.is_none();
        if is_precise { self.slots.uses(gone) } else { !self.slots.is_idle() }
    }

    /// Memory of this guest is gone: what it asks for can mean anything.
    #[cold]
    fn has_lost_memory(&mut self) -> bool {
        self.losses = guard::losses();
        !self.broken && self.map.is_lost()
    }

    fn interrupt(&self) {
        if let Some(call) = &self.call
            && let Err(error) = call.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::debug!(%error, "cannot interrupt the guest");
        }
    }
}

/// How often a queue without notifications is looked at, in nanoseconds.
const LOOK_EVERY: u64 = 1_000_000;
