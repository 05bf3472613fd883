//! Login Request and Response (RFC 7143 11.12 and 11.13).

use std::fmt;

use zerocopy::big_endian::{U16, U32};

use super::{
    Bhs, CONTINUE, FINAL, IMMEDIATE, Numbers, Opcode, PduError, bit, codes, expect, first_byte,
    from_len24, len24, raw,
};

raw! { RawLoginRequest {
    opcode: u8, flags: u8, version_max: u8, version_min: u8, ahs_words: u8, data_len: [u8; 3],
    isid: [u8; 6], tsih: U16, itt: U32, cid: U16, reserved22: U16, cmd_sn: U32, exp_stat_sn: U32,
    reserved32: [u8; 16],
} }

raw! { RawLoginResponse {
    opcode: u8, flags: u8, version_max: u8, version_active: u8, ahs_words: u8, data_len: [u8; 3],
    isid: [u8; 6], tsih: U16, itt: U32, reserved20: U32, stat_sn: U32, exp_cmd_sn: U32,
    max_cmd_sn: U32, status: U16, reserved38: [u8; 10],
} }

codes! {
    /// A stage of a connection (RFC 7143 11.12.3).
    pub enum Stage {
        /// Security negotiation.
        Security = 0,
        /// Operational parameter negotiation.
        Operational = 1,
        /// Full feature phase.
        FullFeature = 3,
    }
}

/// The initiator's part of a session identifier (RFC 7143 11.12.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Isid(pub [u8; 6]);

impl fmt::Display for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A Login Request PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// The I bit, which every login request must have.
    pub immediate: bool,
    /// T: ready to leave the current stage.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// CSG: current stage.
    pub current: Stage,
    /// NSG: the stage to go to; code 0 without `transit`.
    pub next: Stage,
    /// Highest version the initiator speaks.
    pub version_max: u8,
    /// Lowest version the initiator speaks.
    pub version_min: u8,
    /// Data segment in bytes.
    pub data_len: u32,
    /// Initiator's session identifier.
    pub isid: Isid,
    /// Target session identifying handle, 0 for a new session.
    pub tsih: u16,
    /// Initiator task tag.
    pub itt: u32,
    /// Connection identifier.
    pub cid: u16,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
}

impl LoginRequest {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::LoginRequest)?;
        let raw: &RawLoginRequest = zerocopy::transmute_ref!(header);
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            transit: raw.flags & FINAL != 0,
            more: raw.flags & CONTINUE != 0,
            current: Stage::from_code((raw.flags >> 2) & 3),
            next: next_stage(raw.flags),
            version_max: raw.version_max,
            version_min: raw.version_min,
            data_len: from_len24(raw.data_len),
            isid: Isid(raw.isid),
            tsih: raw.tsih.get(),
            itt: raw.itt.get(),
            cid: raw.cid.get(),
            cmd_sn: raw.cmd_sn.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawLoginRequest {
            opcode: first_byte(Opcode::LoginRequest, self.immediate),
            flags: stages(self.transit, self.more, self.current, self.next),
            version_max: self.version_max,
            version_min: self.version_min,
            ahs_words: 0,
            data_len: len24(self.data_len),
            isid: self.isid.0,
            tsih: self.tsih.into(),
            itt: self.itt.into(),
            cid: self.cid.into(),
            reserved22: 0.into(),
            cmd_sn: self.cmd_sn.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            reserved32: [0; 16],
        });
    }
}

/// Status class (high byte) and detail (low byte) of a Login Response (RFC 7143 11.13.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoginStatus(pub u16);

impl LoginStatus {
    /// Login goes on, or is complete.
    pub const SUCCESS: Self = Self(0x0000);
    /// The target moved temporarily to the TargetAddress given.
    pub const MOVED_TEMPORARILY: Self = Self(0x0101);
    /// The target moved permanently to the TargetAddress given.
    pub const MOVED_PERMANENTLY: Self = Self(0x0102);
    /// Some error of the initiator.
    pub const INITIATOR_ERROR: Self = Self(0x0200);
    /// Authentication failed.
    pub const AUTHENTICATION_FAILURE: Self = Self(0x0201);
    /// The initiator may not use the target.
    pub const AUTHORIZATION_FAILURE: Self = Self(0x0202);
    /// No such target.
    pub const NOT_FOUND: Self = Self(0x0203);
    /// The target was removed.
    pub const TARGET_REMOVED: Self = Self(0x0204);
    /// No common version.
    pub const UNSUPPORTED_VERSION: Self = Self(0x0205);
    /// The session has as many connections as it may.
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x0206);
    /// A key that must be there is not.
    pub const MISSING_PARAMETER: Self = Self(0x0207);
    /// The connection cannot be part of the session.
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self(0x0208);
    /// The session type is not supported.
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self(0x0209);
    /// No such session.
    pub const SESSION_DOES_NOT_EXIST: Self = Self(0x020A);
    /// A request that is not allowed during login.
    pub const INVALID_DURING_LOGIN: Self = Self(0x020B);
    /// Some error of the target.
    pub const TARGET_ERROR: Self = Self(0x0300);
    /// The service is not available now.
    pub const SERVICE_UNAVAILABLE: Self = Self(0x0301);
    /// Out of resources.
    pub const OUT_OF_RESOURCES: Self = Self(0x0302);

    /// The class: 0 success, 1 redirection, 2 initiator error, 3 target error.
    pub const fn class(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The detail within the class.
    pub const fn detail(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Debug for LoginStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::SUCCESS => "success",
            Self::MOVED_TEMPORARILY => "target moved temporarily",
            Self::MOVED_PERMANENTLY => "target moved permanently",
            Self::INITIATOR_ERROR => "initiator error",
            Self::AUTHENTICATION_FAILURE => "authentication failure",
            Self::AUTHORIZATION_FAILURE => "authorization failure",
            Self::NOT_FOUND => "target not found",
            Self::TARGET_REMOVED => "target removed",
            Self::UNSUPPORTED_VERSION => "unsupported version",
            Self::TOO_MANY_CONNECTIONS => "too many connections",
            Self::MISSING_PARAMETER => "missing parameter",
            Self::CANNOT_INCLUDE_IN_SESSION => "cannot include in session",
            Self::SESSION_TYPE_NOT_SUPPORTED => "session type not supported",
            Self::SESSION_DOES_NOT_EXIST => "session does not exist",
            Self::INVALID_DURING_LOGIN => "invalid during login",
            Self::TARGET_ERROR => "target error",
            Self::SERVICE_UNAVAILABLE => "service unavailable",
            Self::OUT_OF_RESOURCES => "out of resources",
            _ => "unknown status",
        };
        write!(f, "{name} ({:04x})", self.0)
    }
}

/// A Login Response PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// T: the target agrees to go to `next`.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// CSG: current stage.
    pub current: Stage,
    /// NSG: the stage to go to; code 0 without `transit`.
    pub next: Stage,
    /// Highest version the target speaks.
    pub version_max: u8,
    /// The version in use.
    pub version_active: u8,
    /// Data segment in bytes.
    pub data_len: u32,
    /// The initiator's session identifier.
    pub isid: Isid,
    /// Target session identifying handle: as in the request, but in the final response of a new
    /// session the handle the target chose.
    pub tsih: u16,
    /// Initiator task tag.
    pub itt: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Status class and detail.
    pub status: LoginStatus,
}

impl LoginResponse {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::LoginResponse)?;
        let raw: &RawLoginResponse = zerocopy::transmute_ref!(header);
        Ok(Self {
            transit: raw.flags & FINAL != 0,
            more: raw.flags & CONTINUE != 0,
            current: Stage::from_code((raw.flags >> 2) & 3),
            next: next_stage(raw.flags),
            version_max: raw.version_max,
            version_active: raw.version_active,
            data_len: from_len24(raw.data_len),
            isid: Isid(raw.isid),
            tsih: raw.tsih.get(),
            itt: raw.itt.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
            status: LoginStatus(raw.status.get()),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawLoginResponse {
            opcode: Opcode::LoginResponse.code(),
            flags: stages(self.transit, self.more, self.current, self.next),
            version_max: self.version_max,
            version_active: self.version_active,
            ahs_words: 0,
            data_len: len24(self.data_len),
            isid: self.isid.0,
            tsih: self.tsih.into(),
            itt: self.itt.into(),
            reserved20: 0.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            status: self.status.0.into(),
            reserved38: [0; 10],
        });
    }
}

/// NSG is reserved, and so nothing, while T is 0 (RFC 7143 11.12.3).
const fn next_stage(flags: u8) -> Stage {
    if flags & FINAL != 0 { Stage::from_code(flags & 3) } else { Stage::Security }
}

const fn stages(transit: bool, more: bool, current: Stage, next: Stage) -> u8 {
    let next = if transit { next.code() & 3 } else { 0 };
    bit(transit, FINAL) | bit(more, CONTINUE) | ((current.code() & 3) << 2) | next
}
