//! What is remembered of each request in flight, by the number of its chain.

use vscsi_target::reactor::sg::{self, Segment};

use crate::{
    memory::{GuestMap, Region, dirty::DirtyLog},
    ring::RingError,
};

/// The requests of one ring.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    busy: u32,
}

/// One request.
#[derive(Debug, Default)]
pub(super) struct Slot {
    is_busy: bool,
    /// The outcome of a task management function, until it may be told.
    pub(super) code: u8,
    /// Where the response goes, if it is in one piece.
    response: Option<Segment>,
    /// Where it goes otherwise.
    pieces: Vec<Segment>,
    /// Where the data goes, if that is to be logged.
    data: Vec<Segment>,
    /// Where the data comes from and goes to, if that is to be remembered.
    held: Vec<Segment>,
}

impl Slots {
    pub(super) fn new(size: u16) -> Self {
        Self { slots: (0..size).map(|_| Slot::default()).collect(), busy: 0 }
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.busy == 0
    }

    /// Whether a request in flight has to do with one of these regions.
    pub(super) fn uses(&self, regions: &[Region]) -> bool {
        let busy = self.slots.iter().filter(|slot| slot.is_busy);
        busy.flat_map(Slot::memory)
            .any(|segment| regions.iter().any(|region| region.touches(segment.base, segment.len)))
    }

    /// Takes a slot. A chain that is in flight cannot be made available again.
    #[inline]
    pub(super) fn take(&mut self, id: u16) -> Result<&mut Slot, RingError> {
        let slot = self.slots.get_mut(usize::from(id)).ok_or(RingError::Head(id))?;
        if slot.is_busy {
            return Err(RingError::Busy(id));
        }
        slot.is_busy = true;
        self.busy += 1;
        Ok(slot)
    }

    /// A slot in use.
    #[inline]
    pub(super) fn get(&mut self, id: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(id)).filter(|slot| slot.is_busy)
    }

    /// Gives a slot back.
    #[inline]
    pub(super) fn free(&mut self, id: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(id)).filter(|slot| slot.is_busy) {
            slot.is_busy = false;
            self.busy -= 1;
        }
    }
}

impl Slot {
    /// Remembers that the response goes to the first `len` bytes of `writable`, of which
    /// `after[..]` is what follows.
    #[inline]
    pub(super) fn set_response(&mut self, writable: &[Segment], len: usize) {
        self.data.clear();
        self.held.clear();
        match writable {
            [first, ..] if first.len >= len => {
                self.response = Some(Segment { base: first.base, len });
            }
            _ => {
                self.response = None;
                sg::take_front(writable, len, &mut self.pieces);
            }
        }
    }

    /// Remembers where the data goes, to log it.
    pub(super) fn set_data(&mut self, data: &[Segment]) {
        self.data.extend_from_slice(data);
    }

    /// Remembers where data comes from or goes to.
    #[inline]
    pub(super) fn hold(&mut self, data: &[Segment]) {
        self.held.extend_from_slice(data);
    }

    /// All that it remembers.
    fn memory(&self) -> impl Iterator<Item = &Segment> {
        let pieces = if self.response.is_none() { self.pieces.as_slice() } else { &[] };
        self.response.iter().chain(pieces).chain(&self.held)
    }

    /// Writes the response, or as much of it as there is room for.
    #[inline]
    pub(super) fn respond(&self, bytes: &[u8]) {
        match &self.response {
            Some(segment) => sg::scatter(bytes, std::slice::from_ref(segment)),
            None => sg::scatter(bytes, &self.pieces),
        };
    }

    /// Logs what was written: the response, and `moved` bytes of data.
    pub(super) fn log(&self, log: &DirtyLog, map: &GuestMap, moved: usize) {
        let response = self.response.iter().chain(if self.response.is_none() {
            self.pieces.as_slice()
        } else {
            &[]
        });
        for segment in response {
            mark(log, map, segment.base, segment.len);
        }
        let mut left = moved;
        for segment in &self.data {
            let part = segment.len.min(left);
            mark(log, map, segment.base, part);
            left -= part;
        }
    }
}

fn mark(log: &DirtyLog, map: &GuestMap, host: *const u8, len: usize) {
    if let Some(gpa) = map.gpa_of(host) {
        log.mark(gpa, len as u64);
    }
}
