//! What is negotiated over RDMA besides (RFC 7145 clause 6).

/// What a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Transport {
    /// TCP (RFC 7143).
    #[default]
    Tcp,
    /// RDMA (iSER, RFC 7145).
    Rdma,
}

/// What the target would have over RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaPreferences {
    /// Whether every Data-Out but immediate data is fetched by the target. Unsolicited Data-Out takes
    /// a receive buffer each, and gains nothing over RDMA.
    pub initial_r2t: bool,
    /// Longest data segment of a PDU the target receives, in bytes.
    pub recv_data_segment: u32,
    /// Longest additional header segments the target receives, in bytes.
    pub max_ahs: u32,
    /// Unexpected PDUs for which the target has receive buffers.
    pub unexpected_pdus: u32,
}

impl Default for RdmaPreferences {
    fn default() -> Self {
        Self {
            initial_r2t: true,
            recv_data_segment: 8192,
            max_ahs: DEFAULT_MAX_AHS,
            unexpected_pdus: 16,
        }
    }
}

/// What both sides agreed on over RDMA. The default is what holds when nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaParameters {
    /// RDMAExtensions: data is moved by RDMA.
    pub extensions: bool,
    /// Longest data segment of a PDU to the target, in bytes.
    pub target_recv: u32,
    /// Longest data segment of a PDU to the initiator, in bytes. Linux says more than it has room for.
    pub initiator_recv: u32,
    /// Unexpected PDUs the initiator has receive buffers for; 0 is no limit.
    pub unexpected_pdus: u32,
    /// Whether the memory of a write begins with what is not sent unsolicited; `None` when the
    /// initiator did not say (RFC 7145 6.8).
    pub tagged_is_solicited: Option<bool>,
    /// The initiator begins full feature phase with a Hello.
    pub hello_required: bool,
}

impl Default for RdmaParameters {
    fn default() -> Self {
        Self {
            extensions: false,
            target_recv: 8192,
            initiator_recv: 8192,
            unexpected_pdus: 0,
            tagged_is_solicited: None,
            hello_required: false,
        }
    }
}

/// MaxAHSLength when nobody says otherwise.
const DEFAULT_MAX_AHS: u32 = 256;
