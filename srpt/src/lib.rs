//! SRP over RDMA.

pub mod channel;
pub mod login;
pub mod names;
pub mod registry;
