//! READ and WRITE: what the media lanes need to know of a CDB (SBC-4 5.13 to 5.16, 5.40 to 5.43).
//!
//! Protection information is not supported: the usage maps leave RDPROTECT, WRPROTECT and
//! VRPROTECT out, so a CDB that sets them never gets here.

use super::SHORT_DATA;
use crate::{engine::call::check_range, limits, sense::Sense};

/// What a READ, a WRITE or a command of the same CDB layout names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub lba: u64,
    /// Number of blocks. A READ(6) or WRITE(6) of 0 blocks means 256.
    pub blocks: u32,
    /// Force unit access.
    pub fua: bool,
    /// Disable page out: the data is not worth caching.
    pub dpo: bool,
}

/// Reads a CDB by its group: LOGICAL BLOCK ADDRESS and TRANSFER LENGTH stand where READ of that
/// length has them. INVALID COMMAND OPERATION CODE for a CDB that is too short for its group.
#[inline]
pub fn parse(cdb: &[u8]) -> Result<Extent, Sense> {
    let (lba, blocks) = match *cdb {
        [0x00..=0x1F, b1, b2, b3, len, _, ..] => {
            let lba = u32::from_be_bytes([0, b1 & 0x1F, b2, b3]);
            let blocks = if len == 0 { 256 } else { u32::from(len) };
            // The six-byte CDBs have neither DPO nor FUA: byte 1 is part of the address.
            return Ok(Extent { lba: u64::from(lba), blocks, fua: false, dpo: false });
        }
        [0x20..=0x5F, _, b2, b3, b4, b5, _, l7, l8, _, ..] => (
            u64::from(u32::from_be_bytes([b2, b3, b4, b5])),
            u32::from(u16::from_be_bytes([l7, l8])),
        ),
        [0xA0..=0xBF, _, b2, b3, b4, b5, l6, l7, l8, l9, _, _, ..] => {
            (u64::from(u32::from_be_bytes([b2, b3, b4, b5])), u32::from_be_bytes([l6, l7, l8, l9]))
        }
        [0x80..=0x9F, _, b2, b3, b4, b5, b6, b7, b8, b9, l10, l11, l12, l13, _, _, ..] => (
            u64::from_be_bytes([b2, b3, b4, b5, b6, b7, b8, b9]),
            u32::from_be_bytes([l10, l11, l12, l13]),
        ),
        _ => return Err(Sense::INVALID_OPCODE),
    };
    let flags = cdb.get(1).copied().unwrap_or(0);
    // FUA_NV asks for non-volatile cache; there is only the medium to satisfy it with.
    Ok(Extent { lba, blocks, fua: flags & 0x0A != 0, dpo: flags & 0x10 != 0 })
}

impl Extent {
    /// Checks the range against the capacity, then the length against MAXIMUM TRANSFER LENGTH.
    #[inline]
    pub fn check(&self, capacity: u64, block_size: u32) -> Result<(), Sense> {
        check_range(self.lba, u64::from(self.blocks), capacity)?;
        if self.bytes(block_size) > u64::from(limits::MAX_TRANSFER) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(())
    }

    /// Length in bytes.
    #[inline]
    pub fn bytes(&self, block_size: u32) -> u64 {
        u64::from(self.blocks) * u64::from(block_size)
    }

    /// How many blocks a write can do of the `received` bytes of Data-Out: all of them, or as many
    /// as came when that is less but whole blocks (the residual count tells the initiator).
    /// [`SHORT_DATA`] for a part of a block: nothing is written then.
    #[inline]
    pub fn blocks_of(&self, received: usize, block_size: u32) -> Result<u32, Sense> {
        let received = received as u64;
        let size = u64::from(block_size);
        if received >= self.bytes(block_size) {
            Ok(self.blocks)
        } else if received.is_multiple_of(size) {
            Ok((received / size) as u32)
        } else {
            Err(SHORT_DATA)
        }
    }
}

/// Data-Out of a command whose TRANSFER LENGTH says all, for [`crate::opcode::Transfer::OutBy`].
pub fn data_out(cdb: &[u8], block_size: u32) -> u64 {
    parse(cdb).map_or(0, |extent| extent.bytes(block_size))
}

/// The blocks a command names, for [`crate::opcode::Lane::Exclusive`].
pub fn range(cdb: &[u8]) -> (u64, u64) {
    parse(cdb).map_or((0, 0), |extent| (extent.lba, u64::from(extent.blocks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_6_of_zero_blocks_means_256() {
        let extent = parse(&[0x08, 0xFF, 0x02, 0x03, 0, 0]);
        assert_eq!(extent, Ok(Extent { lba: 0x1F_0203, blocks: 256, fua: false, dpo: false }));
    }

    #[test]
    fn write_10_takes_fua_and_dpo() {
        let extent = parse(&[0x2A, 0x18, 1, 2, 3, 4, 0x3F, 5, 6, 0]);
        assert_eq!(extent, Ok(Extent { lba: 0x0102_0304, blocks: 0x0506, fua: true, dpo: true }));
    }

    #[test]
    fn read_12_has_four_byte_length() {
        let extent = parse(&[0xA8, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
        assert_eq!(
            extent,
            Ok(Extent { lba: 0x0102_0304, blocks: 0x0506_0708, fua: true, dpo: false })
        );
    }

    #[test]
    fn write_16_has_eight_byte_address() {
        let extent = parse(&[0x8A, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0]);
        assert_eq!(
            extent,
            Ok(Extent { lba: 0x0102_0304_0506_0708, blocks: 0x090A_0B0C, fua: false, dpo: true })
        );
    }

    #[test]
    fn a_cdb_too_short_for_its_group_is_no_command() {
        assert_eq!(parse(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Sense::INVALID_OPCODE));
    }

    #[test]
    fn an_empty_range_may_start_at_the_end_but_not_behind_it() {
        let extent = Extent { lba: 100, blocks: 0, fua: false, dpo: false };
        assert_eq!(extent.check(100, 512), Ok(()));
        let behind = extent.check(99, 512).map_err(|sense| (sense.asc, sense.ascq));
        assert_eq!(behind, Err((0x21, 0)));
    }

    #[test]
    fn a_length_above_the_limit_is_an_invalid_field() {
        let blocks = limits::MAX_TRANSFER / 512;
        let extent = Extent { lba: 0, blocks, fua: false, dpo: false };
        assert_eq!(extent.check(1 << 40, 512), Ok(()));
        let above = Extent { blocks: blocks + 1, ..extent };
        assert_eq!(above.check(1 << 40, 512), Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn short_data_is_taken_by_whole_blocks_only() {
        let extent = Extent { lba: 0, blocks: 2, fua: false, dpo: false };
        assert_eq!(extent.blocks_of(1024, 512), Ok(2));
        assert_eq!(extent.blocks_of(512, 512), Ok(1));
        assert_eq!(extent.blocks_of(0, 512), Ok(0));
        assert_eq!(extent.blocks_of(700, 512), Err(SHORT_DATA));
    }
}
