//! The log of pages that the device wrote, for live migration (vhost-user, "Migration").
#![allow(unsafe_code)] // A bitmap in memory shared with the front end.

use std::{
    fs,
    sync::atomic::{AtomicU8, Ordering},
};

use super::{MemoryError, Region};

/// One bit a page of 4096 bytes of guest physical memory, least significant bit first.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Region,
}

impl DirtyLog {
    /// Maps the bitmap that the front end shares.
    pub fn map(size: u64, offset: u64, file: fs::File) -> Result<Self, MemoryError> {
        Ok(Self { bits: Region::map(0, size, 0, offset, file)? })
    }

    /// Marks the pages of `len` bytes at `gpa`. Those beyond the bitmap are not the front end's
    /// interest.
    pub fn mark(&self, gpa: u64, len: u64) {
        let Some(last) = gpa.checked_add(len).and_then(|end| end.checked_sub(1)) else { return };
        if len == 0 {
            return;
        }
        for page in gpa / PAGE..=last / PAGE {
            let Some(byte) = self.byte(page / 8) else { return };
            let bit = 1 << (page % 8);
            // Mostly set already: then the cache line stays shared.
            if byte.load(Ordering::Relaxed) & bit == 0 {
                byte.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    fn byte(&self, at: u64) -> Option<&AtomicU8> {
        let place = (at < self.bits.size).then(|| self.bits.host_at(at))?;
        // SAFETY: inside the mapping, which lives as long as `self`; both sides use atomics on it.
        Some(unsafe { AtomicU8::from_ptr(place) })
    }
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_page_touched_is_marked_and_no_other() {
        let file = fs::File::from(memfd_create("log", MFdFlags::empty()).unwrap());
        file.set_len(4096).unwrap();
        let log = DirtyLog::map(2, 0, file.try_clone().unwrap()).unwrap();
        log.mark(4095, 2);
        log.mark(9 * 4096, 4096);
        log.mark(3 * 4096, 0);
        log.mark(16 * 4096, 1);
        log.mark(u64::MAX, 2);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0b11, 0b10, 0, 0]);
    }
}
