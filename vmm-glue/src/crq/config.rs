//! What an adapter says of itself, and how it is.

use vscsi_target::limits;

pub use libsrp::viosrp::adapter_info::OsType;

/// How an adapter is. Start from [`Config::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it is called in logs and as initiator port of its nexuses: the VM's name, say.
    pub name: String,
    /// The server's partition, as ADAPTER INFO tells clients: at most 95 bytes.
    pub partition_name: String,
    /// Its number.
    pub partition_number: u32,
    /// The operating system that the server claims to have.
    ///
    /// [`OsType::Aix`], which stands for a Virtual I/O Server, makes Linux ask for fast fail and
    /// exchange capabilities, without which LoPAR does not let a partition migrate; its work-around
    /// for old servers does not apply, because of the version this one states. With any other, Linux
    /// logs in without both.
    pub os_type: OsType,
    /// The longest transfer that ADAPTER INFO states, in bytes: 65536 to 8 MiB.
    pub max_transfer: u32,
    /// Requests that a client may have in progress, 2 to 4096. Linux has 100 unless it is told
    /// otherwise, two of them for task management.
    pub request_limit: u32,
    /// Whether a client may send commands without a login, as Open Firmware (SLOF) does. Without it
    /// such a client loses its connection.
    pub implicit_login: bool,
    /// Whether CAPABILITIES says that the client's partition can migrate.
    pub migration: bool,
    /// The location code in CAPABILITIES and PHYSICAL ADAPTER INFO.
    pub location: String,
    /// The part number in PHYSICAL ADAPTER INFO.
    pub part_number: String,
    /// The serial number in PHYSICAL ADAPTER INFO.
    pub serial_number: String,
}

impl Config {
    /// An adapter of this name as most want it: os_type AIX, 1 MiB a transfer, 128 requests, implicit
    /// login and migration allowed.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            partition_name: "vscsi".to_owned(),
            partition_number: 0,
            os_type: OsType::Aix,
            max_transfer: 1 << 20,
            request_limit: 128,
            implicit_login: true,
            migration: true,
            location: String::new(),
            part_number: String::new(),
            serial_number: String::new(),
        }
    }

    /// The same within the bounds of its fields.
    pub(super) fn bounded(mut self) -> Self {
        self.max_transfer = self.max_transfer.clamp(LEAST_TRANSFER, limits::MAX_TRANSFER);
        self.request_limit = self.request_limit.clamp(2, MOST_REQUESTS);
        self
    }
}

/// What clients transfer without asking.
const LEAST_TRANSFER: u32 = 65536;
/// More requests than any client has.
const MOST_REQUESTS: u32 = 4096;
