//! The opcode table: one row a command.
//!
//! Dispatch, REPORT SUPPORTED OPERATION CODES, the reservation check and the conformance page are
//! all derived from these rows; a fact about an opcode is written nowhere else.

mod table;

use crate::{engine::Call, sense::Sense};
use libsrp::Status;

pub use table::TABLE;

/// Why a command did not end in GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// CHECK CONDITION with this sense.
    Check(Sense),
    /// A bare status: RESERVATION CONFLICT, BUSY, CONDITION MET...
    Status(Status),
}

impl From<Sense> for Fail {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// Which way a command's data goes, and how the CDB tells how much.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// None.
    None,
    /// Data-In parameter data: at most the ALLOCATION LENGTH at this place of the CDB.
    In(Length),
    /// Data-Out: the PARAMETER LIST LENGTH at this place of the CDB.
    Out(Length),
    /// Data-Out of as many bytes as this function finds (0 for none), given the logical block size.
    OutBy(fn(cdb: &[u8], block_size: u32) -> u64),
    /// As many logical blocks as the CDB's TRANSFER LENGTH: the media lane works it out.
    Blocks,
}

/// Where a length stands in a CDB.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// One byte.
    U8(u8),
    /// Two bytes, big-endian.
    U16(u8),
    /// Three bytes, big-endian.
    U24(u8),
    /// Four bytes, big-endian.
    U32(u8),
    /// Nowhere: the command always transfers this many bytes.
    Fixed(u8),
}

impl Length {
    /// Reads it. The row's usage map guarantees that the CDB is long enough.
    pub fn read(self, cdb: &[u8]) -> u64 {
        let (at, width) = match self {
            Self::U8(at) => (at, 1),
            Self::U16(at) => (at, 2),
            Self::U24(at) => (at, 3),
            Self::U32(at) => (at, 4),
            Self::Fixed(bytes) => return bytes.into(),
        };
        let at = usize::from(at);
        cdb.get(at..at + width)
            .map_or(0, |bytes| bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
    }
}

/// What a reservation held by somebody else does to a command (SPC-5 5.14, SBC-4 table 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Always allowed (INQUIRY, REPORT LUNS, PERSISTENT RESERVE IN...).
    Always,
    /// Reads the medium or its state: conflicts with Exclusive Access types.
    Read,
    /// Changes the medium or its state: conflicts with every type.
    Write,
    /// Allowed under any persistent reservation, but not under another nexus's RESERVE.
    NotLegacy,
    /// RESERVE and RELEASE, PERSISTENT RESERVE OUT: the reservation model decides by itself.
    Own,
}

/// Which path a command takes.
#[derive(Clone, Copy, Debug)]
pub enum Lane {
    /// READ: straight to the backend.
    Read,
    /// WRITE: straight to the backend, FUA honoured.
    Write,
    /// Answered at once on the reactor: no input or output.
    Inline,
    /// May wait for a disk: on a worker thread, unless the backend never waits.
    Worker,
    /// Like `Worker`, and while it runs no other command touches the blocks it names.
    Exclusive(fn(cdb: &[u8]) -> (u64, u64)),
}

/// Properties of a command, or-ed into [`Row::flags`].
pub mod flag {
    /// A pending unit attention is neither reported nor cleared (INQUIRY, REPORT LUNS, REQUEST
    /// SENSE; SAM-5 5.14).
    pub const NO_ATTENTION: u8 = 1;
    /// Works without a medium, stopped, or during FORMAT UNIT and SANITIZE.
    pub const NOT_READY_OK: u8 = 2;
    /// Refused on a write-protected logical unit.
    pub const WRITES: u8 = 4;
    /// REQUEST SENSE, REPORT LUNS and INQUIRY are answered on logical units that do not exist.
    pub const ANY_LUN: u8 = 8;
    /// Persists something even on a memory backend: always on a worker.
    pub const PERSISTS: u8 = 16;
    /// Needs exactly as much Data-Out as the CDB says: what was announced beyond it means that the
    /// initiator's idea of the command is another one, and the medium is left alone.
    pub const EXACT_OUT: u8 = 32;
    /// Must not be executed a second time when nobody knows whether it was: the second time would
    /// fail or undo what happened since (a compare that now differs, a key that is gone, a fenced
    /// initiator that registers again, a medium erased twice).
    pub const ONCE: u8 = 64;
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Operation code.
    pub opcode: u8,
    /// Service action, for the opcodes that have them.
    pub service_action: Option<u16>,
    /// Its name in the standards.
    pub name: &'static str,
    /// CDB usage map (SPC-5 6.34.3): byte 0 is the opcode, then a bit set for each bit evaluated.
    /// Its length is the CDB's.
    pub usage: &'static [u8],
    /// Reservation class.
    pub access: Access,
    /// Data direction and amount.
    pub transfer: Transfer,
    /// Which path it takes.
    pub lane: Lane,
    /// Of [`flag`].
    pub flags: u8,
    /// Executes it; never called for `Lane::Read` and `Lane::Write`.
    pub handler: fn(&mut Call<'_>) -> Result<(), Fail>,
    /// Where it is specified.
    pub spec: &'static str,
}

impl Row {
    /// Whether a property of [`flag`] holds.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it can be answered while another process has the image: it needs no medium, changes
    /// nothing, and tells nothing that a cluster relies on.
    pub fn needs_no_state(&self) -> bool {
        let is_harmless = match self.access {
            Access::Always | Access::Read => true,
            Access::NotLegacy => matches!(self.transfer, Transfer::In(_)),
            Access::Write | Access::Own => false,
        };
        is_harmless && self.has(flag::NOT_READY_OK)
    }

    /// The row of a CDB. INVALID COMMAND OPERATION CODE for an opcode not in the table, INVALID
    /// FIELD IN CDB for a service action not in it or a bit set that is not evaluated.
    pub fn find(cdb: &[u8]) -> Result<&'static Self, Sense> {
        let &opcode = cdb.first().ok_or(Sense::INVALID_OPCODE)?;
        let first = usize::from(INDEX[usize::from(opcode)]);
        let rows = TABLE.get(first..).unwrap_or_default();
        let mut row = rows.first().ok_or(Sense::INVALID_OPCODE)?;
        if row.service_action.is_some() {
            let wanted = service_action(cdb);
            row = rows
                .iter()
                .take_while(|row| row.opcode == opcode)
                .find(|row| row.service_action == Some(wanted))
                .ok_or_else(|| Sense::cdb_bit(if opcode == 0x7F { 8 } else { 1 }, 4))?;
        }
        row.check_usage(cdb)?;
        Ok(row)
    }

    /// The row of an opcode and service action, for REPORT SUPPORTED OPERATION CODES.
    pub fn of(opcode: u8, service_action: Option<u16>) -> Option<&'static Self> {
        TABLE.iter().find(|row| row.opcode == opcode && row.service_action == service_action)
    }

    fn check_usage(&self, cdb: &[u8]) -> Result<(), Sense> {
        if cdb.len() < self.usage.len() {
            return Err(Sense::cdb_byte(cdb.len() as u16));
        }
        for (at, (&byte, &used)) in cdb.iter().zip(self.usage).enumerate().skip(1) {
            // SCSI-2 initiators put the LUN in the three high bits of byte 1.
            let ignored = if at == 1 && self.usage.len() == 6 { 0xE0 } else { 0 };
            let wrong = byte & !used & !ignored;
            if wrong != 0 {
                return Err(Sense::cdb_bit(at as u16, 7 - wrong.leading_zeros() as u8));
            }
        }
        Ok(())
    }
}

/// Whether a command that may or may not have been executed before the target was restarted can
/// simply be executed again. It can if that is no more than being executed late: reads, writes of
/// given data, UNMAP, flushes, MODE SELECT, RESERVE. What is refused anyway can be refused again.
pub fn may_repeat(cdb: &[u8]) -> bool {
    Row::find(cdb).map_or(true, |row| !row.has(flag::ONCE))
}

/// The service action of a CDB that has one (SPC-5 4.2.5): low five bits of byte 1, or bytes 8-9 of
/// a variable length CDB.
pub const fn service_action(cdb: &[u8]) -> u16 {
    match *cdb {
        [0x7F, _, _, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([high, low]),
        [0x7F, ..] => 0,
        [_, byte, ..] => (byte & 0x1F) as u16,
        _ => 0,
    }
}

/// Opcode to first row, `u8::MAX` for none; rows of one opcode stand together.
static INDEX: [u8; 256] = {
    assert!(TABLE.len() < u8::MAX as usize);
    let mut index = [u8::MAX; 256];
    let mut at = TABLE.len();
    while at > 0 {
        at -= 1;
        index[TABLE[at].opcode as usize] = at as u8;
    }
    index
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_state_relative_to_itself_is_not_repeated() {
        let out = |action| [0x5F, action, 0, 0, 0, 0, 0, 0, 24, 0];
        for action in [0, 2, 3, 4, 5, 6, 7] {
            assert!(!may_repeat(&out(action)), "service action {action}");
        }
        let once: [&[u8]; 3] = [
            &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
            &[0x04, 0, 0, 0, 0, 0],
            &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        for cdb in once {
            assert!(!may_repeat(cdb), "{cdb:x?}");
        }
    }

    #[test]
    fn what_only_comes_late_the_second_time_is_repeated() {
        let again: [&[u8]; 6] = [
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
            &[0x5F, 1, 1, 0, 0, 0, 0, 0, 24, 0],
            &[0xFF],
            &[],
        ];
        for cdb in again {
            assert!(may_repeat(cdb), "{cdb:x?}");
        }
    }
}
