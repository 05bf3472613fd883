//! The rows.

use super::Row;

/// Every command, rows of one opcode together.
pub static TABLE: &[Row] = &[];
