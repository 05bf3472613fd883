//! The packed virtqueue (VIRTIO 1.3, 2.8).
//!
//! Descriptors are taken and given back in the same ring. What is given back overwrites what was
//! made available there, so the ring alone does not tell what is in flight: its in-flight log keeps
//! copies of the descriptors.
#![allow(unsafe_code)] // Rings are raw memory shared with a guest.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use virtio_bindings::virtio_ring;
use virtio_queue::desc::packed::Descriptor;

use super::{
    Areas, Chain, Popped, RingError, Setup, crossed, feature,
    inflight::packed::{PackedInflight, Taken},
    order::Order,
};
use crate::memory::{GuestMap, dirty::DirtyLog};

/// A packed virtqueue in use.
#[derive(Debug)]
pub struct PackedRing {
    areas: Areas,
    size: u16,
    /// The next descriptor to take.
    avail: Position,
    /// Where the next used element goes.
    used: Position,
    /// The first used element since the last publication and its place. As long as it is not
    /// written, the driver sees none of those behind it.
    first: Option<(u16, u64)>,
    /// Descriptors given back since the last publication.
    fresh: u16,
    /// Descriptors that the driver has not got back.
    outstanding: u16,
    /// How many descriptors each buffer in flight has, by its id; 0 if it is not in flight.
    counts: Box<[u16]>,
    event_idx: bool,
    indirect: bool,
    order: Option<Order>,
    inflight: Option<PackedInflight>,
    /// Buffers taken before a crash, still to be taken again.
    again: VecDeque<Taken>,
    log: Option<Log>,
}

/// Where writes to the ring are logged.
#[derive(Debug)]
struct Log {
    pages: Arc<DirtyLog>,
    /// Guest physical addresses of the descriptor ring and of the device area.
    descriptor: u64,
    device: u64,
}

// SAFETY: one reactor has the ring at a time, and the areas are shared memory anyway.
unsafe impl Send for PackedRing {}

impl PackedRing {
    pub(super) fn open(setup: Setup) -> Result<Self, RingError> {
        let Setup { size, areas, base, features, inflight } = setup;
        if size == 0 || size > MOST_ENTRIES {
            return Err(RingError::Size(size));
        }
        let start = Position::of_base(base, size).ok_or(RingError::Base(base))?;
        let mut ring = Self {
            areas,
            size,
            avail: start,
            used: start,
            first: None,
            fresh: 0,
            outstanding: 0,
            counts: vec![0; usize::from(size)].into(),
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            order: (features & feature::IN_ORDER != 0).then(|| Order::new(size)),
            inflight: None,
            again: VecDeque::new(),
            log: None,
        };
        if let Some((area, number)) = inflight {
            let flags = |at| u16::from_le(ring.flags(at).load(Ordering::Acquire));
            let (log, used, again) = PackedInflight::open(&area, number, size, start, flags)
                .ok_or(RingError::Inflight)?;
            ring.used = used;
            ring.resume(again);
            ring.inflight = Some(log);
        }
        Ok(ring)
    }

    /// Goes on with buffers in flight, which were taken from the descriptors behind those used.
    fn resume(&mut self, again: Vec<Taken>) {
        self.avail = self.used;
        for taken in &again {
            if let Some(count) = self.counts.get_mut(usize::from(taken.id)) {
                *count = taken.count;
            }
            // A used element behind the first of a batch that was never published: the driver would
            // take it for a new one as soon as it gets there.
            for _ in 0..taken.count {
                let flags = self.flags(self.avail.at);
                if u16::from_le(flags.load(Ordering::Relaxed)) & BOTH == self.avail.used_flags() {
                    flags.store(self.avail.available_flags().to_le(), Ordering::Relaxed);
                }
                self.avail = self.avail.after(1, self.size);
            }
            self.outstanding += taken.count;
        }
        self.again = again.into();
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(super) fn pop(&mut self, map: &GuestMap, chain: &mut Chain) -> Result<Popped, RingError> {
        chain.clear();
        if !self.again.is_empty() {
            return Ok(self.pop_again(map, chain));
        }
        let flags = u16::from_le(self.flags(self.avail.at).load(Ordering::Acquire));
        if flags & BOTH != self.avail.available_flags() {
            return Ok(Popped::Empty);
        }
        self.walk(flags, map, chain)
    }

    #[inline]
    fn walk(&mut self, head: u16, map: &GuestMap, chain: &mut Chain) -> Result<Popped, RingError> {
        let (mut at, mut flags, mut count) = (self.avail, head, 0);
        let mut good = true;
        let id = loop {
            // More than the driver has left is a loop, or descriptors that are in use.
            if count == self.size - self.outstanding {
                return Err(RingError::TooMany(self.size));
            }
            let entry = self.descriptor(at.at);
            if count > 0 {
                flags = entry.flags();
            }
            let (addr, len, id) = (entry.addr().0, entry.len(), entry.id());
            good = good && self.add(map, chain, (addr, len, flags), count == 0);
            if let Some(inflight) = &mut self.inflight {
                inflight.copy(count, Descriptor::new(addr, len, id, flags));
            }
            count += 1;
            at = at.after(1, self.size);
            // The id is in the last descriptor, so that the way there is gone also if what is on it
            // cannot be.
            if flags & NEXT == 0 {
                break id;
            }
        };
        let known = self.counts.get_mut(usize::from(id)).ok_or(RingError::Head(id))?;
        if *known != 0 {
            return Err(RingError::Busy(id));
        }
        *known = count;
        self.avail = at;
        self.outstanding += count;
        if let Some(inflight) = &mut self.inflight {
            inflight.take(id, count);
        }
        Ok(self.taken(id, good, chain))
    }

    #[cold]
    fn pop_again(&mut self, map: &GuestMap, chain: &mut Chain) -> Popped {
        let Some(taken) = self.again.pop_front() else { return Popped::Empty };
        let mut good = true;
        for nth in 0..taken.count {
            let entry = self.inflight.as_ref().and_then(|log| log.descriptor(taken.head, nth));
            good = good
                && entry.is_some_and(|entry| {
                    let what = (entry.addr().0, entry.len(), entry.flags());
                    self.add(map, chain, what, nth == 0)
                });
        }
        chain.again = true;
        self.taken(taken.id, good, chain)
    }

    #[inline]
    fn taken(&mut self, id: u16, good: bool, chain: &mut Chain) -> Popped {
        chain.id = id;
        if let Some(order) = &mut self.order {
            order.take(id);
        }
        if good { Popped::Chain } else { Popped::Bad }
    }

    /// Adds what one descriptor (address, length, flags) describes; false if it cannot be.
    #[inline]
    fn add(
        &self,
        map: &GuestMap,
        chain: &mut Chain,
        (addr, len, flags): (u64, u32, u16),
        first: bool,
    ) -> bool {
        if flags & INDIRECT == 0 {
            return chain.add(map, addr, len, flags & WRITE != 0);
        }
        // A table stands alone.
        self.indirect && first && flags & NEXT == 0 && chain.add_packed_table(map, addr, len)
    }

    #[inline]
    pub(super) fn push(&mut self, id: u16, len: u32) {
        match &mut self.order {
            None => self.push_now(id, len),
            Some(order) => {
                order.done(id, len);
                while let Some((id, len)) = self.order.as_mut().and_then(Order::next) {
                    self.push_now(id, len);
                }
            }
        }
    }

    #[inline]
    fn push_now(&mut self, id: u16, len: u32) {
        let Some(count) = self.counts.get_mut(usize::from(id)).map(std::mem::take) else { return };
        if count == 0 {
            return;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.used(id);
        }
        let written = if len > 0 { WRITE } else { 0 };
        let flags = self.used.used_flags() | written;
        let element = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        if self.first.is_none() {
            self.first = Some((self.used.at, element));
        } else {
            self.element(self.used.at).store(element.to_le(), Ordering::Relaxed);
        }
        self.fresh += count;
        self.used = self.used.after(count, self.size);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((at, element)) = self.first.take() else { return false };
        if let Some(inflight) = &mut self.inflight {
            inflight.publishing(self.used);
        }
        // The driver takes used elements in the order of the ring: with this one it sees all.
        self.element(at).store(element.to_le(), Ordering::Release);
        if let Some(log) = &self.log {
            // After it is written: a page that is copied between mark and write would be old.
            let (from, to) = if at < self.used.at { (at, self.used.at) } else { (0, self.size) };
            let start = log.descriptor + DESCRIPTOR * u64::from(from);
            log.pages.mark(start, DESCRIPTOR * u64::from(to - from));
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.published();
        }
        let fresh = std::mem::take(&mut self.fresh);
        self.outstanding -= fresh;
        // The driver writes what it waits for and then looks at the ring: one of us sees the other.
        fence(Ordering::SeqCst);
        let wish = u32::from_le(self.suppression(self.areas.driver).load(Ordering::Relaxed));
        let (event, flags) = (Position::decode(wish as u16), (wish >> 16) as u16 & EVENT_FLAGS);
        match flags {
            DISABLE => false,
            DESC if self.event_idx => {
                let lap = if event.wrap == self.used.wrap { 0 } else { self.size };
                let old = self.used.at.wrapping_sub(fresh);
                crossed(event.at.wrapping_sub(lap), self.used.at, old)
            }
            _ => true,
        }
    }

    pub(super) fn suppress(&mut self) {
        self.wish(u32::from(DISABLE) << 16);
    }

    pub(super) fn rearm(&mut self) -> bool {
        if self.event_idx {
            self.wish(u32::from(self.avail.encode()) | u32::from(DESC) << 16);
        } else {
            self.wish(u32::from(ENABLE) << 16);
        }
        fence(Ordering::SeqCst);
        let flags = u16::from_le(self.flags(self.avail.at).load(Ordering::Acquire));
        !self.again.is_empty() || flags & BOTH == self.avail.available_flags()
    }

    /// Says when the driver is to notify: offset and flags at once.
    fn wish(&self, event: u32) {
        self.suppression(self.areas.device).store(event.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.pages.mark(log.device, 4);
        }
    }

    pub(super) fn holds_back(&self) -> bool {
        self.order.as_ref().is_some_and(Order::holds_back)
    }

    pub(super) fn resumes(&self) -> bool {
        !self.again.is_empty()
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.avail.encode()) | u32::from(self.used.encode()) << 16
    }

    pub(super) fn move_to(&mut self, areas: Areas) -> Result<(), RingError> {
        areas.check(feature::RING_PACKED)?;
        self.areas = areas;
        Ok(())
    }

    pub(super) fn set_log(&mut self, log: Option<Arc<DirtyLog>>, map: &GuestMap) {
        self.log = log.and_then(|pages| {
            let descriptor = map.gpa_of(self.areas.descriptor)?;
            let device = map.gpa_of(self.areas.device)?;
            Some(Log { pages, descriptor, device })
        });
        if let Some(log) = &self.log {
            log.pages.mark(log.descriptor, DESCRIPTOR * u64::from(self.size));
            log.pages.mark(log.device, 4);
        }
    }

    /// A copy of a descriptor: read once, since the guest may change it at any time.
    #[inline]
    fn descriptor(&self, at: u16) -> Descriptor {
        let place = self.areas.descriptor.cast::<Descriptor>().wrapping_add(usize::from(at));
        // SAFETY: positions are less than the size of the ring, which is mapped as long as it is in
        // use and aligned to 16; any bytes make a descriptor.
        unsafe { place.read_volatile() }
    }

    #[inline]
    fn flags(&self, at: u16) -> &AtomicU16 {
        let place = self.areas.descriptor.wrapping_add(usize::from(at) * 16 + 14);
        // SAFETY: in a descriptor, as above.
        unsafe { AtomicU16::from_ptr(place.cast()) }
    }

    /// The length, id and flags of a descriptor: all that a used element has.
    #[inline]
    fn element(&self, at: u16) -> &AtomicU64 {
        let place = self.areas.descriptor.wrapping_add(usize::from(at) * 16 + 8);
        // SAFETY: in a descriptor, as above.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    #[inline]
    fn suppression(&self, area: *mut u8) -> &AtomicU32 {
        // SAFETY: the driver and the device area have 4 bytes and are aligned to them.
        unsafe { AtomicU32::from_ptr(area.cast()) }
    }
}

/// A place in the ring and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) at: u16,
    pub(super) wrap: bool,
}

impl Position {
    /// `count` descriptors further.
    #[inline]
    pub(super) fn after(self, count: u16, size: u16) -> Self {
        // Neither is more than 32768.
        let at = u32::from(self.at) + u32::from(count);
        match at.checked_sub(size.into()) {
            Some(at) => Self { at: at as u16, wrap: !self.wrap },
            None => Self { at: at as u16, wrap: self.wrap },
        }
    }

    /// The two flags of a descriptor that is available here.
    #[inline]
    pub(super) fn available_flags(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The two flags of a used element here.
    #[inline]
    fn used_flags(self) -> u16 {
        if self.wrap { BOTH } else { 0 }
    }

    #[inline]
    fn encode(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    #[inline]
    fn decode(word: u16) -> Self {
        Self { at: word & 0x7FFF, wrap: word >> 15 != 0 }
    }

    /// Where the front end says that a ring without buffers in flight goes on. Some say it once, as
    /// the specification had it before it named the used index.
    fn of_base(base: u32, size: u16) -> Option<Self> {
        let (avail, used) = (Self::decode(base as u16), Self::decode((base >> 16) as u16));
        (avail.at < size && (avail == used || base >> 16 == 0)).then_some(avail)
    }
}

const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
const AVAIL: u16 = 1 << virtio_ring::VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << virtio_ring::VRING_PACKED_DESC_F_USED;
pub(super) const BOTH: u16 = AVAIL | USED;
const ENABLE: u16 = virtio_ring::VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const DISABLE: u16 = virtio_ring::VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const DESC: u16 = virtio_ring::VRING_PACKED_EVENT_FLAG_DESC as u16;
/// The bits of an event suppression structure's flags (VIRTIO 1.3, 2.8.14).
const EVENT_FLAGS: u16 = 3;
const DESCRIPTOR: u64 = 16;
/// The most entries a packed ring has (VIRTIO 1.3, 2.8.10.1).
const MOST_ENTRIES: u16 = 32768;

#[cfg(test)]
mod tests;
