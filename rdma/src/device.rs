//! Devices: protection domains, limits and registrations, shared by all connections of a process.
//!
//! A device is opened when the first connection comes by it, and stays until the system removes it,
//! so that memory stays registered while connections come and go.
#![allow(unsafe_code)] // Handles of C, freed in the order that rdma-core wants.

use std::{
    fmt, io, mem,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use rdma_sys::{
    ibv_access_flags, ibv_context, ibv_device_attr, ibv_mr, ibv_pd, ibv_transport_type, rdma_cm_id,
    rdma_port_space,
};

use crate::{
    error::RdmaError,
    listener::Channel,
    table::{Table, table},
};

/// A device with its protection domain.
pub struct Device {
    domain: u32,
    name: String,
    table: &'static Table,
    context: *mut ibv_context,
    domain_handle: *mut ibv_pd,
    /// An id that is bound to the device keeps rdma-core from closing it.
    anchor: *mut rdma_cm_id,
    /// The events of the anchor come here.
    _channel: Arc<Channel>,
    attributes: ibv_device_attr,
    is_iwarp: bool,
    registered: Mutex<Registered>,
}

#[derive(Default)]
struct Registered {
    removed: bool,
    all: Vec<Weak<Handle>>,
}

// SAFETY: the handles are those of rdma-core, whose functions may be called from any thread; what is
// mutable on our side is behind a mutex.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Memory registered with a device; dropping it takes the registration back.
#[derive(Debug)]
pub struct Registration {
    _handle: Arc<Handle>,
    key: u32,
    remote_key: u32,
}

/// A registration that either its owner or the removal of the device ends.
struct Handle {
    table: &'static Table,
    region: Mutex<*mut ibv_mr>,
}

// SAFETY: as for `Device`.
unsafe impl Send for Handle {}
// SAFETY: as for `Device`.
unsafe impl Sync for Handle {}

impl Handle {
    fn end(&self) {
        let mut region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let region = mem::replace(&mut *region, std::ptr::null_mut());
        if !region.is_null() {
            // SAFETY: a region of `ibv_reg_mr` that was not freed yet, of a context that is open:
            // the device outlives its registrations or ends them when it goes.
            unsafe { (self.table.ibv_dereg_mr)(region) };
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

impl Registration {
    /// The local key.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// The remote key, of use to a peer for memory that was registered for it.
    pub fn remote_key(&self) -> u32 {
        self.remote_key
    }
}

/// Devices in use.
static DEVICES: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());

/// Names devices: never used twice.
static NEXT_DOMAIN: AtomicU32 = AtomicU32::new(1);

impl Device {
    /// The device that an id of `channel` belongs to.
    ///
    /// # Safety
    /// `id` is an id of librdmacm that is bound to a device.
    pub(crate) unsafe fn of(
        id: *mut rdma_cm_id,
        channel: &Arc<Channel>,
    ) -> Result<Arc<Self>, RdmaError> {
        // SAFETY: a valid id, as the caller says.
        let context = unsafe { (*id).verbs };
        if context.is_null() {
            let reason = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(RdmaError::Call { what: "a connection without a device", reason });
        }
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.iter().find(|device| device.context == context) {
            return Ok(Arc::clone(device));
        }
        // SAFETY: as above.
        let device = Arc::new(unsafe { Self::open(id, context, channel) }?);
        devices.push(Arc::clone(&device));
        Ok(device)
    }

    /// # Safety
    /// As for [`Device::of`]; `context` is the id's.
    unsafe fn open(
        id: *mut rdma_cm_id,
        context: *mut ibv_context,
        channel: &Arc<Channel>,
    ) -> Result<Self, RdmaError> {
        let table = table()?;
        // SAFETY: plain numbers and arrays.
        let mut attributes: ibv_device_attr = unsafe { mem::zeroed() };
        // SAFETY: an open context and a place for the answer.
        if unsafe { (table.ibv_query_device)(context, &raw mut attributes) } != 0 {
            return Err(RdmaError::last("asking the device for its limits"));
        }
        // SAFETY: an open context has a device.
        let (name, transport) = unsafe {
            let device = (*context).device;
            let name = std::ffi::CStr::from_ptr((table.ibv_get_device_name)(device));
            (name.to_string_lossy().into_owned(), (*device).transport_type)
        };
        // SAFETY: a valid id whose local address is known since it is bound.
        let anchor = unsafe { anchor(table, id, channel) }?;
        // SAFETY: an open context.
        let domain_handle = unsafe { (table.ibv_alloc_pd)(context) };
        if domain_handle.is_null() {
            let error = RdmaError::last("making a protection domain");
            // SAFETY: the id was made above and is used by nobody.
            unsafe { (table.rdma_destroy_id)(anchor) };
            return Err(error);
        }
        Ok(Self {
            domain: NEXT_DOMAIN.fetch_add(1, Ordering::Relaxed),
            name,
            table,
            context,
            domain_handle,
            anchor,
            _channel: Arc::clone(channel),
            attributes,
            is_iwarp: transport == ibv_transport_type::IBV_TRANSPORT_IWARP,
            registered: Mutex::default(),
        })
    }

    /// The device whose anchor this is was removed by the system.
    pub(crate) fn removed(anchor: *mut rdma_cm_id) {
        let gone = {
            let devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
            devices.iter().find(|device| device.anchor == anchor).map(Arc::clone)
        };
        if let Some(device) = gone {
            device.retire();
        }
    }

    /// The device was removed by the system: the next connection opens what has come in its place,
    /// and what is registered is taken back. Connections that are left fail.
    pub(crate) fn retire(&self) {
        let gone = {
            let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
            let at = devices.iter().position(|device| device.domain == self.domain);
            at.map(|at| devices.swap_remove(at))
        };
        self.take_back();
        // Perhaps the last one who held it, so not while the devices are locked.
        drop(gone);
    }

    /// Ends all registrations, and takes no new ones.
    fn take_back(&self) {
        let all = {
            let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            registered.removed = true;
            mem::take(&mut registered.all)
        };
        for handle in all.iter().filter_map(Weak::upgrade) {
            handle.end();
        }
    }

    /// Names the device among all that this process uses or has used.
    pub fn domain(&self) -> u32 {
        self.domain
    }

    /// Its name, as `rdma link` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it speaks iWARP. There the peer names the sink of an RDMA Read in its answer, so that
    /// memory read into is registered for remote writing (RFC 5040 5.2).
    pub fn is_iwarp(&self) -> bool {
        self.is_iwarp
    }

    /// Registers memory for messages, and as source and sink of RDMA operations that this side
    /// starts.
    ///
    /// # Errors
    /// What the system says: ENOMEM at the limit of locked memory, ENODEV when the device is gone.
    ///
    /// # Safety
    /// The memory belongs to the caller and stays mapped until the registration is dropped.
    pub unsafe fn register(&self, base: *mut u8, len: usize) -> io::Result<Registration> {
        let access = if self.is_iwarp {
            ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
        } else {
            ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
        };
        // SAFETY: as the caller promises.
        unsafe { self.register_with(base, len, access) }
    }

    /// Registers memory that a peer may read and write, as initiators do.
    ///
    /// # Errors
    /// As [`Device::register`].
    ///
    /// # Safety
    /// As [`Device::register`]; and nobody relies on what is in the memory while a peer knows its
    /// key.
    pub unsafe fn register_for_peer(&self, base: *mut u8, len: usize) -> io::Result<Registration> {
        let access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
            | ibv_access_flags::IBV_ACCESS_REMOTE_READ
            | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        // SAFETY: as the caller promises.
        unsafe { self.register_with(base, len, access) }
    }

    /// # Safety
    /// As [`Device::register`].
    unsafe fn register_with(
        &self,
        base: *mut u8,
        len: usize,
        access: ibv_access_flags,
    ) -> io::Result<Registration> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.removed {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // SAFETY: the domain is open; the memory is the caller's, as promised.
        let region = unsafe {
            (self.table.ibv_reg_mr)(self.domain_handle, base.cast(), len, access.0 as libc::c_int)
        };
        if region.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a region just made.
        let (key, remote_key) = unsafe { ((*region).lkey, (*region).rkey) };
        let handle = Arc::new(Handle { table: self.table, region: Mutex::new(region) });
        registered.all.retain(|handle| handle.strong_count() > 0);
        registered.all.push(Arc::downgrade(&handle));
        Ok(Registration { _handle: handle, key, remote_key })
    }

    pub(crate) fn context(&self) -> *mut ibv_context {
        self.context
    }

    pub(crate) fn handle(&self) -> *mut ibv_pd {
        self.domain_handle
    }

    pub(crate) fn attributes(&self) -> &ibv_device_attr {
        &self.attributes
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.take_back();
        // SAFETY: no connection uses the device any more, and nothing is registered: first the
        // domain goes, then what kept the context open.
        unsafe {
            (self.table.ibv_dealloc_pd)(self.domain_handle);
            close_in_the_kernel(self.context);
            (self.table.rdma_destroy_id)(self.anchor);
        }
    }
}

/// Closes the device to the kernel, though rdma-core keeps its context.
///
/// A device is dropped only when the system has removed it. rdma-core closes the context when it
/// sees that another device is there, but not while there is none; and for drivers that cannot take
/// the device away from a process (soft-RoCE) the kernel waits for that with the removal, for ever.
/// So the descriptors become those of a file that answers nothing, and rdma-core closes them in its
/// own time.
///
/// # Safety
/// The context is open, and nothing of it is used any more.
unsafe fn close_in_the_kernel(context: *mut ibv_context) {
    // SAFETY: plain system calls on descriptors that the context owns, whose numbers stay its own.
    unsafe {
        let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if nothing >= 0 {
            for fd in [(*context).async_fd, (*context).cmd_fd] {
                libc::dup3(nothing, fd, libc::O_CLOEXEC);
            }
            libc::close(nothing);
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// An id bound to the local address of `id`, with a port of its own.
///
/// # Safety
/// `id` is an id of librdmacm with a local address.
unsafe fn anchor(
    table: &Table,
    id: *mut rdma_cm_id,
    channel: &Channel,
) -> Result<*mut rdma_cm_id, RdmaError> {
    let mut anchor = std::ptr::null_mut();
    // SAFETY: an open channel and a place for the id; the address is a copy of the id's, which is
    // that of an IPv4 or IPv6 socket, both of which have the port at the same place.
    unsafe {
        let made = (table.rdma_create_id)(
            channel.raw(),
            &raw mut anchor,
            std::ptr::null_mut(),
            rdma_port_space::RDMA_PS_TCP,
        );
        if made != 0 {
            return Err(RdmaError::last("making a connection manager id"));
        }
        let mut address: libc::sockaddr_storage = (*id).route.addr.src_addr_union.src_storage;
        (*(&raw mut address).cast::<libc::sockaddr_in>()).sin_port = 0;
        if (table.rdma_bind_addr)(anchor, (&raw mut address).cast()) != 0 {
            let error = RdmaError::last("binding to the device");
            (table.rdma_destroy_id)(anchor);
            return Err(error);
        }
    }
    Ok(anchor)
}
