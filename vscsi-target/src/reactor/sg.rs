//! Scatter lists: where a command's data is in memory.
#![allow(unsafe_code)] // A segment is Send: see below.

/// A piece of memory that somebody else owns: a pool buffer, a backend's memory, guest memory.
///
/// A segment is only an address. Whoever stores one in a task or a completion keeps the owner
/// alive with it, and nobody reads or writes through it without that.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: an address and a length; using the memory is unsafe and justified at each place.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment over a buffer. The buffer must outlive every use of the segment.
    pub fn of(buffer: &mut [u8]) -> Self {
        Self { base: buffer.as_mut_ptr(), len: buffer.len() }
    }
}
