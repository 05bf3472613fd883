//! What a command handler is given.

use crate::{
    model::{Itl, LogicalUnit, Model, lu::LuState, nexus::LunTable, reservation::NexusId},
    sense::Sense,
};
use std::sync::{Arc, MutexGuard, atomic::AtomicBool};

/// A command being executed outside the media lanes, on a reactor or on a worker thread.
#[derive(Debug)]
pub struct Call<'a> {
    /// Everything exported.
    pub model: &'a Model,
    /// The I_T_L nexus it came by.
    pub itl: &'a Arc<Itl>,
    /// Every logical unit its I_T nexus sees.
    pub table: &'a LunTable,
    /// The CDB, at least as long as the row's usage map.
    pub cdb: &'a [u8],
    /// Data-Out: as much as the CDB asked for, or as the initiator sent if that was less.
    pub data: &'a [u8],
    /// Data-In: the whole answer. The engine truncates it to the allocation length and to what the
    /// initiator takes, so a handler never looks at either.
    pub reply: &'a mut Vec<u8>,
    /// I_T nexuses whose tasks on this logical unit the engine aborts once the handler is done,
    /// except the task of this call (PREEMPT AND ABORT).
    pub abort: &'a mut Vec<NexusId>,
    /// The task was aborted: a handler that only waits need not wait any longer.
    pub cancelled: &'a AtomicBool,
}

impl Call<'_> {
    /// The logical unit.
    pub fn lu(&self) -> &LogicalUnit {
        &self.itl.lu
    }

    /// Its shared state.
    pub fn state(&self) -> MutexGuard<'_, LuState> {
        self.itl.lu.state()
    }

    /// A big-endian field of the CDB of 1 to 8 bytes.
    pub fn field(&self, at: usize, width: usize) -> u64 {
        be(self.cdb, at, width)
    }

    /// Whether a bit of the CDB is set.
    pub fn bit(&self, byte: usize, bit: u8) -> bool {
        self.cdb.get(byte).is_some_and(|b| b & 1 << bit != 0)
    }

    /// Checks an LBA range against the capacity; an empty range may start at the end.
    pub fn check_range(&self, lba: u64, blocks: u64) -> Result<(), Sense> {
        check_range(lba, blocks, self.itl.lu.blocks())
    }

    /// Appends to the answer.
    pub fn put(&mut self, bytes: &[u8]) {
        self.reply.extend_from_slice(bytes);
    }
}

/// A big-endian field of 1 to 8 bytes; bytes past the end count as zero.
pub fn be(bytes: &[u8], at: usize, width: usize) -> u64 {
    (at..at + width).fold(0, |n, i| n << 8 | u64::from(bytes.get(i).copied().unwrap_or(0)))
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE unless `lba..lba + blocks` lies inside `capacity` blocks.
pub fn check_range(lba: u64, blocks: u64, capacity: u64) -> Result<(), Sense> {
    match lba.checked_add(blocks) {
        Some(end) if end <= capacity && lba <= capacity => Ok(()),
        _ => Err(Sense::LBA_OUT_OF_RANGE.with_information(lba.max(capacity))),
    }
}
