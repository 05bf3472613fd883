//! READ DEFECT DATA: there are no defects to list, in any of the formats.

use crate::{engine::Call, opcode::Fail, sense::Sense};

/// READ DEFECT DATA(10) (SBC-4 5.22).
pub fn read_defect_data_10(call: &mut Call<'_>) -> Result<(), Fail> {
    let asked = asked(call, 2)?;
    call.put(&[0, asked, 0, 0]);
    Ok(())
}

/// READ DEFECT DATA(12) (SBC-4 5.23).
pub fn read_defect_data_12(call: &mut Call<'_>) -> Result<(), Fail> {
    let asked = asked(call, 1)?;
    call.put(&[0, asked, 0, 0, 0, 0, 0, 0]);
    Ok(())
}

/// PLISTV, GLISTV and the format to answer with: as asked for.
fn asked(call: &Call<'_>, at: usize) -> Result<u8, Sense> {
    let byte = call.field(at, 1) as u8;
    match byte & 0x07 {
        0..=5 => Ok(byte & 0x1F),
        _ => Err(Sense::cdb_bit(at as u16, 2)),
    }
}
