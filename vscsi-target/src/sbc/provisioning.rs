//! WRITE SAME and UNMAP.

use super::{
    SCRATCH, SHORT_DATA, commit, count_write, rw, unmap as deallocate, write, write_zeroes,
};
use crate::{
    engine::{Call, call::be},
    limits,
    opcode::Fail,
    sense::Sense,
};

/// WRITE SAME(10) and (16) (SBC-4 5.50, 5.51). WSNZ is 1: a length of 0 is refused. Zeroes are
/// deallocated when UNMAP allows it; any other block is written, as LBPRZ demands.
pub fn write_same(call: &mut Call<'_>) -> Result<(), Fail> {
    let extent = rw::parse(call.cdb)?;
    let lu = call.lu();
    let size = lu.block_size();
    let may_unmap = call.bit(1, 3);
    if may_unmap && !lu.backend.properties().thin {
        return Err(Sense::cdb_bit(1, 3).into());
    }
    let lba = extent.lba;
    let blocks = u64::from(extent.blocks);
    if blocks == 0 {
        return Err(Sense::cdb_byte(length_at(call.cdb)).into());
    }
    call.check_range(lba, blocks)?;
    if blocks > limits::MAX_WRITE_SAME {
        return Err(Sense::cdb_byte(length_at(call.cdb)).into());
    }
    let block = match no_data(call.cdb) {
        true => &[],
        false => call.data.get(..size as usize).ok_or(SHORT_DATA)?,
    };
    if block.iter().all(|&byte| byte == 0) {
        write_zeroes(lu, lba, blocks, may_unmap)?;
    } else {
        fill(call, lba, blocks, block)?;
    }
    commit(lu, false)?;
    count_write(lu, blocks * u64::from(size));
    Ok(())
}

/// UNMAP (SBC-4 5.32). Every descriptor is checked before the first is done; they may overlap.
pub fn unmap(call: &mut Call<'_>) -> Result<(), Fail> {
    let lu = call.lu();
    if !lu.backend.properties().thin {
        return Err(Sense::INVALID_OPCODE.into());
    }
    let length = call.field(7, 2) as usize;
    if length == 0 {
        return Ok(());
    }
    if length < LIST_HEADER {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    }
    let list = call.data.get(..length).ok_or(SHORT_DATA)?;
    let described = be(list, 2, 2) as usize;
    let descriptors =
        list.get(LIST_HEADER..LIST_HEADER + described).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    // A descriptor that is cut off at the end is ignored.
    let descriptors = descriptors.chunks_exact(DESCRIPTOR).map(|at| (be(at, 0, 8), be(at, 8, 4)));
    if descriptors.len() as u64 > u64::from(limits::MAX_UNMAP_DESCRIPTORS) {
        return Err(Sense::parameter_byte(2).into());
    }
    for (lba, blocks) in descriptors.clone() {
        call.check_range(lba, blocks)?;
    }
    for (lba, blocks) in descriptors {
        if blocks > 0 {
            deallocate(lu, lba, blocks)?;
        }
    }
    commit(lu, false)?;
    Ok(())
}

/// Data-Out of WRITE SAME: one block, or none with NDOB.
pub fn write_same_data(cdb: &[u8], block_size: u32) -> u64 {
    if no_data(cdb) { 0 } else { u64::from(block_size) }
}

/// Writes one block over and over.
fn fill(call: &Call<'_>, mut lba: u64, mut left: u64, block: &[u8]) -> Result<(), Sense> {
    let fitting = (SCRATCH / block.len().max(1)).max(1) as u64;
    let buffer = block.repeat(left.min(fitting) as usize);
    while left > 0 {
        let part = left.min(fitting);
        write(call.lu(), lba, &buffer[..part as usize * block.len()])?;
        lba += part;
        left -= part;
    }
    Ok(())
}

/// NDOB, which only WRITE SAME(16) has.
fn no_data(cdb: &[u8]) -> bool {
    matches!(*cdb, [0x93, flags, ..] if flags & 0x01 != 0)
}

/// Where NUMBER OF LOGICAL BLOCKS stands.
fn length_at(cdb: &[u8]) -> u16 {
    if cdb.first() == Some(&0x93) { 10 } else { 7 }
}

const LIST_HEADER: usize = 8;
const DESCRIPTOR: usize = 16;
