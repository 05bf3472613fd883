//! A DMA window: I/O bus addresses of a partition and the memory behind them (LoPAR, "TCE").
//!
//! The VMM writes entries while the server reads them; each is one atomic word, so that a reader sees
//! the old entry or the new one.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use vscsi_target::reactor::sg::Segment;

use super::Hcall;
use crate::memory::GuestMap;

/// What the server wants to do with memory of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    Both,
}

/// Why memory of the client cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The address is not in the window.
    #[error("I/O bus address {0:#x} is outside of the window")]
    Outside(u64),
    /// Nothing is mapped there.
    #[error("nothing is mapped at I/O bus address {0:#x}")]
    Unmapped(u64),
    /// The entry does not allow it.
    #[error("the entry of I/O bus address {0:#x} does not allow that")]
    Permission(u64),
    /// The entry names memory that the guest does not have.
    #[error("there is no memory behind I/O bus address {0:#x}")]
    NoMemory(u64),
}

/// The window of one logical I/O bus number.
#[derive(Debug)]
pub struct Window {
    liobn: u32,
    start: u64,
    entries: Box<[AtomicU64]>,
    bypass: AtomicBool,
    map: RwLock<Arc<GuestMap>>,
    /// Changes with `map`.
    version: AtomicU64,
}

impl Window {
    /// A window of `pages` pages of 4096 bytes from I/O bus address `start` on, with nothing mapped.
    /// `liobn` is its name for the guest, and nothing else here.
    pub fn new(map: Arc<GuestMap>, liobn: u32, start: u64, pages: u64) -> Arc<Self> {
        let entries = (0..pages).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            liobn,
            start: start & !(PAGE - 1),
            entries,
            bypass: AtomicBool::new(false),
            map: RwLock::new(map),
            version: AtomicU64::new(0),
        })
    }

    /// Its logical I/O bus number.
    pub fn liobn(&self) -> u32 {
        self.liobn
    }

    /// H_PUT_TCE: maps one page. The lowest two bits of an entry allow reading (1) and writing (2); an
    /// entry without them unmaps the page.
    pub fn put_tce(&self, ioba: u64, tce: u64) -> Hcall {
        match self.entry(ioba) {
            Some(entry) => {
                entry.store(tce, Ordering::Release);
                Hcall::Success
            }
            None => Hcall::Parameter,
        }
    }

    /// H_STUFF_TCE: writes the same entry `count` times.
    pub fn stuff_tce(&self, ioba: u64, tce: u64, count: u64) -> Hcall {
        self.put_all(ioba, count, |_| tce)
    }

    /// H_PUT_TCE_INDIRECT: writes these entries.
    pub fn put_tce_list(&self, ioba: u64, tces: &[u64]) -> Hcall {
        self.put_all(ioba, tces.len() as u64, |at| tces.get(at).copied().unwrap_or(0))
    }

    /// H_GET_TCE: the entry of a page, `None` outside of the window.
    pub fn get_tce(&self, ioba: u64) -> Option<u64> {
        self.entry(ioba).map(|entry| entry.load(Ordering::Acquire))
    }

    /// Unmaps everything, and ends a bypass: the guest was reset.
    pub fn clear(&self) {
        self.bypass.store(false, Ordering::Release);
        self.entries.iter().for_each(|entry| entry.store(0, Ordering::Release));
    }

    /// While it is bypassed, every I/O bus address is the guest physical address of the same number,
    /// as Open Firmware sets it (`ibm,set-tce-bypass`).
    pub fn set_bypass(&self, bypass: bool) {
        self.bypass.store(bypass, Ordering::Release);
    }

    /// The guest has other memory now. Who uses addresses of the old map keeps it until they are done.
    pub fn set_map(&self, map: Arc<GuestMap>) {
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The guest's memory, and a number that changes with it.
    pub(super) fn map(&self) -> (Arc<GuestMap>, u64) {
        // In this order: a number that is too old only makes the reader look again.
        let version = self.version();
        (Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner)), version)
    }

    /// Changes with the memory.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Appends where `len` bytes at an I/O bus address are in `map`. `hint` is for [`GuestMap`].
    ///
    /// # Errors
    /// Not all of it can be reached in that way; `into` is as it was.
    #[inline]
    pub(super) fn resolve(
        &self,
        map: &GuestMap,
        hint: &mut usize,
        ioba: u64,
        len: u32,
        access: Access,
        into: &mut Vec<Segment>,
    ) -> Result<(), Fault> {
        let before = into.len();
        let resolved = if self.bypass.load(Ordering::Relaxed) {
            let found = map.translate_for(hint, ioba, len, access != Access::Read, into);
            found.then_some(()).ok_or(Fault::NoMemory(ioba))
        } else {
            self.resolve_pages(map, hint, ioba, len, access, into)
        };
        if resolved.is_err() {
            into.truncate(before);
        }
        resolved
    }

    #[inline]
    fn resolve_pages(
        &self,
        map: &GuestMap,
        hint: &mut usize,
        ioba: u64,
        len: u32,
        access: Access,
        into: &mut Vec<Segment>,
    ) -> Result<(), Fault> {
        let need = match access {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::Both => READ | WRITE,
        };
        let before = into.len();
        let (mut ioba, mut left) = (ioba, len);
        while left > 0 {
            let entry = self.entry(ioba).ok_or(Fault::Outside(ioba))?.load(Ordering::Acquire);
            if entry & need != need {
                let none = entry & (READ | WRITE) == 0;
                return Err(if none { Fault::Unmapped(ioba) } else { Fault::Permission(ioba) });
            }
            let within = ioba & (PAGE - 1);
            // Less than a page.
            let part = left.min((PAGE - within) as u32);
            let at = into.len();
            let gpa = (entry & !(PAGE - 1)) | within;
            if !map.translate_for(hint, gpa, part, access != Access::Read, into) {
                return Err(Fault::NoMemory(ioba));
            }
            if at > before {
                join(into, at);
            }
            left -= part;
            // The entry was found, so its page ends below the end of the address space.
            ioba = ioba.wrapping_add(u64::from(part));
        }
        Ok(())
    }

    fn put_all(&self, ioba: u64, count: u64, tce: impl Fn(usize) -> u64) -> Hcall {
        let first = ioba.checked_sub(self.start).map(|offset| offset / PAGE);
        let range = first.and_then(|first| {
            let first = usize::try_from(first).ok()?;
            let end = first.checked_add(usize::try_from(count).ok()?)?;
            self.entries.get(first..end)
        });
        let Some(entries) = range else { return Hcall::Parameter };
        for (at, entry) in entries.iter().enumerate() {
            entry.store(tce(at), Ordering::Release);
        }
        Hcall::Success
    }

    #[inline]
    fn entry(&self, ioba: u64) -> Option<&AtomicU64> {
        let page = ioba.checked_sub(self.start)? / PAGE;
        self.entries.get(usize::try_from(page).ok()?)
    }
}

/// Joins the segment at `at` with the one before it if they adjoin: backends like few of them.
#[inline]
fn join(list: &mut Vec<Segment>, at: usize) {
    let Some((before, after)) = list.split_at_mut_checked(at) else { return };
    if let (Some(last), [next]) = (before.last_mut(), after)
        && last.base.wrapping_add(last.len) == next.base
    {
        last.len += next.len;
        list.pop();
    }
}

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
const READ: u64 = 1;
const WRITE: u64 = 2;

#[cfg(test)]
mod tests;
