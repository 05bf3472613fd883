//! One operation on a queue pair, and the commands it is cut into.

use super::{Blocks, Kind};
use crate::{
    prp::{self, Cursor, Limits, Run},
    wire::{Sqe, Status},
};

/// One operation.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) live: bool,
    pub(super) key: u64,
    pub(super) kind: Kind,
    pub(super) blocks: Blocks,
    pub(super) runs: Vec<Run>,
    pub(super) cursor: Cursor,
    /// Blocks for which commands were issued.
    pub(super) issued: u64,
    /// The same before the last command.
    pub(super) before: u64,
    pub(super) is_issued: bool,
    pub(super) flying: u32,
    pub(super) error: Option<Status>,
    pub(super) retries: u8,
    pub(super) cancelled: bool,
}

impl Slot {
    pub(super) fn empty() -> Self {
        Self {
            live: false,
            key: 0,
            kind: Kind::Flush,
            blocks: Blocks { nsid: 0, lba: 0, count: 0, size: 512 },
            runs: Vec::new(),
            cursor: Cursor::default(),
            before: 0,
            issued: 0,
            is_issued: false,
            flying: 0,
            error: None,
            retries: 0,
            cancelled: false,
        }
    }

    /// Nothing of it is issued.
    pub(super) fn rewind(&mut self) {
        (self.cursor, self.issued, self.is_issued) = (Cursor::default(), 0, false);
        (self.flying, self.error) = (0, None);
    }

    /// No more commands come of it: all are issued, or one has failed.
    pub(super) fn is_all_issued(&self) -> bool {
        self.error.is_some()
            || match self.kind {
                Kind::Flush => self.is_issued,
                Kind::Read | Kind::Write { .. } => self.cursor.is_at_end(&self.runs),
                Kind::Zero { .. } | Kind::Deallocate => self.issued >= self.blocks.count,
            }
    }

    /// The next command, with its pages.
    pub(super) fn next(
        &mut self,
        limits: &Limits,
        zero_limit: u32,
        pages: &mut Vec<u64>,
    ) -> Option<Sqe> {
        pages.clear();
        let Blocks { nsid, lba, count, size } = self.blocks;
        let lba = lba.checked_add(self.issued)?;
        self.before = self.issued;
        self.is_issued = true;
        let left = count.saturating_sub(self.issued);
        Some(match self.kind {
            Kind::Flush => Sqe::flush(nsid),
            Kind::Read | Kind::Write { .. } => {
                let bytes = prp::next(&self.runs, &mut self.cursor, limits, pages)?;
                let blocks = u32::try_from(bytes / size as usize).ok()?;
                self.issued += u64::from(blocks);
                match self.kind {
                    Kind::Write { fua } => Sqe::write(nsid, lba, blocks, fua),
                    _ => Sqe::read(nsid, lba, blocks),
                }
            }
            Kind::Zero { deallocate } => {
                let blocks = left.min(u64::from(zero_limit)) as u32;
                self.issued += u64::from(blocks);
                Sqe::write_zeroes(nsid, lba, blocks, deallocate)
            }
            Kind::Deallocate => {
                self.issued += left.min(u64::from(u32::MAX));
                Sqe::deallocate(nsid)
            }
        })
    }
}
