//! The control socket: JSON-RPC 2.0 over a Unix socket, one request a line.

pub mod api;
pub mod client;
pub mod rpc;
pub mod server;
pub mod table;
pub mod verbs;

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::config::Place;

/// Where the control socket is; `None` when there is to be none, or no place for one.
pub fn socket(place: &Place) -> Option<PathBuf> {
    match place {
        Place::Nowhere => None,
        Place::At(path) => Some(path.clone()),
        Place::Usual => usual(),
    }
}

/// `/run/vscsi` for root, the run-time directory for others.
fn usual() -> Option<PathBuf> {
    let directory = if nix::unistd::geteuid().is_root() {
        Path::new("/run").to_owned()
    } else {
        env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())?
    };
    Some(directory.join("vscsi/control.sock"))
}
