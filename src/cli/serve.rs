//! `vscsi serve`: from its arguments to a [`Config`].

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args};
use iscsi::{chap::Algorithms, names::IscsiName};
use thiserror::Error;

use super::DiskOptions;
use crate::{
    config::{
        Allow, ChapConfig, Config, DEFAULT_TARGET, IscsiConfig, Place, PortalGroup, TargetConfig,
        file::{self, ConfigError, PortalError},
    },
    disk::{Disk, DiskError, Kind, Source},
    report::{Exit, Report},
    secrets::SecretFile,
};

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Image file or block device, with options as in PATH,ro,bs=4096,pbs=4096,direct,removable,erase-rate=64M,serial=X,lun=N
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
    /// Name of the target [default: iqn.2026-11.org.vscsi:disk]
    #[arg(long, value_name = "IQN")]
    pub name: Option<IscsiName>,
    /// Let this initiator log in
    #[arg(long, value_name = "IQN", conflicts_with = "allow_any")]
    pub allow: Vec<IscsiName>,
    /// Let every initiator log in
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
    /// Keep reservations and mode pages here, or "none" [default: /var/lib/vscsi, or
    /// $XDG_STATE_HOME/vscsi]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Serve what this file says
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["disks", "ram", "null", "iscsi", "name", "allow", "allow_any",
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
    /// Disks, but no address.
    #[error("there is nowhere to listen")]
    NoPortal,
    /// Nobody may log in.
    #[error("nobody may log in")]
    NobodyAllowed,
    /// A serial number for several disks.
    #[error("--serial names one disk, and there are {0}")]
    Serial(usize),
    /// Two disks want the same number.
    #[error("LUN {0} is there twice")]
    Number(u16),
    /// A disk that is not understood.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An address that is none.
    #[error("--iscsi: {0}")]
    Portal(#[from] PortalError),
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
                .fix("add --iscsi 127.0.0.1 for this host, or --iscsi 0.0.0.0 --iscsi [::]"),
            ServeError::NobodyAllowed => Self::new(Exit::Usage, "nobody-allowed", what)
                .why("an initiator may log in only when it is allowed")
                .fix("add --allow IQN (see /etc/iscsi/initiatorname.iscsi there), or --allow-any"),
            ServeError::Serial(_) => Self::new(Exit::Usage, "serial", what)
                .fix("write it behind its disk: PATH,serial=X"),
            ServeError::Number(_) => Self::new(Exit::Usage, "lun-in-use", what)
                .fix("give each disk a number of its own, or none"),
            ServeError::Disk(_) => Self::new(Exit::Usage, "disk", what)
                .fix("PATH[,ro][,bs=512|4096][,pbs=BYTES][,direct][,removable][,erase-rate=SIZE][,serial=X][,lun=N]"),
            ServeError::Portal(_) => Self::new(Exit::Usage, "portal", what),
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
        Ok(plan)
    }

    fn of_arguments(&self, matches: &ArgMatches) -> Result<Plan, ServeError> {
        let disks = self.disks_in_order(matches)?;
        let demo = disks.is_empty() && self.iscsi.is_empty() && self.allow.is_empty();
        let listen = match demo {
            true => vec![file::portal("127.0.0.1")?],
            false => self.iscsi.iter().map(|text| file::portal(text)).collect::<Result<_, _>>()?,
        };
        if listen.is_empty() {
            return Err(ServeError::NoPortal);
        }
        let allow = match (demo || self.allow_any, self.allow.is_empty()) {
            (true, _) => Allow::Any,
            (false, false) => Allow::Names(self.allow.clone()),
            (false, true) => return Err(ServeError::NobodyAllowed),
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
        let target = TargetConfig {
            name,
            alias: None,
            allow,
            chap: self.chap_file.as_ref().map(chap),
            portal_groups: Vec::new(),
            redirect: None,
            luns,
        };
        let config = Config {
            reactors: None,
            state_dir: Place::Usual,
            control: Place::Usual,
            portal_groups: vec![PortalGroup { tag: 1, listen }],
            discovery_chap: self.discovery_chap_file.as_ref().map(chap),
            iscsi: IscsiConfig::default(),
            targets: vec![target],
        };
        Ok(Plan { config, demo })
    }

    fn disks_in_order(&self, matches: &ArgMatches) -> Result<Vec<Disk>, ServeError> {
        let defaults = self.options.defaults();
        let mut placed: Vec<(usize, Disk)> = Vec::new();
        for (id, kind, texts) in [
            ("disks", Kind::File, &self.disks),
            ("ram", Kind::Ram, &self.ram),
            ("null", Kind::Null, &self.null),
        ] {
            let indices = matches.indices_of(id).into_iter().flatten();
            for (index, text) in indices.zip(texts) {
                placed.push((index, Disk::parse(text, kind, defaults)?));
            }
        }
        placed.sort_by_key(|&(index, _)| index);
        let mut disks: Vec<Disk> = placed.into_iter().map(|(_, disk)| disk).collect();
        if let Some(serial) = &self.options.serial {
            match &mut disks[..] {
                [disk] => {
                    let named = Disk { serial: Some(serial.clone()), ..disk.clone() };
                    *disk = named.checked()?;
                }
                disks => return Err(ServeError::Serial(disks.len())),
            }
        }
        for (at, disk) in disks.iter().enumerate() {
            if let Some(number) = disk.number
                && disks.iter().skip(at + 1).any(|other| other.number == Some(number))
            {
                return Err(ServeError::Number(number));
            }
        }
        Ok(disks)
    }
}

fn or_none(path: &Path) -> Place {
    if path.as_os_str() == "none" { Place::Nowhere } else { Place::At(path.to_owned()) }
}

#[allow(clippy::expect_used)] // A constant, which a test parses.
fn default_name() -> IscsiName {
    IscsiName::parse(DEFAULT_TARGET).expect("the default target has a valid name")
}

const DEMO_SIZE: u64 = 1 << 30;

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
    fn one_serial_number_for_two_disks_is_refused() {
        let args = "a.img b.img --serial X --iscsi 127.0.0.1 --allow-any";
        assert!(matches!(plan(args), Err(ServeError::Serial(2))));
    }

    #[test]
    fn the_same_number_twice_is_refused() {
        let args = "a.img,lun=1 b.img,lun=1 --iscsi 127.0.0.1 --allow-any";
        assert!(matches!(plan(args), Err(ServeError::Number(1))));
    }

    #[test]
    fn common_options_reach_the_plan() {
        let plan = plan("--control none --state-dir /s --reactors 3").unwrap();
        assert_eq!(plan.config.control, Place::Nowhere);
        assert_eq!(plan.config.state_dir, Place::At("/s".into()));
        assert_eq!(plan.config.reactors, Some(3));
    }
}
