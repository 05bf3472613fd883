//! One virtio-scsi device: what its queues, on whichever reactors, have in common.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use vscsi_target::{
    model::{Attention, Change, Nexus, Observer, Target, reservation::NexusId},
    reactor::EndpointId,
};

use crate::{
    queue::{Note, Seed},
    ring,
    scsi::{self, event::Event},
};

/// How a device reaches the endpoints of its queues.
pub trait Router: Send + Sync + std::fmt::Debug {
    /// How many reactors there are, at least one.
    fn reactors(&self) -> u16;
    /// Makes a queue's endpoint.
    fn open(&self, reactor: u16, seed: Seed);
    /// Sends a message to one.
    fn note(&self, to: Place, note: Note);
}

/// Where a queue's endpoint lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The reactor.
    pub reactor: u16,
    /// The endpoint there.
    pub endpoint: EndpointId,
}

/// A target that a controller shows its guest.
#[derive(Clone, Debug)]
pub struct Export {
    /// The target's number in virtio-scsi addresses.
    pub id: u8,
    /// The target.
    pub target: Arc<Target>,
    /// The relative target port identifier of this controller.
    pub port: u16,
    /// The guest's initiator port.
    pub initiator: NexusId,
}

/// One virtio-scsi device.
#[derive(Debug)]
pub struct Controller {
    /// What it is called, and the guest's initiator port with it.
    pub name: String,
    /// Request queues.
    pub queues: u16,
    router: Arc<dyn Router>,
    /// Its nexuses, by target id: established with the device, and as long-lived.
    nexuses: Vec<(u8, Arc<Nexus>)>,
    events: Arc<Events>,
    /// The endpoints of its queues, by queue.
    places: Mutex<Vec<Option<Place>>>,
    /// The reactor of the control queue.
    home: u16,
}

impl Controller {
    /// A device that shows these targets to its guest.
    pub fn new(
        name: String,
        queues: u16,
        exports: Vec<Export>,
        router: Arc<dyn Router>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let home = NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(router.reactors().max(1));
        let events = Arc::new(Events { router: Arc::clone(&router), inner: Mutex::default() });
        let nexuses = exports.into_iter().map(|export| {
            let observer = Watch { id: export.id, events: Arc::clone(&events) };
            let nexus = Nexus::establish_observed(
                export.target,
                export.port,
                export.initiator,
                name.clone(),
                Some(Arc::new(observer)),
            );
            (export.id, nexus)
        });
        Arc::new(Self {
            nexuses: nexuses.collect(),
            name,
            queues,
            router,
            events,
            places: Mutex::new(vec![None; usize::from(queues) + FIRST_REQUEST_QUEUE]),
            home: home as u16,
        })
    }

    /// The features it offers, without those of the front door.
    pub fn features(&self) -> u64 {
        FEATURES
    }

    /// Virtqueues: control, event, and the request queues.
    pub fn virtqueues(&self) -> u16 {
        self.queues + FIRST_REQUEST_QUEUE as u16
    }

    /// The nexuses by target id.
    pub fn nexuses(&self) -> &[(u8, Arc<Nexus>)] {
        &self.nexuses
    }

    /// The events that the guest is not told yet.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// How to reach the reactors.
    pub fn router(&self) -> &Arc<dyn Router> {
        &self.router
    }

    /// The reactor that a queue belongs to: request queues take turns.
    pub fn reactor_of(&self, queue: u16) -> u16 {
        let turn = queue.saturating_sub(FIRST_REQUEST_QUEUE as u16);
        let reactors = u32::from(self.router.reactors().max(1));
        ((u32::from(self.home) + u32::from(turn)) % reactors) as u16
    }

    /// Notes where a queue's endpoint is, or that it is gone.
    pub fn set_place(&self, queue: u16, place: Option<Place>) {
        if let Some(entry) = self.lock_places().get_mut(usize::from(queue)) {
            *entry = place;
        }
    }

    /// Where the endpoints of its queues are.
    pub fn places(&self) -> Vec<Place> {
        self.lock_places().iter().flatten().copied().collect()
    }

    /// Where the endpoint of one queue is.
    pub fn place(&self, queue: u16) -> Option<Place> {
        self.lock_places().get(usize::from(queue)).copied().flatten()
    }

    /// The guest reset the device, and all its queues have stopped.
    pub fn reset(&self) {
        self.events.clear();
        for (_, nexus) in &self.nexuses {
            nexus.reset();
        }
    }

    fn lock_places(&self) -> MutexGuard<'_, Vec<Option<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events on their way to the guest.
#[derive(Debug)]
pub struct Events {
    router: Arc<dyn Router>,
    inner: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// The features the driver accepted; without HOTPLUG or CHANGE it is told nothing.
    features: u64,
    queue: VecDeque<Event>,
    missed: bool,
    /// The event queue, while it runs.
    reader: Option<Place>,
}

impl Events {
    /// The event queue runs, for a driver with these features.
    pub fn attach(&self, reader: Place, features: u64) {
        let mut pending = self.lock();
        (pending.reader, pending.features) = (Some(reader), features);
    }

    /// The event queue stopped. What happens from now on is told when it runs again.
    pub fn detach(&self) {
        self.lock().reader = None;
    }

    /// The next event, and whether others before it were dropped.
    pub fn next(&self) -> Option<(Event, bool)> {
        let mut pending = self.lock();
        let event = match pending.queue.pop_front() {
            Some(event) => event,
            None if pending.missed => Event::Missed,
            None => return None,
        };
        Some((event, std::mem::take(&mut pending.missed)))
    }

    /// Whether there is something to tell.
    pub fn is_waiting(&self) -> bool {
        let pending = self.lock();
        pending.missed || !pending.queue.is_empty()
    }

    fn tell(&self, event: Event) {
        let mut pending = self.lock();
        let wanted = match event {
            Event::Added { .. } | Event::Removed { .. } => scsi::feature::HOTPLUG,
            Event::Changed { .. } | Event::Missed => scsi::feature::CHANGE,
        };
        // Who never ran an event queue finds out by looking.
        if pending.features & wanted == 0 {
            return;
        }
        // Told already, unless something else happened to that logical unit since.
        let last = pending.queue.iter().rev().find(|old| old.place() == event.place());
        if last == Some(&event) {
            return;
        }
        if pending.queue.len() < MOST_EVENTS {
            pending.queue.push_back(event);
        } else {
            pending.missed = true;
        }
        if let Some(reader) = pending.reader {
            drop(pending);
            self.router.note(reader, Note::Event);
        }
    }

    fn clear(&self) {
        let mut pending = self.lock();
        *pending = Pending { reader: pending.reader, ..Pending::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns changes of one nexus into events.
#[derive(Debug)]
struct Watch {
    id: u8,
    events: Arc<Events>,
}

impl Observer for Watch {
    fn changed(&self, number: u16, change: Change) {
        let target = self.id;
        let event = match change {
            Change::Added => Event::Added { target, number },
            Change::Removed => Event::Removed { target, number },
            Change::Attention(condition) if is_parameter(condition) => {
                Event::Changed { target, number, condition }
            }
            Change::Attention(_) => return,
        };
        self.events.tell(event);
    }
}

/// Whether a condition says that parameters changed, which a driver looks at again.
fn is_parameter(condition: Attention) -> bool {
    matches!(
        condition,
        Attention::CAPACITY_CHANGED
            | Attention::MODE_PARAMETERS_CHANGED
            | Attention::INQUIRY_CHANGED
            | Attention::MEDIUM_CHANGED
    )
}

/// The features a controller offers, without those of the front door.
pub const FEATURES: u64 = scsi::feature::INOUT
    | scsi::feature::HOTPLUG
    | scsi::feature::CHANGE
    | ring::feature::INDIRECT_DESC
    | ring::feature::EVENT_IDX
    | ring::feature::VERSION_1
    | ring::feature::RING_PACKED
    | ring::feature::IN_ORDER
    | ring::feature::RING_RESET;
/// The queue of control requests.
pub const CONTROL_QUEUE: u16 = 0;
/// The queue of events.
pub const EVENT_QUEUE: u16 = 1;
/// Request queues follow the other two.
pub const FIRST_REQUEST_QUEUE: usize = 2;
/// The most request queues of a device.
pub const MOST_QUEUES: u16 = 256;
/// Events kept for a driver that takes none.
const MOST_EVENTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Nowhere(Mutex<u32>);

    impl Router for Nowhere {
        fn reactors(&self) -> u16 {
            2
        }

        fn open(&self, _reactor: u16, _seed: Seed) {}

        fn note(&self, _to: Place, _note: Note) {
            *self.0.lock().unwrap() += 1;
        }
    }

    fn events() -> (Arc<Nowhere>, Events, Watch) {
        let router = Arc::new(Nowhere::default());
        let make =
            || Events { router: Arc::clone(&router) as Arc<dyn Router>, inner: Mutex::default() };
        let watched = Arc::new(make());
        let endpoint = EndpointId { index: 0, generation: 0 };
        let all = scsi::feature::HOTPLUG | scsi::feature::CHANGE;
        watched.attach(Place { reactor: 0, endpoint }, all);
        (Arc::clone(&router), make(), Watch { id: 1, events: watched })
    }

    #[test]
    fn coming_and_going_and_coming_is_told_in_full() {
        let (router, _, watch) = events();
        for change in [Change::Added, Change::Added, Change::Removed, Change::Added] {
            watch.changed(4, change);
        }
        let told: Vec<_> = std::iter::from_fn(|| watch.events.next()).collect();
        let (target, number) = (1, 4);
        let (added, removed) = (Event::Added { target, number }, Event::Removed { target, number });
        assert_eq!(told, [(added, false), (removed, false), (added, false)]);
        assert_eq!(*router.0.lock().unwrap(), 3);
    }

    #[test]
    fn more_events_than_are_kept_become_one_that_says_so() {
        let (_, _, watch) = events();
        (0..MOST_EVENTS as u16 + 5).for_each(|number| watch.changed(number, Change::Added));
        let told: Vec<_> = std::iter::from_fn(|| watch.events.next()).collect();
        assert_eq!(told.len(), MOST_EVENTS);
        assert_eq!(told.iter().filter(|(_, missed)| *missed).count(), 1);
    }

    #[test]
    fn a_driver_that_cannot_be_told_is_not() {
        let (_, events, _) = events();
        events.tell(Event::Added { target: 0, number: 0 });
        assert!(!events.is_waiting());
    }

    #[test]
    fn conditions_that_are_no_parameters_are_no_events() {
        let (_, _, watch) = events();
        watch.changed(0, Change::Attention(Attention::POWER_ON));
        assert!(!watch.events.is_waiting());
        watch.changed(0, Change::Attention(Attention::CAPACITY_CHANGED));
        assert!(watch.events.is_waiting());
    }
}
