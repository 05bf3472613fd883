//! FORMAT UNIT.

use super::{SHORT_DATA, flush, long, unmap, write_zeroes};
use crate::{
    engine::{Call, call::be},
    model::{LogicalUnit, LuState},
    opcode::Fail,
    sense::{Sense, key},
};
use std::sync::Arc;

/// FORMAT UNIT (SBC-4 5.3): zeroes the medium, deallocating it where that reads as zeroes. There
/// are no defects to manage, and initialization patterns and protection information are refused.
/// When it fails, media commands get FORMAT COMMAND FAILED until one succeeds.
pub fn format_unit(call: &mut Call<'_>) -> Result<(), Fail> {
    let state = call.state();
    if state.ejected {
        return Err(Sense::NO_MEDIUM.into());
    } else if let Some(busy) = long::running(&state) {
        return Err(busy.into());
    } else if state.sanitize_failed {
        return Err(Sense::SANITIZE_FAILED.into());
    } else if state.stopped {
        return Err(Sense::STOPPED.into());
    }
    drop(state);
    let immediate = parse(call)?;
    long::Long {
        lu: Arc::clone(&call.itl.lu),
        immediate,
        shown: Sense::FORMATTING,
        work: zero,
        finish,
    }
    .run(call.cancelled)
}

/// Data-Out of FORMAT UNIT: the parameter list header, since what follows it is refused.
pub fn data_out(cdb: &[u8], _block_size: u32) -> u64 {
    match cdb.get(1) {
        Some(flags) if flags & FMTDATA != 0 => header_len(*flags) as u64,
        _ => 0,
    }
}

/// Checks the CDB and the parameter list; gives IMMED.
fn parse(call: &Call<'_>) -> Result<bool, Sense> {
    let flags = call.field(1, 1) as u8;
    if flags & FMTPINFO != 0 {
        return Err(Sense::cdb_bit(1, 7));
    }
    if flags & FMTDATA == 0 {
        // Without a parameter list neither its form nor that of its defect list can be chosen.
        return if flags & (LONGLIST | CMPLST) != 0 { Err(Sense::cdb_byte(1)) } else { Ok(false) };
    }
    let header = call.data.get(..header_len(flags)).ok_or(SHORT_DATA)?;
    let options = be(header, 1, 1) as u8;
    let (length_at, length) =
        if flags & LONGLIST != 0 { (4, be(header, 4, 4)) } else { (2, be(header, 2, 2)) };
    if be(header, 0, 1) & 0x07 != 0 {
        // PROTECTION FIELD USAGE
        return Err(Sense::parameter_byte(0));
    }
    if options & IP != 0 || options & FOV == 0 && options & (DPRY | DCRT | STPF) != 0 {
        return Err(Sense::parameter_byte(1));
    }
    if flags & LONGLIST != 0 && be(header, 3, 1) != 0 {
        // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT
        return Err(Sense::parameter_byte(3));
    }
    if length != 0 {
        return Err(Sense::parameter_byte(length_at));
    }
    Ok(options & IMMED != 0)
}

/// Zeroes the medium, deallocating it where that reads as zeroes.
pub(super) fn zero(lu: &LogicalUnit, progress: &mut long::Progress<'_>) -> Result<(), Sense> {
    let thin = lu.backend.properties().thin;
    let step = STEP / u64::from(lu.block_size());
    let mut pace = long::Pace::new();
    long::sweep(lu, progress, (0, 1), step, |lba, blocks| {
        if thin {
            return unmap(lu, lba, blocks);
        }
        write_zeroes(lu, lba, blocks, false)?;
        pace.wrote(lu, blocks * u64::from(lu.block_size()));
        Ok(())
    })?;
    flush(lu)
}

fn finish(state: &mut LuState, ok: bool) {
    if !ok {
        state.busy = Some(FAILED);
    }
}

fn header_len(flags: u8) -> usize {
    if flags & LONGLIST != 0 { 8 } else { 4 }
}

/// FORMAT COMMAND FAILED.
pub(crate) const FAILED: Sense = Sense::new(key::MEDIUM_ERROR, 0x31, 0x01);

const FMTPINFO: u8 = 0xC0;
const LONGLIST: u8 = 0x20;
const FMTDATA: u8 = 0x10;
const CMPLST: u8 = 0x08;

const FOV: u8 = 0x80;
const DPRY: u8 = 0x40;
const DCRT: u8 = 0x20;
const STPF: u8 = 0x10;
const IP: u8 = 0x08;
const IMMED: u8 = 0x02;

/// Bytes between two looks at progress.
pub(super) const STEP: u64 = 64 << 20;
