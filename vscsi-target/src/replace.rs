//! Files that are replaced as a whole: whoever reads one sees the old or the new content.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// What was tried, and the system's answer.
pub(crate) type Fault = (&'static str, io::Error);

/// Writes a new file beside `path`, for its owner only, and renames it over the old one. What has
/// been handed to the kernel outlives the process; with `durable` it outlives a power failure too
/// when this returns. Blocks.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), Fault> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(|e| ("create", e))?;
    file.write_all(bytes).map_err(|e| ("write", e))?;
    if durable {
        file.sync_all().map_err(|e| ("sync", e))?;
    }
    fs::rename(&new, path).map_err(|e| ("rename", e))?;
    if durable { sync_directory(path) } else { Ok(()) }
}

/// Makes a new name, or that one is gone, outlive a power failure.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Fault> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(|e| ("sync the directory of", e))
}
