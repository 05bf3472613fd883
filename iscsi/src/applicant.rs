//! A connection in login: one endpoint, until it becomes a session or joins one.

use crate::{
    conn::{Conn, ConnSetup},
    endpoint::Note,
    login::{self, Granted, Login, LoginReply, Ready as LoginReady, Refusal, Refused, Step},
    names::target_port_name,
    negotiate::SessionType,
    pdu::{BHS_LEN, Bhs, Digests, Frame},
    portal::{HalfOpen, Portal},
    registry::{Claim, Claimed, Place, SessionFacts},
    session::{Joining, Session, SessionSetup},
    shared::Shared,
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};
use vscsi_target::{
    model::{
        Nexus, NexusView,
        reservation::{NexusId, TransportId},
    },
    reactor::{Cx, Ready},
};

/// A connection just accepted.
#[derive(Debug)]
pub struct Arrival {
    /// What all endpoints share.
    pub shared: Arc<Shared>,
    /// The socket, nonblocking.
    pub fd: OwnedFd,
    /// The peer.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
    /// Its place among the half-open connections.
    pub slot: HalfOpen,
}

/// A connection in login.
#[derive(Debug)]
pub struct Applicant {
    shared: Arc<Shared>,
    fd: Option<OwnedFd>,
    peer: SocketAddr,
    local: SocketAddr,
    slot: HalfOpen,
    login: Login,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    deadline: u64,
    /// Everything is agreed on; the session it replaces has to end first.
    waiting: Option<Box<LoginReady>>,
    /// Closes when everything is sent.
    leaving: bool,
    watching_output: bool,
}

/// What becomes of the endpoint.
#[derive(Debug)]
pub enum Turn {
    /// It stays.
    Stay,
    /// It is a session from now on.
    Become(Box<Session>),
    /// It is over, or its connection went to a session.
    Close,
}

/// The longest PDU of a login, and what may be sent behind the last one.
const INBOX: usize = 64 * 1024;

/// MaxRecvDataSegmentLength during login (RFC 7143 6.1).
const LOGIN_SEGMENT: u32 = 8192;

impl Applicant {
    /// Waits for the first Login Request.
    pub fn open(arrival: Arrival, cx: &mut Cx<'_>) -> Option<Self> {
        let Arrival { shared, fd, peer, local, slot } = arrival;
        if shared.is_stopping() || cx.watch(fd.as_raw_fd(), 0, true, false).is_err() {
            return None;
        }
        let deadline = cx.now + shared.limits.login.as_nanos() as u64;
        cx.wake_at(deadline);
        shared.enter(Place { reactor: cx.reactor, endpoint: cx.me });
        Some(Self {
            shared,
            fd: Some(fd),
            peer,
            local,
            slot,
            login: Login::new(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
            deadline,
            waiting: None,
            leaving: false,
            watching_output: false,
        })
    }

    /// The socket is ready.
    pub fn ready(&mut self, ready: Ready, cx: &mut Cx<'_>) -> Turn {
        let turn = if ready.readable || ready.hangup { self.receive(cx) } else { Turn::Stay };
        self.after(turn, cx)
    }

    /// The session it waited for has ended.
    pub fn released(&mut self, cx: &mut Cx<'_>) -> Turn {
        let turn = match self.waiting.take() {
            Some(ready) => self.claim(ready, cx),
            None => Turn::Stay,
        };
        self.after(turn, cx)
    }

    /// The login took too long.
    pub fn expired(&mut self, cx: &mut Cx<'_>) -> Turn {
        if cx.now < self.deadline {
            cx.wake_at(self.deadline);
            return Turn::Stay;
        }
        let initiator = self.login.initiator().map(ToString::to_string);
        tracing::debug!(peer = %self.peer, initiator, "login took too long");
        self.after(Turn::Close, cx)
    }

    /// Gives up.
    pub fn stop(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.after(Turn::Close, cx)
    }

    fn after(&mut self, turn: Turn, cx: &mut Cx<'_>) -> Turn {
        let turn = match turn {
            Turn::Stay => match self.send(cx) {
                Ok(()) if self.leaving && self.outbox.is_empty() => Turn::Close,
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
            if let Some(fd) = self.fd.take() {
                cx.unwatch(fd.as_raw_fd());
            }
        }
        turn
    }

    fn receive(&mut self, cx: &mut Cx<'_>) -> Turn {
        let Some(fd) = &self.fd else { return Turn::Close };
        let mut chunk = [0; 4096];
        let room = chunk.len().min(INBOX.saturating_sub(self.inbox.len()));
        if room == 0 {
            tracing::debug!(peer = %self.peer, "more than a login's worth of data");
            return Turn::Close;
        }
        match nix::unistd::read(fd, &mut chunk[..room]) {
            Ok(0) => return Turn::Close,
            Ok(got) => self.inbox.extend_from_slice(&chunk[..got]),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Turn::Stay,
            Err(_) => return Turn::Close,
        }
        while !self.leaving && self.waiting.is_none() {
            let Some(header) = self.inbox.first_chunk::<BHS_LEN>().copied() else { break };
            let frame = match Frame::of(&header, Digests::NONE, LOGIN_SEGMENT) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "malformed PDU in login");
                    return Turn::Close;
                }
            };
            if self.inbox.len() < frame.total() {
                break;
            }
            let turn = self.request(&header, &frame, cx);
            if !matches!(turn, Turn::Stay) {
                return turn;
            }
        }
        Turn::Stay
    }

    fn request(&mut self, header: &Bhs, frame: &Frame, cx: &mut Cx<'_>) -> Turn {
        let start = frame.data_start();
        let data = self.inbox[start..start + frame.data].to_vec();
        self.inbox.drain(..frame.total());
        let portal = Arc::clone(self.slot.portal());
        let mut gate = Gate { shared: &self.shared, portal: &portal, failed: None };
        let step = self.login.receive(header, &data, &mut gate);
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
        reply.emit(&mut self.outbox);
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
    fn claim(&mut self, ready: Box<LoginReady>, cx: &mut Cx<'_>) -> Turn {
        let place = Place { reactor: cx.reactor, endpoint: cx.me };
        let who = ready.connection();
        let claim = Claim {
            initiator: &who.initiator,
            isid: who.isid,
            tsih: who.tsih,
            target: who.target.as_ref(),
            portal_group_tag: who.portal_group_tag,
            kind: who.session_type,
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
    ) -> Turn {
        let nexus = match self.nexus(&ready) {
            Ok(nexus) => nexus,
            Err(reason) => {
                self.shared.released(&facts);
                self.refused(&ready.refuse(reason));
                return Turn::Stay;
            }
        };
        let (Some(fd), cmd_sn) = (self.fd.take(), ready.connection().cmd_sn) else {
            self.shared.released(&facts);
            return Turn::Close;
        };
        // The final response does not change what was agreed on.
        let who = ready.connection();
        let mut session = Box::new(Session::new(SessionSetup {
            shared: Arc::clone(&self.shared),
            facts: Arc::clone(&facts),
            kind: who.session_type,
            params: who.parameters,
            local: self.local,
            nexus,
            cmd_sn,
        }));
        let numbers = session.numbers(0);
        let (reply, logged_in) = ready.finish(Granted {
            tsih: facts.tsih,
            exp_cmd_sn: numbers.exp_cmd_sn,
            max_cmd_sn: numbers.max_cmd_sn,
        });
        tracing::info!(
            initiator = %logged_in.initiator, target = logged_in.target.as_ref().map(|name| name.as_str()),
            tsih = facts.tsih, peer = %self.peer, "session began"
        );
        self.reply(&reply);
        if self.watching_output {
            let _ = cx.rewatch(fd.as_raw_fd(), 0, true, false);
        }
        let rest = std::mem::take(&mut self.inbox);
        let mut conn = Conn::new(
            ConnSetup::new(fd, &logged_in, self.peer.to_string(), Some(self.local), rest),
            cx.now,
        );
        conn.output.put(&self.outbox[self.sent..]);
        session.adopt(conn, true, cx);
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
    fn join(&mut self, ready: LoginReady, facts: &SessionFacts, cx: &mut Cx<'_>) -> Turn {
        let Some(fd) = self.fd.take() else { return Turn::Close };
        cx.unwatch(fd.as_raw_fd());
        let joining = Joining {
            fd,
            ready,
            peer: self.peer,
            local: self.local,
            rest: std::mem::take(&mut self.inbox),
            unsent: self.outbox.split_off(self.sent.min(self.outbox.len())),
        };
        self.shared.router.note(facts.place(), Note::Join(Box::new(joining)));
        Turn::Close
    }

    fn send(&mut self, cx: &mut Cx<'_>) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let mut blocked = false;
        while self.sent < self.outbox.len() {
            let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
            match nix::sys::socket::send(fd.as_raw_fd(), &self.outbox[self.sent..], flags) {
                Ok(sent) => self.sent += sent,
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => {
                    blocked = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !blocked {
            self.outbox.clear();
            self.sent = 0;
        }
        if blocked != self.watching_output {
            cx.rewatch(fd.as_raw_fd(), 0, true, blocked)?;
            self.watching_output = blocked;
        }
        Ok(())
    }
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
