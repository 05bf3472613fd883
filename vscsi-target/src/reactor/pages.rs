//! Anonymous memory in whole pages, straight from the kernel.
#![allow(unsafe_code)] // Mapping memory, and slices over it.

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{ffi::c_void, io, num::NonZeroUsize, ptr::NonNull};

/// Exclusively owned, page-aligned, zeroed memory. Untouched pages cost no RAM.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the memory belongs to the value alone, like that of a `Box<[u8]>`.
unsafe impl Send for Pages {}
// SAFETY: as above; sharing a reference gives reads only.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes.
    pub(crate) fn zeroed(len: NonZeroUsize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(None, len, protection, flags) }?;
        Ok(Self { base: base.cast(), len })
    }

    /// Asks for huge pages in the first `len` bytes; the system may have none.
    pub(crate) fn prefer_huge(&self, len: usize) {
        let len = len.min(self.len());
        // SAFETY: our own mapping, whose contents this does not change.
        let _ = unsafe { madvise(self.base.cast(), len, MmapAdvise::MADV_HUGEPAGE) };
    }

    /// Gives `len` bytes from `at`, whole pages, back: they read as zeroes.
    pub(crate) fn discard(&self, at: usize, len: usize) -> io::Result<()> {
        if at.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: at most the end of our own mapping.
        let start = unsafe { self.base.add(at) };
        // SAFETY: inside our own mapping; who reads it meanwhile by raw copies sees old or new bytes.
        Ok(unsafe { madvise(start.cast(), len, MmapAdvise::MADV_DONTNEED) }?)
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, initialised by the kernel, `len` bytes long and freed only by drop.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len.get()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only way to the memory.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len.get()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody borrows it any more.
        let unmapped = unsafe { munmap(self.base.cast::<c_void>(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}
