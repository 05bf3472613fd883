//! Completion queue entries (clause 3.3.3.2): 16 bytes.

use super::le;
use std::{fmt, io};

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    /// What the command gives back, dword 0.
    pub result: u32,
    /// How far the controller has read the submission queue.
    pub head: u16,
    /// Which submission queue.
    pub queue: u16,
    /// Which command.
    pub cid: u16,
    /// Which round through the queue wrote the entry.
    pub phase: bool,
    /// How it ended.
    pub status: Status,
}

impl Cqe {
    /// Its size in bytes.
    pub const BYTES: usize = 16;

    /// Reads one.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let last = le(bytes, 14, 2) as u16;
        Self {
            result: le(bytes, 0, 4) as u32,
            head: le(bytes, 8, 2) as u16,
            queue: le(bytes, 10, 2) as u16,
            cid: le(bytes, 12, 2) as u16,
            phase: last & 1 != 0,
            status: Status(last >> 1),
        }
    }

    /// Lays one out, as a controller would.
    pub fn emit(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.head.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.queue.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.cid.to_le_bytes());
        let last = self.status.0 << 1 | u16::from(self.phase);
        bytes[14..].copy_from_slice(&last.to_le_bytes());
        bytes
    }
}

/// The status field (3.3.3.2.1) without the phase: code, type, retry delay, More, Do Not Retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Everything went well.
    pub fn is_success(self) -> bool {
        self.0 & 0x7FF == 0
    }

    /// The status code type (0 generic, 1 command specific, 2 media, 3 path) and the status code.
    pub fn code(self) -> (u8, u8) {
        ((self.0 >> 8 & 7) as u8, self.0 as u8)
    }

    /// The same command may succeed later.
    pub fn may_retry(self) -> bool {
        // Do Not Retry is bit 14.
        self.0 >> 14 & 1 == 0 && !self.is_success()
    }

    /// As an error of input and output, unless it is success.
    pub fn as_error(self) -> Option<io::Error> {
        if self.is_success() {
            return None;
        }
        // Figures 97 to 101.
        Some(match self.code() {
            (0, 0x81) => io::ErrorKind::StorageFull.into(),
            // Namespace is write protected; attempted write to read only range.
            (0, 0x20) | (1, 0x82) => io::ErrorKind::ReadOnlyFilesystem.into(),
            (0, 0x83) => io::Error::from_raw_os_error(libc::EBUSY),
            (0, 0x80) => io::Error::from_raw_os_error(libc::EINVAL),
            _ => io::Error::other(self),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = self.code();
        let what = match (kind, code) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted by power loss",
            (0, 0x06) => "internal error",
            (0, 0x07) => "aborted",
            (0, 0x08) => "aborted: the queue was deleted",
            (0, 0x0B) => "invalid namespace or format",
            (0, 0x20) => "the namespace is write-protected",
            (0, 0x80) => "block address out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "the namespace is not ready",
            (0, 0x83) => "reservation conflict",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x82..=0x84) => "end-to-end check failed",
            (2, 0x85) => "compare failure",
            (2, 0x86) => "access denied",
            (2, 0x87) => "deallocated or unwritten block",
            _ => return write!(f, "status type {kind:#x}, code {code:#04x}"),
        };
        write!(f, "{what} (status {kind:x}/{code:02x})")
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_of_a_failed_read() {
        let mut bytes = [0xA5; 16];
        bytes[..4].copy_from_slice(&[1, 2, 3, 4]);
        bytes[8..].copy_from_slice(&[0x10, 0, 2, 0, 0x34, 0x12, 0x03, 0x85]);
        let cqe = Cqe::parse(&bytes);
        assert_eq!((cqe.result, cqe.head, cqe.queue, cqe.cid), (0x0403_0201, 16, 2, 0x1234));
        assert!(cqe.phase);
        assert_eq!(cqe.status.code(), (2, 0x81));
        assert!(!cqe.status.may_retry(), "do not retry is set");
        assert!(cqe.status.to_string().contains("unrecovered read error"));
        // The reserved dword is not kept.
        let mut again = cqe.emit();
        again[4..8].fill(0xA5);
        assert_eq!(again, bytes);
    }

    #[test]
    fn every_status_is_a_success_or_an_error() {
        for value in 0..=0x7FFF {
            let status = Status(value);
            assert_eq!(status.as_error().is_none(), status.is_success(), "{value:#x}");
            assert!(!status.to_string().is_empty());
        }
    }

    #[test]
    fn errors_that_the_core_tells_apart_have_their_kind() {
        let kind = |value| Status(value).as_error().map(|error| error.kind());
        assert_eq!(kind(0x81), Some(io::ErrorKind::StorageFull));
        assert_eq!(kind(0x20), Some(io::ErrorKind::ReadOnlyFilesystem));
        assert_eq!(kind(0x281), Some(io::ErrorKind::Other));
    }
}
