//! Mode parameters: what MODE SELECT can change, and where it is saved.
//!
//! Few bits can be changed, and each of them does what it says: see [`Settings`]. The layouts are in
//! [`page`], the commands in [`sense`] and [`select`].

pub mod page;
pub mod select;
pub mod sense;
#[cfg(test)]
mod tests;

use crate::{backend::Properties, model::LuConfig, replace::replace};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The changeable mode parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// WCE of the Caching page: completed writes may still be volatile.
    pub write_cache: bool,
    /// D_SENSE of the Control page: sense data in descriptor format.
    pub descriptor_sense: bool,
    /// SWP of the Control page: writes are refused.
    pub write_protect: bool,
    /// TAS of the Control page: commands aborted by another nexus end in TASK ABORTED.
    pub task_aborted: bool,
}

/// The mode parameters of a logical unit: current, default and saved values.
#[derive(Clone, Debug)]
pub struct Modes {
    current: Settings,
    default: Settings,
    saved: Option<Settings>,
    /// There is a volatile cache, so WCE can be changed.
    cache: bool,
}

impl Default for Modes {
    /// The modes of a backend without a volatile cache.
    fn default() -> Self {
        Self::new(false, None)
    }
}

impl Modes {
    /// The modes of a logical unit over a backend with these properties, with what was saved.
    pub fn for_backend(properties: &Properties, saved: Option<Settings>) -> Self {
        Self::new(properties.volatile_cache, saved)
    }

    fn new(cache: bool, saved: Option<Settings>) -> Self {
        let default = Settings {
            write_cache: cache,
            descriptor_sense: false,
            write_protect: false,
            task_aborted: false,
        };
        // What was saved over another backend may claim a cache that this one lacks.
        let saved = saved.map(|s| Settings { write_cache: s.write_cache && cache, ..s });
        Self { current: saved.unwrap_or(default), default, saved, cache }
    }

    /// SWP of the Control page.
    pub fn software_write_protect(&self) -> bool {
        self.current.write_protect
    }

    /// WCE of the Caching page.
    pub fn write_cache_enabled(&self) -> bool {
        self.current.write_cache
    }

    /// D_SENSE of the Control page.
    pub fn descriptor_sense(&self) -> bool {
        self.current.descriptor_sense
    }

    /// TAS of the Control page: aborted commands of other nexuses end in TASK ABORTED.
    pub fn task_aborted_status(&self) -> bool {
        self.current.task_aborted
    }

    /// The current and the saved values.
    pub fn settings(&self) -> (Settings, Option<Settings>) {
        (self.current, self.saved)
    }

    /// Takes current and saved values over from the same logical unit elsewhere, as far as this
    /// backend has what they are about.
    pub fn resume(&mut self, current: Settings, saved: Option<Settings>) {
        let fit = |s: Settings| Settings { write_cache: s.write_cache && self.cache, ..s };
        (self.current, self.saved) = (fit(current), saved.map(fit));
    }

    /// A logical unit reset: the saved values become current again.
    pub fn reset(&mut self) {
        self.current = self.saved.unwrap_or(self.default);
    }

    /// What can be changed: each field true where its bit is changeable.
    fn changeable(&self) -> Settings {
        Settings {
            write_cache: self.cache,
            descriptor_sense: true,
            write_protect: true,
            task_aborted: true,
        }
    }
}

/// The file that a logical unit's mode parameters are saved in, if it may save any.
pub fn file(config: &LuConfig) -> Option<PathBuf> {
    let name = format!("{:016x}.modes.json", config.identity.naa);
    config.state_dir.as_ref().map(|directory| directory.join(name))
}

/// Why saved mode parameters cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The operating system refused.
    #[error("cannot {what} the mode parameters in {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what [`save`] writes.
    #[error("{path} holds no valid mode parameters: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Written by a version with another format.
    #[error("{path} has format version {version}, which is not supported (this is {VERSION})")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    settings: Settings,
}

/// What was saved in `path`, `None` when nothing was. Blocks.
pub fn load(path: &Path) -> Result<Option<Settings>, SaveError> {
    let fail = |what, source| SaveError::Io { what, path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail("open", e)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(|e| fail("read", e))?;
    let saved: Saved = serde_json::from_slice(&text)
        .map_err(|source| SaveError::Content { path: path.to_owned(), source })?;
    if saved.version != VERSION {
        return Err(SaveError::Version { path: path.to_owned(), version: saved.version });
    }
    Ok(Some(saved.settings))
}

/// Saves to a new file and renames it over the old one; durable when it returns. Blocks.
pub fn save(path: &Path, settings: Settings) -> Result<(), SaveError> {
    let fail = |what, source| SaveError::Io { what, path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(&Saved { version: VERSION, settings })
        .map_err(|source| SaveError::Content { path: path.to_owned(), source })?;
    text.push(b'\n');
    replace(path, &text, true).map_err(|(what, source)| fail(what, source))
}

const VERSION: u32 = 1;
const MAX_FILE: u64 = 64 << 10;
