//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-4 6.42, 6.27): a self-test that reads the
//! medium, and the page that lists the diagnostic pages.

use crate::{engine::Call, opcode::Fail, sense::Sense};

/// SEND DIAGNOSTIC.
pub fn send_diagnostic(call: &mut Call<'_>) -> Result<(), Fail> {
    let len = call.field(3, 2) as usize;
    let (code, default) = (call.field(1, 1) >> 5, call.bit(1, SELF_TEST));
    match (code, default) {
        // A self-test takes no parameters, and the default one has no code.
        (0, false) => parameters(call, len),
        (_, true) if code != 0 => Err(Sense::cdb_bit(1, 7).into()),
        _ if len != 0 => Err(Sense::cdb_byte(3).into()),
        (FOREGROUND_SHORT | FOREGROUND_EXTENDED, _) | (_, true) => self_test(call),
        // Nothing would tell how a background test ended.
        _ => Err(Sense::cdb_bit(1, 7).into()),
    }
}

/// RECEIVE DIAGNOSTIC RESULTS.
pub fn receive_diagnostic(call: &mut Call<'_>) -> Result<(), Fail> {
    if call.bit(1, PCV) && call.field(2, 1) != 0 {
        return Err(Sense::cdb_byte(2).into());
    }
    // Supported Diagnostic Pages: itself.
    call.put(&[0x00, 0, 0, 1, 0x00]);
    Ok(())
}

/// The only page there is to send is the empty request for the supported pages.
fn parameters(call: &Call<'_>, len: usize) -> Result<(), Fail> {
    if len == 0 {
        return Ok(());
    }
    if !call.bit(1, PF) {
        return Err(Sense::cdb_bit(1, PF).into());
    }
    match call.data.get(..len) {
        Some(&[0x00, _, 0, 0]) => Ok(()),
        Some(&[0x00, _, 0, 0, ..] | &[] | &[_] | &[_, _] | &[_, _, _]) | None => {
            Err(Sense::PARAMETER_LIST_LENGTH.into())
        }
        Some(&[0x00, ..]) => Err(Sense::parameter_byte(2).into()),
        Some(_) => Err(Sense::parameter_byte(0).into()),
    }
}

/// Reads the first and the last block.
fn self_test(call: &Call<'_>) -> Result<(), Fail> {
    let lu = call.lu();
    let size = lu.block_size();
    let mut block = vec![0; size as usize];
    let Some(last) = lu.blocks().checked_sub(1) else { return Ok(()) };
    for lba in [0, last] {
        let read = lu.backend.read_at(lba * u64::from(size), &mut block);
        read.map_err(|_| Sense::SELF_TEST_FAILED)?;
    }
    Ok(())
}

const SELF_TEST: u8 = 2;
const PF: u8 = 4;
const PCV: u8 = 0;
const FOREGROUND_SHORT: u64 = 5;
const FOREGROUND_EXTENDED: u64 = 6;
