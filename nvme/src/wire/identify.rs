//! Identify data structures (clause 5.17.2; NVM command set 4.1.5): of the 4096 bytes, what is used.

use super::{IDENTIFY_BYTES, le};
use thiserror::Error;

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentifyError {
    /// It has no blocks: there is no such namespace, or it is not attached.
    #[error("it is not active")]
    Inactive,
    /// The format in use is not one that it has.
    #[error("it is formatted in a way ({0}) that it does not describe")]
    Format(u8),
    /// Blocks are neither 512 nor 4096 bytes.
    #[error("its blocks have 2^{0} bytes: 512 and 4096 are supported")]
    BlockSize(u8),
    /// Blocks carry metadata.
    #[error("its blocks carry {0} bytes of metadata, which is not supported")]
    Metadata(u16),
    /// More bytes than can be addressed.
    #[error("{0} blocks are more than can be addressed")]
    Size(u64),
}

/// Identify Controller (figure 275).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerData {
    /// PCI vendor.
    pub vendor: u16,
    /// Serial number, without padding.
    pub serial: String,
    /// Model number, without padding.
    pub model: String,
    /// Firmware revision, without padding.
    pub firmware: String,
    /// The most data a command may move, in units of the smallest page as a power of two; 0 for any.
    pub mdts: u8,
    /// How many namespaces there may be.
    pub namespaces: u32,
    /// It has Dataset Management.
    pub deallocates: bool,
    /// It has Write Zeroes.
    pub writes_zeroes: bool,
    /// It has Compare.
    pub compares: bool,
    /// It has reservations.
    pub reserves: bool,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
    /// Blocks that a power failure does not tear, as a command writes them; at least 1.
    pub atomic_blocks: u32,
}

impl ControllerData {
    /// Reads it.
    pub fn parse(data: &[u8; IDENTIFY_BYTES]) -> Self {
        let optional = le(data, 520, 2);
        Self {
            vendor: le(data, 0, 2) as u16,
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            firmware: text(&data[64..72]),
            mdts: data[77],
            namespaces: le(data, 516, 4) as u32,
            compares: optional & 1 != 0,
            deallocates: optional & 1 << 2 != 0,
            writes_zeroes: optional & 1 << 3 != 0,
            reserves: optional & 1 << 5 != 0,
            volatile_cache: data[525] & 1 != 0,
            atomic_blocks: le(data, 528, 2) as u32 + 1,
        }
    }

    /// The most bytes a command may move, with a smallest page of so many bytes.
    pub fn most_bytes(&self, smallest_page: u32) -> u64 {
        match self.mdts {
            0 => u64::MAX,
            shift => u64::from(smallest_page)
                .checked_shl(shift.into())
                .filter(|most| *most > 0)
                .unwrap_or(u64::MAX),
        }
    }
}

/// Identify Namespace (NVM command set, figure 97).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceData {
    /// Size in blocks.
    pub blocks: u64,
    /// Bytes a block: 512 or 4096.
    pub block_size: u32,
    /// Space is given when it is written, and can be given back.
    pub thin: bool,
    /// Deallocated blocks read as zeroes.
    pub reads_zeroes: bool,
    /// Write Zeroes can deallocate.
    pub zeroes_deallocate: bool,
    /// Blocks that a power failure does not tear in this namespace, if it says so itself.
    pub atomic_blocks: Option<u32>,
    /// Atomic writes must not cross multiples of so many blocks; 0 for no such boundary.
    pub atomic_boundary: u32,
    /// Preferred granularity of deallocation in blocks, at least 1.
    pub deallocation_granularity: u32,
    /// Writes are refused.
    pub write_protected: bool,
    /// NGUID, all zeroes if it has none.
    pub nguid: [u8; 16],
    /// EUI-64, all zeroes if it has none.
    pub eui64: [u8; 8],
}

impl NamespaceData {
    /// Reads it.
    pub fn parse(data: &[u8; IDENTIFY_BYTES]) -> Result<Self, IdentifyError> {
        let blocks = le(data, 0, 8);
        if blocks == 0 {
            return Err(IdentifyError::Inactive);
        }
        let features = data[24];
        // Bits 6:5 are the upper ones of the format's number, since 2.0.
        let format = data[26] & 0xF | data[26] >> 1 & 0x30;
        if format > data[25] || format > 63 {
            return Err(IdentifyError::Format(format));
        }
        let format = le(data, 128 + 4 * usize::from(format), 4);
        let metadata = format as u16;
        if metadata != 0 {
            return Err(IdentifyError::Metadata(metadata));
        }
        let block_size = match (format >> 16) as u8 {
            9 => 512,
            12 => 4096,
            other => return Err(IdentifyError::BlockSize(other)),
        };
        if blocks.checked_mul(block_size).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(IdentifyError::Size(blocks));
        }
        let optimal = features & 1 << 4 != 0;
        Ok(Self {
            blocks,
            block_size: block_size as u32,
            thin: features & 1 != 0,
            reads_zeroes: data[33] & 7 == 1,
            zeroes_deallocate: data[33] & 1 << 3 != 0,
            atomic_blocks: (features & 2 != 0).then(|| le(data, 36, 2) as u32 + 1),
            atomic_boundary: if features & 2 != 0 { le(data, 44, 2) as u32 } else { 0 },
            deallocation_granularity: if optimal { le(data, 68, 2) as u32 + 1 } else { 1 },
            write_protected: data[99] & 1 != 0,
            nguid: array(&data[104..120]),
            eui64: array(&data[120..128]),
        })
    }
}

/// The numbers in an Active Namespace ID list (5.17.2.3), up to the first 0.
pub fn active_namespaces(data: &[u8; IDENTIFY_BYTES]) -> Vec<u32> {
    let numbers = data.chunks_exact(4).map(|bytes| le(bytes, 0, 4) as u32);
    numbers.take_while(|number| *number != 0).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}

/// Printable ASCII of a padded field; anything else in it becomes a question mark.
fn text(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(change: impl FnOnce(&mut [u8; 4096])) -> Result<NamespaceData, IdentifyError> {
        let mut data = [0; 4096];
        data[..8].copy_from_slice(&0x20000_u64.to_le_bytes());
        data[128..132].copy_from_slice(&[0, 0, 9, 0]);
        change(&mut data);
        NamespaceData::parse(&data)
    }

    #[test]
    fn controller_fields_are_where_they_belong() {
        let mut data = [0xA5; 4096];
        data[..2].copy_from_slice(&[0x36, 0x1B]);
        data[4..24].copy_from_slice(b"abc\x01                ");
        data[24..64].copy_from_slice(b"QEMU NVMe Ctrl                          ");
        data[64..72].copy_from_slice(b"7.2.0\0\0\0");
        data[77] = 7;
        data[516..520].copy_from_slice(&[0, 1, 0, 0]);
        data[520..522].copy_from_slice(&[0x5D, 1]);
        data[525] = 7;
        data[528..530].copy_from_slice(&[3, 0]);
        let parsed = ControllerData::parse(&data);
        assert_eq!((parsed.vendor, parsed.serial.as_str()), (0x1B36, "abc?"));
        assert_eq!((parsed.model.as_str(), parsed.firmware.as_str()), ("QEMU NVMe Ctrl", "7.2.0"));
        assert_eq!((parsed.namespaces, parsed.atomic_blocks), (256, 4));
        assert!(parsed.compares && parsed.deallocates && parsed.writes_zeroes);
        assert!(!parsed.reserves && parsed.volatile_cache);
        assert_eq!(parsed.most_bytes(4096), 512 << 10);
    }

    #[test]
    fn any_transfer_size_exponent_is_a_size() {
        let mut data = [0; 4096];
        assert_eq!(ControllerData::parse(&data).most_bytes(4096), u64::MAX);
        for mdts in 1..=255 {
            data[77] = mdts;
            assert!(ControllerData::parse(&data).most_bytes(4096) >= 8192, "{mdts}");
        }
    }

    #[test]
    fn namespace_with_everything() {
        let data = namespace(|data| {
            data[24] = 0x13;
            data[25] = 1;
            data[26] = 1;
            data[33] = 9;
            data[36..38].copy_from_slice(&[0xFF, 0]);
            data[44..46].copy_from_slice(&[0, 1]);
            data[68..70].copy_from_slice(&[7, 0]);
            data[99] = 1;
            data[120..128].copy_from_slice(&[1; 8]);
            data[132..136].copy_from_slice(&[0, 0, 12, 0]);
        })
        .unwrap();
        assert_eq!((data.blocks, data.block_size), (0x20000, 4096));
        assert!(data.thin && data.reads_zeroes && data.zeroes_deallocate && data.write_protected);
        assert_eq!((data.atomic_blocks, data.atomic_boundary), (Some(256), 256));
        assert_eq!((data.deallocation_granularity, data.eui64), (8, [1; 8]));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let refused = |change: fn(&mut [u8; 4096])| namespace(change).unwrap_err();
        assert_eq!(refused(|data| data[..8].fill(0)), IdentifyError::Inactive);
        assert_eq!(refused(|data| data[26] = 5), IdentifyError::Format(5));
        assert_eq!(refused(|data| data[128] = 8), IdentifyError::Metadata(8));
        assert_eq!(refused(|data| data[130] = 255), IdentifyError::BlockSize(255));
        assert_eq!(refused(|data| data[..8].fill(0xFF)), IdentifyError::Size(u64::MAX));
    }

    #[test]
    fn list_of_namespaces_ends_at_the_first_zero() {
        let mut data = [0; 4096];
        data[..12].copy_from_slice(&[1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        data[12] = 9;
        assert_eq!(active_namespaces(&data), [1, 0x102]);
        assert_eq!(active_namespaces(&[0xFF; 4096]).len(), 1024);
    }
}
