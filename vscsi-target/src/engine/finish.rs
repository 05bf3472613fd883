//! From the end of a task to its completion.

use super::{
    Engine,
    manage::{Origin, Sweep},
    submit::naca,
    task::{Completion, DataIn, Media, Outcome, Stage, Task, TaskKey},
};
use crate::{
    backend::Op,
    model::{Itl, reservation::NexusId},
    opcode::{Fail, Transfer},
    reactor::{ring::is_cancelled, sg},
    sbc::{self, Doing},
    sense::Sense,
};
use libsrp::{Residual, Response, Status};
use std::{
    io, mem,
    sync::{Arc, atomic::Ordering::Relaxed},
};

impl Engine {
    /// A media task ended.
    pub(super) fn end_media(&mut self, mut task: Task, result: io::Result<()>) {
        let Some(media) = task.media else { return self.end_with(task, Ok(DataIn::None)) };
        if let Err(error) = result {
            if is_cancelled(&error) {
                return self.end_with(task, Err(Sense::TIMED_OUT.into()));
            }
            let fail = self.media_failed(&task.itl, media, &error);
            return self.end_with(task, Err(fail));
        }
        let moved = task.wanted.min(u64::from(match media.op {
            Op::Read => task.capacity_in,
            _ => task.capacity_out,
        })) as usize;
        let data = match media.op {
            Op::Read if task.own.is_own => {
                if let (true, Some(buffer)) = (task.own.bounced, &task.buffer) {
                    let bytes = buffer.bytes();
                    sg::scatter(bytes.get(..moved).unwrap_or(bytes), &task.own.segments);
                }
                DataIn::Placed(moved)
            }
            Op::Read => task.buffer.take().map_or(DataIn::None, |buf| DataIn::Buffer(buf, moved)),
            _ => DataIn::None,
        };
        match media.op {
            Op::Read => self.count_read(&task.itl, moved),
            _ => self.count_write(&task.itl, media.len),
        }
        self.end_with(task, Ok(data));
    }

    /// Counts an error of the backend, and says how it is reported.
    pub(super) fn media_failed(&self, itl: &Itl, media: Media, error: &io::Error) -> Fail {
        self.cell(itl).backend_errors.fetch_add(1, Relaxed);
        let doing = match media.op {
            Op::Read => Doing::Reading(media.lba),
            Op::Write { .. } => Doing::Writing(media.lba),
            Op::Flush => Doing::Flushing,
        };
        tracing::debug!(lu = itl.lu.id, lba = media.lba, %error, "the backend failed");
        Fail::Check(sbc::sense_of(error, doing))
    }

    /// A handler ended.
    pub(super) fn called(
        &mut self,
        mut task: Task,
        result: Result<(), Fail>,
        reply: &[u8],
        abort: Vec<NexusId>,
    ) {
        task.buffer = None;
        let data = result.and_then(|()| {
            if !matches!(task.row.transfer, Transfer::In(_)) {
                return Ok(DataIn::None);
            }
            task.wanted = task.wanted.min(reply.len() as u64);
            let moved = task.wanted.min(u64::from(task.capacity_in)) as usize;
            match reply.get(..moved) {
                None | Some([]) => Ok(DataIn::None),
                Some(bytes) if task.own.is_own => {
                    Ok(DataIn::Placed(sg::scatter(bytes, &task.own.segments)))
                }
                Some(bytes) => self.in_buffer(bytes),
            }
        });
        if abort.is_empty() || data.is_err() {
            return self.end_with(task, data);
        }
        // PREEMPT AND ABORT completes when the tasks it aborts are gone, unless it is aborted itself.
        let itl = Arc::clone(&task.itl);
        task.stage = Stage::AwaitsSweep;
        let is_aborted = task.aborted.is_some();
        let key = self.tasks.insert(task);
        self.begin(Sweep::preempt(&self.model, self.reactor, &itl, abort, Origin::Command(key)));
        if is_aborted {
            self.end(key, Ok(()));
        }
    }

    /// Ends a task of the table that has no Data-In.
    pub(super) fn end(&mut self, key: TaskKey, result: Result<(), Fail>) {
        if let Some(task) = self.tasks.remove(key) {
            self.end_with(task, result.map(|()| DataIn::None));
        }
    }

    /// Ends a task: leaves the gate, completes it, tells the sweeps that wait for it.
    pub(super) fn end_with(&mut self, mut task: Task, result: Result<DataIn, Fail>) {
        let mut response = Response::good(task.tag);
        let mut data = DataIn::None;
        let mut outcome = Outcome::Respond;
        match (task.aborted, result) {
            (Some(true), _) => response.status = Status::TASK_ABORTED,
            (Some(false), _) => outcome = Outcome::Silent,
            (None, Ok(moved)) => {
                data = moved;
                let (out, into) = match task.row.transfer {
                    Transfer::In(_) => (0, task.wanted),
                    Transfer::Blocks if task.is_read() => (0, task.wanted),
                    Transfer::None => (0, 0),
                    _ => (task.wanted, 0),
                };
                response.data_out = Residual::of(out, task.capacity_out);
                response.data_in = Residual::of(into, task.capacity_in);
            }
            (None, Err(fail)) => {
                self.fill_failure(&task.itl, task.cdb(), fail, &mut response);
                // What failed because it was short tells by how much.
                let out = if fail == Fail::Check(sbc::SHORT_DATA) { task.wanted } else { 0 };
                response.data_out = Residual::of(out, task.capacity_out);
                response.data_in = Residual::of(0, task.capacity_in);
            }
        }
        if task.overdue && task.stage == Stage::Running {
            task.itl.lu.caught_up();
        }
        if let Some(epoch) = task.epoch {
            let gate = &task.itl.lu.gate;
            match task.key_at_gate {
                Some(key) if task.raised => gate.lower(self.reactor, key, epoch),
                _ => gate.leave(self.reactor, epoch),
            }
        }
        if task.own.segments.capacity() > 0 && self.lists.len() < MOST_LISTS {
            self.lists.push(mem::take(&mut task.own.segments));
        }
        self.done.push(Completion { owner: task.owner, outcome, response, data });
        self.tell_sweeps(task.sweeps);
    }

    /// Status and sense of a failed command, and the ACA condition if its CDB asks for one.
    pub(super) fn fill_failure(&self, itl: &Itl, cdb: &[u8], fail: Fail, response: &mut Response) {
        match fail {
            Fail::Status(status) => response.status = status,
            Fail::Check(sense) => {
                response.status = Status::CHECK_CONDITION;
                response.sense = sense.encode(itl.lu.state().modes.descriptor_sense());
                if naca(cdb) {
                    itl.lu.update(|state| {
                        state.aca.get_or_insert(itl.nexus.id);
                    });
                }
            }
        }
        if response.status != Status::CONDITION_MET {
            self.cell(itl).failures.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn count_read(&self, itl: &Itl, bytes: usize) {
        let cell = self.cell(itl);
        cell.reads.fetch_add(1, Relaxed);
        cell.read_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn count_write(&self, itl: &Itl, bytes: usize) {
        let cell = self.cell(itl);
        cell.writes.fetch_add(1, Relaxed);
        cell.write_bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn cell<'a>(&self, itl: &'a Itl) -> &'a crate::model::lu::Counters {
        // One cell a reactor: made for as many as there are postboxes.
        &itl.lu.counters[usize::from(self.reactor)]
    }
}

/// Scatter lists kept for reuse.
const MOST_LISTS: usize = 1024;
