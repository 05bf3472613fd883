//! The command line.

pub mod backend;
pub mod disks;
pub mod serve;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::{disk, size};
pub use backend::BackendArgs;
pub use serve::ServeArgs;

/// A virtual SCSI target in user space.
#[derive(Debug, Parser)]
#[command(name = "vscsi", version, long_version = LONG_VERSION, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Say more: -v for details, -vv for every PDU that is out of the ordinary
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The control socket [default: /run/vscsi/control.sock, or $XDG_RUNTIME_DIR/vscsi/control.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Export disks; without arguments, a RAM disk to initiators of this host
    Serve(Box<ServeArgs>),
    /// Be a vhost-user-scsi device for one VMM, as QEMU's conventions for backend programs ask
    #[command(version)]
    VhostUserScsi(Box<BackendArgs>),
    /// Check a configuration file
    Check {
        /// The file
        file: PathBuf,
    },
    /// Say whether RDMA (iSER, SRP) is usable on this machine, and what to do where it is not
    Doctor,
    /// Logical units of a running target
    #[command(subcommand)]
    Lun(Lun),
    /// Sessions of a running target
    #[command(subcommand)]
    Session(Session),
    /// Counters of a running target
    Stats,
    /// End a running target as SIGTERM does
    Shutdown,
}

#[derive(Debug, Subcommand)]
pub enum Lun {
    /// Export one more disk
    Add(LunAdd),
    /// Take a disk out of service, once the commands in progress have ended
    Rm {
        /// Logical unit number
        lun: u16,
        #[command(flatten)]
        of: OfTarget,
    },
    /// Give a disk another size, or take over the size its device has now
    Resize {
        /// Logical unit number
        lun: u16,
        /// New size, as 10G; for a block device none
        #[arg(value_parser = size::parse)]
        size: Option<u64>,
        /// Allow the disk to become smaller; what lies behind the new end is lost
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        of: OfTarget,
    },
    /// List what is exported
    List,
}

/// Which target.
#[derive(Debug, Args)]
pub struct OfTarget {
    /// The target, where there is more than one
    #[arg(long, value_name = "IQN")]
    pub target: Option<String>,
}

#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false, args = ["disk", "ram", "null"])]
pub struct LunAdd {
    /// Image file, block device or NVMe controller that is bound to vfio-pci (nvme:0000:03:00.0 or
    /// nvme:0000:03:00.0/NSID), with options as in PATH,ro,bs=4096,pbs=4096,direct,removable,handover,poll,erase-rate=64M,serial=X
    pub disk: Option<String>,
    /// A RAM disk of this size
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<String>,
    /// A disk of this size that stores nothing
    #[arg(long, value_name = "SIZE")]
    pub null: Option<String>,
    /// Logical unit number [default: the lowest that is free]
    #[arg(long, value_name = "N")]
    pub lun: Option<u16>,
    #[command(flatten)]
    pub options: DiskOptions,
    #[command(flatten)]
    pub of: OfTarget,
}

/// Options of disks, for all that are given.
#[derive(Clone, Debug, Args)]
pub struct DiskOptions {
    /// Bytes a logical block
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = block_size)]
    pub block_size: u32,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Let initiators eject the medium
    #[arg(long)]
    pub removable: bool,
    /// Go around the page cache (O_DIRECT)
    #[arg(long)]
    pub direct: bool,
    /// Unit serial number, for a single disk
    #[arg(long)]
    pub serial: Option<String>,
}

impl DiskOptions {
    /// Without the serial number, which belongs to one disk.
    pub fn defaults(&self) -> disk::Defaults {
        disk::Defaults {
            block_size: self.block_size,
            read_only: self.read_only,
            removable: self.removable,
            direct: self.direct,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Session {
    /// List who is logged in by iSCSI, iSER and SRP, and the vhost-user and vfio-user controllers
    List,
    /// End a session of iSCSI, iSER or SRP
    Kick {
        /// Its number in the list, as 3 or srp3
        id: String,
    },
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 and 4096 are supported".to_owned()),
    }
}

#[cfg(feature = "rdma")]
const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), "\nRDMA (iSER, SRP): built in; see vscsi doctor");
#[cfg(not(feature = "rdma"))]
const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), "\nRDMA (iSER, SRP): left out of this build");

const AFTER_HELP: &str = "\
Examples:
  vscsi serve
  vscsi serve disk.img --iscsi 0.0.0.0 --allow iqn.1994-05.com.redhat:host9
  vscsi serve disk.img --vhost-user /run/vscsi/vm1.sock --queues 4
  vscsi serve disk.img --vfio-user /run/vscsi/vm2.sock
  vscsi serve disk.img --iser 192.0.2.1 --allow iqn.1994-05.com.redhat:host9
  vscsi serve disk.img --srp 192.0.2.1:5555 --srp-allow 192.0.2.7
  vscsi vhost-user-scsi --socket-path=/run/vscsi/vm1.sock disk.img
  vscsi serve --config /etc/vscsi/config.json
  vscsi lun add --ram 1G

Exit codes: 0 done, 1 failed, 2 usage, 66 no input, 69 unavailable, 73 cannot create,
74 input or output error, 75 try again, 77 permission, 78 configuration.
VSCSI_LOG sets the log level (error, warn, info, debug) and wins over -v and -q.";
