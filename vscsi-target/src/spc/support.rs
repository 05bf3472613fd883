//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36), out of the
//! opcode table.

use crate::{
    backend::Properties,
    engine::Call,
    opcode::{Fail, Row, TABLE},
    sense::Sense,
};
use std::sync::Arc;

/// REPORT SUPPORTED OPERATION CODES.
pub fn report_supported_opcodes(call: &mut Call<'_>) -> Result<(), Fail> {
    let timeouts = call.bit(2, RCTD);
    let (opcode, action) = (call.field(3, 1) as u8, call.field(4, 2) as u16);
    let has_actions =
        TABLE.iter().find(|row| row.opcode == opcode).map(|row| row.service_action.is_some());
    let row = match (call.field(2, 1) & 0x07, has_actions) {
        (0, _) => {
            all(call, timeouts);
            return Ok(());
        }
        (1, Some(true)) | (2, Some(false)) => return Err(Sense::cdb_bit(2, 2).into()),
        (1, _) => Row::of(opcode, None),
        (2, _) => Row::of(opcode, Some(action)),
        (3, Some(false)) => Row::of(opcode, None).filter(|_| action == 0),
        (3, _) => Row::of(opcode, Some(action)),
        _ => return Err(Sense::cdb_bit(2, 2).into()),
    };
    let properties = call.lu().backend.properties();
    let Some(row) = row.filter(|row| is_offered(row, properties)) else {
        call.put(&[0, NOT_SUPPORTED, 0, 0]);
        return Ok(());
    };
    let flags = SUPPORTED | if timeouts { ONE_CTDP } else { 0 };
    call.put(&[0, flags, 0, row.usage.len() as u8]);
    call.put(row.usage);
    if timeouts {
        call.put(&TIMEOUTS);
    }
    Ok(())
}

fn all(call: &mut Call<'_>, timeouts: bool) {
    let start = call.reply.len();
    call.put(&[0; 4]);
    let itl = Arc::clone(call.itl);
    let properties = itl.lu.backend.properties();
    for row in TABLE.iter().filter(|row| is_offered(row, properties)) {
        let [high, low] = row.service_action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(row.service_action.is_some()) | if timeouts { CTDP } else { 0 };
        call.put(&[row.opcode, 0, high, low, 0, flags, 0, row.usage.len() as u8]);
        if timeouts {
            call.put(&TIMEOUTS);
        }
    }
    let len = (call.reply.len() - start - 4) as u32;
    call.reply[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Whether a unit with this backing has a command of the table.
fn is_offered(row: &Row, properties: &Properties) -> bool {
    match row.opcode {
        // UNMAP.
        0x42 => properties.thin,
        // WRITE ATOMIC(16).
        0x9C => properties.untorn_writes,
        _ => true,
    }
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub fn report_supported_functions(call: &mut Call<'_>) -> Result<(), Fail> {
    // ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK; then
    // QUERY ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET.
    let functions = [0xFC, 0x07, 0];
    call.put(&functions);
    if call.bit(2, REPD) {
        // No timeouts are indicated.
        call.put(&[12]);
        call.put(&[0; 12]);
    } else {
        call.put(&[0]);
    }
    Ok(())
}

const RCTD: u8 = 7;
const REPD: u8 = 7;
const CTDP: u8 = 0x02;
const ONE_CTDP: u8 = 0x80;
const NOT_SUPPORTED: u8 = 0x01;
const SUPPORTED: u8 = 0x03;
/// A command timeouts descriptor that indicates none.
const TIMEOUTS: [u8; 12] = [0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
