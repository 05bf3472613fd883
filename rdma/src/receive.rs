//! Receive buffers: one region, registered once, cut into equal buffers that are posted again and
//! again; a connection's own, or shared by the connections of a thread through a shared receive
//! queue.
#![allow(unsafe_code)] // Mapped memory, and lists of C that point into it.

use std::{
    cell::RefCell,
    fmt,
    num::NonZeroUsize,
    ptr::NonNull,
    rc::{Rc, Weak},
    sync::Arc,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rdma_sys::{
    ibv_post_recv, ibv_post_srq_recv, ibv_qp, ibv_recv_wr, ibv_sge, ibv_srq, ibv_srq_attr,
    ibv_srq_init_attr,
};

use crate::{
    device::{Device, Registration},
    error::{RdmaError, WorkError},
    table::Table,
};

/// A buffer with something received; give it back with
/// [`Connection::repost`](crate::Connection::repost). Dropped instead, it is lost to its ring until
/// that goes.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Buffer(pub(crate) u32);

/// Registered memory of our own.
pub(crate) struct Region {
    base: NonNull<u8>,
    len: NonZeroUsize,
    /// Ends before the memory goes.
    registration: Option<Registration>,
}

impl Region {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Self, RdmaError> {
        let len = NonZeroUsize::new(len).unwrap_or(NonZeroUsize::MIN);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }
            .map_err(|error| RdmaError::Call { what: "mapping memory", reason: error.into() })?
            .cast();
        let mut region = Self { base, len, registration: None };
        // SAFETY: the mapping is ours and outlives the registration (see `drop`).
        let registration = unsafe { device.register(base.as_ptr(), len.get()) };
        region.registration = Some(
            registration
                .map_err(|reason| RdmaError::Call { what: "registering memory", reason })?,
        );
        Ok(region)
    }

    pub(crate) fn key(&self) -> u32 {
        self.registration.as_ref().map_or(0, Registration::key)
    }

    pub(crate) fn addr(&self, at: usize) -> u64 {
        self.base.as_ptr() as u64 + at as u64
    }

    /// Bytes that no device writes to at the moment.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let at = at.min(self.len.get());
        let len = len.min(self.len.get() - at);
        // SAFETY: inside the mapping; the caller says that the device is done with them.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }

    /// Bytes that no device looks at at the moment.
    pub(crate) fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        let at = at.min(self.len.get());
        let len = len.min(self.len.get() - at);
        // SAFETY: as in `bytes`, and `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.registration = None;
        // SAFETY: our own mapping, which nobody borrows and no device knows any more.
        let unmapped = unsafe { munmap(self.base.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

/// A ring of receive buffers.
pub(crate) struct Ring {
    region: Region,
    size: usize,
    count: u32,
    returned: Vec<u32>,
    scatter: Vec<ibv_sge>,
    works: Vec<ibv_recv_wr>,
}

/// The bit that tells a receive's number from a send's.
pub(crate) const RECEIVE: u64 = 1 << 63;

impl Ring {
    /// All buffers wait to be posted.
    pub(crate) fn new(device: &Device, count: u32, size: u32) -> Result<Self, RdmaError> {
        // Each starts at a multiple of 64, so that headers stay in one cache line.
        let size = (size as usize).next_multiple_of(64);
        let region = Region::new(device, size * count as usize)?;
        let scatter = (0..count as usize)
            .map(|at| ibv_sge {
                addr: region.addr(at * size),
                length: size as u32,
                lkey: region.key(),
            })
            .collect();
        let returned = (0..count).collect();
        Ok(Self { region, size, count, returned, scatter, works: Vec::new() })
    }

    pub(crate) fn bytes(&self, buffer: &Buffer, len: usize) -> &[u8] {
        self.region.bytes(buffer.0 as usize * self.size, len.min(self.size))
    }

    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        if buffer.0 < self.count {
            self.returned.push(buffer.0);
        }
    }

    /// Posts what was given back, by one call of `post`.
    fn post(
        &mut self,
        post: impl FnOnce(*mut ibv_recv_wr) -> i32,
        posted: &mut u64,
    ) -> Result<(), WorkError> {
        if self.returned.is_empty() {
            return Ok(());
        }
        self.works.clear();
        let scatter = self.scatter.as_mut_ptr();
        self.works.extend(self.returned.iter().map(|&index| ibv_recv_wr {
            wr_id: RECEIVE | u64::from(index),
            next: std::ptr::null_mut(),
            sg_list: scatter.wrapping_add(index as usize),
            num_sge: 1,
        }));
        let first = self.works.as_mut_ptr();
        for at in 1..self.works.len() {
            self.works[at - 1].next = first.wrapping_add(at);
        }
        match post(first) {
            0 => {
                *posted += self.returned.len() as u64;
                self.returned.clear();
                Ok(())
            }
            error => Err(WorkError { status: -error.abs() }),
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} of {} bytes)", self.count, self.size)
    }
}

/// Where a connection receives.
#[derive(Debug)]
pub(crate) enum Receives {
    Own(Ring),
    Shared(Rc<RefCell<SharedRing>>),
}

impl Receives {
    /// Posts what was given back.
    ///
    /// # Safety
    /// `pair` is the open queue pair of the connection.
    pub(crate) unsafe fn post(
        &mut self,
        pair: *mut ibv_qp,
        posted: &mut u64,
    ) -> Result<(), WorkError> {
        match self {
            Self::Own(ring) => ring.post(
                |first| {
                    let mut bad = std::ptr::null_mut();
                    // SAFETY: an open queue pair; the list and what it points to are the ring's,
                    // whose memory outlives the queue pair.
                    unsafe { ibv_post_recv(pair, first, &raw mut bad) }
                },
                posted,
            ),
            Self::Shared(shared) => shared.borrow_mut().post(posted),
        }
    }

    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        match self {
            Self::Own(ring) => ring.give_back(buffer),
            Self::Shared(shared) => shared.borrow_mut().ring.give_back(buffer),
        }
    }

    /// Shows the bytes of a buffer.
    pub(crate) fn with<R>(&self, buffer: &Buffer, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Own(ring) => look(ring.bytes(buffer, len)),
            Self::Shared(shared) => look(shared.borrow().ring.bytes(buffer, len)),
        }
    }
}

/// A shared receive queue with its buffers, of one thread.
pub(crate) struct SharedRing {
    ring: Ring,
    queue: *mut ibv_srq,
    table: &'static Table,
    device: Arc<Device>,
    size: u32,
}

thread_local! {
    static SHARED: RefCell<Vec<Weak<RefCell<SharedRing>>>> = const { RefCell::new(Vec::new()) };
}

impl SharedRing {
    /// The ring of this thread for a device and a size of buffers; made, with `count` buffers, when
    /// there is none.
    pub(crate) fn of(
        device: &Arc<Device>,
        table: &'static Table,
        count: u32,
        size: u32,
    ) -> Result<Rc<RefCell<Self>>, RdmaError> {
        SHARED.with_borrow_mut(|all| {
            all.retain(|ring| ring.strong_count() > 0);
            let fits = |ring: &Rc<RefCell<Self>>| {
                let ring = ring.borrow();
                Arc::ptr_eq(&ring.device, device) && ring.size == size
            };
            if let Some(ring) = all.iter().filter_map(Weak::upgrade).find(fits) {
                return Ok(ring);
            }
            let ring = Rc::new(RefCell::new(Self::new(device, table, count, size)?));
            all.push(Rc::downgrade(&ring));
            Ok(ring)
        })
    }

    fn new(
        device: &Arc<Device>,
        table: &'static Table,
        count: u32,
        size: u32,
    ) -> Result<Self, RdmaError> {
        let most = u32::try_from(device.attributes().max_srq_wr).unwrap_or(0);
        let count = count.min(most);
        if count == 0 {
            return Err(RdmaError::Limit { what: "shared receives", most, needed: 1 });
        }
        let ring = Ring::new(device, count, size)?;
        let mut attributes = ibv_srq_init_attr {
            srq_context: std::ptr::null_mut(),
            attr: ibv_srq_attr { max_wr: count, max_sge: 1, srq_limit: 0 },
        };
        // SAFETY: an open domain; the attributes outlive the call.
        let queue = unsafe { (table.ibv_create_srq)(device.handle(), &raw mut attributes) };
        if queue.is_null() {
            return Err(RdmaError::last("making a shared receive queue"));
        }
        let mut shared = Self { ring, queue, table, device: Arc::clone(device), size };
        shared.post(&mut 0).map_err(|error| RdmaError::Call {
            what: "posting shared receives",
            reason: std::io::Error::other(error),
        })?;
        Ok(shared)
    }

    pub(crate) fn queue(&self) -> *mut ibv_srq {
        self.queue
    }

    fn post(&mut self, posted: &mut u64) -> Result<(), WorkError> {
        let queue = self.queue;
        self.ring.post(
            |first| {
                let mut bad = std::ptr::null_mut();
                // SAFETY: an open shared receive queue; the list and what it points to are the
                // ring's, whose memory outlives the queue.
                unsafe { ibv_post_srq_recv(queue, first, &raw mut bad) }
            },
            posted,
        )
    }
}

impl Drop for SharedRing {
    fn drop(&mut self) {
        // SAFETY: every queue pair of it is gone: each held the ring.
        unsafe { (self.table.ibv_destroy_srq)(self.queue) };
    }
}

impl fmt::Debug for SharedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedRing({:?})", self.ring)
    }
}
