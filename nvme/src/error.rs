//! What goes wrong.

use crate::{sysfs::Bdf, wire::IdentifyError};
use std::{io, path::PathBuf};
use thiserror::Error;

/// A controller cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not an address of a PCI function.
    #[error("{0:?} is not an address of a PCI function, like 0000:03:00.0")]
    Address(String),
    /// There is no such function.
    #[error("there is no PCI function {0}")]
    Missing(Bdf),
    /// It is something else.
    #[error("PCI function {bdf} is not an NVMe controller (its class is {class:#08x})")]
    NotNvme {
        /// Which.
        bdf: Bdf,
        /// Its class code.
        class: u32,
    },
    /// Another driver has it.
    #[error("{bdf} is not bound to vfio-pci but to {}", driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// Which.
        bdf: Bdf,
        /// What it is bound to.
        driver: Option<String>,
    },
    /// Its memory accesses are not translated.
    #[error("{0} is in no IOMMU group: this machine has no IOMMU, or it is off")]
    NoIommu(Bdf),
    /// Other functions of its group are used by other drivers.
    #[error("the IOMMU group {group} of {bdf} is not viable: {} in it too", others.join(", "))]
    NotViable {
        /// Which.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// The other functions, with their drivers.
        others: Vec<String>,
    },
    /// Somebody has it open.
    #[error("{0} is in use by another process")]
    Busy(Bdf),
    /// The kernel does not let this user.
    #[error("no permission to open {}: {source}", path.display())]
    Permission {
        /// What.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel's answer to something else.
    #[error("{bdf}: {what}: {reason}")]
    Vfio {
        /// Which.
        bdf: Bdf,
        /// What was asked for.
        what: &'static str,
        /// The answer.
        reason: String,
    },
    /// Memory for queues cannot be mapped for the device.
    #[error("{bdf}: memory for its queues: {source}")]
    Memory {
        /// Which.
        bdf: Bdf,
        /// Why.
        source: MapError,
    },
    /// The controller does not do what it should.
    #[error("{bdf}: the controller {fault}")]
    Controller {
        /// Which.
        bdf: Bdf,
        /// What it does.
        fault: Fault,
    },
    /// A namespace cannot be used.
    #[error("{bdf}: namespace {nsid}: {reason}")]
    Namespace {
        /// Which controller.
        bdf: Bdf,
        /// Which namespace.
        nsid: u32,
        /// Why.
        reason: IdentifyError,
    },
    /// This process uses the namespace already.
    #[error("{bdf}: namespace {nsid} is exported already")]
    InUse {
        /// Which controller.
        bdf: Bdf,
        /// Which namespace.
        nsid: u32,
    },
    /// It has no namespace that could be used.
    #[error("{0} has no active namespace")]
    Empty(Bdf),
}

impl OpenError {
    /// What to do about it, as lines to paste where there are any.
    pub fn fix(&self) -> String {
        match self {
            Self::Address(_) | Self::Missing(_) | Self::NotNvme { .. } => {
                "lspci -D -d ::0108 lists NVMe controllers".to_owned()
            }
            Self::NotBound { bdf, driver } => {
                let unbind = match driver {
                    Some(_) => format!("echo {bdf} > /sys/bus/pci/devices/{bdf}/driver/unbind && "),
                    None => String::new(),
                };
                format!(
                    "as root, once nothing on it is mounted: modprobe vfio-pci && {unbind}\
                     echo vfio-pci > /sys/bus/pci/devices/{bdf}/driver_override && \
                     echo {bdf} > /sys/bus/pci/drivers_probe"
                )
            }
            Self::NoIommu(_) => "turn VT-d or AMD-Vi on in the firmware, and boot the kernel with \
                                 intel_iommu=on (Intel) or without amd_iommu=off (AMD)"
                .to_owned(),
            Self::NotViable { .. } => {
                "bind the other functions of the group to vfio-pci too, or unbind them from their \
                 drivers; or put the controller into another slot"
                    .to_owned()
            }
            Self::Busy(bdf) => format!("fuser -v /dev/vfio/* shows who has {bdf}"),
            Self::Permission { path, .. } => {
                format!("run as root, or let this user: chown USER {}", path.display())
            }
            Self::Vfio { .. } => "dmesg may say more".to_owned(),
            Self::Memory { source, .. } => source.fix().to_owned(),
            Self::Controller { .. } => {
                "nvme-cli can look at it once the kernel's nvme driver has it again".to_owned()
            }
            Self::Namespace { reason, .. } => match reason {
                IdentifyError::Inactive => "name an active namespace: nvme list-ns says which are",
                _ => "format it anew (all data is lost): nvme format --lbaf=N",
            }
            .to_owned(),
            Self::InUse { bdf, .. } => format!("name another namespace: nvme:{bdf}/N"),
            Self::Empty(_) => "make one and attach it: nvme create-ns, nvme attach-ns".to_owned(),
        }
    }
}

/// What is wrong with a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It does not answer any more.
    #[error("is gone")]
    Gone,
    /// It reports a fatal status.
    #[error("reports a fatal status")]
    Fatal,
    /// It does not become ready or idle.
    #[error("does not become {} within {millis} ms", if *ready { "ready" } else { "idle" })]
    Slow {
        /// What it should become.
        ready: bool,
        /// How long was waited.
        millis: u64,
    },
    /// It has no NVM command set.
    #[error("has no NVM command set")]
    CommandSet,
    /// It takes only larger pages than are used here.
    #[error("takes no memory pages of less than {0} bytes")]
    Page(u32),
    /// It has not the registers it needs.
    #[error("has {0} bytes of registers that can be mapped, which is too little")]
    Registers(u64),
    /// An admin command failed.
    #[error("fails {what}: {status}")]
    Admin {
        /// Which command.
        what: &'static str,
        /// How it ended.
        status: crate::wire::Status,
    },
    /// An admin command takes too long.
    #[error("does not answer {0}")]
    Silent(&'static str),
}

/// Memory cannot be mapped for devices.
#[derive(Debug, Error)]
pub enum MapError {
    /// It overlaps memory that is mapped, or wraps around.
    #[error("{len} bytes at {start:#x} overlap memory that is mapped already")]
    Overlap {
        /// First byte.
        start: usize,
        /// Bytes.
        len: usize,
    },
    /// The IOMMU's addresses are used up.
    #[error("the IOMMU has no {0} bytes of addresses left")]
    Exhausted(usize),
    /// The kernel does not allow it.
    #[error("the kernel does not map {len} bytes: {reason}")]
    Kernel {
        /// Bytes.
        len: usize,
        /// Its answer.
        reason: String,
    },
    /// There is no memory to map.
    #[error("no memory: {0}")]
    Memory(io::Error),
}

impl MapError {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Kernel { .. } => {
                "raise the limit of locked memory (ulimit -l, or LimitMEMLOCK= of the unit)"
            }
            _ => "restart the program; if it happens again, it is a bug",
        }
    }
}
