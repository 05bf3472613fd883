//! Logins: those that clients send, and the one that Open Firmware leaves out.

use libsrp::{
    Tag,
    channel::{Channel, ChannelParameters, LoginParameters},
    login::{
        BufferFormats, LoginRej, LoginReq, MultiChannelAction, MultiChannelResult, PortId,
        RejectReason,
    },
    viosrp::crq::{ElementStatus, Format},
};

use super::{Reply, SLACK, Session, State, Step, answer, fail};

impl Session {
    /// Answers a login. Whatever is wrong with it, the connection goes on.
    pub(super) fn login(&mut self, iu: &[u8], tag: Tag, out: &mut [u8]) -> Step<'static> {
        let parameters = self.parameters();
        let Ok(request) = LoginReq::parse(iu) else {
            return Step::Reply(reject(tag, RejectReason::Unspecified, out));
        };
        if self.state == State::LoggedIn {
            return Step::Reply(reject(tag, RejectReason::ChannelLimit, out));
        }
        match parameters.agree(&request) {
            Ok(agreed) => {
                let written = agreed.accept(&request, MultiChannelResult::NoOthers).emit(out);
                let Ok(len) = written else {
                    return Step::Reply(fail(Format::Srp, ElementStatus::Nonrecoverable, tag));
                };
                self.open_channel(agreed);
                let element = answer(Format::Srp, ElementStatus::Ok, len, tag);
                Step::Reply(Reply { len, element })
            }
            Err(reason) => Step::Reply(reject(tag, reason, out)),
        }
    }

    /// The client begins to work without a login: it gets what one would give it.
    pub(super) fn log_in(&mut self) {
        let request = LoginReq {
            tag: Tag::default(),
            max_initiator_iu: 0,
            formats: BufferFormats::ALL,
            action: MultiChannelAction::Single,
            solicit_logout: false,
            solicit_credit: false,
            solicit_aer: false,
            immediate: None,
            initiator_port: PortId::default(),
            target_port: PortId::default(),
        };
        if let Ok(agreed) = self.parameters().agree(&request) {
            self.open_channel(agreed);
        }
    }

    fn open_channel(&mut self, agreed: ChannelParameters) {
        let request_limit = agreed.request_limit.saturating_add(SLACK);
        self.channel = Some(Channel::new(ChannelParameters { request_limit, ..agreed }));
        self.state = State::LoggedIn;
    }

    fn parameters(&self) -> LoginParameters {
        LoginParameters { request_limit: self.config.request_limit, ..LoginParameters::VSCSI }
    }
}

fn reject(tag: Tag, reason: RejectReason, out: &mut [u8]) -> Reply {
    match (LoginRej { tag, reason, formats: BufferFormats::ALL }).emit(out) {
        Ok(len) => Reply { len, element: answer(Format::Srp, ElementStatus::Ok, len, tag) },
        Err(_) => fail(Format::Srp, ElementStatus::Nonrecoverable, tag),
    }
}
