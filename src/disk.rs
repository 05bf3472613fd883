//! What one logical unit is made of, and the `PATH,option,…` form of the command line.

use std::path::PathBuf;

use thiserror::Error;
use vscsi_target::backend::nvme::{Address, AddressError};

use crate::{
    size::{self, SizeError},
    suggest::nearest,
};

/// Where the blocks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or block device.
    File(PathBuf),
    /// A namespace of an NVMe controller that is bound to VFIO.
    Nvme(Address),
    /// Memory of so many bytes.
    Ram(u64),
    /// Zeroes, so many bytes of them.
    Null(u64),
}

/// A logical unit to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where its blocks are.
    pub source: Source,
    /// Logical unit number; `None` for the lowest that is free.
    pub number: Option<u16>,
    /// Bytes a logical block: 512 or 4096.
    pub block_size: u32,
    /// Bytes a physical block that are reported; `None` for what the backing says.
    pub physical_block_size: Option<u32>,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// Around the page cache.
    pub direct: bool,
    /// The image belongs to the process whose guest runs.
    pub handover: bool,
    /// Bytes a second that FORMAT UNIT and SANITIZE write at most.
    pub erase_rate: Option<u64>,
    /// Unit serial number, which the other names follow; `None` derives it.
    pub serial: Option<String>,
    /// Initiators that see it; `None` for all that may log in.
    pub visible_to: Option<Vec<String>>,
}

/// Options that the command line sets for all disks.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Bytes a logical block.
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// Around the page cache.
    pub direct: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { block_size: 512, read_only: false, removable: false, direct: false }
    }
}

/// What a disk on the command line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A path.
    File,
    /// The size of a RAM disk.
    Ram,
    /// The size of a null disk.
    Null,
}

/// Why a disk is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskError {
    /// Nothing before the first comma.
    #[error("{0:?} names no disk")]
    Unnamed(String),
    /// An option nobody knows.
    #[error("{disk:?} has an unknown option {option:?}{}", did_you_mean(near))]
    UnknownOption {
        /// The disk.
        disk: String,
        /// The option.
        option: String,
        /// What may have been meant.
        near: Option<&'static str>,
    },
    /// An option that needs a value, or must not have one.
    #[error("option {0:?} is written {1}")]
    Form(String, &'static str),
    /// Neither 512 nor 4096.
    #[error("a block size of {0} is not supported: 512 and 4096 are")]
    BlockSize(String),
    /// Not a physical block size.
    #[error(
        "a physical block size of {0} is not supported: powers of two from the block size \
         to {MAX_PHYSICAL} are"
    )]
    PhysicalBlockSize(String),
    /// So slow that it would never end.
    #[error("an erase rate of {0} bytes a second is less than 1M")]
    EraseRate(u64),
    /// Not a size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Part of a block at the end.
    #[error("{size} bytes are not whole blocks of {block_size}")]
    Ragged {
        /// Size in bytes.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// A serial number that cannot be told.
    #[error("serial number {0:?} is not 1 to {MAX_SERIAL} printable ASCII characters")]
    Serial(String),
    /// Not a logical unit number.
    #[error("{0:?} is not a logical unit number: 0 to {MAX_LUN} are")]
    Number(String),
    /// Not a namespace.
    #[error(transparent)]
    Nvme(#[from] AddressError),
    /// A namespace has the block size it was formatted with.
    #[error("a namespace of an NVMe controller has the block size it was formatted with")]
    NvmeBlockSize,
    /// Only an NVMe controller has completions to poll for.
    #[error("poll is for NVMe controllers only")]
    Poll,
    /// Only a file can be opened around the page cache.
    #[error("direct input and output is for files and block devices only")]
    Direct,
    /// Only a file can be there for another process.
    #[error("handover is for files and block devices only")]
    Handover,
}

impl Disk {
    /// A disk with the options of `defaults`.
    pub fn new(source: Source, defaults: Defaults) -> Self {
        // Direct input and output as a default for all disks means those that can have it.
        let direct = defaults.direct && matches!(source, Source::File(_));
        Self {
            source,
            number: None,
            block_size: defaults.block_size,
            physical_block_size: None,
            read_only: defaults.read_only,
            removable: defaults.removable,
            direct,
            handover: false,
            erase_rate: None,
            serial: None,
            visible_to: None,
        }
    }

    /// Parses `PATH,option,…` or `SIZE,option,…`. A comma in a path is written twice.
    pub fn parse(text: &str, kind: Kind, defaults: Defaults) -> Result<Self, DiskError> {
        let mut parts = split(text).into_iter();
        let name = parts.next().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| DiskError::Unnamed(text.to_owned()))?;
        let source = match kind {
            Kind::File => match name.strip_prefix(Address::PREFIX) {
                Some(address) => Source::Nvme(Address::parse(address)?),
                None => Source::File(PathBuf::from(name)),
            },
            Kind::Ram => Source::Ram(size::parse(&name)?),
            Kind::Null => Source::Null(size::parse(&name)?),
        };
        let mut disk = Self::new(source, defaults);
        for option in parts {
            disk.apply(&option, text)?;
        }
        disk.checked()
    }

    /// Checks what options together must fulfil.
    pub fn checked(self) -> Result<Self, DiskError> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(DiskError::BlockSize(self.block_size.to_string()));
        }
        if let Some(physical) = self.physical_block_size
            && !(physical.is_power_of_two() && (self.block_size..=MAX_PHYSICAL).contains(&physical))
        {
            return Err(DiskError::PhysicalBlockSize(physical.to_string()));
        }
        if let Some(rate) = self.erase_rate.filter(|&rate| rate < MIN_ERASE_RATE) {
            return Err(DiskError::EraseRate(rate));
        }
        if !matches!(self.source, Source::File(_)) {
            if self.direct {
                return Err(DiskError::Direct);
            }
            if self.handover {
                return Err(DiskError::Handover);
            }
        }
        if let Source::Ram(size) | Source::Null(size) = self.source
            && !size.is_multiple_of(u64::from(self.block_size))
        {
            return Err(DiskError::Ragged { size, block_size: self.block_size });
        }
        if let Some(serial) = &self.serial {
            let fits = (1..=MAX_SERIAL).contains(&serial.len());
            if !fits || !serial.bytes().all(|b| matches!(b, b' '..=b'~')) {
                return Err(DiskError::Serial(serial.clone()));
            }
        }
        match self.number {
            Some(number) if number > MAX_LUN => Err(DiskError::Number(number.to_string())),
            _ => Ok(self),
        }
    }

    fn apply(&mut self, option: &str, disk: &str) -> Result<(), DiskError> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        match (key, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("direct", None) => self.direct = true,
            ("removable", None) => self.removable = true,
            ("handover", None) => self.handover = true,
            ("poll", None) => match &mut self.source {
                Source::Nvme(address) => address.polled = true,
                _ => return Err(DiskError::Poll),
            },
            ("bs", Some(_)) if matches!(self.source, Source::Nvme(_)) => {
                return Err(DiskError::NvmeBlockSize);
            }
            ("bs", Some(value)) => {
                self.block_size = match value {
                    "512" => 512,
                    "4096" | "4k" | "4K" => 4096,
                    _ => return Err(DiskError::BlockSize(value.to_owned())),
                };
            }
            ("pbs", Some(value)) => {
                let size = value.parse();
                let size = size.map_err(|_| DiskError::PhysicalBlockSize(value.to_owned()))?;
                self.physical_block_size = Some(size);
            }
            ("erase-rate", Some(value)) => self.erase_rate = Some(size::parse(value)?),
            ("serial", Some(value)) => self.serial = Some(value.to_owned()),
            ("lun", Some(value)) => {
                let number = value.parse().map_err(|_| DiskError::Number(value.to_owned()))?;
                self.number = Some(number);
            }
            ("ro" | "rw" | "direct" | "removable" | "handover" | "poll", Some(_)) => {
                return Err(DiskError::Form(option.to_owned(), "without a value"));
            }
            ("bs" | "pbs" | "erase-rate" | "serial" | "lun", None) => {
                return Err(DiskError::Form(option.to_owned(), "with =VALUE"));
            }
            _ => {
                return Err(DiskError::UnknownOption {
                    disk: disk.to_owned(),
                    option: key.to_owned(),
                    near: nearest(key, OPTIONS),
                });
            }
        }
        Ok(())
    }
}

/// Splits at commas; two of them are one comma of the text.
pub fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn did_you_mean(near: &Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

/// The highest logical unit number that flat addressing reaches.
pub const MAX_LUN: u16 = 0x3FFF;

const MAX_SERIAL: usize = 64;
/// The largest physical block that can be reported, in bytes.
pub const MAX_PHYSICAL: u32 = 1 << 20;
/// The least erase rate, in bytes a second.
const MIN_ERASE_RATE: u64 = 1 << 20;
const OPTIONS: [&str; 11] = [
    "ro",
    "rw",
    "direct",
    "removable",
    "handover",
    "poll",
    "bs",
    "pbs",
    "erase-rate",
    "serial",
    "lun",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Disk, DiskError> {
        Disk::parse(text, Kind::File, Defaults::default())
    }

    #[test]
    fn options_follow_the_path() {
        let disk = file("/a/b.img,ro,bs=4096,direct,removable,handover,serial=SN 1,lun=7").unwrap();
        assert_eq!(disk.source, Source::File("/a/b.img".into()));
        assert_eq!((disk.block_size, disk.number), (4096, Some(7)));
        assert!(disk.read_only && disk.direct && disk.removable && disk.handover);
        assert_eq!(disk.serial.as_deref(), Some("SN 1"));
    }

    #[test]
    fn a_namespace_is_named_by_its_controller() {
        let disk = file("nvme:0000:03:00.0/2,ro,poll,serial=X").unwrap();
        let Source::Nvme(address) = disk.source else { panic!("{disk:?}") };
        assert_eq!((address.nsid, address.polled, disk.read_only), (Some(2), true, true));
        assert_eq!(file("./nvme:x").unwrap().source, Source::File("./nvme:x".into()));
        for text in
            ["nvme:", "nvme:x", "nvme:03:00.0/0", "nvme:03:00.0,bs=512", "nvme:03:00.0,direct"]
        {
            assert!(file(text).is_err(), "{text}");
        }
        assert_eq!(file("a.img,poll"), Err(DiskError::Poll));
    }

    #[test]
    fn physical_blocks_and_erase_rate_have_options() {
        let disk = file("/a/b.img,pbs=4096,erase-rate=16M").unwrap();
        assert_eq!((disk.physical_block_size, disk.erase_rate), (Some(4096), Some(16 << 20)));
    }

    #[test]
    fn a_double_comma_is_part_of_the_path() {
        let disk = file("a,,b.img,ro").unwrap();
        assert_eq!(disk.source, Source::File("a,b.img".into()));
        assert!(disk.read_only);
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let error = file("a.img,serail=1").unwrap_err();
        assert!(error.to_string().contains("did you mean \"serial\"?"), "{error}");
    }

    #[test]
    fn wrong_values_are_refused() {
        for text in ["", ",ro", "a,bs=1024", "a,ro=1", "a,serial", "a,serial=", "a,lun=16384"] {
            assert!(file(text).is_err(), "{text}");
        }
        for text in ["a,pbs=1000", "a,bs=4096,pbs=512", "a,pbs", "a,erase-rate=1K"] {
            assert!(file(text).is_err(), "{text}");
        }
        let ragged = Disk::parse("1000", Kind::Ram, Defaults::default());
        assert_eq!(ragged, Err(DiskError::Ragged { size: 1000, block_size: 512 }));
        let direct = Disk::parse("1M,direct", Kind::Ram, Defaults::default());
        assert_eq!(direct, Err(DiskError::Direct));
        let handover = Disk::parse("1M,handover", Kind::Ram, Defaults::default());
        assert_eq!(handover, Err(DiskError::Handover));
    }
}
