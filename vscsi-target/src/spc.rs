//! Commands of SPC: every device type has them.

pub mod buffer;
pub mod diagnostic;
pub mod inquiry;
pub mod log;
pub mod mode;
pub mod ports;
pub mod report_luns;
pub mod request_sense;
pub mod reserve;
pub mod saved;
pub mod support;
#[cfg(test)]
mod tests;

use crate::{engine::Call, opcode::Fail};

/// TEST UNIT READY: the engine has already refused it if the logical unit is not.
pub fn test_unit_ready(_call: &mut Call<'_>) -> Result<(), Fail> {
    Ok(())
}
