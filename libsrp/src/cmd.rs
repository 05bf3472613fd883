//! CMD: a SCSI command (SRP clause 6).

use thiserror::Error;
use zerocopy::FromZeros;

use crate::descriptor::{BufferFields, DataBuffer, DataBuffers, DataError, DataRules};
use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, raw};
use crate::{Command, Lun, Tag, TaskAttribute};

/// A SCSI command and where its data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmd<'a> {
    /// The command's tag.
    pub tag: Tag,
    /// When the response is to raise a solicited event.
    pub notify: SolicitedNotification,
    /// The addressed logical unit.
    pub lun: Lun,
    /// The task attribute.
    pub attribute: TaskAttribute,
    /// The CDB with its additional bytes: 16 to 268 bytes, a multiple of 4.
    pub cdb: &'a [u8],
    /// Where the data lies.
    pub data: DataBuffers<'a>,
}

impl<'a> Cmd<'a> {
    /// Bytes in front of the additional CDB.
    pub const HEADER_LEN: usize = size_of::<RawCmd>();

    /// Reads the unit with every check that can be made on it alone.
    pub fn parse(iu: &'a [u8], rules: &DataRules) -> Result<Self, CmdError> {
        let (raw, _) = wire::read_unit::<RawCmd>(iu, Opcode::Cmd.code())?;
        let tag = Tag(raw.tag);
        // The byte counts four-byte words in its upper six bits, which is a byte count once the
        // reserved lower two are masked.
        let end = Self::HEADER_LEN + usize::from(raw.add_cdb_len & ADD_CDB_MASK);
        let cdb =
            iu.get(CDB_OFFSET..end).ok_or(WireError::Truncated { needed: end, got: iu.len() })?;
        let fields =
            BufferFields { formats: raw.formats, out_count: raw.out_count, in_count: raw.in_count };
        let data = DataBuffers::parse(iu, end, fields, rules).map_err(|fault| CmdError::Data {
            tag,
            lun: Lun(raw.lun),
            fault,
        })?;
        Ok(Self {
            tag,
            notify: SolicitedNotification::from_bits(raw.sol_not),
            lun: Lun(raw.lun),
            attribute: TaskAttribute::from_code(raw.attribute & ATTRIBUTE_MASK),
            cdb,
            data,
        })
    }

    /// What the command core is to do.
    pub fn command(&self) -> Command<'a> {
        Command {
            tag: self.tag,
            lun: self.lun,
            attribute: self.attribute,
            priority: 0,
            cdb: self.cdb,
            data_out: self.data.data_out.capacity(),
            data_in: self.data.data_in.capacity(),
        }
    }

    /// Writes the unit; gives the bytes written. Direct descriptors are sent with count 0, as
    /// Linux sends them.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, CmdEmitError> {
        let DataBuffers { data_out, data_in } = &self.data;
        let add_cdb_len = additional_cdb_len(self.cdb)?;
        let out_count = listed(data_out)?;
        let in_count = listed(data_in)?;
        if matches!(data_in, DataBuffer::Immediate(_)) {
            return Err(CmdEmitError::ImmediateDataIn);
        }

        let out_start = Self::HEADER_LEN + usize::from(add_cdb_len);
        let in_start = out_start + data_out.area_len();
        let end = in_start + data_in.area_len();
        let len = match data_out {
            DataBuffer::Immediate(immediate) => {
                let offset = usize::from(immediate.offset);
                if offset < end {
                    return Err(CmdEmitError::ImmediateOffset { offset: immediate.offset, end });
                }
                offset.saturating_add(immediate.data.len())
            }
            _ => end,
        };

        let out = wire::room_for(len, out)?;
        let mut raw = RawCmd {
            opcode: Opcode::Cmd.code(),
            sol_not: self.notify.bits(),
            formats: data_out.format() << 4 | data_in.format(),
            out_count,
            in_count,
            tag: self.tag.0,
            lun: self.lun.0,
            attribute: self.attribute.code() & ATTRIBUTE_MASK,
            add_cdb_len,
            ..RawCmd::new_zeroed()
        };
        let (cdb, additional) = self.cdb.split_at(raw.cdb.len());
        raw.cdb.copy_from_slice(cdb);
        wire::write(&raw, out)?;
        out[Self::HEADER_LEN..out_start].copy_from_slice(additional);
        data_out.emit_area(&mut out[out_start..in_start]);
        data_in.emit_area(&mut out[in_start..end]);
        if let DataBuffer::Immediate(immediate) = data_out {
            let start = usize::from(immediate.offset);
            out[end..start].fill(0);
            out[start..].copy_from_slice(immediate.data);
        }
        Ok(len)
    }
}

impl TaskAttribute {
    /// What a code on the wire stands for.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Simple,
            1 => Self::HeadOfQueue,
            2 => Self::Ordered,
            4 => Self::Aca,
            other => Self::Unknown(other),
        }
    }

    /// The code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Simple => 0,
            Self::HeadOfQueue => 1,
            Self::Ordered => 2,
            Self::Aca => 4,
            Self::Unknown(code) => code,
        }
    }
}

/// When a response is to be sent with a solicited event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SolicitedNotification {
    /// When the request succeeded (SCSOLNT).
    pub on_success: bool,
    /// When it did not (UCSOLNT).
    pub on_failure: bool,
}

impl SolicitedNotification {
    pub(crate) fn from_bits(bits: u8) -> Self {
        Self { on_success: bits & SCSOLNT != 0, on_failure: bits & UCSOLNT != 0 }
    }

    pub(crate) fn bits(self) -> u8 {
        let success = if self.on_success { SCSOLNT } else { 0 };
        let failure = if self.on_failure { UCSOLNT } else { 0 };
        success | failure
    }
}

/// A CMD that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CmdError {
    /// The header or the CDB cannot be read, so nobody can be answered: close the channel.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The descriptors cannot be used: answer the command.
    #[error("command {tag:?}: {fault}")]
    Data {
        /// The command's tag.
        tag: Tag,
        /// The logical unit it addresses.
        lun: Lun,
        /// What is wrong.
        fault: DataError,
    },
}

/// A CMD that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CmdEmitError {
    /// The buffer is too small.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// SRP carries 16 to 268 bytes of CDB in steps of 4.
    #[error("a CDB of {0} bytes does not fit a CMD")]
    CdbLength(usize),
    /// The count of descriptors is one byte.
    #[error("{0} descriptors do not fit the count of a CMD")]
    ListLength(usize),
    /// Immediate data goes out only.
    #[error("Data-In cannot be immediate")]
    ImmediateDataIn,
    /// Immediate data would overlap the descriptors.
    #[error("immediate data at {offset} overlaps descriptors up to {end}")]
    ImmediateOffset {
        /// Where the data is to start.
        offset: u16,
        /// Where the descriptors end.
        end: usize,
    },
}

fn additional_cdb_len(cdb: &[u8]) -> Result<u8, CmdEmitError> {
    cdb.len()
        .checked_sub(CDB_LEN)
        .and_then(|len| u8::try_from(len).ok())
        .filter(|len| len & !ADD_CDB_MASK == 0)
        .ok_or(CmdEmitError::CdbLength(cdb.len()))
}

fn listed(buffer: &DataBuffer<'_>) -> Result<u8, CmdEmitError> {
    let DataBuffer::Indirect(indirect) = buffer else { return Ok(0) };
    let len = indirect.list().len();
    u8::try_from(len).map_err(|_| CmdEmitError::ListLength(len))
}

const CDB_OFFSET: usize = 32;
const CDB_LEN: usize = 16;
const ADD_CDB_MASK: u8 = 0xFC;
const ATTRIBUTE_MASK: u8 = 0x07;
const SCSOLNT: u8 = 0x02;
const UCSOLNT: u8 = 0x04;

raw! {
    struct RawCmd = 48 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 3],
        formats: u8,
        out_count: u8,
        in_count: u8,
        tag: [u8; 8],
        _reserved16: [u8; 4],
        lun: [u8; 8],
        _reserved28: u8,
        attribute: u8,
        _reserved30: u8,
        add_cdb_len: u8,
        cdb: [u8; 16],
    }
}

#[cfg(test)]
mod tests;
