//! What goes over the control socket: parameters and results of each verb. Fields keep their order
//! and names; new ones are added at the end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::{Exit, Report};

/// Parameters of `lun.add`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunAdd {
    /// The target; may be left out when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// An absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// A namespace of an NVMe controller, as `BDF` or `BDF/NSID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvme: Option<String>,
    /// Completions of the NVMe controller are polled for.
    #[serde(default)]
    pub poll: bool,
    /// Bytes of RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<u64>,
    /// Bytes of nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null: Option<u64>,
    /// Logical unit number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// Bytes a logical block.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// Bytes a physical block that are reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Bytes a second that FORMAT UNIT and SANITIZE write at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase_rate: Option<u64>,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// The medium can be ejected.
    #[serde(default)]
    pub removable: bool,
    /// Around the page cache.
    #[serde(default)]
    pub direct: bool,
    /// The image belongs to the process whose guest runs.
    #[serde(default)]
    pub handover: bool,
    /// Unit serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Initiators that see it; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible_to: Option<Vec<String>>,
}

fn default_block_size() -> u32 {
    512
}

/// Parameters of `lun.rm`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunRm {
    /// The target; may be left out when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Logical unit number.
    pub lun: u16,
}

/// Parameters of `lun.resize`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunResize {
    /// The target; may be left out when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Logical unit number.
    pub lun: u16,
    /// New size in bytes; left out, a block device's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// It may become smaller.
    #[serde(default)]
    pub shrink: bool,
}

/// Parameters of `session.kick`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionKick {
    /// The session's number.
    pub id: u32,
    /// Whose numbers.
    #[serde(default)]
    pub transport: Numbers,
}

/// Sessions that are numbered together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbers {
    /// Those of iSCSI, over TCP and RDMA.
    #[default]
    #[serde(alias = "iser")]
    Iscsi,
    /// Those of SRP.
    Srp,
}

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunInfo {
    /// Its target.
    pub target: String,
    /// Its number.
    pub lun: u16,
    /// A path, "ram" or "null".
    pub backend: String,
    /// Bytes.
    pub size: u64,
    /// Bytes a logical block.
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// Unmapped blocks give their space back.
    pub thin: bool,
    /// Unit serial number.
    pub serial: String,
    /// NAA name, as initiators show it.
    pub naa: String,
    /// I_T nexuses that see it.
    pub nexuses: usize,
}

/// Who may send commands, as `session.list` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transport")]
pub enum Session {
    /// An iSCSI session.
    #[serde(rename = "iscsi")]
    Iscsi(SessionInfo),
    /// An iSCSI session over RDMA.
    #[serde(rename = "iser")]
    Iser(SessionInfo),
    /// An SRP session over RDMA: an I_T nexus with its channels.
    #[serde(rename = "srp")]
    Srp(SrpSession),
    /// A vhost-user controller, whether or not a VMM uses it.
    #[serde(rename = "vhost-user")]
    VhostUser(ControllerInfo),
    /// A vfio-user controller, whether or not a VMM uses it.
    #[serde(rename = "vfio-user")]
    VfioUser(ControllerInfo),
    /// A TCMU device of the kernel.
    #[serde(rename = "tcmu")]
    Tcmu(TcmuInfo),
}

impl Session {
    /// Whether a part of it runs on this reactor.
    pub fn runs_on(&self, reactor: u16) -> bool {
        match self {
            Self::Iscsi(session) | Self::Iser(session) => session.reactor == reactor,
            Self::Srp(session) => session.channels.iter().any(|c| c.reactor == reactor),
            Self::Tcmu(device) => device.reactor == reactor,
            Self::VhostUser(_) | Self::VfioUser(_) => false,
        }
    }
}

/// An SRP session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrpSession {
    /// Its number among those of SRP.
    pub id: u32,
    /// The initiator port identifier in hexadecimal.
    pub initiator: String,
    /// The target.
    pub target: String,
    /// Seconds since its first channel logged in.
    pub age_seconds: u64,
    /// Its channels.
    pub channels: Vec<SrpChannel>,
    /// SCSI commands.
    pub commands: u64,
    /// Bytes of Data-In.
    pub read_bytes: u64,
    /// Bytes of Data-Out.
    pub written_bytes: u64,
    /// Commands refused for their descriptors.
    pub refused: u64,
}

/// A channel of SRP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrpChannel {
    /// Its number in the session.
    pub number: u32,
    /// The peer's address.
    pub peer: String,
    /// The reactor it runs on.
    pub reactor: u16,
}

/// A controller for a VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInfo {
    /// Its name.
    pub name: String,
    /// The socket; nothing where the VMM was connected from the start.
    pub socket: Option<PathBuf>,
    /// A VMM is connected.
    pub connected: bool,
    /// Request queues there can be.
    pub queues: u16,
    /// Virtqueues that the guest runs now, with those for control and events.
    pub queues_running: u16,
    /// Its targets.
    pub targets: Vec<TargetEntry>,
}

/// A TCMU device of the kernel that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcmuInfo {
    /// Its backstore in configfs: `user_0/NAME`.
    pub device: String,
    /// It is `/dev/uio` and this number.
    pub uio: u32,
    /// The target it leads to.
    pub target: String,
    /// The logical unit it leads to.
    pub lun: u16,
    /// The reactor it runs on.
    pub reactor: u16,
}

/// A target of a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetEntry {
    /// What the guest addresses it with.
    pub id: u8,
    /// Its name.
    pub target: String,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number: the TSIH.
    pub id: u16,
    /// The initiator's name.
    pub initiator: String,
    /// Its part of the session identifier.
    pub isid: String,
    /// The target; nothing in a discovery session.
    pub target: Option<String>,
    /// Target portal group tag.
    pub portal_group: u16,
    /// The reactor it runs on.
    pub reactor: u16,
    /// Seconds since it logged in.
    pub age_seconds: u64,
    /// Its connections.
    pub connections: Vec<ConnectionInfo>,
    /// SCSI commands.
    pub commands: u64,
    /// Bytes of Data-In.
    pub read_bytes: u64,
    /// Bytes of Data-Out.
    pub written_bytes: u64,
    /// PDUs rejected.
    pub rejects: u64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Connection identifier.
    pub cid: u16,
    /// The peer's address.
    pub peer: String,
}

/// Counters of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Version of the program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Its process number.
    pub pid: u32,
    /// By logical unit.
    pub luns: Vec<LunStats>,
    /// By session, with `transport`; controllers are not among them.
    pub sessions: Vec<Session>,
    /// By reactor.
    pub reactors: Vec<ReactorStats>,
}

/// Counters of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunStats {
    /// Its target.
    pub target: String,
    /// Its number.
    pub lun: u16,
    /// READ commands that ended in GOOD.
    pub reads: u64,
    /// Bytes they moved.
    pub read_bytes: u64,
    /// WRITE commands that ended in GOOD.
    pub writes: u64,
    /// Bytes they moved.
    pub write_bytes: u64,
    /// Commands that ended otherwise.
    pub failures: u64,
    /// Errors of the backend.
    pub backend_errors: u64,
    /// Commands that were not done within the deadline.
    pub timeouts: u64,
    /// Transfers that were copied, because the device does not reach the memory they were in.
    #[serde(default)]
    pub bounces: u64,
    /// Resets of the NVMe controller behind it.
    #[serde(default)]
    pub resets: u64,
}

/// Counters of a reactor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorStats {
    /// Its number.
    pub reactor: u16,
    /// Its sessions.
    pub sessions: usize,
    /// READ commands it served that ended in GOOD.
    pub reads: u64,
    /// WRITE commands it served that ended in GOOD.
    pub writes: u64,
    /// Processor time it used, in milliseconds.
    pub cpu_milliseconds: u64,
}

/// The result of `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Its process number.
    pub pid: u32,
}

/// The `data` of an error: a [`Report`] as it goes over the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Short name.
    pub code: String,
    /// Reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Exit code of a client that shows it.
    pub exit: i64,
}

impl Fault {
    /// The part of a report that is not its message.
    pub fn of(report: &Report) -> Self {
        Self {
            code: report.code.to_string(),
            why: report.why.clone(),
            fix: report.fix.clone(),
            exit: report.exit as i64,
        }
    }

    /// The report it was made of.
    pub fn report(self, what: String) -> Report {
        Report {
            code: self.code.into(),
            what,
            why: self.why,
            fix: self.fix,
            exit: Exit::from_number(self.exit),
        }
    }
}
