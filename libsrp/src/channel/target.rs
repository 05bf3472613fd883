//! The target's half of an open channel: what the initiator's units ask for, and the units that
//! go back, with the credit that each carries (SRP clauses 5 and 6).

use thiserror::Error;

use super::{ChannelParameters, LimitExceeded, RequestLimit};
use crate::cmd::{Cmd, CmdError};
use crate::credit::CredReq;
use crate::descriptor::DataError;
use crate::iu::{InitiatorIu, IuError};
use crate::logout::{LogoutReason, TLogout};
use crate::opcode::Opcode;
use crate::rsp::Rsp;
use crate::tsk_mgmt::TskMgmt;
use crate::wire::{self, NoRoom};
use crate::{Lun, Response, Tag};

/// The target's half of an open channel.
///
/// Each request it [receives](Channel::receive) is counted until it is [answered](Channel::answer)
/// or [abandoned](Channel::abandon), which is for the caller to do exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    parameters: ChannelParameters,
    limit: RequestLimit,
    /// The tag of a CRED_REQ that the initiator has not answered.
    asked: Option<Tag>,
    next_tag: u64,
}

/// What a unit of the initiator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks<'a> {
    /// Carry this command out.
    Command(Cmd<'a>),
    /// Answer a command whose descriptors cannot be used.
    Unusable {
        /// The command's tag.
        tag: Tag,
        /// The logical unit it addresses.
        lun: Lun,
        /// What is wrong.
        fault: DataError,
    },
    /// Carry this task management function out.
    Function(TskMgmt),
    /// End the channel.
    Logout,
    /// Nothing: it answers a request of this target.
    Nothing,
}

/// A unit after which a channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The unit cannot be read, or does not belong here.
    #[error(transparent)]
    Unit(#[from] IuError),
    /// It is one more than the initiator may send.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// It answers a request that was not sent.
    #[error("an answer with tag {0:?}, which no request has")]
    Unrequested(Tag),
}

impl Violation {
    /// What T_LOGOUT says of it. Sources disagree on a code for too many requests, so none is
    /// given.
    pub const fn reason(&self) -> LogoutReason {
        match self {
            Self::Unit(_) => LogoutReason::InvalidIu,
            Self::Limit(_) => LogoutReason::None,
            Self::Unrequested(_) => LogoutReason::UnexpectedResponse,
        }
    }
}

impl Channel {
    /// A channel whose acceptance has granted the initial request limit.
    pub const fn new(parameters: ChannelParameters) -> Self {
        let limit = RequestLimit::new(parameters.request_limit);
        Self { parameters, limit, asked: None, next_tag: 1 }
    }

    /// What was agreed on.
    pub const fn parameters(&self) -> &ChannelParameters {
        &self.parameters
    }

    /// The request limit now.
    pub const fn limit(&self) -> &RequestLimit {
        &self.limit
    }

    /// Takes a unit of the initiator.
    ///
    /// # Errors
    /// The channel cannot go on: [`Channel::logout`] says so to the initiator.
    pub fn receive<'a>(&mut self, iu: &'a [u8]) -> Result<Asks<'a>, Violation> {
        let unit = match InitiatorIu::parse(iu, &self.parameters.data) {
            Ok(unit) => unit,
            Err(IuError::Cmd(CmdError::Data { tag, lun, fault })) => {
                self.limit.take()?;
                return Ok(Asks::Unusable { tag, lun, fault });
            }
            Err(error) => return Err(error.into()),
        };
        match unit {
            InitiatorIu::Cmd(cmd) => {
                self.limit.take()?;
                Ok(Asks::Command(cmd))
            }
            InitiatorIu::TskMgmt(function) => {
                self.limit.take()?;
                Ok(Asks::Function(function))
            }
            InitiatorIu::CredRsp(answer) if self.asked == Some(answer.tag) => {
                self.asked = None;
                Ok(Asks::Nothing)
            }
            InitiatorIu::CredRsp(answer) => Err(Violation::Unrequested(answer.tag)),
            // This target sends no AER_REQ: unit attentions are reported by CHECK CONDITION.
            InitiatorIu::AerRsp(answer) => Err(Violation::Unrequested(answer.tag)),
            InitiatorIu::ILogout(_) => Ok(Asks::Logout),
            InitiatorIu::LoginReq(_) => Err(IuError::Unexpected(Opcode::LoginReq).into()),
        }
    }

    /// Writes the answer to a request, with the credit of that request and all that is owed, and
    /// gives the bytes written. `solicited` says that it is sent with a solicited event.
    ///
    /// # Errors
    /// There is less room than the longest T→I unit needs; the request stays unanswered.
    pub fn answer(
        &mut self,
        response: &Response,
        solicited: bool,
        out: &mut [u8],
    ) -> Result<usize, NoRoom> {
        let max_len = usize::try_from(self.parameters.max_target_iu).unwrap_or(usize::MAX);
        let mut rsp = Rsp::new(response, 0, self.parameters.flavour, max_len);
        wire::room_for(rsp.encoded_len(), out)?;
        rsp.limit_delta = self.limit.answer();
        rsp.solicited = solicited;
        rsp.emit(out)
    }

    /// A request will never be answered, because a task management function ended it. Its credit
    /// goes back with the next unit that carries any.
    pub fn abandon(&mut self) {
        self.limit.abandon();
    }

    /// The same for a request whose credit the initiator takes back by itself.
    pub fn forget(&mut self) {
        self.limit.forget();
    }

    /// Writes a CRED_REQ that gives back what is owed, and gives the bytes written; `None` when
    /// nothing is, or when the initiator has not answered the one before.
    pub fn request_credit(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.asked.is_some() || self.limit.owed() == 0 {
            return None;
        }
        let unit = CredReq { tag: self.next_tag(), limit_delta: 0, solicited: false };
        wire::room_for(CredReq::LEN, out).ok()?;
        self.asked = Some(unit.tag);
        CredReq { limit_delta: self.limit.settle(), ..unit }.emit(out).ok()
    }

    /// Writes the T_LOGOUT that ends the channel; gives the bytes written.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn logout(&mut self, reason: LogoutReason, out: &mut [u8]) -> Result<usize, NoRoom> {
        TLogout { tag: self.next_tag(), reason, solicited: false }.emit(out)
    }

    fn next_tag(&mut self) -> Tag {
        let tag = Tag::from_u64(self.next_tag);
        self.next_tag = self.next_tag.wrapping_add(1);
        tag
    }
}

#[cfg(test)]
mod tests;
