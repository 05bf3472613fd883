//! The RAM backend: anonymous memory, mapped once, which uses RAM only for what was written.
//!
//! **Address space.** At open a range several times the size is mapped, so the medium grows in place
//! and lent segments stay where they are. When it shrinks, the memory behind the lost blocks is given
//! back but stays mapped: a segment lent before still reads (zeroes), never faults.
//!
//! **Holes.** Reading a hole through a mapping would allocate it, so a bitmap with one bit a 4 KiB
//! granule says what was written; all else is answered with zeroes without touching the mapping.
//!
//! **Concurrency.** Every reactor and worker may read and write any range at any time, as with a
//! disk: overlapping accesses give old or new bytes. So the memory is only copied from and to by
//! raw pointers, never borrowed.
#![allow(unsafe_code)] // Copies between the mapping and the caller's memory.

use super::{Extent, Op, Properties, Started, null::lend_zeroes};
use crate::reactor::{pages::Pages, ring::Ring, sg::Segment};
use nix::sys::sysinfo::sysinfo;
use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A medium in RAM.
#[derive(Debug)]
pub struct Mem {
    pub(super) properties: Properties,
    memory: Mapping,
    /// Size of the medium.
    len: AtomicU64,
    /// The largest size it ever had. The lock orders changes of size.
    high: Mutex<u64>,
    written: Bitmap,
}

impl Mem {
    /// A medium of `len` zero bytes, in whole blocks of `block_size` (512 or 4096).
    pub fn new(len: u64, block_size: u32) -> io::Result<Self> {
        if !matches!(block_size, 512 | 4096)
            || len == 0
            || !len.is_multiple_of(u64::from(block_size))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a RAM disk of {len} bytes is not whole blocks of 512 or 4096 bytes"),
            ));
        }
        let memory = Mapping::new(len)?;
        let written = Bitmap::new(memory.len().div_ceil(GRANULE))?;
        Ok(Self {
            properties: Properties {
                block_size,
                physical_block_size: 4096,
                read_only: false,
                volatile_cache: false,
                thin: true,
                unmap_granularity: GRANULE as u32,
                optimal_transfer: 128 << 10,
                rotational: false,
                // What ends the process ends the medium too.
                untorn_writes: true,
                description: "ram".into(),
            },
            memory,
            len: AtomicU64::new(len),
            high: Mutex::new(len),
            written,
        })
    }

    /// Bytes of RAM in use by the medium, in whole granules.
    pub fn allocated(&self) -> u64 {
        self.written.count() * GRANULE as u64
    }

    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn start(
        &self,
        _ring: &mut Ring,
        _key: u64,
        op: Op,
        offset: u64,
        segments: &[Segment],
    ) -> Started {
        let total = segments.iter().map(|segment| segment.len).sum();
        let mut at = match self.inside(offset, total) {
            Ok(at) => at,
            Err(error) => return Started::Done(Err(error)),
        };
        for segment in segments {
            match op {
                // SAFETY: the range is inside (checked for the sum), and the caller keeps the
                // segment's memory valid (`Backend::start`).
                Op::Read => unsafe { self.copy_out(at, segment.base, segment.len) },
                // SAFETY: as above.
                Op::Write { .. } => unsafe { self.copy_in(at, segment.base, segment.len) },
                Op::Flush => {}
            }
            at += segment.len;
        }
        Started::Done(Ok(()))
    }

    /// A range that was written throughout, straight from the mapping; one that never was, from the
    /// common zeroes; none for a mixture.
    pub(super) fn lend(&self, offset: u64, len: usize) -> Option<Segment> {
        let at = self.inside(offset, len).ok()?;
        if len == 0 {
            return None;
        }
        match self.written.run(at, len) {
            (true, run) if run == len => Some(Segment { base: self.memory.at(at), len }),
            (false, run) if run == len => lend_zeroes(len),
            _ => None,
        }
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.inside(offset, buffer.len())?;
        // SAFETY: inside, and the buffer is a live exclusive slice.
        unsafe { self.copy_out(at, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.inside(offset, data.len())?;
        // SAFETY: inside, and `data` is a live slice that is only read.
        unsafe { self.copy_in(at, data.as_ptr(), data.len()) };
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| outside())?;
        let at = self.inside(offset, len)?;
        self.release(at, len)
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| outside())?;
        let at = self.inside(offset, len)?;
        if may_unmap {
            return self.release(at, len);
        }
        // SAFETY: inside the mapping; concurrent access is that of a disk.
        unsafe { self.memory.at(at).write_bytes(0, len) };
        self.written.set(at, len);
        Ok(())
    }

    pub(super) fn extent(&self, offset: u64) -> io::Result<Extent> {
        let rest = self.len().saturating_sub(offset);
        let rest = usize::try_from(rest).map_err(|_| outside())?;
        let at = self.inside(offset, rest)?;
        if rest == 0 {
            return Ok(Extent { mapped: false, len: 0 });
        }
        let (mapped, run) = self.written.run(at, rest);
        Ok(Extent { mapped, len: run as u64 })
    }

    pub(super) fn prefetch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn resize(&self, len: Option<u64>) -> io::Result<u64> {
        let Some(len) = len else { return Ok(self.len()) };
        if len == 0 || !len.is_multiple_of(u64::from(self.properties.block_size)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes are not whole blocks"),
            ));
        }
        if len > self.memory.len() as u64 {
            let most = self.memory.len();
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("this RAM disk can grow to {most} bytes, not to {len}: add a new one"),
            ));
        }
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.len();
        *high = len.max(*high);
        // Shrinking hides the blocks first. Growing wipes what late writes left behind the old end.
        if len < old {
            self.len.store(len, Ordering::Release);
        }
        let (low, high) = (len.min(old) as usize, *high as usize);
        self.release(low, high - low)?;
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    /// The range as an index into the mapping, if it lies inside the medium.
    fn inside(&self, offset: u64, len: usize) -> io::Result<usize> {
        let end = offset.checked_add(len as u64).ok_or_else(outside)?;
        if end > self.len() {
            return Err(outside());
        }
        usize::try_from(offset).map_err(|_| outside())
    }

    /// # Safety
    /// `at..at + len` is inside the mapping, and `to` is valid for writes of `len` bytes.
    unsafe fn copy_out(&self, mut at: usize, mut to: *mut u8, mut len: usize) {
        while len > 0 {
            let (written, run) = self.written.run(at, len);
            // SAFETY: `run <= len`, so both ranges are inside what the caller vouches for; `to` is
            // the caller's memory and not ours, or it is a copy within the disk, for which `copy`
            // allows overlap.
            unsafe {
                if written {
                    std::ptr::copy(self.memory.at(at), to, run);
                } else {
                    to.write_bytes(0, run);
                }
                to = to.add(run);
            }
            at += run;
            len -= run;
        }
    }

    /// # Safety
    /// `at..at + len` is inside the mapping, and `from` is valid for reads of `len` bytes.
    unsafe fn copy_in(&self, at: usize, from: *const u8, len: usize) {
        // SAFETY: vouched for by the caller.
        unsafe { std::ptr::copy(from, self.memory.at(at), len) };
        // After the copy: if an unmap came between, the granule counts as written again and shows
        // either nothing or what we wrote, and never something that comes and goes.
        self.written.set(at, len);
    }

    /// Makes a range of the mapping read as zeroes and gives whole granules back.
    fn release(&self, at: usize, len: usize) -> io::Result<()> {
        let end = at + len;
        let (first, last) = (at.next_multiple_of(GRANULE), end - end % GRANULE);
        if first >= last {
            self.wipe(at, end);
            return Ok(());
        }
        self.wipe(at, first);
        self.wipe(last, end);
        // The bits go first: see `copy_in`.
        self.written.clear(first, last - first);
        self.memory.pages.discard(first, last - first)
    }

    /// Zeroes part of one or two granules, where they were written at all.
    fn wipe(&self, at: usize, end: usize) {
        let mut at = at;
        while at < end {
            let (written, run) = self.written.run(at, end - at);
            if written {
                // SAFETY: inside the mapping (`release`).
                unsafe { self.memory.at(at).write_bytes(0, run) };
            }
            at += run;
        }
    }
}

/// Where the medium is, and room for it to grow.
#[derive(Debug)]
struct Mapping {
    pages: Pages,
}

impl Mapping {
    fn new(len: u64) -> io::Result<Self> {
        let most = len.saturating_add(GROWTH_MOST);
        let wishes =
            [len.saturating_mul(16).max(GROWTH_LEAST).min(most), len.saturating_mul(2), len];
        let mut refused = outside();
        for wish in wishes {
            let Some(room) = usize::try_from(wish).ok().and_then(NonZeroUsize::new) else {
                continue;
            };
            match Pages::zeroed(room) {
                Ok(pages) => {
                    // Half of a random access to small pages is the way to the page. A huge one may
                    // hold little, so a disk has them only where all of it could be in RAM.
                    if len <= ram() / HUGE_SHARE {
                        pages.prefer_huge(len as usize);
                    }
                    return Ok(Self { pages });
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn len(&self) -> usize {
        self.pages.len()
    }

    fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.len());
        // `wrapping_add` needs no promise; callers stay inside.
        self.pages.base().wrapping_add(at)
    }
}

/// Bytes of RAM of this machine.
fn ram() -> u64 {
    sysinfo().map_or(0, |info| info.ram_total())
}

/// One bit a granule, in lazily allocated pages.
#[derive(Debug)]
struct Bitmap {
    words: Pages,
}

impl Bitmap {
    fn new(bits: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(bits.div_ceil(64) * 8).ok_or_else(outside)?;
        Ok(Self { words: Pages::zeroed(bytes)? })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: zeroed pages are valid `AtomicU64`s, aligned, a multiple of 8 bytes long, and
        // nothing else refers to them.
        unsafe { std::slice::from_raw_parts(self.words.base().cast(), self.words.len() / 8) }
    }

    /// Whether the granule of `at` is set, and for how many of the `len` bytes (at least one, if
    /// `len` is not 0) that holds.
    fn run(&self, at: usize, len: usize) -> (bool, usize) {
        let words = self.words();
        let word =
            |granule: usize| words.get(granule / 64).map_or(0, |word| word.load(Ordering::Acquire));
        let mut granule = at / GRANULE;
        let end = at + len;
        let set = word(granule) >> (granule % 64) & 1 == 1;
        loop {
            // How many bits from `granule` to the end of its word are alike.
            let bits = if set { !word(granule) } else { word(granule) };
            let alike = (bits >> (granule % 64)).trailing_zeros() as usize;
            let left = 64 - granule % 64;
            granule += alike.min(left);
            if alike < left || granule * GRANULE >= end {
                return (set, (granule * GRANULE).clamp(at + usize::from(len > 0), end) - at);
            }
        }
    }

    fn set(&self, at: usize, len: usize) {
        self.change(at, len, |word, mask| {
            // Mostly set already: then the cache line stays shared.
            if word.load(Ordering::Acquire) & mask != mask {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        });
    }

    fn clear(&self, at: usize, len: usize) {
        self.change(at, len, |word, mask| {
            if word.load(Ordering::Acquire) & mask != 0 {
                word.fetch_and(!mask, Ordering::AcqRel);
            }
        });
    }

    /// Every granule touched by the range, a word at a time.
    fn change(&self, at: usize, len: usize, each: impl Fn(&AtomicU64, u64)) {
        let words = self.words();
        let (mut granule, end) = (at / GRANULE, (at + len).div_ceil(GRANULE));
        if len == 0 {
            return;
        }
        while granule < end {
            let first = granule % 64;
            let n = (64 - first).min(end - granule);
            let mask = (u64::MAX >> (64 - n)) << first;
            if let Some(word) = words.get(granule / 64) {
                each(word, mask);
            }
            granule += n;
        }
    }

    fn count(&self) -> u64 {
        self.words().iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "outside the RAM disk")
}

/// What one bit of the map stands for: a page.
const GRANULE: usize = 4096;
/// Address space reserved at least: small disks may grow well.
const GROWTH_LEAST: u64 = 1 << 34;
/// Address space reserved beyond the size at most.
const GROWTH_MOST: u64 = 1 << 40;
/// A disk of up to this part of the machine's RAM has huge pages.
const HUGE_SHARE: u64 = 4;

#[cfg(test)]
mod tests;
