//! Pool buffers as a device reaches them.
#![allow(unsafe_code)] // What makes a pool buffer memory for a device.

use crate::link::Memory;
use rdma::{Device, Local, Registered};
use std::io;
use vscsi_target::reactor::pool::PoolBuf;

/// A pool buffer that is registered with a device.
#[derive(Debug)]
pub struct DmaBuf {
    buffer: PoolBuf,
    len: usize,
    key: u32,
}

impl DmaBuf {
    /// Registers what the first `len` bytes of a buffer lie in, unless it is registered already.
    ///
    /// # Errors
    /// The device takes no more.
    pub fn new(buffer: PoolBuf, len: usize, device: &Device) -> io::Result<Self> {
        let key = buffer.dma_key(device.domain(), |base, len| {
            // SAFETY: a slab of the pool, mapped until the guard that it is given is dropped.
            let registration = unsafe { device.register(base, len) }?;
            Ok((u64::from(registration.key()), Box::new(registration)))
        })?;
        Ok(Self { len: len.min(buffer.capacity()), key: key as u32, buffer })
    }
}

impl Memory for DmaBuf {
    fn bytes(&self) -> &[u8] {
        self.buffer.bytes().get(..self.len).unwrap_or_default()
    }

    fn into_buffer(self) -> PoolBuf {
        self.buffer
    }
}

// SAFETY: the buffer stays where it is as long as this value has it, and its slab is registered until
// it is unmapped, which is after that. Nobody else has the buffer: its bytes are shown by shared
// reference only, and not while the value belongs to a connection.
unsafe impl Registered for DmaBuf {
    fn local(&self) -> Local {
        Local { addr: self.buffer.base() as u64, len: self.len, key: self.key }
    }
}
