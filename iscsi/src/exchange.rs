//! Text negotiation in full feature phase (RFC 7143 7.5, 11.10, 11.11): SendTargets, a new
//! MaxRecvDataSegmentLength, and answers that need several PDUs.
//!
//! A connection has one [`TextExchange`] at a time; a request that begins another ends the one
//! before.

use libsrp::Lun;
use thiserror::Error;

use crate::discovery::{self, Listed, SendTargets};
use crate::keys::{self, KeyId};
use crate::names::IscsiName;
use crate::negotiate::{
    NOT_UNDERSTOOD, REJECT, SessionType, is_reserved, parse_max_recv_data_segment,
};
use crate::pdu::{Numbers, RESERVED_TAG, RejectReason, TextRequest, TextResponse};
use crate::text::{Accumulator, LongText, Text, TextError, pairs};

/// What a text exchange knows of its session.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the session is for.
    pub session_type: SessionType,
    /// Its target.
    pub target: Option<&'a IscsiName>,
    /// The initiator's MaxRecvDataSegmentLength in bytes.
    pub max_piece: u32,
}

/// A Text Response, but for its sequence numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextReply {
    /// F: the exchange is over.
    pub is_final: bool,
    /// C: the text goes on.
    pub more: bool,
    /// Initiator task tag of the request.
    pub itt: u32,
    /// Tag for the next request, the reserved one when this is final.
    pub ttt: u32,
    /// The data segment.
    pub text: Vec<u8>,
    /// With a final reply: the initiator's new MaxRecvDataSegmentLength, in force behind it.
    pub max_recv_data_segment: Option<u32>,
}

impl TextReply {
    /// The header.
    pub fn pdu(&self, numbers: Numbers) -> TextResponse {
        TextResponse {
            is_final: self.is_final,
            more: self.more,
            // At most a MaxRecvDataSegmentLength.
            data_len: self.text.len() as u32,
            lun: Lun::default(),
            itt: self.itt,
            ttt: self.ttt,
            numbers,
        }
    }
}

/// Why a Text Request is rejected. The exchange is over with it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExchangeError {
    /// F and C are both set.
    #[error("text request is final and unfinished")]
    FinalWithMore,
    /// The tag is not that of the exchange.
    #[error("text request with target transfer tag {0:#x}, which is not in use")]
    UnknownTag(u32),
    /// Text came while the target was in the middle of its own.
    #[error("text before the target's was complete")]
    OutOfTurn,
    /// The text is not one.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A key was sent twice.
    #[error("{0} was sent twice")]
    Repeated(&'static str),
    /// More keys that no answer but NotUnderstood or Reject fits than any initiator has.
    #[error("more than {MAX_REFUSED} keys were refused")]
    TooManyRefused,
}

impl ExchangeError {
    /// The reason for the Reject PDU.
    pub const fn reject_reason(&self) -> RejectReason {
        match self {
            Self::UnknownTag(_) => RejectReason::InvalidPduField,
            _ => RejectReason::ProtocolError,
        }
    }
}

/// The text exchange of a connection.
#[derive(Clone, Debug, Default)]
pub struct TextExchange {
    /// Initiator task tag and target transfer tag, while there is an exchange.
    tags: Option<(u32, u32)>,
    last_ttt: u32,
    incoming: Accumulator,
    outgoing: LongText,
    declared: Option<u32>,
    listed: bool,
}

impl TextExchange {
    /// No exchange yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one Text Request. `find` gives the targets that the initiator may use of those it
    /// asks for; it is asked at most once.
    ///
    /// # Errors
    /// What the Reject PDU is for.
    pub fn request(
        &mut self,
        request: &TextRequest,
        data: &[u8],
        context: &Context<'_>,
        find: impl FnOnce(&SendTargets) -> Vec<Listed>,
    ) -> Result<TextReply, ExchangeError> {
        let result = self.advance(request, data, context, find);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn advance(
        &mut self,
        request: &TextRequest,
        data: &[u8],
        context: &Context<'_>,
        find: impl FnOnce(&SendTargets) -> Vec<Listed>,
    ) -> Result<TextReply, ExchangeError> {
        if request.is_final && request.more {
            return Err(ExchangeError::FinalWithMore);
        }
        let ttt = self.tag(request)?;
        if !self.outgoing.is_done() {
            if !data.is_empty() || request.more {
                return Err(ExchangeError::OutOfTurn);
            }
            return Ok(self.reply(request, ttt, context.max_piece));
        }
        self.incoming.push(data)?;
        if !request.more {
            let text = self.incoming.take();
            let answers = self.answer(&text, context, find)?;
            self.outgoing = LongText::new(answers.into_bytes());
        }
        Ok(self.reply(request, ttt, context.max_piece))
    }

    /// The target transfer tag of the exchange this request continues or begins.
    fn tag(&mut self, request: &TextRequest) -> Result<u32, ExchangeError> {
        if request.ttt != RESERVED_TAG {
            return match self.tags {
                Some((itt, ttt)) if (itt, ttt) == (request.itt, request.ttt) => Ok(ttt),
                _ => Err(ExchangeError::UnknownTag(request.ttt)),
            };
        }
        self.reset();
        self.last_ttt = match self.last_ttt.wrapping_add(1) {
            RESERVED_TAG => 0,
            tag => tag,
        };
        self.tags = Some((request.itt, self.last_ttt));
        Ok(self.last_ttt)
    }

    fn answer(
        &mut self,
        text: &[u8],
        context: &Context<'_>,
        find: impl FnOnce(&SendTargets) -> Vec<Listed>,
    ) -> Result<Text, ExchangeError> {
        let mut answers = Text::new();
        let mut find = Some(find);
        let mut refused = 0;
        for pair in pairs(text) {
            let (name, value) = pair?;
            let key = keys::find(name);
            let refusal = match key.map(|key| key.id) {
                None => Some(NOT_UNDERSTOOD),
                Some(KeyId::SendTargets) => {
                    let Some(find) = find.take().filter(|_| !self.listed) else {
                        return Err(ExchangeError::Repeated(KeyId::SendTargets.name()));
                    };
                    self.listed = true;
                    match SendTargets::parse(value, context.session_type, context.target) {
                        None => Some(REJECT),
                        Some(wanted) => {
                            discovery::list(&find(&wanted), &mut answers);
                            None
                        }
                    }
                }
                Some(id @ KeyId::MaxRecvDataSegmentLength) => {
                    match parse_max_recv_data_segment(value) {
                        None => Some(REJECT),
                        length if self.declared.is_none() => {
                            self.declared = length;
                            None
                        }
                        Some(_) => return Err(ExchangeError::Repeated(id.name())),
                    }
                }
                Some(KeyId::InitiatorAlias) => None,
                // Everything else was settled in login.
                Some(_) => Some(REJECT),
            };
            if let Some(refusal) = refusal.filter(|_| !is_reserved(value)) {
                refused += 1;
                if refused > MAX_REFUSED {
                    return Err(ExchangeError::TooManyRefused);
                }
                answers.push(name, refusal);
            }
        }
        Ok(answers)
    }

    fn reply(&mut self, request: &TextRequest, ttt: u32, max_piece: u32) -> TextReply {
        let (piece, more) = self.outgoing.next_piece(max_piece as usize);
        let text = piece.to_vec();
        let is_final = request.is_final && !more;
        let max_recv_data_segment = if is_final { self.declared.take() } else { None };
        if is_final {
            self.reset();
        }
        let ttt = if is_final { RESERVED_TAG } else { ttt };
        TextReply { is_final, more, itt: request.itt, ttt, text, max_recv_data_segment }
    }

    fn reset(&mut self) {
        *self = Self { last_ttt: self.last_ttt, ..Self::default() };
    }
}

const MAX_REFUSED: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::TargetAddress;

    fn request(ttt: u32, is_final: bool, more: bool) -> TextRequest {
        TextRequest {
            immediate: false,
            is_final,
            more,
            data_len: 0,
            lun: Lun::default(),
            itt: 7,
            ttt,
            cmd_sn: 1,
            exp_stat_sn: 1,
        }
    }

    fn first() -> TextRequest {
        request(RESERVED_TAG, true, false)
    }

    const DISCOVERY: Context<'static> =
        Context { session_type: SessionType::Discovery, target: None, max_piece: 8192 };

    fn targets(count: usize) -> Vec<Listed> {
        let target = |n: usize| Listed {
            name: format!("iqn.2026-11.org.example:target{n}").parse().unwrap(),
            portals: vec![TargetAddress {
                address: "192.0.2.1:3260".parse().unwrap(),
                portal_group_tag: 1,
            }],
        };
        (0..count).map(target).collect()
    }

    fn nothing(_: &SendTargets) -> Vec<Listed> {
        unreachable!("nobody asks for targets here")
    }

    #[test]
    fn send_targets_all_is_answered_in_one_final_reply() {
        let mut exchange = TextExchange::new();
        let reply = exchange
            .request(&first(), b"SendTargets=All\0", &DISCOVERY, |wanted| {
                assert_eq!(*wanted, SendTargets::All);
                targets(1)
            })
            .unwrap();
        assert_eq!(
            reply,
            TextReply {
                is_final: true,
                more: false,
                itt: 7,
                ttt: RESERVED_TAG,
                text: b"TargetName=iqn.2026-11.org.example:target0\0\
                        TargetAddress=192.0.2.1:3260,1\0"
                    .to_vec(),
                max_recv_data_segment: None,
            }
        );
    }

    #[test]
    fn answer_above_8_kib_comes_in_pieces_under_one_tag() {
        let mut exchange = TextExchange::new();
        let mut reply =
            exchange.request(&first(), b"SendTargets=All\0", &DISCOVERY, |_| targets(500)).unwrap();
        let (mut text, ttt) = (Vec::new(), reply.ttt);
        while reply.more {
            assert_eq!((reply.is_final, reply.ttt, reply.text.len()), (false, ttt, 8192));
            text.append(&mut reply.text);
            reply = exchange.request(&request(ttt, true, false), b"", &DISCOVERY, nothing).unwrap();
        }
        assert_eq!((reply.is_final, reply.ttt), (true, RESERVED_TAG));
        text.append(&mut reply.text);
        let mut whole = Text::new();
        discovery::list(&targets(500), &mut whole);
        assert!(text.len() > 8192);
        assert_eq!(text, whole.as_bytes());
    }

    #[test]
    fn request_in_two_pdus_is_answered_after_the_second() {
        let mut exchange = TextExchange::new();
        let half = exchange
            .request(&request(RESERVED_TAG, false, true), b"SendTar", &DISCOVERY, nothing)
            .unwrap();
        assert_eq!((half.is_final, half.text.len()), (false, 0));
        let reply = exchange
            .request(&request(half.ttt, true, false), b"gets=All\0", &DISCOVERY, |_| targets(1))
            .unwrap();
        assert!(reply.is_final && reply.text.starts_with(b"TargetName="));
    }

    #[test]
    fn new_request_ends_the_exchange_before() {
        let mut exchange = TextExchange::new();
        let old =
            exchange.request(&first(), b"SendTargets=All\0", &DISCOVERY, |_| targets(500)).unwrap();
        let new =
            exchange.request(&first(), b"SendTargets=All\0", &DISCOVERY, |_| targets(1)).unwrap();
        assert!(old.more && new.is_final);
        assert_eq!(
            exchange.request(&request(old.ttt, true, false), b"", &DISCOVERY, nothing),
            Err(ExchangeError::UnknownTag(old.ttt))
        );
    }

    #[test]
    fn text_while_the_targets_is_unfinished_is_rejected() {
        let mut exchange = TextExchange::new();
        let reply =
            exchange.request(&first(), b"SendTargets=All\0", &DISCOVERY, |_| targets(500)).unwrap();
        assert_eq!(
            exchange.request(&request(reply.ttt, true, false), b"A=b\0", &DISCOVERY, nothing),
            Err(ExchangeError::OutOfTurn)
        );
    }

    #[test]
    fn new_segment_length_comes_with_the_final_reply() {
        let mut exchange = TextExchange::new();
        let text = b"MaxRecvDataSegmentLength=65536\0";
        let open = exchange
            .request(&request(RESERVED_TAG, false, false), text, &DISCOVERY, nothing)
            .unwrap();
        assert_eq!((open.is_final, open.max_recv_data_segment), (false, None));
        let end =
            exchange.request(&request(open.ttt, true, false), b"", &DISCOVERY, nothing).unwrap();
        assert_eq!((end.is_final, end.max_recv_data_segment), (true, Some(65_536)));
    }

    #[test]
    fn keys_that_do_not_fit_are_refused_by_name() {
        let mut exchange = TextExchange::new();
        let text = b"MaxRecvDataSegmentLength=511\0X-foo=1\0MaxBurstLength=512\0\
                     SendTargets=\0InitiatorAlias=a\0X-bar=Reject\0";
        let reply = exchange.request(&first(), text, &DISCOVERY, nothing).unwrap();
        assert_eq!(
            reply.text,
            b"MaxRecvDataSegmentLength=Reject\0X-foo=NotUnderstood\0MaxBurstLength=Reject\0\
              SendTargets=Reject\0"
        );
    }

    #[test]
    fn final_and_unfinished_request_is_rejected() {
        let result = TextExchange::new().request(
            &request(RESERVED_TAG, true, true),
            b"",
            &DISCOVERY,
            nothing,
        );
        assert_eq!(result, Err(ExchangeError::FinalWithMore));
    }

    #[test]
    fn repeated_send_targets_is_rejected() {
        let result = TextExchange::new().request(
            &first(),
            b"SendTargets=All\0SendTargets=All\0",
            &DISCOVERY,
            |_| targets(1),
        );
        assert_eq!(result, Err(ExchangeError::Repeated("SendTargets")));
    }

    proptest! {
        #[test]
        fn any_sequence_of_requests_is_answered_or_rejected(
            requests in proptest::collection::vec(
                (any::<bool>(), any::<bool>(), 0_u32..4, "(SendTargets=(All)?|a=b|\0){0,9}"),
                0..20,
            ),
        ) {
            let mut exchange = TextExchange::new();
            let context = Context { max_piece: 512, ..DISCOVERY };
            for (is_final, more, ttt, text) in requests {
                let ttt = if ttt == 0 { RESERVED_TAG } else { ttt };
                let request = request(ttt, is_final, more);
                if let Ok(reply) =
                    exchange.request(&request, text.as_bytes(), &context, |_| targets(20))
                {
                    prop_assert!(reply.text.len() <= 512);
                    prop_assert_eq!(reply.is_final, reply.ttt == RESERVED_TAG);
                    prop_assert!(!(reply.is_final && reply.more));
                }
            }
        }
    }
}
