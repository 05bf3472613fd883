//! Commands for a LUN without a logical unit, and for the REPORT LUNS well-known logical unit.

use crate::{
    engine::call::be,
    model::{NexusInfo, nexus::LunTable},
    opcode::{Fail, Row, Transfer, flag},
    sense::Sense,
    spc::{inquiry, report_luns, request_sense},
};

/// Answers a command into `reply`, and gives the allocation length to truncate it to.
///
/// A LUN that is not there answers INQUIRY (peripheral qualifier 3), REPORT LUNS and REQUEST SENSE
/// (SPC-5 6.7); everything else is LOGICAL UNIT NOT SUPPORTED.
pub(super) fn answer(
    cdb: &[u8],
    info: &NexusInfo,
    table: &LunTable,
    is_well_known: bool,
    reply: &mut Vec<u8>,
) -> Result<u64, Fail> {
    let row = Row::find(cdb).ok();
    let Some(row) = row.filter(|row| row.has(flag::ANY_LUN)) else {
        return match cdb.first() {
            Some(0x00) if is_well_known => Ok(0),
            _ if is_well_known => Err(Sense::INVALID_OPCODE.into()),
            _ => Err(Sense::LUN_NOT_SUPPORTED.into()),
        };
    };
    match row.opcode {
        0x12 if is_well_known => inquiry::well_known(cdb, &info.target, info.port, reply)?,
        0x12 => inquiry::absent(cdb, &info.target, info.port, reply)?,
        0xA0 => report_luns::answer(cdb, table, reply)?,
        _ if is_well_known => reply.extend(Sense::NONE.encode(be(cdb, 1, 1) & 1 != 0).as_bytes()),
        _ => request_sense::absent(cdb, reply),
    }
    Ok(match row.transfer {
        Transfer::In(length) => length.read(cdb),
        _ => 0,
    })
}
