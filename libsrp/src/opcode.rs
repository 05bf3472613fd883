//! Opcodes of information units (SRP clause 6).

use crate::wire::codes;

codes! {
    /// The first byte of an information unit. Bit 7: originates at the target; bit 6: a response.
    pub enum Opcode(u8) {
        /// LOGIN_REQ.
        LoginReq = 0x00,
        /// TSK_MGMT.
        TskMgmt = 0x01,
        /// CMD.
        Cmd = 0x02,
        /// I_LOGOUT.
        ILogout = 0x03,
        /// CRED_RSP.
        CredRsp = 0x41,
        /// AER_RSP.
        AerRsp = 0x42,
        /// T_LOGOUT.
        TLogout = 0x80,
        /// CRED_REQ.
        CredReq = 0x81,
        /// AER_REQ.
        AerReq = 0x82,
        /// LOGIN_RSP.
        LoginRsp = 0xC0,
        /// RSP.
        Rsp = 0xC1,
        /// LOGIN_REJ.
        LoginRej = 0xC2,
    }
}

impl Opcode {
    /// Whether a target sends this unit to an initiator. Unknown opcodes are sent by nobody, so
    /// this is false for them.
    pub const fn is_from_target(self) -> bool {
        !matches!(self, Self::Unknown(_)) && (self.code() & 0x80 != 0)
    }

    /// Whether an initiator spends one of its request limit on this unit.
    pub const fn takes_credit(self) -> bool {
        matches!(self, Self::Cmd | Self::TskMgmt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_a_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(Opcode::from_code(code).code(), code);
        }
    }

    #[test]
    fn six_opcodes_come_from_each_side() {
        let from_initiator = [0x00, 0x01, 0x02, 0x03, 0x41, 0x42];
        let from_target = [0x80, 0x81, 0x82, 0xC0, 0xC1, 0xC2];
        for code in 0..=u8::MAX {
            let opcode = Opcode::from_code(code);
            let known = from_initiator.contains(&code) || from_target.contains(&code);
            assert_eq!(matches!(opcode, Opcode::Unknown(_)), !known, "{code:#x}");
            assert_eq!(opcode.is_from_target(), from_target.contains(&code), "{code:#x}");
        }
    }

    #[test]
    fn only_commands_and_task_management_take_credit() {
        let taking = (0..=u8::MAX).filter(|&code| Opcode::from_code(code).takes_credit());
        assert!(taking.eq([0x01, 0x02]));
    }
}
