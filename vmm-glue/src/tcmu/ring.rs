//! The command ring of a TCMU device.
//!
//! The kernel puts entries at the head; the handler gives them back at the tail, in the order of the
//! ring. An entry that is given back carries a response and says whose, so that a command may be
//! answered before those that came earlier.
//!
//! **At any moment the ring alone tells what is to be done**, because the process may be killed and
//! another one goes on. Before a command is handed to the core its entry is marked as taken. A
//! response is written into the command's own entry, which is then marked as answered. An answered
//! entry that stands behind an unanswered one changes places with it: first a note of the exchange is
//! made in spare bytes of the entry in front, then the request is copied to the place of the response,
//! then the response is written in front. Whoever opens the ring finishes an exchange that it finds
//! begun. What has no room in the other's place, or has sense data, waits for its turn.
//!
//! The kernel gives a command up after a while, and tells nobody: its initiator may have sent it again
//! and gone on, so that what is done then could undo what is newer. So each entry says since when its
//! command is known, and the mailbox when everything in the ring was known; times are CLOCK_MONOTONIC's,
//! which processes share.
//!
//! The kernel is believed no more than a guest: all that is in the mapping is checked, and a ring that
//! makes no sense is given up.

mod exchange;

use std::collections::VecDeque;

use thiserror::Error;
use vscsi_target::reactor::sg::Segment;

use super::{
    area::Area,
    layout::{
        ALIGN, Header, MOST_CDB, Operation, VERSION, capability, cdb_len, entry, flag, mailbox,
        manage, response_word,
    },
};
use crate::memory::Region;

/// What is wrong with a ring. Nothing is taken from it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// Another layout.
    #[error("the mailbox has version {0}, and only {VERSION} is known")]
    Version(u16),
    /// The mailbox says that the ring is where it cannot be.
    #[error("a command ring of {size} bytes at {offset} does not fit into {len}")]
    Extent {
        /// Where it begins.
        offset: u32,
        /// Its bytes.
        size: u32,
        /// Bytes of the mapping.
        len: u64,
    },
    /// The kernel or the process before this one wrote a position that is none.
    #[error("position {0} is outside of the command ring")]
    Position(u32),
    /// An entry is too short, ragged, or goes on behind the head or the end of the ring.
    #[error("the entry at {at} cannot have {len} bytes")]
    Length {
        /// Where it is.
        at: u32,
        /// Its bytes.
        len: u32,
    },
    /// The CDB or the iovecs of a command lie outside of its entry.
    #[error("the command at {0} does not fit into its entry")]
    Request(u32),
    /// Its data is not in the data area.
    #[error("the data of the command at {0} is outside of the data area")]
    Data(u32),
    /// A command without id, or with that of another one in progress.
    #[error("id {0} is none, or that of a command in progress")]
    Id(u16),
    /// A page of the mapping was not there.
    #[error("memory of the device was taken away")]
    MemoryLost,
}

/// What was found at the head of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Empty,
    /// A command.
    Command,
    /// The kernel performed a task management function on commands.
    Manage,
    /// The kernel has emptied the ring: the commands that were in progress are its own again.
    Reset,
}

/// What was taken. Reused for one command after the other.
#[derive(Debug)]
pub struct Request {
    /// The kernel's id of the command.
    pub id: u16,
    /// It was taken before, by a process that is gone.
    pub again: bool,
    /// It was executed by a process that is gone, and its request and response are mixed.
    pub torn: bool,
    /// Since when it is known, in milliseconds of CLOCK_MONOTONIC; it cannot be older.
    pub since: u64,
    /// The task management function, as the kernel codes it.
    pub function: u8,
    /// The commands it concerns.
    pub ids: Vec<u16>,
    /// The data; Data-Out where there is data both ways.
    pub data: Vec<Segment>,
    /// Its bytes.
    pub data_len: u32,
    /// The Data-In of a command with data both ways.
    pub data_in: Vec<Segment>,
    /// Its bytes.
    pub data_in_len: u32,
    cdb: [u8; MOST_CDB],
    cdb_len: usize,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            id: 0,
            again: false,
            torn: false,
            since: 0,
            function: 0,
            ids: Vec::new(),
            data: Vec::new(),
            data_len: 0,
            data_in: Vec::new(),
            data_in_len: 0,
            cdb: [0; MOST_CDB],
            cdb_len: 0,
        }
    }
}

impl Request {
    /// The CDB.
    pub fn cdb(&self) -> &[u8] {
        self.cdb.get(..self.cdb_len).unwrap_or_default()
    }
}

/// A response to a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer<'a> {
    /// SCSI status.
    pub status: u8,
    /// Sense data, with CHECK CONDITION.
    pub sense: &'a [u8],
    /// Bytes of Data-In, if they are fewer than there is room for and at least one.
    pub read: Option<u32>,
}

/// A command ring.
#[derive(Debug)]
pub struct Ring {
    area: Area,
    /// Where the ring begins in the mapping, and its bytes.
    base: u32,
    size: u32,
    capabilities: u16,
    /// Since when what is new in the ring can have come: the last time that nothing was.
    since: u64,
    /// What was there when the ring was opened is older than that.
    drained: bool,
    /// Positions in the ring: of the first entry that was not given back, and of the next to be taken.
    tail: u32,
    next: u32,
    /// The entries between the two.
    slots: VecDeque<Slot>,
    /// The number of the first of them; they are counted up.
    first: u64,
    /// Answered entries, by number, in the order in which they were; some are gone.
    done: VecDeque<u64>,
    /// The number of the entry that a command in progress stands in, by its id.
    places: Vec<Option<u64>>,
}

/// An entry that was taken.
#[derive(Clone, Copy, Debug)]
struct Slot {
    at: u32,
    len: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A command in progress, by its id.
    Busy(u16),
    /// It has a response, which can be moved to another entry if it is plain.
    Answered { plain: bool },
    /// No command.
    Void,
}

impl Ring {
    /// Opens the ring in a mapping, at its tail: what a process that is gone left unanswered comes
    /// first.
    pub fn open(region: Region) -> Result<Self, RingError> {
        let area = Area::new(region);
        let version = area.load16(mailbox::VERSION);
        if version != VERSION {
            return Err(RingError::Version(version));
        }
        let (base, size) = (area.load32(mailbox::RING_OFFSET), area.load32(mailbox::RING_SIZE));
        let end = u64::from(base) + u64::from(size);
        let aligned = base.is_multiple_of(ALIGN) && size.is_multiple_of(ALIGN);
        let fits = base >= mailbox::LEN && size > entry::LEN && end <= area.len();
        // Positions and offsets in it are counted in 32 bits.
        if !aligned || !fits || end > u64::from(u32::MAX) {
            return Err(RingError::Extent { offset: base, size, len: area.len() });
        }
        let tail = area.load32(mailbox::TAIL);
        let mut ring = Self {
            capabilities: area.load16(mailbox::FLAGS),
            since: area.load64(mailbox::ALIVE),
            drained: false,
            area,
            base,
            size,
            tail,
            next: tail,
            slots: VecDeque::new(),
            first: 0,
            done: VecDeque::new(),
            places: Vec::new(),
        };
        ring.position(tail)?;
        ring.finish_exchange()?;
        Ok(ring)
    }

    /// Whether a response may say how many bytes were read.
    pub fn tells_read_len(&self) -> bool {
        self.capabilities & capability::READ_LEN != 0
    }

    /// Whether the kernel can tell of task management functions.
    pub fn tells_task_management(&self) -> bool {
        self.capabilities & capability::TASK_MANAGEMENT != 0
    }

    /// Whether no command is in progress, and all that were are given back.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a page of the mapping was not there when it was needed.
    pub fn is_lost(&self) -> bool {
        self.area.is_lost()
    }

    /// Whether there is something to take. A ring that makes no sense has something, too: the error.
    pub fn has_more(&self) -> bool {
        self.area.load32(mailbox::HEAD) != self.next || self.area.load32(mailbox::TAIL) != self.tail
    }

    /// Takes the next entry, at this time in milliseconds of CLOCK_MONOTONIC. [`Taken::Command`] and
    /// [`Taken::Manage`] fill `request`.
    #[inline]
    pub fn take(&mut self, request: &mut Request, now: u64) -> Result<Taken, RingError> {
        loop {
            let head = self.position(self.area.load32(mailbox::HEAD))?;
            if self.is_reset(head) {
                self.forget();
                return Ok(Taken::Reset);
            }
            if self.next == head {
                self.drained = true;
                if self.since != now {
                    self.since = now;
                    self.area.store64(mailbox::ALIVE, now);
                }
                return Ok(Taken::Empty);
            }
            let at = self.next;
            let header = self.header(at, head)?;
            match header.operation {
                Operation::Command if header.flags & flag::ANSWERED != 0 => {
                    let status = self.area.load64(self.at(at, entry::IOVECS)).to_ne_bytes()[0];
                    let plain = status != CHECK_CONDITION;
                    let number = self.keep(at, header.len, State::Answered { plain });
                    self.done.push_back(number);
                }
                Operation::Command => {
                    let since = if self.drained { now } else { self.since };
                    self.take_command(at, header, request, since)?;
                    return Ok(Taken::Command);
                }
                Operation::Manage => {
                    self.keep(at, header.len, State::Void);
                    if header.flags & flag::TAKEN == 0 {
                        self.take_manage(at, header, request);
                        return Ok(Taken::Manage);
                    }
                }
                Operation::Unknown(_) => {
                    self.set_flags(at, header, flag::UNKNOWN_OPERATION);
                    self.keep(at, header.len, State::Void);
                }
                Operation::Pad => {
                    self.keep(at, header.len, State::Void);
                }
            }
        }
    }

    /// Answers a command in progress; the kernel sees it after [`Ring::publish`]. False, and nothing
    /// is done, if there is no such command.
    #[inline]
    pub fn answer(&mut self, id: u16, answer: &Answer<'_>) -> bool {
        let Some((number, slot)) = self.find(id) else { return false };
        let header = Header::parse(self.area.load64(self.at(slot.at, entry::HEADER)));
        let is_it = header.id == id && header.flags & (flag::TAKEN | flag::ANSWERED) == flag::TAKEN;
        // Otherwise the kernel has emptied the ring, which is noticed when the next one is taken.
        if !is_it {
            return false;
        }
        if let Some(place) = self.places.get_mut(usize::from(id)) {
            *place = None;
        }
        self.set_flags(slot.at, header, flag::ANSWERING);
        if !answer.sense.is_empty() {
            self.write_sense(slot.at, answer.sense);
        }
        let word = response_word(answer.status, answer.read.unwrap_or(0));
        self.area.store64(self.at(slot.at, entry::IOVECS), word);
        let read = if answer.read.is_some() { flag::READ_LEN } else { 0 };
        self.set_flags(slot.at, header, flag::ANSWERED | read);
        let plain = answer.status != CHECK_CONDITION;
        if let Some(slot) = self.slot(number) {
            slot.state = State::Answered { plain };
        }
        if number != self.first {
            self.done.push_back(number);
        }
        true
    }

    /// Gives back what is answered. True if the kernel is to be told.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let mut tail = self.tail;
        while let Some(&front) = self.slots.front() {
            if let State::Busy(id) = front.state
                && !self.exchange(front, id)
            {
                break;
            }
            tail = self.after(front.at, front.len);
            self.slots.pop_front();
            self.first += 1;
        }
        if tail == self.tail {
            return false;
        }
        // Unless the kernel emptied the ring meanwhile: then it is not touched.
        if !self.area.exchange32(mailbox::TAIL, self.tail, tail) {
            return false;
        }
        self.tail = tail;
        true
    }

    /// Fills the data of a command in progress with zeroes, from byte `from` on.
    #[cold]
    pub fn clear_data(&mut self, id: u16, from: u32) {
        let mut request = Request::default();
        let Some((_, slot)) = self.find(id) else { return };
        if self.read_request(slot.at, slot.len, &mut request).is_err() {
            return;
        }
        let list = if request.data_in.is_empty() { &request.data } else { &request.data_in };
        let mut skip = from as usize;
        for segment in list {
            let passed = skip.min(segment.len);
            skip -= passed;
            let mut base = segment.base.wrapping_add(passed);
            let mut left = segment.len - passed;
            while left > 0 {
                let part = left.min(ZEROES.len());
                let piece = Segment { base, len: part };
                vscsi_target::reactor::sg::scatter(&ZEROES[..part], &[piece]);
                base = base.wrapping_add(part);
                left -= part;
            }
        }
    }

    fn take_command(
        &mut self,
        at: u32,
        header: Header,
        request: &mut Request,
        since: u64,
    ) -> Result<(), RingError> {
        if header.len < entry::LEN {
            return Err(RingError::Length { at, len: header.len });
        }
        let id = usize::from(header.id);
        if self.places.len() <= id {
            self.places.resize(id + 1, None);
        }
        if id == 0 || self.places.get(id).is_some_and(Option::is_some) {
            return Err(RingError::Id(header.id));
        }
        request.id = header.id;
        request.again = header.flags & flag::TAKEN != 0;
        request.torn = header.flags & flag::ANSWERING != 0;
        match request.torn {
            true => request.clear(),
            false => self.read_request(at, header.len, request)?,
        }
        // The kernel leaves zeroes there, which are no note.
        if self.area.load64(self.at(at, entry::NOTE)) != 0 {
            self.area.store64(self.at(at, entry::NOTE), 0);
        }
        request.since = match request.again {
            true => self.area.load64(self.at(at, entry::SINCE)),
            false => {
                self.area.store64(self.at(at, entry::SINCE), since);
                since
            }
        };
        self.set_flags(at, header, flag::TAKEN);
        let number = self.keep(at, header.len, State::Busy(header.id));
        if let Some(place) = self.places.get_mut(id) {
            *place = Some(number);
        }
        Ok(())
    }

    /// Reads the request in an entry, once; everything in it is checked here.
    fn read_request(&self, at: u32, len: u32, request: &mut Request) -> Result<(), RingError> {
        request.clear();
        let fault = RingError::Request(at);
        let both = self.area.load64(self.at(at, entry::IOVECS)).to_ne_bytes();
        let [o0, o1, o2, o3, i0, i1, i2, i3] = both;
        let counts = [[o0, o1, o2, o3], [i0, i1, i2, i3]].map(u32::from_ne_bytes);
        let iovecs = counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        let list_end = u64::from(entry::LIST) + iovecs * u64::from(IOVEC);
        if list_end > u64::from(len) {
            return Err(fault);
        }
        // Within the entry, behind the iovecs.
        let cdb = self.area.load64(self.at(at, entry::CDB));
        let cdb = cdb.wrapping_sub(u64::from(self.base + at));
        let cdb = u32::try_from(cdb).map_err(|_| fault)?;
        if u64::from(cdb) < list_end || !cdb.is_multiple_of(ALIGN) || cdb >= len {
            return Err(fault);
        }
        let cdb_len = cdb_len(self.area.load64(self.at(at, cdb)).to_ne_bytes());
        if cdb_len > (len - cdb) as usize {
            return Err(fault);
        }
        for (place, word) in (cdb..).step_by(8).zip(request.cdb[..cdb_len].chunks_mut(8)) {
            let bytes = self.area.load64(self.at(at, place)).to_ne_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        request.cdb_len = cdb_len;
        let mut place = entry::LIST;
        let lists = [
            (&mut request.data, &mut request.data_len),
            (&mut request.data_in, &mut request.data_in_len),
        ];
        for (count, (list, total)) in counts.into_iter().zip(lists) {
            for _ in 0..count {
                let from = self.area.load64(self.at(at, place));
                let bytes = self.area.load64(self.at(at, place + 8));
                place += IOVEC;
                // Never the mailbox or the ring.
                let data = from >= u64::from(self.base) + u64::from(self.size);
                let segment = self.area.segment(from, bytes).filter(|_| data);
                let sum = u32::try_from(u64::from(*total).saturating_add(bytes));
                let (Some(segment), Ok(sum)) = (segment, sum) else {
                    return Err(RingError::Data(at));
                };
                *total = sum;
                if segment.len > 0 {
                    list.push(segment);
                }
            }
        }
        Ok(())
    }

    fn take_manage(&mut self, at: u32, header: Header, request: &mut Request) {
        request.clear();
        let word = self.area.load64(self.at(at, manage::FUNCTION)).to_ne_bytes();
        request.function = word[0];
        let [_, _, _, _, c0, c1, c2, c3] = word;
        let count = u32::from_ne_bytes([c0, c1, c2, c3]);
        // As many as the entry holds.
        let room = header.len.saturating_sub(manage::IDS) / 2;
        let ids = (0..count.min(room)).map(|n| self.area.load16(self.at(at, manage::IDS + 2 * n)));
        request.ids.extend(ids);
        self.set_flags(at, header, flag::TAKEN);
    }

    /// The entry at `at`, as far as its header goes: whole, and before the head.
    fn header(&self, at: u32, head: u32) -> Result<Header, RingError> {
        let header = Header::parse(self.area.load64(self.at(at, entry::HEADER)));
        let len = header.len;
        let fault = RingError::Length { at, len };
        let room = (self.size - at).min(self.distance(at, head));
        if len < ALIGN || !len.is_multiple_of(ALIGN) || len > room {
            return Err(fault);
        }
        Ok(header)
    }

    fn set_flags(&self, at: u32, header: Header, flags: u8) {
        let header = Header { flags: flags | header.flags & flag::TAKEN, ..header };
        self.area.store64(self.at(at, entry::HEADER), header.emit());
    }

    fn write_sense(&self, at: u32, sense: &[u8]) {
        let mut bytes = [0; entry::SENSE];
        let len = sense.len().min(bytes.len());
        bytes[..len].copy_from_slice(&sense[..len]);
        for (place, word) in (entry::SENSE_DATA..).step_by(8).zip(bytes.chunks_exact(8)) {
            let word = word.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
            self.area.store64(self.at(at, place), word);
        }
    }

    /// Notes that an entry was taken: its number.
    fn keep(&mut self, at: u32, len: u32, state: State) -> u64 {
        let number = self.first + self.slots.len() as u64;
        self.slots.push_back(Slot { at, len, state });
        self.next = self.after(at, len);
        number
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// The entry of a command in progress.
    fn find(&mut self, id: u16) -> Option<(u64, Slot)> {
        let number = self.places.get(usize::from(id)).copied().flatten()?;
        Some((number, *self.slot(number)?))
    }

    /// Whether the kernel has begun anew: the tail, which only a handler moves, is elsewhere, or
    /// what was taken is not between tail and head any more.
    fn is_reset(&self, head: u32) -> bool {
        self.area.load32(mailbox::TAIL) != self.tail
            || self.distance(self.tail, self.next) > self.distance(self.tail, head)
    }

    /// Begins at the kernel's new tail, without commands in progress.
    #[cold]
    fn forget(&mut self) {
        let tail = self.area.load32(mailbox::TAIL);
        let tail = self.position(tail).unwrap_or(0);
        (self.tail, self.next) = (tail, tail);
        self.first += self.slots.len() as u64;
        self.slots.clear();
        self.done.clear();
        self.places.clear();
    }

    fn position(&self, at: u32) -> Result<u32, RingError> {
        let is_one = at < self.size && at.is_multiple_of(ALIGN);
        is_one.then_some(at).ok_or(RingError::Position(at))
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { self.size - from + to }
    }

    fn after(&self, at: u32, len: u32) -> u32 {
        // Entries end at the end of the ring at the latest.
        let end = at + len;
        if end >= self.size { 0 } else { end }
    }

    /// The offset in the mapping of a place in an entry.
    fn at(&self, entry: u32, place: u32) -> u32 {
        self.base.saturating_add(entry).saturating_add(place)
    }
}

impl Request {
    fn clear(&mut self) {
        self.ids.clear();
        self.data.clear();
        self.data_in.clear();
        (self.data_len, self.data_in_len, self.cdb_len, self.function) = (0, 0, 0, 0);
    }
}

/// Bytes of an iovec.
const IOVEC: u32 = 16;
const CHECK_CONDITION: u8 = 0x02;
static ZEROES: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests;
