//! The split virtqueue (VIRTIO 1.3, 2.7).
#![allow(unsafe_code)] // Rings are raw memory shared with a guest.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering, fence},
    },
};

use virtio_queue::desc::split::Descriptor;

use super::{
    Areas, Chain, Popped, RingError, Setup, crossed, feature, inflight::split::SplitInflight,
    order::Order,
};
use crate::memory::{GuestMap, dirty::DirtyLog};

/// A split virtqueue in use.
#[derive(Debug)]
pub struct SplitRing {
    areas: Areas,
    size: u16,
    /// The next entry of the available ring to take.
    next_avail: u16,
    /// The available index when it was last read.
    seen_avail: u16,
    /// The next entry of the used ring to write.
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
    event_idx: bool,
    indirect: bool,
    order: Option<Order>,
    inflight: Option<SplitInflight>,
    /// Heads taken before a crash, still to be taken again.
    again: VecDeque<u16>,
    log: Option<(Arc<DirtyLog>, u64)>,
}

// SAFETY: one reactor has the ring at a time, and the areas are shared memory anyway.
unsafe impl Send for SplitRing {}

impl SplitRing {
    pub(super) fn open(setup: Setup) -> Result<Self, RingError> {
        let Setup { size, areas, base, features, inflight } = setup;
        if !size.is_power_of_two() || size > MOST_ENTRIES {
            return Err(RingError::Size(size));
        }
        let mut ring = Self {
            areas,
            size,
            next_avail: base as u16,
            seen_avail: base as u16,
            next_used: 0,
            published: 0,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            order: (features & feature::IN_ORDER != 0).then(|| Order::new(size)),
            inflight: None,
            again: VecDeque::new(),
            log: None,
        };
        ring.next_used = u16::from_le(ring.used_index().load(Ordering::Acquire));
        ring.published = ring.next_used;
        if let Some((area, number)) = inflight {
            let (log, again) = SplitInflight::open(area, number, size, ring.next_used)
                .ok_or(RingError::Inflight)?;
            // Each one in flight was taken from an entry behind those that are used.
            ring.next_avail = ring.next_used.wrapping_add(again.len() as u16);
            ring.seen_avail = ring.next_avail;
            ring.again = again.into();
            ring.inflight = Some(log);
        }
        Ok(ring)
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
        if self.next_avail == self.seen_avail {
            let index = u16::from_le(self.available_index().load(Ordering::Acquire));
            if index == self.next_avail {
                return Ok(Popped::Empty);
            }
            // All that is out has been made available too.
            let out = self.next_avail.wrapping_sub(self.published);
            if index.wrapping_sub(self.next_avail) > self.size.saturating_sub(out) {
                return Err(RingError::AvailableIndex { index, expected: self.next_avail });
            }
            self.seen_avail = index;
        }
        let head = self.available_entry(self.next_avail).load(Ordering::Relaxed);
        let head = u16::from_le(head);
        if head >= self.size {
            return Err(RingError::Head(head));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        Ok(self.walk(head, map, chain))
    }

    #[cold]
    fn pop_again(&mut self, map: &GuestMap, chain: &mut Chain) -> Popped {
        let Some(head) = self.again.pop_front() else { return Popped::Empty };
        let popped = self.walk(head, map, chain);
        chain.again = true;
        popped
    }

    #[inline]
    fn walk(&mut self, head: u16, map: &GuestMap, chain: &mut Chain) -> Popped {
        chain.id = head;
        if let Some(order) = &mut self.order {
            order.take(head);
        }
        let mut at = head;
        // Each descriptor once: a longer way is a loop.
        for _ in 0..self.size {
            let entry = self.descriptor(at);
            let (addr, len) = (entry.addr().0, entry.len());
            if entry.refers_to_indirect_table() {
                let fits = self.indirect && !entry.has_next();
                let added = fits && chain.add_table(map, addr, len);
                return if added { Popped::Chain } else { Popped::Bad };
            }
            if !chain.add(map, addr, len, entry.is_write_only()) {
                return Popped::Bad;
            }
            if !entry.has_next() {
                return Popped::Chain;
            }
            at = entry.next();
            if at >= self.size {
                return Popped::Bad;
            }
        }
        Popped::Bad
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
        if let Some(inflight) = &mut self.inflight {
            inflight.used(id);
        }
        let at = usize::from(self.next_used & (self.size - 1));
        let place = self.areas.device.wrapping_add(4 + 8 * at).cast::<[u32; 2]>();
        // SAFETY: an entry of the used ring, which is `6 + 8 * size` bytes long and aligned to 4.
        unsafe { place.write_volatile([u32::from(id).to_le(), len.to_le()]) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.used_index().store(new.to_le(), Ordering::Release);
        self.published = new;
        // After it is written: a page that is copied between mark and write would be old.
        self.log_used();
        if let Some(inflight) = &mut self.inflight {
            inflight.published(new);
        }
        // The driver writes what it waits for and then looks at the index: one of us sees the other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available_entry_raw(self.size).load(Ordering::Relaxed);
            crossed(u16::from_le(event), new, old)
        } else {
            let flags = self.at(self.areas.driver, 0).load(Ordering::Relaxed);
            u16::from_le(flags) & NO_INTERRUPT == 0
        }
    }

    pub(super) fn suppress(&mut self) {
        // With event indices the driver is not told to notify until the next `rearm`.
        if !self.event_idx {
            self.at(self.areas.device, 0).store(NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_used();
        }
    }

    pub(super) fn rearm(&mut self) -> bool {
        if self.event_idx {
            let place = self.at(self.areas.device, 4 + 8 * usize::from(self.size));
            place.store(self.next_avail.to_le(), Ordering::Relaxed);
        } else {
            self.at(self.areas.device, 0).store(0, Ordering::Relaxed);
        }
        self.log_used();
        fence(Ordering::SeqCst);
        !self.again.is_empty()
            || u16::from_le(self.available_index().load(Ordering::Acquire)) != self.next_avail
    }

    pub(super) fn holds_back(&self) -> bool {
        self.order.as_ref().is_some_and(Order::holds_back)
    }

    pub(super) fn resumes(&self) -> bool {
        !self.again.is_empty()
    }

    pub(super) fn base(&self) -> u32 {
        // What was to be taken again is still in flight: its entries are not used.
        self.next_avail.wrapping_sub(self.again.len() as u16).into()
    }

    pub(super) fn move_to(&mut self, areas: Areas) -> Result<(), RingError> {
        areas.check(0)?;
        self.areas = areas;
        Ok(())
    }

    pub(super) fn set_log(&mut self, log: Option<Arc<DirtyLog>>, map: &GuestMap) {
        let gpa = map.gpa_of(self.areas.device);
        self.log = log.zip(gpa);
        self.log_used();
    }

    fn log_used(&self) {
        if let Some((log, gpa)) = &self.log {
            log.mark(*gpa, 6 + 8 * u64::from(self.size));
        }
    }

    #[inline]
    fn descriptor(&self, at: u16) -> Descriptor {
        let place = self.areas.descriptor.cast::<Descriptor>().wrapping_add(usize::from(at));
        // SAFETY: callers have checked that `at` is in the table; any bytes make a descriptor. Read
        // once: the guest may change it at any time.
        unsafe { place.read_volatile() }
    }

    #[inline]
    fn available_index(&self) -> &AtomicU16 {
        self.at(self.areas.driver, 2)
    }

    #[inline]
    fn available_entry(&self, index: u16) -> &AtomicU16 {
        self.available_entry_raw(index & (self.size - 1))
    }

    /// Entry `size` is the used event.
    #[inline]
    fn available_entry_raw(&self, at: u16) -> &AtomicU16 {
        self.at(self.areas.driver, 4 + 2 * usize::from(at))
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        self.at(self.areas.device, 2)
    }

    #[inline]
    fn at(&self, area: *mut u8, offset: usize) -> &AtomicU16 {
        // SAFETY: callers stay inside an area, which is mapped as long as the ring is in use and
        // aligned to 2; the guest's side are plain stores of the same width.
        unsafe { AtomicU16::from_ptr(area.wrapping_add(offset).cast()) }
    }
}

const NO_INTERRUPT: u16 = virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
const NO_NOTIFY: u16 = virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY as u16;
/// The most entries a split ring has (VIRTIO 1.3, 2.7).
const MOST_ENTRIES: u16 = 32768;

#[cfg(test)]
mod tests;
