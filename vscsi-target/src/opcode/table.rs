//! The rows of all commands, joined at compile time.

mod sbc;
mod spc;

use super::{Row, service_action};

/// Every command, rows of one opcode together.
pub static TABLE: &[Row] = &JOINED;

static JOINED: [Row; LEN] = {
    let mut all = [spc::ROWS[0]; LEN];
    let mut at = 0;
    while at < spc::ROWS.len() {
        all[at] = spc::ROWS[at];
        at += 1;
    }
    while at < LEN {
        all[at] = sbc::ROWS[at - spc::ROWS.len()];
        at += 1;
    }
    check(&all);
    all
};

const LEN: usize = spc::ROWS.len() + sbc::ROWS.len();

/// What dispatch relies on; a table that breaks it does not compile.
const fn check(rows: &[Row]) {
    let mut at = 0;
    while at < rows.len() {
        let row = &rows[at];
        assert!(row.usage.len() == cdb_len(row.opcode), "the usage map is as long as the CDB");
        assert!(row.usage[0] == row.opcode, "the usage map starts with the opcode");
        let mut before = 0;
        while before < at {
            let other = &rows[before];
            if other.opcode == row.opcode {
                assert!(rows[at - 1].opcode == row.opcode, "rows of one opcode stand together");
                let distinct = match (other.service_action, row.service_action) {
                    (Some(a), Some(b)) => a != b,
                    _ => false,
                };
                assert!(distinct, "rows of one opcode differ by their service action");
            }
            before += 1;
        }
        if let Some(action) = row.service_action {
            let usage = row.usage;
            assert!(service_action(usage) == action, "the usage map holds the service action");
        }
        at += 1;
    }
}

/// The length of a fixed-length CDB (SPC-5 4.2.5.1), 32 for the variable-length ones.
const fn cdb_len(opcode: u8) -> usize {
    match opcode {
        0x7F => 32,
        _ => match opcode >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => 0,
        },
    }
}
