//! A guest for tests: memory, and drivers of both kinds of rings that play by the rules.

use std::{collections::VecDeque, fs, sync::Arc};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Areas, Chain, Popped, Ring, Setup, crossed, feature, inflight::InflightArea};
use crate::memory::{GuestMap, Region};

/// A guest's memory.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) map: Arc<GuestMap>,
}

impl Guest {
    /// Memory in `regions` adjoining regions; the rings are in the first.
    pub(super) fn new(regions: u64) -> Self {
        let region = |nth| Region::map(GPA + nth * REGION, REGION, 0, 0, memory(REGION)).unwrap();
        Self { map: Arc::new(GuestMap::new((0..regions).map(region).collect()).unwrap()) }
    }

    pub(super) fn at(&self, gpa: u64) -> *mut u8 {
        self.map.at(gpa, 1).unwrap()
    }

    pub(super) fn write<T>(&self, gpa: u64, value: T) {
        // SAFETY: aligned memory of the test, one page or more from the end of its region.
        unsafe { self.at(gpa).cast::<T>().write_volatile(value) };
    }

    pub(super) fn read<T: Copy>(&self, gpa: u64) -> T {
        // SAFETY: as above; callers read integers.
        unsafe { self.at(gpa).cast::<T>().read_volatile() }
    }

    pub(super) fn areas(&self) -> Areas {
        let [descriptor, driver, device] =
            [DESCRIPTOR, DRIVER, DEVICE].map(|offset| self.at(GPA + offset));
        Areas { descriptor, driver, device }
    }

    pub(super) fn setup(&self, size: u16, features: u64) -> Setup {
        let base = if features & feature::RING_PACKED != 0 { 0x8000_8000 } else { 0 };
        Setup { size, areas: self.areas(), base, features, inflight: None }
    }

    pub(super) fn open(&self, size: u16, features: u64) -> Ring {
        Ring::open(self.setup(size, features)).unwrap()
    }

    /// As a process after a crash does, or the first one.
    pub(super) fn reopen(&self, size: u16, features: u64, log: &Arc<InflightArea>) -> Ring {
        let inflight = Some((Arc::clone(log), 1));
        Ring::open(Setup { inflight, ..self.setup(size, features) }).unwrap()
    }

    pub(super) fn driver(&self, size: u16, features: u64) -> Driver<'_> {
        let is_packed = features & feature::RING_PACKED != 0;
        if !is_packed {
            self.write(GPA + DRIVER, 0u32);
        }
        Driver {
            guest: self,
            size,
            is_packed,
            event_idx: features & feature::EVENT_IDX != 0,
            free: (0..size).collect(),
            ids: (0..size).collect(),
            counts: vec![0; size.into()],
            chains: vec![Vec::new(); size.into()],
            next: 0,
            told: 0,
            seen: 0,
        }
    }
}

pub(super) fn memory(len: u64) -> fs::File {
    let file = fs::File::from(memfd_create("guest", MFdFlags::empty()).unwrap());
    file.set_len(len).unwrap();
    file
}

/// Memory of a log for two queues of `size` entries.
pub(super) fn log(size: u16, features: u64) -> Arc<InflightArea> {
    let (file, len) = InflightArea::create(2, size, features).unwrap();
    InflightArea::map(len, 0, file, size, features).unwrap()
}

/// A piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) write: bool,
}

/// A driver of either kind of ring. Its counters only grow; places and wrap counters are computed.
#[derive(Debug)]
pub(super) struct Driver<'a> {
    guest: &'a Guest,
    size: u16,
    is_packed: bool,
    event_idx: bool,
    /// Split: free descriptors. Packed: as many entries as descriptors are free.
    free: VecDeque<u16>,
    /// Packed: free buffer ids.
    ids: VecDeque<u16>,
    /// Packed: descriptors of each buffer.
    counts: Vec<u16>,
    /// Split: descriptors of each chain.
    chains: Vec<Vec<u16>>,
    /// Made available: entries of the available ring, or descriptors.
    next: u64,
    /// How many of them the device was asked about.
    told: u64,
    /// Used elements seen, or descriptors got back.
    seen: u64,
}

impl Driver<'_> {
    /// Makes a buffer available: its id, if there is room.
    pub(super) fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        if self.free.len() < pieces.len() {
            return None;
        }
        let entries: Vec<u16> = self.free.drain(..pieces.len()).collect();
        let flags = |nth: usize, piece: &Piece| {
            u16::from(nth + 1 < pieces.len()) | u16::from(piece.write) << 1
        };
        if self.is_packed {
            let id = self.ids.pop_front()?;
            self.counts[usize::from(id)] = pieces.len() as u16;
            for (nth, piece) in pieces.iter().enumerate().rev() {
                let (at, wrap) = self.place(self.next + nth as u64);
                let place = GPA + DESCRIPTOR + 16 * at;
                self.guest.write(place, piece.addr);
                self.guest.write(place + 8, piece.len);
                self.guest.write(place + 12, id);
                let bits = if wrap { 1 << 7 } else { 1 << 15 };
                self.flags(at).store(flags(nth, piece) | bits, Release);
            }
            self.next += pieces.len() as u64;
            return Some(id);
        }
        for (nth, (piece, at)) in pieces.iter().zip(&entries).enumerate() {
            let place = GPA + DESCRIPTOR + 16 * u64::from(*at);
            self.guest.write(place, piece.addr);
            self.guest.write(place + 8, piece.len);
            self.guest.write(place + 12, flags(nth, piece));
            self.guest.write(place + 14, entries.get(nth + 1).copied().unwrap_or(0xFFFF));
        }
        let head = entries[0];
        self.chains[usize::from(head)] = entries;
        self.guest.write(GPA + DRIVER + 4 + 2 * (self.next % u64::from(self.size)), head);
        self.next += 1;
        self.half(DRIVER + 2).store(self.next as u16, Release);
        Some(head)
    }

    /// Whether the device wants to be notified of what was added since the last time.
    pub(super) fn must_notify(&mut self) -> bool {
        fence(SeqCst);
        let (old, new) = (self.told, self.next);
        self.told = new;
        if old == new {
            return false;
        }
        if self.is_packed {
            let word = self.word(DEVICE).load(Relaxed);
            return match word >> 16 {
                0 => true,
                1 => false,
                2 => self.is_crossed(word as u16, old, new),
                other => panic!("event suppression flags {other}"),
            };
        }
        if self.event_idx {
            let event = self.half(DEVICE + 4 + 8 * u64::from(self.size)).load(Relaxed);
            crossed(event, new as u16, old as u16)
        } else {
            self.half(DEVICE).load(Relaxed) & 1 == 0
        }
    }

    /// Whether a descriptor that the other side waits for lies in `old..new`.
    fn is_crossed(&self, off_wrap: u16, old: u64, new: u64) -> bool {
        (old..new).any(|count| {
            let (at, wrap) = self.place(count);
            at == u64::from(off_wrap & 0x7FFF) && wrap == (off_wrap >> 15 != 0)
        })
    }

    /// A buffer that the device has given back: its id and how much was written.
    pub(super) fn used(&mut self) -> Option<(u16, u32)> {
        let (id, len) = self.peek()?;
        if self.is_packed {
            let count = std::mem::take(&mut self.counts[usize::from(id)]);
            assert_ne!(count, 0, "buffer {id} was not in flight");
            self.free.extend((0..count).map(|_| 0));
            self.ids.push_back(id);
            self.seen += u64::from(count);
        } else {
            let entries = std::mem::take(&mut self.chains[usize::from(id)]);
            assert!(!entries.is_empty(), "chain {id} was not in flight");
            self.free.extend(entries);
            self.seen += 1;
        }
        Some((id, len))
    }

    fn peek(&self) -> Option<(u16, u32)> {
        if self.is_packed {
            let (at, wrap) = self.place(self.seen);
            let flags = self.flags(at).load(Acquire);
            let both = if wrap { 1 << 7 | 1 << 15 } else { 0 };
            let place = GPA + DESCRIPTOR + 16 * at;
            return (flags & (1 << 7 | 1 << 15) == both)
                .then(|| (self.guest.read(place + 12), self.guest.read(place + 8)));
        }
        if self.half(DEVICE + 2).load(Acquire) == self.seen as u16 {
            return None;
        }
        let place = GPA + DEVICE + 4 + 8 * (self.seen % u64::from(self.size));
        Some((self.guest.read::<u32>(place) as u16, self.guest.read(place + 4)))
    }

    /// Asks for an interrupt when `after` more buffers (packed: descriptors) are used than seen;
    /// true if there is something used already.
    pub(super) fn arm(&mut self, after: u16) -> bool {
        let event = self.seen + u64::from(if self.event_idx { after } else { 0 });
        match (self.is_packed, self.event_idx) {
            (true, true) => {
                let (at, wrap) = self.place(event);
                self.word(DRIVER).store(at as u32 | u32::from(wrap) << 15 | 2 << 16, Relaxed);
            }
            (true, false) => self.word(DRIVER).store(0, Relaxed),
            (false, true) => {
                self.half(DRIVER + 4 + 2 * u64::from(self.size)).store(event as u16, Relaxed);
            }
            (false, false) => self.half(DRIVER).store(0, Relaxed),
        }
        fence(SeqCst);
        self.peek().is_some()
    }

    /// Asks for no interrupts.
    pub(super) fn disarm(&mut self) {
        match (self.is_packed, self.event_idx) {
            (true, _) => self.word(DRIVER).store(1 << 16, Relaxed),
            (false, true) => {}
            (false, false) => self.half(DRIVER).store(1, Relaxed),
        }
    }

    /// Descriptors that are free.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Index and wrap counter of the descriptor that is the `count`th since the ring was made.
    fn place(&self, count: u64) -> (u64, bool) {
        let size = u64::from(self.size);
        (count % size, (count / size).is_multiple_of(2))
    }

    fn flags(&self, at: u64) -> &AtomicU16 {
        self.half(DESCRIPTOR + 16 * at + 14)
    }

    fn half(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: in the guest's memory, at even offsets.
        unsafe { AtomicU16::from_ptr(self.guest.at(GPA + offset).cast()) }
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: in the guest's memory, at the start of an area.
        unsafe { AtomicU32::from_ptr(self.guest.at(GPA + offset).cast()) }
    }
}

/// Pops, and says which buffer it was.
pub(super) fn pop(ring: &mut Ring, guest: &Guest, chain: &mut Chain) -> Option<u16> {
    match ring.pop(&guest.map, chain).unwrap() {
        Popped::Empty => None,
        Popped::Chain | Popped::Bad => Some(chain.id),
    }
}

use std::sync::atomic::{
    AtomicU16, AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

pub(super) const GPA: u64 = 0x1_0000_0000;
/// Where the areas are, from [`GPA`].
pub(super) const DESCRIPTOR: u64 = 0;
pub(super) const DRIVER: u64 = 0x8_0000;
pub(super) const DEVICE: u64 = 0xA_0000;
/// Where there is room for data.
pub(super) const DATA: u64 = GPA + 0x10_0000;
pub(super) const REGION: u64 = 0x20_0000;
