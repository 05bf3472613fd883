//! `vscsi vhost-user-scsi`: the command line that QEMU's conventions for vhost-user backend programs
//! ask for (docs/interop/vhost-user.rst, "Backend program conventions").

use std::{collections::BTreeMap, ffi::OsString, os::fd::RawFd, path::PathBuf};

use clap::{ArgMatches, Args};
use serde_json::{Value, json};

use super::{
    DiskOptions,
    disks::DiskLists,
    serve::{Plan, ServeError, default_name, or_none},
};
use crate::{
    config::{
        Allow, Config, IO_TIMEOUT, IscsiConfig, Place, TargetConfig,
        srp::SrpConfig,
        vhost_user::{
            self, Controller, ControllerName, DEFAULT_QUEUES, Door, Protocol, SocketPlace,
        },
    },
    report::{Exit, Report},
};

#[derive(Clone, Debug, Args)]
#[group(id = "door", required = true, multiple = false, args = ["socket_path", "fd", "print_capabilities"])]
pub struct BackendArgs {
    /// Listen on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Serve the VMM that is connected to this inherited descriptor, and end when it disconnects
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(RawFd).range(0..))]
    pub fd: Option<RawFd>,
    /// Print what this program is and can as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
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
    #[command(flatten)]
    pub options: DiskOptions,
    /// Request queues, 1 to 256
    #[arg(long, value_name = "N", value_parser = vhost_user::queues, default_value_t = DEFAULT_QUEUES)]
    pub queues: u16,
    /// What the guest's initiator port is called [default: the socket's file name without suffix]
    #[arg(long, value_name = "NAME", value_parser = ControllerName::parse)]
    pub name: Option<ControllerName>,
    /// Threads that serve [default: one a core, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub reactors: Option<u16>,
    /// Seconds that a disk may take for a command, 0 for ever
    #[arg(long, value_name = "SECONDS", default_value_t = IO_TIMEOUT,
        value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub io_timeout: u32,
    /// Keep reservations and mode pages here, or "none" [default: /var/lib/vscsi, or
    /// $XDG_STATE_HOME/vscsi]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl BackendArgs {
    /// What the arguments say. `matches` are those of this subcommand. A control socket there is
    /// only where `control` says so: many such programs run on one host.
    pub fn plan(&self, matches: &ArgMatches, control: Option<&PathBuf>) -> Result<Plan, Report> {
        let lists = DiskLists { files: &self.disks, ram: &self.ram, null: &self.null };
        let luns = lists.in_order(&self.options, matches)?;
        let fault = |fault| ServeError::Controller { option: PROGRAM, fault };
        let (door, usual) = match (&self.socket_path, self.fd) {
            (Some(path), _) => {
                let place = SocketPlace::new(path).map_err(fault)?;
                let name = place.default_name();
                (Door::Socket(place), name)
            }
            (None, Some(fd)) => (Door::Descriptor(fd), ControllerName::parse(PROGRAM)),
            (None, None) => {
                return Err(Report::new(Exit::Usage, "no-socket", "there is no socket")
                    .fix("--socket-path=PATH or --fd=FDNUM"));
            }
        };
        if luns.is_empty() && control.is_none() {
            return Err(Report::new(Exit::Usage, "no-disk", "there is no disk to export")
                .fix("name an image, or give --ram SIZE"));
        }
        let name = self.name.clone().map_or(usual, Ok).map_err(fault)?;
        let target = TargetConfig {
            name: default_name(),
            alias: None,
            allow: Allow::Names(Vec::new()),
            chap: None,
            portal_groups: None,
            redirect: None,
            luns,
        };
        let controller = Controller {
            protocol: Protocol::VhostUser,
            door,
            queues: self.queues,
            name,
            targets: BTreeMap::from([(0, target.name.clone())]),
        };
        let config = Config {
            reactors: self.reactors,
            state_dir: self.state_dir.as_deref().map_or(Place::Usual, or_none),
            control: control.map_or(Place::Nowhere, |path| or_none(path)),
            portal_groups: Vec::new(),
            controllers: vec![controller],
            tcmu: false,
            srp: SrpConfig::default(),
            discovery_chap: None,
            shared_receives: None,
            io_timeout: self.io_timeout,
            iscsi: IscsiConfig::default(),
            targets: vec![target],
        };
        Ok(Plan { config, demo: false })
    }
}

/// What `--print-capabilities` prints: `VHostUserBackendCapabilities` of QEMU's
/// docs/interop/vhost-user.json, which has no features for the type `scsi`.
pub fn capabilities() -> Value {
    json!({"type": "scsi", "features": []})
}

/// The arguments as [`super::Cli`] takes them: called by the name of a backend program, it is one.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    let called = arguments.first().map(PathBuf::from);
    if called.as_deref().and_then(|path| path.file_name()).is_some_and(|name| name == PROGRAM) {
        arguments.insert(1, PROGRAM.into());
    }
    arguments
}

const PROGRAM: &str = "vhost-user-scsi";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::{CommandFactory, FromArgMatches, error::ErrorKind};

    fn plan(args: &str) -> Result<Plan, Report> {
        let words = args.split_whitespace().map(OsString::from);
        let matches = Cli::command().try_get_matches_from(arguments(words)).unwrap();
        let cli = Cli::from_arg_matches(&matches).unwrap();
        let Command::VhostUserScsi(backend) = cli.command else { panic!("another command") };
        let matches = matches.subcommand_matches(PROGRAM).unwrap();
        backend.plan(matches, cli.common.control.as_ref())
    }

    #[test]
    fn the_name_of_the_program_makes_it_a_backend() {
        let plan = plan("/usr/libexec/vhost-user-scsi --socket-path=/run/vm1.sock a.img").unwrap();
        let [controller] = &plan.config.controllers[..] else { panic!("{:?}", plan.config) };
        assert_eq!((controller.queues, controller.name.as_str()), (4, "vm1"));
        assert_eq!(plan.config.control, Place::Nowhere);
        assert_eq!(plan.config.targets[0].luns.len(), 1);
    }

    #[test]
    fn a_descriptor_is_a_door() {
        let plan = plan("vscsi vhost-user-scsi --fd=3 --ram 1M --name x --queues 2").unwrap();
        let [controller] = &plan.config.controllers[..] else { panic!("{:?}", plan.config) };
        assert_eq!(controller.door, Door::Descriptor(3));
        assert_eq!((controller.queues, controller.name.as_str()), (2, "x"));
    }

    #[test]
    fn there_is_exactly_one_door() {
        for (args, kind) in [
            ("a.img", ErrorKind::MissingRequiredArgument),
            ("--fd=3 --socket-path=a a.img", ErrorKind::ArgumentConflict),
            ("--fd=3 --print-capabilities", ErrorKind::ArgumentConflict),
            ("--fd=-1 a.img", ErrorKind::ValueValidation),
        ] {
            let words = [PROGRAM, PROGRAM].into_iter().chain(args.split_whitespace());
            let error = Cli::command().try_get_matches_from(words).unwrap_err();
            assert_eq!(error.kind(), kind, "{args}");
        }
    }

    #[test]
    fn a_controller_without_disks_needs_a_control_socket() {
        let error = plan("vhost-user-scsi --socket-path=/x/a").unwrap_err();
        assert_eq!(error.code, "no-disk");
        assert!(plan("vhost-user-scsi --socket-path=/x/a --control /x/c").is_ok());
    }
}
