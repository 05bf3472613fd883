//! Memory that is taken away while it is mapped must not end the process.
//!
//! A front end may truncate the file behind a guest's memory, or its huge pages may not be there when
//! they are touched: the next access is SIGBUS, whose default is death for every guest of the
//! process. Mappings shared with somebody else are therefore registered here, and the handler of
//! SIGBUS puts memory of our own where one of them has lost a page: the access that failed goes on
//! harmlessly, the mapping is marked as lost, and its owner stops the device when it looks. A SIGBUS
//! anywhere else is passed on to who had the signal before, and ends the process as ever.
//!
//! Reading and writing through the kernel (io_uring, `read`) needs none of this: it fails with EFAULT.
//!
//! The handler takes no lock and allocates nothing. It walks a list of entries to which entries are
//! only added; each has a sequence number, odd while the entry is being changed. What the handler
//! looks for does not change meanwhile, since whoever touches a mapping keeps it registered.
#![allow(unsafe_code)] // A signal handler that maps memory.

use std::{
    array, io, mem, ptr,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

use libc::{c_int, c_void, siginfo_t};

/// A mapping whose loss the process survives. Dropping it takes it off the list; the mapping itself
/// goes after that, never before.
#[derive(Debug)]
pub struct Guarded {
    entry: &'static Entry,
}

impl Guarded {
    /// Guards `len` bytes from `base` on, both whole pages of `page` bytes (those of the file, for
    /// huge pages). The first call installs the handler.
    ///
    /// # Safety
    /// All of it is one shared mapping made for this purpose, and whatever it contains may become
    /// anything at any time: when it is lost, its pages are replaced.
    pub unsafe fn register(base: *mut u8, len: usize, page: usize) -> io::Result<Self> {
        install()?;
        let _change = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries().find(|entry| entry.base.load(Relaxed) == FREE) {
            Some(free) => free,
            None => &add()[0],
        };
        entry.lost.store(false, Relaxed);
        entry.faults.store(0, Relaxed);
        entry.set(base as usize, len, page.max(1));
        Ok(Self { entry })
    }

    /// Whether a page of it was lost. What was read since may be zeroes, and what was written is
    /// nowhere.
    pub fn is_lost(&self) -> bool {
        self.entry.lost.load(Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _change = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        self.entry.set(FREE, 0, 1);
    }
}

/// How often any guarded mapping lost a page. While it stays the same, no mapping has to be asked.
#[inline]
pub fn losses() -> u64 {
    LOSSES.load(Acquire)
}

/// One mapping.
#[derive(Debug)]
struct Entry {
    /// Odd while the next three are being changed.
    sequence: AtomicUsize,
    /// [`FREE`] if it is of no mapping.
    base: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    lost: AtomicBool,
    /// Pages lost, or more than one page at a time.
    faults: AtomicU32,
}

impl Entry {
    fn new() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            base: AtomicUsize::new(FREE),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(1),
            lost: AtomicBool::new(false),
            faults: AtomicU32::new(0),
        }
    }

    /// Changes it; under the lock of the list.
    fn set(&self, base: usize, len: usize, page: usize) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        fence(Release);
        self.base.store(base, Relaxed);
        self.len.store(len, Relaxed);
        self.page.store(page, Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Release);
    }

    /// Where it is and its page size, if `address` lies in it.
    fn covers(&self, address: usize) -> Option<(usize, usize, usize)> {
        let before = self.sequence.load(Acquire);
        let (base, len, page) =
            (self.base.load(Relaxed), self.len.load(Relaxed), self.page.load(Relaxed));
        fence(Acquire);
        let stable = before.is_multiple_of(2) && self.sequence.load(Relaxed) == before;
        (stable && base != FREE && address.wrapping_sub(base) < len).then_some((base, len, page))
    }

    /// Puts memory of our own where the page of `address` was. The first loss costs one page, each
    /// further one twice as much, so that a mapping that is gone as a whole costs few faults and few
    /// pieces.
    fn replace(&self, address: usize, base: usize, len: usize, page: usize) -> bool {
        let pages = 1usize << self.faults.fetch_add(1, Relaxed).min(MOST_DOUBLINGS);
        let before = address.wrapping_sub(base);
        let before = before - before % page;
        let size = page.saturating_mul(pages).min(len.saturating_sub(before));
        let start = ptr::without_provenance_mut::<c_void>(base.wrapping_add(before));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: whole pages of a mapping that was registered to be replaced, and that stays as long
        // as the access that failed holds it.
        if unsafe { libc::mmap(start, size, protection, flags, -1, 0) } == libc::MAP_FAILED {
            return false;
        }
        self.lost.store(true, Release);
        LOSSES.fetch_add(1, Release);
        true
    }
}

/// Entries, and those that were there before.
struct Chunk {
    entries: [Entry; 64],
    next: Option<&'static Chunk>,
}

/// Every entry there is.
fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: null or a chunk that was leaked, published by the store in `add`.
    let first: Option<&'static Chunk> = unsafe { CHUNKS.load(Acquire).as_ref() };
    std::iter::successors(first, |chunk| chunk.next).flat_map(|chunk| &chunk.entries)
}

/// Adds entries; under the lock of the list. They stay for ever, and are used again.
fn add() -> &'static [Entry; 64] {
    // SAFETY: as in `entries`.
    let next = unsafe { CHUNKS.load(Acquire).as_ref() };
    let chunk = Box::leak(Box::new(Chunk { entries: array::from_fn(|_| Entry::new()), next }));
    CHUNKS.store(ptr::from_mut(chunk), Release);
    &chunk.entries
}

/// Takes over SIGBUS, once.
fn install() -> io::Result<()> {
    let _change = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: the all-zero `sigaction` is valid: no flags, an empty mask, the default action.
    let mut previous: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: only asks, and writes to a local.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Before the handler that looks at it.
    let _ = PREVIOUS.set(previous);
    take_over()
}

fn take_over() -> io::Result<()> {
    // SAFETY: as in `install`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler only does what a signal handler may do.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the thread's own `errno`, which the code that was interrupted may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a valid `siginfo_t`, and with a positive code it is of a fault.
    let (is_fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    let survived = is_fault
        && entries().any(|entry| {
            entry
                .covers(address)
                .is_some_and(|(base, len, page)| entry.replace(address, base, len, page))
        });
    if !survived {
        pass_on(signal, info, context, is_fault);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// What the signal would have done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, is_fault: bool) {
    let previous = PREVIOUS.get().copied();
    let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    let flags = previous.map_or(0, |previous| previous.sa_flags);
    match handler {
        // The kernel lets nobody ignore a fault.
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action, without flags or mask; then the signal once more, which
            // comes when this handler returns. Both are allowed in a handler.
            unsafe {
                let action: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, &action, ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
            // SAFETY: installed as a handler of this type, by its flags.
            let handler: Handler = unsafe { mem::transmute(handler) };
            handler(signal, info, context);
            keep(is_fault);
        }
        handler => {
            // SAFETY: as above.
            let handler: extern "C" fn(c_int) = unsafe { mem::transmute(handler) };
            handler(signal);
            keep(is_fault);
        }
    }
}

/// A handler that returned may have given the signal up, as the one of Rust's runtime does, so that
/// the fault that comes again ends the process. A signal that was only sent changes nothing.
fn keep(is_fault: bool) {
    if !is_fault {
        // Nobody could be told.
        let _ = take_over();
    }
}

static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());
/// Held by who changes the list; the handler does not.
static LIST: Mutex<()> = Mutex::new(());
static LOSSES: AtomicU64 = AtomicU64::new(0);
/// The action before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// No mapping starts there.
const FREE: usize = 0;
/// More than any mapping has pages.
const MOST_DOUBLINGS: u32 = 40;

#[cfg(test)]
mod tests;
