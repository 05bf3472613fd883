//! The security stage: AuthMethod and CHAP in their steps (RFC 7143 12.1).

use crate::chap::{Answer, Challenge, Chap, ChapError, MAX_CHALLENGE, MAX_CHAP_NAME};
use crate::keys::KeyId;
use crate::negotiate::NegotiationError;
use crate::text::{Hex, Text, parse_binary, parse_number};

use super::{Refusal, RequestedChallenge};

/// How far authentication is.
#[derive(Clone, Debug)]
pub(super) enum Security {
    /// Nothing was said.
    Open,
    /// CHAP was agreed on; CHAP_A is awaited.
    Chosen,
    /// The challenge was sent; CHAP_N and CHAP_R are awaited.
    Challenged(Challenge),
    /// Passed, with the CHAP name when there was one.
    Passed(Option<String>),
}

/// The security keys of one text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SecurityKeys<'a> {
    auth_method: Option<&'a str>,
    algorithm: Option<&'a str>,
    identifier: Option<&'a str>,
    challenge: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
}

impl<'a> SecurityKeys<'a> {
    pub(super) fn take(&mut self, id: KeyId, value: &'a str) -> Result<(), NegotiationError> {
        let slot = match id {
            KeyId::AuthMethod => &mut self.auth_method,
            KeyId::ChapA => &mut self.algorithm,
            KeyId::ChapI => &mut self.identifier,
            KeyId::ChapC => &mut self.challenge,
            KeyId::ChapN => &mut self.name,
            KeyId::ChapR => &mut self.response,
            other => return Err(NegotiationError::OutOfPhase(other.name())),
        };
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(NegotiationError::Repeated(id.name())),
        }
    }
}

impl Security {
    pub(super) const fn is_passed(&self) -> bool {
        matches!(self, Self::Passed(_))
    }

    /// Goes as far as the keys of one text lead. `transit` is the T bit of the request.
    pub(super) fn advance(
        &mut self,
        keys: SecurityKeys<'_>,
        chap: Option<&Chap>,
        transit: bool,
        draw: RequestedChallenge<'_>,
        answers: &mut Text,
    ) -> Result<(), Refusal> {
        if let Some(offered) = keys.auth_method {
            if !matches!(self, Self::Open) {
                return Err(NegotiationError::Repeated("AuthMethod").into());
            }
            let method = if chap.is_some() { "CHAP" } else { "None" };
            if !offered.split(',').any(|offer| offer == method) {
                return Err(match chap {
                    Some(_) => Refusal::AuthenticationRequired,
                    None => Refusal::NoAuthMethod(offered.chars().take(255).collect()),
                });
            }
            answers.push("AuthMethod", method);
            *self = if chap.is_some() { Self::Chosen } else { Self::Passed(None) };
        }
        if let Some(list) = keys.algorithm {
            let (Self::Chosen, Some(chap)) = (&*self, chap) else {
                return Err(ChapError::OutOfOrder("CHAP_A").into());
            };
            let algorithm = chap.algorithms.choose(list).ok_or_else(|| {
                ChapError::NoAlgorithm(list.chars().take(MAX_CHAP_NAME).collect())
            })?;
            let (identifier, bytes) = draw();
            answers.push("CHAP_A", algorithm.number());
            answers.push("CHAP_I", identifier);
            answers.push("CHAP_C", Hex(&bytes));
            *self = Self::Challenged(Challenge { algorithm, identifier, bytes });
            return match keys.name.or(keys.response).or(keys.challenge).or(keys.identifier) {
                None => Ok(()),
                Some(_) => Err(ChapError::OutOfOrder("CHAP_N").into()),
            };
        }
        let SecurityKeys { name, response, identifier, challenge, .. } = keys;
        if name.or(response).or(identifier).or(challenge).is_some() {
            let (Self::Challenged(ours), Some(chap)) = (&*self, chap) else {
                return Err(ChapError::OutOfOrder("CHAP_N").into());
            };
            let name = name.ok_or(ChapError::Missing("CHAP_N"))?;
            if name.len() > MAX_CHAP_NAME {
                return Err(ChapError::Malformed("CHAP_N").into());
            }
            let response = response.ok_or(ChapError::Missing("CHAP_R"))?;
            let response =
                parse_binary(response, MAX_RESPONSE).ok_or(ChapError::Malformed("CHAP_R"))?;
            let mutual = match (identifier, challenge) {
                (None, None) => None,
                (None, Some(_)) => return Err(ChapError::Missing("CHAP_I").into()),
                (Some(_), None) => return Err(ChapError::Missing("CHAP_C").into()),
                (Some(identifier), Some(challenge)) => {
                    let identifier = parse_number(identifier)
                        .and_then(|number| u8::try_from(number).ok())
                        .ok_or(ChapError::Malformed("CHAP_I"))?;
                    let challenge = parse_binary(challenge, MAX_CHALLENGE)
                        .ok_or(ChapError::Malformed("CHAP_C"))?;
                    Some((identifier, challenge))
                }
            };
            let mutual = mutual.as_ref().map(|(id, challenge)| (*id, challenge.as_slice()));
            let answer = Answer { name, response: &response, mutual };
            if let Some((name, response)) = chap.verify(ours, answer)? {
                answers.push("CHAP_N", name);
                answers.push("CHAP_R", Hex(response.as_bytes()));
            }
            *self = Self::Passed(Some(name.to_owned()));
        }
        if transit && matches!(self, Self::Open) {
            if chap.is_some() {
                return Err(Refusal::AuthenticationRequired);
            }
            *self = Self::Passed(None);
        }
        Ok(())
    }
}

/// The longest response any algorithm has.
const MAX_RESPONSE: usize = 32;
