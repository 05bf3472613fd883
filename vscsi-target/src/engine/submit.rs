//! From a command to a task in its lane.

use super::{
    Engine, absent,
    task::{
        Completion, DataIn, DataOut, Hold, Media, Memory, Outcome, OwnMemory, Owner, Stage,
        Submitted, Task, TaskToken,
    },
};
use crate::{
    backend::{Op, Started},
    limits,
    model::{Itl, LogicalUnit, NexusView, gate::Need, lu, nexus::bit},
    opcode::{Access, Fail, Lane, Row, Transfer, flag, service_action},
    reactor::{
        pool::PoolBuf,
        sg::{self, Segment},
    },
    sbc::{self, rw},
    sense::{Sense, key},
    spc::mode::Modes,
};
use libsrp::{Command, Lun, Residual, Response, Status, TaskAttribute};
use std::{io, sync::Arc};

/// Conditions of a logical unit that a command has to be checked against.
const SLOW: u32 = lu::flag::WRITE_PROTECTED | lu::flag::NOT_READY | lu::flag::ACA | lu::flag::GONE;

impl Engine {
    /// Takes a command. Its completion, if any, is delivered by [`Engine::completions`].
    pub fn submit(
        &mut self,
        nexus: &mut NexusView,
        command: &Command<'_>,
        memory: Memory<'_>,
        owner: Owner,
    ) -> Submitted {
        let found = Row::find(command.cdb);
        let Some(itl) = nexus.find(command.lun) else {
            self.submit_absent(nexus, command, memory, owner);
            return Submitted::Accepted;
        };
        // One look at both words decides whether anything out of the ordinary holds.
        if (itl.attention() | (itl.lu.flags() & SLOW) != 0
            || command.attribute != TaskAttribute::Simple)
            && let Err(fail) = check(itl, found.as_ref().ok().copied(), command)
        {
            self.refuse(itl, command, owner, fail);
            return Submitted::Accepted;
        }
        let row = match found {
            Ok(row) => row,
            Err(sense) => {
                self.refuse(itl, command, owner, sense.into());
                return Submitted::Accepted;
            }
        };
        // The media lanes only borrow the nexus: its counter of users is shared by all reactors.
        let submitted = match row.lane {
            Lane::Read => self.submit_read(itl, row, command, memory, owner),
            Lane::Write => self.submit_write(itl, row, command, memory, owner),
            Lane::Inline | Lane::Worker | Lane::Exclusive(_) => {
                let itl = Arc::clone(itl);
                let submitted = self.submit_call(nexus, &itl, row, command, memory, owner);
                return submitted.unwrap_or_else(|fail| {
                    self.refuse(&itl, command, owner, fail);
                    Submitted::Accepted
                });
            }
        };
        submitted.unwrap_or_else(|fail| {
            self.refuse(itl, command, owner, fail);
            Submitted::Accepted
        })
    }

    fn submit_read(
        &mut self,
        itl: &Arc<Itl>,
        row: &'static Row,
        command: &Command<'_>,
        memory: Memory<'_>,
        owner: Owner,
    ) -> Result<Submitted, Fail> {
        let extent = rw::parse(command.cdb)?;
        let (media, wanted) = media(itl, Op::Read, extent, command.data_in)?;
        let moved = wanted.min(u64::from(command.data_in)) as usize;
        if moved == 0 {
            let mut response = Response::good(command.tag);
            response.data_in = Residual::of(wanted, command.data_in);
            response.data_out = Residual::of(0, command.data_out);
            self.complete(owner, response, DataIn::None);
            return Ok(Submitted::Accepted);
        }
        let lu = &itl.lu;
        // Memory the backend already has is sent from where it is. An ORDERED task has to raise the
        // gate for as long as it is read, which a lent read does not.
        if matches!(memory, Memory::Pool)
            && lu.flags() & lu::flag::ATOMICS == 0
            && command.attribute != TaskAttribute::Ordered
        {
            let offset = media.lba * u64::from(lu.block_size());
            if let Some(segment) = lu.backend.lend(offset, moved)
                && let Some(epoch) = lu.gate.enter(self.reactor)
            {
                let hold = Hold { itl: Arc::clone(itl), reactor: self.reactor, epoch };
                let mut response = Response::good(command.tag);
                response.data_in = Residual::of(wanted, command.data_in);
                response.data_out = Residual::of(0, command.data_out);
                self.count_read(itl, moved);
                self.complete(owner, response, DataIn::Lent(segment, hold));
                return Ok(Submitted::Accepted);
            }
        }
        if let Memory::Own { into, .. } = memory
            && let Some(result) = self.move_now(itl, media, moved, command, into)
        {
            return result.map(|()| {
                self.count_read(itl, moved);
                let mut response = Response::good(command.tag);
                response.data_in = Residual::of(wanted, command.data_in);
                response.data_out = Residual::of(0, command.data_out);
                self.complete(owner, response, DataIn::Placed(moved));
                Submitted::Accepted
            });
        }
        let mut task = self.task(itl, row, command, owner, wanted);
        task.media = Some(media);
        match memory {
            Memory::Pool => task.buffer = Some(self.take(media.len)?),
            Memory::Own { into, .. } => {
                task.own.is_own = true;
                task.own.segments = self.lists.pop().unwrap_or_default();
                // Parts of blocks go through a buffer.
                if sg::take_front(into, moved, &mut task.own.segments) != moved {
                    return Err(Sense::INTERNAL_FAILURE.into());
                }
                if media.len != moved {
                    task.own.bounced = true;
                    task.buffer = Some(self.take(media.len)?);
                }
            }
        }
        self.admit(task);
        Ok(Submitted::Accepted)
    }

    fn submit_write(
        &mut self,
        itl: &Arc<Itl>,
        row: &'static Row,
        command: &Command<'_>,
        memory: Memory<'_>,
        owner: Owner,
    ) -> Result<Submitted, Fail> {
        let extent = rw::parse(command.cdb)?;
        let fua = extent.fua || itl.lu.flags() & lu::flag::WRITE_THROUGH != 0;
        let (media, wanted) = media(itl, Op::Write { fua }, extent, command.data_out)?;
        let moved = wanted.min(u64::from(command.data_out)) as usize;
        if moved == 0 {
            let mut response = Response::good(command.tag);
            response.data_out = Residual::of(wanted, command.data_out);
            response.data_in = Residual::of(0, command.data_in);
            self.complete(owner, response, DataIn::None);
            return Ok(Submitted::Accepted);
        }
        if let Memory::Own { out, .. } = memory
            && let Some(result) = self.move_now(itl, media, moved, command, out)
        {
            return result.map(|()| {
                self.count_write(itl, media.len);
                let mut response = Response::good(command.tag);
                response.data_out = Residual::of(wanted, command.data_out);
                response.data_in = Residual::of(0, command.data_in);
                self.complete(owner, response, DataIn::None);
                Submitted::Accepted
            });
        }
        let mut task = self.task(itl, row, command, owner, wanted);
        if media.len != moved {
            // A part of a block cannot be written, and the blocks before it are not either.
            self.end_with(task, Err(Fail::Check(sbc::SHORT_DATA)));
            return Ok(Submitted::Accepted);
        }
        task.media = Some(media);
        match memory {
            Memory::Pool => {
                let buffer = self.take(moved)?;
                Ok(self.ask(task, buffer, moved))
            }
            Memory::Own { out, .. } => {
                task.own.is_own = true;
                task.own.segments = self.lists.pop().unwrap_or_default();
                if sg::take_front(out, media.len, &mut task.own.segments) != media.len {
                    return Err(Sense::INTERNAL_FAILURE.into());
                }
                self.admit(task);
                Ok(Submitted::Accepted)
            }
        }
    }

    /// Moves data between the transport's own memory and a backend that never waits, without a task:
    /// nobody could abort it in between. `None` if it has to be a task.
    fn move_now(
        &mut self,
        itl: &Arc<Itl>,
        media: Media,
        moved: usize,
        command: &Command<'_>,
        memory: &[Segment],
    ) -> Option<Result<(), Fail>> {
        let lu = &itl.lu;
        let whole =
            media.len == moved && memory.iter().map(|part| part.len).sum::<usize>() == moved;
        if !whole || !lu.backend.never_waits() || command.attribute != TaskAttribute::Simple {
            return None;
        }
        let epoch = lu.gate.enter(self.reactor)?;
        let offset = media.lba * u64::from(lu.block_size());
        let key = u64::MAX;
        let started = lu.backend.start(&mut self.lanes, key, media.op, offset, memory);
        lu.gate.leave(self.reactor, epoch);
        Some(match started {
            Started::Done(Ok(())) => Ok(()),
            Started::Done(Err(error)) => Err(self.media_failed(itl, media, &error)),
            // A backend that never waits answered as one that does.
            Started::Queued | Started::WouldBlock | Started::Unreachable => {
                Err(self.media_failed(itl, media, &io::ErrorKind::WouldBlock.into()))
            }
        })
    }

    fn submit_call(
        &mut self,
        nexus: &mut NexusView,
        itl: &Arc<Itl>,
        row: &'static Row,
        command: &Command<'_>,
        memory: Memory<'_>,
        owner: Owner,
    ) -> Result<Submitted, Fail> {
        let cdb = command.cdb;
        let out = match row.transfer {
            Transfer::None | Transfer::In(_) | Transfer::Blocks => 0,
            Transfer::Out(length) => length.read(cdb),
            Transfer::OutBy(length) => length(cdb, itl.lu.block_size()),
        };
        if out > u64::from(limits::MAX_TRANSFER) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        if row.has(flag::EXACT_OUT) && out < u64::from(command.data_out) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let wanted = match row.transfer {
            Transfer::In(length) => length.read(cdb),
            _ => out,
        };
        let mut task = self.task(itl, row, command, owner, wanted);
        task.table = Some(Arc::clone(nexus.table()));
        let moved = out.min(u64::from(command.data_out)) as usize;
        match memory {
            Memory::Pool if moved > 0 => {
                let buffer = self.take(moved)?;
                return Ok(self.ask(task, buffer, moved));
            }
            Memory::Pool => {}
            Memory::Own { out, into } => {
                task.own.is_own = true;
                let room = command.data_in as usize;
                sg::take_front(into, room, &mut task.own.segments);
                if moved > 0 {
                    // Read once; what the guest changes afterwards is not seen.
                    let mut buffer = self.take(moved)?;
                    let bytes = buffer.bytes_mut().get_mut(..moved).unwrap_or_default();
                    task.received = sg::gather(out, bytes);
                    task.buffer = Some(buffer);
                }
            }
        }
        self.admit(task);
        Ok(Submitted::Accepted)
    }

    /// Asks the transport for Data-Out.
    fn ask(&mut self, task: Task, buffer: PoolBuf, len: usize) -> Submitted {
        let key = self.tasks.insert(task);
        Submitted::NeedsData(DataOut { token: TaskToken::new(key), buffer, len })
    }

    /// The Data-Out of a task is complete. `buffer` is the one of [`DataOut`].
    pub fn data_arrived(&mut self, token: TaskToken, buffer: PoolBuf) {
        let Some(mut task) = self.tasks.remove(token.spend()) else { return };
        if task.stage == Stage::Ended {
            return self.tell_sweeps(task.sweeps);
        }
        task.received = task.wanted.min(u64::from(task.capacity_out)) as usize;
        task.buffer = Some(buffer);
        match task.still_allowed() {
            Ok(()) => self.admit(task),
            Err(fail) => self.end_with(task, Err(fail)),
        }
    }

    /// The transport cannot bring the Data-Out: the task ends with CHECK CONDITION and this sense.
    pub fn fail(&mut self, token: TaskToken, sense: Sense) {
        let Some(task) = self.tasks.remove(token.spend()) else { return };
        match task.stage {
            Stage::Ended => self.tell_sweeps(task.sweeps),
            _ => self.end_with(task, Err(Fail::Check(sense))),
        }
    }

    /// No completion is wanted any more: the connection is gone, or the completion came already
    /// because the task was aborted.
    pub fn abandon(&mut self, token: TaskToken) {
        if let Some(task) = self.tasks.remove(token.spend()) {
            self.tell_sweeps(task.sweeps);
        }
    }

    /// Lets a task through the gate, or leaves it waiting there.
    fn admit(&mut self, mut task: Task) {
        task.since = self.seconds;
        let gate = &task.itl.lu.gate;
        let need = match (task.attribute, task.row.lane) {
            (_, Lane::Exclusive(range)) => {
                task.itl.lu.set_flags(lu::flag::ATOMICS);
                let (lba, blocks) = range(task.cdb());
                Need::Range(lba, blocks)
            }
            (TaskAttribute::Ordered, _) => Need::All,
            (TaskAttribute::HeadOfQueue | TaskAttribute::Aca, _) => Need::Head(task.range()),
            _ => {
                if let Some(epoch) = gate.enter(self.reactor) {
                    task.epoch = Some(epoch);
                    return self.run(task);
                }
                Need::Simple(task.range())
            }
        };
        task.raised = matches!(need, Need::Range(..) | Need::All);
        task.stage = Stage::AwaitsGate;
        let itl = Arc::clone(&task.itl);
        let key = self.tasks.insert(task);
        if let Some(task) = self.tasks.at(key) {
            task.key_at_gate = Some(key);
        }
        if let Some(epoch) = itl.lu.gate.enter_or_wait(self.reactor, key, need) {
            self.granted(key, epoch);
        }
    }

    fn task(
        &mut self,
        itl: &Arc<Itl>,
        row: &'static Row,
        command: &Command<'_>,
        owner: Owner,
        wanted: u64,
    ) -> Task {
        let mut cdb = [0; 32];
        let cdb_len = command.cdb.len().min(cdb.len());
        cdb[..cdb_len].copy_from_slice(&command.cdb[..cdb_len]);
        Task {
            owner,
            tag: command.tag,
            itl: Arc::clone(itl),
            row,
            attribute: command.attribute,
            stage: Stage::AwaitsData,
            cdb,
            cdb_len: cdb_len as u8,
            wanted,
            capacity_out: command.data_out,
            capacity_in: command.data_in,
            media: None,
            buffer: None,
            received: 0,
            own: OwnMemory::default(),
            table: None,
            epoch: None,
            key_at_gate: None,
            raised: false,
            aborted: None,
            since: 0,
            overdue: false,
            cancelled: None,
            sweeps: Vec::new(),
        }
    }

    /// A pool buffer; TASK SET FULL when memory for commands is used up, so that the initiator
    /// tries again with fewer at a time.
    pub(super) fn take(&self, len: usize) -> Result<PoolBuf, Fail> {
        self.pool.take(len).ok_or(Fail::Status(Status::TASK_SET_FULL))
    }

    /// Ends a command that never became a task.
    fn refuse(&mut self, itl: &Arc<Itl>, command: &Command<'_>, owner: Owner, fail: Fail) {
        let mut response = Response::good(command.tag);
        self.fill_failure(itl, command.cdb, fail, &mut response);
        response.data_out = Residual::of(0, command.data_out);
        response.data_in = Residual::of(0, command.data_in);
        self.complete(owner, response, DataIn::None);
    }

    pub(super) fn complete(&mut self, owner: Owner, response: Response, data: DataIn) {
        self.done.push(Completion { owner, outcome: Outcome::Respond, response, data });
    }

    /// A command for a LUN that has no logical unit, or for a well-known one.
    fn submit_absent(
        &mut self,
        nexus: &mut NexusView,
        command: &Command<'_>,
        memory: Memory<'_>,
        owner: Owner,
    ) {
        let mut reply = std::mem::take(&mut self.reply);
        reply.clear();
        let well_known = command.lun == Lun::REPORT_LUNS;
        let info = Arc::clone(nexus.info());
        let result = absent::answer(command.cdb, &info, nexus.table(), well_known, &mut reply);
        let mut response = Response::good(command.tag);
        response.data_out = Residual::of(0, command.data_out);
        response.data_in = Residual::of(0, command.data_in);
        let mut data = DataIn::None;
        match result {
            Ok(allocation) => {
                let wanted = allocation.min(reply.len() as u64);
                let placed = self.place(&reply, wanted, command.data_in, memory);
                match placed {
                    Ok(placed) => data = placed,
                    Err(_) => response.status = Status::TASK_SET_FULL,
                }
                response.data_in = Residual::of(wanted, command.data_in);
            }
            Err(Fail::Check(sense)) => {
                response.status = Status::CHECK_CONDITION;
                response.sense = sense.encode(Modes::default().descriptor_sense());
            }
            Err(Fail::Status(status)) => response.status = status,
        }
        self.reply = reply;
        self.complete(owner, response, data);
    }

    /// Puts an answer where the transport finds it.
    fn place(
        &mut self,
        reply: &[u8],
        wanted: u64,
        capacity: u32,
        memory: Memory<'_>,
    ) -> Result<DataIn, Fail> {
        let moved = wanted.min(u64::from(capacity)) as usize;
        let bytes = reply.get(..moved).unwrap_or(reply);
        match memory {
            _ if bytes.is_empty() => Ok(DataIn::None),
            Memory::Pool => self.in_buffer(bytes),
            Memory::Own { into, .. } => Ok(DataIn::Placed(sg::scatter(bytes, into))),
        }
    }

    pub(super) fn in_buffer(&mut self, bytes: &[u8]) -> Result<DataIn, Fail> {
        let mut buffer = self.take(bytes.len())?;
        if let Some(room) = buffer.bytes_mut().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        Ok(DataIn::Buffer(buffer, bytes.len()))
    }
}

/// Works out a media operation: its blocks, and how many bytes the CDB asks for.
///
/// An initiator may expect fewer bytes than that. A read then still reads whole blocks; a write
/// writes the whole blocks that were sent.
fn media(itl: &Itl, op: Op, extent: rw::Extent, capacity: u32) -> Result<(Media, u64), Fail> {
    let lu = &itl.lu;
    let blocks = u64::from(extent.blocks);
    super::call::check_range(extent.lba, blocks, lu.blocks())?;
    let size = u64::from(lu.block_size());
    let wanted = blocks * size;
    if wanted > u64::from(limits::MAX_TRANSFER) {
        return Err(Sense::INVALID_FIELD_IN_CDB.into());
    }
    let moved = wanted.min(u64::from(capacity));
    let whole = match op {
        Op::Read => moved.div_ceil(size),
        Op::Write { .. } | Op::Flush => moved / size,
    };
    let len = (whole * size) as usize;
    Ok((Media { op, lba: extent.lba, blocks: whole, len }, wanted))
}

/// The checks that are needed only when something out of the ordinary holds, in the order of SAM-5:
/// ACA, unit attention, reservation, readiness, write protection.
fn check(itl: &Itl, row: Option<&'static Row>, command: &Command<'_>) -> Result<(), Fail> {
    let lu = &itl.lu;
    let flags = lu.flags();
    if flags & lu::flag::GONE != 0 {
        return Err(Sense::LUN_NOT_SUPPORTED.into());
    }
    check_aca(itl, flags, row, command)?;
    let attention = itl.attention();
    if attention & bit::UNIT_ATTENTION != 0
        && !row.is_some_and(|row| row.has(flag::NO_ATTENTION))
        && let Some(condition) = itl.take_attention()
    {
        return Err(condition.sense().into());
    }
    let Some(row) = row else { return Ok(()) };
    let denied = match row.access {
        Access::Always | Access::Own => 0,
        Access::Read => bit::READ_DENIED | bit::LEGACY_DENIED,
        Access::Write => bit::WRITE_DENIED | bit::LEGACY_DENIED,
        Access::NotLegacy => bit::LEGACY_DENIED,
    };
    if attention & denied != 0 {
        return Err(Fail::Status(Status::RESERVATION_CONFLICT));
    }
    check_medium(lu, flags, row)?;
    Ok(())
}

/// Whether the medium takes the command: readiness and write protection.
fn check_medium(lu: &LogicalUnit, flags: u32, row: &Row) -> Result<(), Sense> {
    if flags & lu::flag::NOT_READY != 0 && !row.has(flag::NOT_READY_OK) {
        lu.readiness()?;
    }
    if flags & lu::flag::AWAY != 0 && !row.needs_no_state() {
        return Err(Sense::BECOMING_READY);
    }
    if flags & lu::flag::WRITE_PROTECTED != 0 && row.has(flag::WRITES) {
        return Err(Sense::WRITE_PROTECTED);
    }
    Ok(())
}

impl Task {
    /// Whether a task that waited (for data, at the gate) still meets a medium that takes it: it may
    /// have been ejected, formatted or shrunk meanwhile.
    pub(super) fn still_allowed(&self) -> Result<(), Fail> {
        let lu = &self.itl.lu;
        check_medium(lu, lu.flags(), self.row)?;
        if let Some(media) = self.media {
            super::call::check_range(media.lba, media.blocks, lu.blocks())?;
        }
        Ok(())
    }
}

/// The task attribute, and an established ACA condition (SAM-5 5.10).
fn check_aca(
    itl: &Itl,
    flags: u32,
    row: Option<&'static Row>,
    command: &Command<'_>,
) -> Result<(), Fail> {
    let faulted = if flags & lu::flag::ACA == 0 { None } else { itl.lu.state().aca };
    let is_aca = command.attribute == TaskAttribute::Aca;
    match faulted {
        None if is_aca => Err(INVALID_MESSAGE.into()),
        None => match command.attribute {
            TaskAttribute::Unknown(_) => Err(INVALID_MESSAGE.into()),
            _ => Ok(()),
        },
        Some(nexus) if nexus == itl.nexus.id => {
            if is_aca {
                Ok(())
            } else {
                Err(Fail::Status(Status::ACA_ACTIVE))
            }
        }
        // PREEMPT AND ABORT gets through, to free a logical unit from a dead initiator.
        Some(_)
            if row.is_some_and(|row| row.opcode == 0x5F) && service_action(command.cdb) == 0x05 =>
        {
            Ok(())
        }
        Some(_) => {
            Err(Fail::Status(if naca(command.cdb) { Status::ACA_ACTIVE } else { Status::BUSY }))
        }
    }
}

/// INVALID MESSAGE ERROR: a task attribute that does not fit.
const INVALID_MESSAGE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x49, 0x00);

/// The NACA bit of a CDB's CONTROL byte, which stands where the opcode's group says (SAM-5 5.2).
pub(super) fn naca(cdb: &[u8]) -> bool {
    let at = match cdb.first().map_or(0, |opcode| opcode >> 5) {
        0 => 5,
        1 | 2 => 9,
        3 => 1,
        4 => 15,
        _ => 11,
    };
    cdb.get(at).is_some_and(|control| control & 0x04 != 0)
}
