//! Where a kernel makes its hypervisor calls.
//!
//! `plpar_hcall_norets` makes those that the driver uses; `plpar_hcall_norets_notrace` is the same
//! code without what traces calls, which makes it the way to let a call pass.

use std::{fs, io, path::Path};

use thiserror::Error;

/// The two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sites {
    /// The `sc 1` of `plpar_hcall_norets`.
    pub call: u64,
    /// That of its twin.
    pub twin: u64,
}

/// Why they are not found.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file.
    #[error("cannot read the kernel: {0}")]
    Read(#[from] io::Error),
    /// Not an ELF file of 64 bits in little-endian order.
    #[error("the kernel is no ELF file for ppc64le")]
    Form,
    /// No such code.
    #[error("the kernel has {0} pairs of hypervisor calls without results, not one")]
    Pairs(usize),
    /// A symbol's code is something else.
    #[error("{0} does not make a hypervisor call")]
    Code(&'static str),
}

/// Finds them in an uncompressed kernel by its symbols, or by the code when it has none.
pub fn sites(path: &Path) -> Result<Sites, KernelError> {
    sites_in(&fs::read(path)?)
}

fn sites_in(file: &[u8]) -> Result<Sites, KernelError> {
    let elf = Elf::parse(file).ok_or(KernelError::Form)?;
    if let (Some(call), Some(twin)) = (elf.symbol(CALL), elf.symbol(TWIN)) {
        let call = elf.first_call(call).ok_or(KernelError::Code(CALL))?;
        let twin = elf.first_call(twin).ok_or(KernelError::Code(TWIN))?;
        return Ok(Sites { call, twin });
    }
    let pairs = elf.pairs();
    match *pairs.as_slice() {
        [sites] => Ok(sites),
        _ => Err(KernelError::Pairs(pairs.len())),
    }
}

/// A file with its tables checked as far as they are used.
struct Elf<'a> {
    file: &'a [u8],
    /// Address and bytes of what is loaded.
    segments: Vec<(u64, &'a [u8])>,
}

impl<'a> Elf<'a> {
    fn parse(file: &'a [u8]) -> Option<Self> {
        let is_it = file.starts_with(b"\x7FELF\x02\x01") && half(file, 18)? == PPC64;
        let (at, size, count) = (long(file, 32)?, half(file, 54)?, half(file, 56)?);
        let mut segments = Vec::new();
        for number in 0..u64::from(count) {
            let header = slice(file, at.checked_add(number * u64::from(size))?, 56)?;
            if word(header, 0)? == 1 {
                let bytes = slice(file, long(header, 8)?, long(header, 32)?)?;
                segments.push((long(header, 16)?, bytes));
            }
        }
        is_it.then_some(Self { file, segments })
    }

    /// The address of a symbol.
    fn symbol(&self, name: &str) -> Option<u64> {
        let (at, size, count) = (long(self.file, 40)?, half(self.file, 58)?, half(self.file, 60)?);
        let section = |number: u64| {
            slice(self.file, at.checked_add(number.checked_mul(u64::from(size))?)?, 64)
        };
        let symbols = (0..u64::from(count)).filter_map(section).find(|s| word(s, 4) == Some(2))?;
        let names = section(u64::from(word(symbols, 40)?))?;
        let names = slice(self.file, long(names, 24)?, long(names, 32)?)?;
        let table = slice(self.file, long(symbols, 24)?, long(symbols, 32)?)?;
        let is_it = |entry: &&[u8]| {
            let start = word(entry, 0).and_then(|start| names.get(start as usize..));
            let rest = start.and_then(|start| start.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| rest.first() == Some(&0))
        };
        long(table.chunks_exact(24).find(is_it)?, 8)
    }

    /// The address of the first `sc 1` of a function.
    fn first_call(&self, function: u64) -> Option<u64> {
        let code = self.code(function)?;
        let words = code.chunks_exact(4).take(FUNCTION_WORDS);
        let at = words.into_iter().position(|code| word(code, 0) == Some(SC_1))?;
        Some(function + at as u64 * 4)
    }

    /// The bytes from an address on.
    fn code(&self, address: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|&(start, bytes)| {
            bytes.get(usize::try_from(address.checked_sub(start)?).ok()?..)
        })
    }

    /// Pairs of calls, one soon behind the other, whose code behind them is the same: it clears the
    /// mark that a call is made, restores the condition register and returns.
    fn pairs(&self) -> Vec<Sites> {
        let mut pairs = Vec::new();
        for &(start, bytes) in &self.segments {
            let words: Vec<u32> = bytes.chunks_exact(4).filter_map(|code| word(code, 0)).collect();
            let is_call = |at: usize| {
                let (code, behind) = (words.get(at), words.get(at + 1..at + 6));
                let returns = behind.is_some_and(|behind| {
                    behind.first() == Some(&LI_R4_0) && behind.last() == Some(&BLR)
                });
                code == Some(&SC_1) && returns
            };
            for twin in (0..words.len()).filter(|&at| is_call(at)) {
                let near = twin + 1..twin + FUNCTION_WORDS;
                let behind = |at: usize| words.get(at + 1..at + 6);
                let found = near.into_iter().find(|&at| is_call(at) && behind(at) == behind(twin));
                let address = |at: usize| start + at as u64 * 4;
                pairs.extend(found.map(|call| Sites { call: address(call), twin: address(twin) }));
            }
        }
        pairs
    }
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

const CALL: &str = "plpar_hcall_norets";
const TWIN: &str = "plpar_hcall_norets_notrace";
/// The ELF machine.
const PPC64: u16 = 21;
/// Instructions.
const SC_1: u32 = 0x4400_0022;
const LI_R4_0: u32 = 0x3880_0000;
const BLR: u32 = 0x4E80_0020;
/// No function that is looked for has more instructions before its call.
const FUNCTION_WORDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xC000_0000_0000_0000;
    const NOP: u32 = 0x6000_0000;

    /// A kernel of one segment: the twin's code, the function's, and a call of another kind.
    fn kernel() -> Vec<u8> {
        let behind = [LI_R4_0, 0x988D_0151, 0x8001_0008, 0x7C0F_F120, BLR];
        let mut code = vec![NOP; 3];
        for _ in 0..2 {
            code.extend([SC_1].iter().chain(&behind));
            code.extend([NOP; 4]);
        }
        code.extend([SC_1, 0x38A0_0000, NOP, NOP]);
        let mut file = vec![0; 120];
        file[..6].copy_from_slice(b"\x7FELF\x02\x01");
        file[18] = 21;
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 1;
        file[72] = 120;
        file[80..88].copy_from_slice(&BASE.to_le_bytes());
        file[96] = u8::try_from(code.len() * 4).unwrap();
        file.extend(code.iter().flat_map(|word| word.to_le_bytes()));
        file
    }

    #[test]
    fn a_kernel_without_symbols_has_one_pair() {
        let sites = sites_in(&kernel()).unwrap();
        assert_eq!(sites, Sites { twin: BASE + 12, call: BASE + 52 });
    }

    #[test]
    fn half_a_pair_is_none() {
        let mut file = kernel();
        file[120 + 56] ^= 1;
        assert!(matches!(sites_in(&file), Err(KernelError::Pairs(0))));
    }

    #[test]
    fn other_files_are_no_kernels() {
        let file = kernel();
        assert!(matches!(sites_in(b""), Err(KernelError::Form)));
        assert!(matches!(sites_in(&file[..200]), Err(KernelError::Form)));
        let mut big = file;
        big[5] = 2;
        assert!(matches!(sites_in(&big), Err(KernelError::Form)));
    }
}
