//! `vscsi serve`: from its arguments to a [`Config`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args};
use iscsi::{chap::Algorithms, names::IscsiName};
use thiserror::Error;

use super::{
    DiskOptions,
    disks::{DiskListError, DiskLists},
};
use crate::{
    config::{
        Allow, ChapConfig, Config, DEFAULT_TARGET, IO_TIMEOUT, IscsiConfig, Place, PortalGroup,
        TargetConfig,
        file::{self, ConfigError, PortalError},
        srp::{self, InitiatorError, PortName, SrpAllow, SrpConfig, SrpInitiator, SrpPort},
        vhost_user::{
            self, Controller, ControllerError, ControllerName, DEFAULT_QUEUES, Door, Protocol,
            Socket,
        },
    },
    disk::{Disk, Source},
    report::{Exit, Report},
    secrets::SecretFile,
};

#[derive(Clone, Debug, Args)]
#[group(id = "for_vmm", multiple = true, args = ["vhost_user", "vfio_user"])]
pub struct ServeArgs {
    /// Image file, block device or NVMe controller that is bound to vfio-pci (nvme:0000:03:00.0 or
    /// nvme:0000:03:00.0/NSID), with options as in PATH,ro,bs=4096,pbs=4096,direct,removable,handover,poll,erase-rate=64M,serial=X,lun=N
    #[arg(value_name = "DISK")]
    pub disks: Vec<String>,
    /// Export a RAM disk of this size; options follow as with DISK
    #[arg(long, value_name = "SIZE")]
    pub ram: Vec<String>,
    /// Export a disk of this size that stores nothing and reads zeroes
    #[arg(long, value_name = "SIZE")]
    pub null: Vec<String>,
    /// Listen for iSCSI initiators here; port 3260 unless given
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub iscsi: Vec<String>,
    /// Listen for iSCSI initiators over RDMA (iSER) here; port 3260 unless given
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub iser: Vec<String>,
    /// Listen for SRP initiators over RDMA here
    #[arg(long, value_name = "ADDR:PORT")]
    pub srp: Vec<String>,
    /// Let this SRP initiator log in: an initiator port identifier, an IP address, or "any"
    #[arg(long, value_name = "ID|ADDR|any", requires = "srp")]
    pub srp_allow: Vec<String>,
    /// Be a vhost-user-scsi controller for the VMM that connects to this socket, with options as in
    /// SOCKET,name=NAME,queues=N,mode=0660
    #[arg(long, value_name = "SOCKET")]
    pub vhost_user: Vec<String>,
    /// Be a virtio-scsi PCI function for the VMM that connects to this socket by vfio-user, with
    /// options as in SOCKET,name=NAME,queues=N,mode=0660
    #[arg(long, value_name = "SOCKET")]
    pub vfio_user: Vec<String>,
    /// Request queues of each controller for a VMM, 1 to 256 [default: 4]
    #[arg(long, value_name = "N", value_parser = vhost_user::queues, requires = "for_vmm")]
    pub queues: Option<u16>,
    /// Serve the kernel's TCMU backstores whose dev_config is vscsi/TARGET/LUN
    #[arg(long)]
    pub tcmu: bool,
    /// Name of the target [default: iqn.2026-11.org.vscsi:disk]
    #[arg(long, value_name = "IQN")]
    pub name: Option<IscsiName>,
    /// Let this initiator log in, by iSCSI and iSER
    #[arg(long, value_name = "IQN", conflicts_with = "allow_any")]
    pub allow: Vec<IscsiName>,
    /// Let every initiator log in, by iSCSI and iSER
    #[arg(long)]
    pub allow_any: bool,
    /// Ask initiators for CHAP: a file with one "USER SECRET" a line, readable by its owner only
    #[arg(long, value_name = "FILE")]
    pub chap_file: Option<PathBuf>,
    /// Ask for CHAP in discovery sessions too
    #[arg(long, value_name = "FILE")]
    pub discovery_chap_file: Option<PathBuf>,
    #[command(flatten)]
    pub options: DiskOptions,
    /// Threads that serve [default: one a core, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub reactors: Option<u16>,
    /// Seconds that a disk may take for a command, 0 for ever [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub io_timeout: Option<u32>,
    /// Keep reservations and mode pages here, or "none" [default: /var/lib/vscsi, or
    /// $XDG_STATE_HOME/vscsi]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Serve what this file says
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["disks", "ram", "null", "iscsi", "iser", "srp", "srp_allow", "vhost_user", "vfio_user", "tcmu", "queues", "name", "allow", "allow_any",
            "chap_file", "discovery_chap_file", "block_size", "read_only", "removable", "direct",
            "serial"]
    )]
    pub config: Option<PathBuf>,
}

/// What is to be served.
#[derive(Debug)]
pub struct Plan {
    /// All of it.
    pub config: Config,
    /// Nothing was asked for: it is the target that shows how it works.
    pub demo: bool,
}

/// Why the arguments make no target.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Disks, but nowhere to reach them.
    #[error("there is nowhere to listen")]
    NoPortal,
    /// Initiators are allowed, but no address.
    #[error("--allow and CHAP are for iSCSI initiators, and there is neither --iscsi nor --iser")]
    NoIscsi,
    /// Nobody may log in.
    #[error("nobody may log in")]
    NobodyAllowed,
    /// No SRP initiator may log in.
    #[error("no SRP initiator may log in")]
    NoSrpAllowed,
    /// Everybody and some.
    #[error("--srp-allow any lets everybody in, so that the others mean nothing")]
    SrpAnyAndSome,
    /// An SRP initiator that is none.
    #[error("--srp-allow: {0}")]
    SrpInitiator(#[from] InitiatorError),
    /// An address for SRP that is none.
    #[error("--srp: {0}")]
    SrpListen(#[from] srp::ListenError),
    /// The disks.
    #[error(transparent)]
    Disks(#[from] DiskListError),
    /// An address that is none.
    #[error("--{option}: {fault}")]
    Portal {
        /// Of which option.
        option: &'static str,
        /// What is wrong.
        fault: PortalError,
    },
    /// A socket that is none.
    #[error("--{option}: {fault}")]
    Controller {
        /// Of which option.
        option: &'static str,
        /// What is wrong.
        fault: ControllerError,
    },
    /// Two sockets that are one.
    #[error("the socket {} is there twice", .0.display())]
    SocketTwice(PathBuf),
    /// Two controllers that reservations could not tell apart.
    #[error("two controllers are called {0}")]
    ControllerTwice(ControllerName),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl From<ServeError> for Report {
    fn from(error: ServeError) -> Self {
        let what = error.to_string();
        match error {
            ServeError::NoPortal => Self::new(Exit::Usage, "no-portal", what)
                .why("nothing is bound unless it is asked for")
                .fix(
                    "add --vhost-user SOCKET for a VMM, or --iscsi 0.0.0.0 --iscsi [::]; over \
                      RDMA --iser ADDR or --srp ADDR:PORT; --tcmu for the kernel's fabrics",
                ),
            ServeError::NoIscsi => Self::new(Exit::Usage, "no-portal", what).fix(
                "add --iscsi ADDR, or leave them out: who may connect to a --vhost-user \
                      socket is said by its permissions, and who by --srp with --srp-allow",
            ),
            ServeError::NobodyAllowed => Self::new(Exit::Usage, "nobody-allowed", what)
                .why("an initiator may log in only when it is allowed")
                .fix("add --allow IQN (see /etc/iscsi/initiatorname.iscsi there), or --allow-any"),
            ServeError::NoSrpAllowed => Self::new(Exit::Usage, "nobody-allowed", what)
                .why("an initiator may log in only when it is allowed, and --allow names iSCSI's")
                .fix(
                    "add --srp-allow with an address or an initiator port identifier (the \
                      last 16 digits are those of /sys/class/infiniband/DEV/ports/1/gids/0 \
                      there), or --srp-allow any",
                ),
            ServeError::SrpAnyAndSome => {
                Self::new(Exit::Usage, "srp", what).fix("keep one of the two")
            }
            ServeError::SrpInitiator(_) => Self::new(Exit::Usage, "srp", what)
                .fix("--srp-allow 192.0.2.7, or --srp-allow 0x0000000000000000505400fffe123456"),
            ServeError::SrpListen(_) => {
                Self::new(Exit::Usage, "portal", what).why("SRP has no port of its own")
            }
            ServeError::Disks(error) => error.into(),
            ServeError::Portal { .. } => Self::new(Exit::Usage, "portal", what),
            ServeError::Controller { .. } => {
                Self::new(Exit::Usage, "vhost-user", what).fix(SOCKET_OPTIONS)
            }
            ServeError::SocketTwice(_) | ServeError::ControllerTwice(_) => {
                Self::new(Exit::Usage, "vhost-user", what)
                    .why("each controller is one initiator port with one socket")
                    .fix(SOCKET_OPTIONS)
            }
            ServeError::Config(error) => error.into(),
        }
    }
}

impl ServeArgs {
    /// What the arguments say. `matches` are those of this subcommand: they know the order of disks
    /// across options. `control` is the common option.
    pub fn plan(
        &self,
        matches: &ArgMatches,
        control: Option<&PathBuf>,
    ) -> Result<Plan, ServeError> {
        let mut plan = match &self.config {
            Some(path) => Plan { config: file::read(path)?, demo: false },
            None => self.of_arguments(matches)?,
        };
        let config = &mut plan.config;
        if let Some(control) = control {
            config.control = or_none(control);
        }
        if let Some(directory) = &self.state_dir {
            config.state_dir = or_none(directory);
        }
        config.reactors = self.reactors.or(config.reactors);
        config.io_timeout = self.io_timeout.unwrap_or(config.io_timeout);
        Ok(plan)
    }

    fn of_arguments(&self, matches: &ArgMatches) -> Result<Plan, ServeError> {
        let lists = DiskLists { files: &self.disks, ram: &self.ram, null: &self.null };
        let disks = lists.in_order(&self.options, matches)?;
        let sockets = self.sockets()?;
        let iser = portals("iser", &self.iser)?;
        let srp_listen =
            self.srp.iter().map(|text| srp::listen(text)).collect::<Result<Vec<_>, _>>()?;
        let srp_allow = self.srp_allow()?;
        let demo = disks.is_empty()
            && self.iscsi.is_empty()
            && iser.is_empty()
            && srp_listen.is_empty()
            && sockets.is_empty()
            && !self.tcmu
            && self.allow.is_empty();
        let listen = match demo {
            true => portals("iscsi", &["127.0.0.1".to_owned()])?,
            false => portals("iscsi", &self.iscsi)?,
        };
        let no_iscsi = listen.is_empty() && iser.is_empty();
        let allow = match (no_iscsi, demo || self.allow_any, self.allow.is_empty()) {
            (true, ..) if sockets.is_empty() && srp_listen.is_empty() && !self.tcmu => {
                return Err(ServeError::NoPortal);
            }
            (true, false, true) if self.chap_file.is_none() => Allow::Names(Vec::new()),
            (true, ..) => return Err(ServeError::NoIscsi),
            (false, true, _) => Allow::Any,
            (false, false, false) => Allow::Names(self.allow.clone()),
            (false, false, true) => return Err(ServeError::NobodyAllowed),
        };
        let luns = match demo {
            true => vec![Disk::new(Source::Ram(DEMO_SIZE), self.options.defaults())],
            false => disks,
        };
        let chap = |path: &PathBuf| ChapConfig {
            file: SecretFile { path: path.clone(), any_mode: false },
            algorithms: Algorithms::ALL,
            mutual: false,
        };
        let name = match &self.name {
            Some(name) => name.clone(),
            None => default_name(),
        };
        let controller = |(protocol, socket): (Protocol, Socket)| Controller {
            protocol,
            door: Door::Socket(socket.place),
            queues: socket.queues.or(self.queues).unwrap_or(DEFAULT_QUEUES),
            name: socket.name,
            targets: BTreeMap::from([(0, name.clone())]),
        };
        let controllers = sockets.into_iter().map(controller).collect();
        let srp = match srp_listen.is_empty() {
            true => SrpConfig::default(),
            false => SrpConfig {
                listen: srp_listen,
                ports: vec![SrpPort {
                    target: name.clone(),
                    name: PortName::of_target(&name),
                    allow: srp_allow,
                }],
            },
        };
        let target = TargetConfig {
            name,
            alias: None,
            allow,
            chap: self.chap_file.as_ref().map(chap),
            portal_groups: None,
            redirect: None,
            luns,
        };
        let groups = match no_iscsi {
            true => Vec::new(),
            false => vec![PortalGroup { tag: 1, listen, iser, write_address: Default::default() }],
        };
        let config = Config {
            reactors: None,
            state_dir: Place::Usual,
            control: Place::Usual,
            portal_groups: groups,
            controllers,
            tcmu: self.tcmu,
            srp,
            discovery_chap: self.discovery_chap_file.as_ref().map(chap),
            shared_receives: None,
            io_timeout: IO_TIMEOUT,
            iscsi: IscsiConfig::default(),
            targets: vec![target],
        };
        Ok(Plan { config, demo })
    }

    fn srp_allow(&self) -> Result<SrpAllow, ServeError> {
        let any = |text: &String| text == "any";
        match (self.srp_allow.iter().any(any), self.srp_allow.len()) {
            (_, 0) if !self.srp.is_empty() => Err(ServeError::NoSrpAllowed),
            (true, 1) => Ok(SrpAllow::Any),
            (true, _) => Err(ServeError::SrpAnyAndSome),
            (false, _) => {
                let list = self.srp_allow.iter().map(|text| SrpInitiator::parse(text));
                Ok(SrpAllow::Only(list.collect::<Result<_, _>>()?))
            }
        }
    }

    fn sockets(&self) -> Result<Vec<(Protocol, Socket)>, ServeError> {
        let vhost_user = self.vhost_user.iter().map(|text| (Protocol::VhostUser, text));
        let vfio_user = self.vfio_user.iter().map(|text| (Protocol::VfioUser, text));
        let mut sockets: Vec<(Protocol, Socket)> = Vec::new();
        for (protocol, text) in vhost_user.chain(vfio_user) {
            let option = protocol.name();
            let socket =
                Socket::parse(text).map_err(|fault| ServeError::Controller { option, fault })?;
            for (_, other) in &sockets {
                if other.place.path() == socket.place.path() {
                    return Err(ServeError::SocketTwice(socket.place.path().to_owned()));
                }
                if other.name == socket.name {
                    return Err(ServeError::ControllerTwice(socket.name));
                }
            }
            sockets.push((protocol, socket));
        }
        Ok(sockets)
    }
}

fn portals(option: &'static str, texts: &[String]) -> Result<Vec<SocketAddr>, ServeError> {
    let portals = texts.iter().map(|text| file::portal(text));
    portals.collect::<Result<_, _>>().map_err(|fault| ServeError::Portal { option, fault })
}

pub(super) fn or_none(path: &Path) -> Place {
    if path.as_os_str() == "none" { Place::Nowhere } else { Place::At(path.to_owned()) }
}

#[allow(clippy::expect_used)] // A constant, which a test parses.
pub(super) fn default_name() -> IscsiName {
    IscsiName::parse(DEFAULT_TARGET).expect("the default target has a valid name")
}

const DEMO_SIZE: u64 = 1 << 30;
const SOCKET_OPTIONS: &str = "SOCKET[,name=NAME][,queues=1 to 256][,mode=0660]";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::{CommandFactory, FromArgMatches};

    fn plan(args: &str) -> Result<Plan, ServeError> {
        let words = ["vscsi", "serve"].into_iter().chain(args.split_whitespace());
        let matches = Cli::command().try_get_matches_from(words).unwrap();
        let cli = Cli::from_arg_matches(&matches).unwrap();
        let Command::Serve(serve) = cli.command else { panic!("not serve") };
        serve.plan(matches.subcommand_matches("serve").unwrap(), cli.common.control.as_ref())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn disks_keep_their_order_across_options() {
        let args = "--ram 1M a.img --null 2M b.img,ro --iscsi 127.0.0.1 --allow-any";
        let plan = plan(args).unwrap();
        let sources: Vec<_> =
            plan.config.targets[0].luns.iter().map(|disk| disk.source.clone()).collect();
        let expected = [
            Source::Ram(1 << 20),
            Source::File("a.img".into()),
            Source::Null(2 << 20),
            Source::File("b.img".into()),
        ];
        assert_eq!(sources, expected);
        assert!(plan.config.targets[0].luns[3].read_only);
    }

    #[test]
    fn no_arguments_give_a_ram_disk_on_loopback() {
        let plan = plan("").unwrap();
        assert!(plan.demo);
        assert_eq!(plan.config.portal_groups[0].listen, ["127.0.0.1:3260".parse().unwrap()]);
        assert_eq!(plan.config.targets[0].luns[0].source, Source::Ram(1 << 30));
        assert_eq!(plan.config.targets[0].allow, Allow::Any);
        assert_eq!(plan.config.targets[0].name, default_name());
    }

    #[test]
    fn a_disk_without_an_address_is_refused() {
        assert!(matches!(plan("a.img --allow-any"), Err(ServeError::NoPortal)));
    }

    #[test]
    fn a_disk_without_anybody_allowed_is_refused() {
        assert!(matches!(plan("a.img --iscsi 127.0.0.1"), Err(ServeError::NobodyAllowed)));
    }

    #[test]
    fn a_socket_is_enough_and_needs_nobody_allowed() {
        let plan = plan("a.img --vhost-user /run/x/vm1.sock --queues 8").unwrap();
        let [controller] = &plan.config.controllers[..] else { panic!("{:?}", plan.config) };
        assert_eq!((controller.queues, controller.name.as_str()), (8, "vm1"));
        assert_eq!(controller.targets, BTreeMap::from([(0, default_name())]));
        assert!(!plan.demo && plan.config.portal_groups.is_empty());
        assert_eq!(plan.config.targets[0].allow, Allow::Names(Vec::new()));
    }

    #[test]
    fn iscsi_beside_a_socket_needs_somebody_allowed() {
        let args = "a.img --vhost-user /x/a --iscsi 127.0.0.1";
        assert!(matches!(plan(args), Err(ServeError::NobodyAllowed)));
        assert_eq!(plan(&format!("{args} --allow-any")).unwrap().config.controllers.len(), 1);
    }

    #[test]
    fn options_of_iscsi_without_an_address_are_refused() {
        for option in ["--allow-any", "--allow iqn.2026-11.org.x:i", "--chap-file f"] {
            let plan = plan(&format!("a.img --vhost-user /x/a {option}"));
            assert!(matches!(plan, Err(ServeError::NoIscsi)), "{option}");
        }
    }

    #[test]
    fn controllers_that_would_be_one_are_refused() {
        let args = "a.img --vhost-user /x/a.sock --vhost-user /y/a.sock";
        assert!(matches!(plan(args), Err(ServeError::ControllerTwice(_))));
        let args = "a.img --vhost-user /x/a.sock --vhost-user /x/a.sock,name=b";
        assert!(matches!(plan(args), Err(ServeError::SocketTwice(_))));
        let args = "a.img --queues 8 --vhost-user /x/a.sock --vhost-user /y/a.sock,name=b,queues=2";
        let plan = plan(args).unwrap();
        let queues: Vec<u16> = plan.config.controllers.iter().map(|c| c.queues).collect();
        assert_eq!(queues, [8, 2]);
    }

    #[test]
    fn controllers_of_both_protocols_share_names_and_options() {
        let args = "a.img --vfio-user /x/a.sock,queues=2 --queues 8 --vhost-user /x/b.sock";
        let controllers = plan(args).unwrap().config.controllers;
        let found: Vec<_> = controllers.iter().map(|c| (c.protocol, c.queues)).collect();
        assert_eq!(found, [(Protocol::VhostUser, 8), (Protocol::VfioUser, 2)]);
        let args = "a.img --vhost-user /x/a.sock --vfio-user /y/a.sock";
        assert!(matches!(plan(args), Err(ServeError::ControllerTwice(_))));
        let args = "a.img --vhost-user /x/a.sock --vfio-user /x/a.sock,name=b";
        assert!(matches!(plan(args), Err(ServeError::SocketTwice(_))));
        let error = plan("a.img --vfio-user /x/a,queues=0").unwrap_err().to_string();
        assert!(error.starts_with("--vfio-user: \"0\" is not a number"), "{error}");
    }

    #[test]
    fn the_kernel_is_enough_and_needs_nobody_allowed() {
        let plan = plan("a.img --tcmu").unwrap();
        assert!(plan.config.tcmu && !plan.demo && plan.config.portal_groups.is_empty());
        assert_eq!(plan.config.targets[0].allow, Allow::Names(Vec::new()));
    }

    #[test]
    fn iser_is_iscsi_for_who_may_log_in() {
        let refused = plan("a.img --iser 192.0.2.1");
        assert!(matches!(refused, Err(ServeError::NobodyAllowed)));
        let args = "a.img --iser 192.0.2.1 --iser [2001:db8::1]:3261 --iscsi 192.0.2.1 \
                    --allow iqn.2026-11.org.x:i";
        let plan = plan(args).unwrap();
        let [group] = &plan.config.portal_groups[..] else { panic!("{:?}", plan.config) };
        let iser = ["192.0.2.1:3260", "[2001:db8::1]:3261"].map(|text| text.parse().unwrap());
        assert_eq!((&group.iser[..], group.listen.len()), (&iser[..], 1));
        assert!(matches!(&plan.config.targets[0].allow, Allow::Names(names) if names.len() == 1));
        assert!(!plan.demo && plan.config.needs_rdma());
    }

    #[test]
    fn srp_needs_a_port_and_somebody_allowed() {
        assert!(matches!(plan("a.img --srp 192.0.2.1"), Err(ServeError::SrpListen(_))));
        let args = "a.img --srp 192.0.2.1:5555";
        assert!(matches!(plan(args), Err(ServeError::NoSrpAllowed)));
        let with = |more: &str| plan(&format!("{args} {more}"));
        assert!(matches!(with("--allow-any"), Err(ServeError::NoSrpAllowed)));
        assert!(matches!(with("--srp-allow any --allow-any"), Err(ServeError::NoIscsi)));
        assert!(matches!(with("--srp-allow host9"), Err(ServeError::SrpInitiator(_))));
        let both = with("--srp-allow any --srp-allow 192.0.2.7");
        assert!(matches!(both, Err(ServeError::SrpAnyAndSome)));
        let plan = with("--srp-allow 192.0.2.7 --srp-allow 505400fffe123456").unwrap();
        let [port] = &plan.config.srp.ports[..] else { panic!("{:?}", plan.config) };
        assert_eq!((&port.target, port.name), (&default_name(), PortName::of_target(&port.target)));
        assert!(matches!(&port.allow, SrpAllow::Only(list) if list.len() == 2));
        assert_eq!(plan.config.targets[0].allow, Allow::Names(Vec::new()));
        assert!(plan.config.portal_groups.is_empty() && plan.config.needs_rdma());
    }

    #[test]
    fn an_address_that_is_none_names_its_option() {
        let error = plan("a.img --iser host9 --allow-any").unwrap_err().to_string();
        assert!(error.starts_with("--iser: \"host9\" is not an address"), "{error}");
    }

    #[test]
    fn one_serial_number_for_two_disks_is_refused() {
        let args = "a.img b.img --serial X --iscsi 127.0.0.1 --allow-any";
        assert!(matches!(plan(args), Err(ServeError::Disks(DiskListError::Serial(2)))));
    }

    #[test]
    fn the_same_number_twice_is_refused() {
        let args = "a.img,lun=1 b.img,lun=1 --iscsi 127.0.0.1 --allow-any";
        assert!(matches!(plan(args), Err(ServeError::Disks(DiskListError::Number(1)))));
    }

    #[test]
    fn common_options_reach_the_plan() {
        let plan = plan("--control none --state-dir /s --reactors 3 --io-timeout 0").unwrap();
        assert_eq!(plan.config.control, Place::Nowhere);
        assert_eq!(plan.config.state_dir, Place::At("/s".into()));
        assert_eq!((plan.config.reactors, plan.config.io_timeout), (Some(3), 0));
    }
}
