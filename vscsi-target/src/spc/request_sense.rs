//! REQUEST SENSE (SPC-4 6.39).

use crate::{
    engine::{Call, call::be},
    opcode::Fail,
    sense::Sense,
};

/// REQUEST SENSE: a pending unit attention, which is cleared; otherwise why the logical unit is not
/// ready, with the progress of a long operation; otherwise NO SENSE.
pub fn request_sense(call: &mut Call<'_>) -> Result<(), Fail> {
    let sense = match call.itl.take_attention() {
        Some(condition) => condition.sense(),
        None => call.lu().readiness().err().unwrap_or(Sense::NONE),
    };
    put(call.cdb, sense, call.reply);
    Ok(())
}

/// REQUEST SENSE of a LUN that names nothing: LOGICAL UNIT NOT SUPPORTED, as data.
pub fn absent(cdb: &[u8], reply: &mut Vec<u8>) {
    put(cdb, Sense::LUN_NOT_SUPPORTED, reply);
}

fn put(cdb: &[u8], sense: Sense, reply: &mut Vec<u8>) {
    let descriptor = be(cdb, 1, 1) & 1 != 0;
    reply.extend_from_slice(sense.encode(descriptor).as_bytes());
}
