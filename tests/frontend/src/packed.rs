//! The packed ring: VIRTIO 1.3 clause 2.8.

use crate::{Buffer, Error, Memory, Table, Used, Window, feature, queue::passes};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
};

/// An entry of a packed ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes; in a used one those written.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// NEXT, WRITE and INDIRECT as in [`crate::Descriptor`], [`Self::AVAILABLE`], [`Self::USED`].
    pub flags: u16,
}

impl PackedDescriptor {
    /// Equal to the driver's wrap counter and unequal to `USED`: available.
    pub const AVAILABLE: u16 = 1 << 7;
    /// Equal to `AVAILABLE` and to the device's wrap counter: used.
    pub const USED: u16 = 1 << 15;
}

const NEXT: u16 = crate::Descriptor::NEXT;
const WRITE: u16 = crate::Descriptor::WRITE;
const INDIRECT: u16 = crate::Descriptor::INDIRECT;

/// What the driver knows of a chain, by its id.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    owned: bool,
    count: u16,
    writable: u32,
}

/// A place in the ring with its wrap counter.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    fn advance(&mut self, count: u16, size: u16) {
        self.index += count;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }

    /// Index and wrap counter as event suppression and `SET_VRING_BASE` have them.
    fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }
}

/// A packed ring.
#[derive(Debug)]
pub struct PackedRing {
    size: u16,
    event_idx: bool,
    ring: Window,
    driver_event: Window,
    device_event: Window,
    chains: Vec<Chain>,
    free_ids: Vec<u16>,
    free_count: u16,
    next: Place,
    used: Place,
    /// Descriptors since the last `publish`.
    unpublished: u16,
    in_order: Option<VecDeque<u16>>,
    batch: Option<Used>,
}

impl PackedRing {
    /// An empty ring in region 0.
    pub fn new(memory: &Arc<Memory>, size: u16, features: u64) -> Result<Self, Error> {
        Ok(Self {
            size,
            event_idx: features & feature::EVENT_IDX != 0,
            ring: memory.window(16 * u64::from(size), 4096)?,
            driver_event: memory.window(4, 64)?,
            device_event: memory.window(4, 64)?,
            chains: vec![Chain::default(); usize::from(size)],
            free_ids: (0..size).rev().collect(),
            free_count: size,
            next: Place::START,
            used: Place::START,
            unpublished: 0,
            in_order: (features & feature::IN_ORDER != 0).then(VecDeque::new),
            batch: None,
        })
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are free.
    pub fn free(&self) -> u16 {
        self.free_count
    }

    /// The three areas: ring, driver's and device's event suppression.
    pub fn areas(&self) -> [&Window; 3] {
        [&self.ring, &self.driver_event, &self.device_event]
    }

    /// What `SET_VRING_BASE` takes when nothing is in flight: the next available place in the
    /// lower half, the next used one in the upper.
    pub fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.used.bits()) << 16
    }

    #[inline]
    pub(crate) fn add(&mut self, chain: &[Buffer], table: Option<&Table>) -> Result<u16, Error> {
        let writable = chain.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len);
        let writable = writable.fold(0, u32::wrapping_add);
        let needed = if table.is_some() { 1 } else { chain.len() };
        let full = Error::Full { free: self.free_count, needed };
        if needed == 0 || needed > usize::from(self.free_count) {
            return Err(full);
        }
        let Some(id) = self.free_ids.pop() else {
            return Err(full);
        };
        let head = self.next;
        let mut first = PackedDescriptor::default();
        let entries = table.map_or(chain, |_| &chain[..1]);
        for (index, buffer) in entries.iter().enumerate() {
            let link = if index + 1 < needed { NEXT } else { 0 };
            let write = if buffer.writable { WRITE } else { 0 };
            let flags = link | write | self.available_flags();
            let mut entry =
                PackedDescriptor { address: buffer.address, len: buffer.len, id, flags };
            if let Some(table) = table {
                for (index, buffer) in chain.iter().enumerate() {
                    let flags = if buffer.writable { WRITE } else { 0 };
                    let (address, len) = (buffer.address, buffer.len);
                    store(&table.0, index, PackedDescriptor { address, len, id: 0, flags });
                }
                entry.address = table.0.address();
                entry.len = chain.len() as u32 * 16;
                entry.flags = INDIRECT | self.available_flags();
            }
            if index == 0 {
                first = entry;
            } else {
                store(&self.ring, usize::from(self.next.index), entry);
            }
            self.next.advance(1, self.size);
        }
        // The flags of the first descriptor hand over the whole chain.
        store(&self.ring, usize::from(head.index), first);
        self.free_count -= needed as u16;
        self.unpublished += needed as u16;
        self.chains[usize::from(id)] = Chain { owned: true, count: needed as u16, writable };
        if let Some(order) = &mut self.in_order {
            order.push_back(id);
        }
        Ok(id)
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        // What is available must be visible before the device's wish is read.
        fence(SeqCst);
        let count = std::mem::take(&mut self.unpublished);
        let event = u32::from_le(self.device_event.u32(0).load(Relaxed));
        match event >> 16 {
            1 => false,
            2 if self.event_idx => {
                let (mut at, wrap) = (event as u16 & 0x7FFF, event & 0x8000 != 0);
                if wrap != self.next.wrap {
                    at = at.wrapping_sub(self.size);
                }
                passes(at, self.next.index, self.next.index.wrapping_sub(count))
            }
            _ => count > 0,
        }
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Result<Option<Used>, Error> {
        if self.batch.is_none() {
            if !self.is_used() {
                return Ok(None);
            }
            let entry = self.descriptor(self.used.index);
            if !self.chains.get(usize::from(entry.id)).is_some_and(|chain| chain.owned) {
                return Err(Error::NotOwned(u32::from(entry.id)));
            }
            let used = Used { head: entry.id, len: entry.len };
            let Some(order) = &self.in_order else {
                self.free_chain(used.head);
                return Ok(Some(used));
            };
            if order.front() != Some(&used.head) && !order.contains(&used.head) {
                return Err(Error::NotOwned(u32::from(entry.id)));
            }
            self.batch = Some(used);
        }
        let (Some(last), Some(order)) = (self.batch, &mut self.in_order) else {
            return Ok(None);
        };
        let Some(id) = order.pop_front() else {
            return Err(Error::NotOwned(u32::from(last.head)));
        };
        let len = if id == last.head {
            self.batch = None;
            last.len
        } else {
            self.chains[usize::from(id)].writable
        };
        self.free_chain(id);
        Ok(Some(Used { head: id, len }))
    }

    #[inline]
    pub(crate) fn want_calls(&mut self, wanted: bool) -> bool {
        let event = match (wanted, self.event_idx) {
            (false, _) => 1 << 16,
            (true, false) => 0,
            (true, true) => 2 << 16 | u32::from(self.used.bits()),
        };
        self.driver_event.u32(0).store(event.to_le(), Relaxed);
        fence(SeqCst);
        self.is_used()
    }

    fn is_used(&self) -> bool {
        let flags = self.descriptor_flags(self.used.index);
        let available = flags & PackedDescriptor::AVAILABLE != 0;
        let used = flags & PackedDescriptor::USED != 0;
        available == used && used == self.used.wrap
    }

    fn free_chain(&mut self, id: u16) {
        let chain = std::mem::take(&mut self.chains[usize::from(id)]);
        self.free_count += chain.count;
        self.free_ids.push(id);
        self.used.advance(chain.count, self.size);
    }

    fn available_flags(&self) -> u16 {
        if self.next.wrap { PackedDescriptor::AVAILABLE } else { PackedDescriptor::USED }
    }
}

/// What a hostile driver writes, and what a test reads back.
impl PackedRing {
    /// Writes a descriptor of the ring; its flags last.
    pub fn set_descriptor(&self, index: u16, descriptor: PackedDescriptor) {
        store(&self.ring, usize::from(index), descriptor);
    }

    /// A descriptor as it is in the ring.
    #[inline]
    pub fn descriptor(&self, index: u16) -> PackedDescriptor {
        let at = usize::from(index) * 16;
        let second = u64::from_le(self.ring.u64(at + 8).load(Acquire));
        PackedDescriptor {
            address: u64::from_le(self.ring.u64(at).load(Relaxed)),
            len: second as u32,
            id: (second >> 32) as u16,
            flags: (second >> 48) as u16,
        }
    }

    /// The flags that make a descriptor available at the place where the next would be added.
    pub fn next_available(&self) -> (u16, u16) {
        (self.next.index, self.available_flags())
    }

    fn descriptor_flags(&self, index: u16) -> u16 {
        u16::from_le(self.ring.u16(usize::from(index) * 16 + 14).load(Acquire))
    }
}

fn store(table: &Window, index: usize, descriptor: PackedDescriptor) {
    let second = u64::from(descriptor.len)
        | u64::from(descriptor.id) << 32
        | u64::from(descriptor.flags) << 48;
    table.u64(index * 16).store(descriptor.address.to_le(), Relaxed);
    table.u64(index * 16 + 8).store(second.to_le(), Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer() -> Buffer {
        Buffer { address: 0x10_0000, len: 8, writable: true }
    }

    fn use_up(ring: &PackedRing, index: u16, id: u16, wrap: bool) {
        let flags = if wrap { PackedDescriptor::AVAILABLE | PackedDescriptor::USED } else { 0 };
        ring.set_descriptor(index, PackedDescriptor { address: 0, len: 5, id, flags });
    }

    #[test]
    fn a_chain_over_the_end_of_the_ring_turns_the_wrap_counter() {
        let memory = Memory::new(1, 1 << 20).unwrap();
        let mut ring = PackedRing::new(&memory, 4, 0).unwrap();
        let first = ring.add(&[buffer(); 3], None).unwrap();
        assert_eq!(ring.descriptor(0).flags, NEXT | WRITE | PackedDescriptor::AVAILABLE);
        assert_eq!(ring.descriptor(2).flags, WRITE | PackedDescriptor::AVAILABLE);
        assert_eq!(ring.take().unwrap(), None);
        use_up(&ring, 0, first, true);
        assert_eq!(ring.take().unwrap(), Some(Used { head: first, len: 5 }));
        let second = ring.add(&[buffer(); 2], None).unwrap();
        assert_eq!(ring.descriptor(3).flags, NEXT | WRITE | PackedDescriptor::AVAILABLE);
        assert_eq!(ring.descriptor(0).flags, WRITE | PackedDescriptor::USED);
        assert_eq!(ring.base(), 1 | (0x8000 | 3) << 16);
        use_up(&ring, 3, second, true);
        assert_eq!(ring.take().unwrap(), Some(Used { head: second, len: 5 }));
        assert_eq!(ring.base(), 1 | 1 << 16);
        use_up(&ring, 1, 9, false);
        assert!(matches!(ring.take(), Err(Error::NotOwned(9))));
    }

    #[test]
    fn in_order_one_entry_gives_back_a_batch() {
        let memory = Memory::new(1, 1 << 20).unwrap();
        let mut ring = PackedRing::new(&memory, 8, feature::IN_ORDER).unwrap();
        let ids: Vec<u16> = (0..3).map(|_| ring.add(&[buffer(); 2], None).unwrap()).collect();
        use_up(&ring, 0, ids[2], true);
        let taken: Vec<Used> = std::iter::from_fn(|| ring.take().unwrap()).collect();
        let heads: Vec<u16> = taken.iter().map(|used| used.head).collect();
        assert_eq!(heads, ids);
        assert_eq!((taken[0].len, taken[2].len), (16, 5));
        assert_eq!(ring.base() >> 16, 0x8006);
    }

    #[test]
    fn a_kick_is_wanted_at_the_index_asked_for() {
        let memory = Memory::new(1, 1 << 20).unwrap();
        let mut ring = PackedRing::new(&memory, 4, feature::EVENT_IDX).unwrap();
        let [_, _, device] = ring.areas().map(Clone::clone);
        device.u32(0).store(2 << 16 | 0x8001, Relaxed);
        ring.add(&[buffer()], None).unwrap();
        assert!(!ring.publish());
        ring.add(&[buffer()], None).unwrap();
        assert!(ring.publish());
        device.u32(0).store(1 << 16, Relaxed);
        ring.add(&[buffer()], None).unwrap();
        assert!(!ring.publish());
    }
}
