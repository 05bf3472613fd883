//! The split ring: VIRTIO 1.3 clause 2.7.

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

/// An entry of a descriptor table, in the ring or indirect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It is a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// The descriptor as it is in memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..].copy_from_slice(&self.second().to_le_bytes());
        bytes
    }

    fn second(self) -> u64 {
        u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48
    }

    fn store(self, table: &Window, index: usize) {
        table.u64(index * 16).store(self.address.to_le(), Relaxed);
        table.u64(index * 16 + 8).store(self.second().to_le(), Relaxed);
    }
}

/// What the driver knows of a chain, by its head.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    /// The device owns it.
    owned: bool,
    /// Descriptors in the ring to free with it.
    count: u16,
    writable: u32,
}

/// A split ring.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    event_idx: bool,
    descriptors: Window,
    available: Window,
    used: Window,
    /// Free descriptors are linked through it, and those of a chain.
    next: Vec<u16>,
    first_free: u16,
    free_count: u16,
    chains: Vec<Chain>,
    added: u16,
    published: u16,
    taken: u16,
    /// Heads in the order in which they were made available, with IN_ORDER only.
    in_order: Option<VecDeque<u16>>,
    /// The last of the batch that the device used at once, with IN_ORDER only.
    batch: Option<Used>,
}

impl SplitRing {
    /// An empty ring in region 0; `size` is a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, features: u64) -> Result<Self, Error> {
        let n = u64::from(size);
        let ring = Self {
            size,
            event_idx: features & feature::EVENT_IDX != 0,
            descriptors: memory.window(16 * n, 4096)?,
            available: memory.window(6 + 2 * n, 64)?,
            used: memory.window(6 + 8 * n, 4096)?,
            next: (1..=size).map(|n| if n == size { 0 } else { n }).collect(),
            first_free: 0,
            free_count: size,
            chains: vec![Chain::default(); usize::from(size)],
            added: 0,
            published: 0,
            taken: 0,
            in_order: (features & feature::IN_ORDER != 0).then(VecDeque::new),
            batch: None,
        };
        Ok(ring)
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are free.
    pub fn free(&self) -> u16 {
        self.free_count
    }

    /// The three areas: descriptor table, available ring, used ring.
    pub fn areas(&self) -> [&Window; 3] {
        [&self.descriptors, &self.available, &self.used]
    }

    /// Index up to which buffers were made available: what `SET_VRING_BASE` takes when nothing
    /// is in flight.
    pub fn base(&self) -> u16 {
        self.published
    }

    /// Used index up to which this driver has looked.
    pub fn taken(&self) -> u16 {
        self.taken
    }

    #[inline]
    pub(crate) fn add(&mut self, chain: &[Buffer], table: Option<&Table>) -> Result<u16, Error> {
        let writable = chain.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len);
        let writable = writable.fold(0, u32::wrapping_add);
        let needed = if table.is_some() { 1 } else { chain.len() };
        if needed == 0 || needed > usize::from(self.free_count) {
            return Err(Error::Full { free: self.free_count, needed });
        }
        let head = self.first_free;
        let mut at = head;
        if let Some(table) = table {
            for (index, buffer) in chain.iter().enumerate() {
                let next = (index + 1 < chain.len()).then_some(index as u16 + 1);
                descriptor(buffer, next).store(&table.0, index);
            }
            let len = chain.len() as u32 * 16;
            let flags = Descriptor::INDIRECT;
            let indirect = Descriptor { address: table.0.address(), len, flags, next: 0 };
            indirect.store(&self.descriptors, usize::from(at));
            at = self.next[usize::from(at)];
        } else {
            for (index, buffer) in chain.iter().enumerate() {
                let next = self.next[usize::from(at)];
                let link = (index + 1 < chain.len()).then_some(next);
                descriptor(buffer, link).store(&self.descriptors, usize::from(at));
                at = next;
            }
        }
        self.first_free = at;
        self.free_count -= needed as u16;
        self.chains[usize::from(head)] = Chain { owned: true, count: needed as u16, writable };
        if let Some(order) = &mut self.in_order {
            order.push_back(head);
        }
        self.set_available_entry(self.added, head);
        self.added = self.added.wrapping_add(1);
        Ok(head)
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.added);
        self.set_available_index(new);
        self.published = new;
        // The device clears its wish before it looks at the index for the last time.
        fence(SeqCst);
        if self.event_idx {
            passes(self.available_event(), new, old)
        } else {
            new != old && u16::from_le(self.used.u16(0).load(Relaxed)) & 1 == 0
        }
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Result<Option<Used>, Error> {
        if self.batch.is_none() {
            if self.used_index() == self.taken {
                return Ok(None);
            }
            let (id, len) = self.used_entry(self.taken);
            let owned = self.chains.get(id as usize).is_some_and(|chain| chain.owned);
            if !owned {
                return Err(Error::NotOwned(id));
            }
            let used = Used { head: id as u16, len };
            let Some(order) = &self.in_order else {
                self.free_chain(used.head);
                return Ok(Some(used));
            };
            // The first of a batch may be the only one that has an entry, naming the last.
            if order.front() != Some(&used.head) && !order.contains(&used.head) {
                return Err(Error::NotOwned(id));
            }
            self.batch = Some(used);
        }
        let (Some(last), Some(order)) = (self.batch, &mut self.in_order) else {
            return Ok(None);
        };
        let beyond = self.taken == u16::from_le(self.used.u16(2).load(Acquire));
        let Some(head) = order.pop_front().filter(|_| !beyond) else {
            return Err(Error::NotOwned(u32::from(last.head)));
        };
        let len = if head == last.head {
            self.batch = None;
            last.len
        } else {
            self.chains[usize::from(head)].writable
        };
        self.free_chain(head);
        Ok(Some(Used { head, len }))
    }

    #[inline]
    pub(crate) fn want_calls(&mut self, wanted: bool) -> bool {
        if self.event_idx {
            // Just behind what was taken: passed once in 65,536.
            let event = if wanted { self.taken } else { self.taken.wrapping_sub(1) };
            self.available.u16(4 + 2 * usize::from(self.size)).store(event.to_le(), Relaxed);
        } else {
            self.set_available_flags(u16::from(!wanted));
        }
        fence(SeqCst);
        self.used_index() != self.taken
    }

    fn free_chain(&mut self, head: u16) {
        let chain = &mut self.chains[usize::from(head)];
        let count = chain.count;
        *chain = Chain::default();
        self.free_count += count;
        self.taken = self.taken.wrapping_add(1);
        if count == 0 || self.in_order.is_some() {
            // In order nothing is linked anew: descriptors go round, as clause 2.7.5.3 wants.
            return;
        }
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.first_free;
        self.first_free = head;
    }
}

/// What a hostile driver writes, and what a test reads back.
impl SplitRing {
    /// Writes a descriptor of the ring.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        descriptor.store(&self.descriptors, usize::from(index));
    }

    /// Writes entry `index` (modulo the size) of the available ring.
    #[inline]
    pub fn set_available_entry(&self, index: u16, head: u16) {
        let slot = usize::from(index % self.size);
        self.available.u16(4 + 2 * slot).store(head.to_le(), Relaxed);
    }

    /// Writes the available index.
    #[inline]
    pub fn set_available_index(&self, index: u16) {
        self.available.u16(2).store(index.to_le(), Release);
    }

    /// Writes the flags of the available ring; bit 0: no calls.
    pub fn set_available_flags(&self, flags: u16) {
        self.available.u16(0).store(flags.to_le(), Relaxed);
    }

    /// The available index in memory.
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.available.u16(2).load(Acquire))
    }

    /// Flags of the used ring; bit 0: no kicks.
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.used.u16(0).load(Relaxed))
    }

    /// The used index in memory.
    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used.u16(2).load(Acquire))
    }

    /// Identifier and length of entry `index` (modulo the size) of the used ring.
    #[inline]
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = 4 + 8 * usize::from(index % self.size);
        let load = |at| u32::from_le(self.used.u32(at).load(Relaxed));
        (load(at), load(at + 4))
    }

    /// Available index at which the device wants a kick, with EVENT_IDX.
    #[inline]
    pub fn available_event(&self) -> u16 {
        u16::from_le(self.used.u16(4 + 8 * usize::from(self.size)).load(Relaxed))
    }

    /// Makes a hand-written chain available, so that `take` gives it back. Its descriptors must
    /// not be among those that `add` uses: that begins with index 0 and takes what was freed
    /// last. Tells whether the device wants a kick.
    pub fn offer(&mut self, head: u16) -> bool {
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = Chain { owned: true, ..Chain::default() };
        }
        if let Some(order) = &mut self.in_order {
            order.push_back(head);
        }
        self.set_available_entry(self.added, head);
        self.added = self.added.wrapping_add(1);
        self.publish()
    }
}

fn descriptor(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    Descriptor {
        address: buffer.address,
        len: buffer.len,
        flags: u16::from(buffer.writable) << 1 | u16::from(next.is_some()),
        next: next.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
