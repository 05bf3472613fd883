//! START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL.

use super::{cache::flush_behind, flush};
use crate::{
    engine::Call,
    model::{Attention, nexus::bit},
    opcode::Fail,
    sense::Sense,
};
use libsrp::Status;

/// START STOP UNIT (SBC-4 5.29).
///
/// Power conditions are accepted and save nothing; the active, idle and standby ones wake a
/// stopped unit. Stopping without LOEJ makes a fixed unit answer INITIALIZING COMMAND REQUIRED
/// until it is started; a removable one spins up by itself and only flushes.
pub fn start_stop(call: &mut Call<'_>) -> Result<(), Fail> {
    let power = call.field(4, 1) as u8 >> 4;
    let request = Request {
        immediate: call.bit(1, 0),
        flush: !call.bit(4, 2),
        load_eject: call.bit(4, 1),
        start: call.bit(4, 0),
    };
    // Only a plain start is allowed under another nexus's persistent reservation (SBC-4 4.17).
    if power != 0 || !request.start {
        check_reservation(call)?;
    }
    if let Some(busy) = call.state().busy {
        return Err(busy.into());
    }
    match power {
        0 if request.load_eject => load_eject(call, request),
        0 => start_or_stop(call, request),
        1..=3 => {
            call.lu().update(|state| state.stopped = false);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// PREVENT ALLOW MEDIUM REMOVAL (SBC-4 5.13): each I_T nexus prevents or allows for itself.
pub fn prevent_allow(call: &mut Call<'_>) -> Result<(), Fail> {
    let prevent = call.bit(4, 0);
    if prevent {
        check_reservation(call)?;
    }
    let id = call.itl.nexus.id;
    call.lu().update(|state| {
        if let Some(busy) = state.busy {
            return Err(busy.into());
        }
        state.preventers.retain(|&other| other != id);
        if prevent {
            state.preventers.push(id);
        }
        Ok(())
    })
}

/// START STOP UNIT without a power condition.
#[derive(Clone, Copy, Debug)]
struct Request {
    immediate: bool,
    flush: bool,
    load_eject: bool,
    start: bool,
}

fn start_or_stop(call: &Call<'_>, request: Request) -> Result<(), Fail> {
    let lu = call.lu();
    if request.start {
        return lu.update(|state| {
            if state.ejected {
                return Err(Sense::NO_MEDIUM.into());
            }
            state.stopped = false;
            Ok(())
        });
    }
    settle(call, request)?;
    if !lu.config.removable {
        lu.update(|state| state.stopped = true);
    }
    Ok(())
}

fn load_eject(call: &Call<'_>, request: Request) -> Result<(), Fail> {
    let lu = call.lu();
    if !lu.config.removable {
        return Err(Sense::cdb_bit(4, 1).into());
    }
    if call.state().is_removal_prevented() {
        return Err(Sense::REMOVAL_PREVENTED.into());
    }
    if !request.start {
        settle(call, request)?;
    }
    let loaded = lu.update(|state| {
        // Somebody may have prevented it while the cache was flushed.
        if state.is_removal_prevented() {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        let loaded = state.ejected && request.start;
        state.ejected = !request.start;
        state.stopped = false;
        Ok(loaded)
    })?;
    if loaded {
        lu.establish(Attention::MEDIUM_CHANGED, Some(call.itl.nexus.id));
    }
    Ok(())
}

/// Brings the cache to the medium before it stops, unless NO_FLUSH.
fn settle(call: &Call<'_>, request: Request) -> Result<(), Sense> {
    if !request.flush {
        Ok(())
    } else if request.immediate {
        flush_behind(&call.itl.lu)
    } else {
        flush(call.lu())
    }
}

fn check_reservation(call: &Call<'_>) -> Result<(), Fail> {
    if call.itl.attention() & bit::WRITE_DENIED != 0 {
        return Err(Fail::Status(Status::RESERVATION_CONFLICT));
    }
    Ok(())
}
