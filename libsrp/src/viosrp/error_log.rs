//! ERROR LOG: a client reports what went wrong, for the server to note.

use zerocopy::FromZeros;
use zerocopy::big_endian::{U32, U64};

use crate::Lun;
use crate::wire::{self, NoRoom, WireError, raw};

/// The payload of the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorLog<'a> {
    /// The logical unit concerned.
    pub lun: Lun,
    /// Ties several reports together.
    pub correlator: u64,
    /// What happened.
    pub error_id: u32,
    /// The client's buffer size in bytes, as it states it.
    pub buffer_len: u32,
    /// The client's name, NUL-padded.
    pub client: [u8; 32],
    /// The device's name, NUL-padded.
    pub device: [u8; 32],
    /// The client's partition number.
    pub partition_number: u32,
    /// 1: `data` is binary, 2: it is ASCII.
    pub flags: u32,
    /// Details: everything behind the header.
    pub data: &'a [u8],
}

impl<'a> ErrorLog<'a> {
    /// Bytes in front of the details.
    pub const HEADER_LEN: usize = size_of::<RawErrorLog>();

    /// Reads the payload.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (raw, data) = wire::read::<RawErrorLog>(bytes)?;
        Ok(Self {
            lun: Lun(raw.lun),
            correlator: raw.correlator.get(),
            error_id: raw.error_id.get(),
            buffer_len: raw.buffer_len.get(),
            client: raw.client,
            device: raw.device,
            partition_number: raw.partition_number.get(),
            flags: raw.flags.get(),
            data,
        })
    }

    /// Writes the payload; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let len = Self::HEADER_LEN.saturating_add(self.data.len());
        let out = wire::room_for(len, out)?;
        let raw = RawErrorLog {
            lun: self.lun.0,
            correlator: self.correlator.into(),
            error_id: self.error_id.into(),
            buffer_len: self.buffer_len.into(),
            client: self.client,
            device: self.device,
            partition_number: self.partition_number.into(),
            flags: self.flags.into(),
            ..RawErrorLog::new_zeroed()
        };
        let header = wire::write(&raw, out)?;
        out[header..].copy_from_slice(self.data);
        Ok(len)
    }
}

raw! {
    struct RawErrorLog = 104 {
        lun: [u8; 8],
        correlator: U64,
        _reserved16: [u8; 8],
        error_id: U32,
        buffer_len: U32,
        client: [u8; 32],
        device: [u8; 32],
        partition_number: U32,
        flags: U32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viosrp::padded;

    fn log() -> ErrorLog<'static> {
        ErrorLog {
            lun: Lun([0x80, 1, 0, 0, 0, 0, 0, 0]),
            correlator: 0x0102_0304_0506_0708,
            error_id: 0xE0,
            buffer_len: 107,
            client: padded("client"),
            device: padded("hdisk0"),
            partition_number: 5,
            flags: 2,
            data: b"bad",
        }
    }

    #[test]
    fn log_with_details_round_trips() {
        let mut bytes = [0; 107];
        bytes[..2].copy_from_slice(&[0x80, 1]);
        bytes[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[24..32].copy_from_slice(&[0, 0, 0, 0xE0, 0, 0, 0, 107]);
        bytes[32..38].copy_from_slice(b"client");
        bytes[64..70].copy_from_slice(b"hdisk0");
        bytes[96..107].copy_from_slice(&[0, 0, 0, 5, 0, 0, 0, 2, b'b', b'a', b'd']);
        assert_eq!(ErrorLog::parse(&bytes), Ok(log()));
        let mut out = [0xA5; 110];
        assert_eq!(log().emit(&mut out), Ok(107));
        assert_eq!(out[..107], bytes);
        assert_eq!(out[107..], [0xA5; 3]);
    }

    #[test]
    fn log_shorter_than_its_header_is_truncated() {
        let error = WireError::Truncated { needed: 104, got: 103 };
        assert_eq!(ErrorLog::parse(&[0; 103]), Err(error));
    }

    #[test]
    fn log_without_room_for_its_details_is_not_written() {
        let mut out = [0xA5; 106];
        assert_eq!(log().emit(&mut out), Err(NoRoom { needed: 107, room: 106 }));
        assert_eq!(out, [0xA5; 106]);
    }
}
