//! LOGIN_REQ in both its layouts, LOGIN_RSP and LOGIN_REJ (SRP clause 6).

use core::fmt;

use zerocopy::FromZeros;
use zerocopy::big_endian::{U16, U32};

use crate::Tag;
use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, codes, raw};

/// A login request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginReq {
    /// Copied to the answer.
    pub tag: Tag,
    /// The longest I→T unit the initiator wants to send, in bytes.
    pub max_initiator_iu: u32,
    /// Descriptor formats the initiator must have.
    pub formats: BufferFormats,
    /// What becomes of the other channels of this I_T nexus.
    pub action: MultiChannelAction,
    /// Wants a solicited event with T_LOGOUT.
    pub solicit_logout: bool,
    /// Wants a solicited event with CRED_REQ.
    pub solicit_credit: bool,
    /// Wants a solicited event with AER_REQ.
    pub solicit_aer: bool,
    /// Asks for immediate data, at this byte offset from the start of a CMD (SRP2).
    pub immediate: Option<u16>,
    /// The initiator port identifier.
    pub initiator_port: PortId,
    /// The target port identifier.
    pub target_port: PortId,
}

impl LoginReq {
    /// Bytes of the ordinary layout.
    pub const LEN: usize = size_of::<RawLoginReq>();
    /// Bytes of the layout used in RDMA/CM private data.
    pub const COMPACT_LEN: usize = size_of::<RawCompact>();

    /// Reads the ordinary layout.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawLoginReq>(iu, Opcode::LoginReq.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            max_initiator_iu: raw.max_initiator_iu.get(),
            formats: BufferFormats(raw.formats.get()),
            initiator_port: PortId(raw.initiator_port),
            target_port: PortId(raw.target_port),
            ..Self::with_flags(raw.flags, raw.immediate_offset.get())
        })
    }

    /// Reads the 56-byte layout of an RDMA/CM connection request. It orders the fields
    /// differently, so the caller chooses by the connection manager, never by the bytes.
    pub fn parse_compact(private_data: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read::<RawCompact>(private_data)?;
        let expected = Opcode::LoginReq.code();
        if raw.opcode != expected {
            return Err(WireError::Opcode { expected, found: raw.opcode });
        }
        Ok(Self {
            tag: Tag(raw.tag),
            max_initiator_iu: raw.max_initiator_iu.get(),
            formats: BufferFormats(raw.formats.get()),
            initiator_port: PortId(raw.initiator_port),
            target_port: PortId(raw.target_port),
            ..Self::with_flags(raw.flags, raw.immediate_offset.get())
        })
    }

    /// Writes the ordinary layout; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawLoginReq {
            opcode: Opcode::LoginReq.code(),
            tag: self.tag.0,
            max_initiator_iu: self.max_initiator_iu.into(),
            formats: self.formats.0.into(),
            flags: self.flags(),
            immediate_offset: self.immediate.unwrap_or(0).into(),
            initiator_port: self.initiator_port.0,
            target_port: self.target_port.0,
            ..RawLoginReq::new_zeroed()
        };
        wire::write(&raw, out)
    }

    /// Writes the layout for RDMA/CM private data; gives the bytes written.
    pub fn emit_compact(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawCompact {
            opcode: Opcode::LoginReq.code(),
            tag: self.tag.0,
            max_initiator_iu: self.max_initiator_iu.into(),
            formats: self.formats.0.into(),
            flags: self.flags(),
            immediate_offset: self.immediate.unwrap_or(0).into(),
            initiator_port: self.initiator_port.0,
            target_port: self.target_port.0,
            ..RawCompact::new_zeroed()
        };
        wire::write(&raw, out)
    }

    fn with_flags(flags: u8, immediate_offset: u16) -> Self {
        Self {
            tag: Tag::default(),
            max_initiator_iu: 0,
            formats: BufferFormats::default(),
            action: MultiChannelAction::from_code(flags & CHANNEL_MASK),
            solicit_logout: flags & SOLICIT_LOGOUT != 0,
            solicit_credit: flags & SOLICIT_CREDIT != 0,
            solicit_aer: flags & SOLICIT_AER != 0,
            immediate: (flags & IMMEDIATE != 0).then_some(immediate_offset),
            initiator_port: PortId::default(),
            target_port: PortId::default(),
        }
    }

    fn flags(&self) -> u8 {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        self.action.code() & CHANNEL_MASK
            | bit(self.solicit_logout, SOLICIT_LOGOUT)
            | bit(self.solicit_credit, SOLICIT_CREDIT)
            | bit(self.solicit_aer, SOLICIT_AER)
            | bit(self.immediate.is_some(), IMMEDIATE)
    }
}

/// The acceptance of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRsp {
    /// Copied from the request.
    pub tag: Tag,
    /// The initial request limit.
    pub limit_delta: i32,
    /// The longest I→T unit the target takes, in bytes.
    pub max_initiator_iu: u32,
    /// The longest T→I unit the target sends, in bytes.
    pub max_target_iu: u32,
    /// Descriptor formats the target has.
    pub formats: BufferFormats,
    /// What became of the other channels of this I_T nexus.
    pub result: MultiChannelResult,
    /// Immediate data is granted at the offset asked for (SRP2).
    pub immediate: bool,
}

impl LoginRsp {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawLoginRsp>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawLoginRsp>(iu, Opcode::LoginRsp.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            limit_delta: raw.limit_delta.get().cast_signed(),
            max_initiator_iu: raw.max_initiator_iu.get(),
            max_target_iu: raw.max_target_iu.get(),
            formats: BufferFormats(raw.formats.get()),
            result: MultiChannelResult::from_code(raw.flags & CHANNEL_MASK),
            immediate: raw.flags & IMMEDIATE != 0,
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let immediate = if self.immediate { IMMEDIATE } else { 0 };
        let raw = RawLoginRsp {
            opcode: Opcode::LoginRsp.code(),
            limit_delta: self.limit_delta.cast_unsigned().into(),
            tag: self.tag.0,
            max_initiator_iu: self.max_initiator_iu.into(),
            max_target_iu: self.max_target_iu.into(),
            formats: self.formats.0.into(),
            flags: self.result.code() & CHANNEL_MASK | immediate,
            ..RawLoginRsp::new_zeroed()
        };
        wire::write(&raw, out)
    }
}

/// The refusal of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRej {
    /// Copied from the request.
    pub tag: Tag,
    /// Why.
    pub reason: RejectReason,
    /// Descriptor formats the target has.
    pub formats: BufferFormats,
}

impl LoginRej {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawLoginRej>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawLoginRej>(iu, Opcode::LoginRej.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            reason: RejectReason::from_code(raw.reason.get()),
            formats: BufferFormats(raw.formats.get()),
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawLoginRej {
            opcode: Opcode::LoginRej.code(),
            reason: self.reason.code().into(),
            tag: self.tag.0,
            formats: self.formats.0.into(),
            ..RawLoginRej::new_zeroed()
        };
        wire::write(&raw, out)
    }
}

codes! {
    /// What a login asks to be done with the other channels of its I_T nexus: two bits.
    pub enum MultiChannelAction(u8) {
        /// Terminate them.
        Single = 0,
        /// Keep them.
        Multi = 1,
    }
}

codes! {
    /// What a login did with the other channels of its I_T nexus: two bits.
    pub enum MultiChannelResult(u8) {
        /// There were none.
        NoOthers = 0,
        /// They were terminated.
        Terminated = 1,
        /// They go on.
        Maintained = 2,
    }
}

codes! {
    /// Why a login is refused.
    pub enum RejectReason(u32) {
        /// Unable to establish the channel, for no particular reason.
        Unspecified = 0x0001_0000,
        /// Not enough resources for another channel.
        NoResources = 0x0001_0001,
        /// The requested I→T unit length is larger than the target takes.
        IuTooLong = 0x0001_0002,
        /// The port identifiers name no I_T nexus of this target.
        NoNexus = 0x0001_0003,
        /// A required descriptor format is missing.
        Formats = 0x0001_0004,
        /// The target has one channel a nexus.
        NoMultiChannel = 0x0001_0005,
        /// This initiator has all the channels it may have.
        ChannelLimit = 0x0001_0006,
    }
}

/// A set of descriptor formats; bits without a name are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BufferFormats(pub u16);

impl BufferFormats {
    /// Direct descriptors.
    pub const DIRECT: Self = Self(0x0002);
    /// Indirect descriptors.
    pub const INDIRECT: Self = Self(0x0004);
    /// Both.
    pub const ALL: Self = Self(0x0006);

    /// The formats in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The formats of this set that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reads bit 0x1 as direct descriptors and drops bits without a meaning: FreeBSD's VSCSI
    /// client numbers the formats one bit too low.
    #[must_use]
    pub const fn leniently(self) -> Self {
        Self((self.0 | (self.0 & 1) << 1) & Self::ALL.0)
    }
}

impl fmt::Debug for BufferFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A 16-byte port identifier: an identifier extension and a GUID, in an order that depends on the
/// I/O class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PortId(pub [u8; 16]);

impl PortId {
    /// I/O class 0x0100 (SRP rev. 16a): the extension first.
    pub const fn new(extension: u64, guid: u64) -> Self {
        Self(((extension as u128) << 64 | guid as u128).to_be_bytes())
    }

    /// I/O class 0xFF00 (SRP rev. 10): the GUID first.
    pub const fn new_rev10(extension: u64, guid: u64) -> Self {
        Self::new(guid, extension)
    }

    /// The first and the second half.
    pub const fn halves(self) -> (u64, u64) {
        let value = u128::from_be_bytes(self.0);
        ((value >> 64) as u64, value as u64)
    }
}

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#034x}", u128::from_be_bytes(self.0))
    }
}

const CHANNEL_MASK: u8 = 0x03;
const SOLICIT_LOGOUT: u8 = 0x10;
const SOLICIT_CREDIT: u8 = 0x20;
const SOLICIT_AER: u8 = 0x40;
const IMMEDIATE: u8 = 0x80;

raw! {
    struct RawLoginReq = 64 {
        opcode: u8,
        _reserved1: [u8; 7],
        tag: [u8; 8],
        max_initiator_iu: U32,
        _reserved20: [u8; 4],
        formats: U16,
        flags: u8,
        _reserved27: u8,
        immediate_offset: U16,
        _reserved30: [u8; 2],
        initiator_port: [u8; 16],
        target_port: [u8; 16],
    }
}

raw! {
    struct RawCompact = 56 {
        tag: [u8; 8],
        formats: U16,
        flags: u8,
        opcode: u8,
        max_initiator_iu: U32,
        initiator_port: [u8; 16],
        target_port: [u8; 16],
        immediate_offset: U16,
        _reserved50: [u8; 6],
    }
}

raw! {
    struct RawLoginRsp = 52 {
        opcode: u8,
        _reserved1: [u8; 3],
        limit_delta: U32,
        tag: [u8; 8],
        max_initiator_iu: U32,
        max_target_iu: U32,
        formats: U16,
        flags: u8,
        _reserved27: [u8; 25],
    }
}

raw! {
    struct RawLoginRej = 32 {
        opcode: u8,
        _reserved1: [u8; 3],
        reason: U32,
        tag: [u8; 8],
        _reserved16: [u8; 8],
        formats: U16,
        _reserved26: [u8; 6],
    }
}

#[cfg(test)]
mod tests;
