//! The buffer pool of a reactor: page-aligned buffers in power-of-two sizes, reused.
//!
//! A pool belongs to one thread. After warm-up taking and giving back a buffer is a push or a pop;
//! the kernel is asked only when a class runs dry, and gets memory back when more than
//! [`CACHE_LIMIT`] lies idle or when the reactor goes to sleep ([`Pool::trim`]). What is lent at a
//! time is bounded, so a peer cannot make a reactor use more memory than it was given.
//!
//! Buffers are cut from slabs of at least 2 MiB, so that a DMA device learns of many at once
//! ([`PoolBuf::dma_key`]). A slab is unmapped when none of its buffers is in use or kept. A part
//! of a slab that is not kept is used again before another slab is mapped, so memory that devices
//! hold does not grow beyond what was once lent in each size.

use super::{
    sg::Segment,
    slab::{Piece, Uncut, release_whole},
};
use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use super::slab::Guard;

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
    piece: Option<Piece>,
    pool: Rc<Inner>,
}

/// A buffer on its way through another thread.
///
/// It still counts as lent. Dropped instead of given back to [`Pool::attach`], its memory is freed
/// on the spot and the pool learns of it the next time it has to look.
#[derive(Debug)]
pub struct DetachedBuf {
    /// Empty only during drop and after `attach`.
    piece: Option<Piece>,
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
                classes: RefCell::default(),
                cold: Cell::new(0),
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
        let piece = {
            let mut classes = inner.classes.borrow_mut();
            let class = classes.get_mut(class)?;
            match class.warm.pop() {
                Some(piece) => {
                    inner.cached.set(inner.cached.get() - size);
                    piece
                }
                None => class.fresh(size)?,
            }
        };
        inner.lent.set(inner.lent.get() + size);
        Some(PoolBuf { piece: Some(piece), pool: self.inner.clone() })
    }

    /// Takes back a buffer that went through another thread.
    pub fn attach(&self, mut buffer: DetachedBuf) -> PoolBuf {
        let piece = buffer.piece.take();
        let size = piece.as_ref().map_or(0, Piece::len);
        // A buffer of another pool moves to this one's account.
        if !Arc::ptr_eq(&buffer.freed, &self.inner.freed) {
            buffer.freed.fetch_add(size, Ordering::Relaxed);
            self.inner.lent.set(self.inner.lent.get() + size);
        }
        PoolBuf { piece, pool: self.inner.clone() }
    }

    /// Gives idle memory back to the system: before a long sleep. What shares a slab with a buffer
    /// in use stays mapped, and keeps RAM only if a device holds the slab.
    pub fn trim(&self) {
        for class in self.inner.classes.borrow_mut().iter_mut() {
            class.cold.append(&mut class.warm);
            release_whole(&mut class.cold, &mut class.uncut);
            class.cold.iter_mut().for_each(Piece::discard);
        }
        self.inner.cached.set(0);
        self.inner.cold.set(0);
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
        self.piece.as_ref().map_or(0, Piece::len)
    }

    /// Where it begins. It stays there, also when it goes through another thread.
    pub fn base(&self) -> *const u8 {
        self.piece.as_ref().map_or(std::ptr::null(), |piece| piece.base().cast_const())
    }

    /// Its first `len` bytes (at most the capacity) as a segment.
    pub fn segment(&mut self, len: usize) -> Segment {
        match &mut self.piece {
            Some(piece) => piece.segment(len),
            None => Segment { base: std::ptr::null_mut(), len: 0 },
        }
    }

    /// The key under which DMA devices of `domain` reach this buffer, at [`PoolBuf::base`].
    ///
    /// The first buffer of a slab for which it is asked calls `register` with the address and the
    /// length of the whole slab; it gives the key, and what ends the registration when it is
    /// dropped. That happens before the slab is unmapped, on any thread. A domain known already
    /// costs one comparison if it was the slab's first, otherwise a lock.
    ///
    /// # Errors
    /// What `register` says. The next call tries again.
    pub fn dma_key(
        &self,
        domain: u32,
        register: impl FnOnce(*mut u8, usize) -> io::Result<(u64, Guard)>,
    ) -> io::Result<u64> {
        match &self.piece {
            Some(piece) => piece.key(domain, register),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.piece.as_ref().map_or(&[], Piece::bytes)
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.piece.as_mut().map_or(&mut [], Piece::bytes_mut)
    }

    /// Makes it sendable to another thread.
    pub fn detach(mut self) -> DetachedBuf {
        DetachedBuf { piece: self.piece.take(), freed: self.pool.freed.clone() }
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.pool.give_back(piece);
        }
    }
}

impl DetachedBuf {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.piece.as_ref().map_or(&[], Piece::bytes)
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.piece.as_mut().map_or(&mut [], Piece::bytes_mut)
    }
}

impl Drop for DetachedBuf {
    fn drop(&mut self) {
        if let Some(mut piece) = self.piece.take() {
            let size = piece.len();
            if !piece.is_all_that_is_left() {
                piece.discard();
            }
            drop(piece);
            self.freed.fetch_add(size, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    lent: Cell<usize>,
    cached: Cell<usize>,
    classes: RefCell<[Class; CLASSES]>,
    /// Bytes that became cold since whole slabs were last looked for.
    cold: Cell<usize>,
    /// Bytes lent that were freed on other threads, not yet taken off `lent`.
    freed: Arc<AtomicUsize>,
}

/// Idle buffers of one size.
#[derive(Debug, Default)]
struct Class {
    /// Kept for reuse, and counted for it.
    warm: Vec<Piece>,
    /// Parts of slabs that others still hold parts of. They cost no RAM unless a device holds it.
    cold: Vec<Piece>,
    /// The rest of the newest slab.
    uncut: Option<Uncut>,
}

impl Class {
    /// A buffer when no warm one is there.
    fn fresh(&mut self, size: usize) -> Option<Piece> {
        if let Some(piece) = self.cold.pop() {
            return Some(piece);
        }
        let mut uncut = match self.uncut.take() {
            Some(uncut) => uncut,
            None => Uncut::new(size).ok()?,
        };
        let piece = uncut.cut();
        self.uncut = Some(uncut).filter(|uncut| !uncut.is_used_up());
        piece
    }
}

impl Inner {
    fn settle(&self) {
        let freed = self.freed.swap(0, Ordering::Relaxed);
        self.lent.set(self.lent.get().saturating_sub(freed));
    }

    fn give_back(&self, piece: Piece) {
        let size = piece.len();
        self.lent.set(self.lent.get().saturating_sub(size));
        let mut classes = self.classes.borrow_mut();
        let Some(class) = class_of(size).and_then(|class| classes.get_mut(class)) else { return };
        let cached = self.cached.get() + size;
        if cached <= CACHE_LIMIT {
            class.warm.push(piece);
            self.cached.set(cached);
        } else {
            self.cool(class, piece);
        }
    }

    /// Gives back to the system what is too much to keep.
    #[cold]
    fn cool(&self, class: &mut Class, mut piece: Piece) {
        if piece.is_all_that_is_left() {
            return;
        }
        piece.discard();
        self.cold.set(self.cold.get() + piece.len());
        class.cold.push(piece);
        if self.cold.get() >= SEARCH_AFTER {
            self.cold.set(0);
            release_whole(&mut class.cold, &mut class.uncut);
        }
    }
}

/// The class of the smallest buffer that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let size = len.max(SMALLEST).checked_next_power_of_two().filter(|size| *size <= LARGEST)?;
    Some((size.trailing_zeros() - SMALLEST_SHIFT) as usize)
}

/// Bytes that become cold until slabs nobody uses are looked for.
const SEARCH_AFTER: usize = 16 << 20;

const SMALLEST_SHIFT: u32 = 12;
const CLASSES: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

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

    /// A registration that counts itself, and tells when it ended whether `base` was still mapped.
    struct Registered {
        base: usize,
        ended: Arc<Mutex<Vec<bool>>>,
    }

    impl Drop for Registered {
        fn drop(&mut self) {
            self.ended.lock().unwrap().push(is_mapped(self.base));
        }
    }

    fn is_mapped(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let range = line.split(' ').next().unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|end| usize::from_str_radix(end, 16).unwrap());
            (from..to).contains(&address)
        })
    }

    fn never(_: *mut u8, _: usize) -> io::Result<(u64, Guard)> {
        panic!("registered already")
    }

    #[test]
    fn slab_is_registered_once_a_domain_for_all_its_buffers() {
        let pool = Pool::new(LARGEST);
        let buffers: Vec<_> = (0..4).map(|_| pool.take(4096).unwrap()).collect();
        let mut told = None;
        let key = buffers[2].dma_key(1, |base, len| {
            told = Some((base, len));
            Ok((77, Box::new(())))
        });
        assert_eq!(key.unwrap(), 77);
        let (base, len) = told.unwrap();
        let slab = base as usize..base as usize + len;
        assert_eq!(len, 2 << 20);
        for buffer in &buffers {
            assert!(slab.contains(&(buffer.base() as usize)));
            assert!(slab.contains(&(buffer.base() as usize + buffer.capacity() - 1)));
            assert_eq!(buffer.dma_key(1, never).unwrap(), 77);
        }
        let second = buffers[0].dma_key(2, |_, _| Ok((88, Box::new(()))));
        assert_eq!(second.unwrap(), 88);
        assert_eq!(buffers[1].dma_key(2, never).unwrap(), 88);
        assert_eq!(buffers[1].dma_key(1, never).unwrap(), 77);
    }

    #[test]
    fn failed_registration_is_tried_again() {
        let pool = Pool::new(LARGEST);
        let buffer = pool.take(1).unwrap();
        let refused = buffer.dma_key(1, |_, _| Err(io::ErrorKind::OutOfMemory.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(buffer.dma_key(1, |_, _| Ok((5, Box::new(())))).unwrap(), 5);
    }

    #[test]
    fn registrations_end_before_the_slab_is_unmapped() {
        let pool = Pool::new(usize::MAX);
        let ended = Arc::new(Mutex::default());
        let held = [pool.take(LARGEST).unwrap(), pool.take(LARGEST).unwrap()];
        for (at, buffer) in held.iter().enumerate() {
            let base = buffer.base() as usize;
            let guard = Registered { base, ended: Arc::clone(&ended) };
            buffer.dma_key(at as u32, |_, _| Ok((0, Box::new(guard)))).unwrap();
        }
        drop(held);
        assert!(ended.lock().unwrap().is_empty());
        pool.trim();
        assert_eq!(*ended.lock().unwrap(), [true, true]);
    }

    #[test]
    fn slab_outlives_trim_and_pool_until_its_last_buffer_is_dropped_on_another_thread() {
        let pool = Pool::new(LARGEST);
        let ended = Arc::new(Mutex::default());
        let [first, second] = [pool.take(8192).unwrap(), pool.take(8192).unwrap()];
        let guard = Registered { base: first.base() as usize, ended: Arc::clone(&ended) };
        first.dma_key(3, |_, _| Ok((9, Box::new(guard)))).unwrap();
        let mut second = second.detach();
        drop(first);
        pool.trim();
        drop(pool);
        second.bytes_mut()[8191] = 1;
        assert!(ended.lock().unwrap().is_empty());
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert_eq!(*ended.lock().unwrap(), [true]);
    }

    #[test]
    fn detached_buffer_keeps_address_and_key() {
        let pool = Pool::new(LARGEST);
        let buffer = pool.take(4096).unwrap();
        let base = buffer.base();
        buffer.dma_key(4, |_, _| Ok((6, Box::new(())))).unwrap();
        let buffer = buffer.detach();
        let buffer = pool.attach(std::thread::spawn(|| buffer).join().unwrap());
        assert_eq!((buffer.base(), buffer.dma_key(4, never).unwrap()), (base, 6));
    }

    #[test]
    fn trimmed_slab_with_a_buffer_in_use_is_used_again_before_another_is_mapped() {
        let pool = Pool::new(LARGEST);
        let mut held: Vec<_> = (0..512).map(|_| pool.take(4096).unwrap()).collect();
        held[0].bytes_mut().fill(0xA5);
        held[7].bytes_mut().fill(0xA5);
        let slab = held[0].base() as usize;
        held.swap_remove(7);
        let freed = held.split_off(1);
        drop(freed);
        pool.trim();
        assert_eq!(pool.cached(), 0);
        let again: Vec<_> = (0..511).map(|_| pool.take(4096).unwrap()).collect();
        for buffer in &again {
            assert!((slab..slab + (2 << 20)).contains(&(buffer.base() as usize)));
            assert!(buffer.bytes().iter().all(|byte| *byte == 0), "its RAM was not given back");
        }
        assert!(held[0].bytes().iter().all(|byte| *byte == 0xA5));
    }

    #[test]
    fn what_a_device_holds_stays_as_it_is_when_it_grows_cold() {
        let pool = Pool::new(LARGEST);
        let [held, mut other] = [pool.take(4096).unwrap(), pool.take(4096).unwrap()];
        held.dma_key(1, |_, _| Ok((1, Box::new(())))).unwrap();
        other.bytes_mut().fill(0xA5);
        drop(other);
        pool.trim();
        // Other pages than those the device knows would read as zeroes.
        assert!(pool.take(4096).unwrap().bytes().iter().all(|byte| *byte == 0xA5));
    }

    #[test]
    fn slabs_that_are_idle_as_a_whole_go_when_too_much_is_kept() {
        let pool = Pool::new(usize::MAX);
        let ended = Arc::new(Mutex::default());
        let lent = (CACHE_LIMIT + 3 * SEARCH_AFTER) / 65536;
        let held: Vec<_> = (0..lent).map(|_| pool.take(65536).unwrap()).collect();
        for buffer in &held {
            let base = buffer.base() as usize;
            let guard = || Registered { base, ended: Arc::clone(&ended) };
            buffer.dma_key(1, |_, _| Ok((1, Box::new(guard())))).unwrap();
        }
        drop(held);
        assert_eq!(pool.cached(), CACHE_LIMIT);
        assert_eq!(ended.lock().unwrap().len(), 3 * SEARCH_AFTER / (2 << 20));
        pool.trim();
        assert_eq!(ended.lock().unwrap().len(), lent * 65536 / (2 << 20));
    }
}
