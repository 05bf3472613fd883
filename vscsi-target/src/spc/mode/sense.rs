//! MODE SENSE(6) and (10) (SPC-4 6.13, 6.14).

use super::{
    Modes, file,
    page::{PAGES, Page},
};
use crate::{
    engine::Call,
    model::{LogicalUnit, lu::flag},
    opcode::Fail,
    sense::Sense,
};

/// MODE SENSE(6).
pub fn mode_sense_6(call: &mut Call<'_>) -> Result<(), Fail> {
    let pages = pages(call)?;
    let block = if call.bit(1, DBD) { Vec::new() } else { short_descriptor(call.lu()) };
    let device = device_specific(call.lu());
    let start = call.reply.len();
    call.put(&[0, 0, device, block.len() as u8]);
    call.put(&block);
    call.put(&pages);
    call.reply[start] = u8::try_from(call.reply.len() - start - 1).unwrap_or(u8::MAX);
    Ok(())
}

/// MODE SENSE(10), with long LBAs in the block descriptor if LLBAA allows them.
pub fn mode_sense_10(call: &mut Call<'_>) -> Result<(), Fail> {
    let pages = pages(call)?;
    let long = call.bit(1, LLBAA) && !call.bit(1, DBD);
    let block = match (call.bit(1, DBD), long) {
        (true, _) => Vec::new(),
        (false, true) => long_descriptor(call.lu()),
        (false, false) => short_descriptor(call.lu()),
    };
    let device = device_specific(call.lu());
    let start = call.reply.len();
    call.put(&[0, 0, 0, device, u8::from(long), 0, 0, block.len() as u8]);
    call.put(&block);
    call.put(&pages);
    let len = (call.reply.len() - start - 2) as u16;
    call.reply[start..start + 2].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

/// The pages that PC, PAGE CODE and SUBPAGE CODE ask for.
fn pages(call: &Call<'_>) -> Result<Vec<u8>, Sense> {
    let (code, subpage) = (call.field(2, 1) as u8 & 0x3F, call.field(3, 1) as u8);
    let savable = file(&call.lu().config).is_some();
    let modes = call.state().modes.clone();
    let render: &dyn Fn(&Page) -> Vec<u8> = match call.field(2, 1) >> 6 {
        0 => &|page| page.with(modes.current),
        1 => &|page| page.mask(modes.changeable()),
        2 => &|page| page.with(modes.default),
        _ if !savable => return Err(Sense::SAVING_NOT_SUPPORTED),
        _ => &|page| page.with(saved(&modes)),
    };
    let mut found = false;
    let mut known = false;
    let mut bytes = Vec::new();
    for page in PAGES.iter().filter(|page| code == ALL || page.code == code) {
        known = true;
        if subpage == ALL_SUBPAGES || page.subpage == subpage {
            found = true;
            let at = bytes.len();
            bytes.extend(render(page));
            if savable && page.is_changeable() {
                bytes[at] |= PS;
            }
        }
    }
    match (found, known) {
        (true, _) => Ok(bytes),
        (false, true) => Err(Sense::cdb_byte(3)),
        (false, false) => Err(Sense::cdb_bit(2, 5)),
    }
}

fn saved(modes: &Modes) -> super::Settings {
    modes.saved.unwrap_or(modes.default)
}

fn device_specific(lu: &LogicalUnit) -> u8 {
    let protected = lu.flags() & flag::WRITE_PROTECTED != 0;
    DPOFUA | if protected { WP } else { 0 }
}

/// A short LBA mode parameter block descriptor (SBC-4 6.5.2.2).
fn short_descriptor(lu: &LogicalUnit) -> Vec<u8> {
    let blocks = u32::try_from(lu.blocks()).unwrap_or(u32::MAX);
    [blocks, lu.block_size()].iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A long LBA mode parameter block descriptor (SBC-4 6.5.2.3).
fn long_descriptor(lu: &LogicalUnit) -> Vec<u8> {
    let mut bytes = Vec::from(lu.blocks().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(lu.block_size().to_be_bytes());
    bytes
}

const DBD: u8 = 3;
const LLBAA: u8 = 4;
const ALL: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;
const PS: u8 = 0x80;
const WP: u8 = 0x80;
const DPOFUA: u8 = 0x10;
