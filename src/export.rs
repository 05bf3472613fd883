//! From a [`Disk`] to a logical unit in the model: at start and for `vscsi lun add`.

use std::{
    collections::BTreeSet,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use iscsi::names::target_port_name;
use thiserror::Error;
use vmm_glue::controller::Export;
use vscsi_target::{
    backend::{Backend, File, FileOptions, Mem, Null, OpenError, nvme},
    model::{
        Identity, LogicalUnit, LuConfig, Model, ModelError, Target,
        reservation::{NexusId, TransportId},
    },
};

use crate::{
    config::{
        Place, PortalGroup, TargetConfig,
        srp::{PortName, SrpPort},
        vhost_user::{Controller, locally_assigned},
    },
    disk::{Disk, MAX_LUN, Source},
    report::{Exit, Report},
    state::{self, StateError},
};

/// Why a disk is not exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The image or device cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The NVMe controller or namespace cannot be used.
    #[error(transparent)]
    Nvme(#[from] nvme::OpenError),
    /// There is no memory for it.
    #[error("cannot make a RAM disk of {size} bytes: {source}")]
    Ram {
        /// Its size.
        size: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// Another logical unit has the same names.
    #[error("LUN {number} of {target} has the same serial number ({serial})")]
    Identity {
        /// The other's target.
        target: String,
        /// The other's number.
        number: u16,
        /// What both are called.
        serial: String,
    },
    /// Its saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The number is in use.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Every number is in use.
    #[error("every logical unit number of {0} up to {MAX_LUN} is in use")]
    Full(String),
}

impl From<ExportError> for Report {
    fn from(error: ExportError) -> Self {
        let what = error.to_string();
        match error {
            ExportError::Open(open) => {
                let (exit, code) = match &open {
                    OpenError::Locked { .. } => (Exit::Retry, "image-in-use"),
                    OpenError::Busy { .. } => (Exit::Retry, "device-in-use"),
                    OpenError::NotWritable { .. } | OpenError::NotReadable { .. } => {
                        (Exit::Permission, "image-permission")
                    }
                    OpenError::NoLocks { .. } => (Exit::Unavailable, "image-no-locks"),
                    OpenError::BlockSize { .. } | OpenError::NoDirect { .. } => {
                        (Exit::Config, "image-options")
                    }
                    OpenError::Missing { .. }
                    | OpenError::Directory { .. }
                    | OpenError::NotADisk { .. }
                    | OpenError::Empty { .. }
                    | OpenError::Ragged { .. } => (Exit::NoInput, "image"),
                    _ => (Exit::Io, "image-io"),
                };
                let report = Self::new(exit, code, what).fix(open.fix());
                match open {
                    OpenError::Locked { .. } => report.why(
                        "two writers, or a writer beside a reader, would damage what is on it",
                    ),
                    _ => report,
                }
            }
            ExportError::Nvme(open) => nvme_report(&open, what),
            ExportError::Ram { .. } => Self::new(Exit::Unavailable, "ram", what),
            ExportError::Identity { .. } => Self::new(Exit::Config, "identity", what)
                .why("initiators would take both for one disk with two paths")
                .fix("give one of them another serial number"),
            ExportError::State(error) => error.into(),
            ExportError::Model(ModelError::LunInUse { .. }) => {
                Self::new(Exit::Failed, "lun-in-use", what)
                    .fix("choose another number, or none for the lowest that is free")
            }
            ExportError::Model(ModelError::NoTarget(_)) => {
                Self::new(Exit::Failed, "no-target", what).fix("vscsi lun list names the targets")
            }
            ExportError::Model(_) | ExportError::Full(_) => Self::new(Exit::Failed, "lun", what),
        }
    }
}

/// Exports disks.
#[derive(Debug)]
pub struct Exporter {
    /// What is exported.
    pub model: Arc<Model>,
    state: Place,
    /// Two disks at once could take the same number or the same name.
    one_at_a_time: Mutex<()>,
}

impl Exporter {
    /// Into this model, with state kept there.
    pub fn new(model: Arc<Model>, state: Place) -> Self {
        Self { model, state, one_at_a_time: Mutex::default() }
    }

    /// Adds a target with its ports and disks.
    pub fn target(
        &self,
        config: &TargetConfig,
        groups: &[PortalGroup],
    ) -> Result<Arc<Target>, ExportError> {
        let target = self.model.add_target(config.name.as_str())?;
        for group in groups {
            if config.is_reached_by(group.tag) {
                // All ports lead to the same state, so they are one target port group.
                target.add_port(1, PROTOCOL_ISCSI, target_port_name(&config.name, group.tag));
            }
        }
        let taken: BTreeSet<u16> = config.luns.iter().filter_map(|disk| disk.number).collect();
        for disk in &config.luns {
            self.disk(&target, disk, &taken)?;
        }
        Ok(target)
    }

    /// Adds the ports by which a controller's guest reaches its targets. Call it when all
    /// targets are there, and for one controller after the other as they are configured: relative
    /// port identifiers count up.
    pub fn controller(&self, config: &Controller) -> Result<Vec<Export>, ExportError> {
        let initiator = TransportId::sas(config.name.initiator_address().to_be_bytes());
        let exports = config.targets.iter().map(|(&id, name)| {
            let target = self.model.target(name.as_str())?;
            let address = config.name.target_address(name.as_str());
            let port = target.add_port(1, PROTOCOL_SAS, format!("naa.{address:016X}"));
            let initiator = NexusId::new(initiator.clone(), port);
            Ok(Export { id, target, port, initiator })
        });
        exports.collect()
    }

    /// Adds the port by which SRP initiators reach a target, after those of controllers.
    pub fn srp_port(&self, config: &SrpPort) -> Result<u16, ExportError> {
        let target = self.model.target(config.target.as_str())?;
        let PortName { id_ext, ioc_guid } = config.name;
        Ok(target.add_port(1, PROTOCOL_SRP, format!("eui.{id_ext:016X}{ioc_guid:016X}")))
    }

    /// Adds the port by which the kernel's TCMU devices reach a target, after all others.
    pub fn tcmu_port(&self, target: &Target) -> u16 {
        let address = locally_assigned(&["TCMU target port", &target.name]);
        target.add_port(1, PROTOCOL_SAS, format!("naa.{address:016X}"))
    }

    /// Adds a disk to a target; one without a number gets the lowest that is neither in use nor in
    /// `reserved`.
    pub fn disk(
        &self,
        target: &Arc<Target>,
        disk: &Disk,
        reserved: &BTreeSet<u16>,
    ) -> Result<(u16, Arc<LogicalUnit>), ExportError> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let used: BTreeSet<u16> = target.luns().into_iter().map(|(number, _)| number).collect();
        let number = match disk.number {
            Some(number) if used.contains(&number) => {
                let target = target.name.clone();
                return Err(ModelError::LunInUse { target, number }.into());
            }
            Some(number) => number,
            None => (0..=MAX_LUN)
                .find(|number| !used.contains(number) && !reserved.contains(number))
                .ok_or_else(|| ExportError::Full(target.name.clone()))?,
        };
        let mut backend = open(disk, self.model.postboxes.len())?;
        if let Some(size) = disk.physical_block_size {
            backend.set_physical_block_size(size);
        }
        let identity =
            Identity::derive(&seed(target, disk, &backend, number), disk.serial.as_deref());
        self.check_unique(&identity)?;
        // What is in RAM does not outlive the process, nor should who reserved it.
        let state_dir = match &disk.source {
            Source::File(_) | Source::Nvme(_) => state::directory(&self.state)?,
            Source::Ram(_) | Source::Null(_) => None,
        };
        let config =
            LuConfig { identity, removable: disk.removable, read_only: disk.read_only, state_dir };
        let (reservations, modes) = state::load(&config, &backend)?;
        let postboxes = Arc::clone(&self.model.postboxes);
        let lu = LogicalUnit::new(config, backend, reservations, modes, postboxes);
        lu.set_erase_rate(disk.erase_rate.unwrap_or(0));
        lu.keep().map_err(StateError::from)?;
        target.map(number, Arc::clone(&lu), disk.visible_to.clone())?;
        Ok((number, lu))
    }

    fn check_unique(&self, identity: &Identity) -> Result<(), ExportError> {
        for target in self.model.targets() {
            for (number, lu) in target.luns() {
                if lu.config.identity.naa == identity.naa {
                    let (target, serial) = (target.name.clone(), identity.serial.clone());
                    return Err(ExportError::Identity { target, number, serial });
                }
            }
        }
        Ok(())
    }
}

fn nvme_report(error: &nvme::OpenError, what: String) -> Report {
    use nvme::OpenError;
    let (exit, code) = match error {
        OpenError::Busy(_) | OpenError::InUse { .. } => (Exit::Retry, "nvme-in-use"),
        OpenError::Permission { .. } => (Exit::Permission, "nvme-permission"),
        OpenError::NotBound { .. } => (Exit::Unavailable, "nvme-not-bound"),
        OpenError::NoIommu(_) => (Exit::Unavailable, "nvme-no-iommu"),
        OpenError::NotViable { .. } => (Exit::Unavailable, "nvme-group"),
        OpenError::Address(_)
        | OpenError::Missing(_)
        | OpenError::NotNvme { .. }
        | OpenError::Empty(_)
        | OpenError::Namespace { .. } => (Exit::NoInput, "nvme"),
        OpenError::Vfio { .. } | OpenError::Memory { .. } => (Exit::Unavailable, "nvme-vfio"),
        OpenError::Controller { .. } => (Exit::Io, "nvme-controller"),
    };
    Report::new(exit, code, what).fix(error.fix())
}

fn open(disk: &Disk, reactors: usize) -> Result<Backend, ExportError> {
    Ok(match &disk.source {
        Source::File(path) => {
            let options = FileOptions {
                // As it is listed: a relative path means nothing to who asks elsewhere.
                path: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
                block_size: disk.block_size,
                read_only: disk.read_only,
                direct: disk.direct,
            };
            Backend::File(match disk.handover {
                true => File::open_for_handover(&options)?,
                false => File::open(&options)?,
            })
        }
        &Source::Nvme(address) => {
            Backend::Nvme(Box::new(nvme::open(address, reactors, disk.read_only)?))
        }
        &Source::Ram(size) => Backend::Mem(
            Mem::new(size, disk.block_size).map_err(|source| ExportError::Ram { size, source })?,
        ),
        &Source::Null(size) => Backend::Null(Null::new(size, disk.block_size)),
    })
}

/// What stays the same about a logical unit over restarts.
fn seed(target: &Target, disk: &Disk, backend: &Backend, number: u16) -> String {
    let what = match &disk.source {
        Source::File(path) => {
            let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            format!("file {}", path.display())
        }
        Source::Nvme(_) => match backend {
            Backend::Nvme(nvme) => nvme.identity().to_owned(),
            _ => format!("nvme {number}"),
        },
        Source::Ram(_) => format!("ram {number}"),
        Source::Null(_) => format!("null {number}"),
    };
    format!("{} {what}", target.name)
}

const PROTOCOL_SRP: u8 = 4;
const PROTOCOL_ISCSI: u8 = 5;
/// What a guest's SCSI driver takes a virtio-scsi port for.
const PROTOCOL_SAS: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{
            srp::SrpAllow,
            vhost_user::{ControllerName, Door, Protocol},
        },
        disk::{Defaults, Kind},
    };
    use iscsi::names::IscsiName;
    use std::collections::BTreeMap;
    use vscsi_target::reactor::Postboxes;

    fn exporter() -> (Exporter, Arc<Target>) {
        let model = Model::new(Postboxes::new(1).unwrap());
        let target = model.add_target("iqn.2026-11.org.x:t").unwrap();
        (Exporter::new(model, Place::Nowhere), target)
    }

    fn ram(text: &str) -> Disk {
        Disk::parse(text, Kind::Ram, Defaults::default()).unwrap()
    }

    #[test]
    fn disks_get_the_lowest_free_numbers() {
        let (exporter, target) = exporter();
        let add = |text| exporter.disk(&target, &ram(text), &BTreeSet::from([2])).unwrap().0;
        assert_eq!([add("1M"), add("1M,lun=1"), add("1M")], [0, 1, 3]);
    }

    #[test]
    fn a_number_in_use_is_refused() {
        let (exporter, target) = exporter();
        let none = BTreeSet::new();
        exporter.disk(&target, &ram("1M,lun=5"), &none).unwrap();
        let error = exporter.disk(&target, &ram("1M,lun=5"), &none).unwrap_err();
        assert!(matches!(error, ExportError::Model(ModelError::LunInUse { number: 5, .. })));
    }

    #[test]
    fn the_same_serial_number_twice_is_refused() {
        let (exporter, target) = exporter();
        let none = BTreeSet::new();
        exporter.disk(&target, &ram("1M,serial=A"), &none).unwrap();
        let error = exporter.disk(&target, &ram("1M,serial=A"), &none).unwrap_err();
        assert!(matches!(error, ExportError::Identity { number: 0, .. }));
    }

    #[test]
    fn a_controller_has_a_port_of_its_own_in_each_target() {
        let (before, target) = exporter();
        let iqn = IscsiName::parse(&target.name).unwrap();
        let controller = |name| Controller {
            protocol: Protocol::VhostUser,
            door: Door::Descriptor(0),
            queues: 1,
            name: ControllerName::parse(name).unwrap(),
            targets: BTreeMap::from([(7, iqn.clone())]),
        };
        target.add_port(1, PROTOCOL_ISCSI, "iqn".to_owned());
        let first = before.controller(&controller("vm1")).unwrap();
        let second = before.controller(&controller("vm2")).unwrap();
        assert_eq!((first[0].id, first[0].port, second[0].port), (7, 2, 3));
        assert_ne!(first[0].initiator.transport_id, second[0].initiator.transport_id);
        let ports = target.ports();
        assert_eq!((ports[1].protocol, ports[2].protocol), (6, 6));
        assert_ne!(ports[1].name, ports[2].name);
        // After a restart it is the same nexus for reservations.
        let (after, target) = exporter();
        target.add_port(1, PROTOCOL_ISCSI, "iqn".to_owned());
        let again = after.controller(&controller("vm1")).unwrap();
        assert_eq!(again[0].initiator, first[0].initiator);
    }

    #[test]
    fn a_target_has_a_port_for_srp_of_the_name_that_logins_address() {
        let (exporter, target) = exporter();
        let port = SrpPort {
            target: IscsiName::parse(&target.name).unwrap(),
            name: PortName { id_ext: 0xA, ioc_guid: 0xB },
            allow: SrpAllow::Any,
        };
        target.add_port(1, PROTOCOL_ISCSI, "iqn".to_owned());
        assert_eq!(exporter.srp_port(&port).unwrap(), 2);
        let added = &target.ports()[1];
        assert_eq!(added.protocol, 4);
        assert_eq!(added.name, "eui.000000000000000A000000000000000B");
    }

    #[test]
    fn an_image_in_use_says_who_holds_it() {
        let path = std::env::temp_dir().join(format!("vscsi-export-{}", std::process::id()));
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let (exporter, target) = exporter();
        let none = BTreeSet::new();
        let disk = Disk::new(Source::File(path.clone()), Defaults::default());
        exporter.disk(&target, &disk, &none).unwrap();
        let again = exporter.disk(&target, &disk, &none);
        fs::remove_file(&path).unwrap();
        let report = Report::from(again.unwrap_err());
        assert_eq!((report.code.as_ref(), report.exit), ("image-in-use", Exit::Retry));
        assert!(report.what.contains(&format!("process {}", std::process::id())), "{report}");
    }
}
