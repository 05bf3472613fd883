//! The values an SRP channel is made of: who talks, what was agreed, and the request limit
//! (SRP clauses 5 and 6).

use thiserror::Error;

use crate::descriptor::{DataRules, ImmediateRules, ShortList};
use crate::login::{
    BufferFormats, LoginRej, LoginReq, LoginRsp, MultiChannelAction, MultiChannelResult, PortId,
    RejectReason,
};
use crate::rsp::{ResidualFlavour, Rsp};

/// An I_T nexus: every channel with the same pair of port identifiers belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nexus {
    /// The initiator port identifier.
    pub initiator: PortId,
    /// The target port identifier.
    pub target: PortId,
}

/// What a target offers at login, and how it reads what initiators ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginParameters {
    /// The longest I→T unit a receive buffer takes, in bytes.
    pub max_initiator_iu: u32,
    /// The longest T→I unit this target sends, in bytes.
    pub max_target_iu: u32,
    /// The initial request limit. Below 2 an initiator that keeps one in reserve for task
    /// management never starts a command.
    pub request_limit: u32,
    /// The most descriptors in a list.
    pub max_descriptors: u32,
    /// The most immediate data in one command; `None` refuses it.
    pub max_immediate: Option<u32>,
    /// Whether a nexus may have several channels.
    pub multi_channel: bool,
    /// How residuals are told. With [`ResidualFlavour::Vscsi`] the other habits of partition
    /// clients are taken as they are too: they ask for length 0 or more than fits, name formats
    /// wrongly and leave descriptor counts unset.
    pub flavour: ResidualFlavour,
}

impl LoginParameters {
    /// Over RDMA. Linux's initiator asks for 8260 bytes: 68 in front of 8192 of immediate data.
    pub const SRP: Self = Self {
        max_initiator_iu: 8276,
        max_target_iu: 256,
        request_limit: 128,
        max_descriptors: 2048,
        max_immediate: Some(8192),
        multi_channel: true,
        flavour: ResidualFlavour::Srp,
    };

    /// To a partition: 256-byte units both ways, one channel.
    pub const VSCSI: Self = Self {
        max_initiator_iu: 256,
        max_target_iu: 256,
        request_limit: 128,
        max_descriptors: 2048,
        max_immediate: None,
        multi_channel: false,
        flavour: ResidualFlavour::Vscsi,
    };

    /// What a channel opened by `request` has, or why it cannot be opened. Whether the nexus may
    /// log in and has channels left is for the caller to decide.
    pub fn agree(&self, request: &LoginReq) -> Result<ChannelParameters, RejectReason> {
        let vscsi = self.flavour == ResidualFlavour::Vscsi;
        let asked = request.max_initiator_iu;
        let fits = asked <= self.max_initiator_iu;
        let max_initiator_iu = match asked {
            0 if vscsi => self.max_initiator_iu,
            0..MIN_INITIATOR_IU => return Err(RejectReason::Unspecified),
            // Immediate data is what makes Linux ask for long units. It does not ask again after
            // a refusal, but does without immediate data where that is not granted.
            _ if fits || vscsi || request.immediate.is_some() => asked.min(self.max_initiator_iu),
            _ => return Err(RejectReason::IuTooLong),
        };
        let formats = if vscsi { request.formats.leniently() } else { request.formats };
        let missing = !formats.without(BufferFormats::ALL).is_empty();
        if missing || formats.and(BufferFormats::ALL).is_empty() {
            return Err(RejectReason::Formats);
        }
        match request.action {
            MultiChannelAction::Multi if !self.multi_channel => {
                return Err(RejectReason::NoMultiChannel);
            }
            MultiChannelAction::Unknown(_) if !vscsi => return Err(RejectReason::Unspecified),
            _ => {}
        }
        let immediate = request
            .immediate
            .zip(self.max_immediate)
            .filter(|(offset, _)| fits && *offset >= MIN_IMMEDIATE_OFFSET)
            .and_then(|(offset, max_len)| {
                let room = max_initiator_iu.checked_sub(offset.into())?;
                Some(ImmediateRules { offset, max_len: max_len.min(room) })
            });
        Ok(ChannelParameters {
            nexus: Nexus { initiator: request.initiator_port, target: request.target_port },
            max_initiator_iu,
            max_target_iu: self.max_target_iu,
            request_limit: self.request_limit,
            flavour: self.flavour,
            data: DataRules {
                max_descriptors: self.max_descriptors,
                immediate,
                short_list: if vscsi { ShortList::FetchTable } else { ShortList::Refuse },
            },
        })
    }

    /// The refusal of `request`.
    pub fn reject(&self, request: &LoginReq, reason: RejectReason) -> LoginRej {
        LoginRej { tag: request.tag, reason, formats: BufferFormats::ALL }
    }
}

/// What a channel has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelParameters {
    /// Whose channel it is.
    pub nexus: Nexus,
    /// The longest I→T unit, in bytes.
    pub max_initiator_iu: u32,
    /// The longest T→I unit, in bytes.
    pub max_target_iu: u32,
    /// The initial request limit.
    pub request_limit: u32,
    /// How residuals are told.
    pub flavour: ResidualFlavour,
    /// What descriptors may look like.
    pub data: DataRules,
}

impl ChannelParameters {
    /// The acceptance to send.
    pub fn accept(&self, request: &LoginReq, result: MultiChannelResult) -> LoginRsp {
        LoginRsp {
            tag: request.tag,
            limit_delta: i32::try_from(self.request_limit).unwrap_or(i32::MAX),
            max_initiator_iu: self.max_initiator_iu,
            max_target_iu: self.max_target_iu,
            formats: BufferFormats::ALL,
            result,
            immediate: self.data.immediate.is_some(),
        }
    }
}

/// A channel's request limit, as the target counts it: how many requests the initiator may still
/// send, and what the target owes it for requests that get no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    available: u32,
    outstanding: u32,
    owed: u32,
}

impl RequestLimit {
    /// The limit that LOGIN_RSP grants.
    pub const fn new(initial: u32) -> Self {
        Self { available: initial, outstanding: 0, owed: 0 }
    }

    /// Counts a request that arrived.
    pub fn take(&mut self) -> Result<(), LimitExceeded> {
        self.available =
            self.available.checked_sub(1).ok_or(LimitExceeded { outstanding: self.outstanding })?;
        self.outstanding += 1;
        Ok(())
    }

    /// Counts a request that will never be answered, because a task management function ended it.
    /// The next delta gives it back.
    pub fn abandon(&mut self) {
        if self.outstanding > 0 {
            self.outstanding -= 1;
            self.owed += 1;
        }
    }

    /// Counts a request that will never be answered and whose credit the initiator takes back by
    /// itself, as Linux's ibmvscsi does for a command it aborted. Nothing is owed.
    pub fn forget(&mut self) {
        if self.outstanding > 0 {
            self.outstanding -= 1;
            self.available = self.available.saturating_add(1);
        }
    }

    /// The delta for the answer that goes out now: the request it answers and what is owed.
    pub fn answer(&mut self) -> i32 {
        let answered = self.outstanding.min(1);
        self.outstanding -= answered;
        self.grant(answered)
    }

    /// The delta for a CRED_REQ: what is owed with no answer to carry it; 0 when nothing is.
    pub fn settle(&mut self) -> i32 {
        self.grant(0)
    }

    /// How many requests the initiator may send.
    pub const fn available(&self) -> u32 {
        self.available
    }

    /// How many requests have not been answered or abandoned.
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// How many requests were abandoned and not yet given back.
    pub const fn owed(&self) -> u32 {
        self.owed
    }

    fn grant(&mut self, answered: u32) -> i32 {
        let due = answered.saturating_add(self.owed);
        let delta = due.min(i32::MAX as u32);
        self.owed = due - delta;
        self.available = self.available.saturating_add(delta);
        delta.cast_signed()
    }
}

/// The initiator sent a request it had no credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a request beyond the limit, {outstanding} being outstanding")]
pub struct LimitExceeded {
    /// Requests neither answered nor abandoned.
    pub outstanding: u32,
}

/// The shortest unit length an initiator may ask for: a login request.
const MIN_INITIATOR_IU: u32 = LoginReq::LEN as u32;
/// A CMD's header and the length word end here, so no immediate data can start earlier.
const MIN_IMMEDIATE_OFFSET: u16 = 52;
const _: () = assert!(LoginParameters::VSCSI.max_target_iu as usize >= Rsp::HEADER_LEN);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Tag;

    fn request() -> LoginReq {
        LoginReq {
            tag: Tag([7; 8]),
            max_initiator_iu: 8260,
            formats: BufferFormats::ALL,
            action: MultiChannelAction::Single,
            solicit_logout: false,
            solicit_credit: false,
            solicit_aer: false,
            immediate: Some(68),
            initiator_port: PortId::new(0, 1),
            target_port: PortId::new(2, 2),
        }
    }

    #[test]
    fn linux_login_over_rdma_gets_immediate_data() {
        let channel = LoginParameters::SRP.agree(&request()).unwrap();
        assert_eq!(channel.data.immediate, Some(ImmediateRules { offset: 68, max_len: 8192 }));
        assert_eq!(channel.max_initiator_iu, 8260);
        let answer = channel.accept(&request(), MultiChannelResult::NoOthers);
        assert!(answer.immediate);
        assert_eq!((answer.tag, answer.limit_delta), (Tag([7; 8]), 128));
    }

    #[test]
    fn immediate_offset_within_the_length_word_is_not_granted() {
        let granted = |offset| {
            let login = LoginReq { immediate: Some(offset), ..request() };
            LoginParameters::SRP.agree(&login).unwrap().data.immediate.is_some()
        };
        assert_eq!([0, 48, 51, 52, 69].map(granted), [false, false, false, true, true]);
    }

    #[test]
    fn immediate_data_never_exceeds_the_unit() {
        let login = LoginReq { max_initiator_iu: 276, ..request() };
        let channel = LoginParameters::SRP.agree(&login).unwrap();
        assert_eq!(channel.data.immediate, Some(ImmediateRules { offset: 68, max_len: 208 }));
        let login = LoginReq { max_initiator_iu: 276, immediate: Some(277), ..request() };
        assert_eq!(LoginParameters::SRP.agree(&login).unwrap().data.immediate, None);
    }

    #[test]
    fn too_long_units_for_immediate_data_are_cut_without_it() {
        let login = LoginReq { max_initiator_iu: 8277, ..request() };
        let channel = LoginParameters::SRP.agree(&login).unwrap();
        assert_eq!((channel.max_initiator_iu, channel.data.immediate), (8276, None));
        assert!(!channel.accept(&login, MultiChannelResult::NoOthers).immediate);
    }

    #[test]
    fn too_long_units_are_refused_over_rdma_and_cut_for_partitions() {
        let login = LoginReq { max_initiator_iu: 8277, immediate: None, ..request() };
        assert_eq!(LoginParameters::SRP.agree(&login), Err(RejectReason::IuTooLong));
        assert_eq!(LoginParameters::VSCSI.agree(&login).unwrap().max_initiator_iu, 256);
    }

    #[test]
    fn units_shorter_than_a_login_are_refused() {
        for max_initiator_iu in [0, 63] {
            let login = LoginReq { max_initiator_iu, ..request() };
            assert_eq!(LoginParameters::SRP.agree(&login), Err(RejectReason::Unspecified));
        }
    }

    #[test]
    fn freebsd_partition_login_is_accepted() {
        let login = LoginReq { max_initiator_iu: 0, formats: BufferFormats(3), ..request() };
        let channel = LoginParameters::VSCSI.agree(&login).unwrap();
        assert_eq!(channel.max_initiator_iu, 256);
        assert_eq!(channel.data, DataRules::VSCSI);
    }

    #[test]
    fn formats_without_a_meaning_are_refused_over_rdma() {
        for formats in [0x0000, 0x0001, 0x0008, 0x000E] {
            let login = LoginReq { formats: BufferFormats(formats), ..request() };
            assert_eq!(LoginParameters::SRP.agree(&login), Err(RejectReason::Formats));
        }
    }

    #[test]
    fn partition_login_without_any_format_is_refused() {
        let login = LoginReq { formats: BufferFormats(0x0008), ..request() };
        assert_eq!(LoginParameters::VSCSI.agree(&login), Err(RejectReason::Formats));
    }

    #[test]
    fn multi_channel_login_to_a_partition_is_refused() {
        let login = LoginReq { action: MultiChannelAction::Multi, ..request() };
        assert_eq!(LoginParameters::VSCSI.agree(&login), Err(RejectReason::NoMultiChannel));
        assert!(LoginParameters::SRP.agree(&login).is_ok());
    }

    #[test]
    fn rejection_carries_tag_reason_and_formats() {
        let rejection = LoginParameters::SRP.reject(&request(), RejectReason::NoNexus);
        let expected = LoginRej {
            tag: Tag([7; 8]),
            reason: RejectReason::NoNexus,
            formats: BufferFormats::ALL,
        };
        assert_eq!(rejection, expected);
    }

    #[test]
    fn a_limit_of_two_allows_two_requests_and_no_third() {
        let mut limit = RequestLimit::new(2);
        assert_eq!((limit.take(), limit.take()), (Ok(()), Ok(())));
        assert_eq!(limit.take(), Err(LimitExceeded { outstanding: 2 }));
        assert_eq!(limit.answer(), 1);
        assert_eq!(limit.take(), Ok(()));
    }

    #[test]
    fn a_thousand_aborts_leave_the_limit_unchanged() {
        let mut limit = RequestLimit::new(2);
        for _ in 0..1000 {
            limit.take().unwrap();
            limit.take().unwrap();
            limit.abandon();
            assert_eq!(limit.answer(), 2);
        }
        assert_eq!(limit, RequestLimit::new(2));
    }

    #[test]
    fn owed_credit_is_settled_once_without_an_answer() {
        let mut limit = RequestLimit::new(4);
        limit.take().unwrap();
        limit.abandon();
        assert_eq!((limit.available(), limit.owed(), limit.outstanding()), (3, 1, 0));
        assert_eq!(limit.settle(), 1);
        assert_eq!(limit.settle(), 0);
        assert_eq!(limit, RequestLimit::new(4));
    }

    #[test]
    fn forgotten_requests_are_credited_by_the_initiator() {
        let mut limit = RequestLimit::new(4);
        limit.take().unwrap();
        limit.take().unwrap();
        limit.forget();
        assert_eq!(limit.answer(), 1);
        assert_eq!(limit, RequestLimit::new(4));
    }

    #[test]
    fn owed_credit_beyond_a_delta_is_kept() {
        let owed = i32::MAX as u32 + 5;
        let mut limit = RequestLimit { available: 0, outstanding: 0, owed };
        assert_eq!((limit.settle(), limit.settle(), limit.settle()), (i32::MAX, 5, 0));
    }

    #[test]
    fn an_answer_to_nothing_grants_nothing() {
        let mut limit = RequestLimit::new(4);
        limit.abandon();
        assert_eq!(limit.answer(), 0);
        assert_eq!(limit, RequestLimit::new(4));
    }

    proptest! {
        #[test]
        fn credit_is_neither_made_nor_lost(
            initial in 2..8_u32,
            steps in prop::collection::vec(0..5_u8, 0..200),
        ) {
            let mut limit = RequestLimit::new(initial);
            let mut initiator = i64::from(initial);
            for step in steps {
                match step {
                    0 if limit.take().is_ok() => initiator -= 1,
                    0 => prop_assert_eq!(limit.available(), 0),
                    1 => limit.abandon(),
                    2 if limit.outstanding() > 0 => {
                        limit.forget();
                        initiator += 1;
                    }
                    2 => {}
                    3 => initiator += i64::from(limit.answer()),
                    _ => initiator += i64::from(limit.settle()),
                }
                prop_assert_eq!(i64::from(limit.available()), initiator);
                let total = limit.available() + limit.outstanding() + limit.owed();
                prop_assert_eq!(total, initial);
            }
        }
    }
}
