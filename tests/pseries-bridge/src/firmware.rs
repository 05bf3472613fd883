//! Where SLOF makes its hypervisor calls.
//!
//! The image of the firmware holds an ELF file, which moves itself to the end of the memory it may use
//! when it starts. Of its functions, one makes any call with up to eight arguments, another
//! H_SEND_CRQ.

use std::{fs, io, path::Path};

use thiserror::Error;
use vmm_glue::memory::GuestMap;
use vscsi_target::reactor::sg;

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

/// The firmware as it was built.
#[derive(Debug)]
pub struct Firmware {
    /// The addresses that it was linked to.
    sites: [Site; 2],
    /// Where code stands there that tells it, and that code.
    mark: (u64, Vec<u8>),
}

impl Firmware {
    /// QEMU's `slof.bin`.
    pub fn read(path: &Path) -> Result<Self, FirmwareError> {
        Self::parse(&fs::read(path)?)
    }

    fn parse(image: &[u8]) -> Result<Self, FirmwareError> {
        let elf = find(image, ELF).and_then(|at| image.get(at..)).ok_or(FirmwareError::Form)?;
        let header = long(elf, 32).and_then(|at| elf.get(usize::try_from(at).ok()?..));
        let loaded = header.and_then(|header| {
            let (offset, address, len) = (long(header, 8)?, long(header, 16)?, long(header, 32)?);
            let offset = usize::try_from(offset).ok()?;
            let end = offset.checked_add(usize::try_from(len).ok()?)?;
            Some((address, elf.get(offset..end)?))
        });
        let (address, code) = loaded.ok_or(FirmwareError::Form)?;
        // Each pattern ends with the call and the return.
        let at = |pattern: &[u32; 3], name| {
            let bytes: Vec<u8> = pattern.iter().flat_map(|word| word.to_be_bytes()).collect();
            find(code, &bytes).map(|at| at + 4).ok_or(FirmwareError::Code(name))
        };
        let any = at(&[BLR, SC_1, BLR], "any call")?;
        let send = at(&[LI_R3_SEND_CRQ, SC_1, BLR], "H_SEND_CRQ")?;
        // Nothing but the return is behind this one either.
        let twin = at(&[LI_R5_1, SC_1, BLR], "writing to the terminal")?;
        let site = |at: usize| Site { at: address + at as u64, twin: Some(address + twin as u64) };
        let start = send.saturating_sub(MARK);
        let mark = code.get(start..send + 8).unwrap_or_default().to_vec();
        Ok(Self { sites: [site(any), site(send)], mark: (address + start as u64, mark) })
    }

    /// Its calls where it is in memory now; `None` before it has moved.
    pub fn sites(&self, memory: &GuestMap) -> Option<Vec<Site>> {
        let (at, mark) = &self.mark;
        let end = memory.regions().last().map(|region| region.gpa + region.size)?;
        let (mut list, mut bytes) = (Vec::new(), vec![0; mark.len()]);
        let is_here = |moved: &u64| {
            list.clear();
            let place = at.wrapping_add(*moved);
            memory.translate(&mut 0, place, mark.len() as u32, &mut list)
                && sg::gather(&list, &mut bytes) == mark.len()
                && bytes == *mark
        };
        // By whole pages, in either direction.
        let first = (at & (PAGE - 1)).wrapping_sub(*at);
        let moved = (0..end / PAGE).map(|page| first.wrapping_add(page * PAGE)).find(is_here)?;
        let to = |address: u64| address.wrapping_add(moved);
        let sites = self.sites.iter().map(|site| Site { at: to(site.at), twin: site.twin.map(to) });
        Some(sites.collect())
    }
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
/// Bytes of code before H_SEND_CRQ that tell it from the rest.
const MARK: usize = 16;
/// It moves by pages of this size.
const PAGE: u64 = 65536;

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_glue::memory::Region;

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

    fn addresses(sites: &[Site]) -> Vec<(u64, Option<u64>)> {
        sites.iter().map(|site| (site.at, site.twin)).collect()
    }

    #[test]
    fn both_functions_and_their_twin_are_found() {
        let firmware = Firmware::parse(&image(&CODE)).unwrap();
        let twin = Some(0x0E10_0110);
        assert_eq!(addresses(&firmware.sites), [(0x0E10_0104, twin), (0x0E10_011C, twin)]);
    }

    #[test]
    fn firmware_that_has_moved_is_found_where_it_is() {
        let firmware = Firmware::parse(&image(&CODE)).unwrap();
        let path = std::env::temp_dir().join(format!("slof-{}", std::process::id()));
        let mut bytes = vec![0; 1 << 20];
        fs::write(&path, &bytes).unwrap();
        let map = || {
            let file = fs::File::options().read(true).write(true).open(&path).unwrap();
            GuestMap::new(vec![Region::map(0, 1 << 20, 0, 0, file).unwrap()]).unwrap()
        };
        assert!(firmware.sites(&map()).is_none());
        for (at, word) in CODE.iter().enumerate() {
            let place = 0x3_0100 + at * 4;
            bytes[place..place + 4].copy_from_slice(&word.to_be_bytes());
        }
        fs::write(&path, &bytes).unwrap();
        let sites = firmware.sites(&map()).unwrap();
        fs::remove_file(&path).unwrap();
        let twin = Some(0x3_0110);
        assert_eq!(addresses(&sites), [(0x3_0104, twin), (0x3_011C, twin)]);
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let error = Firmware::parse(&image(&CODE[..6])).unwrap_err();
        assert!(matches!(error, FirmwareError::Code("H_SEND_CRQ")));
    }

    #[test]
    fn other_images_have_no_program() {
        assert!(matches!(Firmware::parse(b"SLOF"), Err(FirmwareError::Form)));
        assert!(matches!(Firmware::parse(&image(&CODE)[..130]), Err(FirmwareError::Form)));
    }
}
