//! iSCSI (RFC 7143) over the command core.

pub mod digest;
pub mod pdu;
