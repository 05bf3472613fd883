//! COMPARE AND WRITE, ORWRITE and WRITE ATOMIC: the engine keeps every other command off the blocks
//! they name while they run.
//!
//! They are atomic towards other commands. A WRITE ATOMIC has to be whole after a power failure too,
//! so only units that can promise it have the command.

use super::{SHORT_DATA, commit, count_write, read, rw, scratch, verify::compare, write};
use crate::{
    engine::{Call, call::be},
    limits,
    opcode::Fail,
    sense::Sense,
};

/// COMPARE AND WRITE (SBC-4 5.2): the first half of Data-Out is compared, the second written.
pub fn compare_and_write(call: &mut Call<'_>) -> Result<(), Fail> {
    let (lba, blocks) = compare_and_write_range(call.cdb);
    let lu = call.lu();
    call.check_range(lba, blocks)?;
    if blocks > u64::from(limits::MAX_COMPARE_AND_WRITE) {
        return Err(Sense::cdb_byte(13).into());
    }
    if blocks == 0 {
        return Ok(());
    }
    let half = blocks as usize * lu.block_size() as usize;
    let data = call.data.get(..2 * half).ok_or(SHORT_DATA)?;
    let (expected, new) = data.split_at(half);
    compare(lu, lba, expected)?;
    write(lu, lba, new)?;
    commit(lu, call.bit(1, 3))?;
    count_write(lu, half as u64);
    Ok(())
}

/// ORWRITE(16) (SBC-4 5.8).
pub fn orwrite(call: &mut Call<'_>) -> Result<(), Fail> {
    let extent = rw::parse(call.cdb)?;
    let lu = call.lu();
    let size = lu.block_size();
    extent.check(lu.blocks(), size)?;
    let len = extent.bytes(size);
    let data = call.data.get(..len as usize).ok_or(SHORT_DATA)?;
    let mut buffer = scratch(len);
    let mut lba = extent.lba;
    for set in data.chunks(buffer.len().max(1)) {
        let blocks = &mut buffer[..set.len()];
        read(lu, lba, blocks)?;
        for (byte, set) in blocks.iter_mut().zip(set) {
            *byte |= set;
        }
        write(lu, lba, blocks)?;
        lba += set.len() as u64 / u64::from(size);
    }
    commit(lu, extent.fua)?;
    if len > 0 {
        count_write(lu, len);
    }
    Ok(())
}

/// WRITE ATOMIC(16) (SBC-4 5.49), without atomic boundaries. Any alignment will do; the length is
/// limited by MAXIMUM ATOMIC TRANSFER LENGTH. Units whose writes may be torn do not have it.
pub fn write_atomic(call: &mut Call<'_>) -> Result<(), Fail> {
    let (lba, blocks) = write_atomic_range(call.cdb);
    let lu = call.lu();
    if !lu.backend.properties().untorn_writes {
        return Err(Sense::INVALID_OPCODE.into());
    }
    call.check_range(lba, blocks)?;
    let len = blocks * u64::from(lu.block_size());
    if len > u64::from(limits::MAX_ATOMIC) {
        return Err(Sense::cdb_byte(12).into());
    }
    let data = call.data.get(..len as usize).ok_or(SHORT_DATA)?;
    if data.is_empty() {
        return Ok(());
    }
    write(lu, lba, data)?;
    commit(lu, call.bit(1, 3))?;
    count_write(lu, len);
    Ok(())
}

/// The blocks a COMPARE AND WRITE names.
pub fn compare_and_write_range(cdb: &[u8]) -> (u64, u64) {
    (be(cdb, 2, 8), be(cdb, 13, 1))
}

/// Data-Out of COMPARE AND WRITE: twice the blocks it names.
pub fn compare_and_write_data(cdb: &[u8], block_size: u32) -> u64 {
    2 * be(cdb, 13, 1) * u64::from(block_size)
}

/// The blocks a WRITE ATOMIC(16) names.
pub fn write_atomic_range(cdb: &[u8]) -> (u64, u64) {
    (be(cdb, 2, 8), be(cdb, 12, 2))
}

/// Data-Out of WRITE ATOMIC(16).
pub fn write_atomic_data(cdb: &[u8], block_size: u32) -> u64 {
    be(cdb, 12, 2) * u64::from(block_size)
}
