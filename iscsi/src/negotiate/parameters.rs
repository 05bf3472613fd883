//! What each side would have, and what both agree on.

use super::{DEFAULT_MRDSL, RdmaParameters, RdmaPreferences, Transport};
use crate::pdu::Digests;

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SessionType {
    /// SCSI.
    #[default]
    Normal,
    /// SendTargets only.
    Discovery,
}

/// Whether a digest is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestPolicy {
    /// Never.
    Off,
    /// When the initiator prefers it.
    #[default]
    Allowed,
    /// Always: an initiator that cannot is refused.
    Required,
}

/// How task management functions that abort several tasks report (RFC 7143 13.23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TaskReporting {
    /// As RFC 3720 has it.
    #[default]
    Rfc3720,
    /// Responses wait for each other across connections.
    ResponseFence,
    /// Outstanding transfers are not waited for.
    FastAbort,
}

/// What the target would have, and the limits it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preferences {
    /// What the connection runs over.
    pub transport: Transport,
    /// What is wanted over RDMA besides.
    pub rdma: RdmaPreferences,
    /// Header digest.
    pub header_digest: DigestPolicy,
    /// Data digest.
    pub data_digest: DigestPolicy,
    /// Connections a session may have.
    pub max_connections: u16,
    /// Whether every Data-Out waits for an R2T.
    pub initial_r2t: bool,
    /// Whether a command may carry data.
    pub immediate_data: bool,
    /// The target's own MaxRecvDataSegmentLength in bytes.
    pub max_recv_data_segment: u32,
    /// Longest sequence of Data-In or solicited Data-Out, in bytes.
    pub max_burst: u32,
    /// Longest unsolicited data of one command, in bytes.
    pub first_burst: u32,
    /// Seconds to wait before reconnecting, at least.
    pub time2wait: u16,
    /// Seconds in which tasks outlive their connection, at most.
    pub time2retain: u16,
    /// R2Ts of one command at a time.
    pub max_outstanding_r2t: u16,
    /// Whether data PDUs must come in order within a sequence.
    pub data_pdu_in_order: bool,
    /// Whether sequences must come in order.
    pub data_sequence_in_order: bool,
    /// Highest error recovery level.
    pub error_recovery_level: u8,
    /// The ways of task reporting besides RFC 3720's.
    pub task_reporting: &'static [TaskReporting],
    /// Highest iSCSIProtocolLevel: 2 is RFC 7144.
    pub protocol_level: u8,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            transport: Transport::Tcp,
            rdma: RdmaPreferences::default(),
            header_digest: DigestPolicy::Allowed,
            data_digest: DigestPolicy::Allowed,
            max_connections: 1,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment: 262_144,
            max_burst: 1_048_576,
            first_burst: 262_144,
            time2wait: 2,
            time2retain: 0,
            max_outstanding_r2t: 8,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            task_reporting: &[],
            protocol_level: 2,
        }
    }
}

impl Preferences {
    /// The same for a connection that runs over `transport`: over RDMA there are no digests and one
    /// connection a session (RFC 7145 6.1 and 6.2).
    pub fn over(self, transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self { transport, ..self },
            Transport::Rdma => Self {
                transport,
                header_digest: DigestPolicy::Off,
                data_digest: DigestPolicy::Off,
                max_connections: 1,
                initial_r2t: self.rdma.initial_r2t,
                max_recv_data_segment: self.rdma.recv_data_segment,
                ..self
            },
        }
    }
}

/// What both sides agreed on. The default is what holds when nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// What was agreed on over RDMA besides.
    pub rdma: RdmaParameters,
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data.
    pub data_digest: bool,
    /// Connections the session may have.
    pub max_connections: u16,
    /// Whether every Data-Out waits for an R2T.
    pub initial_r2t: bool,
    /// Whether a command may carry data.
    pub immediate_data: bool,
    /// Longest data segment the initiator receives, in bytes.
    pub initiator_mrdsl: u32,
    /// Longest data segment the target receives, in bytes.
    pub target_mrdsl: u32,
    /// Longest sequence of Data-In or solicited Data-Out, in bytes.
    pub max_burst: u32,
    /// Longest unsolicited data of one command, in bytes; never above `max_burst`.
    pub first_burst: u32,
    /// Seconds to wait before reconnecting.
    pub time2wait: u16,
    /// Seconds in which tasks outlive their connection.
    pub time2retain: u16,
    /// R2Ts of one command at a time.
    pub max_outstanding_r2t: u16,
    /// Whether data PDUs come in order within a sequence.
    pub data_pdu_in_order: bool,
    /// Whether sequences come in order.
    pub data_sequence_in_order: bool,
    /// Error recovery level.
    pub error_recovery_level: u8,
    /// Task reporting.
    pub task_reporting: TaskReporting,
    /// iSCSIProtocolLevel.
    pub protocol_level: u8,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            rdma: RdmaParameters::default(),
            header_digest: false,
            data_digest: false,
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            initiator_mrdsl: DEFAULT_MRDSL,
            target_mrdsl: DEFAULT_MRDSL,
            max_burst: 262_144,
            first_burst: 65_536,
            time2wait: 2,
            time2retain: 20,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            task_reporting: TaskReporting::Rfc3720,
            protocol_level: 1,
        }
    }
}

impl Parameters {
    /// The digests of the connection.
    pub const fn digests(&self) -> Digests {
        Digests { header: self.header_digest, data: self.data_digest }
    }

    /// For a connection that joins a session: its own digests and segment lengths, and the
    /// session's everything else.
    pub const fn joined_to(&self, session: &Self) -> Self {
        Self {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            initiator_mrdsl: self.initiator_mrdsl,
            target_mrdsl: self.target_mrdsl,
            ..*session
        }
    }
}
