//! NVMe on the wire: registers, submission and completion queue entries, Identify data.
//!
//! Clauses are those of the NVM Express Base Specification 2.0 and the NVM Command Set
//! Specification 1.0. Everything is little-endian. What comes from a controller is parsed into
//! plain values; no byte of it panics, and codes that are not known are kept as they are.

mod completion;
mod identify;
mod registers;
mod submission;

pub use completion::{Cqe, Status};
pub use identify::{ControllerData, IdentifyError, NamespaceData, active_namespaces};
pub use registers::{Cap, Configuration, Csts, Version, offset};
pub use submission::{Sqe, admin};

/// Size of an Identify data structure and of a list of namespaces, in bytes.
pub const IDENTIFY_BYTES: usize = 4096;

/// A little-endian field of 1 to 8 bytes; bytes past the end count as zero.
fn le(bytes: &[u8], at: usize, width: usize) -> u64 {
    (0..width).fold(0, |n, i| n | u64::from(bytes.get(at + i).copied().unwrap_or(0)) << (8 * i))
}
