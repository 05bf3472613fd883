//! What to export and to whom, as the command line or a configuration file says it. A [`Config`] is
//! complete and consistent: nobody checks it again. It holds no secrets, only where they are.

pub mod file;
mod locate;
pub mod srp;
pub mod vhost_user;

use std::{net::SocketAddr, path::PathBuf};

use iscsi::{
    chap::Algorithms,
    names::IscsiName,
    negotiate::{DigestPolicy, Preferences},
};

use crate::{disk::Disk, secrets::SecretFile};
use srp::SrpConfig;
use vhost_user::Controller;

/// Everything that runs in one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that serve; `None` for as many as there are cores, at most [`MAX_DEFAULT_REACTORS`].
    pub reactors: Option<u16>,
    /// Where reservations and mode pages are kept.
    pub state_dir: Place,
    /// The control socket.
    pub control: Place,
    /// Where to listen.
    pub portal_groups: Vec<PortalGroup>,
    /// Controllers for VMMs, those of vhost-user first.
    pub controllers: Vec<Controller>,
    /// Devices of the kernel's TCMU are served.
    pub tcmu: bool,
    /// SRP over RDMA.
    pub srp: SrpConfig,
    /// Receive buffers that the RDMA connections of a reactor share; `None` for some of their own for
    /// each.
    // Only tests look at it in a build without RDMA.
    #[cfg_attr(not(feature = "rdma"), allow(dead_code))]
    pub shared_receives: Option<u32>,
    /// How discovery sessions authenticate.
    pub discovery_chap: Option<ChapConfig>,
    /// Seconds that a backend may take for a command; 0 for ever.
    pub io_timeout: u32,
    /// What iSCSI sessions may have.
    pub iscsi: IscsiConfig,
    /// The targets.
    pub targets: Vec<TargetConfig>,
}

impl Config {
    /// Whether something in it needs RDMA.
    pub fn needs_rdma(&self) -> bool {
        !self.srp.listen.is_empty() || self.portal_groups.iter().any(|group| !group.iser.is_empty())
    }
}

/// A path with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Where it belongs for this user.
    #[default]
    Usual,
    /// There.
    At(PathBuf),
    /// None at all.
    Nowhere,
}

/// Portals that lead to the same sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalGroup {
    /// Target portal group tag.
    pub tag: u16,
    /// Addresses to listen on for TCP.
    pub listen: Vec<SocketAddr>,
    /// Addresses to listen on for iSER.
    pub iser: Vec<SocketAddr>,
    /// How solicited data is addressed over iSER.
    pub write_address: WriteAddress,
}

/// What an initiator's write address (iSER, RFC 7145 8.2 and 9.2) is the address of, unless the login
/// says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteAddress {
    /// Of the first byte that was not sent unasked, as Linux and libiscsi do.
    #[default]
    Solicited,
    /// Of the first byte of all, as RFC 7145 has it where nothing was declared.
    Whole,
}

/// Another portal to log in at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `ADDR:PORT`, as RFC 7143 writes it.
    pub to: String,
    /// For good.
    pub permanent: bool,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its iSCSI name.
    pub name: IscsiName,
    /// What it calls itself besides.
    pub alias: Option<String>,
    /// Who may log in.
    pub allow: Allow,
    /// The authentication initiators must pass.
    pub chap: Option<ChapConfig>,
    /// Tags of the portal groups it is reached by; `None` for all.
    pub portal_groups: Option<Vec<u16>>,
    /// Where logins are sent instead.
    pub redirect: Option<Redirect>,
    /// Its logical units.
    pub luns: Vec<Disk>,
}

impl TargetConfig {
    /// Whether iSCSI reaches it by the portal group with this tag.
    pub fn is_reached_by(&self, tag: u16) -> bool {
        self.portal_groups.as_ref().is_none_or(|tags| tags.contains(&tag))
    }
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Everybody who reaches a portal.
    Any,
    /// These initiators, and nobody when there are none.
    Names(Vec<IscsiName>),
}

/// CHAP for a target or for discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapConfig {
    /// The credentials.
    pub file: SecretFile,
    /// The hashes that may be used.
    pub algorithms: Algorithms,
    /// The target must be able to authenticate itself too.
    pub mutual: bool,
}

/// What iSCSI sessions may have.
#[derive(Clone, Copy, Debug)]
pub struct IscsiConfig {
    /// What to negotiate for.
    pub preferences: Preferences,
    /// Commands a session may have in progress.
    pub window: u32,
    /// Sessions of one initiator.
    pub sessions_per_initiator: u32,
    /// Connections of one portal that have not finished their login.
    pub half_open: u32,
    /// Seconds a login may take.
    pub login_timeout: u32,
    /// Seconds of silence after which the target asks whether the initiator is there.
    pub ping_after: u32,
    /// Seconds the answer may take.
    pub ping_answer: u32,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        Self {
            preferences: Preferences {
                max_connections: 8,
                header_digest: DigestPolicy::Allowed,
                data_digest: DigestPolicy::Allowed,
                ..Preferences::default()
            },
            window: 128,
            sessions_per_initiator: 64,
            half_open: 12_000,
            login_timeout: 15,
            ping_after: 30,
            ping_answer: 15,
        }
    }
}

/// The name of the target that the command line makes.
pub const DEFAULT_TARGET: &str = "iqn.2026-11.org.vscsi:disk";

/// What [`Config::io_timeout`] is unless it is given.
pub const IO_TIMEOUT: u32 = 60;

/// The port that IANA gave to iSCSI.
pub const ISCSI_PORT: u16 = 3260;

/// More threads are started only when asked for.
pub const MAX_DEFAULT_REACTORS: u16 = 4;
