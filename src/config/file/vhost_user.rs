//! `"vhost_user"` and `"vfio_user"`: the controllers that VMMs plug in.

use std::collections::{BTreeMap, BTreeSet};

use iscsi::names::IscsiName;
use serde::Deserialize;

use super::{
    Fault,
    values::{Name, Whole},
};
use crate::config::{
    TargetConfig,
    vhost_user::{
        Controller, ControllerError, ControllerName, DEFAULT_QUEUES, Door, MAX_QUEUES, Protocol,
        SocketPlace, mode,
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawController {
    socket: String,
    queues: Option<Whole<1, { MAX_QUEUES as u64 }>>,
    name: Option<String>,
    mode: Option<String>,
    targets: Option<Vec<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: Whole<0, 255>,
    target: Name,
}

/// A controller whose targets are not looked up yet.
pub(super) struct Front {
    protocol: Protocol,
    /// Where it stands in the file.
    place: String,
    door: SocketPlace,
    queues: u16,
    pub(super) name: ControllerName,
    targets: Option<Vec<RawEntry>>,
}

impl RawController {
    fn check(self, protocol: Protocol, place: &str) -> Result<Front, Fault> {
        let fault = |key: &'static str, fix: &'static str| {
            let place = format!("{place}.{key}");
            move |error: ControllerError| Fault::new(place, error, fix)
        };
        let mut door = SocketPlace::new(self.socket)
            .map_err(fault("socket", "\"socket\": \"/run/vscsi/vm1.sock\""))?;
        if let Some(text) = self.mode {
            door.mode = mode(&text).map_err(fault("mode", "\"mode\": \"0660\""))?;
        }
        let name = match self.name {
            Some(name) => ControllerName::parse(&name).map_err(fault("name", NAME))?,
            None => door.default_name().map_err(fault("socket", NAME))?,
        };
        let queues = self.queues.map_or(DEFAULT_QUEUES, |n| n.0 as u16);
        let (place, targets) = (place.to_owned(), self.targets);
        Ok(Front { protocol, place, door, queues, name, targets })
    }
}

/// Checks the controllers of both lists, one for itself.
pub(super) fn check(
    vhost_user: Vec<RawController>,
    vfio_user: Vec<RawController>,
) -> Result<Vec<Front>, Fault> {
    let lists = [(Protocol::VhostUser, vhost_user), (Protocol::VfioUser, vfio_user)];
    let numbered = lists.into_iter().flat_map(|(protocol, list)| {
        list.into_iter().enumerate().map(move |(index, raw)| (protocol, index, raw))
    });
    numbered
        .map(|(protocol, index, raw)| raw.check(protocol, &format!("{}[{index}]", protocol.key())))
        .collect()
}

/// Looks the targets up, and refuses two controllers that would be one.
pub(super) fn join(fronts: Vec<Front>, targets: &[TargetConfig]) -> Result<Vec<Controller>, Fault> {
    let mut sockets = BTreeSet::new();
    let mut ports = BTreeSet::new();
    let mut controllers = Vec::new();
    for front in fronts {
        let place = front.place;
        if !sockets.insert(front.door.path().to_owned()) {
            let fault = format!("{} is the socket of two controllers", front.door.path().display());
            let fix = "give each controller a socket of its own";
            return Err(Fault::new(format!("{place}.socket"), fault, fix));
        }
        let reached = reached(front.targets, targets, &place)?;
        for target in reached.values() {
            if !ports.insert((front.name.clone(), target.clone())) {
                let fault = format!("two controllers of {target} are called {}", front.name);
                return Err(Fault::new(place, fault, NAME));
            }
        }
        controllers.push(Controller {
            protocol: front.protocol,
            door: Door::Socket(front.door),
            queues: front.queues,
            name: front.name,
            targets: reached,
        });
    }
    Ok(controllers)
}

fn reached(
    entries: Option<Vec<RawEntry>>,
    targets: &[TargetConfig],
    place: &str,
) -> Result<BTreeMap<u8, IscsiName>, Fault> {
    let place = format!("{place}.targets");
    let known = || {
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        format!("the targets are {}", names.join(", "))
    };
    let Some(entries) = entries else {
        return match targets {
            [only] => Ok(BTreeMap::from([(0, only.name.clone())])),
            _ => {
                let fault = format!("which of {} targets it reaches is not said", targets.len());
                let fix = "\"targets\": [{\"id\": 0, \"target\": \"iqn…\"}]";
                Err(Fault::new(place.trim_end_matches(".targets"), fault, fix))
            }
        };
    };
    let mut reached = BTreeMap::new();
    for (index, RawEntry { id, target }) in entries.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        if !targets.iter().any(|known| known.name == target.0) {
            let fault = format!("there is no target {}", target.0);
            return Err(Fault::new(format!("{place}.target"), fault, known()));
        }
        if reached.values().any(|other| *other == target.0) {
            let fault = format!("{} is there twice", target.0);
            let fix = "a guest reaches a target by one id";
            return Err(Fault::new(format!("{place}.target"), fault, fix));
        }
        if reached.insert(id.0 as u8, target.0).is_some() {
            let fault = format!("id {} names two targets", id.0);
            let fix = "give each target an id of its own";
            return Err(Fault::new(format!("{place}.id"), fault, fix));
        }
    }
    if reached.is_empty() {
        return Err(Fault::new(place, "the controller reaches no target", known()));
    }
    Ok(reached)
}

const NAME: &str = "give it a name of its own: \"name\": \"vm1\"";
