//! The kernel's TCMU devices: which logical units of this process they lead to.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use nix::errno::Errno;
use vmm_glue::tcmu::{
    name::{DeviceName, Reference},
    netlink::Change,
    socket::SocketError,
    watch::{Attachment, Host, Listening, Refused, Watcher},
};
use vscsi_target::model::{
    LogicalUnit, Model, Nexus, Target,
    reservation::{NexusId, TransportId},
};

use super::fabric::Reactors;
use crate::{
    config::vhost_user::locally_assigned,
    control::api::TcmuInfo,
    export::Exporter,
    report::{Exit, Report},
};

impl From<SocketError> for Report {
    fn from(error: SocketError) -> Self {
        let report = Self::new(Exit::Unavailable, "tcmu", error.to_string());
        match error {
            SocketError::NoFamily => report
                .why("--tcmu serves backstores of type \"user\" of the kernel's target")
                .fix("modprobe target_core_user, and the fabric to be used, as tcm_loop"),
            SocketError::NoGroup => report.fix("use a kernel from 4.15 on"),
            SocketError::System { .. } => {
                report.fix("run it as root, or with CAP_NET_ADMIN and access to /dev/uio*")
            }
        }
    }
}

/// Devices that nobody is told of yet.
#[derive(Debug)]
pub struct Opened {
    listening: Listening,
    host: Units,
}

impl Opened {
    /// Listens to the kernel, and gives each target a port for its devices.
    pub fn new(exporter: &Exporter) -> Result<Self, Report> {
        let listening = Watcher::listen()?;
        let ports = exporter.model.targets().into_iter().map(|target| {
            let port = exporter.tcmu_port(&target);
            (target.name.clone(), port)
        });
        let host = Units {
            ports: ports.collect(),
            model: Arc::clone(&exporter.model),
            nexuses: Mutex::default(),
        };
        Ok(Self { listening, host })
    }

    /// Serves them; the reactors run.
    pub fn serve(self, router: &Arc<Reactors>) -> io::Result<Watcher> {
        Watcher::start(self.listening, Arc::new(self.host), Arc::clone(router) as _)
    }
}

/// What is served now, for `session.list`.
pub fn sessions(watcher: &Watcher) -> Vec<TcmuInfo> {
    let served = watcher.served().into_iter().map(|served| TcmuInfo {
        device: served.name.to_string(),
        uio: served.minor,
        target: served.to.nexus.info.target.name.clone(),
        lun: served.to.lun,
        reactor: served.place.reactor,
    });
    served.collect()
}

/// The logical units of this process.
#[derive(Debug)]
struct Units {
    model: Arc<Model>,
    /// The port of each target, by its name.
    ports: HashMap<String, u16>,
    /// The nexus of each device and target while somebody has it: one that comes again while the last
    /// one still goes is the same initiator.
    nexuses: Mutex<HashMap<(String, String), std::sync::Weak<Nexus>>>,
}

impl Units {
    /// The target of that name; or of which that is the name behind the colon, which rtslib does not
    /// let into a configuration; or the only one.
    fn target(&self, name: Option<&str>) -> Result<Arc<Target>, Refused> {
        let targets = self.model.targets();
        let names = || {
            let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
            names.join(", ")
        };
        let Some(name) = name else {
            return match &targets[..] {
                [only] => Ok(Arc::clone(only)),
                _ => Err(refused(
                    Errno::EINVAL,
                    format!("dev_config names no target, and there are several: {}", names()),
                )),
            };
        };
        let is_short =
            |target: &&Arc<Target>| target.name.split_once(':').is_some_and(|(_, own)| own == name);
        let exact = targets.iter().find(|target| target.name == name);
        let mut short = targets.iter().filter(is_short);
        match (exact, short.next(), short.next()) {
            (Some(target), ..) | (None, Some(target), None) => Ok(Arc::clone(target)),
            (None, Some(_), Some(_)) => Err(refused(
                Errno::EINVAL,
                format!("{name} is behind the colon of several targets: {}", names()),
            )),
            (None, None, _) => Err(refused(
                Errno::ENOENT,
                format!("there is no target {name} here, but {}", names()),
            )),
        }
    }

    fn resolve(&self, to: &Reference) -> Result<(Arc<Target>, u16), Refused> {
        let target = self.target(to.target.as_deref())?;
        let lun = to.lun.ok_or_else(|| {
            refused(Errno::EINVAL, "dev_config ends with no logical unit number: vscsi/TARGET/LUN")
        })?;
        Ok((target, lun))
    }

    fn nexus(&self, name: &DeviceName, target: Arc<Target>) -> Arc<Nexus> {
        let initiator = name.to_string();
        let key = (initiator.clone(), target.name.clone());
        let mut nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        nexuses.retain(|_, nexus| nexus.strong_count() > 0);
        if let Some(nexus) = nexuses.get(&key).and_then(std::sync::Weak::upgrade) {
            return nexus;
        }
        let port = self.ports.get(&target.name).copied().unwrap_or(1);
        let address = locally_assigned(&["TCMU initiator port", &initiator]);
        let identity = NexusId::new(TransportId::sas(address.to_be_bytes()), port);
        let nexus = Nexus::establish(target, port, identity, initiator);
        nexuses.insert(key, Arc::downgrade(&nexus));
        nexus
    }
}

impl Host for Units {
    fn attach(&self, name: &DeviceName, to: &Reference) -> Result<Attachment, Refused> {
        let (target, lun) = self.resolve(to)?;
        let there = target.luns_for(&name.to_string());
        let Some((_, lu)) = there.iter().find(|(number, _)| *number == lun) else {
            let fault = format!("{} has no LUN {lun} that {name} may see", target.name);
            return Err(refused(Errno::ENOENT, fault));
        };
        if lu.is_away() {
            let fault = "its image moves with a guest (handover), which the kernel cannot follow";
            return Err(refused(Errno::EBUSY, fault));
        }
        Ok(Attachment { nexus: self.nexus(name, target), lun })
    }

    fn change(&self, _name: &DeviceName, to: &Attachment, change: &Change) -> Result<(), Refused> {
        let target = &to.nexus.info.target;
        match change {
            &Change::Size(bytes) => {
                let lu = unit(target, to.lun)?;
                resize(&lu, bytes)
            }
            &Change::WriteCache(on) => {
                let failed = |error: io::Error| match error.kind() {
                    io::ErrorKind::Unsupported => refused(Errno::EOPNOTSUPP, error),
                    _ => refused(Errno::EIO, error),
                };
                unit(target, to.lun)?.set_write_cache(on).map_err(failed)
            }
            Change::Config(config) => {
                let reference = Reference::parse(config).ok_or_else(|| {
                    refused(Errno::EINVAL, "a device in use cannot go to another handler")
                })?;
                let (other, lun) = self.resolve(&reference)?;
                if lun == to.lun && Arc::ptr_eq(&other, target) {
                    return Ok(());
                }
                let fault = "a device in use cannot become another logical unit: make a new one";
                Err(refused(Errno::EOPNOTSUPP, fault))
            }
        }
    }
}

fn unit(target: &Target, lun: u16) -> Result<Arc<LogicalUnit>, Refused> {
    let found = target.luns().into_iter().find(|(number, _)| *number == lun);
    found
        .map(|(_, lu)| lu)
        .ok_or_else(|| refused(Errno::ENODEV, format!("{} has no LUN {lun} any more", target.name)))
}

/// Makes a logical unit as large as its device is said to be; never smaller.
fn resize(lu: &LogicalUnit, bytes: u64) -> Result<(), Refused> {
    let (old, block) = (lu.backend.len(), u64::from(lu.block_size()));
    if bytes == old {
        return Ok(());
    }
    if bytes < old {
        let fault = format!("it has {old} bytes; vscsi lun resize --shrink makes it smaller first");
        return Err(refused(Errno::EINVAL, fault));
    }
    if !bytes.is_multiple_of(block) {
        return Err(refused(
            Errno::EINVAL,
            format!("{bytes} bytes are not whole blocks of {block}"),
        ));
    }
    let failed = |error: io::Error| {
        let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
        refused(errno, error)
    };
    let new = lu.backend.resize(Some(bytes)).map_err(failed)?;
    if new != old {
        lu.resized();
    }
    Ok(())
}

fn refused(errno: Errno, reason: impl ToString) -> Refused {
    Refused { errno, reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
