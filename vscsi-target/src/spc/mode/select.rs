//! MODE SELECT(6) and (10) (SPC-4 6.11, 6.12).

use super::{
    Modes, Settings, file,
    page::{PAGES, Page},
};
use crate::{
    engine::{Call, call::be},
    model::{Attention, LogicalUnit},
    opcode::Fail,
    sense::{Sense, Specific},
};
use std::{
    error::Error,
    io::{self, ErrorKind},
};

/// MODE SELECT(6).
pub fn mode_select_6(call: &mut Call<'_>) -> Result<(), Fail> {
    let list = list(call, call.field(4, 1))?;
    if list.is_empty() {
        return Ok(());
    }
    let header = list.first_chunk::<4>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    check_zero(header[1], 1)?;
    select(call, list, 4, usize::from(header[3]), false)
}

/// MODE SELECT(10).
pub fn mode_select_10(call: &mut Call<'_>) -> Result<(), Fail> {
    let list = list(call, call.field(7, 2))?;
    if list.is_empty() {
        return Ok(());
    }
    let header = list.first_chunk::<8>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    check_zero(header[2], 2)?;
    let len = usize::from(u16::from_be_bytes([header[6], header[7]]));
    select(call, list, 8, len, header[4] & LONGLBA != 0)
}

/// The parameter list. It has to be in the standard page format, and as long as it says.
fn list<'a>(call: &Call<'a>, len: u64) -> Result<&'a [u8], Sense> {
    if call.bit(1, SP) && file(&call.lu().config).is_none() {
        return Err(Sense::cdb_bit(1, SP));
    }
    if len != 0 && !call.bit(1, PF) {
        return Err(Sense::cdb_bit(1, PF));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    call.data.get(..len).ok_or(Sense::PARAMETER_LIST_LENGTH)
}

/// Changes all that the list asks for, or nothing.
fn select(
    call: &Call<'_>,
    list: &[u8],
    header: usize,
    descriptors: usize,
    long: bool,
) -> Result<(), Fail> {
    let lu = call.lu();
    let block = list.get(header..header + descriptors).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    check_descriptor(lu, block, header, long)?;
    let _turn = lu.take_turn();
    let modes = call.state().modes.clone();
    let wanted = parse(list, header + descriptors, modes.current, modes.changeable())?;
    Ok(install(lu, &modes, wanted, call.bit(1, SP), Some(call.itl.nexus.id))?)
}

impl LogicalUnit {
    /// Turns the write cache on or off, as MODE SELECT does without saving, on behalf of nobody's I_T
    /// nexus: every one learns of it. It may wait for a flush.
    ///
    /// # Errors
    /// There is no cache to be turned on, or what it holds cannot be written.
    pub fn set_write_cache(&self, on: bool) -> io::Result<()> {
        let _turn = self.take_turn();
        let modes = self.state().modes.clone();
        if modes.current.write_cache == on {
            return Ok(());
        }
        if !modes.cache {
            return Err(io::Error::new(ErrorKind::Unsupported, "it has no volatile write cache"));
        }
        let wanted = Settings { write_cache: on, ..modes.current };
        install(self, &modes, wanted, false, None).map_err(|sense| match sense {
            Sense::WRITE_ERROR => io::Error::other("its write cache cannot be flushed"),
            _ => io::Error::other("its mode parameters cannot be stored"),
        })
    }
}

/// Makes the parameters current, and saves them if `save` says so. Nexuses other than `except` learn of
/// a change. Called by who has the logical unit's turn.
fn install(
    lu: &LogicalUnit,
    modes: &Modes,
    wanted: Settings,
    save: bool,
    except: Option<u64>,
) -> Result<(), Sense> {
    // Turning the cache off promises that what it held is on the medium.
    if modes.current.write_cache && !wanted.write_cache {
        lu.backend.flush().map_err(|_| Sense::WRITE_ERROR)?;
    }
    let saved = if save { Some(wanted) } else { modes.saved };
    let swap_in = || {
        if let Some(path) = file(&lu.config).filter(|_| save) {
            super::save(&path, wanted)?;
        }
        lu.update(|state| (state.modes.current, state.modes.saved) = (wanted, saved));
        Ok::<_, super::SaveError>(())
    };
    let stored = lu.store_then(|live| live.set_modes(wanted, saved), swap_in);
    if let Err(error) = stored.map_err(Box::<dyn Error>::from).and_then(|done| Ok(done?)) {
        tracing::error!(error, "mode parameters cannot be stored");
        // The live state may say already what does not come true.
        lu.update(|_| ());
        return Err(Sense::INTERNAL_FAILURE);
    }
    if wanted != modes.current || save {
        lu.establish(Attention::MODE_PARAMETERS_CHANGED, except);
    }
    Ok(())
}

/// The block size and the capacity cannot be changed, so they have to be the present ones; a
/// capacity of 0 or of all ones leaves it as it is (SBC-4 6.5.2).
fn check_descriptor(lu: &LogicalUnit, block: &[u8], at: usize, long: bool) -> Result<(), Sense> {
    let (blocks, unlimited, size, size_at) = match (block.len(), long) {
        (0, _) => return Ok(()),
        (8, false) => (be(block, 0, 4), u64::from(u32::MAX), be(block, 5, 3), 5),
        (16, true) => (be(block, 0, 8), u64::MAX, be(block, 12, 4), 12),
        _ => return Err(Sense::parameter_byte(if at == 4 { 3 } else { 6 })),
    };
    if ![0, unlimited, lu.blocks()].contains(&blocks) {
        return Err(Sense::parameter_byte(at as u16));
    }
    if size != u64::from(lu.block_size()) {
        return Err(Sense::parameter_byte((at + size_at) as u16));
    }
    Ok(())
}

/// The settings after every page of the list is applied.
fn parse(
    list: &[u8],
    mut at: usize,
    current: Settings,
    changeable: Settings,
) -> Result<Settings, Sense> {
    let mut wanted = current;
    while let Some(&first) = list.get(at) {
        let is_subpage = first & SPF != 0;
        let subpage = if is_subpage { be(list, at + 1, 1) as u8 } else { 0 };
        let page = PAGES
            .iter()
            .find(|page| {
                page.code == first & 0x3F
                    && page.subpage == subpage
                    && (page.header_len() == 4) == is_subpage
            })
            .ok_or_else(|| invalid(at, Some(5)))?;
        let len_at = at + page.header_len() - if is_subpage { 2 } else { 1 };
        let len = be(list, len_at, if is_subpage { 2 } else { 1 });
        if list.len() < at + page.header_len() {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        if len != (page.size() - page.header_len()) as u64 {
            return Err(invalid(len_at, None));
        }
        let bytes = list.get(at..at + page.size()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        check_page(page, bytes, at, current, changeable)?;
        page.apply(bytes, &mut wanted);
        at += page.size();
    }
    Ok(wanted)
}

/// Only changeable bits may differ from the current values.
fn check_page(
    page: &Page,
    bytes: &[u8],
    at: usize,
    current: Settings,
    changeable: Settings,
) -> Result<(), Sense> {
    let header = page.header_len();
    let (now, mask) = (page.with(current), page.mask(changeable));
    for (i, &byte) in bytes.iter().enumerate().skip(header) {
        let wrong = (byte ^ now[i]) & !mask[i];
        if wrong != 0 {
            return Err(invalid(at + i, Some(7 - wrong.leading_zeros() as u8)));
        }
    }
    Ok(())
}

fn check_zero(byte: u8, at: u16) -> Result<(), Sense> {
    if byte == 0 { Ok(()) } else { Err(Sense::parameter_byte(at)) }
}

fn invalid(byte: usize, bit: Option<u8>) -> Sense {
    let mut sense = Sense::INVALID_FIELD_IN_PARAMETERS;
    sense.specific = Specific::Parameter(u16::try_from(byte).unwrap_or(u16::MAX), bit);
    sense
}

const SP: u8 = 0;
const PF: u8 = 4;
const LONGLBA: u8 = 0x01;
const SPF: u8 = 0x40;
