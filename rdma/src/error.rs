//! What goes wrong.

use std::{io, net::SocketAddr};

use thiserror::Error;

use crate::table::Missing;

/// A resource cannot be made or a connection cannot be accepted.
#[derive(Debug, Error)]
pub enum RdmaError {
    /// A library is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A call of rdma-core failed.
    #[error("{what}: {reason}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        reason: io::Error,
    },
    /// The device takes less than is needed.
    #[error("the device takes {most} {what}, {needed} are needed")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What it takes.
        most: u32,
        /// What is needed.
        needed: u32,
    },
}

impl RdmaError {
    pub(crate) fn last(what: &'static str) -> Self {
        Self::Call { what, reason: io::Error::last_os_error() }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Missing(missing) => missing.fix(),
            Self::Call { reason, .. } if reason.raw_os_error() == Some(libc::ENOMEM) => {
                "raise the limit of locked memory (ulimit -l, or LimitMEMLOCK= of the unit)"
                    .to_owned()
            }
            Self::Call { .. } => "see what `vscsi doctor` finds".to_owned(),
            Self::Limit { .. } => "use a device with larger limits".to_owned(),
        }
    }
}

/// An address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen for RDMA on {address}: {reason}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub reason: io::Error,
}

impl ListenError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self.reason.raw_os_error() {
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => format!(
                "give an RDMA device an address: {} belongs to none. Over Ethernet: modprobe \
                 rdma_rxe; rdma link add rxe0 type rxe netdev NETDEV (not lo)",
                self.address.ip()
            ),
            Some(libc::EADDRINUSE) => "another RDMA service has the port: choose one".to_owned(),
            Some(libc::ENOENT | libc::ENOSYS) => {
                "load the connection manager: modprobe rdma_ucm".to_owned()
            }
            Some(libc::EACCES | libc::EPERM) => {
                "let this user open /dev/infiniband/rdma_cm".to_owned()
            }
            _ if self.reason.kind() == io::ErrorKind::NotFound => {
                "install the libraries of rdma-core (Debian: librdmacm1 ibverbs-providers)"
                    .to_owned()
            }
            _ => "see what `vscsi doctor` finds".to_owned(),
        }
    }
}

/// A work request failed: the connection is lost.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("work request failed: {}", self.text())]
pub struct WorkError {
    /// Status of the completion (`enum ibv_wc_status`), or an error of posting below zero.
    pub status: i32,
}

impl WorkError {
    fn text(&self) -> String {
        if self.status < 0 {
            return io::Error::from_raw_os_error(-self.status).to_string();
        }
        crate::connection::status_text(self.status.cast_unsigned())
    }
}

/// A message does not fit into a send slot.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a message of {len} bytes, {most} fit")]
pub struct TooLong {
    /// Its length in bytes.
    pub len: usize,
    /// Size of a slot in bytes.
    pub most: usize,
}
