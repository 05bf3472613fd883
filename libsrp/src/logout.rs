//! I_LOGOUT and T_LOGOUT: either side ends the channel (SRP clause 6).

use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::Tag;
use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, codes, raw};

/// The initiator ends the channel. Nothing answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ILogout {
    /// The unit's tag.
    pub tag: Tag,
}

impl ILogout {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawILogout>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawILogout>(iu, Opcode::ILogout.code())?;
        Ok(Self { tag: Tag(raw.tag) })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let opcode = Opcode::ILogout.code();
        wire::write(&RawILogout { opcode, tag: self.tag.0, ..RawILogout::new_zeroed() }, out)
    }
}

/// The target ends the channel. Nothing answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TLogout {
    /// The unit's tag.
    pub tag: Tag,
    /// Why.
    pub reason: LogoutReason,
    /// Sent with a solicited event.
    pub solicited: bool,
}

impl TLogout {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawTLogout>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawTLogout>(iu, Opcode::TLogout.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            reason: LogoutReason::from_code(raw.reason.get()),
            solicited: raw.sol_not & 1 != 0,
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawTLogout {
            opcode: Opcode::TLogout.code(),
            sol_not: self.solicited.into(),
            reason: self.reason.code().into(),
            tag: self.tag.0,
            ..RawTLogout::new_zeroed()
        };
        wire::write(&raw, out)
    }
}

codes! {
    /// Why a target ends a channel. Sources disagree on codes from 5 up; they stay unknown.
    pub enum LogoutReason(u32) {
        /// None given.
        None = 0,
        /// The channel was idle and its resources are wanted.
        Inactive = 1,
        /// The initiator sent a unit of an invalid type.
        InvalidIu = 2,
        /// The initiator sent a response to no outstanding request.
        UnexpectedResponse = 3,
        /// A later login asked for a single channel.
        MultiChannel = 4,
    }
}

raw! {
    struct RawILogout = 16 {
        opcode: u8,
        _reserved1: [u8; 7],
        tag: [u8; 8],
    }
}

raw! {
    struct RawTLogout = 16 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 2],
        reason: U32,
        tag: [u8; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    const I_LOGOUT: [u8; 16] = [3, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const T_LOGOUT: [u8; 16] = [0x80, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7, 8];
    const TAG: Tag = Tag([1, 2, 3, 4, 5, 6, 7, 8]);

    #[test]
    fn i_logout_round_trips() {
        round_trip!(&I_LOGOUT, ILogout { tag: TAG }, ILogout::parse, ILogout::emit);
    }

    #[test]
    fn t_logout_round_trips() {
        let unit = TLogout { tag: TAG, reason: LogoutReason::MultiChannel, solicited: true };
        round_trip!(&T_LOGOUT, unit, TLogout::parse, TLogout::emit);
    }

    #[test]
    fn reason_eight_stays_a_number() {
        let mut bytes = T_LOGOUT;
        bytes[7] = 8;
        let unit = TLogout { tag: TAG, reason: LogoutReason::Unknown(8), solicited: true };
        round_trip!(&bytes, unit, TLogout::parse, TLogout::emit);
    }

    #[test]
    fn i_logout_is_not_read_as_t_logout() {
        let error = WireError::Opcode { expected: 0x80, found: 0x03 };
        assert_eq!(TLogout::parse(&I_LOGOUT), Err(error));
    }
}
