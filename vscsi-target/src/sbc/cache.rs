//! SYNCHRONIZE CACHE and PRE-FETCH.

use super::{Doing, failed, flush, offset, rw};
use crate::{engine::Call, model::LogicalUnit, opcode::Fail, sense::Sense};
use libsrp::Status;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// SYNCHRONIZE CACHE(10) and (16) (SBC-4 5.30, 5.31). The whole cache is brought to the medium,
/// whatever the range. With IMMED the flush goes on behind the answer; when it fails, every later
/// flush of the backend fails too, so the next SYNCHRONIZE CACHE or FUA write reports it.
pub fn synchronize(call: &mut Call<'_>) -> Result<(), Fail> {
    let extent = rw::parse(call.cdb)?;
    call.check_range(extent.lba, u64::from(extent.blocks))?;
    if call.bit(1, 1) {
        flush_behind(&call.itl.lu)?;
    } else {
        flush(call.lu())?;
    }
    Ok(())
}

/// PRE-FETCH(10) and (16) (SBC-4 5.11, 5.12). CONDITION MET while the range is no larger than what
/// is worth fetching ahead, GOOD for a larger one, of which the beginning is fetched.
pub fn prefetch(call: &mut Call<'_>) -> Result<(), Fail> {
    let extent = rw::parse(call.cdb)?;
    call.check_range(extent.lba, u64::from(extent.blocks))?;
    let lu = call.lu();
    let blocks = match extent.blocks {
        0 => lu.blocks().saturating_sub(extent.lba),
        blocks => u64::from(blocks),
    };
    let len = blocks.saturating_mul(u64::from(lu.block_size()));
    if len > 0 {
        match lu.backend.prefetch(offset(lu, extent.lba), len.min(MAX_PREFETCH)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(error) => return Err(failed(lu, &error, Doing::Reading(extent.lba)).into()),
        }
    }
    if len > MAX_PREFETCH { Ok(()) } else { Err(Fail::Status(Status::CONDITION_MET)) }
}

/// Flushes behind the answer. One thread a logical unit does it, however many commands ask.
pub(super) fn flush_behind(lu: &Arc<LogicalUnit>) -> Result<(), Sense> {
    if lu.backend.never_waits() {
        return flush(lu);
    }
    {
        let mut behind = BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = behind.iter_mut().find(|entry| entry.lu == lu.id) {
            // What was written after that flush began is only covered by another one.
            entry.again = true;
            return Ok(());
        }
        behind.push(Behind { lu: lu.id, again: false });
    }
    let flushed = Arc::clone(lu);
    let spawned = thread::Builder::new().name("vscsi-flush".to_owned()).spawn(move || {
        while {
            if let Err(sense) = flush(&flushed) {
                tracing::error!(lu = flushed.id, ?sense, "a flush behind an answer failed");
            }
            flush_again(flushed.id)
        } {}
    });
    if spawned.is_err() {
        while flush_again(lu.id) {}
        return flush(lu);
    }
    Ok(())
}

/// A logical unit being flushed behind an answer.
#[derive(Debug)]
struct Behind {
    lu: u64,
    again: bool,
}

static BEHIND: Mutex<Vec<Behind>> = Mutex::new(Vec::new());

/// Whether somebody asked for another flush meanwhile; the entry is gone when nobody did.
fn flush_again(lu: u64) -> bool {
    let mut behind = BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(at) = behind.iter().position(|entry| entry.lu == lu) else {
        return false;
    };
    if behind[at].again {
        behind[at].again = false;
        true
    } else {
        behind.swap_remove(at);
        false
    }
}

/// Bytes that one PRE-FETCH reads ahead at most.
const MAX_PREFETCH: u64 = 64 << 20;
