//! The endpoints of iSER on a reactor. Their notes are those of iSCSI.

use crate::{
    mover::{Iser, Link},
    portal::{Listener, ListenerSeed},
};
use iscsi::{
    applicant::Arrival,
    endpoint::{Note, Peer},
};
use rdma::Request;
use vscsi_target::{
    engine::Completion,
    reactor::{self, Cx, Ready},
};

/// An endpoint of iSER.
#[derive(Debug)]
pub enum Endpoint {
    /// A portal's listener.
    Listener(Box<Listener>),
    /// A connection in login, or a session.
    Peer(Peer<Iser>),
}

/// What makes an endpoint.
#[derive(Debug)]
pub enum Seed {
    /// A portal to listen on.
    Listener(Box<ListenerSeed>),
    /// A peer that wants to connect.
    Connection(Box<Arrival<Link<Request>>>),
}

impl reactor::Endpoint for Endpoint {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        match seed {
            Seed::Listener(seed) => {
                Listener::open(*seed, cx).map(|listener| Self::Listener(Box::new(listener)))
            }
            Seed::Connection(arrival) => Peer::open(*arrival, cx).map(Self::Peer),
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
