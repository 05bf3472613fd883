//! The configuration file: strict JSON. A key nobody knows, a value of another type or out of its
//! range, and a key that is there twice are errors that name file, line and key.

mod srp;
mod values;
mod vhost_user;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use iscsi::{
    chap::{Algorithm, Algorithms},
    negotiate::DigestPolicy,
};
use serde::Deserialize;
use thiserror::Error;

use super::{
    Allow, ChapConfig, Config, IO_TIMEOUT, ISCSI_PORT, IscsiConfig, Place, PortalGroup, Redirect,
    TargetConfig, WriteAddress,
    locate::{line_of, path_at},
    srp::nexus_name,
};
use crate::{
    disk::{Defaults, Disk, MAX_LUN, MAX_PHYSICAL, Source},
    report::{Exit, Report},
    secrets::SecretFile,
    suggest::nearest,
};
use srp::RawSrp;
use values::{Elsewhere, Name, Namespace, OrNone, Portal, Size, Whole};
pub use values::{PortalError, portal};
use vhost_user::{Front, RawController};

/// Why a configuration file is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The operating system refused.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A key nobody knows.
    #[error("{}:{line}: unknown key {key:?}{}", path.display(), inside(place))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// The key.
        key: String,
        /// The path of what it stands in.
        place: String,
        /// The key that may have been meant.
        near: Option<Box<str>>,
        /// All keys it could be.
        known: Box<str>,
    },
    /// Not JSON, or a value of another type or out of its range.
    #[error("{}:{line}:{column}: {fault}{}", path.display(), at(place))]
    Json {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// Which column.
        column: usize,
        /// The path of the value.
        place: String,
        /// What is wrong.
        fault: String,
    },
    /// Values that do not fit together.
    #[error("{}:{line}: {fault}{}", path.display(), at(place))]
    Meaning {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// The path of the value.
        place: String,
        /// What is wrong.
        fault: String,
        /// What to write instead.
        fix: String,
    },
}

impl From<ConfigError> for Report {
    fn from(error: ConfigError) -> Self {
        let what = error.to_string();
        match error {
            ConfigError::Read { source, .. } => Self::new(Exit::of(&source), "config-file", what),
            ConfigError::UnknownKey { near, known, .. } => {
                let report = Self::new(Exit::Config, "config-key", what);
                match near {
                    Some(near) => report.fix(format!("did you mean {near:?}?")),
                    None => report.fix(format!("the keys here are {known}")),
                }
            }
            ConfigError::Json { .. } => Self::new(Exit::Config, "config-value", what)
                .fix("docs/configuration.md has every key with its type and a complete example"),
            ConfigError::Meaning { fix, .. } => {
                Self::new(Exit::Config, "config-value", what).fix(fix)
            }
        }
    }
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Parses the text of a configuration file; `path` is its name in errors.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let raw: RawConfig = serde_json::from_str(text).map_err(|error| explain(path, text, &error))?;
    raw.check().map_err(|Fault { place, fault, fix }| ConfigError::Meaning {
        path: path.to_owned(),
        line: line_of(text, &place).unwrap_or(1),
        place,
        fault,
        fix,
    })
}

fn explain(path: &Path, text: &str, error: &serde_json::Error) -> ConfigError {
    let (line, column) = (error.line(), error.column());
    let place = path_at(text, line, column);
    let message = error.to_string();
    let fault = message.split(" at line ").next().unwrap_or_default().to_owned();
    // serde names the key and the ones it knows between backquotes.
    let mut quoted = fault.split('`').skip(1).step_by(2).map(str::to_owned);
    if fault.starts_with("unknown field")
        && let Some(key) = quoted.next()
    {
        let known: Vec<String> = quoted.collect();
        let near = nearest(&key, known.iter().map(String::as_str)).map(Box::from);
        let known = known.join(", ").into();
        let place = place.strip_suffix(&key).unwrap_or(&place).trim_end_matches('.').to_owned();
        return ConfigError::UnknownKey { path: path.to_owned(), line, key, place, near, known };
    }
    let fault = match fault.strip_prefix("duplicate field") {
        Some(key) => format!("the key{key} is there twice"),
        None => fault,
    };
    ConfigError::Json { path: path.to_owned(), line, column, place, fault }
}

fn inside(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" in {place}") }
}

fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" (at {place})") }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    reactors: Option<Whole<1, 256>>,
    #[serde(default)]
    state_dir: Option<OrNone>,
    #[serde(default)]
    control: Option<OrNone>,
    portal_groups: Option<Vec<RawGroup>>,
    #[serde(default)]
    vhost_user: Vec<RawController>,
    #[serde(default)]
    vfio_user: Vec<RawController>,
    #[serde(default)]
    tcmu: bool,
    srp: Option<RawSrp>,
    rdma: Option<RawRdma>,
    discovery: Option<RawDiscovery>,
    io_timeout: Option<Whole<0, 86_400>>,
    iscsi: Option<RawIscsi>,
    targets: Vec<RawTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    tag: Whole<1, 65535>,
    #[serde(default)]
    listen: Vec<Portal>,
    #[serde(default)]
    iser: Vec<Portal>,
    iser_write_address: Option<RawWriteAddress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawWriteAddress {
    Linux,
    Strict,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedirect {
    to: Elsewhere,
    #[serde(default)]
    permanent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDiscovery {
    chap: Option<RawChap>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRdma {
    shared_receives: Option<Whole<256, 65536>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIscsi {
    sessions_per_initiator: Option<Whole<1, 65535>>,
    half_open: Option<Whole<1, 1_000_000>>,
    max_connections: Option<Whole<1, 64>>,
    window: Option<Whole<1, 65536>>,
    login_timeout: Option<Whole<1, 600>>,
    ping_after: Option<Whole<1, 3600>>,
    ping_answer: Option<Whole<1, 3600>>,
    header_digest: Option<RawDigest>,
    data_digest: Option<RawDigest>,
    initial_r2t: Option<bool>,
    immediate_data: Option<bool>,
    max_recv_data_segment: Option<Whole<512, 1_048_576>>,
    max_burst: Option<Whole<512, 16_777_215>>,
    first_burst: Option<Whole<512, 16_777_215>>,
    max_outstanding_r2t: Option<Whole<1, 8>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawDigest {
    Off,
    Allowed,
    Required,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    name: Name,
    alias: Option<String>,
    #[serde(default)]
    allow: Vec<Name>,
    #[serde(default)]
    allow_any: bool,
    chap: Option<RawChap>,
    portal_groups: Option<Vec<Whole<1, 65535>>>,
    redirect: Option<RawRedirect>,
    #[serde(default)]
    luns: Vec<RawLun>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChap {
    file: PathBuf,
    #[serde(default)]
    any_mode: bool,
    #[serde(default)]
    mutual: bool,
    algorithms: Option<Vec<RawAlgorithm>>,
}

#[derive(Clone, Copy, Deserialize)]
enum RawAlgorithm {
    #[serde(rename = "md5")]
    Md5,
    #[serde(rename = "sha1")]
    Sha1,
    #[serde(rename = "sha256")]
    Sha256,
    #[serde(rename = "sha3-256")]
    Sha3,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLun {
    file: Option<PathBuf>,
    nvme: Option<Namespace>,
    ram: Option<Size>,
    null: Option<Size>,
    number: Option<Whole<0, { MAX_LUN as u64 }>>,
    block_size: Option<Whole<512, 4096>>,
    physical_block_size: Option<Whole<512, { MAX_PHYSICAL as u64 }>>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    removable: bool,
    #[serde(default)]
    direct: bool,
    #[serde(default)]
    handover: bool,
    erase_rate: Option<Size>,
    serial: Option<String>,
    visible_to: Option<Vec<String>>,
}

/// A fault of meaning, before it has a line.
struct Fault {
    place: String,
    fault: String,
    fix: String,
}

impl Fault {
    fn new(place: impl Into<String>, fault: impl ToString, fix: impl ToString) -> Self {
        Self { place: place.into(), fault: fault.to_string(), fix: fix.to_string() }
    }
}

impl RawConfig {
    fn check(self) -> Result<Config, Fault> {
        let fronts = vhost_user::check(self.vhost_user, self.vfio_user)?;
        let has_door = !fronts.is_empty() || self.srp.is_some() || self.tcmu;
        if self.portal_groups.is_none() && !has_door {
            let fault = "neither \"portal_groups\" nor \"vhost_user\" nor \"vfio_user\" nor \"tcmu\" \
                         nor \"srp\" is there";
            let fix = format!(
                "\"portal_groups\": [{{\"tag\": 1, \"listen\": [\"127.0.0.1:{ISCSI_PORT}\"]}}]"
            );
            return Err(Fault::new("", fault, fix));
        }
        let mut tags = BTreeSet::new();
        let mut portal_groups = Vec::new();
        let groups = self.portal_groups.unwrap_or_default();
        for (index, group) in groups.into_iter().enumerate() {
            let place = format!("portal_groups[{index}]");
            let group = group.check(&place)?;
            if !tags.insert(group.tag) {
                let place = format!("{place}.tag");
                let fault = format!("tag {} names two portal groups", group.tag);
                return Err(Fault::new(place, fault, "give each group a tag of its own"));
            }
            portal_groups.push(group);
        }
        let mut names = BTreeSet::new();
        let mut targets = Vec::new();
        for (index, target) in self.targets.into_iter().enumerate() {
            let place = format!("targets[{index}]");
            let target = target.check(&place, &tags, &fronts)?;
            if !names.insert(target.name.clone()) {
                let fault = format!("{} is the name of two targets", target.name);
                let fix = "give each target a name of its own";
                return Err(Fault::new(format!("{place}.name"), fault, fix));
            }
            targets.push(target);
        }
        let discovery_chap = self.discovery.and_then(|discovery| discovery.chap);
        Ok(Config {
            reactors: self.reactors.map(|n| n.0 as u16),
            state_dir: place(self.state_dir),
            control: place(self.control),
            portal_groups,
            controllers: vhost_user::join(fronts, &targets)?,
            tcmu: self.tcmu,
            srp: self.srp.map(|srp| srp.check(&targets)).transpose()?.unwrap_or_default(),
            discovery_chap: discovery_chap.map(|chap| chap.check("discovery.chap")).transpose()?,
            shared_receives: self
                .rdma
                .and_then(|rdma| rdma.shared_receives)
                .map(|count| count.0 as u32),
            io_timeout: self.io_timeout.map_or(IO_TIMEOUT, |seconds| seconds.0 as u32),
            iscsi: self.iscsi.map_or_else(|| Ok(IscsiConfig::default()), RawIscsi::check)?,
            targets,
        })
    }
}

fn place(path: Option<OrNone>) -> Place {
    match path {
        None => Place::Usual,
        Some(OrNone(None)) => Place::Nowhere,
        Some(OrNone(Some(path))) => Place::At(path),
    }
}

impl RawGroup {
    fn check(self, place: &str) -> Result<PortalGroup, Fault> {
        if self.listen.is_empty() && self.iser.is_empty() {
            let fix = format!("\"listen\": [\"127.0.0.1:{ISCSI_PORT}\"]");
            return Err(Fault::new(format!("{place}.listen"), "there is no address", fix));
        }
        if self.iser.is_empty() && self.iser_write_address.is_some() {
            let place = format!("{place}.iser_write_address");
            let fix = "add \"iser\": [\"192.0.2.10\"], or leave it out";
            return Err(Fault::new(place, "there is no address for iSER", fix));
        }
        Ok(PortalGroup {
            tag: self.tag.0 as u16,
            listen: self.listen.into_iter().map(|portal| portal.0).collect(),
            iser: self.iser.into_iter().map(|portal| portal.0).collect(),
            write_address: match self.iser_write_address {
                None | Some(RawWriteAddress::Linux) => WriteAddress::Solicited,
                Some(RawWriteAddress::Strict) => WriteAddress::Whole,
            },
        })
    }
}

impl RawTarget {
    fn check(
        self,
        place: &str,
        tags: &BTreeSet<u16>,
        fronts: &[Front],
    ) -> Result<TargetConfig, Fault> {
        let allow = match (self.allow_any, self.allow) {
            (true, names) if names.is_empty() => Allow::Any,
            (true, _) => {
                let fault = "\"allow_any\" lets everybody in, so that \"allow\" means nothing";
                return Err(Fault::new(format!("{place}.allow"), fault, "keep one of the two"));
            }
            (false, names) => Allow::Names(names.into_iter().map(|name| name.0).collect()),
        };
        let groups: Option<Vec<u16>> =
            self.portal_groups.map(|groups| groups.into_iter().map(|tag| tag.0 as u16).collect());
        for (index, tag) in groups.iter().flatten().enumerate() {
            if !tags.contains(tag) {
                let place = format!("{place}.portal_groups[{index}]");
                let fault = format!("there is no portal group {tag}");
                let known: Vec<String> = tags.iter().map(u16::to_string).collect();
                return Err(Fault::new(place, fault, format!("the tags are {}", known.join(", "))));
            }
        }
        let mut taken = BTreeSet::new();
        let mut luns = Vec::new();
        for (index, lun) in self.luns.into_iter().enumerate() {
            let place = format!("{place}.luns[{index}]");
            let disk = lun.check(&place, fronts)?;
            if let Some(number) = disk.number
                && !taken.insert(number)
            {
                let fault = format!("LUN {number} is there twice");
                let fix = "give each logical unit a number of its own, or none";
                return Err(Fault::new(format!("{place}.number"), fault, fix));
            }
            luns.push(disk);
        }
        let chap = self.chap.map(|chap| chap.check(&format!("{place}.chap"))).transpose()?;
        Ok(TargetConfig {
            name: self.name.0,
            alias: self.alias,
            allow,
            chap,
            portal_groups: groups,
            redirect: self
                .redirect
                .map(|redirect| Redirect { to: redirect.to.0, permanent: redirect.permanent }),
            luns,
        })
    }
}

impl RawChap {
    fn check(self, place: &str) -> Result<ChapConfig, Fault> {
        let algorithms = match self.algorithms {
            None => Algorithms::ALL,
            Some(list) if list.is_empty() => {
                let fix = "\"algorithms\": [\"sha256\", \"sha3-256\"]";
                let place = format!("{place}.algorithms");
                return Err(Fault::new(place, "no algorithm is allowed", fix));
            }
            Some(list) => {
                let all = [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3_256];
                let wanted = |algorithm| list.iter().any(|&raw| Algorithm::from(raw) == algorithm);
                all.into_iter()
                    .filter(|&algorithm| !wanted(algorithm))
                    .fold(Algorithms::ALL, Algorithms::without)
            }
        };
        let file = SecretFile { path: self.file, any_mode: self.any_mode };
        Ok(ChapConfig { file, algorithms, mutual: self.mutual })
    }
}

impl From<RawAlgorithm> for Algorithm {
    fn from(raw: RawAlgorithm) -> Self {
        match raw {
            RawAlgorithm::Md5 => Self::Md5,
            RawAlgorithm::Sha1 => Self::Sha1,
            RawAlgorithm::Sha256 => Self::Sha256,
            RawAlgorithm::Sha3 => Self::Sha3_256,
        }
    }
}

impl RawLun {
    fn check(self, place: &str, fronts: &[Front]) -> Result<Disk, Fault> {
        let source = match (self.file, self.nvme, self.ram, self.null) {
            (None, Some(nvme), None, None) => Source::Nvme(nvme.0),
            (Some(path), None, None, None) => Source::File(path),
            (None, None, Some(size), None) => Source::Ram(size.0),
            (None, None, None, Some(size)) => Source::Null(size.0),
            _ => {
                let fault =
                    "a logical unit has exactly one of \"file\", \"nvme\", \"ram\" and \"null\"";
                return Err(Fault::new(place, fault, "\"file\": \"/path/of/an/image\""));
            }
        };
        let defaults = Defaults {
            block_size: self.block_size.map_or(512, |n| n.0 as u32),
            read_only: self.read_only,
            removable: self.removable,
            direct: false,
        };
        let visible_to =
            self.visible_to.map(|names| visible_to(names, place, fronts)).transpose()?;
        let disk = Disk {
            number: self.number.map(|n| n.0 as u16),
            physical_block_size: self.physical_block_size.map(|n| n.0 as u32),
            direct: self.direct,
            handover: self.handover,
            erase_rate: self.erase_rate.map(|rate| rate.0),
            serial: self.serial,
            visible_to,
            ..Disk::new(source, defaults)
        };
        disk.checked().map_err(|error| Fault::new(place, error, "see docs/configuration.md"))
    }
}

/// Names of initiators of iSCSI and SRP and of vhost-user controllers, as nexuses carry them.
fn visible_to(names: Vec<String>, place: &str, fronts: &[Front]) -> Result<Vec<String>, Fault> {
    let known = |name: &str| fronts.iter().any(|front| front.name.as_str() == name);
    let names = names.into_iter().enumerate().map(|(index, name)| {
        if known(&name) {
            return Ok(name);
        }
        nexus_name(&name).map_err(|error| {
            let fix = "name an iSCSI initiator, an SRP initiator by its whole port identifier, or a \
                       controller of \"vhost_user\" or \"vfio_user\"";
            Fault::new(format!("{place}.visible_to[{index}]"), error, fix)
        })
    });
    names.collect()
}

impl RawIscsi {
    fn check(self) -> Result<IscsiConfig, Fault> {
        let mut config = IscsiConfig::default();
        fn set<T, const LOW: u64, const HIGH: u64>(to: &mut T, value: Option<Whole<LOW, HIGH>>)
        where
            T: TryFrom<u64>,
        {
            if let Some(value) = value.and_then(|value| T::try_from(value.0).ok()) {
                *to = value;
            }
        }
        set(&mut config.sessions_per_initiator, self.sessions_per_initiator);
        set(&mut config.half_open, self.half_open);
        set(&mut config.window, self.window);
        set(&mut config.login_timeout, self.login_timeout);
        set(&mut config.ping_after, self.ping_after);
        set(&mut config.ping_answer, self.ping_answer);
        let preferences = &mut config.preferences;
        set(&mut preferences.max_connections, self.max_connections);
        set(&mut preferences.max_recv_data_segment, self.max_recv_data_segment);
        set(&mut preferences.max_burst, self.max_burst);
        set(&mut preferences.first_burst, self.first_burst);
        set(&mut preferences.max_outstanding_r2t, self.max_outstanding_r2t);
        for (to, digest) in [
            (&mut preferences.header_digest, self.header_digest),
            (&mut preferences.data_digest, self.data_digest),
        ] {
            match digest {
                None => {}
                Some(RawDigest::Off) => *to = DigestPolicy::Off,
                Some(RawDigest::Allowed) => *to = DigestPolicy::Allowed,
                Some(RawDigest::Required) => *to = DigestPolicy::Required,
            }
        }
        preferences.initial_r2t = self.initial_r2t.unwrap_or(preferences.initial_r2t);
        preferences.immediate_data = self.immediate_data.unwrap_or(preferences.immediate_data);
        if preferences.first_burst > preferences.max_burst {
            let fault = format!(
                "first_burst of {} is more than max_burst of {}",
                preferences.first_burst, preferences.max_burst
            );
            let place = "iscsi.first_burst";
            return Err(Fault::new(place, fault, "RFC 7143 13.14 wants at most max_burst"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
