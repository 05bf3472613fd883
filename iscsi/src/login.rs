//! The target's side of a login (RFC 7143 clauses 6 and 7.4), from the first request to full
//! feature phase.
//!
//! [`Login`] takes Login Requests and gives what to send. It asks a [`Gate`] who may do what, and
//! stops with [`Step::NeedSession`] when everything is agreed on and the peer is authenticated:
//! only then does the caller look at its session table, so that a peer that cannot authenticate
//! harms no session. Nothing here reads a clock; the caller ends a login that takes too long.

mod refusal;
mod security;

#[cfg(test)]
mod tests;

pub use refusal::{Refusal, Refused};

use security::{Security, SecurityKeys};

use crate::chap::Chap;
use crate::keys::{self, KeyId, Rule};
use crate::names::IscsiName;
use crate::negotiate::{
    DEFAULT_MRDSL, Negotiation, NegotiationError, Parameters, Preferences, SessionType,
};
use crate::pdu::{
    BHS_LEN, Bhs, Isid, LoginRequest, LoginResponse, LoginStatus, Numbers, Stage,
    initiator_task_tag, opcode,
};
use crate::text::{Accumulator, LongText, MAX_VALUE, Text, pairs};

/// How many requests a login may take.
pub const MAX_EXCHANGES: u32 = 64;

/// What a login asks its surroundings.
pub trait Gate {
    /// Whether the applicant may try, and under which conditions. Asked once a login, before
    /// authentication, when the first text is complete.
    ///
    /// # Errors
    /// Why not: no such target, not on this portal, not allowed, moved, out of service.
    fn admit(&mut self, applicant: &Applicant<'_>) -> Result<Admission, Refusal>;

    /// An unpredictable CHAP identifier and challenge, never given before.
    fn challenge(&mut self) -> (u8, [u8; 32]);
}

/// Who wants to log in.
#[derive(Clone, Copy, Debug)]
pub struct Applicant<'a> {
    /// The initiator.
    pub initiator: &'a IscsiName,
    /// Its part of the session identifier.
    pub isid: Isid,
    /// What for.
    pub session_type: SessionType,
    /// To what: always there in a normal session.
    pub target: Option<&'a IscsiName>,
}

/// Under which conditions an applicant may log in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The authentication it must pass.
    pub chap: Option<Chap>,
    /// Tag of the portal group the connection came in by.
    pub portal_group_tag: u16,
    /// What the target calls itself besides its name.
    pub target_alias: Option<String>,
    /// What the target would have.
    pub preferences: Preferences,
}

/// What to do after a request.
#[derive(Debug)]
pub enum Step {
    /// Send this and wait for the next request.
    Reply(LoginReply),
    /// Look at the session table, and [`finish`](Ready::finish) or [`refuse`](Ready::refuse).
    NeedSession(Box<Ready>),
    /// Send the reply if there is one, and close the connection.
    Refused(Box<Refused>),
}

/// A Login Response with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginReply {
    /// The header.
    pub pdu: LoginResponse,
    /// The data segment, without padding.
    pub text: Vec<u8>,
}

impl LoginReply {
    /// Appends the whole PDU with its padding; there are no digests during login.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let mut header = [0; BHS_LEN];
        self.pdu.emit(&mut header);
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.text);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// What the session table says of a login that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Handle of the session, never 0.
    pub tsih: u16,
    /// Next CmdSN the session expects: for a new session the login's own CmdSN.
    pub exp_cmd_sn: u32,
    /// Highest CmdSN the session takes.
    pub max_cmd_sn: u32,
}

/// A connection in full feature phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// The initiator.
    pub initiator: IscsiName,
    /// What it calls itself besides its name.
    pub initiator_alias: Option<String>,
    /// Its part of the session identifier.
    pub isid: Isid,
    /// The target's part: as requested (0 asks for a new session) until the login is finished,
    /// then as granted.
    pub tsih: u16,
    /// Connection identifier.
    pub cid: u16,
    /// What for.
    pub session_type: SessionType,
    /// To what: always there in a normal session.
    pub target: Option<IscsiName>,
    /// Tag of the portal group.
    pub portal_group_tag: u16,
    /// The CHAP name the initiator proved, if it had to.
    pub chap_name: Option<String>,
    /// What was agreed on. For a connection that joins a session see
    /// [`Parameters::joined_to`].
    pub parameters: Parameters,
    /// CmdSN of the login: the first command of a new session has the same.
    pub cmd_sn: u32,
    /// ExpStatSN of the last request.
    pub exp_stat_sn: u32,
    /// StatSN of the next PDU the target sends.
    pub stat_sn: u32,
}

/// A login that waits for its session.
#[derive(Debug)]
pub struct Ready {
    request: LoginRequest,
    text: Vec<u8>,
    connection: LoggedIn,
}

impl Ready {
    /// Who logged in to what; the TSIH is the one requested.
    pub const fn connection(&self) -> &LoggedIn {
        &self.connection
    }

    /// Ends the login: the last reply, and what the connection is from now on.
    pub fn finish(self, granted: Granted) -> (LoginReply, LoggedIn) {
        let Self { request, text, mut connection } = self;
        let numbers = Numbers {
            stat_sn: connection.stat_sn,
            exp_cmd_sn: granted.exp_cmd_sn,
            max_cmd_sn: granted.max_cmd_sn,
        };
        let mut pdu = response(&request, numbers, text.len());
        (pdu.transit, pdu.next, pdu.tsih) = (true, Stage::FullFeature, granted.tsih);
        connection.tsih = granted.tsih;
        connection.stat_sn = connection.stat_sn.wrapping_add(1);
        (LoginReply { pdu, text }, connection)
    }

    /// Ends the login without a session.
    pub fn refuse(self, reason: Refusal) -> Refused {
        let Self { request, connection, .. } = self;
        let reply = refusal(&request, connection.stat_sn, &reason);
        Refused {
            reply: Some(reply),
            reason,
            initiator: Some(connection.initiator),
            target: connection.target,
        }
    }
}

/// The login of one connection.
#[derive(Debug)]
pub struct Login {
    /// The first request: ITT, ISID, TSIH and CID stay as they are there.
    first: Option<LoginRequest>,
    stage: Option<Stage>,
    stat_sn: u32,
    exchanges: u32,
    over: bool,
    incoming: Accumulator,
    outgoing: LongText,
    identity: Identity,
    admission: Option<Admission>,
    security: Security,
    negotiation: Option<Negotiation>,
}

impl Login {
    /// Before the first request.
    pub fn new() -> Self {
        Self {
            first: None,
            stage: None,
            stat_sn: 0,
            exchanges: 0,
            over: false,
            incoming: Accumulator::default(),
            outgoing: LongText::default(),
            identity: Identity::default(),
            admission: None,
            security: Security::Open,
            negotiation: None,
        }
    }

    /// Takes one PDU, which must be a Login Request, with its data segment.
    pub fn receive(&mut self, header: &Bhs, data: &[u8], gate: &mut impl Gate) -> Step {
        match LoginRequest::parse(header) {
            Ok(request) => self.request(&request, data, gate),
            Err(_) => Step::Refused(Box::new(self.not_login(header))),
        }
    }

    /// Takes one Login Request with its data segment.
    pub fn request(&mut self, request: &LoginRequest, data: &[u8], gate: &mut impl Gate) -> Step {
        if self.first.is_none() {
            // The connection's status numbers begin where the initiator expects them.
            self.stat_sn = request.exp_stat_sn;
        }
        match self.advance(request, data, gate) {
            Ok(step) => step,
            Err(reason) => {
                let reply = refusal(request, self.stat_sn, &reason);
                Step::Refused(Box::new(self.refused(Some(reply), reason)))
            }
        }
    }

    /// Who the initiator says it is, for the log of a login that takes too long.
    pub fn initiator(&self) -> Option<&IscsiName> {
        self.identity.initiator.as_ref()
    }

    fn advance(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        gate: &mut impl Gate,
    ) -> Result<Step, Refusal> {
        self.check_header(request)?;
        if !self.outgoing.is_done() {
            if !data.is_empty() || request.more {
                return Err(Refusal::TextOutOfTurn);
            }
            return self.reply(request);
        }
        self.incoming.push(data)?;
        if request.more {
            return Ok(Step::Reply(self.empty_reply(request)));
        }
        let text = self.incoming.take();
        let mut security = SecurityKeys::default();
        let mut operational = Vec::new();
        let admitted = self.admission.is_some();
        for pair in pairs(&text) {
            let (name, value) = pair?;
            match keys::find(name) {
                Some(key) if key.rule == Rule::Identity => {
                    self.identity.take(key.id, value, admitted)?;
                }
                Some(key) if key.rule == Rule::Security && request.current == Stage::Security => {
                    security.take(key.id, value)?;
                }
                _ => operational.push((name, value)),
            }
        }
        let mut answers = Text::new();
        self.admit(request, gate, &mut answers)?;
        let (Some(admission), Some(negotiation)) = (&self.admission, &mut self.negotiation) else {
            return Err(Refusal::Over);
        };
        if request.current == Stage::Security {
            let early = |&(name, _): &(&str, &str)| {
                keys::find(name).filter(|key| !key.target_only).map(|key| key.name)
            };
            if let Some(name) = operational.iter().find_map(early) {
                return Err(NegotiationError::OutOfPhase(name).into());
            }
            negotiation.receive(operational, &mut answers)?;
            self.security.advance(
                security,
                admission.chap.as_ref(),
                request.transit,
                &mut || gate.challenge(),
                &mut answers,
            )?;
        } else {
            negotiation.receive(operational, &mut answers)?;
            negotiation.offer(&mut answers);
        }
        self.outgoing = LongText::new(answers.into_bytes());
        self.reply(request)
    }

    /// Everything that the header alone decides (RFC 7143 7.4, 11.12).
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        if self.over {
            return Err(Refusal::Over);
        }
        if !request.immediate {
            return Err(Refusal::NotImmediate);
        }
        if request.version_min > VERSION {
            return Err(Refusal::Version { min: request.version_min, max: request.version_max });
        }
        let first = self.first.get_or_insert(*request);
        for (same, name) in [
            (first.itt == request.itt, "the initiator task tag"),
            (first.isid == request.isid, "ISID"),
            (first.tsih == request.tsih, "TSIH"),
            (first.cid == request.cid, "CID"),
        ] {
            if !same {
                return Err(Refusal::Changed(name));
            }
        }
        self.exchanges += 1;
        if self.exchanges > MAX_EXCHANGES {
            return Err(Refusal::TooManyExchanges(MAX_EXCHANGES));
        }
        let found = request.current;
        let fits = match self.stage {
            Some(stage) => found == stage,
            None => matches!(found, Stage::Security | Stage::Operational),
        };
        if !fits {
            return Err(Refusal::Stage { expected: self.stage, found });
        }
        self.stage = Some(found);
        if !request.transit {
            return Ok(());
        }
        if request.more {
            return Err(Refusal::TransitWithMore);
        }
        match (found, request.next) {
            (Stage::Security, Stage::Operational | Stage::FullFeature)
            | (Stage::Operational, Stage::FullFeature) => Ok(()),
            (from, to) => Err(Refusal::Transition { from, to }),
        }
    }

    /// With the first complete text: who is it, and may it try?
    fn admit(
        &mut self,
        request: &LoginRequest,
        gate: &mut impl Gate,
        answers: &mut Text,
    ) -> Result<(), Refusal> {
        if self.admission.is_some() {
            return Ok(());
        }
        let identity = &self.identity;
        let initiator = identity.initiator.as_ref().ok_or(Refusal::Missing("InitiatorName"))?;
        let session_type = identity.session_type.unwrap_or_default();
        let target = identity.target.as_ref();
        if session_type == SessionType::Normal && target.is_none() {
            return Err(Refusal::Missing("TargetName"));
        }
        let applicant = Applicant { initiator, isid: request.isid, session_type, target };
        let admission = gate.admit(&applicant)?;
        if request.current == Stage::Operational {
            if admission.chap.is_some() {
                return Err(Refusal::AuthenticationRequired);
            }
            self.security = Security::Passed(None);
        }
        if session_type == SessionType::Normal {
            answers.push("TargetPortalGroupTag", admission.portal_group_tag);
            if let Some(alias) = &admission.target_alias {
                answers.push("TargetAlias", alias);
            }
        }
        let leading = request.tsih == 0;
        self.negotiation = Some(Negotiation::new(session_type, leading, admission.preferences));
        self.admission = Some(admission);
        Ok(())
    }

    /// The next piece of the answers, and the next stage when both sides are ready for it.
    fn reply(&mut self, request: &LoginRequest) -> Result<Step, Refusal> {
        let (piece, more) = self.outgoing.next_piece(DEFAULT_MRDSL as usize);
        let text = piece.to_vec();
        let ready = match request.current {
            Stage::Security => self.security.is_passed(),
            _ => self.negotiation.as_ref().is_some_and(Negotiation::is_settled),
        };
        let transit = request.transit && ready && !more;
        if transit && request.next == Stage::FullFeature {
            return self.ready(request, text);
        }
        if transit {
            self.stage = Some(request.next);
        }
        let mut pdu = response(request, self.numbers(request), text.len());
        (pdu.transit, pdu.more) = (transit, more);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        Ok(Step::Reply(LoginReply { pdu, text }))
    }

    fn ready(&mut self, request: &LoginRequest, text: Vec<u8>) -> Result<Step, Refusal> {
        let (Some(initiator), Some(admission), Some(negotiation), Security::Passed(chap_name)) =
            (&self.identity.initiator, &self.admission, &self.negotiation, &self.security)
        else {
            return Err(Refusal::Over);
        };
        if let Some(digest) = negotiation.unmet_digest() {
            return Err(Refusal::DigestRequired(digest));
        }
        if negotiation.lacks_rdma() {
            return Err(Refusal::Missing("RDMAExtensions=Yes"));
        }
        let connection = LoggedIn {
            initiator: initiator.clone(),
            initiator_alias: self.identity.alias.clone(),
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
            session_type: self.identity.session_type.unwrap_or_default(),
            target: self.identity.target.clone(),
            portal_group_tag: admission.portal_group_tag,
            chap_name: chap_name.clone(),
            parameters: negotiation.parameters(),
            cmd_sn: request.cmd_sn,
            exp_stat_sn: request.exp_stat_sn,
            stat_sn: self.stat_sn,
        };
        self.over = true;
        Ok(Step::NeedSession(Box::new(Ready { request: *request, text, connection })))
    }

    fn empty_reply(&mut self, request: &LoginRequest) -> LoginReply {
        let pdu = response(request, self.numbers(request), 0);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        LoginReply { pdu, text: Vec::new() }
    }

    /// Until a session grants more, only the login's own number is expected.
    const fn numbers(&self, request: &LoginRequest) -> Numbers {
        Numbers { stat_sn: self.stat_sn, exp_cmd_sn: request.cmd_sn, max_cmd_sn: request.cmd_sn }
    }

    /// Another PDU: the end of a login that began, and silence for who never began one.
    fn not_login(&mut self, header: &Bhs) -> Refused {
        let reason = Refusal::NotLogin(opcode(header));
        let reply = self.first.map(|first| {
            let request = LoginRequest { itt: initiator_task_tag(header), ..first };
            refusal(&request, self.stat_sn, &reason)
        });
        self.refused(reply, reason)
    }

    fn refused(&mut self, reply: Option<LoginReply>, reason: Refusal) -> Refused {
        self.over = true;
        let Identity { initiator, target, .. } = self.identity.clone();
        Refused { reply, reason, initiator, target }
    }
}

impl Default for Login {
    fn default() -> Self {
        Self::new()
    }
}

/// A source of identifier and challenge.
type RequestedChallenge<'a> = &'a mut dyn FnMut() -> (u8, [u8; 32]);

/// Who the initiator says it is and what it wants.
#[derive(Clone, Debug, Default)]
struct Identity {
    initiator: Option<IscsiName>,
    alias: Option<String>,
    target: Option<IscsiName>,
    session_type: Option<SessionType>,
}

impl Identity {
    /// Takes a key of the text that is read. `admitted` says that the gate was asked: from then
    /// on nothing may become known that it did not judge. Some initiators (libiscsi) repeat who
    /// they are in the operational stage, which is harmless as long as it is the same.
    fn take(&mut self, id: KeyId, value: &str, admitted: bool) -> Result<(), Refusal> {
        match id {
            KeyId::InitiatorName => {
                let name = IscsiName::parse(value).map_err(Refusal::InitiatorName)?;
                settle(&mut self.initiator, name, None, id, admitted)
            }
            KeyId::TargetName => {
                let name = IscsiName::parse(value).map_err(Refusal::TargetName)?;
                settle(&mut self.target, name, None, id, admitted)
            }
            KeyId::SessionType => {
                let session_type = match value {
                    "Normal" => SessionType::Normal,
                    "Discovery" => SessionType::Discovery,
                    other => {
                        return Err(Refusal::SessionType(other.chars().take(32).collect()));
                    }
                };
                let silent = Some(SessionType::default());
                settle(&mut self.session_type, session_type, silent, id, admitted)
            }
            _ => {
                // An alias is only shown, so it may change, and a long one is cut.
                self.alias = Some(value.chars().take(MAX_VALUE).collect());
                Ok(())
            }
        }
    }
}

/// Keeps a value that is not there yet; `silent` is what it means that it is not.
fn settle<T: PartialEq>(
    slot: &mut Option<T>,
    value: T,
    silent: Option<T>,
    id: KeyId,
    admitted: bool,
) -> Result<(), Refusal> {
    if !admitted {
        return match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(NegotiationError::Repeated(id.name()).into()),
        };
    }
    let known = slot.as_ref().or(silent.as_ref());
    if known == Some(&value) { Ok(()) } else { Err(Refusal::Changed(id.name())) }
}

fn response(request: &LoginRequest, numbers: Numbers, text_len: usize) -> LoginResponse {
    LoginResponse {
        transit: false,
        more: false,
        current: request.current,
        next: request.next,
        version_max: VERSION,
        version_active: VERSION,
        // At most one piece of 8192 bytes.
        data_len: text_len as u32,
        isid: request.isid,
        tsih: request.tsih,
        itt: request.itt,
        numbers,
        status: LoginStatus::SUCCESS,
    }
}

fn refusal(request: &LoginRequest, stat_sn: u32, reason: &Refusal) -> LoginReply {
    let mut text = Text::new();
    if let Refusal::MovedTemporarily(address) | Refusal::MovedPermanently(address) = reason {
        text.push("TargetAddress", address);
    }
    let numbers = Numbers { stat_sn, exp_cmd_sn: request.cmd_sn, max_cmd_sn: request.cmd_sn };
    let mut pdu = response(request, numbers, text.as_bytes().len());
    pdu.status = reason.status();
    LoginReply { pdu, text: text.into_bytes() }
}

/// The only version there is (RFC 7143 11.12.4).
const VERSION: u8 = 0;
