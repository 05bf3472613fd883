//! iSCSI PDU headers (RFC 7143 clause 11, RFC 7144).
//!
//! Each PDU is a plain value with `parse` from and `emit` into the 48-byte basic header segment
//! (BHS). Nothing here reads past those 48 bytes, allocates or panics: the data segment and the
//! additional header segments travel beside the value, and [`Frame`] says how long they are.
//! Reserved bits are ignored on parse and zero on emit; unknown codes stay values.
//!
//! `data_len` in every value is the unpadded DataSegmentLength in bytes; `emit` writes its low 24
//! bits.

mod ahs;
mod command;
mod data;
mod frame;
mod login;
mod logout;
mod nop;
mod notice;
mod task;
mod text;

#[cfg(test)]
mod tests;

pub use ahs::{Ahs, AhsError, parse_ahs};
pub use command::{ScsiCommand, ScsiResponse, ServiceResponse};
pub use data::{DataIn, DataOut, R2t, Snack, SnackKind};
pub use frame::{Digests, Frame, FrameError};
pub use login::{Isid, LoginRequest, LoginResponse, LoginStatus, Stage};
pub use logout::{LogoutOutcome, LogoutReason, LogoutRequest, LogoutResponse};
pub use nop::{NopIn, NopOut};
pub use notice::{AsyncEvent, AsyncMessage, Reject, RejectReason};
pub use task::{TaskFunctionCode, TaskRequest, TaskResponse, TaskResponseCode};
pub use text::{TextRequest, TextResponse};

use libsrp::Lun;
use thiserror::Error;

/// Length of the basic header segment in bytes.
pub const BHS_LEN: usize = 48;

/// A basic header segment as it is on the wire.
pub type Bhs = [u8; BHS_LEN];

/// The value of an initiator task tag, target transfer tag or SNACK tag that names nothing.
pub const RESERVED_TAG: u32 = 0xFFFF_FFFF;

/// Makes an enum of one-byte codes where a code without a name is kept as `Unknown`.
macro_rules! codes {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
            /// A code without a name here.
            Unknown(u8),
        }

        impl $name {
            /// The value of a code.
            pub const fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The code on the wire.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Unknown(code) => code,
                }
            }
        }
    };
}

/// Declares the wire layout of one PDU; the size is checked when it is compiled.
macro_rules! raw {
    ($name:ident { $($field:ident: $ty:ty,)* }) => {
        #[repr(C)]
        #[derive(
            Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        struct $name { $($field: $ty,)* }

        const _: () = assert!(size_of::<$name>() == crate::pdu::BHS_LEN);
    };
}

pub(crate) use {codes, raw};

codes! {
    /// What a PDU is: bits 5:0 of its first byte (RFC 7143 11.2.1.2).
    pub enum Opcode {
        /// NOP-Out.
        NopOut = 0x00,
        /// SCSI Command.
        ScsiCommand = 0x01,
        /// Task Management Function Request.
        TaskRequest = 0x02,
        /// Login Request.
        LoginRequest = 0x03,
        /// Text Request.
        TextRequest = 0x04,
        /// SCSI Data-Out.
        DataOut = 0x05,
        /// Logout Request.
        LogoutRequest = 0x06,
        /// SNACK Request.
        Snack = 0x10,
        /// NOP-In.
        NopIn = 0x20,
        /// SCSI Response.
        ScsiResponse = 0x21,
        /// Task Management Function Response.
        TaskResponse = 0x22,
        /// Login Response.
        LoginResponse = 0x23,
        /// Text Response.
        TextResponse = 0x24,
        /// SCSI Data-In.
        DataIn = 0x25,
        /// Logout Response.
        LogoutResponse = 0x26,
        /// Ready To Transfer.
        R2t = 0x31,
        /// Asynchronous Message.
        AsyncMessage = 0x32,
        /// Reject.
        Reject = 0x3F,
    }
}

/// Why a header could not become a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PduError {
    /// The header belongs to another PDU.
    #[error("expected a {expected:?} PDU and found {found:?}")]
    Opcode {
        /// What the caller asked for.
        expected: Opcode,
        /// What the header says.
        found: Opcode,
    },
    /// No initiator PDU has this opcode.
    #[error("{0:?} is not a PDU an initiator sends")]
    NotARequest(Opcode),
    /// No target PDU has this opcode.
    #[error("{0:?} is not a PDU a target sends")]
    NotAReply(Opcode),
    /// A SCSI Command that writes nothing announces unsolicited data (RFC 7143 11.3.1).
    #[error("SCSI Command {itt:#x} has neither the F nor the W bit set")]
    UnsolicitedDataWithoutWrite {
        /// Initiator task tag of the command.
        itt: u32,
    },
    /// A Data-In PDU carries status but is not final (RFC 7143 11.7.1).
    #[error("Data-In for {itt:#x} carries status without the F bit")]
    StatusWithoutFinal {
        /// Initiator task tag of the command.
        itt: u32,
    },
    /// An R2T asks for nothing (RFC 7143 11.8.5).
    #[error("R2T for {itt:#x} asks for 0 bytes")]
    EmptyR2t {
        /// Initiator task tag of the command.
        itt: u32,
    },
}

/// The opcode of a header.
pub const fn opcode(header: &Bhs) -> Opcode {
    Opcode::from_code(header[0] & OPCODE_MASK)
}

/// Whether a request is marked for immediate delivery.
pub const fn is_immediate(header: &Bhs) -> bool {
    header[0] & IMMEDIATE != 0
}

/// Length of all additional header segments in bytes, with their padding: at most 1020.
pub const fn total_ahs_len(header: &Bhs) -> usize {
    header[4] as usize * 4
}

/// Length of the data segment in bytes, without padding: below 2^24.
pub const fn data_segment_len(header: &Bhs) -> u32 {
    u32::from_be_bytes([0, header[5], header[6], header[7]])
}

/// The initiator task tag of a header.
pub const fn initiator_task_tag(header: &Bhs) -> u32 {
    u32::from_be_bytes([header[16], header[17], header[18], header[19]])
}

/// The logical unit number field of a header; PDUs without one use these bytes otherwise.
pub const fn lun(header: &Bhs) -> Lun {
    let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = *header;
    Lun([a, b, c, d, e, f, g, h])
}

/// Every PDU an initiator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is named after the value it holds")]
pub enum Request {
    NopOut(NopOut),
    ScsiCommand(ScsiCommand),
    TaskRequest(TaskRequest),
    LoginRequest(LoginRequest),
    TextRequest(TextRequest),
    DataOut(DataOut),
    LogoutRequest(LogoutRequest),
    Snack(Snack),
}

impl Request {
    /// Parses whatever the opcode announces.
    ///
    /// # Errors
    /// [`PduError::NotARequest`] for every other opcode, else what the PDU's own `parse` says.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        Ok(match opcode(header) {
            Opcode::ScsiCommand => Self::ScsiCommand(ScsiCommand::parse(header)?),
            Opcode::DataOut => Self::DataOut(DataOut::parse(header)?),
            Opcode::NopOut => Self::NopOut(NopOut::parse(header)?),
            Opcode::TaskRequest => Self::TaskRequest(TaskRequest::parse(header)?),
            Opcode::LoginRequest => Self::LoginRequest(LoginRequest::parse(header)?),
            Opcode::TextRequest => Self::TextRequest(TextRequest::parse(header)?),
            Opcode::LogoutRequest => Self::LogoutRequest(LogoutRequest::parse(header)?),
            Opcode::Snack => Self::Snack(Snack::parse(header)?),
            other => return Err(PduError::NotARequest(other)),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        match self {
            Self::NopOut(pdu) => pdu.emit(header),
            Self::ScsiCommand(pdu) => pdu.emit(header),
            Self::TaskRequest(pdu) => pdu.emit(header),
            Self::LoginRequest(pdu) => pdu.emit(header),
            Self::TextRequest(pdu) => pdu.emit(header),
            Self::DataOut(pdu) => pdu.emit(header),
            Self::LogoutRequest(pdu) => pdu.emit(header),
            Self::Snack(pdu) => pdu.emit(header),
        }
    }
}

/// Every PDU a target sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is named after the value it holds")]
pub enum Reply {
    NopIn(NopIn),
    ScsiResponse(ScsiResponse),
    TaskResponse(TaskResponse),
    LoginResponse(LoginResponse),
    TextResponse(TextResponse),
    DataIn(DataIn),
    LogoutResponse(LogoutResponse),
    R2t(R2t),
    AsyncMessage(AsyncMessage),
    Reject(Reject),
}

impl Reply {
    /// Parses whatever the opcode announces.
    ///
    /// # Errors
    /// [`PduError::NotAReply`] for every other opcode, else what the PDU's own `parse` says.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        Ok(match opcode(header) {
            Opcode::NopIn => Self::NopIn(NopIn::parse(header)?),
            Opcode::ScsiResponse => Self::ScsiResponse(ScsiResponse::parse(header)?),
            Opcode::TaskResponse => Self::TaskResponse(TaskResponse::parse(header)?),
            Opcode::LoginResponse => Self::LoginResponse(LoginResponse::parse(header)?),
            Opcode::TextResponse => Self::TextResponse(TextResponse::parse(header)?),
            Opcode::DataIn => Self::DataIn(DataIn::parse(header)?),
            Opcode::LogoutResponse => Self::LogoutResponse(LogoutResponse::parse(header)?),
            Opcode::R2t => Self::R2t(R2t::parse(header)?),
            Opcode::AsyncMessage => Self::AsyncMessage(AsyncMessage::parse(header)?),
            Opcode::Reject => Self::Reject(Reject::parse(header)?),
            other => return Err(PduError::NotAReply(other)),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        match self {
            Self::NopIn(pdu) => pdu.emit(header),
            Self::ScsiResponse(pdu) => pdu.emit(header),
            Self::TaskResponse(pdu) => pdu.emit(header),
            Self::LoginResponse(pdu) => pdu.emit(header),
            Self::TextResponse(pdu) => pdu.emit(header),
            Self::DataIn(pdu) => pdu.emit(header),
            Self::LogoutResponse(pdu) => pdu.emit(header),
            Self::R2t(pdu) => pdu.emit(header),
            Self::AsyncMessage(pdu) => pdu.emit(header),
            Self::Reject(pdu) => pdu.emit(header),
        }
    }
}

/// The sequence numbers every target PDU carries (RFC 7143 4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Numbers {
    /// StatSN of the connection.
    pub stat_sn: u32,
    /// Next CmdSN the session expects.
    pub exp_cmd_sn: u32,
    /// Highest CmdSN the session takes.
    pub max_cmd_sn: u32,
}

fn expect(header: &Bhs, expected: Opcode) -> Result<(), PduError> {
    let found = opcode(header);
    if found == expected { Ok(()) } else { Err(PduError::Opcode { expected, found }) }
}

const fn first_byte(opcode: Opcode, immediate: bool) -> u8 {
    opcode.code() | if immediate { IMMEDIATE } else { 0 }
}

const fn len24(len: u32) -> [u8; 3] {
    let [_, a, b, c] = len.to_be_bytes();
    [a, b, c]
}

const fn from_len24([a, b, c]: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, a, b, c])
}

const fn bit(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

const OPCODE_MASK: u8 = 0x3F;
const IMMEDIATE: u8 = 0x40;
const FINAL: u8 = 0x80;
const CONTINUE: u8 = 0x40;
