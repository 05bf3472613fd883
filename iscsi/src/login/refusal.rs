//! Why a login was refused, for the initiator (a status) and for the log (a sentence).

use std::fmt;

use thiserror::Error;

use crate::chap::ChapError;
use crate::names::{IscsiName, NameError};
use crate::negotiate::NegotiationError;
use crate::pdu::{LoginStatus, Opcode, PduError, Stage};
use crate::text::TextError;

use super::LoginReply;

/// What a refused login leaves: the last reply, and what to write into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// To be sent before the connection is closed. None when the peer does not speak iSCSI.
    pub reply: Option<LoginReply>,
    /// Why.
    pub reason: Refusal,
    /// Who wanted to log in, as far as it said.
    pub initiator: Option<IscsiName>,
    /// To what, as far as it said.
    pub target: Option<IscsiName>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.initiator {
            Some(initiator) => write!(f, "initiator {initiator} may not log in")?,
            None => f.write_str("an unnamed initiator may not log in")?,
        }
        if let Some(target) = &self.target {
            write!(f, " to {target}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Why a login was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The target is elsewhere for now.
    #[error("the target moved temporarily to {0}")]
    MovedTemporarily(String),
    /// The target is elsewhere for good.
    #[error("the target moved permanently to {0}")]
    MovedPermanently(String),
    /// The I bit is not set.
    #[error("the login request is not marked for immediate delivery")]
    NotImmediate,
    /// ITT, ISID, TSIH or CID changed during login.
    #[error("{0} changed during login")]
    Changed(&'static str),
    /// Another stage than the one the login is in.
    #[error("the current stage is {found:?} where it must be {expected:?}")]
    Stage {
        /// What the login is in; None before the first request.
        expected: Option<Stage>,
        /// What the request says.
        found: Stage,
    },
    /// A way from stage to stage that there is not.
    #[error("no transition leads from {from:?} to {to:?}")]
    Transition {
        /// Current stage.
        from: Stage,
        /// Next stage.
        to: Stage,
    },
    /// T and C are both set.
    #[error("the request asks for the next stage with an unfinished text")]
    TransitWithMore,
    /// Text came while the target was in the middle of its own.
    #[error("the initiator sent text before the target's was complete")]
    TextOutOfTurn,
    /// A request came after the last one.
    #[error("a request came when the login was over")]
    Over,
    /// Login goes on forever.
    #[error("login is not complete after {0} requests")]
    TooManyExchanges(u32),
    /// The text is not one.
    #[error(transparent)]
    Text(#[from] TextError),
    /// An operational key broke a rule.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    /// A name that is not one.
    #[error("InitiatorName: {0}")]
    InitiatorName(NameError),
    /// A name that is not one.
    #[error("TargetName: {0}")]
    TargetName(NameError),
    /// A digest that the target demands was not agreed on.
    #[error("{0}=CRC32C is required here")]
    DigestRequired(&'static str),
    /// Authentication failed.
    #[error("authentication failed: {0}")]
    Authentication(#[from] ChapError),
    /// The initiator skipped or declined an authentication it must pass.
    #[error("CHAP is required and the initiator did not offer it")]
    AuthenticationRequired,
    /// The initiator insists on an authentication the target has no credentials for.
    #[error("no method of AuthMethod={0} is possible here")]
    NoAuthMethod(String),
    /// The access list does not have the initiator.
    #[error("{0}")]
    Denied(String),
    /// There is no such target.
    #[error("there is no such target")]
    NotFound,
    /// There was such a target.
    #[error("the target was removed")]
    Removed,
    /// No common version.
    #[error("versions {min} to {max} are offered and only 0 is supported")]
    Version {
        /// Lowest the initiator speaks.
        min: u8,
        /// Highest the initiator speaks.
        max: u8,
    },
    /// The session is full.
    #[error("the session has {0} connections, as many as it may have")]
    TooManyConnections(u16),
    /// A key that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The connection does not fit the session, or the target is not on this portal.
    #[error("{0}")]
    CannotInclude(String),
    /// The session type is unknown, or not offered here.
    #[error("session type {0:?} is not supported")]
    SessionType(String),
    /// The TSIH names no session of this initiator.
    #[error("there is no session with TSIH {0}")]
    NoSession(u16),
    /// Another PDU came during login.
    #[error("{0:?} PDU during login")]
    NotLogin(Opcode),
    /// A header that is none.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// The target failed.
    #[error("{0}")]
    TargetError(String),
    /// The target does not serve now.
    #[error("{0}")]
    Unavailable(String),
    /// A limit was reached.
    #[error("{0}")]
    OutOfResources(String),
}

impl Refusal {
    /// The status the initiator is told.
    pub const fn status(&self) -> LoginStatus {
        match self {
            Self::MovedTemporarily(_) => LoginStatus::MOVED_TEMPORARILY,
            Self::MovedPermanently(_) => LoginStatus::MOVED_PERMANENTLY,
            Self::NotImmediate
            | Self::Changed(_)
            | Self::Stage { .. }
            | Self::Transition { .. }
            | Self::TransitWithMore
            | Self::TextOutOfTurn
            | Self::Over
            | Self::TooManyExchanges(_)
            | Self::Text(_)
            | Self::Negotiation(_)
            | Self::InitiatorName(_)
            | Self::DigestRequired(_) => LoginStatus::INITIATOR_ERROR,
            Self::Authentication(_) | Self::AuthenticationRequired | Self::NoAuthMethod(_) => {
                LoginStatus::AUTHENTICATION_FAILURE
            }
            Self::Denied(_) => LoginStatus::AUTHORIZATION_FAILURE,
            Self::NotFound | Self::TargetName(_) => LoginStatus::NOT_FOUND,
            Self::Removed => LoginStatus::TARGET_REMOVED,
            Self::Version { .. } => LoginStatus::UNSUPPORTED_VERSION,
            Self::TooManyConnections(_) => LoginStatus::TOO_MANY_CONNECTIONS,
            Self::Missing(_) => LoginStatus::MISSING_PARAMETER,
            Self::CannotInclude(_) => LoginStatus::CANNOT_INCLUDE_IN_SESSION,
            Self::SessionType(_) => LoginStatus::SESSION_TYPE_NOT_SUPPORTED,
            Self::NoSession(_) => LoginStatus::SESSION_DOES_NOT_EXIST,
            Self::NotLogin(_) | Self::Pdu(_) => LoginStatus::INVALID_DURING_LOGIN,
            Self::TargetError(_) => LoginStatus::TARGET_ERROR,
            Self::Unavailable(_) => LoginStatus::SERVICE_UNAVAILABLE,
            Self::OutOfResources(_) => LoginStatus::OUT_OF_RESOURCES,
        }
    }
}
