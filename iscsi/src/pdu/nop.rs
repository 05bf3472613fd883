//! NOP-Out and NOP-In (RFC 7143 11.18 and 11.19).

use libsrp::Lun;
use zerocopy::big_endian::U32;

use super::{
    Bhs, FINAL, IMMEDIATE, Numbers, Opcode, PduError, expect, first_byte, from_len24, len24, raw,
};

raw! { RawNopOut {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, cmd_sn: U32, exp_stat_sn: U32, reserved32: [u8; 16],
} }

raw! { RawNopIn {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved36: [u8; 12],
} }

/// A NOP-Out PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Immediate delivery.
    pub immediate: bool,
    /// Ping data in bytes.
    pub data_len: u32,
    /// Copied from the NOP-In it answers.
    pub lun: Lun,
    /// Initiator task tag, or the reserved tag when no answer is wanted.
    pub itt: u32,
    /// Target transfer tag of the NOP-In it answers, or the reserved tag.
    pub ttt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
}

impl NopOut {
    /// # Errors
    /// Another opcode.
    #[inline]
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::NopOut)?;
        let raw: &RawNopOut = zerocopy::transmute_ref!(header);
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            data_len: from_len24(raw.data_len),
            lun: Lun(raw.lun),
            itt: raw.itt.get(),
            ttt: raw.ttt.get(),
            cmd_sn: raw.cmd_sn.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawNopOut {
            opcode: first_byte(Opcode::NopOut, self.immediate),
            flags: FINAL,
            reserved: [0; 2],
            ahs_words: 0,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: self.itt.into(),
            ttt: self.ttt.into(),
            cmd_sn: self.cmd_sn.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            reserved32: [0; 16],
        });
    }
}

/// A NOP-In PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// Echoed ping data in bytes.
    pub data_len: u32,
    /// With a target transfer tag, what the answer copies.
    pub lun: Lun,
    /// Initiator task tag of the NOP-Out answered, or the reserved tag.
    pub itt: u32,
    /// Tag the answer must carry, or the reserved tag when none is wanted.
    pub ttt: u32,
    /// Sequence numbers; StatSN advances only for an answer to a NOP-Out.
    pub numbers: Numbers,
}

impl NopIn {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::NopIn)?;
        let raw: &RawNopIn = zerocopy::transmute_ref!(header);
        Ok(Self {
            data_len: from_len24(raw.data_len),
            lun: Lun(raw.lun),
            itt: raw.itt.get(),
            ttt: raw.ttt.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawNopIn {
            opcode: Opcode::NopIn.code(),
            flags: FINAL,
            reserved: [0; 2],
            ahs_words: 0,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: self.itt.into(),
            ttt: self.ttt.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            reserved36: [0; 12],
        });
    }
}
