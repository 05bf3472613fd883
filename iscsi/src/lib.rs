//! iSCSI (RFC 7143) over the command core.
