//! Commands of SPC: every device type has them.

pub mod mode;

use crate::{engine::Call, opcode::Fail};

/// TEST UNIT READY: the engine has already refused it if the logical unit is not.
pub fn test_unit_ready(_call: &mut Call<'_>) -> Result<(), Fail> {
    Ok(())
}
