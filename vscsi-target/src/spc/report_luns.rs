//! REPORT LUNS (SPC-4 6.33).

use crate::{
    engine::{Call, call::be},
    model::{Attention, nexus::LunTable},
    opcode::Fail,
    sense::Sense,
};
use libsrp::Lun;

/// REPORT LUNS of any logical unit.
pub fn report_luns(call: &mut Call<'_>) -> Result<(), Fail> {
    answer(call.cdb, call.table, call.reply)
}

/// The answer for a nexus with this table: the same whichever LUN it was sent to, even one that
/// names nothing. The nexus then knows its inventory, so REPORTED LUNS DATA HAS CHANGED is cleared
/// on all of it.
pub fn answer(cdb: &[u8], table: &LunTable, reply: &mut Vec<u8>) -> Result<(), Fail> {
    let (ordinary, well_known) = match be(cdb, 2, 1) {
        0x00 | 0x11 => (true, false),
        0x01 => (false, true),
        0x02 => (true, true),
        // Administrative logical units and their subsidiaries: there are none.
        0x10 | 0x12 => (false, false),
        _ => return Err(Sense::cdb_byte(2).into()),
    };
    let start = reply.len();
    reply.extend_from_slice(&[0; 8]);
    if well_known {
        reply.extend_from_slice(&Lun::REPORT_LUNS.0);
    }
    if ordinary {
        let numbers = table.iter().filter_map(|(number, _)| Lun::from_number(number));
        numbers.for_each(|lun| reply.extend_from_slice(&lun.0));
    }
    let len = (reply.len() - start - 8) as u32;
    reply[start..start + 4].copy_from_slice(&len.to_be_bytes());
    for (_, itl) in table.iter() {
        itl.clear_attention(Attention::LUNS_CHANGED);
    }
    Ok(())
}
