//! The functions of librdmacm and libibverbs, found when RDMA is first used.
#![allow(unsafe_code)] // `dlopen`, `dlsym`, and functions of C found by name.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    sync::OnceLock,
};

use rdma_sys::{
    _compat_ibv_port_attr, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr,
    ibv_mr, ibv_pd, ibv_qp_init_attr, ibv_srq, ibv_srq_init_attr, ibv_wc_status, rdma_cm_event,
    rdma_cm_id, rdma_conn_param, rdma_event_channel, rdma_port_space,
};
use thiserror::Error;

/// A library or a function of it cannot be found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{library} cannot be used: {reason}")]
pub struct Missing {
    /// File name of the library.
    pub library: &'static str,
    /// What the dynamic linker says.
    pub reason: String,
}

impl Missing {
    /// What to do about it.
    pub fn fix(&self) -> String {
        "install the libraries of rdma-core (Debian: librdmacm1 ibverbs-providers; \
         Fedora: librdmacm)"
            .to_owned()
    }
}

/// Loads the libraries, once a process.
///
/// # Errors
/// What is missing.
pub fn libraries() -> Result<(), Missing> {
    table().map(|_| ())
}

/// The functions, or why there are none.
pub(crate) fn table() -> Result<&'static Table, Missing> {
    static TABLE: OnceLock<Result<Table, Missing>> = OnceLock::new();
    TABLE.get_or_init(Table::load).as_ref().map_err(Clone::clone)
}

/// Declares the table with one field a function, and how it is loaded.
macro_rules! table {
    ($($library:literal { $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)* })*) => {
        /// One field for each function, of the same name.
        pub(crate) struct Table {
            $($(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
        }

        impl Table {
            fn load() -> Result<Self, Missing> {
                $($(
                    let $name = {
                        const NAME: &CStr = match CStr::from_bytes_with_nul(
                            concat!(stringify!($name), "\0").as_bytes()
                        ) {
                            Ok(name) => name,
                            Err(_) => c"",
                        };
                        let found = find($library, NAME)?;
                        // SAFETY: the symbol is the C function of that name, whose signature in
                        // rdma-core's headers is the one declared here; the library stays loaded
                        // for the life of the process.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(found)
                        }
                    };
                )*)*
                Ok(Self { $($($name,)*)* })
            }
        }
    };
}

table! {
    "librdmacm.so.1" {
        rdma_create_event_channel: fn() -> *mut rdma_event_channel;
        rdma_destroy_event_channel: fn(*mut rdma_event_channel);
        rdma_create_id: fn(
            *mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, rdma_port_space::Type
        ) -> c_int;
        rdma_destroy_id: fn(*mut rdma_cm_id) -> c_int;
        rdma_bind_addr: fn(*mut rdma_cm_id, *mut libc::sockaddr) -> c_int;
        rdma_listen: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_get_cm_event: fn(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        rdma_ack_cm_event: fn(*mut rdma_cm_event) -> c_int;
        rdma_migrate_id: fn(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        rdma_create_qp: fn(*mut rdma_cm_id, *mut ibv_pd, *mut ibv_qp_init_attr) -> c_int;
        rdma_destroy_qp: fn(*mut rdma_cm_id);
        rdma_accept: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_reject: fn(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        rdma_disconnect: fn(*mut rdma_cm_id) -> c_int;
        rdma_resolve_addr: fn(
            *mut rdma_cm_id, *mut libc::sockaddr, *mut libc::sockaddr, c_int
        ) -> c_int;
        rdma_resolve_route: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_connect: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
    }
    "libibverbs.so.1" {
        ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
        ibv_free_device_list: fn(*mut *mut ibv_device);
        ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
        ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
        ibv_close_device: fn(*mut ibv_context) -> c_int;
        ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        ibv_query_port: fn(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int;
        ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
        ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
        ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
        ibv_create_cq: fn(
            *mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int
        ) -> *mut ibv_cq;
        ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
        ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut ibv_cq, u32);
        ibv_create_srq: fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
        ibv_destroy_srq: fn(*mut ibv_srq) -> c_int;
        ibv_wc_status_str: fn(ibv_wc_status::Type) -> *const c_char;
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

/// Finds a function; the library is loaded at the first one.
fn find(library: &'static str, name: &CStr) -> Result<*mut c_void, Missing> {
    let file = std::ffi::CString::new(library).unwrap_or_default();
    // SAFETY: both arguments are C strings. Initialisers of rdma-core run here: they read files and
    // environment variables, and touch nothing of this program.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(Missing { library, reason: linker_error() });
    }
    // SAFETY: a handle of `dlopen`, which is never closed, and a C string.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        return Err(Missing { library, reason: linker_error() });
    }
    Ok(found)
}

fn linker_error() -> String {
    // SAFETY: gives a string of this thread's last error, or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: not null, so a C string that is valid until the next call of this thread.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_development_machine_have_every_function() {
        assert_eq!(libraries(), Ok(()));
    }

    #[test]
    fn missing_library_and_missing_function_are_told_apart_by_their_reason() {
        let library = find("libvscsi-none.so.9", c"x").unwrap_err();
        assert!(library.to_string().contains("libvscsi-none.so.9"), "{library}");
        let function = find("libibverbs.so.1", c"ibv_of_no_version").unwrap_err();
        assert!(function.reason.contains("ibv_of_no_version"), "{function}");
    }
}
