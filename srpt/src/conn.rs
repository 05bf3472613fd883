//! A channel with its connection: one endpoint on one reactor.
//!
//! A turn takes what has come in one batch, hands commands to the core, turns completions into work
//! requests, and ends with one flush: the RDMA Writes of all reads and all answers go by one
//! doorbell, and the receive buffers go back by another. A command allocates nothing: its
//! descriptors are copied into a list of its slot in the [`Channel`], its data moves from or to a
//! pool buffer, and its answer is copied into a send slot.
//!
//! [`transfer`] moves data, [`ending`] is how a channel ends.

pub mod ending;
pub mod transfer;

use crate::{
    channel::{Channel, MAX_TARGET_IU, Refused, Start, Step, TaskId, Unit},
    endpoint::Note,
    link::{Came, Link, RdmaLink},
    login::{Refusal, acceptance, rejection},
    portal::HalfOpen,
    registry::{ChannelFacts, Left, Member, Place, SessionFacts},
    shared::Shared,
};
use ending::Phase;
use libsrp::{
    Command, TaskManagement,
    channel::{ChannelParameters, Violation},
    descriptor::Descriptor,
    login::{LoginReq, PortId},
    logout::LogoutReason,
};
use rdma::{Connection, Event, Remote, Request, Setup};
use std::{fmt, io, mem, sync::Arc, time::Duration};
use transfer::Gather;
use vscsi_target::{
    engine::{Completion, DataOut, Memory, Owner, Submitted},
    model::NexusView,
    reactor::Cx,
};

/// A channel with its connection.
pub struct Conn<L: Link> {
    shared: Arc<Shared>,
    session: Arc<SessionFacts>,
    facts: Arc<ChannelFacts>,
    /// Gone when the nexus is.
    nexus: Option<NexusView>,
    /// Gone when the channel has ended.
    link: Option<L>,
    channel: Channel,
    /// Data-Out being read, by the slot of its command.
    gathers: Vec<Option<Gather>>,
    /// How many functions the nexus had seen when a descriptor table was asked for, by slot.
    fetches: Vec<u64>,
    phase: Phase,
    /// Its place among the connections that are not established.
    slot: Option<HalfOpen>,
    /// What came before the connection was established.
    early: Vec<(L::Received, usize)>,
    // Reused.
    came: Vec<Came<L>>,
    remote: Vec<Remote>,
    out: [u8; MAX_TARGET_IU],
}

/// What a channel is made of.
#[derive(Debug)]
pub struct Beginning {
    /// What all endpoints share.
    pub shared: Arc<Shared>,
    /// The request for the connection.
    pub request: Request,
    /// Its place among the connections that are not established.
    pub slot: HalfOpen,
    /// The login in it.
    pub login: LoginReq,
    /// What was agreed on.
    pub agreed: ChannelParameters,
    /// Its place in the registry.
    pub member: Member,
}

/// Receive buffers beyond the request limit: for answers to this target's own requests, and for an
/// I_LOGOUT.
const EXTRA_RECEIVES: u32 = 2;

/// Work requests in the send queue for each request of the initiator: an answer, and room for the
/// pieces of its data. More pieces wait for those before them.
const WORK_PER_REQUEST: u32 = 4;

/// Cookie of the completion that says no task of the nexus is left.
const NEXUS_COOKIE: u64 = u64::MAX;

/// Sources of readiness.
const EVENTS: u32 = 0;
const COMPLETIONS: u32 = 1;

impl Conn<RdmaLink> {
    /// Makes the connection of a login that may come in, and accepts it. `None` when that fails:
    /// then it was refused, and its place is free again.
    pub fn begin(beginning: Beginning, cx: &mut Cx<'_>) -> Option<Box<Self>> {
        let Beginning { shared, request, slot, login, agreed, member } = beginning;
        let limit = agreed.request_limit;
        let setup = Setup {
            receives: limit + EXTRA_RECEIVES,
            receive_size: agreed.max_initiator_iu,
            sends: limit.saturating_mul(WORK_PER_REQUEST),
            // Each request has one answer, and this target one request of its own.
            send_slots: u16::try_from(limit + 2).unwrap_or(u16::MAX),
            send_size: agreed.max_target_iu,
            vector: cx.reactor.into(),
            shared_receives: shared.limits.shared_receives,
        };
        let answer = acceptance(&agreed, &login, member.result);
        let mut conn = Self::new(shared, member, agreed, cx);
        conn.slot = Some(slot);
        let peer = conn.facts.peer;
        match Connection::open(request, &setup) {
            Ok(mut connection) => {
                // Receives are posted before the initiator may send.
                let accepted = connection.flush().map_err(|error| error.to_string());
                let accepted = accepted
                    .and_then(|()| connection.accept(&answer).map_err(|error| error.to_string()))
                    .and_then(|()| {
                        conn.attach(RdmaLink::new(connection), cx)
                            .map_err(|error| error.to_string())
                    });
                if let Err(error) = accepted {
                    tracing::warn!(%peer, %error, "cannot accept an SRP channel");
                    conn.let_go(cx);
                    conn.withdraw();
                    return None;
                }
            }
            Err((error, request)) => {
                let refusal = Refusal::Resources(format!("{error}; {}", error.fix()));
                conn.shared.log_refused(&refusal, Some(conn.session.initiator), peer);
                request.reject(&rejection(Some(&login), &refusal));
                conn.withdraw();
                return None;
            }
        }
        Some(conn)
    }
}

impl<L: Link> Conn<L> {
    /// A channel without its connection.
    fn new(
        shared: Arc<Shared>,
        member: Member,
        agreed: ChannelParameters,
        cx: &Cx<'_>,
    ) -> Box<Self> {
        let Member { session, channel: facts, nexus, .. } = member;
        let until = cx.now + shared.limits.login.as_nanos() as u64;
        let mut gathers = Vec::new();
        gathers.resize_with(agreed.request_limit as usize, || None);
        Box::new(Self {
            shared,
            session,
            facts,
            nexus: Some(NexusView::new(nexus)),
            link: None,
            channel: Channel::new(agreed),
            gathers,
            fetches: vec![0; agreed.request_limit as usize],
            phase: Phase::Accepting { until },
            slot: None,
            early: Vec::new(),
            came: Vec::new(),
            remote: Vec::new(),
            out: [0; MAX_TARGET_IU],
        })
    }

    /// Takes the connection, which is being established.
    fn attach(&mut self, link: L, cx: &mut Cx<'_>) -> io::Result<()> {
        let link = self.link.insert(link);
        cx.watch(link.event_fd(), EVENTS, true, false)?;
        cx.watch(link.completion_fd(), COMPLETIONS, true, false)?;
        self.shared.enter(self.place(cx));
        if let Some(until) = self.phase.until() {
            cx.wake_at(until);
        }
        Ok(())
    }

    /// Gives its place in the registry back, before anything happened on it.
    fn withdraw(&mut self) {
        self.nexus = None;
        if self.shared.registry.leave(&self.session, &self.facts) == Left::Nothing {
            self.shared.released(&self.session);
        }
    }

    /// The session it belongs to.
    pub fn session(&self) -> &Arc<SessionFacts> {
        &self.session
    }

    /// A message from elsewhere.
    pub fn note(&mut self, note: &Note, cx: &mut Cx<'_>) {
        match note {
            Note::Replaced => self.log_out(LogoutReason::MultiChannel, Duration::ZERO, cx),
            Note::Kick => self.log_out(LogoutReason::None, Duration::ZERO, cx),
            Note::Stop { grace } => self.log_out(LogoutReason::None, *grace, cx),
            Note::Refresh => {
                if let Some(nexus) = &mut self.nexus {
                    nexus.table();
                }
            }
            Note::Released => {}
        }
    }

    /// A descriptor of the connection is ready.
    pub fn ready(&mut self, source: u32, cx: &mut Cx<'_>) {
        if source == EVENTS {
            self.events(cx);
            return;
        }
        if let Some(link) = &mut self.link {
            link.notified();
        }
        self.poll(cx);
    }

    fn events(&mut self, cx: &mut Cx<'_>) {
        while let Some(event) = self.link.as_mut().and_then(L::event) {
            match event {
                Event::Established => self.established(cx),
                Event::Disconnected => self.lost("the initiator disconnected", cx),
                Event::Removed => self.lost("the RDMA device is gone", cx),
                Event::AddressChange => self.lost("its address moved to another device", cx),
                Event::Failed(why) => self.lost(&why, cx),
            }
        }
    }

    fn established(&mut self, cx: &mut Cx<'_>) {
        if !matches!(self.phase, Phase::Accepting { .. }) {
            return;
        }
        self.phase = Phase::Open;
        self.slot = None;
        cx.wake_at(u64::MAX);
        tracing::info!(
            initiator = %crate::names::initiator_name(self.session.initiator),
            target = %self.session.target, session = self.session.id,
            channel = self.facts.number, peer = %self.facts.peer, "SRP channel began"
        );
        for (buffer, len) in mem::take(&mut self.early) {
            self.received(buffer, len, cx);
        }
    }

    /// Takes what has come and what has ended: true if there was anything.
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut came = mem::take(&mut self.came);
        let any = link.poll(&mut came);
        for one in came.drain(..) {
            match one {
                Came::Message { buffer, len } => self.received(buffer, len, cx),
                Came::Read { cookie, memory } => self.was_read(cookie, memory, cx),
                Came::Broken(error) => self.lost(&error.to_string(), cx),
            }
        }
        self.came = came;
        any
    }

    /// Asks for an event at the next completion: true if something has come already.
    pub fn rest(&mut self) -> bool {
        self.link.as_mut().is_some_and(L::arm)
    }

    fn received(&mut self, buffer: L::Received, len: usize, cx: &mut Cx<'_>) {
        match self.phase {
            Phase::Open => {}
            Phase::Accepting { .. } => return self.early.push((buffer, len)),
            // Who was told that the channel ends sends in vain.
            _ => return,
        }
        let Self { link: Some(link), channel, nexus: Some(nexus), session, facts, .. } = self
        else {
            return;
        };
        let next = link.received(&buffer, len, |iu| match channel.receive(iu) {
            Ok(step) => {
                let core = &mut Core { nexus, facts, cx };
                match step {
                    Step::Start(start) => core.start(&start),
                    Step::Fetch { task, table } => Next::Fetch(task, table),
                    Step::Manage { task, request } => {
                        session.functions.note(&request);
                        core.manage(task, &request)
                    }
                    Step::Refuse(refused) => Next::Refuse(refused),
                    Step::Logout => Next::Logout,
                    Step::Nothing => Next::Nothing,
                }
            }
            Err(violation) => Next::Violated(violation),
        });
        link.repost(buffer);
        self.go_on(next, cx);
    }

    /// Does what is left to do once the receive buffer is not needed any more.
    fn go_on(&mut self, next: Next, cx: &mut Cx<'_>) {
        match next {
            Next::Nothing => {}
            Next::Read(task, need) => self.read(task, need, cx),
            Next::Fetch(task, table) => self.fetch(task, table, cx),
            Next::Managed => self.take_back_fetches(),
            Next::Refuse(refused) => self.refuse(refused),
            Next::Logout => {
                tracing::debug!(peer = %self.facts.peer, "the initiator logs out");
                self.close(cx);
            }
            Next::Violated(violation) => {
                self.shared.log_violation(&violation, self.facts.peer);
                self.log_out(violation.reason(), Duration::ZERO, cx);
            }
        }
    }

    fn refuse(&mut self, refused: Refused) {
        self.facts.counters.count_rejected();
        let unit = self.channel.refuse(refused, &mut self.out);
        self.send(unit);
    }

    /// Sends what was written to the buffer for units.
    fn send(&mut self, unit: Option<Unit>) {
        let (Some(unit), Some(link)) = (unit, &mut self.link) else { return };
        let bytes = self.out.get(..unit.len).unwrap_or_default();
        if let Err(error) = link.send(bytes, unit.solicited) {
            // No unit is longer than what was agreed on, which is what a slot holds.
            tracing::error!(peer = %self.facts.peer, %error, "an SRP unit was not sent");
        }
    }

    /// The core finished something.
    pub fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        if completion.owner.cookie == NEXUS_COOKIE {
            self.nexus_is_quiet(cx);
            return;
        }
        if self.phase.answers() {
            self.finish(completion, cx);
        }
    }

    /// The turn ends: send what was gathered.
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        if self.phase.answers() {
            let unit = self.channel.settle(&mut self.out);
            self.send(unit);
        }
        self.advance(cx);
        if let Some(Err(error)) = self.link.as_mut().map(L::flush) {
            self.lost(&error.to_string(), cx);
        }
    }

    /// A timer.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Accepting { until } = self.phase
            && cx.now >= until
        {
            self.lost("the connection was not established in time", cx);
        }
        self.advance(cx);
        if let Some(until) = self.phase.until() {
            cx.wake_at(until);
        }
    }

    fn place(&self, cx: &Cx<'_>) -> Place {
        Place { reactor: cx.reactor, endpoint: cx.me }
    }
}

/// What is left to do about a unit, or a descriptor table, when it was handed to the core.
#[derive(Debug)]
enum Next {
    Nothing,
    /// Read Data-Out of a command.
    Read(TaskId, DataOut),
    /// Read a descriptor table.
    Fetch(TaskId, Descriptor),
    /// A function may have ended commands whose table is being read.
    Managed,
    Refuse(Refused),
    Logout,
    Violated(Violation),
}

/// The way to the command core.
struct Core<'a, 'b> {
    nexus: &'a mut NexusView,
    facts: &'a ChannelFacts,
    cx: &'a mut Cx<'b>,
}

impl Core<'_, '_> {
    fn start(&mut self, start: &Start<'_>) -> Next {
        self.facts.counters.count_command();
        match self.submit(start.task, &start.command) {
            Submitted::Accepted => Next::Nothing,
            Submitted::NeedsData(mut need) => {
                let Some(data) = start.immediate else { return Next::Read(start.task, need) };
                // The core needs no more than the initiator sends.
                let len = need.len.min(data.len());
                if let (Some(room), Some(data)) =
                    (need.buffer.bytes_mut().get_mut(..len), data.get(..len))
                {
                    room.copy_from_slice(data);
                }
                self.facts.counters.count_written(len as u64);
                self.cx.engine.data_arrived(need.token, need.buffer);
                Next::Nothing
            }
        }
    }

    fn submit(&mut self, task: TaskId, command: &Command<'_>) -> Submitted {
        let owner = self.owner(task);
        self.cx.engine.submit(self.nexus, command, Memory::Pool, owner)
    }

    fn manage(&mut self, task: TaskId, request: &TaskManagement) -> Next {
        let owner = self.owner(task);
        self.cx.engine.manage(self.nexus, request, owner);
        Next::Managed
    }

    fn owner(&self, task: TaskId) -> Owner {
        Owner { endpoint: self.cx.me, cookie: task.cookie() }
    }
}

impl<L: Link> fmt::Debug for Conn<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let initiator: PortId = self.session.initiator;
        f.debug_struct("Conn")
            .field("initiator", &initiator)
            .field("channel", &self.facts.number)
            .field("phase", &self.phase)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
