//! One io_uring a reactor.

use super::sg::Segment;
use std::{io, os::fd::RawFd};

/// The ring, or nothing where io_uring is forbidden.
#[derive(Debug)]
pub struct Ring {}

impl Ring {
    /// A ring that does nothing.
    pub fn disabled() -> Self {
        Self {}
    }

    /// A ring of `entries`; a disabled one where the kernel does not allow it.
    pub fn new(_entries: u32) -> Self {
        Self {}
    }

    /// Whether it works; otherwise file backends answer `Started::WouldBlock`.
    pub fn is_enabled(&self) -> bool {
        false
    }

    /// Queues a read of all segments at `offset`; false when the ring is full or disabled.
    pub fn read(&mut self, _key: u64, _fd: RawFd, _offset: u64, _to: &[Segment]) -> bool {
        false
    }

    /// Queues a write; `dsync` when the data has to be on the medium before it completes.
    pub fn write(
        &mut self,
        _key: u64,
        _fd: RawFd,
        _offset: u64,
        _from: &[Segment],
        _dsync: bool,
    ) -> bool {
        false
    }

    /// Queues an fdatasync.
    pub fn flush(&mut self, _key: u64, _fd: RawFd) -> bool {
        false
    }

    /// Hands what was queued to the kernel: once a turn.
    pub fn submit(&mut self) {}

    /// Calls `done` for each finished operation.
    pub fn reap(&mut self, _done: impl FnMut(u64, io::Result<()>)) {}

    /// Operations not finished yet.
    pub fn in_flight(&self) -> usize {
        0
    }

    /// The descriptor that becomes readable when something finished.
    pub fn fd(&self) -> Option<RawFd> {
        None
    }
}
