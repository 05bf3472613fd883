//! Asynchronous Message and Reject (RFC 7143 11.9 and 11.17).

use libsrp::Lun;
use zerocopy::big_endian::{U16, U32};

use super::{
    Bhs, FINAL, Numbers, Opcode, PduError, RESERVED_TAG, codes, expect, from_len24, len24, raw,
};

raw! { RawAsyncMessage {
    opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, reserved20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, event: u8,
    vendor_code: u8, parameter1: U16, parameter2: U16, parameter3: U16, reserved44: U32,
} }

raw! { RawReject {
    opcode: u8, flags: u8, reason: u8, reserved: u8, ahs_words: u8, data_len: [u8; 3],
    reserved8: [u8; 8], itt: U32, reserved20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32,
    data_sn: U32, reserved40: [u8; 8],
} }

codes! {
    /// What a target announces (RFC 7143 11.9.1). Codes 248 and above are the vendor's.
    pub enum AsyncEvent {
        /// A SCSI asynchronous event, with sense data.
        ScsiEvent = 0,
        /// Log out of this connection within Parameter3 seconds.
        LogoutRequest = 1,
        /// The target drops connection Parameter1; reconnect after Parameter2, within Parameter3.
        ConnectionDrop = 2,
        /// The target drops every connection of the session.
        SessionDrop = 3,
        /// Negotiate parameters within Parameter3 seconds.
        NegotiationRequest = 4,
        /// Tasks of the logical unit were terminated (FastAbort).
        TaskTermination = 5,
    }
}

/// An Asynchronous Message PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    /// What happened.
    pub event: AsyncEvent,
    /// With a vendor event.
    pub vendor_code: u8,
    /// The logical unit, with a SCSI event or task termination.
    pub lun: Lun,
    /// Data segment in bytes: 16-bit sense length, sense, event data.
    pub data_len: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Connection identifier, with [`AsyncEvent::ConnectionDrop`].
    pub parameter1: u16,
    /// Time2Wait in seconds, with a drop.
    pub parameter2: u16,
    /// Time2Retain in seconds with a drop; the time limit in seconds with a request.
    pub parameter3: u16,
}

impl AsyncMessage {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::AsyncMessage)?;
        let raw: &RawAsyncMessage = zerocopy::transmute_ref!(header);
        Ok(Self {
            event: AsyncEvent::from_code(raw.event),
            vendor_code: raw.vendor_code,
            lun: Lun(raw.lun),
            data_len: from_len24(raw.data_len),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            parameter1: raw.parameter1.get(),
            parameter2: raw.parameter2.get(),
            parameter3: raw.parameter3.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawAsyncMessage {
            opcode: Opcode::AsyncMessage.code(),
            flags: FINAL,
            reserved: [0; 2],
            ahs_words: 0,
            data_len: len24(self.data_len),
            lun: self.lun.0,
            itt: RESERVED_TAG.into(),
            reserved20: 0.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            event: self.event.code(),
            vendor_code: self.vendor_code,
            parameter1: self.parameter1.into(),
            parameter2: self.parameter2.into(),
            parameter3: self.parameter3.into(),
            reserved44: 0.into(),
        });
    }
}

codes! {
    /// Why a PDU was rejected (RFC 7143 11.17.1).
    pub enum RejectReason {
        /// The data digest was wrong.
        DataDigest = 0x02,
        /// A SNACK could not be satisfied.
        Snack = 0x03,
        /// The PDU broke a rule of the protocol.
        ProtocolError = 0x04,
        /// The opcode is not supported.
        CommandNotSupported = 0x05,
        /// Too many immediate commands.
        TooManyImmediate = 0x06,
        /// The task is still in progress.
        TaskInProgress = 0x07,
        /// A DataACK that acknowledges nothing.
        InvalidDataAck = 0x08,
        /// A field has an impossible value.
        InvalidPduField = 0x09,
        /// No target transfer tag is left for a long operation.
        LongOperation = 0x0A,
        /// The negotiation has to start again.
        NegotiationReset = 0x0B,
        /// The target waits for a logout.
        WaitingForLogout = 0x0C,
    }
}

/// A Reject PDU. Its data segment is the header of the rejected PDU, with its AHS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// Data segment in bytes: 48 or more.
    pub data_len: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Next DataSN or R2TSN, with a rejected data SNACK.
    pub data_sn: u32,
}

impl Reject {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::Reject)?;
        let raw: &RawReject = zerocopy::transmute_ref!(header);
        Ok(Self {
            reason: RejectReason::from_code(raw.reason),
            data_len: from_len24(raw.data_len),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            data_sn: raw.data_sn.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawReject {
            opcode: Opcode::Reject.code(),
            flags: FINAL,
            reason: self.reason.code(),
            reserved: 0,
            ahs_words: 0,
            data_len: len24(self.data_len),
            reserved8: [0; 8],
            itt: RESERVED_TAG.into(),
            reserved20: 0.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            data_sn: self.data_sn.into(),
            reserved40: [0; 8],
        });
    }
}
