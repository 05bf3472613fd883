//! SANITIZE: OVERWRITE, BLOCK ERASE and EXIT FAILURE MODE (SBC-4 4.11, 5.28).
//!
//! A sanitize operation outlives the task that started it: aborts and resets do not end it.

use super::{SCRATCH, SHORT_DATA, flush, format, long, write};
use crate::{
    engine::{Call, call::be},
    model::{LogicalUnit, LuState},
    opcode::Fail,
    sense::Sense,
};
use std::sync::Arc;

/// SANITIZE with service action OVERWRITE.
pub fn overwrite(call: &mut Call<'_>) -> Result<(), Fail> {
    check_ready(call)?;
    let pattern = Pattern::parse(call)?;
    start(call, move |lu, progress| {
        let size = lu.block_size() as usize;
        let straight = pattern.blocks(size, false);
        let inverted = pattern.blocks(size, true);
        let step = (SCRATCH / size.max(1)).max(1) as u64;
        let mut pace = long::Pace::new();
        for pass in 0..pattern.passes {
            let odd = pattern.invert && pass % 2 == 1;
            let data = if odd { &inverted } else { &straight };
            long::sweep(lu, progress, (pass, pattern.passes), step, |lba, blocks| {
                write(lu, lba, &data[..blocks as usize * size])?;
                pace.wrote(lu, blocks * size as u64);
                Ok(())
            })?;
            flush(lu)?;
        }
        Ok(())
    })
}

/// SANITIZE with service action BLOCK ERASE: deallocates a thin medium, zeroes another.
pub fn block_erase(call: &mut Call<'_>) -> Result<(), Fail> {
    check_ready(call)?;
    check_no_list(call)?;
    start(call, format::zero)
}

/// SANITIZE with service action EXIT FAILURE MODE: ends the failed state when the operation that
/// failed had AUSE set.
pub fn exit_failure_mode(call: &mut Call<'_>) -> Result<(), Fail> {
    check_no_list(call)?;
    call.lu().update(|state| {
        if let Some(busy) = long::running(state) {
            return Err(busy.into());
        }
        if state.sanitize_failed && !state.sanitize_may_exit {
            return Err(Sense::cdb_byte(1).into());
        }
        state.sanitize_failed = false;
        Ok(())
    })
}

/// An overwrite parameter list (SBC-4 table 88).
#[derive(Clone, Debug)]
struct Pattern {
    invert: bool,
    passes: u64,
    bytes: Vec<u8>,
}

impl Pattern {
    fn parse(call: &Call<'_>) -> Result<Self, Sense> {
        let length = call.field(7, 2) as usize;
        let block_size = call.lu().block_size() as usize;
        if length <= HEADER || length > HEADER + block_size {
            return Err(Sense::cdb_byte(7));
        }
        let list = call.data.get(..length).ok_or(SHORT_DATA)?;
        let (flags, bytes) = (be(list, 0, 1), &list[HEADER..]);
        let passes = flags & 0x1F;
        // TEST asks for vendor specific ways of checking.
        if flags & 0x60 != 0 || passes == 0 {
            return Err(Sense::parameter_byte(0));
        }
        if be(list, 2, 2) as usize != bytes.len() {
            return Err(Sense::parameter_byte(2));
        }
        Ok(Self { invert: flags & 0x80 != 0, passes, bytes: bytes.to_vec() })
    }

    /// As many blocks as one write takes; the pattern starts anew in each block.
    fn blocks(&self, size: usize, inverted: bool) -> Vec<u8> {
        let flip = if inverted { 0xFF } else { 0 };
        let block: Vec<u8> =
            self.bytes.iter().cycle().take(size).map(|&byte| byte ^ flip).collect();
        block.repeat((SCRATCH / size.max(1)).max(1))
    }
}

fn start<W>(call: &Call<'_>, work: W) -> Result<(), Fail>
where
    W: FnOnce(&LogicalUnit, &mut long::Progress<'_>) -> Result<(), Sense> + Send + 'static,
{
    let may_exit = call.bit(1, 5);
    long::Long {
        lu: Arc::clone(&call.itl.lu),
        immediate: call.bit(1, 7),
        shown: Sense::SANITIZING,
        work,
        finish: if may_exit { finish_unrestricted } else { finish_restricted },
    }
    .run(call.cancelled)
}

/// Like any media command, except that a failed SANITIZE or FORMAT UNIT does not stand in the way.
fn check_ready(call: &Call<'_>) -> Result<(), Sense> {
    let state = call.state();
    if state.ejected {
        Err(Sense::NO_MEDIUM)
    } else if let Some(busy) = long::running(&state) {
        Err(busy)
    } else if state.stopped {
        Err(Sense::STOPPED)
    } else {
        Ok(())
    }
}

fn check_no_list(call: &Call<'_>) -> Result<(), Sense> {
    if call.field(7, 2) != 0 { Err(Sense::cdb_byte(7)) } else { Ok(()) }
}

fn finish_restricted(state: &mut LuState, ok: bool) {
    state.sanitize_failed = !ok;
    state.sanitize_may_exit = false;
}

fn finish_unrestricted(state: &mut LuState, ok: bool) {
    state.sanitize_failed = !ok;
    state.sanitize_may_exit = true;
}

const HEADER: usize = 4;
