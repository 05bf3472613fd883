//! Guest memory as the VMM shares it.
//!
//! A [`GuestMap`] is made once and never changes; a new table of regions is a new map. Who uses
//! addresses of a map holds its `Arc`, so that nothing is unmapped under it.
#![allow(unsafe_code)] // Mapped guest memory is shared between threads.

pub mod dirty;
pub mod guard;

use std::{fs, io, sync::Arc};

use nix::sys::statfs::fstatfs;
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, mmap::MmapRegionBuilder};
use vscsi_target::reactor::{dma::Reachable, sg::Segment};

use guard::Guarded;

/// Why memory cannot be used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region wraps around the end of an address space, or has no bytes.
    #[error("a region of {size} bytes at {gpa:#x} (file offset {offset:#x}) is not possible")]
    Extent {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Where it starts in its file.
        offset: u64,
    },
    /// Two regions claim the same addresses.
    #[error("the regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// More regions than a front end may have.
    #[error("there are more than {MAX_REGIONS} regions")]
    TooMany,
    /// There is no such region to remove.
    #[error("there is no region of {size} bytes at {gpa:#x}")]
    Missing {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The file is shorter than the region.
    #[error("the file behind the region at {gpa:#x} ends at {len:#x}, before {end:#x}")]
    Short {
        /// Guest physical address.
        gpa: u64,
        /// Size of the file.
        len: u64,
        /// End of the region in the file.
        end: u64,
    },
    /// The system does not map it.
    #[error("cannot map {size} bytes of guest memory at {gpa:#x}: {source}")]
    Map {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// The system's answer.
        source: io::Error,
    },
}

/// A piece of guest memory, mapped.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front end has it in its own address space.
    pub uva: u64,
    /// The device may write there.
    pub writable: bool,
    host: *mut u8,
    /// Keeps the mapping.
    mapping: Arc<Mapping>,
}

/// What a mapping is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A guest's memory, for us and for devices.
    Shared,
    /// The same, only to be read.
    Read,
    /// A sparse file of our own.
    Holes,
}

#[derive(Debug)]
struct Mapping {
    /// Goes first: what it says of the memory holds while it is mapped.
    _reachable: Option<Reachable>,
    /// Goes before the memory it guards.
    guard: Guarded,
    _memory: MmapRegion<()>,
}

// SAFETY: an address of a shared mapping, which lives as long as the region; what is there is only
// reached by raw copies and volatile or atomic accesses, as memory that a guest changes has to be.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `size` bytes from `offset` in `file`, shared with the VMM.
    pub fn map(
        gpa: u64,
        size: u64,
        uva: u64,
        offset: u64,
        file: fs::File,
    ) -> Result<Self, MemoryError> {
        Self::map_as(gpa, size, uva, offset, file, Use::Shared)
    }

    /// As [`Region::map`]; one that is not `writable` is only read, and its file may be one that
    /// cannot be written.
    pub fn map_for(
        gpa: u64,
        size: u64,
        uva: u64,
        offset: u64,
        file: fs::File,
        writable: bool,
    ) -> Result<Self, MemoryError> {
        let what = if writable { Use::Shared } else { Use::Read };
        Self::map_as(gpa, size, uva, offset, file, what)
    }

    /// Maps all of a file of our own, mostly holes. Devices do not reach it: what they reach has to be
    /// there as a whole.
    pub(crate) fn of_holes(size: u64, file: fs::File) -> Result<Self, MemoryError> {
        Self::map_as(0, size, 0, 0, file, Use::Holes)
    }

    fn map_as(
        gpa: u64,
        size: u64,
        uva: u64,
        offset: u64,
        file: fs::File,
        what: Use,
    ) -> Result<Self, MemoryError> {
        let writable = what != Use::Read;
        let extent = || MemoryError::Extent { gpa, size, offset };
        let map = |source| MemoryError::Map { gpa, size, source };
        let fits = gpa.checked_add(size).is_some() && uva.checked_add(size).is_some();
        let end = offset.checked_add(size).filter(|_| fits && size > 0).ok_or_else(extent)?;
        let len = file.metadata().map_err(map)?.len();
        // Devices have no size; files do, and behind their end is SIGBUS.
        if len > 0 && len < end {
            return Err(MemoryError::Short { gpa, len, end });
        }
        // Huge pages are mapped whole.
        let page = fstatfs(&file).map_or(4096, |stat| stat.block_size().max(4096) as u64);
        let page = if page.is_power_of_two() { page } else { 4096 };
        let start = offset & !(page - 1);
        let whole = (end - start).checked_next_multiple_of(page).ok_or_else(extent)?;
        let bytes = usize::try_from(whole).map_err(|_| extent())?;
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let memory = MmapRegionBuilder::new(bytes)
            .with_file_offset(FileOffset::new(file, start))
            .with_mmap_prot(libc::PROT_READ | write)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| map(io::Error::other(error)))?;
        // The rest of the first page, at most one page.
        let host = memory.as_ptr().wrapping_add((offset - start) as usize);
        // SAFETY: all of a mapping of its own, whole pages; nothing relies on what is in it.
        let guard =
            unsafe { Guarded::register(memory.as_ptr(), bytes, page as usize) }.map_err(map)?;
        // What is only read here would be refused: devices get memory for both.
        let reachable = (what == Use::Shared).then(|| {
            // SAFETY: the same, readable and writable, until `Mapping` is dropped, which drops this
            // first.
            unsafe { Reachable::new(memory.as_ptr(), bytes) }
        });
        let mapping = Arc::new(Mapping { _reachable: reachable, guard, _memory: memory });
        Ok(Self { gpa, size, uva, writable, host, mapping })
    }

    /// The `size` bytes from `offset` in this region, at another guest address; `None` if it does
    /// not have them.
    pub fn part(&self, gpa: u64, offset: u64, size: u64, writable: bool) -> Option<Self> {
        let is_inside = offset.checked_add(size).is_some_and(|end| size > 0 && end <= self.size);
        if !is_inside || gpa.checked_add(size).is_none() {
            return None;
        }
        Some(Self {
            gpa,
            size,
            uva: gpa,
            writable: writable && self.writable,
            host: self.host.wrapping_add(offset as usize),
            mapping: Arc::clone(&self.mapping),
        })
    }

    /// Makes this region longer by one that follows it in guest memory, in the mapping and in what
    /// may be done there; false if that one does not.
    pub fn join(&mut self, next: &Self) -> bool {
        let follows = self.gpa + self.size == next.gpa
            && std::ptr::eq(self.host.wrapping_add(self.size as usize), next.host)
            && Arc::ptr_eq(&self.mapping, &next.mapping)
            && self.writable == next.writable;
        if follows {
            self.size += next.size;
        }
        follows
    }

    /// Whether both are of one mapping.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }

    /// Whether it is memory of the same mapping that `len` bytes at `base` have bytes in.
    pub(crate) fn touches(&self, base: *const u8, len: usize) -> bool {
        let (start, at) = (self.host as usize, base as usize);
        at < start.saturating_add(self.size as usize) && start < at.saturating_add(len)
    }

    /// Whether the file behind it lost a page that was needed.
    pub fn is_lost(&self) -> bool {
        self.mapping.guard.is_lost()
    }

    /// Bytes from `at` on to the end of the region, if `at` lies in it.
    pub(crate) fn rest(&self, at: u64) -> Option<u64> {
        let offset = at.wrapping_sub(self.gpa);
        (offset < self.size).then(|| self.size - offset)
    }

    pub(crate) fn host_at(&self, gpa: u64) -> *mut u8 {
        self.host.wrapping_add(gpa.wrapping_sub(self.gpa) as usize)
    }
}

/// All memory of a guest that a device may reach.
#[derive(Debug, Default)]
pub struct GuestMap {
    /// By guest physical address.
    regions: Vec<Region>,
}

impl GuestMap {
    /// A map of these regions, which must not overlap.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        regions.sort_by_key(|region| region.gpa);
        Self::sorted(regions)
    }

    /// A map of any number of regions, which are sorted by guest address and must not overlap.
    pub fn sorted(regions: Vec<Region>) -> Result<Self, MemoryError> {
        for (low, high) in regions.iter().zip(regions.iter().skip(1)) {
            if low.gpa + low.size > high.gpa {
                return Err(MemoryError::Overlap(low.gpa, high.gpa));
            }
        }
        Ok(Self { regions })
    }

    /// This map and one more region.
    pub fn with(&self, region: Region) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// This map without the region of that extent.
    pub fn without(&self, gpa: u64, size: u64, uva: u64) -> Result<Self, MemoryError> {
        let is_it = |region: &Region| region.gpa == gpa && region.size == size && region.uva == uva;
        if !self.regions.iter().any(is_it) {
            return Err(MemoryError::Missing { gpa, size });
        }
        let regions = self.regions.iter().filter(|region| !is_it(region)).cloned().collect();
        Ok(Self { regions })
    }

    /// The regions by guest physical address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether memory of it was taken away while it was in use: what was read since may be zeroes.
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(Region::is_lost)
    }

    /// As [`GuestMap::translate_for`], for memory that may be read and written.
    #[inline]
    pub fn translate(&self, hint: &mut usize, gpa: u64, len: u32, into: &mut Vec<Segment>) -> bool {
        self.translate_for(hint, gpa, len, true, into)
    }

    /// Appends where `len` bytes at `gpa` are to `into`: one segment, or one a region where regions
    /// adjoin. False, with `into` in any state, if not all of them are memory that may be read, or
    /// written if `write`. `hint` is where the last search ended.
    #[inline]
    pub fn translate_for(
        &self,
        hint: &mut usize,
        gpa: u64,
        len: u32,
        write: bool,
        into: &mut Vec<Segment>,
    ) -> bool {
        if let Some(region) = self.regions.get(*hint)
            && let Some(rest) = region.rest(gpa)
            && rest >= u64::from(len)
            && (region.writable || !write)
        {
            if len > 0 {
                into.push(Segment { base: region.host_at(gpa), len: len as usize });
            }
            return true;
        }
        self.search(hint, gpa, len, write, into)
    }

    fn search(
        &self,
        hint: &mut usize,
        gpa: u64,
        len: u32,
        write: bool,
        into: &mut Vec<Segment>,
    ) -> bool {
        let (mut gpa, mut len) = (gpa, u64::from(len));
        while len > 0 {
            let Some((at, region)) = self.find(gpa) else { return false };
            let Some(rest) = region.rest(gpa) else { return false };
            if write && !region.writable {
                return false;
            }
            *hint = at;
            let part = rest.min(len);
            into.push(Segment { base: region.host_at(gpa), len: part as usize });
            // A region's end never overflows.
            gpa += part;
            len -= part;
        }
        true
    }

    /// Where `len` bytes at a guest physical address are, if they lie in one region.
    pub fn at(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let (_, region) = self.find(gpa)?;
        (region.rest(gpa)? >= len as u64).then(|| region.host_at(gpa))
    }

    /// The region that may have an address, the last that does not begin after it, and its place.
    fn find(&self, gpa: u64) -> Option<(usize, &Region)> {
        let at = self.regions.partition_point(|region| region.gpa <= gpa).checked_sub(1)?;
        Some((at, self.regions.get(at)?))
    }

    /// Whether all of a region is in this map, at the same addresses and for the same purpose.
    pub(crate) fn has(&self, region: &Region) -> bool {
        self.find(region.gpa).is_some_and(|(_, ours)| {
            ours.rest(region.gpa).is_some_and(|rest| rest >= region.size)
                && std::ptr::eq(ours.host_at(region.gpa), region.host)
                && ours.is_same(region)
                && ours.writable >= region.writable
        })
    }

    /// Whether the device may write to the `len` bytes at a guest physical address.
    pub fn is_writable(&self, gpa: u64, len: usize) -> bool {
        let found = self.find(gpa).filter(|(_, region)| region.writable);
        found.and_then(|(_, region)| region.rest(gpa)).is_some_and(|rest| rest >= len as u64)
    }

    /// Where `len` bytes at an address of the front end are, if they lie in one region.
    pub fn at_user(&self, uva: u64, len: usize) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = uva.wrapping_sub(region.uva);
            let rest = region.size.checked_sub(offset).filter(|&rest| rest > 0)?;
            (rest >= len as u64).then(|| region.host.wrapping_add(offset as usize))
        })
    }

    /// The guest physical address of a translated address, for the dirty log.
    pub fn gpa_of(&self, host: *const u8) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = (host as usize).wrapping_sub(region.host as usize) as u64;
            (offset < region.size).then(|| region.gpa + offset)
        })
    }
}

/// The most regions a front end may have (QEMU's own limit is 509).
pub const MAX_REGIONS: usize = 512;

#[cfg(test)]
mod tests;
