//! Where SLOF makes its hypervisor calls.
//!
//! The image of the firmware holds an ELF file that is copied to its addresses when it starts. Of its
//! functions, one makes any call with up to eight arguments, another H_SEND_CRQ.

use std::{fs, io, path::Path};

use thiserror::Error;

use crate::machine::Site;

/// Why they are not found.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// The file.
    #[error("cannot read the firmware: {0}")]
    Read(#[from] io::Error),
    /// No ELF file of 64 bits in big-endian order in it.
    #[error("the firmware has no program in it")]
    Form,
    /// No such code.
    #[error("the firmware's function for {0} is not found")]
    Code(&'static str),
}

/// Finds them in QEMU's `slof.bin`.
pub fn sites(path: &Path) -> Result<Vec<Site>, FirmwareError> {
    sites_in(&fs::read(path)?)
}

fn sites_in(image: &[u8]) -> Result<Vec<Site>, FirmwareError> {
    let elf = find(image, ELF).and_then(|at| image.get(at..)).ok_or(FirmwareError::Form)?;
    let header = long(elf, 32).and_then(|at| elf.get(usize::try_from(at).ok()?..));
    let loaded = header.and_then(|header| {
        let (offset, address, len) = (long(header, 8)?, long(header, 16)?, long(header, 32)?);
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        Some((address, elf.get(offset..end)?))
    });
    let (address, code) = loaded.ok_or(FirmwareError::Form)?;
    let at = |pattern: &[u32], name| {
        let bytes: Vec<u8> = pattern.iter().flat_map(|word| word.to_be_bytes()).collect();
        // The call is the last but one.
        let call = find(code, &bytes).map(|at| address + (at + bytes.len() - 8) as u64);
        call.ok_or(FirmwareError::Code(name))
    };
    let any = at(&[BLR, SC_1, BLR], "any call")?;
    let send = at(&[LI_R3_SEND_CRQ, SC_1, BLR], "H_SEND_CRQ")?;
    // Nothing but the return is behind this one either.
    let twin = Some(at(&[LI_R5_1, SC_1, BLR], "writing to the terminal")?);
    Ok(vec![Site { at: any, twin }, Site { at: send, twin }])
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    // Code is aligned.
    let places = bytes.windows(pattern.len()).step_by(4);
    places.into_iter().position(|place| place == pattern).map(|place| place * 4)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

const ELF: &[u8] = b"\x7FELF\x02\x02\x01";
// Instructions.
const SC_1: u32 = 0x4400_0022;
const BLR: u32 = 0x4E80_0020;
const LI_R3_SEND_CRQ: u32 = 0x3860_0108;
const LI_R5_1: u32 = 0x38A0_0001;

#[cfg(test)]
mod tests {
    use super::*;

    fn image(code: &[u32]) -> Vec<u8> {
        let mut image = b"SLOF".to_vec();
        let mut elf = vec![0; 120];
        elf[..7].copy_from_slice(ELF);
        elf[39] = 64;
        elf[79] = 120;
        elf[80..88].copy_from_slice(&0x0E10_0100_u64.to_be_bytes());
        elf[103] = u8::try_from(code.len() * 4).unwrap();
        image.extend(elf);
        image.extend(code.iter().flat_map(|word| word.to_be_bytes()));
        image
    }

    const CODE: [u32; 9] = [BLR, SC_1, BLR, LI_R5_1, SC_1, BLR, LI_R3_SEND_CRQ, SC_1, BLR];

    #[test]
    fn both_functions_and_their_twin_are_found() {
        let sites = sites_in(&image(&CODE)).unwrap();
        let sites: Vec<_> = sites.iter().map(|site| (site.at, site.twin)).collect();
        let twin = Some(0x0E10_0110);
        assert_eq!(sites, [(0x0E10_0104, twin), (0x0E10_011C, twin)]);
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let error = sites_in(&image(&CODE[..6])).unwrap_err();
        assert!(matches!(error, FirmwareError::Code("H_SEND_CRQ")));
    }

    #[test]
    fn other_images_have_no_program() {
        assert!(matches!(sites_in(b"SLOF"), Err(FirmwareError::Form)));
        assert!(matches!(sites_in(&image(&CODE)[..130]), Err(FirmwareError::Form)));
    }
}
