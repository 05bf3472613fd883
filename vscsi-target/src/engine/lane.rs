//! Running a task that passed the gate: on the backend, on the reactor, or on a worker thread.

use super::{
    Call, Engine,
    task::{Media, OwnMemory, Stage, Task, TaskKey, Work, Worked},
};
use crate::{
    backend::{Op, Started},
    model::{Itl, lu, nexus::LunTable},
    opcode::{Fail, Lane, flag},
    reactor::{Mail, pool::PoolBuf, ring::is_cancelled, sg},
    sense::Sense,
};
use std::{
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

impl Engine {
    /// The gate let a task through.
    pub(super) fn granted(&mut self, key: TaskKey, epoch: u8) {
        // The gate knows a task until it leaves, so the key is never stale.
        let Some(task) = self.tasks.at(key) else { return };
        task.epoch = Some(epoch);
        let allowed = match task.overdue {
            true => Err(Sense::TIMED_OUT.into()),
            false => task.still_allowed(),
        };
        if task.aborted.is_some() || allowed.is_err() {
            self.end(key, allowed);
        } else {
            task.stage = Stage::Running;
            self.run_at(key);
        }
    }

    /// Runs a task that is not in the table yet.
    pub(super) fn run(&mut self, mut task: Task) {
        // Looked at after the task was counted: who takes the image away looks at the counts after
        // saying so, and one of both sees the other.
        if task.itl.lu.flags() & lu::flag::AWAY != 0
            && let Err(fail) = task.still_allowed()
        {
            return self.end_with(task, Err(fail));
        }
        task.stage = Stage::Running;
        match (task.media, task.row.lane) {
            (Some(media), _) if task.itl.lu.backend.never_waits() => {
                let result = self.start(&mut task, TaskKey(u64::MAX), media);
                self.settle(task, result);
            }
            (None, Lane::Inline) => self.call_here(task),
            _ => {
                let key = self.tasks.insert(task);
                self.run_at(key);
            }
        }
    }

    /// Runs a task of the table.
    fn run_at(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.at(key) else { return };
        let Some(media) = task.media else {
            let row = task.row;
            let waits = !task.itl.lu.backend.never_waits() || row.has(flag::PERSISTS);
            return match row.lane {
                Lane::Inline => self.call_at(key),
                Lane::Exclusive(_) if !waits => self.call_at(key),
                _ => self.call_on_worker(key),
            };
        };
        // Taken out while the backend starts it, so that both can be borrowed.
        let Some(mut task) = self.tasks.lift(key) else { return };
        let result = self.start(&mut task, key, media);
        self.tasks.put_back(key, task);
        match result {
            Started::Queued => {}
            Started::Done(result) => self.moved(key, result),
            Started::WouldBlock | Started::Unreachable => self.move_on_worker(key, media),
        }
    }

    fn start(&mut self, task: &mut Task, key: TaskKey, media: Media) -> Started {
        if media.len == 0 {
            return Started::Done(Ok(()));
        }
        let lu = &task.itl.lu;
        let offset = media.lba * u64::from(lu.block_size());
        if task.own.is_own && !task.own.bounced {
            let memory = &task.own.segments;
            match lu.backend.start(&mut self.lanes, key.0, media.op, offset, memory) {
                Started::Unreachable => {}
                started => return started,
            }
            lu.backend.bounced();
            match self.bounce(&task.own, media) {
                Some(buffer) => (task.buffer, task.own.bounced) = (Some(buffer), true),
                // A worker says what there is to say.
                None => return Started::WouldBlock,
            }
        }
        let Some(buffer) = &mut task.buffer else {
            return Started::Done(Err(io::ErrorKind::OutOfMemory.into()));
        };
        lu.backend.reach(&mut self.lanes, buffer);
        let segment = buffer.segment(media.len);
        match lu.backend.start(&mut self.lanes, key.0, media.op, offset, &[segment]) {
            Started::Unreachable => Started::WouldBlock,
            started => started,
        }
    }

    /// A pool buffer in place of the transport's own memory, with what is to be written.
    fn bounce(&self, own: &OwnMemory, media: Media) -> Option<PoolBuf> {
        let mut buffer = self.pool.take(media.len)?;
        if let (Op::Write { .. }, Some(room)) = (media.op, buffer.bytes_mut().get_mut(..media.len))
        {
            sg::gather(&own.segments, room);
        }
        Some(buffer)
    }

    /// What became of a task that is not in the table.
    fn settle(&mut self, task: Task, result: Started) {
        match result {
            Started::Done(result) => self.end_media(task, result),
            Started::Queued | Started::WouldBlock | Started::Unreachable => {
                // A backend that never waits answered as one that does.
                self.end_media(task, Err(io::ErrorKind::WouldBlock.into()));
            }
        }
    }

    /// A media operation of a task of the table ended.
    pub(super) fn moved(&mut self, key: TaskKey, result: io::Result<()>) {
        if let Some(task) = self.tasks.remove(key) {
            if let (Err(error), Some(media)) = (&result, task.media)
                && !is_cancelled(error)
            {
                task.itl.lu.backend.failed(media.op, error);
            }
            self.end_media(task, result);
        }
    }

    fn call_at(&mut self, key: TaskKey) {
        if let Some(task) = self.tasks.remove(key) {
            self.call_here(task);
        }
    }

    fn call_here(&mut self, task: Task) {
        let mut reply = mem::take(&mut self.reply);
        reply.clear();
        let mut abort = Vec::new();
        let data = task.buffer.as_ref().map_or(&[][..], PoolBuf::bytes);
        let result = (task.row.handler)(&mut Call {
            model: &self.model,
            itl: &task.itl,
            table: task.table.as_deref().unwrap_or(&LunTable::EMPTY),
            cdb: task.cdb(),
            data: data.get(..task.received).unwrap_or_default(),
            reply: &mut reply,
            abort: &mut abort,
            cancelled: &NEVER,
        });
        self.called(task, result, &reply, abort);
        self.reply = reply;
    }

    fn call_on_worker(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.at(key) else { return };
        let data = task.buffer.take().map(PoolBuf::detach);
        let (cdb, received, row) = (task.cdb().to_vec(), task.received, task.row);
        let (itl, table) = (Arc::clone(&task.itl), task.table.clone());
        let (model, reactor) = (Arc::clone(&self.model), self.reactor);
        let cancelled = Arc::new(AtomicBool::new(false));
        task.cancelled = Some(Arc::clone(&cancelled));
        self.workers.run(Box::new(move || {
            let (mut reply, mut abort, empty) = (Vec::new(), Vec::new(), LunTable::EMPTY);
            let bytes = data.as_ref().map_or(&[][..], |data| data.bytes());
            let mut call = Call {
                model: &model,
                itl: &itl,
                table: table.as_deref().unwrap_or(&empty),
                cdb: &cdb,
                data: bytes.get(..received).unwrap_or_default(),
                reply: &mut reply,
                abort: &mut abort,
                cancelled: &cancelled,
            };
            // What persists is not worth the trouble: it does not wait for the medium.
            let result = match cancelled.load(SeqCst) && !row.has(flag::PERSISTS) {
                true => Err(Sense::TIMED_OUT.into()),
                false => (row.handler)(&mut call),
            };
            let work = Work::Called { result, reply, abort, data };
            model.postboxes.post(reactor, Mail::Worked(Box::new(Worked { task: key, work })));
        }));
    }

    /// A media operation where the ring cannot be used.
    fn move_on_worker(&mut self, key: TaskKey, media: Media) {
        let Some(task) = self.tasks.at(key) else { return };
        if task.buffer.is_none() {
            // Guest memory does not go to another thread: through a buffer.
            match self.pool.take(media.len) {
                Some(mut buffer) => {
                    if let (Op::Write { .. }, Some(room)) =
                        (media.op, buffer.bytes_mut().get_mut(..media.len))
                    {
                        sg::gather(&task.own.segments, room);
                    }
                    task.own.bounced = true;
                    task.buffer = Some(buffer);
                }
                None => return self.end(key, Err(Fail::Status(libsrp::Status::TASK_SET_FULL))),
            }
        }
        let mut data = task.buffer.take().map(PoolBuf::detach);
        let itl = Arc::clone(&task.itl);
        let (model, reactor) = (Arc::clone(&self.model), self.reactor);
        let cancelled = Arc::new(AtomicBool::new(false));
        task.cancelled = Some(Arc::clone(&cancelled));
        self.workers.run(Box::new(move || {
            let bytes = data.as_mut().and_then(|data| data.bytes_mut().get_mut(..media.len));
            let result = match cancelled.load(SeqCst) {
                true => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                false => move_blocking(&itl, media, bytes.unwrap_or_default()),
            };
            let work = Work::Moved { result, data };
            model.postboxes.post(reactor, Mail::Worked(Box::new(Worked { task: key, work })));
        }));
    }

    /// A worker finished.
    pub(super) fn worked(&mut self, worked: Worked) {
        let Some(mut task) = self.tasks.remove(worked.task) else { return };
        match worked.work {
            Work::Called { result, reply, abort, data } => {
                task.buffer = data.map(|data| self.pool.attach(data));
                self.called(task, result, &reply, abort);
            }
            Work::Moved { result, data } => {
                task.buffer = data.map(|data| self.pool.attach(data));
                self.end_media(task, result);
            }
        }
    }
}

fn move_blocking(itl: &Itl, media: Media, bytes: &mut [u8]) -> io::Result<()> {
    let backend = &itl.lu.backend;
    let offset = media.lba * u64::from(itl.lu.block_size());
    match media.op {
        Op::Read => backend.read_at(offset, bytes),
        Op::Write { fua } => {
            backend.write_at(offset, bytes)?;
            if fua { backend.flush() } else { Ok(()) }
        }
        Op::Flush => backend.flush(),
    }
}

/// A handler on a reactor is done before anybody can abort it.
static NEVER: AtomicBool = AtomicBool::new(false);
