//! Targets, their ports and LUN maps, and the root that owns them.

use super::{Attention, LogicalUnit, Nexus, lu::flag};
use crate::reactor::Postboxes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
};

/// A port of a target, as VPD pages 83h and 88h describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Relative target port identifier, unique in its target, from 1.
    pub relative_id: u16,
    /// Target port group.
    pub group: u16,
    /// Protocol identifier (SPC-5 table 481): 5 iSCSI, 4 SRP.
    pub protocol: u8,
    /// SCSI name string of the port (iSCSI: `iqn…,t,0x0001`; SRP: `eui.` and the 32 hexadecimal
    /// digits of the target port identifier).
    pub name: String,
}

impl TargetPort {
    /// The 16 bytes of a name of the form `eui.` and 32 hexadecimal digits.
    pub fn identifier(&self) -> Option<[u8; 16]> {
        let digits = self.name.strip_prefix("eui.").filter(|digits| digits.len() == 32)?;
        // A sign is no digit, though the parser would take one.
        let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        all.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(u128::to_be_bytes)
    }
}

/// A SCSI target device.
#[derive(Debug)]
pub struct Target {
    /// Its name (iSCSI: the IQN).
    pub name: String,
    luns: RwLock<BTreeMap<u16, MappedLun>>,
    ports: RwLock<Vec<TargetPort>>,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
}

#[derive(Clone, Debug)]
struct MappedLun {
    lu: Arc<LogicalUnit>,
    /// Initiators that see it; `None` is every one that may log in.
    visible_to: Option<Vec<String>>,
}

/// Why the model refuses a change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModelError {
    /// A target of that name exists.
    #[error("target {0} exists already")]
    TargetExists(String),
    /// No such target.
    #[error("there is no target {0}")]
    NoTarget(String),
    /// The number is taken.
    #[error("LUN {number} of {target} is in use")]
    LunInUse {
        /// Target name.
        target: String,
        /// Logical unit number.
        number: u16,
    },
    /// Nothing there.
    #[error("{target} has no LUN {number}")]
    NoLun {
        /// Target name.
        target: String,
        /// Logical unit number.
        number: u16,
    },
    /// The number cannot be encoded.
    #[error("LUN {0} is above 16383")]
    LunTooLarge(u16),
}

impl Target {
    /// A target without ports and logical units.
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            luns: RwLock::default(),
            ports: RwLock::default(),
            nexuses: Mutex::default(),
        })
    }

    /// Adds a port and gives its relative target port identifier.
    pub fn add_port(&self, group: u16, protocol: u8, name: String) -> u16 {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let relative_id = ports.last().map_or(1, |port| port.relative_id + 1);
        ports.push(TargetPort { relative_id, group, protocol, name });
        relative_id
    }

    /// All ports.
    pub fn ports(&self) -> Vec<TargetPort> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The logical units an initiator sees.
    pub fn luns_for(&self, initiator: &str) -> Vec<(u16, Arc<LogicalUnit>)> {
        let luns = self.luns.read().unwrap_or_else(PoisonError::into_inner);
        luns.iter()
            .filter(|(_, mapped)| {
                mapped
                    .visible_to
                    .as_ref()
                    .is_none_or(|names| names.iter().any(|name| name == initiator))
            })
            .map(|(&number, mapped)| (number, Arc::clone(&mapped.lu)))
            .collect()
    }

    /// All logical units.
    pub fn luns(&self) -> Vec<(u16, Arc<LogicalUnit>)> {
        let luns = self.luns.read().unwrap_or_else(PoisonError::into_inner);
        luns.iter().map(|(&number, mapped)| (number, Arc::clone(&mapped.lu))).collect()
    }

    /// Maps a logical unit. Nexuses that exist learn of it by REPORTED LUNS DATA HAS CHANGED on
    /// their other logical units.
    pub fn map(
        &self,
        number: u16,
        lu: Arc<LogicalUnit>,
        visible_to: Option<Vec<String>>,
    ) -> Result<(), ModelError> {
        if number > 0x3FFF {
            return Err(ModelError::LunTooLarge(number));
        }
        {
            let mut luns = self.luns.write().unwrap_or_else(PoisonError::into_inner);
            if luns.contains_key(&number) {
                return Err(ModelError::LunInUse { target: self.name.clone(), number });
            }
            luns.insert(number, MappedLun { lu, visible_to });
        }
        self.remap();
        Ok(())
    }

    /// Takes a logical unit out of the map and out of service. Tasks in flight still finish; no
    /// new one finds it.
    pub fn unmap(&self, number: u16) -> Result<Arc<LogicalUnit>, ModelError> {
        let removed = {
            let mut luns = self.luns.write().unwrap_or_else(PoisonError::into_inner);
            luns.remove(&number)
        };
        let Some(mapped) = removed else {
            return Err(ModelError::NoLun { target: self.name.clone(), number });
        };
        mapped.lu.set_flags(flag::GONE);
        mapped.lu.forget();
        self.remap();
        Ok(mapped.lu)
    }

    /// Every live nexus.
    pub fn nexuses(&self) -> Vec<Arc<Nexus>> {
        let mut nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        nexuses.retain(|nexus| nexus.strong_count() > 0);
        nexuses.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn attach(&self, nexus: &Arc<Nexus>) {
        self.nexuses.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(nexus));
    }

    fn remap(&self) {
        for nexus in self.nexuses() {
            nexus.remap(Some(Attention::LUNS_CHANGED));
        }
    }
}

/// Everything that is exported.
#[derive(Debug)]
pub struct Model {
    /// How to reach the reactors.
    pub postboxes: Arc<Postboxes>,
    targets: RwLock<BTreeMap<String, Arc<Target>>>,
}

impl Model {
    /// Nothing exported yet.
    pub fn new(postboxes: Arc<Postboxes>) -> Arc<Self> {
        Arc::new(Self { postboxes, targets: RwLock::default() })
    }

    /// Adds a target.
    pub fn add_target(&self, name: &str) -> Result<Arc<Target>, ModelError> {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        if targets.contains_key(name) {
            return Err(ModelError::TargetExists(name.to_owned()));
        }
        let target = Target::new(name.to_owned());
        targets.insert(name.to_owned(), Arc::clone(&target));
        Ok(target)
    }

    /// Finds a target.
    pub fn target(&self, name: &str) -> Result<Arc<Target>, ModelError> {
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.get(name).cloned().ok_or_else(|| ModelError::NoTarget(name.to_owned()))
    }

    /// All targets by name.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.values().cloned().collect()
    }
}
