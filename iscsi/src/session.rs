//! A session in full feature phase: one endpoint that owns all its connections (RFC 7143 clause 4).
//!
//! Everything of a session happens on one reactor. Input becomes commands for the engine in
//! [`receive`] and [`command`], Data-Out is gathered in [`transfer`], completions become PDUs in
//! [`reply`]; [`manage`] and [`control`] hold what is not I/O, and [`ending`] how it ends.

pub mod command;
pub mod control;
pub mod early;
pub mod ending;
pub mod manage;
pub mod receive;
pub mod reply;
pub mod task;
pub mod transfer;
pub mod window;

use crate::{
    conn::{Conn, Fate},
    datamover::{Datamover, Detached},
    endpoint::Note,
    login,
    negotiate::{Parameters, SessionType},
    pdu::Numbers,
    registry::{Place, SessionFacts},
    shared::Shared,
};
use early::Early;
use ending::Ending;
use std::{net::SocketAddr, sync::Arc};
use task::Tasks;
use vscsi_target::{
    engine::{Completion, Owner},
    model::NexusView,
    reactor::{Cx, Ready},
    traffic::Traffic,
};
use window::Window;

/// A session.
#[derive(Debug)]
pub struct Session<M: Datamover> {
    shared: Arc<Shared>,
    facts: Arc<SessionFacts>,
    kind: SessionType,
    params: Parameters,
    nexus: Option<NexusView>,
    window: Window,
    early: Early<M::Remote>,
    tasks: Tasks<M::Remote>,
    /// Tasks that ended while their connection's datamover fetched data for them.
    cancelled: Vec<u64>,
    immediate: u32,
    conns: Vec<Option<Box<Conn<M>>>>,
    next_ttt: u32,
    ending: Ending,
    /// When the session is closed if it has not logged out by itself (ns).
    grace: Option<u64>,
    wake: u64,
}

/// What a session starts with, when its leading login has ended.
#[derive(Debug)]
pub struct SessionSetup {
    /// Configuration, registry and the way to other reactors.
    pub shared: Arc<Shared>,
    /// Its entry in the registry.
    pub facts: Arc<SessionFacts>,
    /// Normal or discovery.
    pub kind: SessionType,
    /// What was agreed on.
    pub params: Parameters,
    /// The I_T nexus, in a normal session.
    pub nexus: Option<NexusView>,
    /// CmdSN of the leading login.
    pub cmd_sn: u32,
}

/// A connection that joins a session: its login ends there.
#[derive(Debug)]
pub struct Joining {
    /// The socket, and what is on its way.
    pub link: Detached,
    /// The login.
    pub ready: login::Ready,
    /// The peer.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
}

/// The most immediate requests in progress; more are rejected (RFC 7143 4.2.2.1).
const MAX_IMMEDIATE: u32 = 64;

/// Cookie of the completion that says no task of the nexus is left.
const NEXUS_COOKIE: u64 = u64::MAX;

impl<M: Datamover> Session<M> {
    /// A session without connections; add the leading one with [`Session::adopt`].
    pub fn new(setup: SessionSetup) -> Self {
        let window = Window::new(setup.cmd_sn, setup.shared.limits.window);
        Self {
            shared: setup.shared,
            facts: setup.facts,
            kind: setup.kind,
            params: setup.params,
            nexus: setup.nexus,
            window,
            early: Early::default(),
            tasks: Tasks::default(),
            cancelled: Vec::new(),
            immediate: 0,
            conns: Vec::new(),
            next_ttt: 0,
            ending: Ending::No,
            grace: None,
            wake: u64::MAX,
        }
    }

    /// What the registry knows of it.
    pub fn facts(&self) -> &Arc<SessionFacts> {
        &self.facts
    }

    /// ExpCmdSN and MaxCmdSN for a Login Response of this session.
    pub fn numbers(&self, stat_sn: u32) -> Numbers {
        Numbers { stat_sn, exp_cmd_sn: self.window.expected(), max_cmd_sn: self.window.highest() }
    }

    /// Takes a connection whose final Login Response is in its output.
    pub fn adopt(&mut self, mut conn: Box<Conn<M>>, cx: &mut Cx<'_>) {
        let index = match self.conns.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.conns.push(None);
                self.conns.len() - 1
            }
        };
        if let Err(error) = conn.mover.watch(index as u32 * M::SOURCES, cx) {
            tracing::warn!(%error, peer = %conn.peer, "cannot watch a connection");
            conn.fate = Fate::Broken;
        }
        self.facts.add_connection(conn.cid, &conn.peer);
        let waiting = conn.mover.holds_input();
        self.conns[index] = Some(conn);
        self.schedule(cx);
        if waiting {
            self.resume(index, cx);
            self.catch_up(cx);
        }
    }

    /// A message from elsewhere.
    pub fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match note {
            Note::Replaced => {
                tracing::info!(initiator = %self.facts.initiator, "session is replaced");
                self.end(cx);
            }
            Note::Join(joining) => M::join(self, *joining, cx),
            Note::Kick => self.drop_session(),
            Note::Refresh => {
                if let Some(nexus) = &mut self.nexus {
                    nexus.table();
                }
            }
            Note::Stop { grace } => self.request_logout(grace, cx),
            Note::Released => {}
        }
        self.settle(cx);
    }

    /// A descriptor is ready; each connection has as many sources as its datamover watches.
    pub fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        let index = (source / M::SOURCES) as usize;
        if let Some(Some(conn)) = self.conns.get_mut(index) {
            conn.mover.ready(source % M::SOURCES);
        }
        if ready.readable || ready.hangup {
            self.receive(index, cx);
        }
        if ready.hangup
            && let Some(Some(conn)) = self.conns.get_mut(index)
            && !conn.reads()
        {
            // Nothing can be sent either, and the event would come for ever.
            conn.fate = Fate::Broken;
        }
        self.settle(cx);
    }

    /// The engine finished something.
    pub fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        if completion.owner.cookie == NEXUS_COOKIE {
            self.nexus_is_quiet(cx);
            return;
        }
        self.answer(completion, cx);
    }

    /// The turn ends: send what was gathered.
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        self.settle(cx);
        self.flush_all(cx);
        self.settle(cx);
    }

    fn flush_all(&mut self, cx: &mut Cx<'_>) {
        for conn in self.conns.iter_mut().flatten() {
            for cookie in &self.cancelled {
                conn.mover.cancel(*cookie);
            }
            conn.flush(cx);
        }
        self.cancelled.clear();
    }

    /// A timer.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        self.wake = u64::MAX;
        self.keep_alive(cx);
        self.settle(cx);
        self.schedule(cx);
    }

    /// Looks for input without waiting for an event: true if there was some.
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut found = false;
        for index in 0..self.conns.len() {
            found |= self.receive(index, cx);
        }
        self.settle(cx);
        found
    }

    /// It is not polled any more. True if there is input already, which no event will tell.
    pub fn rest(&mut self) -> bool {
        let mut found = false;
        for conn in self.conns.iter_mut().flatten() {
            found |= conn.mover.rest();
        }
        found
    }

    /// Number of the next command.
    pub(crate) fn exp_cmd_sn(&self) -> u32 {
        self.window.expected()
    }

    /// Whether no other connection can bring what is missing in the order of commands.
    pub(crate) fn has_one_connection(&self) -> bool {
        self.params.max_connections <= 1
    }

    /// Configuration, registry and the way to other reactors.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// How many connections it may have, when it takes no more.
    pub(crate) fn is_full(&self) -> Option<u16> {
        let open = self.conns.iter().flatten().count();
        let most = self.params.max_connections;
        (self.ending != Ending::No || open >= usize::from(most)).then_some(most)
    }

    /// Closes the connection with this identifier, if there is one: another takes its place.
    pub(crate) fn drop_connection(&mut self, cid: u16, cx: &mut Cx<'_>) {
        let same =
            self.conns.iter().position(|conn| conn.as_ref().is_some_and(|conn| conn.cid == cid));
        if let Some(old) = same {
            self.orphan_tasks(old, cx);
            self.close_conn(old, cx);
        }
    }

    fn owner(&self, slot: u32, cx: &Cx<'_>) -> Owner {
        Owner { endpoint: cx.me, cookie: self.tasks.cookie(slot) }
    }

    fn place(&self, cx: &Cx<'_>) -> Place {
        Place { reactor: cx.reactor, endpoint: cx.me }
    }

    fn counters(&self) -> &Traffic {
        &self.facts.counters
    }

    /// Numbers for a PDU that carries status.
    fn status_numbers(&self, conn: &mut Conn<M>) -> Numbers {
        let stat_sn = conn.next_stat_sn();
        self.numbers(stat_sn)
    }

    /// Lets the window follow what is in progress.
    fn open_window(&mut self) {
        let counted = (self.tasks.len() as u32).saturating_sub(self.immediate);
        self.window.open(counted);
    }

    /// Ends a task's bookkeeping.
    fn forget(&mut self, slot: u32) {
        if let Some(task) = self.tasks.at(slot) {
            let (conn, immediate) = (task.conn as usize, task.immediate);
            if immediate {
                self.immediate = self.immediate.saturating_sub(1);
            }
            if let Some(Some(conn)) = self.conns.get_mut(conn) {
                conn.tasks = conn.tasks.saturating_sub(1);
            }
            self.tasks.remove(slot);
            self.open_window();
        }
    }

    /// Takes a connection out to work on it beside the session; it must be put back.
    fn lift(&mut self, index: usize) -> Option<Box<Conn<M>>> {
        self.conns.get_mut(index)?.take()
    }

    fn put_back(&mut self, index: usize, conn: Box<Conn<M>>) {
        if let Some(place) = self.conns.get_mut(index) {
            *place = Some(conn);
        }
    }

    /// Closes a connection, and gives it up.
    fn close_conn(&mut self, index: usize, cx: &mut Cx<'_>) {
        if let Some(conn) = self.lift(index) {
            self.drop_early(conn.cid);
            self.facts.remove_connection(conn.cid);
            conn.mover.close(cx);
        }
    }
}
