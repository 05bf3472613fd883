//! Memory that a device moves data from and to.
#![allow(unsafe_code)] // Promises to the device that memory stays where it is.

use rdma::{Device, Local, Registered, Registration};
use std::io;
use vscsi_target::reactor::pool::PoolBuf;

/// Memory of the target.
#[derive(Debug)]
pub enum Memory {
    /// A buffer of the reactor's pool.
    Pool(PoolBuf),
    /// A copy made when the pool was exhausted.
    Heap(Box<[u8]>),
}

impl Memory {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Pool(buffer) => buffer.bytes(),
            Self::Heap(bytes) => bytes,
        }
    }

    /// Its bytes, to change them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Pool(buffer) => buffer.bytes_mut(),
            Self::Heap(bytes) => bytes,
        }
    }
}

/// Memory that is registered.
#[derive(Debug)]
pub struct Owned {
    local: Local,
    /// Ends before the memory does; a pool buffer's slab keeps its own.
    _registration: Option<Registration>,
    memory: Memory,
}

impl Owned {
    /// Registers memory with a device. A slab of pool buffers is registered once.
    ///
    /// # Errors
    /// What the system says: ENOMEM at the limit of locked memory, ENODEV when the device is gone.
    pub fn of(mut memory: Memory, device: &Device) -> io::Result<Self> {
        let mut registration = None;
        let key = match &mut memory {
            Memory::Pool(buffer) => buffer.dma_key(device.domain(), |base, len| {
                // SAFETY: the slab drops what this gives before it unmaps its memory.
                let registration = unsafe { device.register(base, len) }?;
                Ok((registration.key().into(), Box::new(registration)))
            })? as u32,
            Memory::Heap(bytes) => {
                // SAFETY: the box goes into the same value and is dropped after the registration.
                let of_bytes = unsafe { device.register(bytes.as_mut_ptr(), bytes.len()) }?;
                let key = of_bytes.key();
                registration = Some(of_bytes);
                key
            }
        };
        let bytes = memory.bytes_mut();
        let local = Local { addr: bytes.as_mut_ptr() as u64, len: bytes.len(), key };
        Ok(Self { local, _registration: registration, memory })
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> Memory {
        self.memory
    }
}

// SAFETY: the memory is this value's alone, does not move with it, and is registered with the device
// it was made for until this is dropped: by the registration in it, or by the slab, which lives as
// long as its buffers.
unsafe impl Registered for Owned {
    fn local(&self) -> Local {
        self.local
    }
}
