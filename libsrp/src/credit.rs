//! CRED_REQ and its answer CRED_RSP: credit without a response to carry it (SRP clause 6).

use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::Tag;
use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, raw};

/// The target changes the initiator's request limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredReq {
    /// The target's tag, copied to the answer.
    pub tag: Tag,
    /// Added to the initiator's request limit.
    pub limit_delta: i32,
    /// Sent with a solicited event.
    pub solicited: bool,
}

impl CredReq {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawCredReq>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawCredReq>(iu, Opcode::CredReq.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            limit_delta: raw.limit_delta.get().cast_signed(),
            solicited: raw.sol_not & 1 != 0,
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawCredReq {
            opcode: Opcode::CredReq.code(),
            sol_not: self.solicited.into(),
            limit_delta: self.limit_delta.cast_unsigned().into(),
            tag: self.tag.0,
            ..RawCredReq::new_zeroed()
        };
        wire::write(&raw, out)
    }
}

/// The initiator has applied a CRED_REQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredRsp {
    /// The tag of the CRED_REQ.
    pub tag: Tag,
}

impl CredRsp {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawCredRsp>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawCredRsp>(iu, Opcode::CredRsp.code())?;
        Ok(Self { tag: Tag(raw.tag) })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let opcode = Opcode::CredRsp.code();
        wire::write(&RawCredRsp { opcode, tag: self.tag.0, ..RawCredRsp::new_zeroed() }, out)
    }
}

raw! {
    struct RawCredReq = 16 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 2],
        limit_delta: U32,
        tag: [u8; 8],
    }
}

raw! {
    struct RawCredRsp = 16 {
        opcode: u8,
        _reserved1: [u8; 7],
        tag: [u8; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    const TAG: Tag = Tag([0xF1, 2, 3, 4, 5, 6, 7, 8]);

    #[test]
    fn cred_req_with_negative_delta_round_trips() {
        let bytes = [0x81, 1, 0, 0, 0xFF, 0xFF, 0xFF, 0xFE, 0xF1, 2, 3, 4, 5, 6, 7, 8];
        let unit = CredReq { tag: TAG, limit_delta: -2, solicited: true };
        round_trip!(&bytes, unit, CredReq::parse, CredReq::emit);
    }

    #[test]
    fn cred_rsp_round_trips() {
        let bytes = [0x41, 0, 0, 0, 0, 0, 0, 0, 0xF1, 2, 3, 4, 5, 6, 7, 8];
        round_trip!(&bytes, CredRsp { tag: TAG }, CredRsp::parse, CredRsp::emit);
    }
}
