//! Whether RDMA can be used on this machine, and why not.
#![allow(unsafe_code)] // Asks devices through rdma-core.

use std::{ffi::CStr, mem, path::Path};

use nix::sys::resource::{Resource, getrlimit};
use rdma_sys::{ibv_context, ibv_port_attr, ibv_port_state, ibv_transport_type};

use crate::table::{Missing, Table, table};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name, as `rdma link` has it.
    pub name: String,
    /// "InfiniBand" (which RoCE is too), "iWARP" or "unknown".
    pub transport: &'static str,
    /// Its ports, from 1 on; none when it cannot be opened.
    pub ports: Vec<PortFacts>,
}

/// A port of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// Whether connections can be made through it.
    pub active: bool,
    /// "InfiniBand" or "Ethernet".
    pub link_layer: &'static str,
}

/// What is there of what RDMA needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usability {
    /// The devices, or which library is missing.
    pub devices: Result<Vec<DeviceFacts>, Missing>,
    /// Whether the connection manager's device file is there.
    pub connection_manager: bool,
    /// How much memory this process may lock, in bytes; `None` for any amount.
    pub locked_memory: Option<u64>,
}

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Looks at this machine.
pub fn usability() -> Usability {
    Usability {
        devices: devices(),
        connection_manager: Path::new("/dev/infiniband/rdma_cm").exists(),
        locked_memory: locked_memory(),
    }
}

impl Usability {
    /// What keeps RDMA from working, in the order in which it is to be mended; empty when nothing
    /// does.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |what: &str, fix: &str| {
            problems.push(Problem { what: what.to_owned(), fix: fix.to_owned() });
        };
        let devices = match &self.devices {
            Ok(devices) => devices.as_slice(),
            Err(missing) => {
                problem(&missing.to_string(), &missing.fix());
                &[]
            }
        };
        if !self.connection_manager {
            problem(
                "the kernel's RDMA connection manager is not loaded (/dev/infiniband/rdma_cm)",
                "modprobe rdma_ucm",
            );
        }
        if self.devices.is_ok() && devices.is_empty() {
            problem(
                "there is no RDMA device",
                "load the adapter's driver, or use an Ethernet interface: modprobe rdma_rxe; \
                 rdma link add rxe0 type rxe netdev NETDEV (not lo)",
            );
        }
        if !devices.is_empty() && !devices.iter().any(DeviceFacts::is_active) {
            problem(
                "no port of an RDMA device is active",
                "set the interface up and connect it (ip link set NETDEV up; see rdma link)",
            );
        }
        if let Some(bytes) = self.locked_memory.filter(|bytes| *bytes < LEAST_LOCKED) {
            problem(
                &format!("this process may lock {} KiB of memory only", bytes >> 10),
                "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit",
            );
        }
        problems
    }
}

impl DeviceFacts {
    /// Whether a port of it is active.
    pub fn is_active(&self) -> bool {
        self.ports.iter().any(|port| port.active)
    }
}

/// What a connection or two need: buffers of a reactor and receive rings.
const LEAST_LOCKED: u64 = 64 << 20;

/// The devices of this machine.
///
/// # Errors
/// A library is missing.
pub fn devices() -> Result<Vec<DeviceFacts>, Missing> {
    let table = table()?;
    let mut count = 0;
    // SAFETY: a place for the count. The list is freed below, by when no device of it is used.
    let list = unsafe { (table.ibv_get_device_list)(&raw mut count) };
    if list.is_null() {
        // Without the kernel's modules there is no list at all.
        return Ok(Vec::new());
    }
    let facts = (0..usize::try_from(count).unwrap_or(0))
        .map(|at| {
            // SAFETY: the list has `count` devices.
            unsafe {
                let device = *list.add(at);
                let name = CStr::from_ptr((table.ibv_get_device_name)(device));
                let context = (table.ibv_open_device)(device);
                let facts = DeviceFacts {
                    name: name.to_string_lossy().into_owned(),
                    transport: match (*device).transport_type {
                        ibv_transport_type::IBV_TRANSPORT_IB => "InfiniBand",
                        ibv_transport_type::IBV_TRANSPORT_IWARP => "iWARP",
                        _ => "unknown",
                    },
                    ports: if context.is_null() { Vec::new() } else { ports(table, context) },
                };
                if !context.is_null() {
                    (table.ibv_close_device)(context);
                }
                facts
            }
        })
        .collect();
    // SAFETY: a list of `ibv_get_device_list`, freed once.
    unsafe { (table.ibv_free_device_list)(list) };
    Ok(facts)
}

/// # Safety
/// `context` is open.
unsafe fn ports(table: &Table, context: *mut ibv_context) -> Vec<PortFacts> {
    // SAFETY: plain numbers; an open context; the port's attributes are larger than the part of them
    // that the function fills.
    unsafe {
        let mut attributes = mem::zeroed();
        if (table.ibv_query_device)(context, &raw mut attributes) != 0 {
            return Vec::new();
        }
        (1..=attributes.phys_port_cnt)
            .filter_map(|number| {
                let mut port: ibv_port_attr = mem::zeroed();
                let asked = (table.ibv_query_port)(context, number, (&raw mut port).cast());
                (asked == 0).then_some(PortFacts {
                    active: port.state == ibv_port_state::IBV_PORT_ACTIVE,
                    link_layer: if port.link_layer == LINK_LAYER_ETHERNET {
                        "Ethernet"
                    } else {
                        "InfiniBand"
                    },
                })
            })
            .collect()
    }
}

/// `IBV_LINK_LAYER_ETHERNET`, a macro in C.
const LINK_LAYER_ETHERNET: u8 = 2;

/// The limit of locked memory; none for who has CAP_IPC_LOCK.
fn locked_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> CAP_IPC_LOCK & 1 == 1 {
        return None;
    }
    getrlimit(Resource::RLIMIT_MEMLOCK)
        .ok()
        .map(|(soft, _)| soft)
        .filter(|soft| *soft != nix::sys::resource::RLIM_INFINITY)
}

/// The capability that lifts the limit of locked memory.
const CAP_IPC_LOCK: u32 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn device(active: bool) -> DeviceFacts {
        let port = PortFacts { active, link_layer: "Ethernet" };
        DeviceFacts { name: "rxe0".to_owned(), transport: "InfiniBand", ports: vec![port] }
    }

    fn usable() -> Usability {
        Usability { devices: Ok(vec![device(true)]), connection_manager: true, locked_memory: None }
    }

    #[test]
    fn complete_machine_has_no_problems() {
        assert_eq!(usable().problems(), []);
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_mend() {
        let fixes = |usability: Usability| -> Vec<String> {
            usability.problems().into_iter().map(|problem| problem.fix).collect()
        };
        let missing = Missing { library: "librdmacm.so.1", reason: "not found".to_owned() };
        let found = fixes(Usability { devices: Err(missing), ..usable() });
        assert!(found.len() == 1 && found[0].contains("librdmacm1"), "{found:?}");
        let found = fixes(Usability { connection_manager: false, ..usable() });
        assert_eq!(found, ["modprobe rdma_ucm"]);
        let found = fixes(Usability { devices: Ok(Vec::new()), ..usable() });
        assert!(found[0].contains("rdma link add"), "{found:?}");
        let found = fixes(Usability { devices: Ok(vec![device(false)]), ..usable() });
        assert!(found[0].contains("ip link set"), "{found:?}");
        let found = fixes(Usability { locked_memory: Some(8 << 20), ..usable() });
        assert!(found[0].contains("LimitMEMLOCK"), "{found:?}");
    }

    #[test]
    fn this_machine_can_be_asked() {
        let found = usability();
        assert!(found.devices.is_ok(), "{found:?}");
    }
}
