//! Negotiation of operational keys by their rules (RFC 7143 6.2 and clause 13).
//!
//! [`Negotiation`] takes the pairs an initiator sends and writes the target's answers. A key of
//! which the outcome would not suit the target if the initiator stayed silent is offered by the
//! target; login cannot end before such an offer is answered.

mod parameters;
mod rdma;

pub use parameters::{DigestPolicy, Parameters, Preferences, SessionType, TaskReporting};
pub use rdma::{RdmaParameters, RdmaPreferences, Transport};

use thiserror::Error;

use crate::keys::{self, Irrelevant, Key, KeyId, Rule, Scope};
use crate::text::{MAX_VALUE, Text, boolean, parse_boolean, parse_number};

/// Answer to a key nobody here knows.
pub const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// Answer to a value that cannot be accepted.
pub const REJECT: &str = "Reject";
/// Answer to a key that does not matter here.
pub const IRRELEVANT: &str = "Irrelevant";

/// A fault that ends the negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NegotiationError {
    /// A key was sent twice.
    #[error("{0} was sent twice")]
    Repeated(&'static str),
    /// An initiator sent a key that only targets send.
    #[error("{0} is not for initiators to send")]
    TargetOnly(&'static str),
    /// A key that has no place where it was sent.
    #[error("{0} has no place in this phase")]
    OutOfPhase(&'static str),
    /// A word reserved for answers was sent as an offer.
    #[error("{key}={value} answers an offer nobody made")]
    UnexpectedAnswer {
        /// The key.
        key: &'static str,
        /// The reserved word.
        value: String,
    },
    /// The initiator did not accept what the target cannot do without.
    #[error("{key}={value} does not suit the target's offer")]
    OfferRefused {
        /// The key.
        key: &'static str,
        /// What the initiator answered.
        value: String,
    },
    /// More unknown keys than any initiator has.
    #[error("more than {MAX_UNKNOWN} unknown keys")]
    TooManyUnknown,
}

/// The negotiation of one connection's operational keys.
#[derive(Clone, Debug)]
pub struct Negotiation {
    session: SessionType,
    leading: bool,
    wanted: Preferences,
    agreed: Parameters,
    states: [State; keys::KEYS.len()],
    unknown: usize,
}

impl Negotiation {
    /// For a connection of a session; the `leading` one is the session's first.
    pub fn new(session: SessionType, leading: bool, wanted: Preferences) -> Self {
        let agreed = Parameters::default();
        let states = [State::Silent; keys::KEYS.len()];
        Self { session, leading, wanted, agreed, states, unknown: 0 }
    }

    /// Takes all pairs of one complete text and writes the answers.
    ///
    /// # Errors
    /// The initiator broke a rule that no answer can mend.
    pub fn receive<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        answers: &mut Text,
    ) -> Result<(), NegotiationError> {
        // Whether FirstBurstLength matters, and how far it may go, depends on other keys.
        let mut first_burst = None;
        for (name, value) in pairs {
            match keys::find(name) {
                None => self.unknown(name, value, answers)?,
                Some(key) if key.id == KeyId::FirstBurstLength => {
                    if first_burst.replace(value).is_some() {
                        return Err(NegotiationError::Repeated(key.name));
                    }
                }
                Some(key) => self.known(key, value, answers)?,
            }
        }
        match first_burst {
            Some(value) => self.known(KeyId::FirstBurstLength.key(), value, answers),
            None => Ok(()),
        }
    }

    /// Writes the target's own declaration and the offers it has to make. Call it with each
    /// answer in the operational stage, after [`receive`](Self::receive).
    pub fn offer(&mut self, answers: &mut Text) {
        let rdma = self.session == SessionType::Normal && self.wanted.transport == Transport::Rdma;
        let mrdsl = &mut self.states[KeyId::MaxRecvDataSegmentLength as usize];
        // The key has no meaning where data segments are limited by two others (RFC 7145 6.4).
        if !mrdsl.declared() && !rdma {
            *mrdsl = if *mrdsl == State::Silent { State::Declared } else { State::Both };
            self.agreed.target_mrdsl = self.wanted.max_recv_data_segment;
            answers.push(KeyId::MaxRecvDataSegmentLength.name(), self.agreed.target_mrdsl);
        }
        let required = |policy| policy == DigestPolicy::Required;
        for (id, needed) in [
            (KeyId::HeaderDigest, required(self.wanted.header_digest)),
            (KeyId::DataDigest, required(self.wanted.data_digest)),
        ] {
            if needed && self.may_offer(id) {
                answers.push(id.name(), "CRC32C");
                self.states[id as usize] = State::Offered;
            }
        }
        if self.session == SessionType::Discovery || !self.leading {
            return;
        }
        for (id, ours, silent) in [
            (KeyId::MaxBurstLength, self.wanted.max_burst, self.agreed.max_burst),
            (KeyId::FirstBurstLength, self.wanted.first_burst, self.agreed.first_burst),
        ] {
            if ours < silent && self.may_offer(id) {
                answers.push(id.name(), ours);
                self.states[id as usize] = State::Offered;
            }
        }
        if !self.wanted.immediate_data && self.may_offer(KeyId::ImmediateData) {
            answers.push(KeyId::ImmediateData.name(), boolean(false));
            self.states[KeyId::ImmediateData as usize] = State::Offered;
        }
    }

    /// Whether every offer of the target was answered.
    pub fn is_settled(&self) -> bool {
        !self.states.contains(&State::Offered)
    }

    /// A digest the target cannot do without and that is not agreed on.
    pub fn unmet_digest(&self) -> Option<&'static str> {
        let unmet = |policy, agreed: bool| policy == DigestPolicy::Required && !agreed;
        if unmet(self.wanted.header_digest, self.agreed.header_digest) {
            Some(KeyId::HeaderDigest.name())
        } else if unmet(self.wanted.data_digest, self.agreed.data_digest) {
            Some(KeyId::DataDigest.name())
        } else {
            None
        }
    }

    /// A normal session over RDMA in which RDMA was not agreed on.
    pub fn lacks_rdma(&self) -> bool {
        self.wanted.transport == Transport::Rdma
            && self.session == SessionType::Normal
            && self.leading
            && !self.agreed.rdma.extensions
    }

    /// What was agreed on so far.
    pub fn parameters(&self) -> Parameters {
        let agreed = self.agreed;
        Parameters { first_burst: agreed.first_burst.min(agreed.max_burst), ..agreed }
    }

    fn may_offer(&self, id: KeyId) -> bool {
        self.states[id as usize] == State::Silent
    }

    fn unknown(
        &mut self,
        name: &str,
        value: &str,
        answers: &mut Text,
    ) -> Result<(), NegotiationError> {
        self.unknown += 1;
        if self.unknown > MAX_UNKNOWN {
            return Err(NegotiationError::TooManyUnknown);
        }
        if !is_reserved(value) {
            answers.push(name, NOT_UNDERSTOOD);
        }
        Ok(())
    }

    fn known(
        &mut self,
        key: &'static Key,
        value: &str,
        answers: &mut Text,
    ) -> Result<(), NegotiationError> {
        if key.target_only {
            // A declaration of ours may be refused; it was information only.
            return if is_reserved(value) {
                Ok(())
            } else {
                Err(NegotiationError::TargetOnly(key.name))
            };
        }
        if key.scope == Scope::FullFeatureOnly
            || matches!(key.rule, Rule::Identity | Rule::Security)
        {
            return Err(NegotiationError::OutOfPhase(key.name));
        }
        let state = self.states[key.id as usize];
        let refuses_ours = is_reserved(value) && state.declared();
        if refuses_ours && key.rule == Rule::DeclaredNumber {
            if key.id == KeyId::MaxRecvDataSegmentLength {
                self.agreed.target_mrdsl = DEFAULT_MRDSL;
            }
            return Ok(());
        }
        if state.received() {
            return Err(NegotiationError::Repeated(key.name));
        }
        if state == State::Offered {
            self.states[key.id as usize] = State::Both;
            return self.answered(key, value);
        }
        self.states[key.id as usize] =
            if state == State::Declared { State::Both } else { State::Received };
        if is_reserved(value) {
            return Err(NegotiationError::UnexpectedAnswer {
                key: key.name,
                value: value.to_owned(),
            });
        }
        if key.scope == Scope::LeadingOnly && !self.leading {
            answers.push(key.name, REJECT);
            return Ok(());
        }
        if self.is_irrelevant(key) {
            answers.push(key.name, IRRELEVANT);
            return Ok(());
        }
        self.decide(key, value, answers);
        Ok(())
    }

    fn is_irrelevant(&self, key: &Key) -> bool {
        let discovery = self.session == SessionType::Discovery;
        match key.irrelevant {
            Irrelevant::Never => false,
            Irrelevant::InDiscovery => discovery,
            Irrelevant::WithoutRdma => self.wanted.transport == Transport::Tcp,
            Irrelevant::WithoutUnsolicitedData => {
                discovery || (self.agreed.initial_r2t && !self.agreed.immediate_data)
            }
        }
    }

    /// Takes the initiator's offer, and answers where the rule has an answer.
    fn decide(&mut self, key: &Key, value: &str, answers: &mut Text) {
        match key.rule {
            Rule::And | Rule::Or => match parse_boolean(value) {
                None => answers.push(key.name, REJECT),
                Some(theirs) => {
                    let ours = self.wanted_boolean(key.id);
                    let both = if key.rule == Rule::And { theirs && ours } else { theirs || ours };
                    self.agree_boolean(key.id, both);
                    answers.push(key.name, boolean(both));
                }
            },
            Rule::Min | Rule::Max => match number_in_range(key, value) {
                None => answers.push(key.name, REJECT),
                Some(theirs) => {
                    let ours = self.wanted_number(key.id);
                    let both =
                        if key.rule == Rule::Min { theirs.min(ours) } else { theirs.max(ours) };
                    self.agree_number(key.id, both);
                    answers.push(key.name, both);
                }
            },
            Rule::DeclaredNumber => match number_in_range(key, value) {
                None => answers.push(key.name, REJECT),
                Some(theirs) => self.take_declared(key, theirs, answers),
            },
            Rule::DeclaredBoolean => match parse_boolean(value) {
                None => answers.push(key.name, REJECT),
                Some(theirs) if key.id == KeyId::IserHelloRequired => {
                    self.agreed.rdma.hello_required = theirs;
                }
                Some(theirs) => self.agreed.rdma.tagged_is_solicited = Some(theirs),
            },
            Rule::List => match self.choose(key.id, value) {
                None => answers.push(key.name, REJECT),
                Some(choice) => answers.push(key.name, choice),
            },
            Rule::DeclaredText => {
                if value.len() > MAX_VALUE {
                    answers.push(key.name, REJECT);
                }
            }
            Rule::ObsoleteBoolean => answers.push(key.name, boolean(false)),
            Rule::ObsoleteRange | Rule::Identity | Rule::Security | Rule::SendTargets => {
                answers.push(key.name, REJECT);
            }
        }
    }

    /// Takes a number the initiator says of itself. Where some initiators do not know the key, the
    /// target says its own only to those that do.
    fn take_declared(&mut self, key: &Key, theirs: u32, answers: &mut Text) {
        let ours = match key.id {
            KeyId::MaxOutstandingUnexpectedPdus => {
                self.agreed.rdma.unexpected_pdus = theirs;
                self.wanted.rdma.unexpected_pdus
            }
            // Additional header segments are the initiator's alone to send.
            KeyId::MaxAhsLength => self.wanted.rdma.max_ahs,
            _ => {
                self.agreed.initiator_mrdsl = theirs;
                return;
            }
        };
        answers.push(key.name, ours);
        self.states[key.id as usize] = State::Both;
    }

    /// Takes the initiator's answer to an offer of ours.
    fn answered(&mut self, key: &Key, value: &str) -> Result<(), NegotiationError> {
        let refused = || NegotiationError::OfferRefused { key: key.name, value: value.to_owned() };
        match key.rule {
            Rule::List => {
                // Only a digest that is required is ever offered.
                (value == "CRC32C").then_some(()).ok_or_else(refused)?;
                self.choose(key.id, value).map(drop).ok_or_else(refused)
            }
            Rule::Min if value == IRRELEVANT => Ok(()),
            Rule::Min => {
                let theirs = number_in_range(key, value)
                    .filter(|&theirs| theirs <= self.wanted_number(key.id))
                    .ok_or_else(refused)?;
                self.agree_number(key.id, theirs);
                Ok(())
            }
            Rule::And if value == "No" => {
                self.agree_boolean(key.id, false);
                Ok(())
            }
            _ => Err(refused()),
        }
    }

    fn choose(&mut self, id: KeyId, list: &str) -> Option<&'static str> {
        let mut offers = list.split(',');
        match id {
            KeyId::HeaderDigest | KeyId::DataDigest => {
                let policy = match id {
                    KeyId::HeaderDigest => self.wanted.header_digest,
                    _ => self.wanted.data_digest,
                };
                let on = offers.find_map(|offer| match (offer, policy) {
                    ("None", DigestPolicy::Off | DigestPolicy::Allowed) => Some(false),
                    ("CRC32C", DigestPolicy::Allowed | DigestPolicy::Required) => Some(true),
                    _ => None,
                })?;
                match id {
                    KeyId::HeaderDigest => self.agreed.header_digest = on,
                    _ => self.agreed.data_digest = on,
                }
                Some(if on { "CRC32C" } else { "None" })
            }
            _ => {
                let (name, choice) = offers.find_map(|offer| {
                    let (name, choice) = match offer {
                        "RFC3720" => return Some(("RFC3720", TaskReporting::Rfc3720)),
                        "ResponseFence" => ("ResponseFence", TaskReporting::ResponseFence),
                        "FastAbort" => ("FastAbort", TaskReporting::FastAbort),
                        _ => return None,
                    };
                    self.wanted.task_reporting.contains(&choice).then_some((name, choice))
                })?;
                self.agreed.task_reporting = choice;
                Some(name)
            }
        }
    }

    fn wanted_boolean(&self, id: KeyId) -> bool {
        match id {
            KeyId::InitialR2T => self.wanted.initial_r2t,
            KeyId::ImmediateData => self.wanted.immediate_data,
            KeyId::DataPDUInOrder => self.wanted.data_pdu_in_order,
            KeyId::RdmaExtensions => self.wanted.transport == Transport::Rdma,
            _ => self.wanted.data_sequence_in_order,
        }
    }

    fn agree_boolean(&mut self, id: KeyId, value: bool) {
        match id {
            KeyId::InitialR2T => self.agreed.initial_r2t = value,
            KeyId::ImmediateData => self.agreed.immediate_data = value,
            KeyId::DataPDUInOrder => self.agreed.data_pdu_in_order = value,
            KeyId::RdmaExtensions => self.agreed.rdma.extensions = value,
            _ => self.agreed.data_sequence_in_order = value,
        }
    }

    fn wanted_number(&self, id: KeyId) -> u32 {
        let wanted = &self.wanted;
        match id {
            KeyId::MaxConnections => wanted.max_connections.into(),
            KeyId::MaxBurstLength => wanted.max_burst,
            KeyId::FirstBurstLength => wanted.first_burst.min(self.agreed.max_burst),
            KeyId::DefaultTime2Wait => wanted.time2wait.into(),
            KeyId::DefaultTime2Retain => wanted.time2retain.into(),
            KeyId::MaxOutstandingR2T => wanted.max_outstanding_r2t.into(),
            KeyId::ErrorRecoveryLevel => wanted.error_recovery_level.into(),
            KeyId::TargetRecvDataSegmentLength => wanted.rdma.recv_data_segment,
            KeyId::InitiatorRecvDataSegmentLength => keys::LONGEST_SEGMENT,
            _ => wanted.protocol_level.into(),
        }
    }

    /// Every number was held to the key's range, so the narrower fields take it.
    fn agree_number(&mut self, id: KeyId, value: u32) {
        let agreed = &mut self.agreed;
        match id {
            KeyId::MaxConnections => agreed.max_connections = value as u16,
            KeyId::MaxBurstLength => agreed.max_burst = value,
            KeyId::FirstBurstLength => agreed.first_burst = value,
            KeyId::DefaultTime2Wait => agreed.time2wait = value as u16,
            KeyId::DefaultTime2Retain => agreed.time2retain = value as u16,
            KeyId::MaxOutstandingR2T => agreed.max_outstanding_r2t = value as u16,
            KeyId::ErrorRecoveryLevel => agreed.error_recovery_level = value as u8,
            KeyId::TargetRecvDataSegmentLength => agreed.rdma.target_recv = value,
            KeyId::InitiatorRecvDataSegmentLength => agreed.rdma.initiator_recv = value,
            _ => agreed.protocol_level = value as u8,
        }
    }
}

/// A MaxRecvDataSegmentLength value, in login or in full feature phase. `None` out of range.
pub fn parse_max_recv_data_segment(value: &str) -> Option<u32> {
    number_in_range(KeyId::MaxRecvDataSegmentLength.key(), value)
}

/// Whether a value is one of the words that only answer.
pub fn is_reserved(value: &str) -> bool {
    matches!(value, NOT_UNDERSTOOD | REJECT | IRRELEVANT)
}

/// What happened to a key so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Silent,
    /// The initiator sent it.
    Received,
    /// The target declared its own value.
    Declared,
    /// The target offered it and waits for the answer.
    Offered,
    /// Both sides spoke.
    Both,
}

impl State {
    const fn received(self) -> bool {
        matches!(self, Self::Received | Self::Both)
    }

    const fn declared(self) -> bool {
        matches!(self, Self::Declared | Self::Both)
    }
}

fn number_in_range(key: &Key, value: &str) -> Option<u32> {
    let number = u32::try_from(parse_number(value)?).ok()?;
    let gap = key.range == keys::AMOUNT && number == 1;
    ((key.range.0..=key.range.1).contains(&number) && !gap).then_some(number)
}

/// MaxRecvDataSegmentLength before anybody says otherwise, and all through login.
pub const DEFAULT_MRDSL: u32 = 8192;

const MAX_UNKNOWN: usize = 64;

#[cfg(test)]
mod tests;
