//! The null backend: any size, reads zeroes, forgets what is written. For measuring everything else.
#![allow(unsafe_code)] // Fills the caller's segments.

use super::{Extent, Op, Properties, Started};
use crate::reactor::{pages::Pages, ring::Ring, sg::Segment};
use std::{
    io,
    num::NonZeroUsize,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// A medium of zeroes.
#[derive(Debug)]
pub struct Null {
    pub(super) properties: Properties,
    len: AtomicU64,
}

impl Null {
    /// A medium of `len` bytes (rounded down to whole blocks). `block_size` is 512 or 4096; anything
    /// else counts as 512.
    pub fn new(len: u64, block_size: u32) -> Self {
        let block_size = if block_size == 4096 { 4096 } else { 512 };
        Self {
            len: AtomicU64::new(len - len % u64::from(block_size)),
            properties: Properties {
                block_size,
                physical_block_size: 4096,
                read_only: false,
                volatile_cache: false,
                thin: true,
                unmap_granularity: 4096,
                optimal_transfer: 128 << 10,
                rotational: false,
                untorn_writes: true,
                description: "null".into(),
            },
        }
    }

    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn start(
        &self,
        _ring: &mut Ring,
        _key: u64,
        op: Op,
        _offset: u64,
        segments: &[Segment],
    ) -> Started {
        if matches!(op, Op::Read) {
            for segment in segments {
                // SAFETY: the caller keeps the segment's memory valid and writable (`Backend::start`).
                unsafe { segment.base.write_bytes(0, segment.len) };
            }
        }
        Started::Done(Ok(()))
    }

    pub(super) fn lend(&self, offset: u64, len: usize) -> Option<Segment> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len());
        inside.then(|| lend_zeroes(len)).flatten()
    }

    pub(super) fn read_at(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
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

    pub(super) fn extent(&self, offset: u64) -> io::Result<Extent> {
        Ok(Extent { mapped: false, len: self.len().saturating_sub(offset) })
    }

    pub(super) fn prefetch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn resize(&self, len: Option<u64>) -> io::Result<u64> {
        if let Some(len) = len {
            self.len.store(len - len % u64::from(self.properties.block_size), Ordering::Relaxed);
        }
        Ok(self.len())
    }
}

/// `len` bytes of zeroes that nobody ever writes and that stay for ever; `None` when there are not
/// so many. Reading them costs no RAM: the kernel's one zero page is behind all of them.
pub(super) fn lend_zeroes(len: usize) -> Option<Segment> {
    static ZEROES: OnceLock<Option<Pages>> = OnceLock::new();
    let pages = ZEROES
        .get_or_init(|| NonZeroUsize::new(ZEROES_LEN).and_then(|len| Pages::zeroed(len).ok()))
        .as_ref()?;
    (len <= pages.len()).then(|| Segment { base: pages.base(), len })
}

const ZEROES_LEN: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_fills_every_segment_with_zeroes() {
        let null = Null::new(1 << 30, 512);
        let (mut a, mut b) = ([0xa5; 512], [0xa5; 1024]);
        let segments = [Segment::of(&mut a), Segment::of(&mut b)];
        let started = null.start(&mut Ring::disabled(), 1, Op::Read, 0, &segments);
        assert!(matches!(started, Started::Done(Ok(()))));
        assert_eq!((a, b), ([0; 512], [0; 1024]));
    }

    #[test]
    fn lend_gives_zeroes_up_to_the_region_and_the_end() {
        let null = Null::new(64 << 20, 4096);
        assert_eq!(null.lend(4096, 8192).map(|s| s.len), Some(8192));
        assert!(null.lend(0, ZEROES_LEN + 1).is_none());
        assert!(null.lend((64 << 20) - 4096, 8192).is_none());
        assert!(null.lend(u64::MAX, 1).is_none());
    }

    #[test]
    fn size_is_whole_blocks_after_open_and_resize() {
        let null = Null::new(10_000, 4096);
        assert_eq!(null.len(), 8192);
        assert_eq!(null.resize(Some(5000)).unwrap(), 4096);
        assert_eq!(null.resize(None).unwrap(), 4096);
        assert_eq!(null.extent(1024).unwrap(), Extent { mapped: false, len: 3072 });
    }
}
