//! SCSI Command and SCSI Response (RFC 7143 11.3 and 11.4, RFC 7144 for priority and qualifier).

use libsrp::{Command, Lun, Residual, Status, Tag, TaskAttribute};
use zerocopy::big_endian::{U16, U32};

use super::{
    Bhs, FINAL, IMMEDIATE, Numbers, Opcode, PduError, bit, codes, expect, first_byte, from_len24,
    len24, raw,
};

raw! { RawScsiCommand {
    opcode: u8, flags: u8, priority: u8, reserved: u8, ahs_words: u8, data_len: [u8; 3],
    lun: [u8; 8], itt: U32, edtl: U32, cmd_sn: U32, exp_stat_sn: U32, cdb: [u8; 16],
} }

raw! { RawScsiResponse {
    opcode: u8, flags: u8, response: u8, status: u8, ahs_words: u8, data_len: [u8; 3],
    qualifier: U16, reserved: [u8; 6], itt: U32, snack_tag: U32, stat_sn: U32, exp_cmd_sn: U32,
    max_cmd_sn: U32, exp_data_sn: U32, bidi_residual: U32, residual: U32,
} }

/// A SCSI Command PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Immediate delivery: the CmdSN is not counted.
    pub immediate: bool,
    /// F: no unsolicited Data-Out PDUs follow.
    pub is_final: bool,
    /// R: data to the initiator is expected.
    pub read: bool,
    /// W: data from the initiator is expected.
    pub write: bool,
    /// Task attribute; an untagged task (code 0) is a SIMPLE one.
    pub attribute: TaskAttribute,
    /// Command priority 0 to 15 (RFC 7144; reserved before).
    pub priority: u8,
    /// Length of the additional header segments in four-byte words.
    pub ahs_words: u8,
    /// Immediate data in bytes.
    pub data_len: u32,
    /// The logical unit.
    pub lun: Lun,
    /// Initiator task tag.
    pub itt: u32,
    /// Expected data transfer length in bytes: of the write when both directions are set.
    pub edtl: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
    /// The first sixteen bytes of the CDB.
    pub cdb: [u8; 16],
}

impl ScsiCommand {
    /// # Errors
    /// Another opcode, or neither F nor W.
    #[inline]
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::ScsiCommand)?;
        let raw: &RawScsiCommand = zerocopy::transmute_ref!(header);
        let itt = raw.itt.get();
        if raw.flags & (FINAL | WRITE) == 0 {
            return Err(PduError::UnsolicitedDataWithoutWrite { itt });
        }
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            is_final: raw.flags & FINAL != 0,
            read: raw.flags & READ != 0,
            write: raw.flags & WRITE != 0,
            attribute: match raw.flags & 0x07 {
                0 | 1 => TaskAttribute::Simple,
                2 => TaskAttribute::Ordered,
                3 => TaskAttribute::HeadOfQueue,
                4 => TaskAttribute::Aca,
                other => TaskAttribute::Unknown(other),
            },
            priority: raw.priority >> 4,
            ahs_words: raw.ahs_words,
            data_len: from_len24(raw.data_len),
            lun: Lun(raw.lun),
            itt,
            edtl: raw.edtl.get(),
            cmd_sn: raw.cmd_sn.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
            cdb: raw.cdb,
        })
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, header: &mut Bhs) {
        let attribute = match self.attribute {
            TaskAttribute::Simple => 1,
            TaskAttribute::Ordered => 2,
            TaskAttribute::HeadOfQueue => 3,
            TaskAttribute::Aca => 4,
            TaskAttribute::Unknown(code) => code & 0x07,
        };
        *header = zerocopy::transmute!(RawScsiCommand {
            opcode: first_byte(Opcode::ScsiCommand, self.immediate),
            flags: bit(self.is_final, FINAL)
                | bit(self.read, READ)
                | bit(self.write, WRITE)
                | attribute,
            priority: self.priority << 4,
            reserved: 0,
            ahs_words: self.ahs_words,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: self.itt.into(),
            edtl: self.edtl.into(),
            cmd_sn: self.cmd_sn.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            cdb: self.cdb,
        });
    }

    /// Bytes the initiator is prepared to send.
    #[inline]
    pub const fn data_out(&self) -> u32 {
        if self.write { self.edtl } else { 0 }
    }

    /// Bytes the initiator is prepared to receive, where `bidi_read_len` is what an additional
    /// header segment gave for a command that moves data both ways.
    #[inline]
    pub const fn data_in(&self, bidi_read_len: Option<u32>) -> u32 {
        match (self.read, self.write, bidi_read_len) {
            (true, false, _) => self.edtl,
            (true, true, Some(len)) => len,
            _ => 0,
        }
    }

    /// The command for the core, with a CDB of more than sixteen bytes where there is one.
    #[inline]
    pub fn command<'a>(
        &'a self,
        long_cdb: Option<&'a [u8]>,
        bidi_read_len: Option<u32>,
    ) -> Command<'a> {
        Command {
            tag: Tag::from_u64(u64::from(self.itt)),
            lun: self.lun,
            attribute: self.attribute,
            priority: self.priority,
            cdb: long_cdb.unwrap_or(&self.cdb),
            data_out: self.data_out(),
            data_in: self.data_in(bidi_read_len),
        }
    }
}

codes! {
    /// The response field of a SCSI Response: whether there is a SCSI status (RFC 7143 11.4.3).
    pub enum ServiceResponse {
        /// The status field is valid.
        Completed = 0x00,
        /// The target failed before there was a status.
        TargetFailure = 0x01,
    }
}

/// A SCSI Response PDU. Sense data goes into the data segment behind a 16-bit length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// Whether `status` means anything.
    pub response: ServiceResponse,
    /// SCSI status.
    pub status: Status,
    /// Status qualifier (RFC 7144; zero before iSCSIProtocolLevel 2).
    pub qualifier: u16,
    /// Data segment in bytes, with the sense length field.
    pub data_len: u32,
    /// Initiator task tag.
    pub itt: u32,
    /// SNACK tag, zero unless an R-Data SNACK gave one.
    pub snack_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// How many R2T and Data-In PDUs the command had.
    pub exp_data_sn: u32,
    /// Residual of a bidirectional command's read.
    pub bidi_residual: Residual,
    /// Residual of the command's write, or of its read when it has no write.
    pub residual: Residual,
}

impl ScsiResponse {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::ScsiResponse)?;
        let raw: &RawScsiResponse = zerocopy::transmute_ref!(header);
        Ok(Self {
            response: ServiceResponse::from_code(raw.response),
            status: Status(raw.status),
            qualifier: raw.qualifier.get(),
            data_len: from_len24(raw.data_len),
            itt: raw.itt.get(),
            snack_tag: raw.snack_tag.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            exp_data_sn: raw.exp_data_sn.get(),
            bidi_residual: residual(
                raw.flags,
                BIDI_OVERFLOW,
                BIDI_UNDERFLOW,
                raw.bidi_residual.get(),
            ),
            residual: residual(raw.flags, OVERFLOW, UNDERFLOW, raw.residual.get()),
        })
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, header: &mut Bhs) {
        let (bidi_flags, bidi_residual) =
            residual_field(self.bidi_residual, BIDI_OVERFLOW, BIDI_UNDERFLOW);
        let (flags, residual) = residual_field(self.residual, OVERFLOW, UNDERFLOW);
        *header = zerocopy::transmute!(RawScsiResponse {
            opcode: Opcode::ScsiResponse.code(),
            flags: FINAL | bidi_flags | flags,
            response: self.response.code(),
            status: self.status.0,
            ahs_words: 0,
            data_len: len24(self.data_len),
            qualifier: self.qualifier.into(),
            reserved: [0; 6],
            itt: self.itt.into(),
            snack_tag: self.snack_tag.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            exp_data_sn: self.exp_data_sn.into(),
            bidi_residual: bidi_residual.into(),
            residual: residual.into(),
        });
    }
}

pub(super) const fn residual(flags: u8, over: u8, under: u8, count: u32) -> Residual {
    if flags & over != 0 {
        Residual::Over(count)
    } else if flags & under != 0 {
        Residual::Under(count)
    } else {
        Residual::None
    }
}

pub(super) const fn residual_field(residual: Residual, over: u8, under: u8) -> (u8, u32) {
    match residual {
        Residual::None => (0, 0),
        Residual::Over(count) => (over, count),
        Residual::Under(count) => (under, count),
    }
}

pub(super) const OVERFLOW: u8 = 0x04;
pub(super) const UNDERFLOW: u8 = 0x02;
const BIDI_OVERFLOW: u8 = 0x10;
const BIDI_UNDERFLOW: u8 = 0x08;
const READ: u8 = 0x40;
const WRITE: u8 = 0x20;
