//! The turn of a reactor: events, completions, flushes, sleep.

use super::{
    Inbox, Mail,
    poller::{Poller, Source},
    spin::{self, Spin},
    timers::{NEVER, Timers},
};
use crate::engine::{Completion, Engine};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use std::{
    hint, io, mem,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// An endpoint on one reactor. A stale id reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId {
    /// Slot.
    pub index: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// Input, end of input, or an error to read.
    pub readable: bool,
    /// Output.
    pub writable: bool,
    /// The peer hung up or the descriptor failed.
    pub hangup: bool,
}

/// What owns queues on a reactor: a listener, a connection in login, a session, a vhost-user
/// controller. Called only on its reactor's thread.
pub trait Endpoint: Sized + std::fmt::Debug + 'static {
    /// What makes a new endpoint; sent between threads.
    type Seed: Send + std::fmt::Debug + 'static;
    /// A message to an existing endpoint.
    type Note: Send + std::fmt::Debug + 'static;

    /// Makes an endpoint of a seed. `None` when it came to nothing; what it watched it has unwatched.
    fn open(seed: Self::Seed, cx: &mut Cx<'_>) -> Option<Self>;
    /// A message arrived. Notes to endpoints that are gone are dropped.
    fn note(&mut self, note: Self::Note, cx: &mut Cx<'_>);
    /// A watched descriptor (by the `source` given to [`Cx::watch`]) is ready.
    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>);
    /// The engine finished a task of this endpoint. What it does not take of the completion is
    /// dropped after the round.
    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>);
    /// The time given to [`Cx::wake_at`] has come.
    fn expired(&mut self, cx: &mut Cx<'_>);
    /// The turn ends: publish what was gathered. Called once for each endpoint touched in it.
    fn flush(&mut self, cx: &mut Cx<'_>);
    /// Called instead of sleeping while the reactor polls, if the endpoint had work lately: true if
    /// there was work, and then it is flushed.
    fn poll(&mut self, cx: &mut Cx<'_>) -> bool;
    /// It is not polled any more, since the reactor is about to sleep or it had no work for long:
    /// ask to be notified again. True if there is work already, which no event will tell.
    fn rest(&mut self, cx: &mut Cx<'_>) -> bool;
    /// The reactor stops: finish what is acknowledged, then [`Cx::close`], now or in a later call.
    fn stop(&mut self, cx: &mut Cx<'_>);
}

/// What an endpoint may use during a call.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The command core.
    pub engine: &'a mut Engine,
    /// Which reactor this is.
    pub reactor: u16,
    /// The endpoint being called.
    pub me: EndpointId,
    /// Monotonic time at the start of the turn, in nanoseconds.
    pub now: u64,
    /// Shared by all endpoints of a reactor: input is received here, and what is left of it at the
    /// end of a call is kept by the endpoint.
    pub scratch: &'a mut Vec<u8>,
    poller: &'a mut Poller,
    timers: &'a mut Timers,
    close: bool,
}

impl Cx<'_> {
    /// Watches a descriptor. `source` comes back in [`Endpoint::ready`]. Level-triggered; a hangup is
    /// told whatever is watched for, so an endpoint unwatches or closes then.
    pub fn watch(&mut self, fd: RawFd, source: u32, read: bool, write: bool) -> io::Result<()> {
        self.poller.watch(fd, Source::Endpoint(self.me, source), read, write)
    }

    /// Changes what is watched for.
    pub fn rewatch(&mut self, fd: RawFd, source: u32, read: bool, write: bool) -> io::Result<()> {
        self.poller.rewatch(fd, Source::Endpoint(self.me, source), read, write)
    }

    /// Stops watching; always before the descriptor is closed. Closing the endpoint does it too.
    pub fn unwatch(&mut self, fd: RawFd) {
        self.poller.unwatch(fd);
    }

    /// Calls [`Endpoint::expired`] at this monotonic time (nanoseconds, with the precision of a
    /// millisecond); replaces an earlier wish. `u64::MAX` takes it back.
    pub fn wake_at(&mut self, time: u64) {
        self.timers.set(self.me, time);
    }

    /// Drops this endpoint after the call: its descriptors are unwatched, its tasks abandoned.
    pub fn close(&mut self) {
        self.close = true;
    }
}

/// A reactor.
#[derive(Debug)]
pub struct Reactor<E: Endpoint> {
    inbox: Arc<Inbox<E>>,
    engine: Engine,
    poller: Poller,
    timers: Timers,
    scratch: Vec<u8>,
    now: u64,
    /// When the engine is told the time again.
    next_tick: u64,
    slots: Vec<Slot<E>>,
    free: Vec<u32>,
    /// Endpoints called since their last flush.
    touched: Vec<EndpointId>,
    /// Endpoints that had work lately: polled while the reactor does not sleep.
    active: Vec<EndpointId>,
    spin: Spin,
    // Reused lists.
    mail: Vec<Mail>,
    done: Vec<Completion>,
    ready: Vec<(Source, Ready)>,
    batch: Vec<EndpointId>,
}

#[derive(Debug)]
struct Slot<E> {
    generation: u32,
    /// In use: an endpoint lives here or is being made.
    taken: bool,
    endpoint: Option<E>,
    touched: bool,
    active: bool,
    /// Polls in a row that found nothing.
    misses: u16,
}

impl<E: Endpoint> Reactor<E> {
    /// A reactor whose engine is `engine`; the inbox has its number. Made on the thread that runs it.
    pub fn new(engine: Engine, inbox: Arc<Inbox<E>>) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        let wake = inbox.postboxes.wake_fd(inbox.reactor).ok_or(io::ErrorKind::NotFound)?;
        poller.watch(wake, Source::Wake, true, false)?;
        if let Some(ring) = engine.lanes.ring.fd() {
            poller.watch(ring, Source::Ring, true, false)?;
        }
        // Polling is for work that comes from elsewhere: pointless on the only core of a machine, and
        // harmful where reactors share one.
        let own = thread::available_parallelism().map_or(1, usize::from);
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
        let polls = online > 1 && inbox.postboxes.len() <= own;
        Ok(Self {
            inbox,
            engine,
            poller,
            timers: Timers::default(),
            scratch: Vec::new(),
            now: 0,
            next_tick: 0,
            slots: Vec::new(),
            free: Vec::new(),
            touched: Vec::new(),
            active: Vec::new(),
            spin: Spin::new(if polls { spin::LONGEST } else { 0 }),
            mail: Vec::new(),
            done: Vec::new(),
            ready: Vec::new(),
            batch: Vec::new(),
        })
    }

    /// Runs until `stop` is set (and the reactor woken) and every endpoint is gone, here and on the
    /// other reactors: a session that ends there has its tasks swept here too.
    pub fn run(mut self, stop: &AtomicBool) {
        if let Err(error) = self.turns(stop) {
            tracing::error!(%error, reactor = self.inbox.reactor, "the reactor cannot wait for events");
        }
        self.inbox.postboxes.retire(self.inbox.reactor);
        self.inbox.close();
        for index in 0..self.slots.len() as u32 {
            self.remove(index);
        }
    }

    fn turns(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut stopping = false;
        let mut retired = false;
        let mut since_poll = 0;
        let mut sleep = false;
        loop {
            self.now = monotonic();
            let mut worked = sleep && self.rest();
            if sleep && !worked {
                self.sleep()?;
                since_poll = 0;
            } else if since_poll >= TURNS_PER_POLL || self.active.is_empty() {
                self.poller.poll(0, &mut self.ready)?;
                since_poll = 0;
            }
            since_poll += 1;
            if self.now >= self.next_tick {
                self.next_tick = self.now.saturating_add(TICK);
                self.engine.tick(u32::try_from(self.now / TICK).unwrap_or(u32::MAX));
            }

            worked |= self.post(stopping);
            worked |= self.dispatch();
            worked |= self.expire();
            worked |= self.poll_active();
            if !stopping && stop.load(Ordering::Acquire) {
                stopping = true;
                self.each(|endpoint, cx| endpoint.stop(cx));
                worked = true;
            }
            let (finished, more) = self.complete();
            self.follow_devices()?;
            worked |= finished;

            if stopping && self.slots.iter().all(|slot| !slot.taken) && !self.engine.is_busy() {
                if !retired {
                    retired = true;
                    self.inbox.postboxes.retire(self.inbox.reactor);
                }
                if self.inbox.postboxes.all_retired() {
                    return Ok(());
                }
            }
            if worked {
                self.spin.worked(self.now);
            }
            sleep = !more
                && !worked
                && !self.spin.goes_on(self.now)
                && !self.engine.lanes.devices.must_be_polled();
            if !worked {
                hint::spin_loop();
            }
        }
    }

    /// Watches the queue pairs of devices that are new, and no longer those that are over.
    fn follow_devices(&mut self) -> io::Result<()> {
        if let Some((fresh, over)) = self.engine.lanes.devices.changes() {
            for fd in fresh {
                self.poller.watch(fd, Source::Device(fd), true, false)?;
            }
            over.iter().for_each(|pair| self.poller.unwatch(pair.fd()));
        }
        Ok(())
    }

    /// Waits for an event or the next timer. Idle memory goes back after a while, once.
    fn sleep(&mut self) -> io::Result<()> {
        let until = self.timers.next();
        let mut limit = match until {
            // Rounded up: too early would be a turn for nothing.
            Some(time) => {
                let wait = time.saturating_sub(self.now).div_ceil(NANOS_PER_MILLI);
                i32::try_from(wait).unwrap_or(i32::MAX)
            }
            None => -1,
        };
        if self.engine.has_deadlines() && !(0..=TICK_MILLIS).contains(&limit) {
            limit = TICK_MILLIS;
        }
        if self.engine.lanes.ring.is_stuck() {
            limit = 1;
        }
        if self.engine.pool.cached() > 0 && !(0..=TRIM_AFTER).contains(&limit) {
            let start = self.now;
            self.poller.poll(TRIM_AFTER, &mut self.ready)?;
            self.now = monotonic();
            // Cut short by an event or a signal: look first.
            let waited = self.now.saturating_sub(start);
            if !self.ready.is_empty() || waited < TRIM_AFTER as u64 * NANOS_PER_MILLI {
                return Ok(());
            }
            self.engine.pool.trim();
            return Ok(());
        }
        self.poller.poll(limit, &mut self.ready)?;
        self.now = monotonic();
        Ok(())
    }

    /// Mail, and what other threads put into the inbox.
    fn post(&mut self, stopping: bool) -> bool {
        if !self.inbox.postboxes.take(self.inbox.reactor, &mut self.mail) {
            return false;
        }
        let post = self.inbox.take();
        if !stopping {
            post.seeds.into_iter().for_each(|seed| self.open(seed));
        }
        for (id, note) in post.notes {
            self.call(id, |endpoint, cx| endpoint.note(note, cx));
        }
        for make in post.broadcasts {
            self.each(|endpoint, cx| endpoint.note(make(), cx));
        }
        true
    }

    fn dispatch(&mut self) -> bool {
        let mut ready = mem::take(&mut self.ready);
        let any = !ready.is_empty();
        for (source, ready) in ready.drain(..) {
            match source {
                // The next turn looks for what it stands for: this one counts as work.
                Source::Wake => self.inbox.postboxes.lower(self.inbox.reactor),
                // The engine looks at every turn.
                Source::Ring => {}
                Source::Device(fd) => self.engine.lanes.devices.lower(fd),
                Source::Endpoint(id, source) => {
                    self.call(id, |endpoint, cx| endpoint.ready(source, ready, cx));
                }
            }
        }
        self.ready = ready;
        any
    }

    fn expire(&mut self) -> bool {
        let mut any = false;
        // What is left over keeps the reactor from sleeping.
        for _ in 0..MOST_EXPIRED {
            let Some(id) = self.timers.pop(self.now) else { break };
            any = true;
            self.call(id, |endpoint, cx| endpoint.expired(cx));
        }
        any
    }

    /// Asks the active endpoints for work, but for those that were called in this turn already.
    fn poll_active(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while let Some(id) = self.active.get(at).copied() {
            let Some(slot) = self.slot(id) else {
                self.active.swap_remove(at);
                continue;
            };
            if slot.touched {
                slot.misses = 0;
                at += 1;
                continue;
            }
            if slot.misses >= MOST_MISSES {
                if self.stays_active(id, at) {
                    any = true;
                    at += 1;
                }
                continue;
            }
            slot.misses += 1;
            let worked = self.with(id, |endpoint, cx| endpoint.poll(cx)) == Some(true);
            if worked {
                any = true;
                self.touch(id);
            }
            at += 1;
        }
        any
    }

    /// The engine's turn, and what it finished, to the endpoints, which answer: until there is no
    /// more or the others must have their turn too. Whether there was any, and whether there may be
    /// more.
    fn complete(&mut self) -> (bool, bool) {
        let mut any = false;
        for _ in 0..MOST_ROUNDS {
            self.engine.turn(&mut self.mail);
            self.mail.clear();
            let mut done = mem::take(&mut self.done);
            self.engine.completions(&mut done);
            any |= !done.is_empty();
            for completion in &mut done {
                self.call(completion.owner.endpoint, |endpoint, cx| {
                    endpoint.completed(completion, cx);
                });
            }
            // Frees the memory of those that nobody took, too.
            done.clear();
            self.done = done;
            if self.touched.is_empty() {
                return (any, false);
            }
            let mut batch = mem::replace(&mut self.touched, mem::take(&mut self.batch));
            for id in batch.drain(..) {
                if let Some(slot) = self.slot(id) {
                    slot.touched = false;
                    self.with(id, |endpoint, cx| endpoint.flush(cx));
                }
            }
            self.batch = batch;
        }
        (any, true)
    }

    /// Before a sleep nobody is active: events tell who is next. Whether somebody had work all the
    /// same, and stays active.
    fn rest(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while let Some(id) = self.active.get(at).copied() {
            if self.stays_active(id, at) {
                any = true;
                at += 1;
            }
        }
        any
    }

    /// Lets the endpoint at this place of the active ones rest, unless it has work after all.
    fn stays_active(&mut self, id: EndpointId, at: usize) -> bool {
        if self.with(id, |endpoint, cx| endpoint.rest(cx)) == Some(true) {
            self.touch(id);
            return true;
        }
        if let Some(slot) = self.slot(id) {
            slot.active = false;
        }
        self.active.swap_remove(at);
        false
    }

    fn open(&mut self, seed: E::Seed) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                taken: false,
                endpoint: None,
                touched: false,
                active: false,
                misses: 0,
            });
            self.slots.len() as u32 - 1
        });
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.taken = true;
        let id = EndpointId { index, generation: slot.generation };
        let mut cx = Cx {
            engine: &mut self.engine,
            reactor: self.inbox.reactor,
            me: id,
            now: self.now,
            scratch: &mut self.scratch,
            poller: &mut self.poller,
            timers: &mut self.timers,
            close: false,
        };
        let endpoint = E::open(seed, &mut cx);
        let close = cx.close || endpoint.is_none();
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.endpoint = endpoint;
        }
        if close {
            self.remove(index);
        } else {
            self.touch(id);
        }
    }

    fn each(&mut self, mut each: impl FnMut(&mut E, &mut Cx<'_>)) {
        for index in 0..self.slots.len() as u32 {
            if let Some(slot) = self.slots.get(index as usize).filter(|slot| slot.taken) {
                let id = EndpointId { index, generation: slot.generation };
                self.call(id, &mut each);
            }
        }
    }

    /// Calls an endpoint, which then is flushed at the end of the turn.
    fn call(&mut self, id: EndpointId, call: impl FnOnce(&mut E, &mut Cx<'_>)) {
        if self.with(id, call).is_some() {
            self.touch(id);
        }
    }

    /// Calls an endpoint, if it is still there, and removes it if it wants to go.
    fn with<R>(
        &mut self,
        id: EndpointId,
        call: impl FnOnce(&mut E, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let slot = self.slots.get_mut(id.index as usize);
        let slot = slot.filter(|slot| slot.generation == id.generation)?;
        let endpoint = slot.endpoint.as_mut()?;
        let mut cx = Cx {
            engine: &mut self.engine,
            reactor: self.inbox.reactor,
            me: id,
            now: self.now,
            scratch: &mut self.scratch,
            poller: &mut self.poller,
            timers: &mut self.timers,
            close: false,
        };
        let result = call(endpoint, &mut cx);
        if cx.close {
            self.remove(id.index);
        }
        Some(result)
    }

    fn touch(&mut self, id: EndpointId) {
        let Some(slot) = self.slot(id) else { return };
        slot.misses = 0;
        let (touched, active) = (slot.touched, slot.active);
        (slot.touched, slot.active) = (true, true);
        if !touched {
            self.touched.push(id);
        }
        if !active {
            self.active.push(id);
        }
    }

    fn slot(&mut self, id: EndpointId) -> Option<&mut Slot<E>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.taken && slot.generation == id.generation).then_some(slot)
    }

    /// The one place where endpoints go: nothing is watched any more when their descriptors close.
    fn remove(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize).filter(|slot| slot.taken) else {
            return;
        };
        let id = EndpointId { index, generation: slot.generation };
        slot.generation = slot.generation.wrapping_add(1);
        (slot.taken, slot.touched, slot.active, slot.misses) = (false, false, false, 0);
        let endpoint = slot.endpoint.take();
        self.free.push(index);
        self.poller.forget(id);
        self.timers.set(id, NEVER);
        self.engine.orphan(id);
        drop(endpoint);
    }
}

/// The clock of [`Cx::now`] and [`Cx::wake_at`]: CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// While it polls, a reactor asks for events every so many turns.
const TURNS_PER_POLL: u32 = 8;
/// Rounds of completions and flushes in a turn.
const MOST_ROUNDS: usize = 8;
/// Expired timers called in a turn, so that one set into the past cannot stop the rest.
const MOST_EXPIRED: usize = 64;
/// Polls in a row without work after which an endpoint is left to its events.
const MOST_MISSES: u16 = 256;
/// Sleep in milliseconds after which idle buffers go back to the system.
const TRIM_AFTER: i32 = 1000;
/// How often the engine looks for what is past its deadline: each second, in nanoseconds.
const TICK: u64 = 1_000_000_000;
/// The same in milliseconds.
const TICK_MILLIS: i32 = 1000;
const NANOS_PER_MILLI: u64 = 1_000_000;

#[cfg(test)]
mod tests;
