//! VERIFY and WRITE AND VERIFY.

use super::{SHORT_DATA, commit, count_write, flush, read, rw, scratch, write};
use crate::{engine::Call, model::LogicalUnit, opcode::Fail, sense::Sense};

/// VERIFY(10), (12) and (16) (SBC-4 5.33 to 5.35).
pub fn verify(call: &mut Call<'_>) -> Result<(), Fail> {
    let check = ByteCheck::parse(call.cdb)?;
    let extent = rw::parse(call.cdb)?;
    let lu = call.lu();
    let size = lu.block_size();
    match check {
        // Nothing is transferred, so the length of a transfer does not limit it.
        ByteCheck::Medium => call.check_range(extent.lba, u64::from(extent.blocks))?,
        _ => extent.check(lu.blocks(), size)?,
    }
    let wanted = check.data_out(extent.blocks, size);
    let data = usize::try_from(wanted)
        .ok()
        .and_then(|wanted| call.data.get(..wanted))
        .ok_or(SHORT_DATA)?;
    // What is verified is the medium, not a cache that holds something newer.
    let properties = lu.backend.properties();
    if properties.volatile_cache && !properties.read_only {
        flush(lu)?;
    }
    let len = extent.bytes(size);
    match check {
        ByteCheck::Medium => read_all(lu, extent.lba, len)?,
        ByteCheck::Each => compare(lu, extent.lba, data)?,
        ByteCheck::Same => compare_same(lu, extent.lba, len, data)?,
    }
    Ok(())
}

/// WRITE AND VERIFY(10), (12) and (16) (SBC-4 5.46 to 5.48): BYTCHK 00b reads the blocks again,
/// 01b also compares them. Of Data-Out that came short whole blocks are done.
pub fn write_and_verify(call: &mut Call<'_>) -> Result<(), Fail> {
    let extent = rw::parse(call.cdb)?;
    let lu = call.lu();
    let size = lu.block_size();
    extent.check(lu.blocks(), size)?;
    let blocks = extent.blocks_of(call.data.len(), size)?;
    let len = u64::from(blocks) * u64::from(size);
    let data = call.data.get(..len as usize).ok_or(SHORT_DATA)?;
    if data.is_empty() {
        return Ok(());
    }
    write(lu, extent.lba, data)?;
    commit(lu, true)?;
    if call.bit(1, 1) {
        compare(lu, extent.lba, data)?;
    } else {
        read_all(lu, extent.lba, len)?;
    }
    count_write(lu, len);
    Ok(())
}

/// Data-Out of VERIFY, which depends on BYTCHK.
pub fn data_out(cdb: &[u8], block_size: u32) -> u64 {
    match (ByteCheck::parse(cdb), rw::parse(cdb)) {
        (Ok(check), Ok(extent)) => check.data_out(extent.blocks, block_size),
        _ => 0,
    }
}

/// Compares blocks with `data`, MISCOMPARE at the first byte that differs: INFORMATION is its
/// offset in Data-Out.
pub(super) fn compare(lu: &LogicalUnit, lba: u64, data: &[u8]) -> Result<(), Sense> {
    let size = u64::from(lu.block_size());
    let mut buffer = scratch(data.len() as u64);
    let mut done = 0u64;
    for expected in data.chunks(buffer.len().max(1)) {
        let found = &mut buffer[..expected.len()];
        read(lu, lba + done / size, found)?;
        if let Some(at) = difference(found, expected) {
            return Err(Sense::MISCOMPARE.with_information(done + at as u64));
        }
        done += expected.len() as u64;
    }
    Ok(())
}

/// Compares every block of `len` bytes with one block.
fn compare_same(lu: &LogicalUnit, lba: u64, len: u64, block: &[u8]) -> Result<(), Sense> {
    each_chunk(lu, lba, len, |found| {
        for found in found.chunks_exact(block.len().max(1)) {
            if let Some(at) = difference(found, block) {
                return Err(Sense::MISCOMPARE.with_information(at as u64));
            }
        }
        Ok(())
    })
}

fn read_all(lu: &LogicalUnit, lba: u64, len: u64) -> Result<(), Sense> {
    each_chunk(lu, lba, len, |_| Ok(()))
}

fn each_chunk(
    lu: &LogicalUnit,
    lba: u64,
    len: u64,
    mut with: impl FnMut(&[u8]) -> Result<(), Sense>,
) -> Result<(), Sense> {
    let size = u64::from(lu.block_size());
    let mut buffer = scratch(len);
    let mut done = 0;
    while done < len {
        let part = (len - done).min(buffer.len() as u64);
        let found = &mut buffer[..part as usize];
        read(lu, lba + done / size, found)?;
        with(found)?;
        done += part;
    }
    Ok(())
}

fn difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    // Equality of slices is one memcmp; the place is only looked for when it matters.
    if found == expected {
        return None;
    }
    found.iter().zip(expected).position(|(a, b)| a != b)
}

/// BYTCHK of VERIFY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteCheck {
    /// 00b: the blocks can be read.
    Medium,
    /// 01b: they equal Data-Out.
    Each,
    /// 11b: each of them equals the one block of Data-Out.
    Same,
}

impl ByteCheck {
    fn parse(cdb: &[u8]) -> Result<Self, Sense> {
        match cdb.get(1).map_or(0, |byte| byte >> 1 & 3) {
            0 => Ok(Self::Medium),
            1 => Ok(Self::Each),
            3 => Ok(Self::Same),
            _ => Err(Sense::cdb_bit(1, 2)),
        }
    }

    fn data_out(self, blocks: u32, block_size: u32) -> u64 {
        let blocks = match self {
            Self::Medium => 0,
            Self::Each => blocks,
            Self::Same => blocks.min(1),
        };
        u64::from(blocks) * u64::from(block_size)
    }
}
