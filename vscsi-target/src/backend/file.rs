//! The file backend: a regular file or a block device, through the page cache or around it.
//!
//! Reads, writes and flushes go through the reactor's ring; what needs several steps, or memory that
//! O_DIRECT does not take, goes to a worker thread. Completed writes are in the page cache or the
//! drive's cache, so the write cache is reported as on, and only a flush makes them safe.
//!
//! **A failed flush stays failed.** After an error of fdatasync the kernel may have marked the lost
//! pages clean, so a second one that succeeds would be a lie. The first error is kept, and every
//! flush and forced write from then on fails with it until the image is opened anew. The engine
//! reports the errors of the ring through [`File::failed`].

mod handover;
mod open;

pub use open::{Holder, OpenError};

use super::{Extent, Op, Properties, Started};
use handover::Handover;

use crate::reactor::{pages::Pages, ring::Ring, sg::Segment};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise},
    unistd::{Whence, lseek},
};
use std::{
    fs,
    io::{self, Seek, SeekFrom},
    num::NonZeroUsize,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
};

/// How to open an image or block device.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Never write; several may have it open so.
    pub read_only: bool,
    /// Around the page cache (O_DIRECT).
    pub direct: bool,
}

/// An open file or block device, locked against a second user.
#[derive(Debug)]
pub struct File {
    pub(super) properties: Properties,
    file: fs::File,
    device: bool,
    /// Alignment of memory for direct input and output; `None` through the page cache.
    alignment: Option<usize>,
    len: AtomicU64,
    /// The error of the first failed flush, 0 before.
    failed: AtomicI32,
    bounces: AtomicU64,
    /// Only one of several processes that have it open may use it.
    handover: Option<Handover>,
}

impl File {
    /// Opens, locks and inspects an image or block device.
    pub fn open(options: &FileOptions) -> Result<Self, OpenError> {
        open::open(options, false)
    }

    /// Opens and inspects an image or block device that another process may still be using: nothing
    /// may be read or written before [`File::acquire`].
    pub fn open_for_handover(options: &FileOptions) -> Result<Self, OpenError> {
        open::open(options, true)
    }

    /// An operation of the ring failed: after a flush or a forced write, all of them fail from now
    /// on. A forced write that found the disk full, or the guest's memory gone, lost nothing that was
    /// acknowledged.
    pub fn failed(&self, op: Op, error: &io::Error) {
        let lost = match op {
            Op::Read | Op::Write { fua: false } => false,
            Op::Write { fua: true } => {
                error.kind() != io::ErrorKind::StorageFull
                    && error.raw_os_error() != Some(libc::EFAULT)
            }
            Op::Flush => true,
        };
        if lost {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            // The first error stays.
            let _ = self.failed.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// How many transfers went through a temporary buffer because O_DIRECT did not take the
    /// caller's.
    pub fn bounces(&self) -> u64 {
        self.bounces.load(Ordering::Relaxed)
    }

    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn start(
        &self,
        ring: &mut Ring,
        key: u64,
        op: Op,
        offset: u64,
        segments: &[Segment],
    ) -> Started {
        let fd = self.file.as_raw_fd();
        let queued = match op {
            Op::Read | Op::Write { .. } if !self.takes(segments) => return Started::WouldBlock,
            Op::Read => ring.read(key, fd, offset, segments),
            Op::Write { .. } if self.properties.read_only => {
                return Started::Done(Err(Errno::EROFS.into()));
            }
            Op::Write { fua } => {
                if fua && let Err(error) = self.still_good() {
                    return Started::Done(Err(error));
                }
                ring.write(key, fd, offset, segments, fua)
            }
            Op::Flush => match self.still_good() {
                Err(error) => return Started::Done(Err(error)),
                Ok(()) if self.properties.read_only => return Started::Done(Ok(())),
                Ok(()) => ring.flush(key, fd),
            },
        };
        if queued { Started::Queued } else { Started::WouldBlock }
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let segment = Segment::of(buffer);
        if self.takes(&[segment]) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut bounce = self.bounce(buffer.len())?;
        let bytes = bounce.bytes_mut();
        for (at, part) in parts(offset, buffer.len(), bytes.len()) {
            let (Some(from), Some(to)) = (bytes.get_mut(..part.len()), buffer.get_mut(part)) else {
                return Err(Errno::EINVAL.into());
            };
            self.file.read_exact_at(from, at)?;
            to.copy_from_slice(from);
        }
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.takes_bytes(data.as_ptr() as usize, data.len()) {
            return self.file.write_all_at(data, offset).map_err(full);
        }
        let mut bounce = self.bounce(data.len())?;
        let bytes = bounce.bytes_mut();
        for (at, part) in parts(offset, data.len(), bytes.len()) {
            let (Some(to), Some(from)) = (bytes.get_mut(..part.len()), data.get(part)) else {
                return Err(Errno::EINVAL.into());
            };
            to.copy_from_slice(from);
            self.file.write_all_at(to, at).map_err(full)?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.still_good()?;
        if self.properties.read_only {
            return Ok(());
        }
        loop {
            match self.file.sync_data() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = full(error);
                    self.failed(Op::Flush, &error);
                    return Err(error);
                }
                // Another thread's flush may have taken the error that concerns us too.
                Ok(()) => return self.still_good(),
            }
        }
    }

    pub(super) fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    /// Deallocation falls back to zeroes in place, and that to writing them.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        let ways = [(may_unmap && self.properties.thin).then_some(punch), Some(zero)];
        let (start, count) = (signed(offset)?, signed(len)?);
        for way in ways.into_iter().flatten() {
            let flags = way | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            loop {
                match fallocate(&self.file, flags, start, count) {
                    Ok(()) => return Ok(()),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => break,
                    Err(errno) => return Err(full(errno.into())),
                }
            }
        }
        let zeroes = Pages::zeroed(ZEROES)?;
        for (at, part) in parts(offset, usize::try_from(len).unwrap_or(usize::MAX), ZEROES.get()) {
            let zeroes = zeroes.bytes().get(..part.len()).unwrap_or_default();
            self.file.write_all_at(zeroes, at).map_err(full)?;
        }
        Ok(())
    }

    pub(super) fn extent(&self, offset: u64) -> io::Result<Extent> {
        let end = self.len();
        let rest = end.saturating_sub(offset);
        if self.device || rest == 0 {
            return Ok(Extent { mapped: rest != 0, len: rest });
        }
        // The position that this moves is used by nobody.
        let seek = |whence| match lseek(&self.file, signed(offset)?, whence) {
            Ok(at) => Ok(Some(u64::try_from(at).unwrap_or(end).clamp(offset, end))),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let data = match seek(Whence::SeekData) {
            Ok(data) => data.unwrap_or(end),
            // Holes cannot be seen here: everything counts as data.
            Err(_) => return Ok(Extent { mapped: true, len: rest }),
        };
        if data > offset {
            return Ok(Extent { mapped: false, len: data - offset });
        }
        let hole = seek(Whence::SeekHole)?.unwrap_or(end);
        // Punched between the two calls: the next question will tell.
        let len = if hole > offset { hole - offset } else { rest.min(BLOCK) };
        Ok(Extent { mapped: true, len })
    }

    pub(super) fn prefetch(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.alignment.is_none() {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            posix_fadvise(&self.file, signed(offset)?, signed(len)?, advice)?;
        }
        Ok(())
    }

    pub(super) fn resize(&self, len: Option<u64>) -> io::Result<u64> {
        let block = u64::from(self.properties.block_size);
        let len = match len {
            None => {
                let len = (&self.file).seek(SeekFrom::End(0))?;
                len - len % block
            }
            Some(_) if self.device || self.properties.read_only => {
                let why = "only a writable image file can be given a size";
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            Some(len) if len == 0 || !len.is_multiple_of(block) => {
                let why = format!("{len} bytes are not whole blocks of {block}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            Some(len) => {
                // A smaller medium first, so that nothing is started behind the new end.
                self.len.fetch_min(len, Ordering::AcqRel);
                if let Err(error) = self.file.set_len(len) {
                    let actual = self.file.metadata().map_or(0, |meta| meta.len());
                    self.len.store(actual - actual % block, Ordering::Release);
                    return Err(full(error));
                }
                len
            }
        };
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn still_good(&self) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Whether the kernel takes this memory for input and output.
    fn takes(&self, segments: &[Segment]) -> bool {
        self.alignment.is_none()
            || segments.iter().all(|segment| self.takes_bytes(segment.base as usize, segment.len))
    }

    fn takes_bytes(&self, base: usize, len: usize) -> bool {
        self.alignment.is_none_or(|alignment| {
            base.is_multiple_of(alignment)
                && len.is_multiple_of(self.properties.block_size as usize)
        })
    }

    fn bounce(&self, len: usize) -> io::Result<Pages> {
        self.bounces.fetch_add(1, Ordering::Relaxed);
        let len = NonZeroUsize::new(len.next_multiple_of(4096)).map_or(ZEROES, |n| n.min(ZEROES));
        Pages::zeroed(len)
    }
}

/// A transfer in pieces of at most `piece` bytes: where on the medium, and which part of the memory.
fn parts(
    offset: u64,
    len: usize,
    piece: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    (0..len)
        .step_by(piece)
        .map(move |start| (offset + start as u64, start..len.min(start.saturating_add(piece))))
}

/// A quota is a full disk to whoever writes.
fn full(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => Errno::ENOSPC.into(),
        _ => error,
    }
}

fn signed(n: u64) -> io::Result<i64> {
    i64::try_from(n).map_err(|_| Errno::EINVAL.into())
}

/// Zeroes written, or bytes bounced, at a time.
const ZEROES: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();
const BLOCK: u64 = 4096;

#[cfg(test)]
mod tests;
