//! The NVMe backend: a namespace of a controller that the kernel's VFIO gives to this process.
//!
//! Reads, writes and flushes go to the reactor's own queue pair, and end in the engine's turn as
//! those of the ring do. The device reaches pool buffers and guest memory itself
//! ([`crate::reactor::dma`]). What blocks, and what reactors do for which the controller had no pair,
//! goes to one more pair that calls take turns on.
//!
//! A flush that failed is not made up for by a later one that succeeds: all flushes fail from then
//! on, as those of files do. Reservations are the core's own.

mod address;
mod open;

pub use address::{Address, AddressError};
pub use nvme::{OpenError, controllers, settle};
pub use open::open;
#[cfg(test)]
pub(crate) use open::over_model;

use super::{Extent, Op, Properties, Started};
use crate::reactor::{Devices, dma::Bounce, pool::PoolBuf, sg::Segment};
use nvme::{Blocks, Controller, Kind};
use open::Claim;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// An open namespace.
#[derive(Debug)]
pub struct Nvme {
    pub(super) properties: Properties,
    controller: Arc<Controller>,
    nsid: u32,
    /// Size in bytes.
    len: AtomicU64,
    zeroing: Zeroing,
    /// A flush has failed.
    failed: AtomicBool,
    bounces: AtomicU64,
    /// For what calls move and the device does not reach.
    bounce: Bounce,
    /// What makes the unit the same over restarts.
    identity: String,
    _claim: Claim,
}

/// How blocks become zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeroing {
    /// By Write Zeroes that deallocates, where that is wanted.
    Deallocating,
    /// By Write Zeroes, and Dataset Management after it where deallocation is wanted: by itself that
    /// is a hint, which leaves it open what is read.
    ThenDeallocated,
    /// By Write Zeroes only.
    Zeroes,
    /// By writing zeroes.
    Writes,
}

impl Nvme {
    /// What makes the unit the same over restarts and in another slot.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// How many transfers went through a temporary buffer because the device does not reach the
    /// memory, or not as it was cut.
    pub fn bounces(&self) -> u64 {
        self.bounces.load(Ordering::Relaxed)
    }

    /// How often the controller was reset because it, or a command, did not work.
    pub fn resets(&self) -> u64 {
        self.controller.resets()
    }

    /// The controller was removed or cannot be reset.
    pub fn is_gone(&self) -> bool {
        self.controller.is_gone()
    }

    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn start(
        &self,
        devices: &mut Devices,
        key: u64,
        op: Op,
        offset: u64,
        segments: &[Segment],
    ) -> Started {
        let kind = match op {
            Op::Read => Kind::Read,
            Op::Write { .. } if self.properties.read_only => {
                return Started::Done(Err(io::ErrorKind::ReadOnlyFilesystem.into()));
            }
            // Without a cache every write is on the medium.
            Op::Write { fua } => Kind::Write { fua: fua && self.properties.volatile_cache },
            Op::Flush => match self.still_good() {
                Err(error) => return Started::Done(Err(error)),
                Ok(()) if !self.properties.volatile_cache => return Started::Done(Ok(())),
                Ok(()) => Kind::Flush,
            },
        };
        let Some(pair) = devices.pair(&self.controller) else {
            return match self.controller.is_gone() {
                true => Started::Done(Err(gone())),
                false => Started::WouldBlock,
            };
        };
        let memory = segments.iter().map(|segment| (segment.base as usize, segment.len));
        match pair.start(key, kind, self.blocks(offset, 0), memory) {
            nvme::Started::Queued => Started::Queued,
            nvme::Started::Unreachable => Started::Unreachable,
            nvme::Started::Gone => Started::Done(Err(gone())),
        }
    }

    /// Lets the device reach a pool buffer, if it does not yet.
    pub(super) fn reach(&self, devices: &mut Devices, buffer: &PoolBuf) {
        if let Some(pair) = devices.pair(&self.controller)
            && !pair.reaches(buffer.base() as usize, buffer.capacity())
        {
            crate::reactor::dma::reach(self.controller.space(), buffer);
        }
    }

    /// The engine copies a transfer.
    pub(super) fn bounced(&self) {
        self.bounces.fetch_add(1, Ordering::Relaxed);
    }

    /// An operation of the fast lane failed.
    pub(super) fn failed(&self, op: Op) {
        if matches!(op, Op::Flush) {
            self.failed.store(true, Ordering::Release);
        }
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = (buffer.as_mut_ptr() as usize, buffer.len());
        if buffer.is_empty() {
            return Ok(());
        }
        if let Some(result) = self.call(Kind::Read, self.blocks(offset, 0), Some(place)) {
            return result;
        }
        self.bounced();
        let mut at = offset;
        for part in buffer.chunks_mut(Bounce::BYTES) {
            self.bounce.with(part.len(), |bytes, place| {
                self.call(Kind::Read, self.blocks(at, 0), Some(place)).unwrap_or_else(unreached)?;
                part.copy_from_slice(bytes);
                Ok(())
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let (kind, place) = (Kind::Write { fua: false }, (data.as_ptr() as usize, data.len()));
        if let Some(result) = self.call(kind, self.blocks(offset, 0), Some(place)) {
            return result;
        }
        self.bounced();
        let mut at = offset;
        for part in data.chunks(Bounce::BYTES) {
            self.bounce.with(part.len(), |bytes, place| {
                bytes.copy_from_slice(part);
                self.call(kind, self.blocks(at, 0), Some(place)).unwrap_or_else(unreached)
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.still_good()?;
        if !self.properties.volatile_cache || self.properties.read_only {
            return Ok(());
        }
        let flushed = self.call(Kind::Flush, self.blocks(0, 0), None).unwrap_or_else(unreached);
        if flushed.is_err() {
            self.failed(Op::Flush);
        }
        flushed
    }

    pub(super) fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let blocks = self.blocks(offset, len);
        let call = |kind| self.call(kind, blocks, None).unwrap_or_else(unreached);
        let may_unmap = may_unmap && self.properties.thin;
        match self.zeroing {
            Zeroing::Deallocating => call(Kind::Zero { deallocate: may_unmap }),
            Zeroing::ThenDeallocated => {
                call(Kind::Zero { deallocate: false })?;
                if may_unmap { call(Kind::Deallocate) } else { Ok(()) }
            }
            Zeroing::Zeroes => call(Kind::Zero { deallocate: false }),
            Zeroing::Writes => {
                let zeroes = vec![0; Bounce::BYTES.min(usize::try_from(len).unwrap_or(usize::MAX))];
                let mut at = 0;
                while at < len {
                    let part = (len - at).min(zeroes.len() as u64) as usize;
                    self.write_at(offset + at, zeroes.get(..part).unwrap_or(&zeroes))?;
                    at += part as u64;
                }
                Ok(())
            }
        }
    }

    /// NVMe does not tell cheaply which blocks are allocated.
    pub(super) fn extent(&self, offset: u64) -> io::Result<Extent> {
        Ok(Extent { mapped: true, len: self.len().saturating_sub(offset) })
    }

    pub(super) fn prefetch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Asks the controller how large the namespace is now.
    pub(super) fn resize(&self, len: Option<u64>) -> io::Result<u64> {
        if len.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let data = self.controller.namespace(self.nsid).map_err(io::Error::other)?;
        if data.block_size != self.properties.block_size {
            return Err(io::Error::other("it was formatted with another block size"));
        }
        let len = data.blocks * u64::from(data.block_size);
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn call(
        &self,
        kind: Kind,
        blocks: Blocks,
        memory: Option<(usize, usize)>,
    ) -> Option<io::Result<()>> {
        if self.properties.read_only && !matches!(kind, Kind::Read | Kind::Flush) {
            return Some(Err(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        self.controller.call(kind, blocks, memory)
    }

    fn still_good(&self) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(io::Error::other("an earlier flush has failed")),
            false => Ok(()),
        }
    }

    fn blocks(&self, offset: u64, len: u64) -> Blocks {
        let size = self.properties.block_size;
        let shift = size.trailing_zeros();
        Blocks { nsid: self.nsid, lba: offset >> shift, count: len >> shift, size }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

/// The memory for bounces is mapped for the device, so this is not met.
fn unreached() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EFAULT))
}
