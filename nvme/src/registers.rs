//! Mapped registers.
#![allow(unsafe_code)] // Registers are memory of a device.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

/// A mapped range of registers of 4 bytes.
#[derive(Debug)]
pub(crate) struct Registers {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: registers of a device, which are reached by volatile accesses from any thread.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Maps `len` bytes from `offset` of what a descriptor stands for.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: NonZeroUsize, offset: i64) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { base: base.cast(), len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// Reads a register; all ones behind the end, as of a device that is gone.
    pub(crate) fn read(&self, at: usize) -> u32 {
        match self.at(at) {
            // SAFETY: an aligned register inside the mapping; reading any has no effect on memory.
            Some(register) => u32::from_le(unsafe { register.read_volatile() }),
            None => u32::MAX,
        }
    }

    /// Writes a register. Everything written to memory before is seen by the device after it.
    pub(crate) fn write(&self, at: usize, value: u32) {
        if let Some(register) = self.at(at) {
            fence(Ordering::SeqCst);
            // SAFETY: as in `read`; what the device does then, it does to memory that was mapped for
            // it, and only to what commands name.
            unsafe { register.write_volatile(value.to_le()) };
        }
    }

    fn at(&self, at: usize) -> Option<*mut u32> {
        let inside = at.checked_add(4).is_some_and(|end| end <= self.len.get());
        // SAFETY: inside the mapping.
        (inside && at.is_multiple_of(4)).then(|| unsafe { self.base.as_ptr().add(at).cast() })
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody reaches it any more.
        let _ = unsafe { munmap(self.base.cast(), self.len.get()) };
    }
}
