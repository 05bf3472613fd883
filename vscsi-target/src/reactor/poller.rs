//! What a reactor watches: descriptors of endpoints, its wake descriptor and its ring.
//!
//! One subscriber of the event manager only gathers what is ready; the reactor hands it out after.
//! A descriptor is taken off here, and only here, before it is closed: an event for a descriptor
//! that is not watched any more, but was ready in the same batch, reaches nobody, since slots are
//! used again only in the next batch.

use super::turn::{EndpointId, Ready};
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use std::{io, mem, os::fd::RawFd};
use vmm_sys_util::epoll::EventSet;

/// Who a ready descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The wake descriptor of the postbox.
    Wake,
    /// The ring.
    Ring,
    /// The queue pair of a device, by its descriptor.
    Device(RawFd),
    /// An endpoint, and its own name for the descriptor.
    Endpoint(EndpointId, u32),
}

#[derive(Debug)]
pub(super) struct Poller {
    manager: EventManager<Collector>,
    collector: SubscriberId,
    slots: Vec<Option<Watch>>,
    free: Vec<u32>,
    /// Slots given up since the last batch: events for them may still be on their way.
    limbo: Vec<u32>,
    /// Slot of each descriptor.
    by_fd: Vec<Option<u32>>,
    /// Descriptors of each endpoint, by its index.
    by_endpoint: Vec<Vec<RawFd>>,
    batch: Vec<(u32, EventSet)>,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    fd: RawFd,
    source: Source,
}

#[derive(Debug, Default)]
struct Collector {
    ready: Vec<(u32, EventSet)>,
}

impl MutEventSubscriber for Collector {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.ready.push((events.data(), events.event_set()));
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let mut manager = EventManager::new().map_err(failed)?;
        let collector = manager.add_subscriber(Collector::default());
        Ok(Self {
            manager,
            collector,
            slots: Vec::new(),
            free: Vec::new(),
            limbo: Vec::new(),
            by_fd: Vec::new(),
            by_endpoint: Vec::new(),
            batch: Vec::new(),
        })
    }

    pub(super) fn watch(
        &mut self,
        fd: RawFd,
        source: Source,
        read: bool,
        write: bool,
    ) -> io::Result<()> {
        let place = usize::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        let added = self
            .manager
            .event_ops(self.collector)
            .and_then(|mut ops| ops.add(Events::with_data_raw(fd, slot, interest(read, write))));
        if let Err(error) = added {
            self.free.push(slot);
            return Err(failed(error));
        }
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            *entry = Some(Watch { fd, source });
        }
        if self.by_fd.len() <= place {
            self.by_fd.resize(place + 1, None);
        }
        if let Some(entry) = self.by_fd.get_mut(place) {
            *entry = Some(slot);
        }
        if let Source::Endpoint(owner, _) = source {
            let index = owner.index as usize;
            if self.by_endpoint.len() <= index {
                self.by_endpoint.resize_with(index + 1, Vec::new);
            }
            if let Some(fds) = self.by_endpoint.get_mut(index) {
                fds.push(fd);
            }
        }
        Ok(())
    }

    /// Only the owner of a watched descriptor changes what it is watched for.
    pub(super) fn rewatch(
        &mut self,
        fd: RawFd,
        source: Source,
        read: bool,
        write: bool,
    ) -> io::Result<()> {
        let slot = self.slot(fd).ok_or(io::ErrorKind::NotFound)?;
        self.manager
            .event_ops(self.collector)
            .and_then(|ops| ops.modify(Events::with_data_raw(fd, slot, interest(read, write))))
            .map_err(failed)?;
        if let Some(Some(watch)) = self.slots.get_mut(slot as usize) {
            watch.source = source;
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, fd: RawFd) {
        let Some(slot) = self.slot(fd) else { return };
        let owner = self.slots.get_mut(slot as usize).and_then(Option::take);
        if let Some(entry) = usize::try_from(fd).ok().and_then(|at| self.by_fd.get_mut(at)) {
            *entry = None;
        }
        if let Some(Watch { source: Source::Endpoint(owner, _), .. }) = owner
            && let Some(fds) = self.by_endpoint.get_mut(owner.index as usize)
        {
            fds.retain(|other| *other != fd);
        }
        self.limbo.push(slot);
        let removed = self
            .manager
            .event_ops(self.collector)
            .and_then(|mut ops| ops.remove(Events::empty_raw(fd)));
        debug_assert!(removed.is_ok(), "descriptor {fd} was closed while watched: {removed:?}");
    }

    /// Stops watching everything of an endpoint.
    pub(super) fn forget(&mut self, endpoint: EndpointId) {
        while let Some(fd) =
            self.by_endpoint.get(endpoint.index as usize).and_then(|fds| fds.last().copied())
        {
            self.unwatch(fd);
        }
    }

    /// Waits at most `milliseconds` (for ever if negative) and hands out what is ready.
    pub(super) fn poll(
        &mut self,
        milliseconds: i32,
        into: &mut Vec<(Source, Ready)>,
    ) -> io::Result<()> {
        self.free.append(&mut self.limbo);
        if self.manager.run_with_timeout(milliseconds).map_err(failed)? == 0 {
            return Ok(());
        }
        let collector = self.manager.subscriber_mut(self.collector).map_err(failed)?;
        mem::swap(&mut collector.ready, &mut self.batch);
        for (slot, events) in self.batch.drain(..) {
            if let Some(Some(watch)) = self.slots.get(slot as usize) {
                into.push((watch.source, ready(events)));
            }
        }
        Ok(())
    }

    fn slot(&self, fd: RawFd) -> Option<u32> {
        let slot = *self.by_fd.get(usize::try_from(fd).ok()?)?;
        debug_assert!(slot.is_none_or(|slot| {
            self.slots.get(slot as usize).is_some_and(|w| w.is_some_and(|w| w.fd == fd))
        }));
        slot
    }
}

fn interest(read: bool, write: bool) -> EventSet {
    let mut set = EventSet::empty();
    set.set(EventSet::IN, read);
    set.set(EventSet::OUT, write);
    set
}

fn ready(events: EventSet) -> Ready {
    let hangup = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
    Ready {
        readable: hangup || events.contains(EventSet::IN),
        writable: events.contains(EventSet::OUT),
        hangup,
    }
}

fn failed(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => errno.into(),
        event_manager::Error::FdAlreadyRegistered => io::ErrorKind::AlreadyExists.into(),
        other => io::Error::other(other),
    }
}
