//! AER_REQ and its answer AER_RSP: asynchronous event reporting (SRP clause 6).

use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, raw};
use crate::{Lun, Tag};

/// The target reports an event of a logical unit. Linux's initiator answers and forgets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AerReq<'a> {
    /// The target's tag, copied to the answer.
    pub tag: Tag,
    /// Added to the initiator's request limit.
    pub limit_delta: i32,
    /// Sent with a solicited event.
    pub solicited: bool,
    /// The logical unit that reports.
    pub lun: Lun,
    /// What it reports.
    pub sense: &'a [u8],
}

impl<'a> AerReq<'a> {
    /// Bytes in front of the sense data.
    pub const HEADER_LEN: usize = size_of::<RawAerReq>();

    /// Reads the unit; sense data must lie in it whole.
    pub fn parse(iu: &'a [u8]) -> Result<Self, WireError> {
        let (raw, rest) = wire::read_unit::<RawAerReq>(iu, Opcode::AerReq.code())?;
        let sense_len = raw.sense_len.get() as usize;
        let sense = rest.get(..sense_len).ok_or_else(|| WireError::Truncated {
            needed: Self::HEADER_LEN.saturating_add(sense_len),
            got: iu.len(),
        })?;
        Ok(Self {
            tag: Tag(raw.tag),
            limit_delta: raw.limit_delta.get().cast_signed(),
            solicited: raw.sol_not & 1 != 0,
            lun: Lun(raw.lun),
            sense,
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let len = Self::HEADER_LEN.saturating_add(self.sense.len());
        let room = out.len();
        let sense_len =
            u32::try_from(self.sense.len()).map_err(|_| NoRoom { needed: len, room })?;
        let raw = RawAerReq {
            opcode: Opcode::AerReq.code(),
            sol_not: self.solicited.into(),
            limit_delta: self.limit_delta.cast_unsigned().into(),
            tag: self.tag.0,
            lun: self.lun.0,
            sense_len: sense_len.into(),
            ..RawAerReq::new_zeroed()
        };
        let out = wire::room_for(len, out)?;
        let header = wire::write(&raw, out)?;
        out[header..].copy_from_slice(self.sense);
        Ok(len)
    }
}

/// The initiator has taken an AER_REQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AerRsp {
    /// The tag of the AER_REQ.
    pub tag: Tag,
}

impl AerRsp {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawAerRsp>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawAerRsp>(iu, Opcode::AerRsp.code())?;
        Ok(Self { tag: Tag(raw.tag) })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let opcode = Opcode::AerRsp.code();
        wire::write(&RawAerRsp { opcode, tag: self.tag.0, ..RawAerRsp::new_zeroed() }, out)
    }
}

raw! {
    struct RawAerReq = 36 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 2],
        limit_delta: U32,
        tag: [u8; 8],
        _reserved16: [u8; 4],
        lun: [u8; 8],
        sense_len: U32,
        _reserved32: [u8; 4],
    }
}

raw! {
    struct RawAerRsp = 16 {
        opcode: u8,
        _reserved1: [u8; 7],
        tag: [u8; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    const TAG: Tag = Tag([1, 2, 3, 4, 5, 6, 7, 8]);

    #[rustfmt::skip]
    const AER_REQ: [u8; 40] = [
        0x82, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4,
        0, 0, 0, 0, 0x70, 0, 6, 0,
    ];

    #[test]
    fn aer_req_with_sense_round_trips() {
        let unit = AerReq {
            tag: TAG,
            limit_delta: 1,
            solicited: false,
            lun: Lun([0, 9, 0, 0, 0, 0, 0, 0]),
            sense: &[0x70, 0, 6, 0],
        };
        round_trip!(&AER_REQ, unit, AerReq::parse, AerReq::emit);
    }

    #[test]
    fn aer_req_with_huge_sense_length_is_truncated() {
        let mut bytes = AER_REQ;
        bytes[28..32].copy_from_slice(&[0xFF; 4]);
        let needed = 36 + 0xFFFF_FFFF;
        assert_eq!(AerReq::parse(&bytes), Err(WireError::Truncated { needed, got: 40 }));
    }

    #[test]
    fn aer_rsp_round_trips() {
        let bytes = [0x42, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        round_trip!(&bytes, AerRsp { tag: TAG }, AerRsp::parse, AerRsp::emit);
    }
}
