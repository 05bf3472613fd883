//! Unix sockets that this process listens on: bound with exact permissions, taken over from a
//! process that is gone but never from one that runs, removed at the end.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
        },
        stat::{Mode, fchmod},
    },
};
use thiserror::Error;

use crate::report::{Exit, Report};

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A process listens there.
    #[error("another process listens on the socket {}", .0.display())]
    InUse(PathBuf),
    /// Something else is in its place.
    #[error("{} is in the place of a socket, and is none", .0.display())]
    NotASocket(PathBuf),
    /// The directory is missing.
    #[error("there is no directory for the socket {}", .0.display())]
    NoDirectory(PathBuf),
    /// The operating system refused.
    #[error("cannot create the socket {}: {source}", path.display())]
    Create {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl SocketError {
    /// The report without a remedy; `in_use` is its code when another process has the socket.
    pub fn report(&self, in_use: &'static str, other: &'static str) -> Report {
        let what = self.to_string();
        match self {
            Self::InUse(_) => Report::new(Exit::Retry, in_use, what),
            Self::Create { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Report::new(Exit::Permission, other, what)
            }
            _ => Report::new(Exit::CannotCreate, other, what),
        }
    }
}

/// A socket that is listened on. Dropping it removes it.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    /// Device and inode of the file: another process may have put its own in its place.
    file: (u64, u64),
    /// Where connections arrive.
    pub listener: UnixListener,
}

impl Listening {
    /// Listens at `path` with these permissions, whatever the umask. A socket that nobody listens
    /// on any more is replaced.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let create =
            |errno: Errno| SocketError::Create { path: path.to_owned(), source: errno.into() };
        let refused = |source| SocketError::Create { path: path.to_owned(), source };
        if let Ok(meta) = fs::symlink_metadata(path) {
            if !meta.file_type().is_socket() {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            if is_listened_on(path).map_err(create)? {
                return Err(SocketError::InUse(path.to_owned()));
            }
            fs::remove_file(path).map_err(refused)?;
        }
        let stream = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None);
        let socket = stream(SockFlag::SOCK_CLOEXEC).map_err(create)?;
        // Before bind, so that nobody slips in: the file gets these permissions less the umask.
        fchmod(&socket, Mode::from_bits_truncate(mode)).map_err(create)?;
        let address = UnixAddr::new(path).map_err(create)?;
        bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => SocketError::NoDirectory(path.to_owned()),
            Errno::EADDRINUSE => SocketError::InUse(path.to_owned()),
            errno => create(errno),
        })?;
        let file = identity(path).map_err(refused)?;
        let bound = Self { path: path.to_owned(), file, listener: UnixListener::from(socket) };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(refused)?;
        listen(&bound.listener, Backlog::MAXCONN).map_err(create)?;
        Ok(bound)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Whether a process listens on the socket; without waiting until it accepts.
fn is_listened_on(path: &Path) -> Result<bool, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: its queue of connections is full.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vscsi-socket-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_socket_in_use_is_not_taken_and_one_left_behind_is() {
        let path = scratch("in-use");
        let socket = Listening::bind(&path, 0o600).unwrap();
        assert!(matches!(Listening::bind(&path, 0o600), Err(SocketError::InUse(_))));
        drop(socket);
        assert!(!path.exists());
        let left = scratch("left");
        drop(UnixListener::bind(&left).unwrap());
        assert!(Listening::bind(&left, 0o600).is_ok());
    }

    #[test]
    fn a_socket_of_another_process_in_its_place_stays() {
        let path = scratch("other");
        let first = Listening::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listening::bind(&path, 0o600).unwrap();
        drop(first);
        assert!(is_listened_on(&path).unwrap());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_full_queue_of_connections_is_a_socket_in_use() {
        let path = scratch("full");
        let busy = Listening::bind(&path, 0o600).unwrap();
        listen(&busy.listener, Backlog::new(0).unwrap()).unwrap();
        let mut probes = 0;
        while is_listened_on(&path).unwrap() && probes < 3 {
            probes += 1;
        }
        assert_eq!(probes, 3);
    }

    #[test]
    fn permissions_are_those_asked_for() {
        for mode in [0o600, 0o666, 0o660] {
            let path = scratch("mode");
            let _socket = Listening::bind(&path, mode).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_file_in_its_place_stays() {
        let path = scratch("file");
        fs::write(&path, "x").unwrap();
        let refused = Listening::bind(&path, 0o600);
        let kept = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(refused, Err(SocketError::NotASocket(_))));
        assert_eq!(kept, "x");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let refused = Listening::bind(&scratch("none").join("x"), 0o600);
        assert!(matches!(refused, Err(SocketError::NoDirectory(_))));
    }
}
