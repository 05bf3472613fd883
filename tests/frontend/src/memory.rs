//! Guest memory: memfds mapped here and, through `SET_MEM_TABLE`, in the back end.
#![allow(unsafe_code)] // Memory shared with another process is reached by pointer.

use crate::Error;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use std::{
    fs::File,
    ptr::copy_nonoverlapping,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// Where the first region of [`Memory::new`] begins: address 0 is in no region.
pub const FIRST: u64 = 1 << 20;
/// Bytes between two regions of [`Memory::new`].
pub const HOLE: u64 = 1 << 20;

/// Guest memory: regions of shared memory at guest physical addresses, and an allocator that
/// only ever hands out (a test ends before the memory does).
#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap<()>,
    free: Vec<AtomicU64>,
}

impl Memory {
    /// `regions` regions of `bytes` each (a multiple of 4096), with holes between them.
    pub fn new(regions: usize, bytes: u64) -> Result<Arc<Self>, Error> {
        let bounds: Vec<_> =
            (0..regions as u64).map(|n| (FIRST + n * (bytes + HOLE), bytes)).collect();
        Self::at(&bounds)
    }

    /// Regions by address and length in bytes, in rising order.
    pub fn at(bounds: &[(u64, u64)]) -> Result<Arc<Self>, Error> {
        let mut regions = Vec::new();
        for &(address, bytes) in bounds {
            let file: File = memfd_create("guest-memory", MFdFlags::MFD_ALLOW_SEALING)
                .map_err(|error| Error::Memory(error.to_string()))?
                .into();
            file.set_len(bytes)?;
            let mapping = MmapRegion::from_file(FileOffset::new(file, 0), bytes as usize)
                .map_err(|error| Error::Memory(error.to_string()))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(address))
                .ok_or_else(|| Error::Memory(format!("a region at {address:#x} overflows")))?;
            regions.push(region);
        }
        let map = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Memory(error.to_string()))?;
        Ok(Arc::new(Self { map, free: bounds.iter().map(|_| AtomicU64::new(0)).collect() }))
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.free.len()
    }

    /// The regions as the `vm-memory` crate has them.
    pub fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The table that `SET_MEM_TABLE` sends.
    pub fn table(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, Error> {
        Ok(self
            .map
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<_, _>>()?)
    }

    /// Cuts the file behind a region: whoever touches what is gone gets SIGBUS, this process too.
    pub fn truncate(&self, region: usize, bytes: u64) -> Result<(), Error> {
        Ok(self.file(region)?.set_len(bytes)?)
    }

    /// Forbids to shrink the file behind a region, as a cautious VMM does.
    pub fn seal(&self, region: usize) -> Result<(), Error> {
        fcntl(self.file(region)?, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
            .map_err(std::io::Error::from)?;
        Ok(())
    }

    /// A part of region 0 that nobody else was given.
    pub fn window(self: &Arc<Self>, bytes: u64, align: u64) -> Result<Window, Error> {
        self.window_in(0, bytes, align)
    }

    /// A part of a region that nobody else was given; `align` is a power of two.
    pub fn window_in(
        self: &Arc<Self>,
        region: usize,
        bytes: u64,
        align: u64,
    ) -> Result<Window, Error> {
        let (start, len) = self.bounds(region)?;
        let at = self.free[region]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                let end = free.next_multiple_of(align).checked_add(bytes)?;
                (end <= len).then_some(end)
            })
            .map_err(|_| Error::Exhausted(bytes))?;
        self.at_address(start + at.next_multiple_of(align), bytes)
    }

    /// A view of any part of guest memory that is within one region.
    pub fn at_address(self: &Arc<Self>, address: u64, bytes: u64) -> Result<Window, Error> {
        let outside = |_| Error::Outside { address, bytes };
        let slice = self.map.get_slice(GuestAddress(address), bytes as usize).map_err(outside)?;
        let base = slice.ptr_guard_mut().as_ptr();
        Ok(Window { memory: self.clone(), address, base, bytes: bytes as usize })
    }

    /// First address and length in bytes of a region.
    pub fn bounds(&self, region: usize) -> Result<(u64, u64), Error> {
        let region = self.region(region)?;
        Ok((region.start_addr().0, region.len()))
    }

    /// The file behind a region.
    pub fn file(&self, region: usize) -> Result<&File, Error> {
        let file = self.region(region)?.file_offset();
        Ok(file.ok_or_else(|| Error::Memory("a region without a file".into()))?.file())
    }

    fn region(&self, region: usize) -> Result<&GuestRegionMmap<()>, Error> {
        self.map
            .iter()
            .nth(region)
            .ok_or_else(|| Error::Memory(format!("there is no region {region}")))
    }
}

/// A checked view of a part of guest memory.
///
/// # Panics
/// Every access outside the window panics, as does an atomic one at an odd offset.
#[derive(Clone, Debug)]
pub struct Window {
    memory: Arc<Memory>,
    address: u64,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer stays valid as long as `memory`, which the window holds; what is behind it
// is shared with another process anyway and is only reached by copies and atomic accesses.
unsafe impl Send for Window {}

impl Window {
    /// Guest physical address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Address of the first byte in this process: what `SET_VRING_ADDR` calls a user address.
    pub fn user_address(&self) -> u64 {
        self.base as u64
    }

    /// Bytes in the window.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The guest memory that it is a part of.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A part of this window.
    pub fn part(&self, offset: usize, bytes: usize) -> Self {
        let base = self.reach(offset, bytes, 1);
        Self { memory: self.memory.clone(), address: self.address + offset as u64, base, bytes }
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.reach(offset, bytes.len(), 1);
        // SAFETY: `reach` checked the range, which is mapped for as long as `self.memory` lives.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.reach(offset, into.len(), 1);
        // SAFETY: as in `write`.
        unsafe { copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// A copy of `bytes` bytes.
    pub fn bytes(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let mut copy = vec![0; bytes];
        self.read(offset, &mut copy);
        copy
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole window is mapped for as long as `self.memory` lives.
        unsafe { self.base.write_bytes(byte, self.bytes) }
    }

    /// A 16-bit field.
    #[inline]
    pub fn u16(&self, offset: usize) -> &AtomicU16 {
        let at = self.reach(offset, 2, 2).cast();
        // SAFETY: in range, aligned and mapped as checked by `reach`; others reach it by atomic
        // accesses or by copies.
        unsafe { AtomicU16::from_ptr(at) }
    }

    /// A 32-bit field.
    #[inline]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.reach(offset, 4, 4).cast();
        // SAFETY: as in `u16`.
        unsafe { AtomicU32::from_ptr(at) }
    }

    /// A 64-bit field.
    #[inline]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        let at = self.reach(offset, 8, 8).cast();
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(at) }
    }

    #[inline]
    fn reach(&self, offset: usize, bytes: usize, align: usize) -> *mut u8 {
        assert!(
            offset <= self.bytes && bytes <= self.bytes - offset,
            "{bytes} bytes at {offset} of a window of {}",
            self.bytes
        );
        // SAFETY: the offset is within the mapping, as was just checked.
        let at = unsafe { self.base.add(offset) };
        assert!(at.addr().is_multiple_of(align), "offset {offset} is not aligned to {align}");
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_stay_in_their_region() {
        let memory = Memory::new(2, 8192).unwrap();
        let first = memory.window(100, 64).unwrap();
        let second = memory.window(100, 64).unwrap();
        assert_eq!((first.address(), second.address()), (FIRST, FIRST + 128));
        assert!(matches!(memory.window(8192, 1), Err(Error::Exhausted(8192))));
        let other = memory.window_in(1, 8192, 4096).unwrap();
        assert_eq!(other.address(), FIRST + 8192 + HOLE);
        assert!(matches!(memory.at_address(FIRST + 8000, 200), Err(Error::Outside { .. })));
    }

    #[test]
    fn what_is_written_is_read_by_address() {
        let memory = Memory::new(1, 4096).unwrap();
        let window = memory.window(16, 16).unwrap();
        window.write(4, &[1, 2, 3]);
        assert_eq!(memory.at_address(window.address() + 4, 3).unwrap().bytes(0, 3), [1, 2, 3]);
    }

    #[test]
    #[should_panic(expected = "of a window of 16")]
    fn an_access_beyond_a_window_panics() {
        Memory::new(1, 4096).unwrap().window(16, 16).unwrap().write(10, &[0; 7]);
    }

    #[test]
    fn a_sealed_region_cannot_be_cut() {
        let memory = Memory::new(1, 8192).unwrap();
        memory.truncate(0, 4096).unwrap();
        memory.seal(0).unwrap();
        assert!(memory.truncate(0, 0).is_err());
    }
}
