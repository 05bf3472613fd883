//! Data between the initiator's memory and pool buffers, and the answers behind it.

use super::{Conn, Core, Next};
use crate::{
    channel::{Drained, Ended, Fetched, TaskId},
    link::{Link, Memory},
};
use libsrp::{Residual, Response, Status, Tag, descriptor::Descriptor};
use rdma::Remote;
use vscsi_target::{
    engine::{Completion, DataIn, DataOut, TaskToken},
    reactor::Cx,
    sense::Sense,
};

/// Data-Out on its way in.
#[derive(Debug)]
pub struct Gather {
    /// The core's task.
    pub token: TaskToken,
    /// Bytes the command needs.
    pub len: usize,
}

impl<L: Link> Conn<L> {
    /// Reads the Data-Out of a command from the initiator.
    pub(super) fn read(&mut self, task: TaskId, need: DataOut, cx: &mut Cx<'_>) {
        let DataOut { token, buffer, len } = need;
        let Some(link) = &mut self.link else { return cx.engine.abandon(token) };
        let memory = match link.memory(buffer, len) {
            Ok(memory) => memory,
            Err(error) => {
                tracing::error!(peer = %self.facts.peer, %error, "cannot register memory");
                return cx.engine.fail(token, Sense::INTERNAL_FAILURE);
            }
        };
        list(&mut self.remote, self.channel.segments(task));
        match link.read(memory, len, &self.remote, task.cookie()) {
            None => {
                self.channel.reading(task);
                if let Some(place) = self.gathers.get_mut(task.slot()) {
                    *place = Some(Gather { token, len });
                } else {
                    // Slots are below the request limit.
                    cx.engine.abandon(token);
                }
            }
            Some(memory) => cx.engine.data_arrived(token, memory.into_buffer()),
        }
    }

    /// Reads the descriptor table of a command.
    pub(super) fn fetch(&mut self, task: TaskId, table: Descriptor, cx: &mut Cx<'_>) {
        let Some(link) = &mut self.link else { return };
        let len = table.len as usize;
        let buffer = cx.engine.pool.take(len);
        let Some(memory) = buffer.and_then(|buffer| link.memory(buffer, len).ok()) else {
            // As the core does when it has no memory for a command.
            let full = Status::TASK_SET_FULL;
            return self.answer(task, &Response { status: full, ..Response::good(Tag::default()) });
        };
        if let Some(since) = self.fetches.get_mut(task.slot()) {
            *since = self.session.functions.count();
        }
        list(&mut self.remote, &[table]);
        if let Some(memory) = link.read(memory, len, &self.remote, task.cookie()) {
            self.was_fetched(task, &memory, cx);
        }
    }

    /// Something was read.
    pub(super) fn was_read(&mut self, cookie: u64, memory: L::Memory, cx: &mut Cx<'_>) {
        let task = TaskId::from_cookie(cookie);
        let Some(gather) = self.gathers.get_mut(task.slot()).and_then(Option::take) else {
            return self.was_fetched(task, &memory, cx);
        };
        match self.channel.drained(task) {
            Drained::Deliver => {
                self.facts.counters.count_written(gather.len as u64);
                cx.engine.data_arrived(gather.token, memory.into_buffer());
            }
            Drained::Over => cx.engine.abandon(gather.token),
            Drained::Answer(response) => {
                cx.engine.abandon(gather.token);
                self.answer(task, &response);
            }
        }
    }

    /// A descriptor table was read: the command starts.
    fn was_fetched(&mut self, task: TaskId, table: &L::Memory, cx: &mut Cx<'_>) {
        let Some(nexus) = &mut self.nexus else { return };
        if let (Some((tag, lun)), Some(since)) =
            (self.channel.fetching(task), self.fetches.get(task.slot()))
            && self.session.functions.ended(*since, tag, lun)
        {
            return self.channel.ended_elsewhere(task);
        }
        let next = match self.channel.fetched(task, table.bytes()) {
            Fetched::Start(start) => Core { nexus, facts: &self.facts, cx }.start(&start),
            Fetched::Refuse(refused) => Next::Refuse(refused),
            Fetched::Ended => return self.answer_due(),
        };
        self.go_on(next, cx);
    }

    /// Takes back reads of descriptor tables that nobody needs any more, where that is possible.
    pub(super) fn take_back_fetches(&mut self) {
        let Some(link) = &mut self.link else { return };
        loop {
            let mut ended = self.channel.ended_fetches();
            let taken_back = ended.find(|task| link.cancel(task.cookie()).is_some());
            drop(ended);
            let Some(task) = taken_back else { break };
            self.channel.fetch_ended(task);
        }
        self.answer_due();
    }

    /// Answers functions that waited for reads to end.
    fn answer_due(&mut self) {
        while let Some((task, response)) = self.channel.due() {
            self.answer(task, &response);
        }
    }

    fn answer(&mut self, task: TaskId, response: &Response) {
        let unit = self.channel.answer(task, response, &mut self.out);
        self.send(unit);
    }

    /// The core has completed a command or a function.
    pub(super) fn finish(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        let cookie = completion.owner.cookie;
        let task = TaskId::from_cookie(cookie);
        match self.channel.ended(task, completion.outcome, &completion.response) {
            Ended::Answer => self.reply(task, completion, cx),
            Ended::Silent => {}
            Ended::Wait => {
                let is_read = self.gathers.get(task.slot()).is_some_and(Option::is_some);
                let link = self.link.as_mut().filter(|_| is_read);
                if let Some(memory) = link.and_then(|link| link.cancel(cookie)) {
                    self.was_read(cookie, memory, cx);
                }
            }
        }
    }

    /// Writes a command's Data-In into the initiator's memory and sends the answer behind it.
    fn reply(&mut self, task: TaskId, completion: &mut Completion, cx: &mut Cx<'_>) {
        let data = completion.take_data();
        let written = if data.is_empty() { Ok(()) } else { self.write(task, data, cx) };
        match written {
            Ok(()) => self.answer(task, &completion.response),
            Err(status) => {
                let response = Response { status, ..Response::good(completion.response.tag) };
                let capacity = self.channel.segments(task).iter().map(|part| u64::from(part.len));
                let capacity = u32::try_from(capacity.sum::<u64>()).unwrap_or(u32::MAX);
                let data_in = Residual::of(0, capacity);
                self.answer(task, &Response { data_in, ..response });
            }
        }
    }

    fn write(&mut self, task: TaskId, data: DataIn, cx: &mut Cx<'_>) -> Result<(), Status> {
        let Some(link) = &mut self.link else { return Ok(()) };
        // What a RAM disk lends is not registered: this copy is the transfer of its medium.
        let (buffer, len) = data.into_buffer(&cx.engine.pool).map_err(|_| Status::TASK_SET_FULL)?;
        let memory = link.memory(buffer, len).map_err(|error| {
            tracing::error!(peer = %self.facts.peer, %error, "cannot register memory");
            Status::BUSY
        })?;
        list(&mut self.remote, self.channel.segments(task));
        link.write(memory, len, &self.remote);
        self.facts.counters.count_read(len as u64);
        Ok(())
    }
}

/// Segments as RDMA knows them.
fn list(remote: &mut Vec<Remote>, segments: &[Descriptor]) {
    remote.clear();
    let of = |part: &Descriptor| Remote { addr: part.address, key: part.key, len: part.len };
    remote.extend(segments.iter().map(of));
}
