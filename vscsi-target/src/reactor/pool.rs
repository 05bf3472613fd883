//! The buffer pool of a reactor: page-aligned buffers in power-of-two sizes, reused.
#![allow(unsafe_code)] // skeleton

use super::sg::Segment;
use std::{cell::RefCell, rc::Rc};

/// A pool. Cloning gives another handle to the same pool.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Rc<RefCell<usize>>,
}

/// A buffer of a pool; dropping it gives it back. Aligned to 4096 bytes.
#[derive(Debug)]
pub struct PoolBuf {
    data: Box<[u8]>,
}

/// A buffer on its way through another thread.
#[derive(Debug)]
pub struct DetachedBuf {
    data: Box<[u8]>,
}

impl Pool {
    /// A pool that lends at most `limit` bytes at a time.
    pub fn new(limit: usize) -> Self {
        Self { inner: Rc::new(RefCell::new(limit)) }
    }

    /// A buffer of at least `len` bytes with any content, or `None` when the limit is reached.
    pub fn take(&self, len: usize) -> Option<PoolBuf> {
        let _ = &self.inner;
        Some(PoolBuf { data: vec![0; len].into() })
    }

    /// Takes back a buffer that went through another thread.
    pub fn attach(&self, buffer: DetachedBuf) -> PoolBuf {
        PoolBuf { data: buffer.data }
    }
}

impl PoolBuf {
    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Its first `len` bytes (at most the capacity) as a segment.
    pub fn segment(&mut self, len: usize) -> Segment {
        Segment { base: self.data.as_mut_ptr(), len: len.min(self.data.len()) }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Makes it sendable to another thread.
    pub fn detach(self) -> DetachedBuf {
        DetachedBuf { data: self.data }
    }
}

impl DetachedBuf {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The content, to change it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}
