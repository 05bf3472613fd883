//! The endpoints of SRP on a reactor: listeners, logins that wait, channels.
//!
//! The methods have the shape of [`vscsi_target::reactor::Endpoint`]; a program that serves only
//! SRP uses [`Endpoint`] as it is, one with more fabrics wraps it in its own enum.

use crate::{
    applicant::{Applicant, Arrival, Turn},
    conn::Conn,
    link::RdmaLink,
    portal::{Listener, ListenerSeed},
};
use std::time::Duration;
use vscsi_target::{
    engine::Completion,
    reactor::{self, Cx, Ready},
};

/// An endpoint of SRP.
#[derive(Debug)]
pub enum Endpoint {
    /// A portal's listener.
    Listener(Box<Listener>),
    /// A login that waits for the end of the channels before it.
    Login(Box<Applicant>),
    /// A channel with its connection.
    Channel(Box<Conn<RdmaLink>>),
}

/// What makes an endpoint.
#[derive(Debug)]
pub enum Seed {
    /// A portal to listen on.
    Listener(ListenerSeed),
    /// A request for a connection.
    Login(Arrival),
}

/// A message to an endpoint.
#[derive(Debug)]
pub enum Note {
    /// To a login: the nexus it waited for has ended.
    Released,
    /// To a channel: its initiator logged in anew, and wants that channel only.
    Replaced,
    /// To a channel: tell the initiator that it is closed, and close it.
    Kick,
    /// To a channel: the LUN map changed; let go of logical units that are not in it any more.
    Refresh,
    /// To all: the target stops; commands in progress have this long.
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
            Seed::Login(arrival) => Applicant::open(arrival, cx),
        }
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match (self, note) {
            (Self::Listener(listener), Note::Stop { .. }) => listener.stop(cx),
            (this @ Self::Login(_), Note::Released) => this.login(cx, Applicant::released),
            (this @ Self::Login(_), Note::Stop { .. }) => this.login(cx, Applicant::stop),
            (Self::Channel(conn), note) => conn.note(&note, cx),
            _ => {}
        }
    }

    fn ready(&mut self, source: u32, _ready: Ready, cx: &mut Cx<'_>) {
        match self {
            Self::Listener(listener) => listener.ready(cx),
            Self::Channel(conn) => conn.ready(source, cx),
            Self::Login(_) => {}
        }
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        if let Self::Channel(conn) = self {
            conn.completed(completion, cx);
        }
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        match self {
            Self::Listener(listener) => listener.expired(cx),
            Self::Channel(conn) => conn.expired(cx),
            Self::Login(_) => self.login(cx, Applicant::expired),
        }
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Self::Channel(conn) = self {
            conn.flush(cx);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Channel(conn) => conn.poll(cx),
            _ => false,
        }
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        match self {
            Self::Channel(conn) => conn.rest(),
            _ => false,
        }
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        let grace = match self {
            Self::Channel(conn) => conn.stop_grace(),
            _ => Duration::ZERO,
        };
        self.note(Note::Stop { grace }, cx);
    }
}

impl Endpoint {
    /// A step of a login, which becomes what it ends in.
    fn login(&mut self, cx: &mut Cx<'_>, step: impl FnOnce(&mut Applicant, &mut Cx<'_>) -> Turn) {
        let Self::Login(applicant) = self else { return };
        match step(applicant, cx) {
            Turn::Stay => {}
            Turn::Become(conn) => *self = Self::Channel(conn),
            Turn::Close => cx.close(),
        }
    }
}
