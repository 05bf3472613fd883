//! REPORT TARGET PORT GROUPS (SPC-4 6.37): every group is active/optimized, and nobody can change
//! that.

use crate::{engine::Call, opcode::Fail, sense::Sense};
use std::collections::BTreeMap;

/// REPORT TARGET PORT GROUPS.
pub fn report_target_port_groups(call: &mut Call<'_>) -> Result<(), Fail> {
    let header: &[u8] = match call.field(1, 1) >> 5 {
        0 => &[0; 4],
        // The extended header has a format of its own, and no implicit transition time.
        1 => &[0, 0, 0, 0, 0x10, 0, 0, 0],
        _ => return Err(Sense::cdb_bit(1, 7).into()),
    };
    let mut groups = BTreeMap::<u16, Vec<u16>>::new();
    for port in call.itl.nexus.target.ports() {
        groups.entry(port.group).or_default().push(port.relative_id);
    }
    let start = call.reply.len();
    call.put(header);
    for (group, mut ports) in groups {
        ports.truncate(255);
        let [high, low] = group.to_be_bytes();
        call.put(&[ACTIVE_OPTIMIZED, AO_SUP, high, low, 0, 0, 0, ports.len() as u8]);
        for port in ports {
            let [high, low] = port.to_be_bytes();
            call.put(&[0, 0, high, low]);
        }
    }
    let len = (call.reply.len() - start - 4) as u32;
    call.reply[start..start + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

const ACTIVE_OPTIMIZED: u8 = 0x00;
const AO_SUP: u8 = 0x01;
