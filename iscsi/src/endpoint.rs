//! The endpoints of iSCSI on a reactor: listeners, connections in login, sessions.
//!
//! The methods have the shape of [`vscsi_target::reactor::Endpoint`]; a program that serves only
//! iSCSI over TCP uses [`Endpoint`] as it is, one with more fabrics wraps it in its own enum.

use crate::{
    applicant::{Applicant, Arrival, Turn},
    datamover::Datamover,
    portal::{Listener, ListenerSeed},
    session::{Joining, Session},
    tcp::Tcp,
};
use std::{os::fd::OwnedFd, time::Duration};
use vscsi_target::{
    engine::Completion,
    reactor::{self, Cx, Ready},
};

/// An endpoint of iSCSI over TCP.
#[derive(Debug)]
pub enum Endpoint {
    /// A portal's listener.
    Listener(Box<Listener>),
    /// A connection in login, or a session.
    Peer(Peer<Tcp>),
}

/// An initiator, over whatever its datamover carries.
#[derive(Debug)]
pub enum Peer<M: Datamover> {
    /// A connection in login.
    Login(Box<Applicant<M>>),
    /// A session with its connections.
    Session(Box<Session<M>>),
}

/// What makes an endpoint.
#[derive(Debug)]
pub enum Seed {
    /// A portal to listen on.
    Listener(ListenerSeed),
    /// A connection that was accepted.
    Connection(Arrival<OwnedFd>),
}

/// A message to an endpoint.
#[derive(Debug)]
pub enum Note {
    /// To a login: the session it waited for has ended.
    Released,
    /// To a session: its initiator logged in anew; end at once.
    Replaced,
    /// To a session: a connection joins.
    Join(Box<Joining>),
    /// To a session: tell the initiator that it is dropped, and drop it.
    Kick,
    /// To a session: the LUN map changed; let go of logical units that are not in it any more.
    Refresh,
    /// To all: the target stops; sessions have this long to log out.
    Stop {
        /// This long.
        grace: Duration,
    },
}

impl reactor::Endpoint for Endpoint {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        match seed {
            Seed::Listener(seed) => {
                Listener::open(seed, cx).map(|listener| Self::Listener(Box::new(listener)))
            }
            Seed::Connection(arrival) => Peer::open(arrival, cx).map(Self::Peer),
        }
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match (self, note) {
            (Self::Listener(listener), Note::Stop { .. }) => listener.stop(cx),
            (Self::Listener(_), _) => {}
            (Self::Peer(peer), note) => peer.note(note, cx),
        }
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        match self {
            Self::Listener(listener) => listener.ready(cx),
            Self::Peer(peer) => peer.ready(source, ready, cx),
        }
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        if let Self::Peer(peer) = self {
            peer.completed(completion, cx);
        }
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        match self {
            Self::Listener(listener) => listener.expired(cx),
            Self::Peer(peer) => peer.expired(cx),
        }
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Self::Peer(peer) = self {
            peer.flush(cx);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Listener(_) => false,
            Self::Peer(peer) => peer.poll(cx),
        }
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Listener(_) => false,
            Self::Peer(peer) => peer.rest(),
        }
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        match self {
            Self::Listener(listener) => listener.stop(cx),
            Self::Peer(peer) => peer.stop(cx),
        }
    }
}

/// As [`vscsi_target::reactor::Endpoint`] has them.
impl<M: Datamover> Peer<M> {
    /// Takes a connection that was accepted.
    pub fn open(arrival: Arrival<M::Link>, cx: &mut Cx<'_>) -> Option<Self> {
        Applicant::open(arrival, cx).map(|applicant| Self::Login(Box::new(applicant)))
    }

    /// A message arrived.
    pub fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match (self, note) {
            (Self::Session(session), note) => session.note(note, cx),
            (this @ Self::Login(_), note) => this.login(cx, |applicant, cx| match note {
                Note::Released => applicant.released(cx),
                Note::Stop { .. } => applicant.stop(cx),
                _ => Turn::Stay,
            }),
        }
    }

    /// A descriptor is ready.
    pub fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        match self {
            Self::Session(session) => session.ready(source, ready, cx),
            Self::Login(_) => self.login(cx, |applicant, cx| applicant.ready(source, ready, cx)),
        }
    }

    /// The engine finished a task of the session.
    pub fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        if let Self::Session(session) = self {
            session.completed(completion, cx);
        }
    }

    /// A timer.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        match self {
            Self::Session(session) => session.expired(cx),
            Self::Login(_) => self.login(cx, Applicant::expired),
        }
    }

    /// The turn ends: send what was gathered.
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Self::Session(session) = self {
            session.flush(cx);
        }
    }

    /// Looks for input without waiting for an event: true if there was some.
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Session(session) => session.poll(cx),
            Self::Login(_) if M::ALWAYS_TELLS => false,
            Self::Login(_) => {
                let mut found = false;
                self.login(cx, |applicant, cx| {
                    let (any, turn) = applicant.poll(cx);
                    found = any;
                    turn
                });
                found
            }
        }
    }

    /// It is not polled any more. True if there is input already, which no event will tell.
    pub fn rest(&mut self) -> bool {
        match self {
            Self::Session(session) => session.rest(),
            Self::Login(applicant) => applicant.rest(),
        }
    }

    /// The reactor stops.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        let grace = match self {
            Self::Session(session) => session.stop_grace(),
            Self::Login(_) => Duration::ZERO,
        };
        self.note(Note::Stop { grace }, cx);
    }

    fn login(
        &mut self,
        cx: &mut Cx<'_>,
        step: impl FnOnce(&mut Applicant<M>, &mut Cx<'_>) -> Turn<M>,
    ) {
        let Self::Login(applicant) = self else { return };
        match step(applicant, cx) {
            Turn::Stay => {}
            Turn::Become(session) => *self = Self::Session(session),
            Turn::Close => cx.close(),
        }
    }
}
