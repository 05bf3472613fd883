//! A connection in login: one endpoint, until it becomes a session or joins one.

use crate::{
    conn::Conn,
    datamover::Datamover,
    endpoint::Note,
    login::{self, Granted, Login, LoginReply, Ready as LoginReady, Refusal, Refused, Step},
    names::target_port_name,
    negotiate::SessionType,
    pdu::{BHS_LEN, Bhs},
    portal::{HalfOpen, Portal},
    registry::{Claim, Claimed, Place, SessionFacts},
    session::{Joining, Session, SessionSetup},
    shared::Shared,
};
use std::{io, net::SocketAddr, sync::Arc};
use vscsi_target::{
    model::{
        Nexus, NexusView,
        reservation::{NexusId, TransportId},
    },
    reactor::{Cx, Ready},
};

/// A connection just accepted.
#[derive(Debug)]
pub struct Arrival<L> {
    /// What all endpoints share.
    pub shared: Arc<Shared>,
    /// The connection.
    pub link: L,
    /// The peer.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
    /// Its place among the half-open connections.
    pub slot: HalfOpen,
}

/// A connection in login.
#[derive(Debug)]
pub struct Applicant<M> {
    shared: Arc<Shared>,
    mover: Option<M>,
    peer: SocketAddr,
    local: SocketAddr,
    slot: HalfOpen,
    login: Login,
    deadline: u64,
    /// Everything is agreed on; the session it replaces has to end first.
    waiting: Option<Box<LoginReady>>,
    /// Closes when everything is sent.
    leaving: bool,
}

/// What becomes of the endpoint.
#[derive(Debug)]
pub enum Turn<M: Datamover> {
    /// It stays.
    Stay,
    /// It is a session from now on.
    Become(Box<Session<M>>),
    /// It is over, or its connection went to a session.
    Close,
}

impl<M: Datamover> Applicant<M> {
    /// Waits for the first Login Request.
    pub fn open(arrival: Arrival<M::Link>, cx: &mut Cx<'_>) -> Option<Self> {
        let Arrival { shared, link, peer, local, slot } = arrival;
        if shared.is_stopping() {
            return None;
        }
        let mut mover = match M::open(link, cx) {
            Ok(mover) => mover,
            Err(error) => {
                tracing::debug!(%peer, %error, "connection cannot be used");
                return None;
            }
        };
        if mover.watch(0, cx).is_err() {
            mover.close(cx);
            return None;
        }
        let deadline = cx.now + shared.limits.login.as_nanos() as u64;
        cx.wake_at(deadline);
        shared.enter(Place { reactor: cx.reactor, endpoint: cx.me });
        Some(Self {
            shared,
            mover: Some(mover),
            peer,
            local,
            slot,
            login: Login::new(),
            deadline,
            waiting: None,
            leaving: false,
        })
    }

    /// A descriptor is ready.
    pub fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) -> Turn<M> {
        if let Some(mover) = &mut self.mover {
            mover.ready(source);
        }
        let turn = if ready.readable || ready.hangup { self.receive(cx) } else { Turn::Stay };
        self.after(turn, cx)
    }

    /// Looks for input without waiting for an event, where that needs no system call.
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> (bool, Turn<M>) {
        let found = match self.fill(cx) {
            Ok(found) => found,
            Err(turn) => return (true, self.after(turn, cx)),
        };
        let turn = if found { self.requests(cx) } else { Turn::Stay };
        (found, self.after(turn, cx))
    }

    /// It is not polled any more. True if there is input already, which no event will tell.
    pub fn rest(&mut self) -> bool {
        self.mover.as_mut().is_some_and(M::rest)
    }

    /// The session it waited for has ended.
    pub fn released(&mut self, cx: &mut Cx<'_>) -> Turn<M> {
        let turn = match self.waiting.take() {
            Some(ready) => self.claim(ready, cx),
            None => Turn::Stay,
        };
        self.after(turn, cx)
    }

    /// The login took too long.
    pub fn expired(&mut self, cx: &mut Cx<'_>) -> Turn<M> {
        if cx.now < self.deadline {
            cx.wake_at(self.deadline);
            return Turn::Stay;
        }
        let initiator = self.login.initiator().map(ToString::to_string);
        tracing::debug!(peer = %self.peer, initiator, "login took too long");
        self.after(Turn::Close, cx)
    }

    /// Gives up.
    pub fn stop(&mut self, cx: &mut Cx<'_>) -> Turn<M> {
        self.after(Turn::Close, cx)
    }

    fn after(&mut self, turn: Turn<M>, cx: &mut Cx<'_>) -> Turn<M> {
        let turn = match turn {
            Turn::Stay => match self.send(cx) {
                Ok(()) if self.leaving && self.mover.as_ref().is_none_or(M::is_empty) => {
                    Turn::Close
                }
                Ok(()) => Turn::Stay,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "connection lost in login");
                    Turn::Close
                }
            },
            turn => turn,
        };
        if let Turn::Close = turn {
            self.shared.leave(Place { reactor: cx.reactor, endpoint: cx.me });
            if let Some(mover) = self.mover.take() {
                mover.close(cx);
            }
        }
        turn
    }

    fn receive(&mut self, cx: &mut Cx<'_>) -> Turn<M> {
        match self.fill(cx) {
            Ok(_) => self.requests(cx),
            Err(turn) => turn,
        }
    }

    fn fill(&mut self, cx: &mut Cx<'_>) -> Result<bool, Turn<M>> {
        let Some(mover) = &mut self.mover else { return Err(Turn::Close) };
        mover.fill(cx).map_err(|error| {
            tracing::debug!(peer = %self.peer, %error, "connection ended in login");
            Turn::Close
        })
    }

    fn requests(&mut self, cx: &mut Cx<'_>) -> Turn<M> {
        let mut data = Vec::new();
        while !self.leaving && self.waiting.is_none() {
            let Some(mover) = &mut self.mover else { return Turn::Close };
            let header = match mover.login_pdu(&mut data) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "malformed PDU in login");
                    return Turn::Close;
                }
            };
            let turn = self.request(&header, &data, cx);
            if !matches!(turn, Turn::Stay) {
                return turn;
            }
        }
        Turn::Stay
    }

    fn request(&mut self, header: &Bhs, data: &[u8], cx: &mut Cx<'_>) -> Turn<M> {
        let portal = Arc::clone(self.slot.portal());
        let mut gate = Gate { shared: &self.shared, portal: &portal, failed: None };
        let step = self.login.receive(header, data, &mut gate);
        if let Some(error) = gate.failed {
            tracing::error!(%error, "the random source failed");
            return Turn::Close;
        }
        match step {
            Step::Reply(reply) => self.reply(&reply),
            Step::NeedSession(ready) => return self.claim(ready, cx),
            Step::Refused(refused) => self.refused(&refused),
        }
        Turn::Stay
    }

    fn reply(&mut self, reply: &LoginReply) {
        if let Some(mover) = &mut self.mover {
            put(mover, reply);
        }
    }

    fn refused(&mut self, refused: &Refused) {
        if refused.initiator.is_some() {
            self.shared.log_refused(refused, &self.peer);
        } else {
            tracing::debug!(peer = %self.peer, reason = %refused.reason, "login refused");
        }
        if let Some(reply) = &refused.reply {
            self.reply(reply);
        }
        self.leaving = true;
    }

    /// Everything is agreed on: asks the registry for a session.
    fn claim(&mut self, ready: Box<LoginReady>, cx: &mut Cx<'_>) -> Turn<M> {
        let place = Place { reactor: cx.reactor, endpoint: cx.me };
        let who = ready.connection();
        let claim = Claim {
            initiator: &who.initiator,
            isid: who.isid,
            tsih: who.tsih,
            target: who.target.as_ref(),
            portal_group_tag: who.portal_group_tag,
            kind: who.session_type,
            transport: self.slot.portal().transport,
            place,
        };
        match self.shared.registry.claim(&claim, self.shared.limits.sessions_per_initiator) {
            Ok(Claimed::New(facts)) => self.begin_session(*ready, facts, cx),
            Ok(Claimed::Replaces(old)) => {
                self.waiting = Some(ready);
                self.shared.router.note(old.place(), Note::Replaced);
                Turn::Stay
            }
            Ok(Claimed::Joins(facts)) => self.join(*ready, &facts, cx),
            Err(reason) => {
                self.refused(&ready.refuse(reason));
                Turn::Stay
            }
        }
    }

    fn begin_session(
        &mut self,
        ready: LoginReady,
        facts: Arc<SessionFacts>,
        cx: &mut Cx<'_>,
    ) -> Turn<M> {
        let nexus = match self.nexus(&ready) {
            Ok(nexus) => nexus,
            Err(reason) => {
                self.shared.released(&facts);
                self.refused(&ready.refuse(reason));
                return Turn::Stay;
            }
        };
        let Some(mut mover) = self.mover.take() else {
            self.shared.released(&facts);
            return Turn::Close;
        };
        // The final response does not change what was agreed on.
        let who = ready.connection();
        let kind = who.session_type;
        let mut session = Box::new(Session::new(SessionSetup {
            shared: Arc::clone(&self.shared),
            facts: Arc::clone(&facts),
            kind,
            params: who.parameters,
            nexus,
            cmd_sn: who.cmd_sn,
        }));
        let numbers = session.numbers(0);
        let (reply, logged_in) = ready.finish(Granted {
            tsih: facts.tsih,
            exp_cmd_sn: numbers.exp_cmd_sn,
            max_cmd_sn: numbers.max_cmd_sn,
        });
        put(&mut mover, &reply);
        if let Err(error) = mover.enter(&logged_in.parameters, kind, cx) {
            tracing::warn!(%error, peer = %self.peer, "a connection has not what a session needs");
            mover.close(cx);
            self.shared.released(&facts);
            return Turn::Close;
        }
        tracing::info!(
            initiator = %logged_in.initiator, target = logged_in.target.as_ref().map(|name| name.as_str()),
            tsih = facts.tsih, peer = %self.peer, "session began"
        );
        let conn = Conn::new(mover, &logged_in, self.peer.to_string(), self.local, cx.now);
        session.adopt(conn, cx);
        Turn::Become(session)
    }

    /// The I_T nexus of a normal session.
    fn nexus(&self, ready: &LoginReady) -> Result<Option<NexusView>, Refusal> {
        let who = ready.connection();
        let (SessionType::Normal, Some(name)) = (who.session_type, &who.target) else {
            return Ok(None);
        };
        let target = self.shared.model.target(name.as_str()).map_err(|_| Refusal::NotFound)?;
        let port_name = target_port_name(name, who.portal_group_tag);
        let port = target
            .ports()
            .iter()
            .find(|port| port.name == port_name)
            .map_or(who.portal_group_tag, |port| port.relative_id);
        let transport_id = TransportId::iscsi(who.initiator.as_str(), who.isid.0)
            .map_err(|error| Refusal::TargetError(error.to_string()))?;
        let identity = NexusId::new(transport_id, port);
        let nexus = Nexus::establish(target, port, identity, who.initiator.to_string());
        Ok(Some(NexusView::new(nexus)))
    }

    /// Hands the connection over to the session's reactor.
    fn join(&mut self, ready: LoginReady, facts: &SessionFacts, cx: &mut Cx<'_>) -> Turn<M> {
        if let Some(link) = self.mover.take().and_then(|mover| mover.detach(cx)) {
            let joining = Joining { link, ready, peer: self.peer, local: self.local };
            self.shared.router.note(facts.place(), Note::Join(Box::new(joining)));
        }
        Turn::Close
    }

    fn send(&mut self, cx: &mut Cx<'_>) -> io::Result<()> {
        self.mover.as_mut().map_or(Ok(()), |mover| mover.flush(true, cx))
    }
}

/// Sends a Login Response.
fn put<M: Datamover>(mover: &mut M, reply: &LoginReply) {
    let mut header = [0; BHS_LEN];
    reply.pdu.emit(&mut header);
    mover.put(&header, &reply.text);
}

/// What the login asks.
struct Gate<'a> {
    shared: &'a Shared,
    portal: &'a Portal,
    failed: Option<io::Error>,
}

impl login::Gate for Gate<'_> {
    fn admit(&mut self, applicant: &login::Applicant<'_>) -> Result<login::Admission, Refusal> {
        self.shared.admit(applicant, self.portal)
    }

    fn challenge(&mut self) -> (u8, [u8; 32]) {
        // A challenge that could be guessed is never used: the caller looks at `failed` first.
        self.shared.challenge().unwrap_or_else(|error| {
            self.failed = Some(error);
            (0, [0; 32])
        })
    }
}
