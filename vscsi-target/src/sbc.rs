//! Commands of SBC: block devices.
//!
//! Handlers run outside the media lanes, mostly on worker threads, and use the blocking half of
//! the backend. What the opcode table promises about a CDB (its length, its reserved bits) holds
//! before a handler is called; ranges, limits and Data-Out that came short are checked here, before
//! the medium is touched.

pub mod atomic;
pub mod cache;
pub mod capacity;
pub mod defects;
pub mod format;
pub mod medium;
pub mod provisioning;
pub mod rw;
pub mod sanitize;
pub mod verify;

mod long;
#[cfg(test)]
mod tests;

use crate::{
    engine::Call,
    model::{LogicalUnit, lu::flag},
    opcode::Fail,
    sense::{Sense, key},
};
use std::{io, sync::atomic::Ordering};

/// INVALID FIELD IN COMMAND INFORMATION UNIT: the initiator announced less Data-Out than the CDB
/// asks for, and the command cannot be done in part (FCP-4 9.4.3 names this answer).
pub const SHORT_DATA: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x0E, 0x03);

/// Most memory that a handler takes for itself, in bytes.
const SCRATCH: usize = 1 << 20;

/// What the backend was asked to do when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Reading from this LBA on.
    Reading(u64),
    /// Writing or deallocating from this LBA on.
    Writing(u64),
    /// Bringing its cache to the medium.
    Flushing,
}

/// The sense data for a backend's error; INFORMATION is the LBA where one is known.
pub fn sense_of(error: &io::Error, doing: Doing) -> Sense {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    match (doing, error.kind()) {
        (Doing::Reading(lba), _) => Sense::READ_ERROR.with_information(lba),
        (_, StorageFull | QuotaExceeded | FileTooLarge) => Sense::SPACE_EXHAUSTED,
        (_, PermissionDenied | ReadOnlyFilesystem) => Sense::WRITE_PROTECTED,
        (Doing::Writing(lba), _) => Sense::WRITE_ERROR.with_information(lba),
        (Doing::Flushing, _) => Sense::WRITE_ERROR,
    }
}

/// The media lanes never call a handler.
pub fn media_lane(_: &mut Call<'_>) -> Result<(), Fail> {
    Err(Sense::INTERNAL_FAILURE.into())
}

/// Counts a backend's error and turns it into sense data.
fn failed(lu: &LogicalUnit, error: &io::Error, doing: Doing) -> Sense {
    // Worker threads have no counters of their own and share the first reactor's.
    if let Some(counters) = lu.counters.first() {
        counters.backend_errors.fetch_add(1, Ordering::Relaxed);
    }
    sense_of(error, doing)
}

/// Counts a write that was done.
fn count_write(lu: &LogicalUnit, bytes: u64) {
    if let Some(counters) = lu.counters.first() {
        counters.writes.fetch_add(1, Ordering::Relaxed);
        counters.write_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The byte offset of a block. Blocks inside the medium cannot overflow it.
fn offset(lu: &LogicalUnit, lba: u64) -> u64 {
    lba.saturating_mul(u64::from(lu.block_size()))
}

fn read(lu: &LogicalUnit, lba: u64, buffer: &mut [u8]) -> Result<(), Sense> {
    lu.backend
        .read_at(offset(lu, lba), buffer)
        .map_err(|error| failed(lu, &error, Doing::Reading(lba)))
}

fn write(lu: &LogicalUnit, lba: u64, data: &[u8]) -> Result<(), Sense> {
    lu.backend
        .write_at(offset(lu, lba), data)
        .map_err(|error| failed(lu, &error, Doing::Writing(lba)))
}

fn write_zeroes(lu: &LogicalUnit, lba: u64, blocks: u64, may_unmap: bool) -> Result<(), Sense> {
    let len = blocks.saturating_mul(u64::from(lu.block_size()));
    lu.backend
        .write_zeroes(offset(lu, lba), len, may_unmap)
        .map_err(|error| failed(lu, &error, Doing::Writing(lba)))
}

fn unmap(lu: &LogicalUnit, lba: u64, blocks: u64) -> Result<(), Sense> {
    let len = blocks.saturating_mul(u64::from(lu.block_size()));
    lu.backend.unmap(offset(lu, lba), len).map_err(|error| failed(lu, &error, Doing::Writing(lba)))
}

fn flush(lu: &LogicalUnit) -> Result<(), Sense> {
    lu.backend.flush().map_err(|error| failed(lu, &error, Doing::Flushing))
}

/// Ends a write: brings it to the medium when FUA was set or the write cache is disabled.
fn commit(lu: &LogicalUnit, fua: bool) -> Result<(), Sense> {
    if (fua || lu.flags() & flag::WRITE_THROUGH != 0) && lu.backend.properties().volatile_cache {
        flush(lu)?;
    }
    Ok(())
}

/// A buffer for up to `len` bytes of work, a whole number of blocks and at most [`SCRATCH`].
fn scratch(len: u64) -> Vec<u8> {
    vec![0; usize::try_from(len).map_or(SCRATCH, |len| len.min(SCRATCH))]
}
