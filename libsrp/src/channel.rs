//! An SRP channel: who talks, what was agreed, the request limit, and the target's half of it
//! (SRP clauses 5 and 6).

mod limit;
mod target;

pub use limit::{LimitExceeded, RequestLimit};
pub use target::{Asks, Channel, Violation};

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

/// The shortest unit length an initiator may ask for: a login request.
const MIN_INITIATOR_IU: u32 = LoginReq::LEN as u32;
/// A CMD's header and the length word end here, so no immediate data can start earlier.
const MIN_IMMEDIATE_OFFSET: u16 = 52;
const _: () = assert!(LoginParameters::VSCSI.max_target_iu as usize >= Rsp::HEADER_LEN);

#[cfg(test)]
mod tests {
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
}
