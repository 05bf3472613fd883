//! READ CAPACITY and GET LBA STATUS.

use super::{Doing, failed, offset};
use crate::{engine::Call, model::LogicalUnit, opcode::Fail, sense::Sense};

/// READ CAPACITY(10) (SBC-4 5.20). A last block that does not fit is reported as FFFF_FFFFh, which
/// sends the initiator to READ CAPACITY(16).
pub fn read_capacity_10(call: &mut Call<'_>) -> Result<(), Fail> {
    check_pmi(call, 4, call.bit(8, 0))?;
    let last = last_block(call.lu())?;
    call.put(&u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
    let block_size = call.lu().block_size();
    call.put(&block_size.to_be_bytes());
    Ok(())
}

/// READ CAPACITY(16) (SBC-4 5.21).
pub fn read_capacity_16(call: &mut Call<'_>) -> Result<(), Fail> {
    check_pmi(call, 8, call.bit(14, 0))?;
    let last = last_block(call.lu())?;
    let properties = call.lu().backend.properties();
    let block_size = properties.block_size;
    let ratio = (properties.physical_block_size / block_size.max(1)).max(1);
    let mut data = [0; 32];
    data[..8].copy_from_slice(&last.to_be_bytes());
    data[8..12].copy_from_slice(&block_size.to_be_bytes());
    data[13] = ratio.ilog2() as u8;
    if properties.thin {
        // LBPME and LBPRZ; LOWEST ALIGNED LBA stays 0.
        data[14] = 0xC0;
    }
    call.put(&data);
    Ok(())
}

/// GET LBA STATUS(16) (SBC-4 5.5): as many descriptors as fit, adjacent extents of one kind merged.
pub fn get_lba_status(call: &mut Call<'_>) -> Result<(), Fail> {
    let start = call.field(2, 8);
    let capacity = call.lu().blocks();
    if start >= capacity {
        return Err(Sense::LBA_OUT_OF_RANGE.with_information(start).into());
    }
    let room = usize::try_from(call.field(10, 4).saturating_sub(HEADER as u64)).unwrap_or(0);
    let wanted = (room / DESCRIPTOR).clamp(1, MAX_DESCRIPTORS);
    let runs = runs(call.lu(), start, capacity, wanted)?;
    let length = (HEADER - 4 + runs.len() * DESCRIPTOR) as u32;
    call.put(&length.to_be_bytes());
    call.put(&[0; 4]);
    for run in runs {
        call.put(&run.lba.to_be_bytes());
        call.put(&run.blocks.to_be_bytes());
        // PROVISIONING STATUS: 0 mapped, 1 deallocated.
        call.put(&[u8::from(!run.mapped), 0, 0, 0]);
    }
    Ok(())
}

/// Blocks of one provisioning status.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    lba: u64,
    blocks: u32,
    mapped: bool,
}

/// At most `wanted` runs from `start` on.
fn runs(lu: &LogicalUnit, start: u64, capacity: u64, wanted: usize) -> Result<Vec<Run>, Sense> {
    let mut runs: Vec<Run> = Vec::new();
    let mut lba = start;
    for _ in 0..MAX_LOOKS {
        if lba >= capacity {
            break;
        }
        let (mapped, mut blocks) = look(lu, lba, capacity)?;
        lba += blocks;
        if let Some(last) = runs.last_mut()
            && last.mapped == mapped
        {
            let merged = blocks.min(u64::from(u32::MAX - last.blocks));
            last.blocks += merged as u32;
            blocks -= merged;
        }
        while blocks > 0 && runs.len() < wanted {
            let part = u32::try_from(blocks).unwrap_or(u32::MAX);
            runs.push(Run { lba: lba - blocks, blocks: part, mapped });
            blocks -= u64::from(part);
        }
        if blocks > 0 {
            break;
        }
    }
    Ok(runs)
}

/// The status at a block and for how many blocks it holds, at least one. A block of which only a
/// part is a hole counts as mapped.
fn look(lu: &LogicalUnit, lba: u64, capacity: u64) -> Result<(bool, u64), Sense> {
    let left = capacity - lba;
    if !lu.backend.properties().thin {
        return Ok((true, left));
    }
    let size = u64::from(lu.block_size());
    let extent = lu
        .backend
        .extent(offset(lu, lba))
        .map_err(|error| failed(lu, &error, Doing::Reading(lba)))?;
    let hole = if extent.mapped { 0 } else { extent.len / size };
    Ok(if hole > 0 {
        (false, hole.min(left))
    } else {
        let data = if extent.mapped { extent.len.div_ceil(size) } else { 1 };
        (true, data.clamp(1, left))
    })
}

fn last_block(lu: &LogicalUnit) -> Result<u64, Sense> {
    lu.blocks().checked_sub(1).ok_or(Sense::NO_MEDIUM)
}

/// Without PMI the address has to be 0 (SBC-2 5.10); PMI itself changes nothing here, because no
/// block is slower to reach than the one before it.
fn check_pmi(call: &Call<'_>, width: usize, pmi: bool) -> Result<(), Sense> {
    if !pmi && call.field(2, width) != 0 { Err(Sense::cdb_byte(2)) } else { Ok(()) }
}

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// Bounds the answer to 64 KiB.
const MAX_DESCRIPTORS: usize = 4096;

/// Bounds the time that a badly fragmented file takes.
const MAX_LOOKS: usize = 1 << 16;
