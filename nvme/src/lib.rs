//! An NVMe driver in user space: a controller that the kernel's VFIO gives to this process.
//!
//! * [`wire`], [`iova`] and [`prp`] are plain values without a device: what goes over the wire, which
//!   addresses the device sees memory under, and how scatter lists become pages of commands.
//! * A [`Space`] is an address space behind the IOMMU. Memory is mapped into it for as long as a
//!   [`Mapping`] lives.
//! * A [`Controller`] is opened, identified and shared; a [`Pair`] of queues is one thread's own.
//!
//! This is the one place that calls vfio-ioctls. Everything that a device says is checked: a
//! completion of a command that was not given, a status that is fatal, registers of all ones lead to
//! a reset, and where that does not help, to errors; never to a panic. A device reaches only memory
//! that was mapped for it.
//!
//! With the feature `model` there is a controller in software, for tests.
//!
//! Left out: SGLs, metadata and protection information, several paths to a namespace, asynchronous
//! events (a namespace that changes its size is found when it is asked), and the device's own
//! reservations.

mod admin;
mod controller;
mod device;
mod error;
mod event;
pub mod iova;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod pair;
pub mod prp;
mod registers;
mod shared;
mod space;
mod supervisor;
mod sysfs;
pub mod wire;

pub use controller::{Controller, Options, controllers};
pub use error::{Fault, MapError, OpenError};
pub use pair::{Blocks, Kind, Pair, Started};
pub use space::{Interface, Mapping, Space};
pub use supervisor::settle;
pub use sysfs::Bdf;
pub use wire::{ControllerData, NamespaceData};
