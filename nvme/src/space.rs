//! The address space that devices see: memory of this process, mapped by the IOMMU.
//!
//! All controllers of the process that are reached in the same way (container or iommufd) share one
//! space, so memory is pinned and counted once however many devices use it.
#![allow(unsafe_code)] // Memory is handed to devices, and kernel interfaces are asked for ranges.

use crate::{
    error::MapError,
    iova::{Allocator, Entry, Table, USUAL},
    wire::Cqe,
};
use iommufd_bindings::iommufd::{iommu_ioas_iova_ranges, iommu_iova_range};
use iommufd_ioctls::IommuFd;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{
    fmt,
    num::NonZeroUsize,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};
use vfio_bindings::bindings::vfio::vfio_iommu_type1_info;
use vfio_ioctls::{VfioContainer, VfioError, VfioIommufd, VfioOps};

/// How the kernel gives access to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Groups in a container, type 1 version 2: every kernel.
    Container,
    /// A file a device, bound to an iommufd: kernel 6.6 and later.
    Iommufd,
}

impl Interface {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Iommufd => "iommufd",
        }
    }
}

/// An address space.
pub struct Space {
    /// Which one; never the same twice in a process.
    number: u32,
    ops: Ops,
    /// Counts changes of the table.
    generation: AtomicU64,
    state: Mutex<State>,
}

enum Ops {
    Container(Arc<VfioContainer>),
    Iommufd(Arc<VfioIommufd>),
    /// Of a model of a device in this process.
    #[cfg(any(test, feature = "model"))]
    Model,
}

#[derive(Debug)]
struct State {
    /// `None` until a device is attached: before that nothing can be mapped.
    allocator: Option<Allocator>,
    table: Arc<Table>,
    devices: usize,
}

/// The spaces in use, by interface: made with the first device, given up with the last.
static SPACES: Mutex<Vec<Weak<Space>>> = Mutex::new(Vec::new());
static NUMBERS: AtomicU32 = AtomicU32::new(0x4E00_0000);

impl Space {
    /// The space of all controllers that are reached by `interface`.
    pub(crate) fn shared(interface: Interface) -> Result<Arc<Self>, VfioError> {
        let mut spaces = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|space| space.strong_count() > 0);
        let known = spaces.iter().filter_map(Weak::upgrade);
        if let Some(space) = known.into_iter().find(|space| space.interface() == interface) {
            return Ok(space);
        }
        let ops = match interface {
            Interface::Container => Ops::Container(Arc::new(VfioContainer::new(None)?)),
            Interface::Iommufd => {
                let iommufd = Arc::new(IommuFd::new().map_err(VfioError::NewVfioIommufd)?);
                Ops::Iommufd(Arc::new(VfioIommufd::new(iommufd, None, None)?))
            }
        };
        let space = Arc::new(Self::with(ops));
        spaces.push(Arc::downgrade(&space));
        Ok(space)
    }

    /// A space of its own for a model.
    #[cfg(any(test, feature = "model"))]
    pub(crate) fn of_model() -> Arc<Self> {
        Arc::new(Self::with(Ops::Model))
    }

    fn with(ops: Ops) -> Self {
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            ops,
            generation: AtomicU64::new(0),
            state: Mutex::new(State { allocator: None, table: Arc::default(), devices: 0 }),
        }
    }

    /// Every space in use.
    pub fn all() -> Vec<Arc<Self>> {
        let spaces = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.iter().filter_map(Weak::upgrade).collect()
    }

    /// How its devices are reached.
    pub fn interface(&self) -> Interface {
        match self.ops {
            Ops::Container(_) => Interface::Container,
            Ops::Iommufd(_) => Interface::Iommufd,
            #[cfg(any(test, feature = "model"))]
            Ops::Model => Interface::Iommufd,
        }
    }

    /// Which one it is; never the same twice in a process.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Counts the changes of [`Space::table`].
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What is mapped now.
    pub(crate) fn table(&self) -> (u64, Arc<Table>) {
        let state = self.state();
        (self.generation(), Arc::clone(&state.table))
    }

    /// For vfio-ioctls; a model has none.
    pub(crate) fn ops(&self) -> Option<Arc<dyn VfioOps>> {
        match &self.ops {
            Ops::Container(container) => Some(Arc::clone(container) as _),
            Ops::Iommufd(iommufd) => Some(Arc::clone(iommufd) as _),
            #[cfg(any(test, feature = "model"))]
            Ops::Model => None,
        }
    }

    /// A device was attached, so memory can be mapped from now on.
    pub(crate) fn attached(&self) {
        let mut state = self.state();
        state.devices += 1;
        if state.allocator.is_none() {
            let mut ranges = self.ranges();
            if ranges.is_empty() {
                ranges = USUAL.to_vec();
            }
            tracing::debug!(?ranges, "addresses that the IOMMU takes");
            state.allocator = Some(Allocator::new(&ranges));
        }
    }

    /// A device is gone. With the last one the kernel forgets what is mapped, so the next one gets a
    /// space of its own.
    pub(crate) fn detached(self: &Arc<Self>) {
        let mut state = self.state();
        state.devices = state.devices.saturating_sub(1);
        if state.devices == 0 {
            state.allocator = None;
            let table = std::mem::take(&mut state.table);
            // The kernel may have forgotten it already.
            for entry in table.entries() {
                let _ = self.kernel_unmap(*entry);
            }
            self.generation.fetch_add(1, Ordering::Release);
            drop(state);
            let mut spaces = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
            spaces.retain(|space| !std::ptr::eq(space.as_ptr(), Arc::as_ptr(self)));
        }
    }

    /// Maps memory for all devices of the space, readable and writable, until the mapping is dropped.
    ///
    /// # Errors
    /// The kernel limits locked memory (RLIMIT_MEMLOCK), and the IOMMU its addresses.
    ///
    /// # Safety
    /// From `start` on `len` bytes, whole pages, are mapped readable and writable, and stay so until
    /// the mapping is dropped. Devices change them at any time a command says so.
    pub unsafe fn map(self: &Arc<Self>, start: *mut u8, len: usize) -> Result<Mapping, MapError> {
        let kernel = |reason: String| MapError::Kernel { len, reason };
        let mut state = self.state();
        let overlap = MapError::Overlap { start: start as usize, len };
        let probe = Entry { start: start as usize, len, iova: 0 };
        if state.table.with(probe).is_none() {
            return Err(overlap);
        }
        let allocator =
            state.allocator.as_mut().ok_or_else(|| kernel("no device is attached".to_owned()))?;
        let iova = allocator.take(len as u64).ok_or(MapError::Exhausted(len))?;
        let mapped = match self.ops() {
            // SAFETY: the caller keeps the memory mapped; what is in it is only reached by raw copies
            // or while no command of a device names it, as with all memory of io_uring and of guests.
            Some(ops) => unsafe { ops.vfio_dma_map(iova, len, start) },
            None => Ok(()),
        };
        if let Err(error) = mapped {
            allocator.give_back(iova, len as u64);
            return Err(kernel(error.to_string()));
        }
        let entry = Entry { start: start as usize, len, iova };
        if let Some(table) = state.table.with(entry) {
            state.table = Arc::new(table);
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(Mapping { space: Arc::downgrade(self), entry })
    }

    fn unmap(&self, entry: Entry) {
        let mut state = self.state();
        let known = state.table.find(&mut 0, entry.start);
        // The space may have lost its last device, and with it everything that was mapped.
        if known != Some((entry.iova, entry.len)) || state.allocator.is_none() {
            return;
        }
        state.table = Arc::new(state.table.without(entry.start));
        self.generation.fetch_add(1, Ordering::Release);
        match (self.kernel_unmap(entry), state.allocator.as_mut()) {
            (Ok(()), Some(allocator)) => allocator.give_back(entry.iova, entry.len as u64),
            // Its addresses are not used again.
            (Err(error), _) => tracing::error!(%error, ?entry, "memory stays mapped for devices"),
            (Ok(()), None) => {}
        }
    }

    /// Moves memory as a device would, a byte or an aligned word of 4 at a time: into `bytes`, or out
    /// of them. False if it is not mapped.
    #[cfg(any(test, feature = "model"))]
    pub(crate) fn model_copy(&self, iova: u64, bytes: &mut [u8], out: bool) -> bool {
        let state = self.state();
        let end = iova + bytes.len() as u64;
        let is_it = |entry: &&Entry| entry.iova <= iova && end <= entry.iova + entry.len as u64;
        let Some(entry) = state.table.entries().iter().find(is_it) else { return false };
        let place = (entry.start + (iova - entry.iova) as usize) as *mut u8;
        fence(Ordering::SeqCst);
        if out && bytes.len() == 4 && iova.is_multiple_of(4) {
            let word = bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            // SAFETY: aligned and inside memory that stays mapped while it is in the table, which the
            // lock keeps from changing.
            unsafe { place.cast::<u32>().write_volatile(word) };
            return true;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: as above.
            unsafe {
                match out {
                    true => place.add(i).write_volatile(*byte),
                    false => *byte = place.add(i).read_volatile(),
                }
            }
        }
        true
    }

    fn kernel_unmap(&self, entry: Entry) -> Result<(), VfioError> {
        self.ops().map_or(Ok(()), |ops| ops.vfio_dma_unmap(entry.iova, entry.len))
    }

    /// The addresses that the kernel allows; empty if it does not say.
    fn ranges(&self) -> Vec<(u64, u64)> {
        match &self.ops {
            Ops::Container(container) => container_ranges(container.as_raw_fd()),
            Ops::Iommufd(iommufd) => {
                ioas_ranges(iommufd.iommufd().as_raw_fd(), iommufd.ioas().id())
            }
            #[cfg(any(test, feature = "model"))]
            Ops::Model => Vec::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interface, mapped) = (self.interface(), self.state().table.len());
        f.debug_struct("Space")
            .field("number", &self.number)
            .field("interface", &interface)
            .field("mapped", &mapped)
            .finish()
    }
}

/// Memory that is mapped for devices; dropping it ends that.
#[derive(Debug)]
pub struct Mapping {
    space: Weak<Space>,
    entry: Entry,
}

impl Mapping {
    /// What devices call its first byte.
    pub fn iova(&self) -> u64 {
        self.entry.iova
    }

    /// In which space it is, while that exists.
    pub fn space(&self) -> Option<u32> {
        self.space.upgrade().map(|space| space.number)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(space) = self.space.upgrade() {
            space.unmap(self.entry);
        }
    }
}

/// Memory of our own that a device uses: zeroed, page-aligned. Fields are dropped in this order: the
/// mapping ends before the memory goes.
#[derive(Debug)]
pub(crate) struct Dma {
    mapping: Mapping,
    pages: Pages,
}

#[derive(Debug)]
struct Pages {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: a mapping of its own, reached by volatile accesses only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Dma {
    /// Maps `len` bytes, rounded up to pages.
    pub(crate) fn new(space: &Arc<Space>, len: usize) -> Result<Self, MapError> {
        let len = NonZeroUsize::MIN.saturating_add(len.max(1).next_multiple_of(4096) - 1);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }
            .map_err(|errno| MapError::Memory(errno.into()))?;
        let pages = Pages { base: base.cast(), len };
        // A child process gets no copy, so that these pages stay the ones the device has.
        // SAFETY: our own mapping, whose contents this does not change.
        let _ = unsafe { madvise(base, len.get(), MmapAdvise::MADV_DONTFORK) };
        // SAFETY: `pages` stays mapped until after the mapping is dropped, by the order of fields.
        let mapping = unsafe { space.map(pages.base.as_ptr(), len.get()) }?;
        Ok(Self { mapping, pages })
    }

    /// What the device calls the byte at `offset`.
    pub(crate) fn iova(&self, offset: usize) -> u64 {
        debug_assert!(offset < self.pages.len.get());
        self.mapping.iova() + offset as u64
    }

    /// Writes words at `offset`, a multiple of their size. False if they do not fit.
    pub(crate) fn write<T: Word>(&self, offset: usize, words: &[T]) -> bool {
        let size = size_of::<T>();
        let fits = words.len().checked_mul(size).and_then(|len| offset.checked_add(len));
        if fits.is_none_or(|end| end > self.pages.len.get()) || !offset.is_multiple_of(size) {
            return false;
        }
        for (i, word) in words.iter().enumerate() {
            // SAFETY: aligned and inside the mapping, as just checked.
            unsafe {
                self.pages.base.as_ptr().add(offset + i * size).cast::<T>().write_volatile(*word)
            };
        }
        true
    }

    /// Reads a word at `offset`, a multiple of its size; 0 behind the end.
    pub(crate) fn read<T: Word>(&self, offset: usize) -> T {
        let size = size_of::<T>();
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.pages.len.get());
        if !fits || !offset.is_multiple_of(size) {
            return T::default();
        }
        // SAFETY: aligned and inside the mapping, as just checked; every bit pattern is a word.
        unsafe { self.pages.base.as_ptr().add(offset).cast::<T>().read_volatile() }
    }

    /// Reads bytes from `offset` on.
    pub(crate) fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.read(offset + i);
        }
        bytes
    }

    /// The completion queue entry at `offset`, if it was written in the round of `phase`.
    pub(crate) fn completion(&self, offset: usize, phase: bool) -> Option<Cqe> {
        // The phase is written last, so it is read first (3.3.3.2.2).
        let last: u32 = self.read(offset + 12);
        if (u32::from_le(last) >> 16 & 1 != 0) != phase {
            return None;
        }
        fence(Ordering::Acquire);
        let mut bytes = [0; Cqe::BYTES];
        for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
            let word: u32 = self.read(offset + 4 * i);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Some(Cqe::parse(&bytes))
    }

    /// Fills `len` bytes from `offset` on with zeroes; both multiples of 8.
    pub(crate) fn zero(&self, offset: usize, len: usize) {
        for at in (offset..offset.saturating_add(len)).step_by(8) {
            self.write(at, &[0u64]);
        }
    }
}

/// What is read and written in one access: any bit pattern is a value.
pub(crate) trait Word: Copy + Default {}
impl Word for u8 {}
impl Word for u32 {}
impl Word for u64 {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody reaches it any more.
        let unmapped = unsafe { munmap(self.base.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// VFIO_IOMMU_GET_INFO with its capability of ranges, version 1 (linux/vfio.h).
fn container_ranges(fd: std::os::fd::RawFd) -> Vec<(u64, u64)> {
    const BYTES: usize = 4096;
    // As words, so that it is aligned for the structure.
    let mut words = [0u64; BYTES / 8];
    words[0] = BYTES as u64;
    // SAFETY: the kernel writes at most `argsz` bytes, the first field, into the buffer of that size.
    let result = unsafe { libc::ioctl(fd, VFIO_IOMMU_GET_INFO, words.as_mut_ptr()) };
    if result < 0 {
        return Vec::new();
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    parse_info(&bytes)
}

/// Reads the ranges out of what VFIO_IOMMU_GET_INFO gave; a broken chain of capabilities just ends.
fn parse_info(bytes: &[u8]) -> Vec<(u64, u64)> {
    let word = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let long = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk::<8>()?));
    const _: () = assert!(std::mem::offset_of!(vfio_iommu_type1_info, cap_offset) == 16);
    // VFIO_IOMMU_INFO_CAPS
    if word(4).is_none_or(|flags| flags & 2 == 0) {
        return Vec::new();
    }
    let mut at = word(16).unwrap_or(0) as usize;
    let mut ranges = Vec::new();
    for _ in 0..64 {
        let (Some(head), Some(next)) = (word(at), word(at + 4)) else { break };
        if at == 0 {
            break;
        }
        // VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
        if head as u16 == 1 {
            let count = word(at + 8).unwrap_or(0) as usize;
            for i in 0..count.min(bytes.len()) {
                let place = at + 16 + 16 * i;
                let (Some(start), Some(end)) = (long(place), long(place + 8)) else { break };
                ranges.push((start, end));
            }
        }
        at = next as usize;
    }
    ranges
}

/// IOMMU_IOAS_IOVA_RANGES (linux/iommufd.h).
fn ioas_ranges(fd: std::os::fd::RawFd, ioas: u32) -> Vec<(u64, u64)> {
    let mut found = [iommu_iova_range::default(); 64];
    let mut ask = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>() as u32,
        ioas_id: ioas,
        num_iovas: found.len() as u32,
        allowed_iovas: found.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `num_iovas` ranges to the array of that many.
    let result = unsafe { libc::ioctl(fd, IOMMU_IOAS_IOVA_RANGES, &mut ask) };
    if result < 0 {
        return Vec::new();
    }
    found.iter().take(ask.num_iovas as usize).map(|range| (range.start, range.last)).collect()
}

/// `_IO(';', 100 + 12)`.
const VFIO_IOMMU_GET_INFO: libc::c_ulong = 0x3B70;
/// `_IO(';', 0x84)`.
const IOMMU_IOAS_IOVA_RANGES: libc::c_ulong = 0x3B84;

#[cfg(test)]
mod tests {
    use super::*;

    fn info(cap: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4..8].copy_from_slice(&3u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&24u32.to_ne_bytes());
        bytes.extend_from_slice(cap);
        bytes
    }

    #[test]
    fn ranges_are_found_in_the_chain_of_capabilities() {
        let mut cap = Vec::new();
        // Another capability first: migration.
        cap.extend_from_slice(&[2, 0, 1, 0]);
        cap.extend_from_slice(&32u32.to_ne_bytes());
        cap.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
        cap.extend_from_slice(&2u32.to_ne_bytes());
        cap.extend_from_slice(&[0; 4]);
        for number in [0u64, 0xFEDF_FFFF, 0xFEF0_0000, 0x7F_FFFF_FFFF] {
            cap.extend_from_slice(&number.to_ne_bytes());
        }
        assert_eq!(parse_info(&info(&cap)), [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]);
    }

    #[test]
    fn broken_chains_end() {
        let mut looped = Vec::new();
        looped.extend_from_slice(&[2, 0, 1, 0]);
        looped.extend_from_slice(&24u32.to_ne_bytes());
        assert_eq!(parse_info(&info(&looped)), []);
        let mut long = vec![1, 0, 1, 0, 0, 0, 0, 0];
        long.extend_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse_info(&info(&long)), []);
        assert_eq!(parse_info(&[]), []);
        assert_eq!(parse_info(&[0xFF; 24]), []);
    }
}
