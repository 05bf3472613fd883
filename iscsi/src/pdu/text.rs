//! Text Request and Response (RFC 7143 11.10 and 11.11).

use libsrp::Lun;
use zerocopy::big_endian::U32;

use super::{
    Bhs, CONTINUE, FINAL, IMMEDIATE, Numbers, Opcode, PduError, bit, expect, first_byte,
    from_len24, len24, raw,
};

raw! { RawTextRequest {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, cmd_sn: U32, exp_stat_sn: U32, reserved32: [u8; 16],
} }

raw! { RawTextResponse {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, ttt: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved36: [u8; 12],
} }

/// A Text Request PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// Immediate delivery.
    pub immediate: bool,
    /// F: the initiator has nothing more to say.
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// Data segment in bytes.
    pub data_len: u32,
    /// Copied with the target transfer tag.
    pub lun: Lun,
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag of the response this continues, or the reserved tag at the start.
    pub ttt: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
}

impl TextRequest {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::TextRequest)?;
        let raw: &RawTextRequest = zerocopy::transmute_ref!(header);
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            is_final: raw.flags & FINAL != 0,
            more: raw.flags & CONTINUE != 0,
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
        *header = zerocopy::transmute!(RawTextRequest {
            opcode: first_byte(Opcode::TextRequest, self.immediate),
            flags: bit(self.is_final, FINAL) | bit(self.more, CONTINUE),
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

/// A Text Response PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the exchange is over.
    pub is_final: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// Data segment in bytes.
    pub data_len: u32,
    /// To be copied with the target transfer tag.
    pub lun: Lun,
    /// Initiator task tag of the request.
    pub itt: u32,
    /// Tag for the next request of the exchange; the reserved tag exactly when `is_final`.
    pub ttt: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl TextResponse {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::TextResponse)?;
        let raw: &RawTextResponse = zerocopy::transmute_ref!(header);
        Ok(Self {
            is_final: raw.flags & FINAL != 0,
            more: raw.flags & CONTINUE != 0,
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
        *header = zerocopy::transmute!(RawTextResponse {
            opcode: Opcode::TextResponse.code(),
            flags: bit(self.is_final, FINAL) | bit(self.more, CONTINUE),
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
