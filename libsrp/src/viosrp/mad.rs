//! Management datagrams: what partition and server tell each other besides SRP.

use thiserror::Error;
use zerocopy::big_endian::{U16, U32, U64};

use crate::wire::{self, NoRoom, WireError, codes, raw};
use crate::{Lun, Tag};

/// A datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mad {
    /// Copied to the queue element of the answer.
    pub tag: Tag,
    /// How it went; 0 in a request.
    pub status: MadStatus,
    /// Bytes of the payload.
    pub len: u16,
    /// What it is about.
    pub body: MadBody,
}

/// What a datagram is about. `buffer` is the I/O bus address of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadBody {
    /// EMPTY IU: a buffer the server may send a unit of its own in. May be kept for ever.
    EmptyIu {
        /// Where the unit goes.
        buffer: u64,
        /// The port it is for.
        port: u32,
    },
    /// ERROR LOG: see [`super::error_log::ErrorLog`].
    ErrorLog {
        /// Where the log lies.
        buffer: u64,
    },
    /// ADAPTER INFO: see [`super::adapter_info::AdapterInfo`].
    AdapterInfo {
        /// Where the client's information lies and the server's goes.
        buffer: u64,
    },
    /// Reserved in LoPAR, HOST CONFIG in older headers.
    HostConfig {
        /// Where the payload lies.
        buffer: u64,
    },
    /// CAPABILITIES: see [`super::capabilities::Capabilities`].
    Capabilities {
        /// Where the client's request lies and the server's answer goes.
        buffer: u64,
    },
    /// PHYSICAL ADAPTER INFO: see [`super::physical_adapter::PhysicalAdapterInfo`].
    PhysicalAdapterInfo {
        /// Where the request lies and the answer goes.
        buffer: u64,
    },
    /// TAPE PASSTHROUGH: all of it is here.
    TapePassthrough {
        /// The tape.
        lun: Lun,
        /// 1.
        version: u32,
        /// What is asked: 1 or 2.
        passthrough: u32,
    },
    /// ENABLE FAST FAIL: tell failed paths by the element's status. Before login only.
    EnableFastFail,
    /// Another type: answer [`MadStatus::NotSupported`].
    Unknown(u32),
}

impl Mad {
    /// Bytes of the header, which is all an answer has to write.
    pub const HEADER_LEN: usize = size_of::<RawHeader>();

    /// Reads a datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, MadError> {
        let (header, rest) = wire::read::<RawHeader>(bytes)?;
        let tag = Tag(header.tag);
        let short = |error| MadError::Body { kind: header.kind.get(), tag, error };
        let buffer = || wire::read::<RawBuffer>(rest).map_err(short).map(|(b, _)| b.buffer.get());
        let body = match header.kind.get() {
            EMPTY_IU => {
                let (raw, _) = wire::read::<RawEmptyIu>(rest).map_err(short)?;
                MadBody::EmptyIu { buffer: raw.buffer.get(), port: raw.port.get() }
            }
            ERROR_LOG => MadBody::ErrorLog { buffer: buffer()? },
            ADAPTER_INFO => MadBody::AdapterInfo { buffer: buffer()? },
            HOST_CONFIG => MadBody::HostConfig { buffer: buffer()? },
            CAPABILITIES => MadBody::Capabilities { buffer: buffer()? },
            PHYSICAL_ADAPTER_INFO => MadBody::PhysicalAdapterInfo { buffer: buffer()? },
            TAPE_PASSTHROUGH => {
                let (raw, _) = wire::read::<RawTape>(rest).map_err(short)?;
                MadBody::TapePassthrough {
                    lun: Lun(raw.lun),
                    version: raw.version.get(),
                    passthrough: raw.passthrough.get(),
                }
            }
            ENABLE_FAST_FAIL => MadBody::EnableFastFail,
            other => MadBody::Unknown(other),
        };
        let status = MadStatus::from_code(header.status.get());
        Ok(Self { tag, status, len: header.len.get(), body })
    }

    /// Writes the datagram; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let len = Self::HEADER_LEN + self.body.emitted_len();
        let out = wire::room_for(len, out)?;
        let header = self.emit_header(out)?;
        let rest = &mut out[header..];
        match self.body {
            MadBody::EmptyIu { buffer, port } => {
                wire::write(&RawEmptyIu { buffer: buffer.into(), port: port.into() }, rest)?
            }
            MadBody::ErrorLog { buffer }
            | MadBody::AdapterInfo { buffer }
            | MadBody::HostConfig { buffer }
            | MadBody::Capabilities { buffer }
            | MadBody::PhysicalAdapterInfo { buffer } => {
                wire::write(&RawBuffer { buffer: buffer.into() }, rest)?
            }
            MadBody::TapePassthrough { lun, version, passthrough } => {
                let raw = RawTape {
                    lun: lun.0,
                    version: version.into(),
                    passthrough: passthrough.into(),
                };
                wire::write(&raw, rest)?
            }
            MadBody::EnableFastFail | MadBody::Unknown(_) => 0,
        };
        Ok(len)
    }

    /// Writes the header only, which is how a server answers; gives the bytes written.
    pub fn emit_header(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawHeader {
            kind: self.body.kind().into(),
            status: self.status.code().into(),
            len: self.len.into(),
            tag: self.tag.0,
        };
        wire::write(&raw, out)
    }

    /// This datagram with the status of an answer.
    #[must_use]
    pub const fn with_status(self, status: MadStatus) -> Self {
        Self { status, ..self }
    }
}

impl MadBody {
    /// The type's code.
    pub const fn kind(&self) -> u32 {
        match self {
            Self::EmptyIu { .. } => EMPTY_IU,
            Self::ErrorLog { .. } => ERROR_LOG,
            Self::AdapterInfo { .. } => ADAPTER_INFO,
            Self::HostConfig { .. } => HOST_CONFIG,
            Self::Capabilities { .. } => CAPABILITIES,
            Self::PhysicalAdapterInfo { .. } => PHYSICAL_ADAPTER_INFO,
            Self::TapePassthrough { .. } => TAPE_PASSTHROUGH,
            Self::EnableFastFail => ENABLE_FAST_FAIL,
            Self::Unknown(kind) => *kind,
        }
    }

    const fn emitted_len(&self) -> usize {
        match self {
            Self::EmptyIu { .. } => size_of::<RawEmptyIu>(),
            Self::TapePassthrough { .. } => size_of::<RawTape>(),
            Self::EnableFastFail | Self::Unknown(_) => 0,
            _ => size_of::<RawBuffer>(),
        }
    }
}

codes! {
    /// How a datagram went.
    pub enum MadStatus(u16) {
        /// Well.
        Success = 0x0000,
        /// The type is not supported.
        NotSupported = 0x00F1,
        /// It failed.
        Failed = 0x00F7,
    }
}

/// A datagram that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MadError {
    /// The header cannot be read, so nobody can be answered.
    #[error(transparent)]
    Header(#[from] WireError),
    /// The header is there but not what its type adds: answer [`MadStatus::Failed`].
    #[error("datagram of type {kind:#x}: {error}")]
    Body {
        /// The type.
        kind: u32,
        /// The tag to answer.
        tag: Tag,
        /// What is missing, counted behind the header.
        error: WireError,
    },
}

const EMPTY_IU: u32 = 0x01;
const ERROR_LOG: u32 = 0x02;
const ADAPTER_INFO: u32 = 0x03;
const HOST_CONFIG: u32 = 0x04;
const CAPABILITIES: u32 = 0x05;
const PHYSICAL_ADAPTER_INFO: u32 = 0x06;
const TAPE_PASSTHROUGH: u32 = 0x07;
const ENABLE_FAST_FAIL: u32 = 0x08;

raw! {
    struct RawHeader = 16 {
        kind: U32,
        status: U16,
        len: U16,
        tag: [u8; 8],
    }
}

raw! {
    struct RawBuffer = 8 {
        buffer: U64,
    }
}

raw! {
    struct RawEmptyIu = 12 {
        buffer: U64,
        port: U32,
    }
}

raw! {
    struct RawTape = 16 {
        lun: [u8; 8],
        version: U32,
        passthrough: U32,
    }
}

#[cfg(test)]
mod tests;
