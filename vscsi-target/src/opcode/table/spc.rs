//! The rows of SPC commands.

use crate::{
    opcode::{Access, Lane, Row, Transfer},
    spc,
};

/// In the order of their opcodes.
pub const ROWS: &[Row] = &[Row {
    opcode: 0x00,
    service_action: None,
    name: "TEST UNIT READY",
    usage: &[0x00, 0, 0, 0, 0, CONTROL],
    access: Access::NotLegacy,
    transfer: Transfer::None,
    lane: Lane::Inline,
    flags: 0,
    handler: spc::test_unit_ready,
    spec: "SPC-5 6.48",
}];

/// Of the CONTROL byte NACA is evaluated.
const CONTROL: u8 = 0x04;
