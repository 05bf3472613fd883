//! Task management functions (SAM-5 7).
//!
//! A function that concerns several tasks becomes a [`Sweep`] that visits every reactor. Tasks that
//! wait end at once; what a backend or a worker has cannot be taken back, so the sweep waits for it,
//! and for the tokens of tasks whose Data-Out a transport may still be moving: when a function
//! completes, none of the aborted tasks reads or writes any more.

use super::{
    Engine,
    task::{Completion, DataIn, Outcome, Owner, Stage, Task, TaskKey},
};
use crate::{
    model::{Attention, Itl, LogicalUnit, Model, NexusView, reservation::NexusId},
    reactor::{EndpointId, Mail},
};
use libsrp::{Lun, Response, ResponseCode, Tag, TaskFunction, TaskManagement};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

/// A task management function on its way over all reactors.
#[derive(Debug)]
pub struct Sweep {
    filter: Filter,
    aborts: bool,
    /// The nexus that asked: its own tasks end without a status.
    asking: Option<u64>,
    /// Other nexuses' tasks end in TASK ABORTED (TAS=1) rather than silently.
    status: bool,
    /// Establish this for the other nexuses that lost tasks.
    attention: Option<Attention>,
    origin: Origin,
    reactor: u16,
    found: AtomicBool,
    /// Reactors not visited yet plus tasks still running.
    outstanding: AtomicUsize,
}

/// Who is told when a sweep is done.
#[derive(Debug)]
pub(super) enum Origin {
    /// The owner of a task management request.
    Request { owner: Owner, tag: Tag, function: TaskFunction },
    /// A command that waits for it.
    Command(TaskKey),
}

/// Which tasks a sweep means.
#[derive(Debug)]
enum Filter {
    /// One task of a nexus.
    Task { nexus: u64, lu: u64, tag: Tag },
    /// A nexus's tasks on one logical unit.
    Set { nexus: u64, lu: u64 },
    /// All tasks on some logical units.
    Units(Vec<u64>),
    /// All tasks of a nexus.
    Nexus(u64),
    /// The tasks of these nexuses on one logical unit.
    Preempted { lu: u64, nexuses: Vec<NexusId> },
}

impl Filter {
    fn fits(&self, task: &Task) -> bool {
        let (nexus, lu) = (task.itl.nexus.id, task.itl.lu.id);
        match self {
            Self::Task { nexus: n, lu: l, tag } => *n == nexus && *l == lu && *tag == task.tag,
            Self::Set { nexus: n, lu: l } => *n == nexus && *l == lu,
            Self::Units(units) => units.contains(&lu),
            Self::Nexus(n) => *n == nexus,
            Self::Preempted { lu: l, nexuses } => {
                *l == lu && nexuses.contains(&task.itl.nexus.identity)
            }
        }
    }
}

impl Sweep {
    pub(super) fn preempt(
        model: &Model,
        reactor: u16,
        itl: &Itl,
        nexuses: Vec<NexusId>,
        origin: Origin,
    ) -> Arc<Self> {
        let status = itl.lu.state().modes.task_aborted_status();
        Arc::new(Self {
            filter: Filter::Preempted { lu: itl.lu.id, nexuses },
            aborts: true,
            asking: Some(itl.nexus.id),
            status,
            attention: None,
            origin,
            reactor,
            found: AtomicBool::new(false),
            outstanding: AtomicUsize::new(model.postboxes.len()),
        })
    }
}

impl Engine {
    /// Takes a task management request; its completion carries the outcome. Tasks it aborts complete
    /// before it does, with [`Outcome::Silent`] or in TASK ABORTED. The tokens of those that were
    /// waiting for Data-Out go to [`Engine::abandon`] once the transport moves no data for them any
    /// more; the request completes after that.
    pub fn manage(&mut self, nexus: &mut NexusView, request: &TaskManagement, owner: Owner) {
        let id = nexus.info().id;
        let function = request.function;
        let origin = Origin::Request { owner, tag: request.tag, function };
        match function {
            TaskFunction::ItNexusReset => {
                for (_, itl) in nexus.table().iter() {
                    itl.establish(Attention::NEXUS_LOSS);
                    nexus_lost(&itl.lu, &itl.nexus.identity, id);
                }
                return self.sweep_for(Filter::Nexus(id), id, false, None, origin);
            }
            TaskFunction::TargetReset => {
                let units: Vec<_> =
                    nexus.table().iter().map(|(_, itl)| Arc::clone(&itl.lu)).collect();
                for lu in &units {
                    reset(lu);
                }
                let units = units.iter().map(|lu| lu.id).collect();
                return self.sweep_for(Filter::Units(units), id, false, None, origin);
            }
            TaskFunction::Unknown(_) => {
                return self.answer(origin, ResponseCode::FunctionRejected, 0);
            }
            _ => {}
        }
        let itl = match nexus.find(request.lun) {
            Some(itl) => Arc::clone(itl),
            None if request.lun == Lun::REPORT_LUNS => {
                return self.answer(origin, ResponseCode::FunctionComplete, 0);
            }
            None => return self.answer(origin, ResponseCode::IncorrectLun, 0),
        };
        let lu = &itl.lu;
        let one = Filter::Task { nexus: id, lu: lu.id, tag: request.managed };
        let set = Filter::Set { nexus: id, lu: lu.id };
        match function {
            TaskFunction::AbortTask => self.sweep_for(one, id, false, None, origin),
            TaskFunction::QueryTask => self.query(one, origin),
            TaskFunction::AbortTaskSet => self.sweep_for(set, id, false, None, origin),
            TaskFunction::QueryTaskSet => self.query(set, origin),
            TaskFunction::ClearTaskSet => {
                let tas = lu.state().modes.task_aborted_status();
                let attention = (!tas).then_some(Attention::COMMANDS_CLEARED);
                self.sweep_for(Filter::Units(vec![lu.id]), id, tas, attention, origin);
            }
            TaskFunction::LogicalUnitReset => {
                reset(lu);
                self.sweep_for(Filter::Units(vec![lu.id]), id, false, None, origin);
            }
            TaskFunction::ClearAca => {
                lu.update(|state| {
                    if state.aca == Some(id) {
                        state.aca = None;
                    }
                });
                self.answer(origin, ResponseCode::FunctionComplete, 0);
            }
            TaskFunction::QueryAsynchronousEvent => {
                let (next, count) = itl.peek_attention();
                let Some(Attention(asc, ascq)) = next else {
                    return self.answer(origin, ResponseCode::FunctionComplete, 0);
                };
                // UADE DEPTH 1 (one) or 2 (several), the sense key, then the two codes.
                let depth = if count > 1 { 2 } else { 1 };
                let info = (depth << 4 | 0x6) << 16 | u32::from(asc) << 8 | u32::from(ascq);
                self.answer(origin, ResponseCode::FunctionSucceeded, info);
            }
            TaskFunction::ItNexusReset | TaskFunction::TargetReset | TaskFunction::Unknown(_) => {}
        }
    }

    /// Ends every task of an I_T nexus without responses: its connection or session is gone.
    /// `owner` gets one completion when nothing of it is left.
    pub fn abort_nexus(&mut self, nexus: &NexusView, owner: Owner) {
        let id = nexus.info().id;
        let function = TaskFunction::ItNexusReset;
        let origin = Origin::Request { owner, tag: Tag::default(), function };
        self.sweep_for(Filter::Nexus(id), id, false, None, origin);
    }

    /// Ends the tasks of an endpoint that is gone; their completions reach nobody.
    pub fn orphan(&mut self, endpoint: EndpointId) {
        for key in self.tasks.matching(|task| task.owner.endpoint == endpoint) {
            self.abort(key, false);
        }
    }

    fn sweep_for(
        &mut self,
        filter: Filter,
        asking: u64,
        status: bool,
        attention: Option<Attention>,
        origin: Origin,
    ) {
        self.begin(Arc::new(Sweep {
            filter,
            aborts: true,
            asking: Some(asking),
            status,
            attention,
            origin,
            reactor: self.reactor,
            found: AtomicBool::new(false),
            outstanding: AtomicUsize::new(self.model.postboxes.len()),
        }));
    }

    fn query(&mut self, filter: Filter, origin: Origin) {
        self.begin(Arc::new(Sweep {
            filter,
            aborts: false,
            asking: None,
            status: false,
            attention: None,
            origin,
            reactor: self.reactor,
            found: AtomicBool::new(false),
            outstanding: AtomicUsize::new(self.model.postboxes.len()),
        }));
    }

    /// Sends a sweep to every reactor; this one does its part at once.
    pub(super) fn begin(&mut self, sweep: Arc<Sweep>) {
        let postboxes = Arc::clone(&self.model.postboxes);
        for reactor in (0..postboxes.len() as u16).filter(|&reactor| reactor != self.reactor) {
            postboxes.post(reactor, Mail::Manage(Arc::clone(&sweep)));
        }
        self.sweep(&sweep);
    }

    /// This reactor's part of a sweep.
    pub(super) fn sweep(&mut self, sweep: &Arc<Sweep>) {
        let waiting = match sweep.origin {
            Origin::Command(key) if sweep.reactor == self.reactor => Some(key),
            _ => None,
        };
        for key in self.tasks.matching(|task| sweep.filter.fits(task)) {
            if Some(key) == waiting {
                continue;
            }
            let Some(task) = self.tasks.at(key) else { continue };
            if task.stage == Stage::Ended {
                // Aborted before, but not everything of it is back.
                if sweep.aborts {
                    sweep.outstanding.fetch_add(1, SeqCst);
                    task.sweeps.push(Arc::clone(sweep));
                }
                continue;
            }
            sweep.found.store(true, SeqCst);
            if !sweep.aborts {
                continue;
            }
            let own = Some(task.itl.nexus.id) == sweep.asking;
            if let (false, Some(condition)) = (own, sweep.attention) {
                task.itl.establish(condition);
            }
            // One that waits for Data-Out ends at once, but its transport may still be moving data: the
            // initiator must not reuse the memory before the token is back.
            if task.stage != Stage::AwaitsSweep {
                sweep.outstanding.fetch_add(1, SeqCst);
                task.sweeps.push(Arc::clone(sweep));
            }
            self.abort(key, sweep.status && !own);
        }
        self.tell_sweep(sweep);
    }

    /// Ends a task now, or as soon as what has it gives it back.
    fn abort(&mut self, key: TaskKey, with_status: bool) {
        let reactor = self.reactor;
        let Some(task) = self.tasks.at(key) else { return };
        // The first abort decides what the initiator sees.
        task.aborted.get_or_insert(with_status);
        match task.stage {
            Stage::Running => {
                if let Some(cancelled) = &task.cancelled {
                    cancelled.store(true, SeqCst);
                }
            }
            Stage::Ended => {}
            // It writes no more. Two that preempt each other would wait for each other for ever.
            Stage::AwaitsSweep => self.end(key, Ok(())),
            Stage::AwaitsGate => {
                if task.itl.lu.gate.cancel(reactor, key) {
                    self.end(key, Ok(()));
                }
            }
            Stage::AwaitsData => {
                task.stage = Stage::Ended;
                let (owner, tag) = (task.owner, task.tag);
                let outcome = if with_status { Outcome::Respond } else { Outcome::Silent };
                let mut response = Response::good(tag);
                response.status = libsrp::Status::TASK_ABORTED;
                self.done.push(Completion { owner, outcome, response, data: DataIn::None });
            }
        }
    }

    pub(super) fn tell_sweeps(&mut self, sweeps: Vec<Arc<Sweep>>) {
        for sweep in sweeps {
            self.tell_sweep(&sweep);
        }
    }

    /// One thing less that a sweep waits for.
    fn tell_sweep(&mut self, sweep: &Arc<Sweep>) {
        if sweep.outstanding.fetch_sub(1, SeqCst) != 1 {
            return;
        }
        if sweep.reactor == self.reactor {
            self.swept(sweep);
        } else {
            self.model.postboxes.post(sweep.reactor, Mail::Swept(Arc::clone(sweep)));
        }
    }

    /// A sweep that began here is done everywhere.
    pub(super) fn swept(&mut self, sweep: &Arc<Sweep>) {
        let found = sweep.found.load(SeqCst);
        match &sweep.origin {
            Origin::Command(key) => self.end(*key, Ok(())),
            Origin::Request { owner, tag, function } => {
                let code = match (function, found) {
                    (TaskFunction::AbortTask, false) => ResponseCode::TaskDoesNotExist,
                    (TaskFunction::QueryTask | TaskFunction::QueryTaskSet, true) => {
                        ResponseCode::FunctionSucceeded
                    }
                    _ => ResponseCode::FunctionComplete,
                };
                let origin = Origin::Request { owner: *owner, tag: *tag, function: *function };
                self.answer(origin, code, 0);
            }
        }
    }

    fn answer(&mut self, origin: Origin, code: ResponseCode, qualifier: u32) {
        if let Origin::Request { owner, tag, .. } = origin {
            let response = Response { code, qualifier, ..Response::good(tag) };
            self.complete(owner, response, DataIn::None);
        }
    }
}

/// The effects of a logical unit reset on its state (SAM-5 6.3.3).
fn reset(lu: &LogicalUnit) {
    lu.update(|state| {
        state.reservations.logical_unit_reset();
        state.modes.reset();
        state.preventers.clear();
        state.aca = None;
        for waiting in &mut state.waiting {
            (waiting.prevents, waiting.aca) = (false, false);
        }
    });
    lu.establish(Attention::LOGICAL_UNIT_RESET, None);
}

/// The effects of an I_T nexus loss on a logical unit (SAM-5 6.3.4).
fn nexus_lost(lu: &LogicalUnit, identity: &NexusId, id: u64) {
    lu.update(|state| {
        state.reservations.nexus_loss(identity);
        state.preventers.retain(|&preventer| preventer != id);
        if state.aca == Some(id) {
            state.aca = None;
        }
    });
}
