//! The buffer pool of a reactor: page-aligned buffers in power-of-two sizes, reused.
//!
//! A pool belongs to one thread. After warm-up taking and giving back a buffer is a push or a pop;
//! the kernel is asked only when a class runs dry, and gets memory back when more than
//! [`CACHE_LIMIT`] lies idle or when the reactor goes to sleep ([`Pool::trim`]). What is lent at a
//! time is bounded, so a peer cannot make a reactor use more memory than it was given.

use super::{pages::Pages, sg::Segment};
use std::{
    cell::{Cell, RefCell},
    num::NonZeroUsize,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Smallest buffer.
pub const SMALLEST: usize = 1 << SMALLEST_SHIFT;

/// Largest buffer.
pub const LARGEST: usize = SMALLEST << (CLASSES - 1);

/// Idle memory a pool keeps while its reactor is awake.
pub const CACHE_LIMIT: usize = 64 << 20;

/// A pool. Cloning gives another handle to the same pool.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Rc<Inner>,
}

/// A buffer of a pool; dropping it gives it back. Aligned to 4096 bytes.
#[derive(Debug)]
pub struct PoolBuf {
    /// Empty only during drop and after `detach`.
    pages: Option<Pages>,
    pool: Rc<Inner>,
}

/// A buffer on its way through another thread.
///
/// It still counts as lent. Dropped instead of given back to [`Pool::attach`], its memory is freed
/// on the spot and the pool learns of it the next time it has to look.
#[derive(Debug)]
pub struct DetachedBuf {
    /// Empty only during drop and after `attach`.
    pages: Option<Pages>,
    freed: Arc<AtomicUsize>,
}

impl Pool {
    /// A pool that lends at most `limit` bytes at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            inner: Rc::new(Inner {
                limit,
                lent: Cell::new(0),
                cached: Cell::new(0),
                free: RefCell::default(),
                freed: Arc::default(),
            }),
        }
    }

    /// A buffer of at least `len` bytes with any content, or `None` when the limit is reached, the
    /// system is out of memory, or `len` is over [`LARGEST`].
    pub fn take(&self, len: usize) -> Option<PoolBuf> {
        let class = class_of(len)?;
        let size = SMALLEST << class;
        let inner = &*self.inner;
        if inner.limit.saturating_sub(inner.lent.get()) < size {
            inner.settle();
            if inner.limit.saturating_sub(inner.lent.get()) < size {
                return None;
            }
        }
        let cached = inner.free.borrow_mut().get_mut(class).and_then(Vec::pop);
        let pages = match cached {
            Some(pages) => {
                inner.cached.set(inner.cached.get() - size);
                pages
            }
            None => Pages::zeroed(NonZeroUsize::new(size)?).ok()?,
        };
        inner.lent.set(inner.lent.get() + size);
        Some(PoolBuf { pages: Some(pages), pool: self.inner.clone() })
    }

    /// Takes back a buffer that went through another thread.
    pub fn attach(&self, mut buffer: DetachedBuf) -> PoolBuf {
        let pages = buffer.pages.take();
        let size = pages.as_ref().map_or(0, Pages::len);
        // A buffer of another pool moves to this one's account.
        if !Arc::ptr_eq(&buffer.freed, &self.inner.freed) {
            buffer.freed.fetch_add(size, Ordering::Relaxed);
            self.inner.lent.set(self.inner.lent.get() + size);
        }
        PoolBuf { pages, pool: self.inner.clone() }
    }

    /// Gives all idle memory back to the system: before a long sleep.
    pub fn trim(&self) {
        // Taken out first: no borrow is held while memory is unmapped.
        let idle = self.inner.free.take();
        self.inner.cached.set(0);
        drop(idle);
    }

    /// Bytes lent now.
    pub fn lent(&self) -> usize {
        self.inner.settle();
        self.inner.lent.get()
    }

    /// Bytes kept for reuse.
    pub fn cached(&self) -> usize {
        self.inner.cached.get()
    }
}

impl PoolBuf {
    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        self.pages.as_ref().map_or(0, Pages::len)
    }

    /// Its first `len` bytes (at most the capacity) as a segment.
    pub fn segment(&mut self, len: usize) -> Segment {
        match &self.pages {
            Some(pages) => Segment { base: pages.base(), len: len.min(pages.len()) },
            None => Segment { base: std::ptr::null_mut(), len: 0 },
        }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], Pages::bytes)
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut().map_or(&mut [], Pages::bytes_mut)
    }

    /// Makes it sendable to another thread.
    pub fn detach(mut self) -> DetachedBuf {
        DetachedBuf { pages: self.pages.take(), freed: self.pool.freed.clone() }
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.pool.give_back(pages);
        }
    }
}

impl DetachedBuf {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], Pages::bytes)
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut().map_or(&mut [], Pages::bytes_mut)
    }
}

impl Drop for DetachedBuf {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            let size = pages.len();
            drop(pages);
            self.freed.fetch_add(size, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    lent: Cell<usize>,
    cached: Cell<usize>,
    free: RefCell<[Vec<Pages>; CLASSES]>,
    /// Bytes lent that were freed on other threads, not yet taken off `lent`.
    freed: Arc<AtomicUsize>,
}

impl Inner {
    fn settle(&self) {
        let freed = self.freed.swap(0, Ordering::Relaxed);
        self.lent.set(self.lent.get().saturating_sub(freed));
    }

    fn give_back(&self, pages: Pages) {
        let size = pages.len();
        self.lent.set(self.lent.get().saturating_sub(size));
        let cached = self.cached.get() + size;
        if cached > CACHE_LIMIT {
            return;
        }
        if let Some(class) = class_of(size)
            && let Some(list) = self.free.borrow_mut().get_mut(class)
        {
            list.push(pages);
            self.cached.set(cached);
        }
    }
}

/// The class of the smallest buffer that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let size = len.max(SMALLEST).checked_next_power_of_two().filter(|size| *size <= LARGEST)?;
    Some((size.trailing_zeros() - SMALLEST_SHIFT) as usize)
}

const SMALLEST_SHIFT: u32 = 12;
const CLASSES: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_buffer_is_aligned_zeroed_and_of_the_next_power_of_two() {
        let pool = Pool::new(LARGEST);
        let buffer = pool.take(5000).unwrap();
        assert_eq!(buffer.capacity(), 8192);
        assert_eq!(buffer.bytes().as_ptr() as usize % 4096, 0);
        assert!(buffer.bytes().iter().all(|b| *b == 0));
    }

    #[test]
    fn zero_length_gives_the_smallest_buffer_and_oversize_none() {
        let pool = Pool::new(usize::MAX);
        assert_eq!(pool.take(0).unwrap().capacity(), SMALLEST);
        assert_eq!(pool.take(LARGEST).unwrap().capacity(), LARGEST);
        assert!(pool.take(LARGEST + 1).is_none());
        assert!(pool.take(usize::MAX).is_none());
    }

    #[test]
    fn returned_buffer_is_the_next_one_lent() {
        let pool = Pool::new(LARGEST);
        let mut first = pool.take(4096).unwrap();
        let base = first.segment(1).base;
        drop(first);
        assert_eq!(pool.cached(), 4096);
        assert_eq!(pool.take(4096).unwrap().segment(1).base, base);
    }

    #[test]
    fn limit_counts_what_is_lent_and_not_what_is_cached() {
        let pool = Pool::new(16384);
        let held = pool.take(8192).unwrap();
        let other = pool.take(8192).unwrap();
        assert!(pool.take(1).is_none());
        drop(other);
        assert!(pool.take(8192).is_some());
        drop(held);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn cache_stays_under_its_cap_and_trim_empties_it() {
        let pool = Pool::new(usize::MAX);
        let held: Vec<_> = (0..8).map(|_| pool.take(LARGEST).unwrap()).collect();
        drop(held);
        assert_eq!(pool.cached(), CACHE_LIMIT);
        pool.trim();
        assert_eq!(pool.cached(), 0);
        assert!(pool.take(LARGEST).is_some());
    }

    #[test]
    fn detached_buffer_comes_back_with_its_content_and_account() {
        let pool = Pool::new(4096);
        let mut buffer = pool.take(4096).unwrap().detach();
        assert_eq!(pool.lent(), 4096);
        let buffer = std::thread::spawn(move || {
            buffer.bytes_mut()[4095] = 7;
            buffer
        });
        let buffer = pool.attach(buffer.join().unwrap());
        assert_eq!(buffer.bytes()[4095], 7);
        assert!(pool.take(1).is_none());
        drop(buffer);
        assert!(pool.take(1).is_some());
    }

    #[test]
    fn detached_buffer_dropped_elsewhere_leaves_the_account() {
        let pool = Pool::new(4096);
        let buffer = pool.take(4096).unwrap().detach();
        std::thread::spawn(move || drop(buffer)).join().unwrap();
        assert!(pool.take(4096).is_some());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn detached_buffer_attached_elsewhere_changes_accounts() {
        let (from, to) = (Pool::new(4096), Pool::new(4096));
        let moved = to.attach(from.take(1).unwrap().detach());
        assert_eq!((from.lent(), to.lent()), (0, 4096));
        drop(moved);
        assert_eq!(to.lent(), 0);
    }

    #[test]
    fn buffer_outlives_its_pool_handle() {
        let pool = Pool::new(4096);
        let mut buffer = pool.take(1).unwrap();
        drop(pool);
        buffer.bytes_mut()[0] = 1;
        assert_eq!(buffer.bytes()[0], 1);
    }
}
