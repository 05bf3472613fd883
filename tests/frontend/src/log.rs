//! The dirty log of a migration: a bit for each 4096 bytes of guest memory that the back end
//! wrote.

use crate::{Device, Error, Memory, Protocol, Queue, Window, feature};
use std::sync::{Arc, atomic::Ordering::SeqCst};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

const PAGE: u64 = 4096;

/// A log that the back end fills.
#[derive(Debug)]
pub struct Log {
    bits: Window,
}

impl Log {
    /// An empty log with a bit for each page up to the end of `memory`.
    pub fn new(memory: &Memory) -> Result<Self, Error> {
        let (start, len) = memory.bounds(memory.regions() - 1)?;
        let bytes = (start + len).div_ceil(PAGE * 8).next_multiple_of(PAGE);
        let shared = Memory::at(&[(0, bytes)])?;
        Ok(Self { bits: shared.window(bytes, 8)? })
    }

    /// Addresses of the pages that were written since the log was taken last; forgets them.
    pub fn take(&self) -> Vec<u64> {
        let words = (0..self.bits.len()).step_by(8);
        words
            .flat_map(|at| {
                let word = u64::from_le(self.bits.u64(at).swap(0, SeqCst));
                let first = at as u64 * 8;
                (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (first + bit) * PAGE)
            })
            .collect()
    }

    /// What `SET_LOG_BASE` sends.
    pub fn region(&self) -> Result<VhostUserDirtyLogRegion, Error> {
        let shared: &Arc<Memory> = self.bits.memory();
        let table = shared.table()?;
        let region = table.first().ok_or_else(|| Error::Memory("a log without memory".into()))?;
        Ok(VhostUserDirtyLogRegion {
            mmap_size: region.memory_size,
            mmap_offset: region.mmap_offset,
            mmap_handle: region.mmap_handle,
        })
    }
}

/// Whether every page of a window is in a list of dirty ones.
pub fn covers(dirty: &[u64], window: &Window) -> bool {
    let first = window.address() / PAGE;
    let end = (window.address() + window.len() as u64).div_ceil(PAGE);
    (first..end).all(|page| dirty.contains(&(page * PAGE)))
}

impl Device {
    /// Starts logging on running rings, as QEMU does: log, features, then every ring's address.
    /// Needs LOG_SHMFD in force and LOG_ALL offered.
    pub fn start_log(&mut self) -> Result<Log, Error> {
        if !self.link.protocol().contains(Protocol::LOG_SHMFD) {
            return Err(Error::Memory("LOG_SHMFD is not in force".into()));
        }
        let log = Log::new(&self.memory)?;
        self.link.frontend().set_log_base(0, Some(log.region()?))?;
        self.log_rings(true)?;
        Ok(log)
    }

    /// Stops logging.
    pub fn stop_log(&mut self) -> Result<(), Error> {
        self.log_rings(false)
    }

    fn log_rings(&mut self, wanted: bool) -> Result<(), Error> {
        let features = self.features | if wanted { feature::LOG_ALL } else { 0 };
        self.link.frontend().set_features(features)?;
        for queue in &self.queues {
            self.link.set_addresses(queue, wanted.then(|| logged(queue)))?;
        }
        Ok(())
    }
}

/// Where what the device writes to a ring begins.
fn logged(queue: &Queue) -> u64 {
    queue.ring.areas()[2].address()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_pages_and_are_taken_once() {
        let memory = Memory::new(2, 1 << 20).unwrap();
        let log = Log::new(&memory).unwrap();
        let window = memory.window_in(1, 5000, 4096).unwrap();
        let page = window.address() / PAGE;
        for page in [page, page + 1] {
            let (at, bit) = (page as usize / 64 * 8, page % 64);
            log.bits.u64(at).fetch_or((1u64 << bit).to_le(), SeqCst);
        }
        let dirty = log.take();
        assert_eq!(dirty, [window.address(), window.address() + PAGE]);
        assert!(covers(&dirty, &window) && !covers(&dirty[1..], &window));
        assert!(log.take().is_empty());
    }
}
