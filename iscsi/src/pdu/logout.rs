//! Logout Request and Response (RFC 7143 11.14 and 11.15).

use zerocopy::big_endian::{U16, U32};

use super::{Bhs, FINAL, IMMEDIATE, Numbers, Opcode, PduError, codes, expect, first_byte, raw};

raw! { RawLogoutRequest {
    opcode: u8, reason: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3],
    reserved8: [u8; 8], itt: U32, cid: U16, reserved22: U16, cmd_sn: U32, exp_stat_sn: U32,
    reserved32: [u8; 16],
} }

raw! { RawLogoutResponse {
    opcode: u8, flags: u8, response: u8, reserved: u8, ahs_words: u8, data_len: [u8; 3],
    reserved8: [u8; 8], itt: U32, reserved20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32,
    reserved36: U32, time2wait: U16, time2retain: U16, reserved44: U32,
} }

codes! {
    /// Why an initiator logs out (RFC 7143 11.14.1).
    pub enum LogoutReason {
        /// Close the session.
        CloseSession = 0,
        /// Close the connection named by the CID.
        CloseConnection = 1,
        /// Remove the connection named by the CID for recovery.
        RemoveForRecovery = 2,
    }
}

/// A Logout Request PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Immediate delivery.
    pub immediate: bool,
    /// What to close.
    pub reason: LogoutReason,
    /// Initiator task tag.
    pub itt: u32,
    /// Connection identifier; without meaning when the session is closed.
    pub cid: u16,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
}

impl LogoutRequest {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::LogoutRequest)?;
        let raw: &RawLogoutRequest = zerocopy::transmute_ref!(header);
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            reason: LogoutReason::from_code(raw.reason & 0x7F),
            itt: raw.itt.get(),
            cid: raw.cid.get(),
            cmd_sn: raw.cmd_sn.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawLogoutRequest {
            opcode: first_byte(Opcode::LogoutRequest, self.immediate),
            reason: FINAL | (self.reason.code() & 0x7F),
            reserved: [0; 2],
            ahs_words: 0,
            data_len: [0; 3],
            reserved8: [0; 8],
            itt: self.itt.into(),
            cid: self.cid.into(),
            reserved22: 0.into(),
            cmd_sn: self.cmd_sn.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            reserved32: [0; 16],
        });
    }
}

codes! {
    /// How a logout ended (RFC 7143 11.15.1).
    pub enum LogoutOutcome {
        /// Closed.
        Closed = 0,
        /// No connection has the CID.
        CidNotFound = 1,
        /// Connection recovery is not supported.
        RecoveryNotSupported = 2,
        /// Cleanup failed.
        CleanupFailed = 3,
    }
}

/// A Logout Response PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// The outcome.
    pub response: LogoutOutcome,
    /// Initiator task tag of the request.
    pub itt: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Seconds to wait before reconnecting.
    pub time2wait: u16,
    /// Seconds after that in which tasks are still there.
    pub time2retain: u16,
}

impl LogoutResponse {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::LogoutResponse)?;
        let raw: &RawLogoutResponse = zerocopy::transmute_ref!(header);
        Ok(Self {
            response: LogoutOutcome::from_code(raw.response),
            itt: raw.itt.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            time2wait: raw.time2wait.get(),
            time2retain: raw.time2retain.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawLogoutResponse {
            opcode: Opcode::LogoutResponse.code(),
            flags: FINAL,
            response: self.response.code(),
            reserved: 0,
            ahs_words: 0,
            data_len: [0; 3],
            reserved8: [0; 8],
            itt: self.itt.into(),
            reserved20: 0.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            reserved36: 0.into(),
            time2wait: self.time2wait.into(),
            time2retain: self.time2retain.into(),
            reserved44: 0.into(),
        });
    }
}
