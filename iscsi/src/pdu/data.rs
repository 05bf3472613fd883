//! Data-Out, Data-In, R2T and SNACK (RFC 7143 11.7, 11.8 and 11.16).

use libsrp::{Lun, Residual, Status};
use zerocopy::big_endian::U32;

use super::command::{OVERFLOW, UNDERFLOW, residual, residual_field};
use super::{
    Bhs, FINAL, Numbers, Opcode, PduError, RESERVED_TAG, bit, codes, expect, first_byte,
    from_len24, len24, raw,
};

raw! { RawDataOut {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, reserved24: U32, exp_stat_sn: U32, reserved32: U32, data_sn: U32,
    offset: U32, reserved44: U32,
} }

raw! { RawDataIn {
    opcode: u8, flags: u8, reserved: u8, status: u8, ahs_words: u8, data_len: [u8; 3],
    lun: [u8; 8], itt: U32, ttt: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32,
    data_sn: U32, offset: U32, residual: U32,
} }

raw! { RawR2t {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, r2t_sn: U32, offset: U32,
    desired_len: U32,
} }

raw! { RawSnack {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, tag: U32, reserved24: U32, exp_stat_sn: U32, reserved32: [u8; 8], beg_run: U32,
    run_length: U32,
} }

/// A SCSI Data-Out PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: last PDU of the burst.
    pub is_final: bool,
    /// Data segment in bytes.
    pub data_len: u32,
    /// The logical unit, when there is a target transfer tag.
    pub lun: Lun,
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag of the R2T, or [`RESERVED_TAG`] for unsolicited data.
    pub ttt: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
    /// Number of this PDU in the burst, from 0.
    pub data_sn: u32,
    /// Offset of the data in the command's buffer, in bytes.
    pub offset: u32,
}

impl DataOut {
    /// # Errors
    /// Another opcode.
    #[inline]
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::DataOut)?;
        let raw: &RawDataOut = zerocopy::transmute_ref!(header);
        Ok(Self {
            is_final: raw.flags & FINAL != 0,
            data_len: from_len24(raw.data_len),
            lun: Lun(raw.lun),
            itt: raw.itt.get(),
            ttt: raw.ttt.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
            data_sn: raw.data_sn.get(),
            offset: raw.offset.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawDataOut {
            opcode: first_byte(Opcode::DataOut, false),
            flags: bit(self.is_final, FINAL),
            reserved: [0; 2],
            ahs_words: 0,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: self.itt.into(),
            ttt: self.ttt.into(),
            reserved24: 0.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            reserved32: 0.into(),
            data_sn: self.data_sn.into(),
            offset: self.offset.into(),
            reserved44: 0.into(),
        });
    }
}

/// A SCSI Data-In PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// F: last PDU of the sequence.
    pub is_final: bool,
    /// A: the target asks for a DataACK SNACK (ErrorRecoveryLevel above 0).
    pub acknowledge: bool,
    /// The command's status, when this PDU ends it (S); needs `is_final`. Without it StatSN and
    /// residual are not sent.
    pub status: Option<Status>,
    /// Residual of the command.
    pub residual: Residual,
    /// Data segment in bytes.
    pub data_len: u32,
    /// The logical unit, with `acknowledge`.
    pub lun: Lun,
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag, [`RESERVED_TAG`] without `acknowledge`.
    pub ttt: u32,
    /// Sequence numbers; StatSN only with `status`.
    pub numbers: Numbers,
    /// Number of this PDU in the command.
    pub data_sn: u32,
    /// Offset of the data in the command's buffer, in bytes.
    pub offset: u32,
}

impl DataIn {
    /// # Errors
    /// Another opcode, or S without F.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::DataIn)?;
        let raw: &RawDataIn = zerocopy::transmute_ref!(header);
        let itt = raw.itt.get();
        let has_status = raw.flags & STATUS != 0;
        if has_status && raw.flags & FINAL == 0 {
            return Err(PduError::StatusWithoutFinal { itt });
        }
        Ok(Self {
            is_final: raw.flags & FINAL != 0,
            acknowledge: raw.flags & ACKNOWLEDGE != 0,
            status: has_status.then_some(Status(raw.status)),
            residual: if has_status {
                residual(raw.flags, OVERFLOW, UNDERFLOW, raw.residual.get())
            } else {
                Residual::None
            },
            data_len: from_len24(raw.data_len),
            lun: Lun(raw.lun),
            itt,
            ttt: raw.ttt.get(),
            numbers: Numbers {
                stat_sn: if has_status { raw.stat_sn.get() } else { 0 },
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            data_sn: raw.data_sn.get(),
            offset: raw.offset.get(),
        })
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, header: &mut Bhs) {
        let (flags, status, residual, stat_sn) = match self.status {
            None => (0, 0, 0, 0),
            Some(status) => {
                let (flags, residual) = residual_field(self.residual, OVERFLOW, UNDERFLOW);
                (STATUS | FINAL | flags, status.0, residual, self.numbers.stat_sn)
            }
        };
        *header = zerocopy::transmute!(RawDataIn {
            opcode: Opcode::DataIn.code(),
            flags: bit(self.is_final, FINAL) | bit(self.acknowledge, ACKNOWLEDGE) | flags,
            reserved: 0,
            status,
            ahs_words: 0,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: self.itt.into(),
            ttt: self.ttt.into(),
            stat_sn: stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            data_sn: self.data_sn.into(),
            offset: self.offset.into(),
            residual: residual.into(),
        });
    }
}

/// A Ready To Transfer PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// The logical unit.
    pub lun: Lun,
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag, never [`RESERVED_TAG`].
    pub ttt: u32,
    /// Sequence numbers; StatSN is the next one and is not advanced.
    pub numbers: Numbers,
    /// Number of this R2T in the command, from 0.
    pub r2t_sn: u32,
    /// Offset of the wanted data in the command's buffer, in bytes.
    pub offset: u32,
    /// Wanted bytes: 1 to MaxBurstLength.
    pub desired_len: u32,
}

impl R2t {
    /// # Errors
    /// Another opcode, or a desired length of 0.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::R2t)?;
        let raw: &RawR2t = zerocopy::transmute_ref!(header);
        let itt = raw.itt.get();
        if raw.desired_len.get() == 0 {
            return Err(PduError::EmptyR2t { itt });
        }
        Ok(Self {
            lun: Lun(raw.lun),
            itt,
            ttt: raw.ttt.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            r2t_sn: raw.r2t_sn.get(),
            offset: raw.offset.get(),
            desired_len: raw.desired_len.get(),
        })
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawR2t {
            opcode: Opcode::R2t.code(),
            flags: FINAL,
            reserved: [0; 2],
            ahs_words: 0,
            data_len: [0; 3],
            lun: self.lun.0,
            itt: self.itt.into(),
            ttt: self.ttt.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            r2t_sn: self.r2t_sn.into(),
            offset: self.offset.into(),
            desired_len: self.desired_len.into(),
        });
    }
}

codes! {
    /// What a SNACK asks for (RFC 7143 11.16.1).
    pub enum SnackKind {
        /// Data-In or R2T PDUs again.
        DataOrR2t = 0,
        /// Status PDUs again.
        Status = 1,
        /// Acknowledges Data-In PDUs.
        DataAck = 2,
        /// Data-In PDUs again, possibly cut differently.
        ResegmentedData = 3,
    }
}

/// A SNACK Request PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snack {
    /// What is asked.
    pub kind: SnackKind,
    /// The logical unit, with DataACK.
    pub lun: Lun,
    /// Initiator task tag, [`RESERVED_TAG`] for Status and DataACK.
    pub itt: u32,
    /// Target transfer tag (DataACK), SNACK tag (R-Data), else [`RESERVED_TAG`].
    pub tag: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
    /// First number asked for or acknowledged.
    pub beg_run: u32,
    /// How many; 0 is to the end.
    pub run_length: u32,
}

impl Snack {
    /// A Status SNACK for everything not acknowledged yet.
    pub const fn all_status(exp_stat_sn: u32) -> Self {
        Self {
            kind: SnackKind::Status,
            lun: Lun([0; 8]),
            itt: RESERVED_TAG,
            tag: RESERVED_TAG,
            exp_stat_sn,
            beg_run: 0,
            run_length: 0,
        }
    }

    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::Snack)?;
        let raw: &RawSnack = zerocopy::transmute_ref!(header);
        Ok(Self {
            kind: SnackKind::from_code(raw.flags & 0x0F),
            lun: Lun(raw.lun),
            itt: raw.itt.get(),
            tag: raw.tag.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
            beg_run: raw.beg_run.get(),
            run_length: raw.run_length.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawSnack {
            opcode: Opcode::Snack.code(),
            flags: FINAL | (self.kind.code() & 0x0F),
            reserved: [0; 2],
            ahs_words: 0,
            data_len: [0; 3],
            lun: self.lun.0,
            itt: self.itt.into(),
            tag: self.tag.into(),
            reserved24: 0.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            reserved32: [0; 8],
            beg_run: self.beg_run.into(),
            run_length: self.run_length.into(),
        });
    }
}

const ACKNOWLEDGE: u8 = 0x40;
const STATUS: u8 = 0x01;
