//! Where a logical unit's blocks are.
//!
//! A backend is an enum, so that the data path has no dynamic dispatch. Each variant serves two
//! lanes: the *fast lane* ([`Backend::start`]), which never blocks, and the *blocking lane*, which
//! the worker threads use for commands that take several steps.

pub mod file;
pub mod mem;
pub mod null;
pub mod nvme;

use crate::reactor::{Devices, pool::PoolBuf, ring::Ring, sg::Segment};
use std::io;

pub use file::{File, FileOptions, OpenError};
pub use mem::Mem;
pub use null::Null;
pub use nvme::Nvme;

/// What does not change while a backend is open.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Physical block size in bytes, at least the logical one.
    pub physical_block_size: u32,
    /// The backing cannot be written.
    pub read_only: bool,
    /// Completed writes may be lost in a power failure until a flush: reported as WCE.
    pub volatile_cache: bool,
    /// Unmapped blocks give their space back and read as zeroes (LBPME, LBPRZ).
    pub thin: bool,
    /// Granularity of unmapping in bytes, 0 when not thin.
    pub unmap_granularity: u32,
    /// Preferred transfer size in bytes.
    pub optimal_transfer: u32,
    /// Spinning medium.
    pub rotational: bool,
    /// A write of up to `limits::MAX_ATOMIC` bytes is never torn by a power failure or the end of the
    /// process: reported as MAXIMUM ATOMIC TRANSFER LENGTH, on which databases rely.
    pub untorn_writes: bool,
    /// What it is, for people: a path, "ram", "null".
    pub description: String,
}

/// What a part of the medium is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// It holds data; otherwise it is deallocated and reads as zeroes.
    pub mapped: bool,
    /// For how many bytes, never 0 inside the medium.
    pub len: u64,
}

/// A fast-lane operation. Offsets and lengths are whole blocks inside the medium: the core checked.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Medium to memory.
    Read,
    /// Memory to medium; `fua` when it has to be on the medium before it completes.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything written so far to the medium.
    Flush,
}

/// What became of a fast-lane operation.
#[derive(Debug)]
pub enum Started {
    /// Done already.
    Done(io::Result<()>),
    /// The ring reports it under the given key.
    Queued,
    /// This backend cannot do it without blocking: send it to a worker.
    WouldBlock,
    /// The device does not reach the memory: do it with a pool buffer.
    Unreachable,
}

/// What a reactor does input and output with.
#[derive(Debug)]
pub struct Lanes {
    /// The ring.
    pub ring: Ring,
    /// The queue pairs of devices.
    pub devices: Devices,
}

impl Lanes {
    /// Of a reactor, with its ring.
    pub fn new(reactor: u16, ring: Ring) -> Self {
        Self { ring, devices: Devices::new(reactor) }
    }
}

/// A backend.
#[derive(Debug)]
pub enum Backend {
    /// Stores nothing, reads zeroes.
    Null(Null),
    /// Memory.
    Mem(Mem),
    /// A file or block device.
    File(File),
    /// A namespace of an NVMe controller.
    Nvme(Box<Nvme>),
}

macro_rules! each {
    ($self:expr, $backend:ident => $call:expr) => {
        match $self {
            Self::Null($backend) => $call,
            Self::Mem($backend) => $call,
            Self::File($backend) => $call,
            Self::Nvme($backend) => $call,
        }
    };
}

impl Backend {
    /// What does not change.
    pub fn properties(&self) -> &Properties {
        each!(self, backend => backend.properties())
    }

    /// Reports physical blocks of this size (bytes, a power of two) instead of the backing's own.
    pub fn set_physical_block_size(&mut self, size: u32) {
        match self {
            Self::Null(null) => null.properties.physical_block_size = size,
            Self::Mem(mem) => mem.properties.physical_block_size = size,
            Self::File(file) => file.properties.physical_block_size = size,
            Self::Nvme(nvme) => nvme.properties.physical_block_size = size,
        }
    }

    /// Size of the medium in bytes now.
    pub fn len(&self) -> u64 {
        each!(self, backend => backend.len())
    }

    /// Whether the medium has no blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether blocking calls never wait for a device: then they may run on a reactor.
    pub fn never_waits(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Nvme(_))
    }

    /// Starts a fast-lane operation on `segments` of memory at byte `offset`. The memory must stay
    /// valid until the operation is done: the caller holds it in its task.
    pub fn start(
        &self,
        lanes: &mut Lanes,
        key: u64,
        op: Op,
        offset: u64,
        segments: &[Segment],
    ) -> Started {
        match self {
            Self::Null(null) => null.start(&mut lanes.ring, key, op, offset, segments),
            Self::Mem(mem) => mem.start(&mut lanes.ring, key, op, offset, segments),
            Self::File(file) => file.start(&mut lanes.ring, key, op, offset, segments),
            Self::Nvme(nvme) => nvme.start(&mut lanes.devices, key, op, offset, segments),
        }
    }

    /// Lets the device behind it, if there is one, reach a pool buffer.
    #[inline]
    pub fn reach(&self, lanes: &mut Lanes, buffer: &PoolBuf) {
        if let Self::Nvme(nvme) = self {
            nvme.reach(&mut lanes.devices, buffer);
        }
    }

    /// A transfer goes through a pool buffer, because of [`Started::Unreachable`].
    pub fn bounced(&self) {
        if let Self::Nvme(nvme) = self {
            nvme.bounced();
        }
    }

    /// The memory behind a range, when a transport may send straight from it.
    pub fn lend(&self, offset: u64, len: usize) -> Option<Segment> {
        match self {
            Self::Mem(mem) => mem.lend(offset, len),
            Self::Null(null) => null.lend(offset, len),
            Self::File(_) | Self::Nvme(_) => None,
        }
    }

    /// Blocking: reads all of `buffer`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        each!(self, backend => backend.read_at(offset, buffer))
    }

    /// Blocking: writes all of `data`.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        each!(self, backend => backend.write_at(offset, data))
    }

    /// Blocking: everything written so far to the medium. Once it has failed it fails for ever:
    /// the kernel may have dropped the data.
    pub fn flush(&self) -> io::Result<()> {
        each!(self, backend => backend.flush())
    }

    /// An operation that [`Backend::start`] queued has failed. If written data may be lost with it,
    /// all flushes and forced writes fail from now on.
    pub fn failed(&self, op: Op, error: &io::Error) {
        match self {
            Self::File(file) => file.failed(op, error),
            Self::Nvme(nvme) => nvme.failed(op),
            Self::Null(_) | Self::Mem(_) => {}
        }
    }

    /// Blocking: deallocates; the range reads as zeroes afterwards.
    pub fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        each!(self, backend => backend.unmap(offset, len))
    }

    /// Blocking: makes the range read as zeroes, deallocated where `may_unmap` and possible.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        each!(self, backend => backend.write_zeroes(offset, len, may_unmap))
    }

    /// Blocking: what is at `offset`.
    pub fn extent(&self, offset: u64) -> io::Result<Extent> {
        each!(self, backend => backend.extent(offset))
    }

    /// Blocking: hints that the range will be read soon.
    pub fn prefetch(&self, offset: u64, len: u64) -> io::Result<()> {
        each!(self, backend => backend.prefetch(offset, len))
    }

    /// Whether it was opened for [`File::open_for_handover`]: another process may have the image.
    pub fn is_handed_over(&self) -> bool {
        matches!(self, Self::File(file) if file.is_handed_over())
    }

    /// Blocking: takes the image over, see [`File::acquire`].
    pub fn acquire(&self) -> Result<(), OpenError> {
        match self {
            Self::Null(_) | Self::Mem(_) | Self::Nvme(_) => Ok(()),
            Self::File(file) => file.acquire(),
        }
    }

    /// How many transfers were copied because the device or O_DIRECT does not take their memory.
    pub fn bounces(&self) -> u64 {
        match self {
            Self::File(file) => file.bounces(),
            Self::Nvme(nvme) => nvme.bounces(),
            Self::Null(_) | Self::Mem(_) => 0,
        }
    }

    /// How often the device behind it was reset.
    pub fn resets(&self) -> u64 {
        match self {
            Self::Nvme(nvme) => nvme.resets(),
            Self::Null(_) | Self::Mem(_) | Self::File(_) => 0,
        }
    }

    /// Gives up what [`Backend::acquire`] took.
    pub fn release(&self) {
        if let Self::File(file) = self {
            file.release();
        }
    }

    /// Changes the size: a file grows or shrinks, a block device takes the size it has now when
    /// `len` is `None`.
    pub fn resize(&self, len: Option<u64>) -> io::Result<u64> {
        each!(self, backend => backend.resize(len))
    }
}
