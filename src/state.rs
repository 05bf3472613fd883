//! What survives the process: reservations with APTPL and saved mode parameters, which survive a
//! power loss too, and the live state, which survives until then. One file each a logical unit, named
//! after its identity, in a directory that only this user can enter.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use thiserror::Error;
use vscsi_target::{
    backend::Backend,
    model::{
        LuConfig,
        live::LiveError,
        reservation::{Capabilities, Reservations, persist::StoreError},
    },
    spc::{
        mode::{self, Modes, SaveError},
        reserve,
    },
};

use crate::{
    config::Place,
    report::{Exit, Report},
};

/// Why state cannot be kept, or what was kept cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// There is no usual place for this user.
    #[error("there is no directory to keep reservations and mode pages in")]
    NoHome,
    /// The directory cannot be made.
    #[error("cannot create the state directory {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Saved reservations.
    #[error(transparent)]
    Reservations(#[from] StoreError),
    /// Saved mode parameters.
    #[error(transparent)]
    Modes(#[from] SaveError),
    /// What a process of this boot kept.
    #[error(transparent)]
    Live(#[from] LiveError),
}

impl From<StateError> for Report {
    fn from(error: StateError) -> Self {
        let what = error.to_string();
        let why = "starting without it could grant what a reservation denies";
        match error {
            StateError::NoHome => Self::new(Exit::CannotCreate, "state-dir", what)
                .why("neither XDG_STATE_HOME nor HOME is set")
                .fix("--state-dir DIR, or --state-dir none to keep nothing"),
            StateError::Create { .. } => Self::new(Exit::CannotCreate, "state-dir", what)
                .fix("--state-dir DIR, or --state-dir none to keep nothing"),
            StateError::Reservations(StoreError::Io { .. })
            | StateError::Modes(SaveError::Io { .. })
            | StateError::Live(LiveError::Io { .. }) => Self::new(Exit::Io, "state", what).why(why),
            StateError::Reservations(_) | StateError::Modes(_) | StateError::Live(_) => {
                Self::new(Exit::Config, "state-damaged", what).why(why).fix(
                    "restore the file from a backup, or move it away to start with no reservations \
                     and default mode pages",
                )
            }
        }
    }
}

/// The directory for the state of logical units, made if it is not there; `None` when nothing is to
/// be kept.
pub fn directory(place: &Place) -> Result<Option<PathBuf>, StateError> {
    let root = match place {
        Place::Nowhere => return Ok(None),
        Place::At(path) => path.clone(),
        Place::Usual => usual().ok_or(StateError::NoHome)?,
    };
    let path = root.join("lu");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|source| StateError::Create { path: path.clone(), source })?;
    Ok(Some(path))
}

/// Where state belongs: `/var/lib/vscsi` for root, else as the XDG base directories say.
fn usual() -> Option<PathBuf> {
    if let Some(given) = env::var_os("STATE_DIRECTORY") {
        // The service manager made it; there may be several, and the first is ours.
        let first = given.to_str().and_then(|list| list.split(':').next()).map(PathBuf::from);
        return first.filter(|path| path.is_absolute());
    }
    if nix::unistd::geteuid().is_root() {
        return Some(Path::new("/var/lib/vscsi").to_owned());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("vscsi"))
}

/// What was saved of a logical unit, as it is after a power on; defaults where nothing was.
pub fn load(config: &LuConfig, backend: &Backend) -> Result<(Reservations, Modes), StateError> {
    let capabilities = Capabilities {
        persist_through_power_loss: config.state_dir.is_some(),
        ..Capabilities::default()
    };
    let saved = reserve::store(config).map(|store| store.load(capabilities)).transpose()?.flatten();
    let mut reservations = saved.unwrap_or_else(|| Reservations::new(capabilities));
    reservations.power_on();
    let settings = mode::file(config).map(|path| mode::load(&path)).transpose()?.flatten();
    Ok((reservations, Modes::for_backend(backend.properties(), settings)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vscsi_target::{backend::Mem, model::Identity};

    fn scratch(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("vscsi-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn config(directory: &Path) -> LuConfig {
        LuConfig {
            identity: Identity::derive("x", None),
            removable: false,
            read_only: false,
            state_dir: Some(directory.to_owned()),
        }
    }

    #[test]
    fn the_directory_is_made_for_this_user_only() {
        let root = scratch("made");
        let made = directory(&Place::At(root.clone())).unwrap().unwrap();
        let mode = fs::metadata(&made).unwrap().permissions().mode() & 0o777;
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(mode, 0o700);
    }

    #[test]
    fn nothing_saved_gives_defaults() {
        let root = scratch("empty");
        let made = directory(&Place::At(root.clone())).unwrap().unwrap();
        let backend = Backend::Mem(Mem::new(1 << 20, 512).unwrap());
        let (reservations, modes) = load(&config(&made), &backend).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(reservations.registrations().len(), 0);
        assert!(!modes.software_write_protect());
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let root = scratch("damaged");
        let made = directory(&Place::At(root.clone())).unwrap().unwrap();
        let config = config(&made);
        let file = made.join(format!("{:016x}.reservations.json", config.identity.naa));
        fs::write(&file, "{\"version\": 1").unwrap();
        let backend = Backend::Mem(Mem::new(1 << 20, 512).unwrap());
        let report = Report::from(load(&config, &backend).unwrap_err());
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((report.code.as_ref(), report.exit), ("state-damaged", Exit::Config));
        assert!(report.what.contains(file.to_str().unwrap()), "{report}");
    }
}
