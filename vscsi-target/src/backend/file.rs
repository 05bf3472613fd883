//! The file backend.

use super::{Extent, Op, Properties, Started};
use crate::reactor::{ring::Ring, sg::Segment};
use std::io;

/// The file backend.
#[derive(Debug)]
pub struct File {
    properties: Properties,
}

impl File {
    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }
    pub(super) fn len(&self) -> u64 {
        0
    }
    pub(super) fn start(
        &self,
        _ring: &mut Ring,
        _key: u64,
        _op: Op,
        _offset: u64,
        _segments: &[Segment],
    ) -> Started {
        Started::WouldBlock
    }
    pub(super) fn lend(&self, _offset: u64, _len: usize) -> Option<Segment> {
        None
    }
    pub(super) fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn unmap(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn extent(&self, _offset: u64) -> io::Result<Extent> {
        Ok(Extent { mapped: true, len: 0 })
    }
    pub(super) fn prefetch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    pub(super) fn resize(&self, _len: Option<u64>) -> io::Result<u64> {
        Ok(0)
    }
}
