//! The client's queue: elements on their way to the partition.
//!
//! Its slots lie in the partition's memory. A slot whose first byte is 0 is free; the second half of
//! an element is written before the first, so that who sees the first byte sees the rest
//! (LoPAR, "Command/Response Queue").
#![allow(unsafe_code)] // Words of guest memory are read and written atomically.

use std::{
    fmt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

use super::{
    mailbox::halves,
    window::{Access, PAGE, Window},
};
use crate::memory::GuestMap;

/// How a virtual interrupt is raised. Called on a reactor, at most once a turn, and only while the
/// client wants it; it must not wait.
pub trait Interrupt: Send {
    /// Raises it.
    fn interrupt(&mut self);
}

impl<F: FnMut() + Send> Interrupt for F {
    fn interrupt(&mut self) {
        self();
    }
}

/// Who takes elements for a client whose queue this process does not write itself.
///
/// Called on a reactor, so it must not wait; delivery may happen later, on another thread, as long as
/// the order is kept. What it has taken it must not lose.
pub trait Partner: Interrupt {
    /// Takes an element for the queue of the present registration.
    fn deliver(&mut self, element: [u8; 16]) -> Delivered;
    /// The registration has ended, or everything sent before means nothing any more: what was taken
    /// and is not delivered yet is to be dropped.
    fn discard(&mut self);
}

/// What became of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It was taken.
    Taken,
    /// There is no room now: it is offered again.
    Full,
    /// There is no queue: it is dropped.
    Closed,
}

/// Where elements go.
pub enum Delivery {
    /// Into the queue in guest memory that H_REG_CRQ names.
    Memory(Box<dyn Interrupt>),
    /// To somebody who puts them there.
    Partner(Box<dyn Partner>),
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Memory",
            Self::Partner(_) => "Partner",
        })
    }
}

/// A queue in guest memory.
#[derive(Debug)]
pub(super) struct ClientQueue {
    ioba: u64,
    len: u64,
    pages: Vec<Page>,
    /// The slot that is written next.
    next: u32,
    slots: u32,
}

/// A page of it, in memory whose map the owner holds.
#[derive(Clone, Copy, Debug)]
struct Page(*mut u8);

// SAFETY: an address; what is there is reached by atomic accesses only, while the map is held.
unsafe impl Send for Page {}

impl ClientQueue {
    /// A queue of `len` bytes at an I/O bus address, whole pages that can be read and written. `next`
    /// is the slot that is written next.
    pub(super) fn new(
        window: &Window,
        map: &GuestMap,
        ioba: u64,
        len: u64,
        next: u32,
    ) -> Option<Self> {
        let whole = ioba.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        if !whole || len == 0 || len > MOST_BYTES {
            return None;
        }
        // At most 16 MiB of slots of 16 bytes.
        let slots = (len / ELEMENT) as u32;
        let mut queue = Self { ioba, len, pages: Vec::new(), next, slots };
        (next < slots && queue.place(window, map)).then_some(queue)
    }

    /// Finds its pages, in another map perhaps; false if they are not there.
    pub(super) fn place(&mut self, window: &Window, map: &GuestMap) -> bool {
        let (mut pages, mut found, mut hint) = (Vec::new(), Vec::new(), 0);
        for at in (0..self.len).step_by(PAGE as usize) {
            found.clear();
            let Some(ioba) = self.ioba.checked_add(at) else { return false };
            let page = window.resolve(map, &mut hint, ioba, PAGE as u32, Access::Both, &mut found);
            // Guest memory begins at multiples of eight, or its words are no words.
            let ([segment], Ok(())) = (found.as_slice(), page) else { return false };
            if !segment.base.cast::<u64>().is_aligned() {
                return false;
            }
            pages.push(Page(segment.base));
        }
        self.pages = pages;
        true
    }

    /// Puts an element there; false if its slot is not free.
    #[inline]
    pub(super) fn push(&mut self, element: &[u8; 16]) -> bool {
        let Some(slot) = self.slot(self.next) else { return false };
        if slot.valid().load(Ordering::Acquire) != 0 {
            return false;
        }
        slot.write(element);
        self.next = if self.next + 1 == self.slots { 0 } else { self.next + 1 };
        true
    }

    /// Puts an element into the slot that was written last, whatever is there: for an event that
    /// cannot wait.
    pub(super) fn overwrite_last(&mut self, element: &[u8; 16]) {
        let last = self.next.checked_sub(1).unwrap_or_else(|| self.slots.saturating_sub(1));
        if let Some(slot) = self.slot(last) {
            slot.write(element);
        }
    }

    /// The slot that is written next.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<Slot> {
        let offset = u64::from(index) * ELEMENT;
        let page = self.pages.get((offset / PAGE) as usize)?;
        Some(Slot(page.0.wrapping_add((offset % PAGE) as usize)))
    }
}

/// A slot of a page.
struct Slot(*mut u8);

impl Slot {
    fn valid(&self) -> &AtomicU8 {
        // SAFETY: inside a page of guest memory whose map the owner of the queue holds. The guest's
        // accesses are those of another processor, which no rule of ours can bind.
        unsafe { AtomicU8::from_ptr(self.0) }
    }

    fn write(&self, element: &[u8; 16]) {
        let [first, second] = halves(element);
        // SAFETY: as above; slots are sixteen bytes of a page, which starts at a multiple of eight.
        let words = unsafe {
            let words = self.0.cast::<u64>();
            [AtomicU64::from_ptr(words), AtomicU64::from_ptr(words.add(1))]
        };
        words[1].store(second, Ordering::Relaxed);
        words[0].store(first, Ordering::Release);
    }
}

/// Bytes of a slot.
const ELEMENT: u64 = 16;
/// The longest queue, as QEMU has it.
const MOST_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests;
