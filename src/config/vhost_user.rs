//! Controllers for VMMs: one socket each, behind which a VMM finds targets by vhost-user or vfio-user.

use std::{
    collections::BTreeMap,
    fmt,
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use iscsi::names::IscsiName;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::disk;

/// A controller that a VMM plugs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// How the VMM speaks with it.
    pub protocol: Protocol,
    /// How the VMM reaches it.
    pub door: Door,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// What the guest's initiator port is called.
    pub name: ControllerName,
    /// The targets by the number that the guest addresses them with; at least one.
    pub targets: BTreeMap<u8, IscsiName>,
}

/// How a VMM speaks with a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// vhost-user: the VMM has the PCI function, and its queues are here.
    VhostUser,
    /// vfio-user: the PCI function is here too.
    VfioUser,
}

impl Protocol {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::VfioUser => "vfio-user",
        }
    }

    /// The option and the key that name its sockets.
    pub fn key(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost_user",
            Self::VfioUser => "vfio_user",
        }
    }
}

/// How a VMM reaches a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// It connects to this socket.
    Socket(SocketPlace),
    /// It is connected already, by a descriptor that this process inherited.
    Descriptor(RawFd),
}

/// A Unix socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPlace {
    path: PathBuf,
    /// Its permissions, as of chmod(2).
    pub mode: u32,
}

impl SocketPlace {
    /// A socket there, which its owner alone may use.
    ///
    /// # Errors
    /// The path does not fit into a socket's address (unix(7)).
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, ControllerError> {
        let path = path.into();
        match path.as_os_str().as_bytes().len() {
            0 => Err(ControllerError::NoPath),
            len if len > MAX_PATH => Err(ControllerError::PathLength { path, len }),
            _ => Ok(Self { path, mode: OWNER_ONLY }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of a controller that was given none: the file's name without its suffix.
    pub fn default_name(&self) -> Result<ControllerName, ControllerError> {
        let stem = self.path.file_stem().unwrap_or_default();
        let unnamed = || ControllerError::DefaultName(self.path.clone());
        stem.to_str().and_then(|stem| ControllerName::parse(stem).ok()).ok_or_else(unnamed)
    }
}

/// The stable name of a controller: what the guest's initiator port is called and addressed by. It
/// stays the same over restarts and migration, so that reservations do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ControllerName(String);

impl ControllerName {
    /// 1 to 223 letters, digits, `-`, `_`, `.` and `:` of ASCII.
    pub fn parse(text: &str) -> Result<Self, ControllerError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ControllerError::Name(text.to_owned()))
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SAS address of the initiator port: a locally assigned NAA name (SPC-4 7.8.6.6.4).
    pub fn initiator_address(&self) -> u64 {
        locally_assigned(&["vhost-user initiator port", &self.0])
    }

    /// The SAS address of the port by which the controller's guest reaches a target.
    pub fn target_address(&self, target: &str) -> u64 {
        locally_assigned(&["vhost-user target port", target, &self.0])
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The same seeds give the same name; others differ with overwhelming probability.
pub fn locally_assigned(seeds: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for seed in seeds {
        hash.update(seed.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let word = digest.iter().take(8).fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    3 << 60 | word >> 4
}

/// A controller as the command line says it, in the form `SOCKET,option,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it is.
    pub place: SocketPlace,
    /// The controller's name.
    pub name: ControllerName,
    /// Request queues, where it says so.
    pub queues: Option<u16>,
}

impl Socket {
    /// Parses `SOCKET,option,…`. A comma in the path is written twice.
    pub fn parse(text: &str) -> Result<Self, ControllerError> {
        let mut parts = disk::split(text).into_iter();
        let mut place = SocketPlace::new(parts.next().unwrap_or_default())?;
        let (mut name, mut queues) = (None, None);
        for option in parts {
            match option.split_once('=') {
                Some(("name", value)) => name = Some(ControllerName::parse(value)?),
                Some(("queues", value)) => queues = Some(self::queues(value)?),
                Some(("mode", value)) => place.mode = mode(value)?,
                _ => return Err(ControllerError::Option(option)),
            }
        }
        let name = name.map_or_else(|| place.default_name(), Ok)?;
        Ok(Self { place, name, queues })
    }
}

/// Parses a number of request queues.
pub fn queues(text: &str) -> Result<u16, ControllerError> {
    let number = text.parse().ok().filter(|number| (1..=MAX_QUEUES).contains(number));
    number.ok_or_else(|| ControllerError::Queues(text.to_owned()))
}

/// Parses permissions as chmod(1) writes them: three octal digits, perhaps after a 0.
pub fn mode(text: &str) -> Result<u32, ControllerError> {
    let digits = if text.len() == 4 { text.strip_prefix('0') } else { Some(text) };
    digits
        .filter(|digits| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .ok_or_else(|| ControllerError::Mode(text.to_owned()))
}

/// Why there is no such controller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControllerError {
    /// Nothing before the first comma.
    #[error("the socket has no path")]
    NoPath,
    /// Too long for an address.
    #[error("{} has {len} bytes, and the path of a socket at most {MAX_PATH}", path.display())]
    PathLength {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Not a name.
    #[error("{0:?} is not a controller's name: 1 to {MAX_NAME} letters, digits and -_.: are")]
    Name(String),
    /// The file's name is none either.
    #[error("the file name of {} makes no controller's name", .0.display())]
    DefaultName(PathBuf),
    /// Not a number of queues.
    #[error("{0:?} is not a number of request queues: 1 to {MAX_QUEUES} are")]
    Queues(String),
    /// Not permissions.
    #[error("{0:?} are not permissions: write three octal digits, as in 0660")]
    Mode(String),
    /// An option nobody knows.
    #[error("a socket has no option {0:?}")]
    Option(String),
}

/// The most request queues of a controller.
pub const MAX_QUEUES: u16 = 256;
/// Request queues of a controller that was given no number.
pub const DEFAULT_QUEUES: u16 = 4;
/// What fits into `sun_path` beside its terminating null.
const MAX_PATH: usize = 107;
const MAX_NAME: usize = 223;
const OWNER_ONLY: u32 = 0o600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_names_its_controller() {
        let socket = Socket::parse("/run/vscsi/vm1.sock").unwrap();
        assert_eq!(socket.name.as_str(), "vm1");
        assert_eq!(socket.place.path(), Path::new("/run/vscsi/vm1.sock"));
        assert_eq!((socket.queues, socket.place.mode), (None, 0o600));
    }

    #[test]
    fn options_follow_the_path() {
        let socket = Socket::parse("a,,b c,name=vm:2,queues=8,mode=0660").unwrap();
        assert_eq!(socket.place.path(), Path::new("a,b c"));
        assert_eq!(socket.name.as_str(), "vm:2");
        assert_eq!((socket.queues, socket.place.mode), (Some(8), 0o660));
    }

    #[test]
    fn wrong_values_are_refused() {
        let long = "x".repeat(108);
        for text in [
            "",
            ",name=a",
            "a,name=",
            "a,name=b c",
            "a,queues=0",
            "a,queues=257",
            "a,queues=",
            "a,mode=660 ",
            "a,mode=0888",
            "a,mode=01777",
            "a,mode=+60",
            "a,ro",
            "a b",
            "..",
            &long,
        ] {
            assert!(Socket::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_locally_assigned_and_differ() {
        let name = |text| ControllerName::parse(text).unwrap();
        let addresses = [
            name("a").initiator_address(),
            name("b").initiator_address(),
            name("a").target_address("iqn.2026-11.org.x:t"),
            name("a").target_address("iqn.2026-11.org.x:u"),
            name("b").target_address("iqn.2026-11.org.x:t"),
        ];
        for (at, address) in addresses.iter().enumerate() {
            assert_eq!(address >> 60, 3);
            assert!(!addresses[..at].contains(address));
        }
        // Saved reservations hold it: a new version must not give another.
        assert_eq!(name("vm1").initiator_address(), 0x3ad5_7e16_bce2_16a1);
    }
}
