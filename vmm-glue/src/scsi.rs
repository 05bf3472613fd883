//! The virtio-scsi device on the wire (VIRTIO 1.3, 5.6): configuration, requests, responses, task
//! management and events. Values and bytes only; who has the queues is elsewhere.
//!
//! Fields are little-endian, CDBs and sense data as SCSI has them.

pub mod config;
pub mod control;
pub mod event;

use libsrp::{Lun, Residual, Response, ResponseCode, Status, TaskAttribute};

/// Feature bits of the device, as masks of the 64-bit feature word.
pub mod feature {
    /// VIRTIO_SCSI_F_INOUT: a request may have data both ways.
    pub const INOUT: u64 = 1;
    /// VIRTIO_SCSI_F_HOTPLUG: logical units that come and go are told as events.
    pub const HOTPLUG: u64 = 1 << 1;
    /// VIRTIO_SCSI_F_CHANGE: changed parameters are told as events.
    pub const CHANGE: u64 = 1 << 2;
    /// VIRTIO_SCSI_F_T10_PI: requests have fields for protection information.
    pub const T10_PI: u64 = 1 << 3;
}

/// Response codes (VIRTIO 1.3, 5.6.6.1.1 and 5.6.6.2).
pub mod code {
    /// A command ended with a status, or a task management function is complete.
    pub const OK: u8 = 0;
    /// More data than the buffers hold.
    pub const OVERRUN: u8 = 1;
    /// Aborted by a task management function.
    pub const ABORTED: u8 = 2;
    /// There is no such target.
    pub const BAD_TARGET: u8 = 3;
    /// Ended by a reset, and perhaps executed.
    pub const RESET: u8 = 4;
    /// Try again.
    pub const BUSY: u8 = 5;
    /// Failed in a way that no other code says.
    pub const FAILURE: u8 = 9;
    /// A query function found what it asked about.
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    /// The function is not supported.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// There is no such logical unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// What the driver chose about the layout of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a CDB.
    pub cdb_size: usize,
    /// Bytes of sense data in a response.
    pub sense_size: usize,
    /// Requests say how much of their data is protection information.
    pub pi: bool,
}

impl Layout {
    /// What a device has after a reset.
    pub const DEFAULT: Self = Self { cdb_size: 32, sense_size: 96, pi: false };

    /// Bytes of a request before its data.
    pub fn request_len(&self) -> usize {
        let pi = if self.pi { 8 } else { 0 };
        REQUEST_FIXED + pi + self.cdb_size
    }

    /// Bytes of a response before its data.
    pub fn response_len(&self) -> usize {
        RESPONSE_FIXED + self.sense_size
    }

    /// Reads a request of [`Layout::request_len`] bytes.
    ///
    /// The protection fields stand before the CDB, as in Linux's header and all known devices; the
    /// text of the standard puts them behind it.
    #[inline]
    pub fn request<'a>(&self, bytes: &'a [u8]) -> Option<Request<'a>> {
        let fixed: &[u8; REQUEST_FIXED] = bytes.first_chunk()?;
        let rest = &bytes[REQUEST_FIXED..];
        let (pi, rest) = if self.pi { rest.split_at_checked(8)? } else { rest.split_at(0) };
        let [
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            attribute,
            priority,
            _,
        ] = *fixed;
        let le32 = |at: usize| {
            pi.get(at..at + 4).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
        };
        Some(Request {
            address: Address::parse([l0, l1, l2, l3, l4, l5, l6, l7]),
            tag: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            attribute: match attribute {
                0 => TaskAttribute::Simple,
                1 => TaskAttribute::Ordered,
                2 => TaskAttribute::HeadOfQueue,
                3 => TaskAttribute::Aca,
                other => TaskAttribute::Unknown(other),
            },
            priority: priority & 0x0F,
            pi_out: le32(0),
            pi_in: le32(4),
            cdb: rest.get(..self.cdb_size)?,
        })
    }
}

/// A command request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Target and logical unit.
    pub address: Option<Address>,
    /// The driver's name for it (Linux: an address).
    pub tag: u64,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Command priority.
    pub priority: u8,
    /// Bytes of protection information before the Data-Out.
    pub pi_out: u32,
    /// Bytes of protection information before the Data-In.
    pub pi_in: u32,
    /// The CDB, as long as the layout says.
    pub cdb: &'a [u8],
}

/// What the eight bytes of an address name (VIRTIO 1.3, 5.6.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The logical unit in it.
    pub lun: Lun,
}

impl Address {
    /// Reads an address: 1, the target, a single-level LUN by flat space or peripheral addressing; or
    /// the REPORT LUNS well-known logical unit, which belongs to target 0 here.
    #[inline]
    pub fn parse(bytes: [u8; 8]) -> Option<Self> {
        match bytes {
            // Drivers send 0x40 or 0 in the upper bits; nothing else is defined, and any is accepted.
            [1, target, high, low, ..] => {
                let number = u16::from(high & 0x3F) << 8 | u16::from(low);
                Lun::from_number(number).map(|lun| Self { target, lun })
            }
            [0xC1, 1, ..] => Some(Self { target: 0, lun: Lun::REPORT_LUNS }),
            _ => None,
        }
    }

    /// The address in an event, as REPORT LUNS encodes the logical unit: Linux compares the bytes
    /// with what it learnt there.
    pub fn in_event(target: u8, number: u16) -> [u8; 8] {
        let [a, b, ..] = Lun::from_number(number).unwrap_or_default().0;
        [1, target, a, b, 0, 0, 0, 0]
    }
}

/// The response to a command, before the data: at most 12 bytes and the sense data.
#[derive(Debug)]
pub struct ResponseBytes {
    bytes: [u8; RESPONSE_FIXED + libsrp::SENSE_MAX],
    len: usize,
}

impl ResponseBytes {
    /// A response without status: the command came to nothing.
    pub fn failed(code: u8) -> Self {
        let mut response = Self { bytes: [0; _], len: RESPONSE_FIXED };
        response.bytes[11] = code;
        response
    }

    /// The response to a command that the core completed; `data_in` and `data_out` are what the
    /// driver had room for.
    #[inline]
    pub fn of(response: &Response, layout: &Layout) -> Self {
        let mut outcome = code_of(response);
        let mut residual = 0u32;
        for part in [response.data_out, response.data_in] {
            match part {
                Residual::None => {}
                Residual::Under(bytes) => residual = residual.saturating_add(bytes),
                Residual::Over(bytes) => {
                    (outcome, residual) = (code::OVERRUN, bytes);
                    break;
                }
            }
        }
        let mut emitted = Self::failed(outcome);
        let bytes = &mut emitted.bytes;
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        bytes[10] = response.status.0;
        if response.status == Status::CHECK_CONDITION {
            let sense = response.sense.as_bytes();
            let sense = sense.get(..layout.sense_size).unwrap_or(sense);
            bytes[0..4].copy_from_slice(&(sense.len() as u32).to_le_bytes());
            bytes[RESPONSE_FIXED..RESPONSE_FIXED + sense.len()].copy_from_slice(sense);
            emitted.len += sense.len();
        } else {
            bytes[8..10].copy_from_slice(&(response.qualifier as u16).to_le_bytes());
        }
        emitted
    }

    /// What is to be written; the rest of the response's room stays as it is.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The response code of a command.
fn code_of(response: &Response) -> u8 {
    match response.code {
        ResponseCode::None | ResponseCode::FunctionComplete => code::OK,
        _ => code::FAILURE,
    }
}

/// Bytes of a request before the protection fields and the CDB.
const REQUEST_FIXED: usize = 19;
/// Bytes of a response before the sense data.
pub const RESPONSE_FIXED: usize = 12;
/// The longest request before its data that a device takes.
pub const MOST_REQUEST: usize = REQUEST_FIXED + 8 + config::MOST_CDB;

#[cfg(test)]
mod tests;
