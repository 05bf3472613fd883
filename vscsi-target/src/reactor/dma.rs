//! Which memory devices reach: pool buffers when they are first used, and memory of guests for as
//! long as it is mapped.
//!
//! A device that is opened later learns of what is there already (`introduce`). What a device
//! cannot be told of, because the system limits locked memory, is copied instead.
#![allow(unsafe_code)] // Memory is handed to devices.

use super::{
    pages::Pages,
    pool::{Guard, PoolBuf},
};
use nvme::{MapError, Mapping, Space};
use std::{
    collections::BTreeMap,
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Memory outside the pools that devices are told of, by its address.
static KNOWN: Mutex<BTreeMap<usize, Known>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct Known {
    len: usize,
    mappings: Vec<Mapping>,
}

/// Memory that devices are told of; drop it before the memory is unmapped.
#[derive(Debug)]
pub struct Reachable {
    start: usize,
}

impl Reachable {
    /// Tells all devices of memory, those that are open and those that will be.
    ///
    /// # Safety
    /// From `start` on `len` bytes, whole pages, are mapped readable and writable, and stay so until
    /// the value is dropped. It is memory that others change at any time, a guest for one.
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        let mut known = lock();
        let mut entry = Known { len, mappings: Vec::new() };
        for space in Space::all() {
            // SAFETY: the caller's promise; the mappings are dropped with this value.
            unsafe { entry.map(&space, start) };
        }
        known.insert(start as usize, entry);
        Self { start: start as usize }
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        let gone = lock().remove(&self.start);
        drop(gone);
    }
}

impl Known {
    /// # Safety
    /// As [`Reachable::new`].
    unsafe fn map(&mut self, space: &Arc<Space>, start: *mut u8) {
        let has_it = |mapping: &Mapping| mapping.space() == Some(space.number());
        if self.mappings.iter().any(has_it) {
            return;
        }
        // SAFETY: the caller's promise.
        match unsafe { space.map(start, self.len) } {
            Ok(mapping) => self.mappings.push(mapping),
            Err(error) => {
                let (bytes, fix) = (self.len, error.fix());
                tracing::warn!(
                    %error, bytes, fix,
                    "NVMe controllers do not reach a guest's memory: its data is copied"
                );
            }
        }
    }
}

/// Tells a space with a new device of the memory that there is.
pub(crate) fn introduce(space: &Arc<Space>) {
    for (start, known) in lock().iter_mut() {
        known.mappings.retain(|mapping| mapping.space().is_some());
        // SAFETY: it is in the table, so its `Reachable` was not dropped, which waits for the lock.
        unsafe { known.map(space, *start as *mut u8) };
    }
}

/// Lets the devices of a space reach a pool buffer, with its whole slab.
pub(crate) fn reach(space: &Arc<Space>, buffer: &PoolBuf) {
    let told = buffer.dma_key(space.number(), |base, len| {
        // SAFETY: a slab stays mapped until its registrations have ended (`dma_key`).
        let mapping = unsafe { space.map(base, len) }.map_err(io::Error::other)?;
        let key = mapping.iova().wrapping_sub(base as u64);
        Ok((key, Box::new(mapping) as Guard))
    });
    if let Err(error) = told {
        tracing::warn!(%error, "an NVMe controller does not reach a buffer: data is copied");
    }
}

/// A buffer that devices of a space reach, for one use at a time.
#[derive(Debug)]
pub(crate) struct Bounce {
    // Dropped in this order: the mapping ends before the memory goes.
    _mapping: Mapping,
    pages: Mutex<Pages>,
}

impl Bounce {
    /// Its size.
    pub(crate) const BYTES: usize = 256 << 10;

    pub(crate) fn new(space: &Arc<Space>) -> Result<Self, MapError> {
        let len = NonZeroUsize::MIN.saturating_add(Self::BYTES - 1);
        let pages = Pages::zeroed(len).map_err(MapError::Memory)?;
        // SAFETY: the mapping is dropped before the pages, by the order of fields.
        let mapping = unsafe { space.map(pages.base(), pages.len()) }?;
        Ok(Self { _mapping: mapping, pages: Mutex::new(pages) })
    }

    /// Uses its first `len` bytes, which are at the address and of the length given besides.
    pub(crate) fn with<R>(
        &self,
        len: usize,
        mut using: impl FnMut(&mut [u8], (usize, usize)) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = pages.bytes_mut().get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        let place = (bytes.as_mut_ptr() as usize, len);
        using(bytes, place)
    }
}

fn lock() -> MutexGuard<'static, BTreeMap<usize, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}
