//! The disks that a command line names, in the order in which they stand there.

use clap::ArgMatches;
use thiserror::Error;

use super::DiskOptions;
use crate::{
    disk::{Disk, DiskError, Kind},
    report::{Exit, Report},
};

/// The texts of the three arguments that name disks.
#[derive(Clone, Copy, Debug)]
pub struct DiskLists<'a> {
    /// `DISK`, argument `disks`.
    pub files: &'a [String],
    /// `--ram`.
    pub ram: &'a [String],
    /// `--null`.
    pub null: &'a [String],
}

/// Why they make no list of disks.
#[derive(Debug, Error)]
pub enum DiskListError {
    /// A serial number for several disks.
    #[error("--serial names one disk, and there are {0}")]
    Serial(usize),
    /// Two disks want the same number.
    #[error("LUN {0} is there twice")]
    Number(u16),
    /// A disk that is not understood.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<DiskListError> for Report {
    fn from(error: DiskListError) -> Self {
        let what = error.to_string();
        match error {
            DiskListError::Serial(_) => Self::new(Exit::Usage, "serial", what)
                .fix("write it behind its disk: PATH,serial=X"),
            DiskListError::Number(_) => Self::new(Exit::Usage, "lun-in-use", what)
                .fix("give each disk a number of its own, or none"),
            DiskListError::Disk(_) => Self::new(Exit::Usage, "disk", what)
                .fix("PATH or nvme:BDF[/NSID][,ro][,bs=512|4096][,pbs=BYTES][,direct][,removable][,handover][,poll][,erase-rate=SIZE][,serial=X][,lun=N]"),
        }
    }
}

impl DiskLists<'_> {
    /// All of them. `matches` are those of the subcommand: they know the order across arguments.
    pub fn in_order(
        &self,
        options: &DiskOptions,
        matches: &ArgMatches,
    ) -> Result<Vec<Disk>, DiskListError> {
        let defaults = options.defaults();
        let mut placed: Vec<(usize, Disk)> = Vec::new();
        for (id, kind, texts) in [
            ("disks", Kind::File, self.files),
            ("ram", Kind::Ram, self.ram),
            ("null", Kind::Null, self.null),
        ] {
            let indices = matches.indices_of(id).into_iter().flatten();
            for (index, text) in indices.zip(texts) {
                placed.push((index, Disk::parse(text, kind, defaults)?));
            }
        }
        placed.sort_by_key(|&(index, _)| index);
        let mut disks: Vec<Disk> = placed.into_iter().map(|(_, disk)| disk).collect();
        if let Some(serial) = &options.serial {
            match &mut disks[..] {
                [disk] => {
                    let named = Disk { serial: Some(serial.clone()), ..disk.clone() };
                    *disk = named.checked()?;
                }
                disks => return Err(DiskListError::Serial(disks.len())),
            }
        }
        for (at, disk) in disks.iter().enumerate() {
            if let Some(number) = disk.number
                && disks.iter().skip(at + 1).any(|other| other.number == Some(number))
            {
                return Err(DiskListError::Number(number));
            }
        }
        Ok(disks)
    }
}
