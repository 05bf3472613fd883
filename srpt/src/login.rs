//! Logging in: from the private data of a connect request to an acceptance or a refusal (SRP clause
//! 5, and its annex on RDMA connection managers).
//!
//! Over RDMA/CM the request has 56 bytes in an order of its own, on InfiniBand, RoCE and iWARP
//! alike. The 64 bytes that InfiniBand's own connection manager carries are understood too, for
//! whoever has a way to listen there: librdmacm has none.

use crate::names::initiator_name;
use libsrp::{
    channel::{ChannelParameters, LoginParameters},
    login::{LoginRej, LoginReq, LoginRsp, MultiChannelResult, PortId, RejectReason},
    wire::WireError,
};
use thiserror::Error;

/// Which connection manager brought a login: it decides on the layout, not the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// RDMA/CM.
    Rdma,
    /// InfiniBand's communication manager.
    InfiniBand,
}

/// Reads a login request. Connection managers pad private data, so there may be more of it.
///
/// # Errors
/// It is none.
pub fn parse(private_data: &[u8], manager: Manager) -> Result<LoginReq, Refusal> {
    let request = match manager {
        Manager::Rdma => LoginReq::parse_compact(private_data),
        Manager::InfiniBand => LoginReq::parse(private_data),
    };
    request.map_err(Refusal::Malformed)
}

/// What the target offers, and what it makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer(pub LoginParameters);

impl Offer {
    /// What a channel would have.
    ///
    /// # Errors
    /// The request asks for what this target does not have.
    pub fn agree(&self, request: &LoginReq) -> Result<ChannelParameters, Refusal> {
        self.0.agree(request).map_err(|reason| Refusal::Parameters { reason, request: *request })
    }
}

/// The private data of an acceptance.
pub fn acceptance(
    agreed: &ChannelParameters,
    request: &LoginReq,
    result: MultiChannelResult,
) -> [u8; LoginRsp::LEN] {
    let mut out = [0; LoginRsp::LEN];
    // The array has the length of the unit.
    let _ = agreed.accept(request, result).emit(&mut out);
    out
}

/// The private data of a refusal. A request that could not be read has no tag.
pub fn rejection(request: Option<&LoginReq>, refusal: &Refusal) -> [u8; LoginRej::LEN] {
    let mut out = [0; LoginRej::LEN];
    let unit = LoginRej {
        tag: request.map(|request| request.tag).unwrap_or_default(),
        reason: refusal.reason(),
        formats: libsrp::login::BufferFormats::ALL,
    };
    let _ = unit.emit(&mut out);
    out
}

/// Why a login is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The private data is no login request.
    #[error("its login request cannot be read: {0}")]
    Malformed(WireError),
    /// No target has that port identifier.
    #[error("no target has the port identifier {}", initiator_name(*.0))]
    NoTarget(PortId),
    /// It is not on the target's allow list.
    #[error("{0}")]
    Denied(String),
    /// It asks for what this target does not have.
    #[error(
        "it asks for units of {} bytes, formats {:?} and {:?}: {reason:?}",
        request.max_initiator_iu, request.formats, request.action
    )]
    Parameters {
        /// The reason on the wire.
        reason: RejectReason,
        /// What it asks for.
        request: LoginReq,
    },
    /// The nexus has as many channels as it may have.
    #[error("it has {0} channels, as many as it may have")]
    ChannelLimit(usize),
    /// The target has no room for another channel, or no time.
    #[error("{0}")]
    Resources(String),
}

impl Refusal {
    /// What the initiator is told.
    pub const fn reason(&self) -> RejectReason {
        match self {
            Self::Malformed(_) => RejectReason::Unspecified,
            Self::NoTarget(_) | Self::Denied(_) => RejectReason::NoNexus,
            Self::Parameters { reason, .. } => *reason,
            Self::ChannelLimit(_) => RejectReason::ChannelLimit,
            Self::Resources(_) => RejectReason::NoResources,
        }
    }

    /// What the administrator can do about it.
    pub fn fix(&self, initiator: Option<PortId>) -> String {
        match self {
            Self::Denied(_) => {
                let name = initiator.map_or_else(|| "ID".to_owned(), initiator_name);
                format!("add {name} to the target's allow list")
            }
            Self::NoTarget(_) => {
                "compare id_ext and ioc_guid with what vscsi prints at start".to_owned()
            }
            Self::Parameters { reason: RejectReason::IuTooLong, .. } => {
                "set max_it_iu_size, or fewer cmd_sg_entries".to_owned()
            }
            Self::ChannelLimit(_) => "set ch_count, or raise the limit".to_owned(),
            Self::Resources(_) => "raise what is short, or log out what is not used".to_owned(),
            Self::Malformed(_) | Self::Parameters { .. } => {
                "check that the initiator speaks SRP as Linux's ib_srp does".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::login;

    /// What Linux's initiator sends.
    #[rustfmt::skip]
    const COMPACT: [u8; 56] = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0x80, 0, 0, 0, 0x20, 0x44,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2,
        0, 68, 0, 0, 0, 0, 0, 0,
    ];

    fn offer() -> Offer {
        Offer(LoginParameters::SRP)
    }

    #[test]
    fn linux_login_is_read_padded_or_not() {
        assert_eq!(parse(&COMPACT, Manager::Rdma), Ok(login()));
        let padded = [&COMPACT[..], &[0xA5; 36]].concat();
        assert_eq!(parse(&padded, Manager::Rdma), Ok(login()));
    }

    #[test]
    fn private_data_of_every_shorter_length_is_refused() {
        for len in 0..56 {
            let refusal = parse(&COMPACT[..len], Manager::Rdma).unwrap_err();
            assert_eq!(refusal.reason(), RejectReason::Unspecified);
            let out = rejection(None, &refusal);
            assert_eq!((out[0], &out[4..16]), (0xC2, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]));
        }
    }

    #[test]
    fn the_manager_decides_on_the_layout() {
        let mut ordinary = [0; 64];
        login().emit(&mut ordinary).unwrap();
        assert_eq!(parse(&ordinary, Manager::InfiniBand), Ok(login()));
        assert_ne!(parse(&ordinary, Manager::Rdma), Ok(login()));
    }

    #[test]
    fn acceptance_has_credit_lengths_and_the_channel_result() {
        let agreed = offer().agree(&login()).unwrap();
        let out = acceptance(&agreed, &login(), MultiChannelResult::Terminated);
        let mut expected = [0; 52];
        expected[0] = 0xC0;
        expected[7] = 128;
        expected[16..28].copy_from_slice(&[0, 0, 0x20, 0x44, 0, 0, 1, 0, 0, 6, 0x81, 0]);
        assert_eq!(out, expected);
    }

    #[test]
    fn rejection_names_the_reason_and_the_tag() {
        let mut request = login();
        request.tag = libsrp::Tag([7; 8]);
        request.formats = libsrp::login::BufferFormats(1);
        let refusal = offer().agree(&request).unwrap_err();
        let out = rejection(Some(&request), &refusal);
        assert_eq!((out[0], &out[4..8], &out[8..16]), (0xC2, &[0, 1, 0, 4][..], &[7; 8][..]));
        assert_eq!(out[24..26], [0, 6]);
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let port = PortId::default();
        for (refusal, reason) in [
            (Refusal::NoTarget(port), 0x0001_0003),
            (Refusal::Denied(String::new()), 0x0001_0003),
            (Refusal::ChannelLimit(1), 0x0001_0006),
            (Refusal::Resources(String::new()), 0x0001_0001),
        ] {
            assert_eq!(refusal.reason().code(), reason);
            assert!(!refusal.fix(Some(port)).is_empty());
        }
    }
}
