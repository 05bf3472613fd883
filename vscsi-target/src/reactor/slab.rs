//! Slabs: mappings that pool buffers are cut from, so that a DMA device is told of memory once for
//! many buffers.
//!
//! A piece belongs to its holder alone and keeps its slab mapped. Registrations belong to the slab;
//! they end before it is unmapped.
#![allow(unsafe_code)] // Slices over the part of a mapping that a piece owns.

use super::{pages::Pages, sg::Segment};
use std::{
    any::Any,
    fmt, io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

/// What a device has been told of a slab; dropping it takes that back.
pub type Guard = Box<dyn Any + Send + Sync>;

/// Smallest slab: so much that registering one now and then costs nothing a command.
pub(super) const SMALLEST: usize = 2 << 20;

/// One mapping. Fields are dropped in this order: registrations end while it is still mapped.
pub(super) struct Slab {
    /// Domain and key of the first registration, which is nearly always the one asked for.
    first: OnceLock<(u32, u64)>,
    /// Length of each piece in bytes.
    piece: usize,
    registrations: Mutex<Vec<Registration>>,
    pages: Pages,
}

struct Registration {
    domain: u32,
    key: u64,
    _guard: Guard,
}

/// Exclusively owned memory in a slab, on page boundaries. Two words, because tasks that carry one
/// are moved a lot.
#[derive(Debug)]
pub(super) struct Piece {
    /// The slab's `piece` bytes from here lie in its mapping, and in no other piece.
    base: NonNull<u8>,
    slab: Arc<Slab>,
}

// SAFETY: the memory belongs to the piece alone, like that of a `Box<[u8]>`; a slab is `Send` and
// `Sync`.
unsafe impl Send for Piece {}
// SAFETY: as above; sharing a reference gives reads only.
unsafe impl Sync for Piece {}

/// What has not been cut off a slab yet.
#[derive(Debug)]
pub(super) struct Uncut {
    /// Where the next piece begins.
    offset: usize,
    slab: Arc<Slab>,
}

impl Slab {
    /// The key under which a device of `domain` knows this slab; `register` tells it, once.
    fn key(
        &self,
        domain: u32,
        register: impl FnOnce(*mut u8, usize) -> io::Result<(u64, Guard)>,
    ) -> io::Result<u64> {
        match self.first.get() {
            Some(&(first, key)) if first == domain => return Ok(key),
            _ => {}
        }
        let mut registrations = self.registrations();
        if let Some(known) = registrations.iter().find(|known| known.domain == domain) {
            return Ok(known.key);
        }
        let (key, guard) = register(self.pages.base(), self.pages.len())?;
        registrations.push(Registration { domain, key, _guard: guard });
        // Fails when another domain was first.
        let _ = self.first.set((domain, key));
        Ok(key)
    }

    fn registrations(&self) -> MutexGuard<'_, Vec<Registration>> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains: Vec<u32> = self.registrations().iter().map(|known| known.domain).collect();
        f.debug_struct("Slab").field("pages", &self.pages).field("domains", &domains).finish()
    }
}

impl Piece {
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.slab.piece
    }

    pub(super) fn segment(&mut self, len: usize) -> Segment {
        Segment { base: self.base(), len: len.min(self.len()) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: in a mapping that `slab` keeps, initialised by the kernel, and this piece's alone.
        unsafe { std::slice::from_raw_parts(self.base(), self.len()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is the only way to this part.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len()) }
    }

    /// See [`PoolBuf::dma_key`](super::pool::PoolBuf::dma_key).
    pub(super) fn key(
        &self,
        domain: u32,
        register: impl FnOnce(*mut u8, usize) -> io::Result<(u64, Guard)>,
    ) -> io::Result<u64> {
        self.slab.key(domain, register)
    }

    /// Gives the RAM behind it back, if no device holds it; the content is lost.
    pub(super) fn discard(&mut self) {
        // Held meanwhile: pages that a device has just been told of must stay the ones we see.
        let registrations = self.slab.registrations();
        if registrations.is_empty() {
            let offset = self.base() as usize - self.slab.pages.base() as usize;
            let _ = self.slab.pages.discard(offset, self.len());
        }
    }

    /// Whether nobody else holds a part of the slab.
    pub(super) fn is_all_that_is_left(&self) -> bool {
        Arc::strong_count(&self.slab) == 1
    }
}

impl Uncut {
    /// A new slab for pieces of `size` bytes, a power of two of at least a page.
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let len = NonZeroUsize::MIN.saturating_add(size.max(SMALLEST) - 1);
        let slab = Slab {
            first: OnceLock::new(),
            piece: size,
            registrations: Mutex::default(),
            pages: Pages::zeroed(len)?,
        };
        Ok(Self { offset: 0, slab: Arc::new(slab) })
    }

    /// The next piece, if there is one left.
    pub(super) fn cut(&mut self) -> Option<Piece> {
        let end =
            self.offset.checked_add(self.slab.piece).filter(|end| *end <= self.slab.pages.len())?;
        let base = NonNull::new(self.slab.pages.base().wrapping_add(self.offset))?;
        self.offset = end;
        Some(Piece { base, slab: Arc::clone(&self.slab) })
    }

    /// Whether nothing is left to cut.
    pub(super) fn is_used_up(&self) -> bool {
        self.offset == self.slab.pages.len()
    }
}

/// Drops what is left of slabs nobody else holds a part of: they are unmapped. `idle` and `uncut`
/// keep the rest.
pub(super) fn release_whole(idle: &mut Vec<Piece>, uncut: &mut Option<Uncut>) {
    let address = |slab: &Arc<Slab>| Arc::as_ptr(slab) as usize;
    idle.sort_unstable_by_key(|piece| address(&piece.slab));
    let mut kept = Vec::new();
    let mut rest = std::mem::take(idle).into_iter().peekable();
    while let Some(piece) = rest.next() {
        let slab = Arc::clone(&piece.slab);
        let first = kept.len();
        kept.push(piece);
        while let Some(piece) = rest.next_if(|next| Arc::ptr_eq(&next.slab, &slab)) {
            kept.push(piece);
        }
        let rest_is_uncut = uncut.as_ref().is_some_and(|uncut| Arc::ptr_eq(&uncut.slab, &slab));
        // `slab` is one of them. Who drops a part elsewhere just now makes it less, never more.
        if Arc::strong_count(&slab) == kept.len() - first + 1 + usize::from(rest_is_uncut) {
            kept.truncate(first);
            if rest_is_uncut {
                *uncut = None;
            }
        }
    }
    *idle = kept;
    if uncut.as_ref().is_some_and(|uncut| Arc::strong_count(&uncut.slab) == 1) {
        *uncut = None;
    }
}
