//! TCMU: commands of the kernel's own SCSI fabrics, by the kernel's target in user space.
//!
//! Whatever the kernel's target (LIO) can be reached by, `tcm_loop`, vhost-scsi, Fibre Channel,
//! ibmvscsis on Power, reaches a backstore of type `user`; for each the kernel has a UIO device with a
//! ring of commands and their data. A [`watch::Watcher`] finds those whose `dev_config` names a logical
//! unit of this process, and makes a [`disk::Disk`] of each: an endpoint that takes commands from the
//! [`ring::Ring`] and hands them to the core, with the data where the kernel has put it.

mod area;
pub mod disk;
pub mod layout;
pub mod name;
pub mod netlink;
#[cfg(test)]
mod rig;
pub mod ring;
pub mod socket;
mod sysfs;
pub mod watch;
