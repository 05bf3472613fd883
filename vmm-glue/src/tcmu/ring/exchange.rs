//! A response and the request of an older command change places: see [the ring](super).

use super::{
    super::layout::{Header, Operation, capability, entry, flag, mailbox},
    Ring, RingError, Slot, State,
};

impl Ring {
    /// Makes the entry at the tail one that can be given back, by moving its request to where a
    /// response is. False if there is none that fits.
    pub(super) fn exchange(&mut self, front: Slot, id: u16) -> bool {
        if self.capabilities & capability::OUT_OF_ORDER == 0 {
            return false;
        }
        for _ in 0..self.done.len().min(MOST_TRIED) {
            let Some(number) = self.done.pop_front() else { break };
            let Some(other) = self.slot(number).copied() else { continue };
            let fits = other.len >= front.len;
            if fits && number != self.first && other.state == (State::Answered { plain: true }) {
                self.change_places(front, other);
                if let Some(slot) = self.slot(number) {
                    slot.state = State::Busy(id);
                }
                if let Some(place) = self.places.get_mut(usize::from(id)) {
                    *place = Some(number);
                }
                return true;
            }
            if number >= self.first {
                self.done.push_back(number);
            }
        }
        false
    }

    /// The exchange in memory: a note, the request, the response. Each is whole before the next
    /// begins.
    fn change_places(&mut self, front: Slot, other: Slot) {
        let response = self.area.load64(self.at(other.at, entry::IOVECS));
        let answered = Header::parse(self.area.load64(self.at(other.at, entry::HEADER)));
        let note = Note {
            other: other.at,
            id: answered.id,
            read_len: answered.flags & flag::READ_LEN != 0,
            is_copied: false,
        };
        let since = self.area.load64(self.at(front.at, entry::SINCE));
        self.area.store64(self.at(other.at, entry::SINCE), since);
        self.area.store64(self.at(front.at, entry::SINCE), response);
        self.area.store64(self.at(front.at, entry::NOTE), note.emit());
        self.copy_request(front, other);
        let note = Note { is_copied: true, ..note };
        self.area.store64(self.at(front.at, entry::NOTE), note.emit());
        self.place_response(front, note, response);
    }

    pub(super) fn copy_request(&self, front: Slot, other: Slot) {
        let header = Header::parse(self.area.load64(self.at(front.at, entry::HEADER)));
        for place in (entry::IOVECS..front.len).step_by(8) {
            let word = match place {
                // It is there already.
                entry::SINCE => continue,
                entry::NOTE => 0,
                // It is counted from the start of the mapping.
                entry::CDB => self
                    .area
                    .load64(self.at(front.at, place))
                    .wrapping_sub(front.at.into())
                    .wrapping_add(other.at.into()),
                _ => self.area.load64(self.at(front.at, place)),
            };
            self.area.store64(self.at(other.at, place), word);
        }
        let moved = Header { len: other.len, flags: flag::TAKEN, ..header };
        self.area.store64(self.at(other.at, entry::HEADER), moved.emit());
    }

    pub(super) fn place_response(&self, front: Slot, note: Note, response: u64) {
        let header = Header::parse(self.area.load64(self.at(front.at, entry::HEADER)));
        self.area.store64(self.at(front.at, entry::IOVECS), response);
        let read = if note.read_len { flag::READ_LEN } else { 0 };
        let flags = flag::TAKEN | flag::ANSWERED | read;
        let header = Header { id: note.id, flags, ..header };
        self.area.store64(self.at(front.at, entry::HEADER), header.emit());
    }

    /// Finishes an exchange that a process was killed in.
    pub(super) fn finish_exchange(&mut self) -> Result<(), RingError> {
        let head = self.position(self.area.load32(mailbox::HEAD))?;
        let (mut at, mut begun) = (self.tail, None);
        while at != head {
            let header = self.header(at, head)?;
            let slot = Slot { at, len: header.len, state: State::Void };
            let is_busy = header.operation == Operation::Command
                && header.len >= entry::LEN
                && header.flags & (flag::TAKEN | flag::ANSWERING | flag::ANSWERED) == flag::TAKEN;
            match begun {
                None if is_busy => {
                    let word = self.area.load64(self.at(at, entry::NOTE));
                    begun = Note::parse(word).map(|note| (slot, note));
                }
                Some((front, note))
                    if note.other == at && header.len >= front.len && is_copy(header) =>
                {
                    let response = self.area.load64(self.at(front.at, entry::SINCE));
                    if !note.is_copied {
                        self.copy_request(front, slot);
                    }
                    self.place_response(front, note, response);
                    return Ok(());
                }
                _ => {}
            }
            at = self.after(at, header.len);
        }
        Ok(())
    }
}

/// Whether an entry can be the other one of an exchange: it is answered, or it is the copy.
fn is_copy(header: Header) -> bool {
    header.operation == Operation::Command && header.flags & flag::TAKEN != 0
}

/// What is noted of an exchange in the entry in front, besides the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Where the response was.
    pub(super) other: u32,
    /// Whose it is.
    pub(super) id: u16,
    /// It says how many bytes were read.
    pub(super) read_len: bool,
    /// The request is there.
    pub(super) is_copied: bool,
}

impl Note {
    fn parse(word: u64) -> Option<Self> {
        let [o0, o1, o2, o3, i0, i1, kind, mark] = word.to_le_bytes();
        (mark == NOTE && kind & !3 == 0).then(|| Self {
            other: u32::from_le_bytes([o0, o1, o2, o3]),
            id: u16::from_le_bytes([i0, i1]),
            read_len: kind & 1 != 0,
            is_copied: kind & 2 != 0,
        })
    }

    pub(super) fn emit(self) -> u64 {
        let [o0, o1, o2, o3] = self.other.to_le_bytes();
        let [i0, i1] = self.id.to_le_bytes();
        let kind = u8::from(self.read_len) | u8::from(self.is_copied) << 1;
        u64::from_le_bytes([o0, o1, o2, o3, i0, i1, kind, NOTE])
    }
}

/// Marks a [`Note`]; the kernel fills entries with zeroes.
const NOTE: u8 = 0x5C;
/// Responses looked at for one that can stand in front.
const MOST_TRIED: usize = 8;
