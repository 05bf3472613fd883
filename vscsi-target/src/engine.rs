//! The engine: every reactor's part of the command core, from `Command` to `Response`.
//!
//! A transport [submits](Engine::submit) a command. The opcode table says which lane it takes:
//! reads and writes go straight to the backend, other commands to their handler, on the reactor or
//! on a worker thread. Each ends in one [`Completion`], which the reactor hands to the endpoint that
//! owns the task, in the same turn if nothing had to be waited for.

mod absent;
pub mod call;
mod deadline;
mod finish;
mod lane;
pub mod manage;
mod submit;
pub mod task;

use crate::{
    backend::Lanes,
    model::Model,
    reactor::{Mail, pool::Pool, ring::Ring, sg::Segment, workers::Workers},
};
use std::{io, mem, sync::Arc};

pub use call::Call;
pub use task::{
    Completion, DataIn, DataOut, Hold, Memory, Outcome, Owner, Submitted, TaskKey, TaskToken,
};

/// One reactor's part of the command core.
#[derive(Debug)]
pub struct Engine {
    /// Everything exported.
    pub model: Arc<Model>,
    /// Which reactor this is.
    pub reactor: u16,
    /// Buffers.
    pub pool: Pool,
    /// What it does input and output with. Goes before the memory of tasks.
    pub lanes: Lanes,
    workers: Arc<Workers>,
    tasks: task::Table,
    /// The time of the last tick.
    seconds: u32,
    /// How many seconds a task may take; 0 for ever.
    io_timeout: u32,
    done: Vec<Completion>,
    /// Reused for answers and for what the ring reports.
    reply: Vec<u8>,
    /// Scatter lists of tasks that ended, for the next ones.
    lists: Vec<Vec<Segment>>,
    reaped: Vec<(u64, io::Result<()>)>,
}

impl Engine {
    /// An engine for reactor number `reactor`.
    pub fn new(
        model: Arc<Model>,
        reactor: u16,
        pool: Pool,
        ring: Ring,
        workers: Arc<Workers>,
    ) -> Self {
        Self {
            model,
            reactor,
            pool,
            lanes: Lanes::new(reactor, ring),
            workers,
            tasks: task::Table::default(),
            seconds: 0,
            io_timeout: 0,
            done: Vec::new(),
            reply: Vec::new(),
            lists: Vec::new(),
            reaped: Vec::new(),
        }
    }

    /// One round: mail, finished input and output, submission of what was queued.
    pub fn turn(&mut self, mail: &mut Vec<Mail>) {
        for mail in mail.drain(..) {
            match mail {
                Mail::Granted { task, epoch } => self.granted(task, epoch),
                Mail::Worked(worked) => self.worked(*worked),
                Mail::Manage(sweep) => self.sweep(&sweep),
                Mail::Swept(sweep) => self.swept(&sweep),
            }
        }
        let mut reaped = mem::take(&mut self.reaped);
        self.lanes.ring.reap(|key, result| reaped.push((key, result)));
        self.lanes.devices.reap(|key, result| reaped.push((key, result)));
        for (key, result) in reaped.drain(..) {
            self.moved(TaskKey(key), result);
        }
        self.reaped = reaped;
        self.lanes.ring.submit();
        self.lanes.devices.submit();
    }

    /// Moves the completions gathered so far into `into`, which must be empty.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        mem::swap(&mut self.done, into);
    }

    /// Whether tasks are in progress, so that the reactor must not stop.
    pub fn is_busy(&self) -> bool {
        self.tasks.len() > 0
    }

    /// How many tasks are in progress.
    pub fn tasks_in_progress(&self) -> usize {
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests;
