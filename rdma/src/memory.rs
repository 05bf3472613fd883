//! Memory of both sides, as work requests name it.
#![allow(unsafe_code)] // The contract of what may be given to a device.

/// Registered memory of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: usize,
    /// Local key of the registration.
    pub key: u32,
}

/// Memory that the peer advertised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Address as the peer gave it: absolute, or relative to the registration.
    pub addr: u64,
    /// Remote key.
    pub key: u32,
    /// Length in bytes.
    pub len: u32,
}

/// What owns registered memory that a device may access.
///
/// # Safety
/// [`Registered::local`] always gives the same memory. Until the value is dropped it stays mapped
/// and registered with the device of the connection it is given to, and nobody else writes to it
/// or, while the device may write to it (a read), looks at it.
pub unsafe trait Registered {
    /// The memory.
    fn local(&self) -> Local;
}
