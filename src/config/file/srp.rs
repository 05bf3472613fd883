//! `"srp"`: SRP over RDMA.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Fault, values::Name};
use crate::config::{
    TargetConfig,
    srp::{PortName, SrpAllow, SrpConfig, SrpInitiator, SrpPort, half, listen},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSrp {
    listen: Vec<String>,
    ports: Vec<RawPort>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    target: Option<Name>,
    id_ext: Option<String>,
    ioc_guid: Option<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    allow_any: bool,
}

impl RawSrp {
    pub(super) fn check(self, targets: &[TargetConfig]) -> Result<SrpConfig, Fault> {
        if self.listen.is_empty() {
            let fix = "\"listen\": [\"192.0.2.10:5555\"]";
            return Err(Fault::new("srp.listen", "there is no address", fix));
        }
        if self.ports.is_empty() {
            let fix = "\"ports\": [{\"target\": \"iqn…\", \"allow\": [\"192.0.2.7\"]}]";
            return Err(Fault::new("srp.ports", "nothing can be reached", fix));
        }
        let addresses = self.listen.iter().enumerate().map(|(index, text)| {
            listen(text).map_err(|error| {
                let place = format!("srp.listen[{index}]");
                Fault::new(place, error, "SRP has no port of its own: choose one")
            })
        });
        let listen = addresses.collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        let mut ports = Vec::new();
        for (index, port) in self.ports.into_iter().enumerate() {
            let place = format!("srp.ports[{index}]");
            let port = port.check(&place, targets)?;
            if ports.iter().any(|other: &SrpPort| other.target == port.target) {
                let fault = format!("{} has two ports", port.target);
                return Err(Fault::new(place, fault, "a target has one port for SRP"));
            }
            if !names.insert(port.name) {
                let fault = "another port has the same id_ext and ioc_guid";
                return Err(Fault::new(place, fault, "\"id_ext\": \"0x2\""));
            }
            ports.push(port);
        }
        Ok(SrpConfig { listen, ports })
    }
}

impl RawPort {
    fn check(self, place: &str, targets: &[TargetConfig]) -> Result<SrpPort, Fault> {
        let target = match (self.target, targets) {
            (Some(Name(name)), _) if targets.iter().any(|target| target.name == name) => name,
            (Some(Name(name)), _) => {
                let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
                let fix = format!("the targets are {}", known.join(", "));
                let fault = format!("there is no target {name}");
                return Err(Fault::new(format!("{place}.target"), fault, fix));
            }
            (None, [only]) => only.name.clone(),
            (None, _) => {
                let fault = format!("which of {} targets it belongs to is not said", targets.len());
                return Err(Fault::new(place, fault, "\"target\": \"iqn…\""));
            }
        };
        let usual = PortName::of_target(&target);
        let or = |text: Option<String>, key: &str, usual: u64| match text {
            None => Ok(usual),
            Some(text) => half(&text).map_err(|error| {
                Fault::new(
                    format!("{place}.{key}"),
                    error,
                    format!("\"{key}\": \"0x{usual:016x}\""),
                )
            }),
        };
        let name = PortName {
            id_ext: or(self.id_ext, "id_ext", usual.id_ext)?,
            ioc_guid: or(self.ioc_guid, "ioc_guid", usual.ioc_guid)?,
        };
        let allow = match (self.allow_any, self.allow) {
            (true, list) if list.is_empty() => SrpAllow::Any,
            (true, _) => {
                let fault = "\"allow_any\" lets everybody in, so that \"allow\" means nothing";
                return Err(Fault::new(format!("{place}.allow"), fault, "keep one of the two"));
            }
            (false, list) => {
                let list = list.iter().enumerate().map(|(index, text)| {
                    SrpInitiator::parse(text).map_err(|error| {
                        let fix =
                            "\"allow\": [\"192.0.2.7\", \"0x0000000000000000505400fffe123456\"]";
                        Fault::new(format!("{place}.allow[{index}]"), error, fix)
                    })
                });
                SrpAllow::Only(list.collect::<Result<_, _>>()?)
            }
        };
        Ok(SrpPort { target, name, allow })
    }
}
