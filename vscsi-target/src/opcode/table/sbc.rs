//! The rows of SBC commands.

use crate::opcode::Row;

/// In the order of their opcodes.
pub const ROWS: &[Row] = &[];
