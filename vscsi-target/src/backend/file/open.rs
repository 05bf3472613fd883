//! Opening an image or a block device: every check that is made once.

use super::{File, FileOptions, handover::Handover};
use crate::{backend::Properties, reactor::pages::Pages};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl},
    libc,
    sys::stat::{major, minor},
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Seek, SeekFrom},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, AtomicU64},
};

/// Why an image or block device cannot be exported. Its text says what is wrong and why;
/// [`OpenError::fix`] what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("{path}: no such file")]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// A directory.
    #[error("{path}: is a directory, not a disk image")]
    Directory {
        /// The image.
        path: PathBuf,
    },
    /// A pipe, socket or character device.
    #[error("{path}: is neither a regular file nor a block device")]
    NotADisk {
        /// The image.
        path: PathBuf,
    },
    /// The permissions or the mount do not let this process write.
    #[error("{path}: cannot be written: {source}")]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The permissions do not let this process read.
    #[error("{path}: cannot be read: {source}")]
    NotReadable {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A block device that is mounted or part of something else.
    #[error("{path}: the device is in use by the kernel (mounted, swap, or part of an array)")]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Another open image holds the lock.
    #[error("{path}: is in use by {}", Holder::describe(holder))]
    Locked {
        /// The image.
        path: PathBuf,
        /// Who holds it, where this process may know.
        holder: Option<Holder>,
    },
    /// The file system has no locks.
    #[error("{path}: cannot be locked against a second user: {source}")]
    NoLocks {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither 512 nor 4096.
    #[error("{path}: {block_size} is not a block size: 512 and 4096 are")]
    BlockSize {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        block_size: u32,
    },
    /// No blocks at all.
    #[error("{path}: is empty")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Part of a block at the end.
    #[error("{path}: its size of {len} bytes is not a multiple of the block size, {block_size}")]
    Ragged {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
        /// What was asked for.
        block_size: u32,
    },
    /// O_DIRECT is not possible, or not in blocks of this size.
    #[error("{path}: has no direct input and output in blocks of {block_size} bytes")]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        block_size: u32,
    },
    /// Anything else.
    #[error("{path}: cannot be opened: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OpenError {
    /// What whoever sees the error can do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Missing { path } => format!("truncate -s 1G {}", path.display()),
            Self::Directory { .. } | Self::NotADisk { .. } => {
                "give the path of an image file or a block device".into()
            }
            Self::NotWritable { .. } => {
                "give this user write permission, or export it read-only".into()
            }
            Self::NotReadable { .. } => "give this user read permission".into(),
            Self::Busy { path } => {
                format!("unmount it (lsblk {}), or export it read-only", path.display())
            }
            Self::Locked { holder: Some(holder), .. } => {
                format!("stop process {}, or export another image", holder.pid)
            }
            Self::Locked { holder: None, path } => {
                format!("find the process with fuser -v {}", path.display())
            }
            Self::NoLocks { .. } => "move the image to a file system with locks".into(),
            Self::BlockSize { .. } => "use a block size of 512 or 4096".into(),
            Self::Empty { path } => format!("truncate -s 1G {}", path.display()),
            Self::Ragged { path, len, block_size } => {
                let whole = len.next_multiple_of(u64::from(*block_size));
                format!("truncate -s {whole} {}, or use a block size of 512", path.display())
            }
            Self::NoDirect { .. } => {
                "use a block size of 4096, or leave direct input and output off".into()
            }
            Self::Io { .. } => "check the device and the file system".into(),
        }
    }
}

/// The process that holds an image's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process number.
    pub pid: u32,
    /// Its command name.
    pub command: String,
}

impl Holder {
    fn describe(holder: &Option<Self>) -> String {
        match holder {
            Some(Self { pid, command }) => format!("process {pid} ({command})"),
            None => "a process that this user may not look at".into(),
        }
    }

    /// Looks for the process with a locked descriptor of this file. An OFD lock has no owner
    /// process in `/proc/locks`, but each descriptor's `fdinfo` shows the locks taken through it.
    fn find(dev: u64, ino: u64) -> Option<Self> {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid| Self::holds(*pid, dev, ino))
            .map(|pid| {
                let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                Self { pid, command: command.trim_end().into() }
            })
    }

    fn holds(pid: u32, dev: u64, ino: u64) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().any(|fd| {
            let same = fs::metadata(fd.path()).is_ok_and(|m| m.dev() == dev && m.ino() == ino);
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(fd.file_name());
            same && fs::read_to_string(info)
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
        })
    }
}

pub(super) fn open(options: &FileOptions, handover: bool) -> Result<File, OpenError> {
    let FileOptions { path, block_size, read_only, direct } = options.clone();
    if !matches!(block_size, 512 | 4096) {
        return Err(OpenError::BlockSize { path, block_size });
    }
    // Before opening: opening a pipe would wait for its other end.
    kind(&path, &fs::metadata(&path).map_err(|error| refused(options, error))?)?;
    let file = open_flags(options, !handover).map_err(|error| refused(options, error))?;
    let io = |source| OpenError::Io { path: path.clone(), source };
    let meta = file.metadata().map_err(io)?;
    let device = kind(&path, &meta)?;
    if !handover {
        lock(options, &file)?;
    }
    let len = (&file).seek(SeekFrom::End(0)).map_err(io)?;
    if len == 0 {
        return Err(OpenError::Empty { path });
    }
    let ragged = len % u64::from(block_size);
    if ragged != 0 && !device {
        return Err(OpenError::Ragged { path, len, block_size });
    }
    let len = len - ragged;
    let alignment = match direct {
        true => Some(
            probe_direct(&file, block_size, len)
                .ok_or_else(|| OpenError::NoDirect { path: path.clone(), block_size })?,
        ),
        false => None,
    };
    let queue = Queue::of(if device { meta.rdev() } else { meta.dev() });
    let thin = !read_only
        && if device {
            queue.unmaps()
        } else {
            punches(&file, if handover { len + FAR } else { len })
        };
    let natural = match device {
        true => queue.number("physical_block_size").unwrap_or(4096),
        false => meta.blksize(),
    };
    let natural = natural.clamp(u64::from(block_size), 4096.max(u64::from(block_size))) as u32;
    let granularity = match device {
        true => queue.number("discard_granularity").unwrap_or(0).clamp(natural.into(), 1 << 30),
        false => natural.into(),
    } as u32;
    Ok(File {
        properties: Properties {
            block_size,
            physical_block_size: natural,
            read_only,
            volatile_cache: true,
            thin,
            unmap_granularity: if thin { granularity } else { 0 },
            optimal_transfer: 128 << 10,
            rotational: queue.number("rotational") == Some(1),
            // A file system or a device may write half of it.
            untorn_writes: false,
            description: path.display().to_string(),
        },
        file,
        device,
        alignment,
        len: AtomicU64::new(len),
        failed: AtomicI32::new(0),
        bounces: AtomicU64::new(0),
        handover: handover.then(|| Handover::new(options.clone())),
    })
}

/// Whether it is a block device; an error if it is no disk at all.
fn kind(path: &Path, meta: &fs::Metadata) -> Result<bool, OpenError> {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => Err(OpenError::Directory { path: path.into() }),
        () if kind.is_block_device() => Ok(true),
        () if kind.is_file() => Ok(false),
        () => Err(OpenError::NotADisk { path: path.into() }),
    }
}

pub(super) fn open_flags(options: &FileOptions, exclusive: bool) -> io::Result<fs::File> {
    let mut flags = if options.direct { libc::O_DIRECT } else { 0 };
    let device = fs::metadata(&options.path)?.file_type().is_block_device();
    if device && exclusive && !options.read_only {
        // For a block device: refused while it is mounted.
        flags |= libc::O_EXCL;
    }
    OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags).open(&options.path)
}

pub(super) fn refused(options: &FileOptions, source: io::Error) -> OpenError {
    let path = options.path.clone();
    match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT | Errno::ENOTDIR => OpenError::Missing { path },
        Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY if !options.read_only => {
            OpenError::NotWritable { path, source }
        }
        Errno::EACCES | Errno::EPERM => OpenError::NotReadable { path, source },
        // Another target has it, or the kernel itself.
        Errno::EBUSY => {
            let holder = fs::metadata(&path).ok().and_then(|m| Holder::find(m.dev(), m.ino()));
            match holder {
                Some(_) => OpenError::Locked { path, holder },
                None => OpenError::Busy { path },
            }
        }
        Errno::EINVAL if options.direct => {
            OpenError::NoDirect { path, block_size: options.block_size }
        }
        _ => OpenError::Io { path, source },
    }
}

/// Locks the whole file, shared for a reader: kept by the open file description until it is closed,
/// and in the way of everybody who locks by POSIX rules too.
pub(super) fn lock(options: &FileOptions, file: &fs::File) -> Result<(), OpenError> {
    let path = options.path.clone();
    let kind = if options.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole(kind))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let holder = file.metadata().ok().and_then(|m| Holder::find(m.dev(), m.ino()));
            Err(OpenError::Locked { path, holder })
        }
        Err(errno) => Err(OpenError::NoLocks { path, source: errno.into() }),
    }
}

/// Gives up what [`lock`] took.
pub(super) fn unlock(file: &fs::File) {
    // Unlocking what this description holds cannot fail.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&whole(libc::F_UNLCK)));
}

fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The alignment of memory that direct reads of single blocks need, by trying; `None` when they do
/// not work. The second block shows whether the device's sectors are larger than ours.
fn probe_direct(file: &fs::File, block_size: u32, len: u64) -> Option<usize> {
    let block = block_size as usize;
    let mut pages = Pages::zeroed(NonZeroUsize::new(4096 + block)?).ok()?;
    let offset = if len > u64::from(block_size) { u64::from(block_size) } else { 0 };
    let bytes = pages.bytes_mut();
    file.read_exact_at(bytes.get_mut(..block)?, offset).ok()?;
    let shifted = bytes.get_mut(512..512 + block)?;
    Some(if file.read_exact_at(shifted, offset).is_ok() { 512 } else { 4096 })
}

/// Whether the file system punches holes: tried behind the end, where there is no data to lose.
fn punches(file: &fs::File, len: u64) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    i64::try_from(len.next_multiple_of(4096))
        .is_ok_and(|end| fallocate(file, flags, end, 4096).is_ok())
}

/// So far behind the end that whoever still has the image does not grow it there meanwhile.
const FAR: u64 = 1 << 40;

/// The request queue of a block device in sysfs.
#[derive(Debug)]
struct Queue {
    folder: Option<PathBuf>,
}

impl Queue {
    fn of(dev: u64) -> Self {
        let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(dev), minor(dev)));
        // A partition has the queue of the disk, one folder up.
        let device = fs::canonicalize(device).ok();
        let own = device.as_ref().map(|device| device.join("queue"));
        let parents = device.as_ref().and_then(|device| Some(device.parent()?.join("queue")));
        Self { folder: [own, parents].into_iter().flatten().find(|folder| folder.is_dir()) }
    }

    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.folder.as_ref()?.join(name)).ok()?.trim().parse().ok()
    }

    /// Whether the device deallocates and then certainly reads zeroes: it has both a discard and a
    /// command that writes zeroes, which the kernel's hole punch on a device stands on.
    fn unmaps(&self) -> bool {
        let some = |name| self.number(name).is_some_and(|n| n > 0);
        some("discard_max_bytes") && some("write_zeroes_max_bytes")
    }
}
