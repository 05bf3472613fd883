//! How long each part of a PDU is (RFC 7143 11.1).

use thiserror::Error;

use super::{BHS_LEN, Bhs, Opcode, data_segment_len, opcode, total_ahs_len};

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digests {
    /// CRC32C over BHS and AHS.
    pub header: bool,
    /// CRC32C over the data segment and its padding.
    pub data: bool,
}

impl Digests {
    /// None: every connection during login.
    pub const NONE: Self = Self { header: false, data: false };
}

/// The lengths in bytes of what follows the basic header segment, in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Additional header segments: a multiple of 4, at most 1020.
    pub ahs: usize,
    /// Header digest: 0 or 4.
    pub header_digest: usize,
    /// Data segment.
    pub data: usize,
    /// Zero bytes after it: 0 to 3.
    pub pad: usize,
    /// Data digest: 0 or 4, and 0 whenever there is no data.
    pub data_digest: usize,
}

/// Why a PDU cannot be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The data segment is longer than this side said it receives.
    #[error("data segment of {len} bytes where MaxRecvDataSegmentLength is {max}")]
    DataTooLong {
        /// DataSegmentLength as sent.
        len: u32,
        /// What this side declared.
        max: u32,
    },
    /// Additional header segments on a PDU that has none.
    #[error("{opcode:?} PDU with {len} bytes of additional header segments")]
    UnexpectedAhs {
        /// What the PDU is.
        opcode: Opcode,
        /// TotalAHSLength in bytes.
        len: usize,
    },
}

impl Frame {
    /// The parts of the PDU that this header starts, where `max_data` is this side's own
    /// MaxRecvDataSegmentLength (8192 during login).
    ///
    /// # Errors
    /// When the peer may not send as much.
    #[inline]
    pub fn of(header: &Bhs, digests: Digests, max_data: u32) -> Result<Self, FrameError> {
        let len = data_segment_len(header);
        if len > max_data {
            return Err(FrameError::DataTooLong { len, max: max_data });
        }
        let ahs = total_ahs_len(header);
        if ahs != 0 {
            // An opcode nobody knows may have any, and is answered with a Reject.
            match opcode(header) {
                Opcode::ScsiCommand | Opcode::Unknown(_) => {}
                opcode => return Err(FrameError::UnexpectedAhs { opcode, len: ahs }),
            }
        }
        let data = len as usize;
        Ok(Self {
            ahs,
            header_digest: if digests.header { 4 } else { 0 },
            data,
            pad: data.wrapping_neg() & 3,
            data_digest: if digests.data && data != 0 { 4 } else { 0 },
        })
    }

    /// Bytes from the start of the BHS to the start of the data segment.
    #[inline]
    pub const fn data_start(&self) -> usize {
        BHS_LEN + self.ahs + self.header_digest
    }

    /// Bytes of the whole PDU, with the BHS.
    #[inline]
    pub const fn total(&self) -> usize {
        self.data_start() + self.data + self.pad + self.data_digest
    }
}
