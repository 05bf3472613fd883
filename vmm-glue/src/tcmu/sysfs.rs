//! TCMU devices as sysfs and /dev show them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use thiserror::Error;

use super::{
    name::DeviceName,
    ring::{Ring, RingError},
};
use crate::memory::{MemoryError, Region};

/// Why a device cannot be served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The system refused a file of it.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// sysfs does not say how large its memory is.
    #[error("{0} is no size of memory")]
    Size(String),
    /// Its memory cannot be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its ring makes no sense.
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl OpenError {
    /// Another process serves it, or one that is just ending.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// The TCMU devices there are, with the numbers of their UIO devices.
pub fn devices() -> io::Result<Vec<(u32, DeviceName)>> {
    let entries = match fs::read_dir(CLASS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let file = entry?.file_name();
        let minor = file.to_str().and_then(|name| name.strip_prefix("uio")?.parse().ok());
        if let Some(minor) = minor
            && let Some(name) = name_of(minor)
        {
            found.push((minor, name));
        }
    }
    found.sort_by_key(|(minor, _)| *minor);
    Ok(found)
}

/// The name of a UIO device, if it is one of TCMU.
pub fn name_of(minor: u32) -> Option<DeviceName> {
    DeviceName::parse(&fs::read_to_string(format!("{CLASS}/uio{minor}/name")).ok()?)
}

/// Opens a device and its ring.
pub fn open(minor: u32) -> Result<(File, Ring), OpenError> {
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| OpenError::File { path, source }
    };
    let path = format!("{CLASS}/uio{minor}/maps/map0/size");
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    let digits = text.trim().trim_start_matches("0x");
    let size =
        u64::from_str_radix(digits, 16).map_err(|_| OpenError::Size(text.trim().to_owned()))?;
    let path = format!("/dev/uio{minor}");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed(&path))?;
    let mapped = file.try_clone().map_err(failed(&path))?;
    let region = Region::map(0, size, 0, 0, mapped)?;
    Ok((file, Ring::open(region)?))
}

/// Milliseconds after which the kernel gives a command of the device up.
pub fn patience(name: &DeviceName) -> u64 {
    let path = format!("/sys/kernel/config/target/core/{name}/attrib/cmd_time_out");
    let seconds = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match seconds {
        Some(0) => u64::MAX,
        Some(seconds) => seconds.saturating_mul(1000),
        None => USUAL_PATIENCE,
    }
}

/// Ends events that the kernel waits with since the time of a process that is gone: whoever caused
/// them gets an error and can try again. Nothing but the module's parameters tells of them.
pub fn end_old_events() {
    let parameters = Path::new("/sys/module/target_core_user/parameters");
    for (name, value) in [("block_netlink", "1"), ("reset_netlink", "1"), ("block_netlink", "0")] {
        if let Err(error) = fs::write(parameters.join(name), value) {
            // Kernels before 4.20 have none.
            tracing::debug!(%error, "cannot write {value} to {name} of target_core_user");
        }
    }
}

const CLASS: &str = "/sys/class/uio";
/// What the kernel's is unless it is set.
const USUAL_PATIENCE: u64 = 30_000;
