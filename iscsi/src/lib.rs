//! iSCSI (RFC 7143) over the command core.

pub mod chap;
pub mod digest;
pub mod discovery;
pub mod exchange;
pub mod keys;
pub mod login;
pub mod names;
pub mod negotiate;
pub mod pdu;
pub mod text;
