//! Requests: units out of the partition's memory, commands to the core, answers back. The hot path.

use libsrp::{
    Command, Lun,
    cmd::Cmd,
    descriptor::{DataBuffer, Descriptor, Descriptors},
    viosrp::crq::{ElementStatus, Message},
};
use vscsi_target::{
    engine::{Completion, Memory as Data, Owner, Submitted},
    limits,
    reactor::{
        Cx,
        sg::{self, Segment},
    },
    sense::{Sense, key},
};

use super::{
    super::{
        session::{
            Addressed, Payload, Reply, State, Step, TaskId, Violation, addressed, fail, tag_of,
            with_status,
        },
        window::{Access, Fault},
    },
    Server, count,
};

/// Where a unit is, until it is answered.
#[derive(Clone, Debug)]
pub(super) struct Place {
    ioba: u64,
    len: usize,
    /// The whole of it, if it is in one piece.
    segment: Option<Segment>,
    /// The map it is in.
    epoch: u32,
}

impl Server {
    /// Takes a unit that an element points at.
    #[inline]
    pub(super) fn request(&mut self, message: &Message, len: u32, cx: &mut Cx<'_>) {
        // Taken out while it is read, so that everything else can be used besides.
        let mut unit = std::mem::take(&mut self.unit);
        if let Some(unit) = unit.get_mut(..len as usize) {
            self.take_unit(message, unit, cx);
        }
        self.unit = unit;
    }

    #[inline]
    fn take_unit(&mut self, message: &Message, unit: &mut [u8], cx: &mut Cx<'_>) {
        let (ioba, len) = (message.address(), unit.len());
        self.list.clear();
        let found = self.memory.resolve(ioba, len as u32, Access::Both, &mut self.list);
        if let Err(fault) = found {
            return self.unanswerable(message, fault, unit, cx);
        }
        sg::gather(&self.list, unit);
        let segment = match self.list.as_slice() {
            [segment] => Some(*segment),
            _ => None,
        };
        let place = Place { ioba, len, segment, epoch: 0 };
        let was_logged_in = self.session.state() == State::LoggedIn;
        let step = self.session.unit(message, unit, &mut self.out);
        if !was_logged_in && self.session.state() == State::LoggedIn {
            count(&self.shared.logins);
        }
        match step {
            Step::Start { task, cmd } => {
                count(&self.shared.commands);
                let epoch = self.memory.hold();
                self.remember(task, Place { epoch, ..place });
                self.start(task, &cmd, cx);
            }
            Step::Manage { task, mut request } => {
                let epoch = self.memory.hold();
                self.remember(task, Place { epoch, ..place });
                let (view, lun) = match addressed(request.lun) {
                    Addressed::Unit { target, lun } => {
                        (self.views.get_mut(usize::from(target)), lun)
                    }
                    Addressed::WellKnown => {
                        (self.first.and_then(|at| self.views.get_mut(at)), Lun::REPORT_LUNS)
                    }
                    Addressed::Nothing => (None, NO_LUN),
                };
                request.lun = lun;
                let view = view.and_then(Option::as_mut).unwrap_or(&mut self.nobody);
                let owner = Owner { endpoint: cx.me, cookie: task.cookie() };
                cx.engine.manage(view, &request, owner);
            }
            Step::Reply(reply) => self.reply(&place, &reply),
            Step::Payload(payload) => self.payload(&place, &payload),
            Step::Nothing => {
                if self.session.can_report() {
                    self.report();
                }
            }
            Step::Violated(violation) => self.violated(&violation, cx),
        }
    }

    /// A unit that cannot be read and written: it is answered without its memory, if it can be named.
    fn unanswerable(&mut self, message: &Message, fault: Fault, unit: &mut [u8], cx: &mut Cx<'_>) {
        count(&self.shared.faults);
        let read = self.memory.read(message.address(), unit);
        let Some(tag) = read.ok().and_then(|()| tag_of(unit)) else {
            return self.violated(&Violation::Unreadable(fault), cx);
        };
        tracing::debug!(adapter = self.shared.config.name, "a unit cannot be answered: {fault}");
        self.outgoing.push(fail(message.format, ElementStatus::AdapterFail, tag).element);
    }

    #[inline]
    fn start(&mut self, task: TaskId, cmd: &Cmd<'_>, cx: &mut Cx<'_>) {
        let mut command = cmd.command();
        if let Err(sense) = self.find_data(cmd, &mut command) {
            count(&self.shared.faults);
            return self.refuse(task, sense);
        }
        let (view, lun) = match addressed(cmd.lun) {
            Addressed::Unit { target, lun } => (self.views.get_mut(usize::from(target)), lun),
            Addressed::WellKnown => {
                (self.first.and_then(|at| self.views.get_mut(at)), Lun::REPORT_LUNS)
            }
            Addressed::Nothing => (None, NO_LUN),
        };
        command.lun = lun;
        let view = match view.and_then(Option::as_mut) {
            Some(view) => view,
            // A target that is not there answers INQUIRY, saying so, and nothing else.
            None if command.cdb.first() == Some(&INQUIRY) => &mut self.nobody,
            None => return self.refuse(task, Sense::LUN_NOT_SUPPORTED),
        };
        let (out, into): (&[Segment], &[Segment]) =
            if command.data_in > 0 { (&[], &self.data) } else { (&self.data, &[]) };
        let owner = Owner { endpoint: cx.me, cookie: task.cookie() };
        match cx.engine.submit(view, &command, Data::Own { out, into }, owner) {
            Submitted::Accepted => {}
            // It has the data already.
            Submitted::NeedsData(data) => cx.engine.abandon(data.token),
        }
    }

    /// Finds where the data of a command is, and how much there is.
    #[inline]
    fn find_data(&mut self, cmd: &Cmd<'_>, command: &mut Command<'_>) -> Result<(), Sense> {
        self.data.clear();
        let is_in = command.data_in > 0;
        let (buffer, access) = if is_in {
            (&cmd.data.data_in, Access::Write)
        } else {
            (&cmd.data.data_out, Access::Read)
        };
        match buffer {
            DataBuffer::Direct(segment) => {
                self.gather(segment.len, [*segment].into_iter(), access).map_err(unreachable)
            }
            DataBuffer::Indirect(indirect) => {
                let Some(table) = indirect.external_table() else {
                    let list = indirect.list().iter();
                    return self.gather(indirect.capacity(), list, access).map_err(unreachable);
                };
                let mut bytes = std::mem::take(&mut self.table);
                let found = self.external(table, indirect.total_len(), access, &mut bytes);
                self.table = bytes;
                let capacity = found.map_err(unreachable)?;
                (command.data_in, command.data_out) =
                    if is_in { (capacity, 0) } else { (0, capacity) };
                Ok(())
            }
            DataBuffer::None | DataBuffer::Immediate(_) => Ok(()),
        }
    }

    /// Reads a descriptor table, and finds what it lists: how many bytes that is.
    fn external(
        &mut self,
        table: Descriptor,
        total_len: u32,
        access: Access,
        bytes: &mut Vec<u8>,
    ) -> Result<u32, Fault> {
        // The rules of the channel bound it.
        bytes.resize(table.len as usize, 0);
        self.memory.read(table.address, bytes)?;
        // Its length is a multiple of a descriptor's.
        let list = Descriptors::from_table(bytes).unwrap_or_default();
        let capacity = list.capacity(total_len);
        self.gather(capacity, list.iter(), access)?;
        Ok(capacity)
    }

    /// Finds the first `capacity` bytes of a list, or as many as the core moves at most.
    #[inline]
    fn gather(
        &mut self,
        capacity: u32,
        list: impl Iterator<Item = Descriptor>,
        access: Access,
    ) -> Result<(), Fault> {
        let mut left = capacity.min(limits::MAX_TRANSFER);
        for segment in list {
            let part = segment.len.min(left);
            self.memory.resolve(segment.address, part, access, &mut self.data)?;
            left -= part;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The core has completed a command or a function.
    #[inline]
    pub(super) fn ended(&mut self, completion: &Completion) {
        let task = TaskId::from_cookie(completion.owner.cookie);
        let reply =
            self.session.ended(task, completion.outcome, &completion.response, &mut self.out);
        self.conclude(task, reply);
    }

    fn refuse(&mut self, task: TaskId, sense: Sense) {
        let reply = self.session.refused(task, sense, &mut self.out);
        self.conclude(task, reply);
    }

    #[inline]
    fn conclude(&mut self, task: TaskId, reply: Option<Reply>) {
        let Some(place) = self.places.get(task.slot()).cloned() else { return };
        if let Some(reply) = reply {
            self.reply(&place, &reply);
        }
        self.memory.release(place.epoch);
    }

    /// Writes an answer over the unit it answers, and has its element delivered.
    #[inline]
    fn reply(&mut self, place: &Place, reply: &Reply) {
        let bytes = self.out.get(..reply.len).unwrap_or_default();
        let written = match &place.segment {
            // An answer may be longer than what it answers: clients have room for that.
            Some(segment) if reply.len <= place.len => {
                sg::scatter(bytes, std::slice::from_ref(segment));
                Ok(())
            }
            _ => self.memory.write(place.ioba, bytes),
        };
        match written {
            Ok(()) => self.outgoing.push(reply.element),
            Err(fault) => {
                count(&self.shared.faults);
                tracing::debug!(adapter = self.shared.config.name, "an answer is lost: {fault}");
                self.outgoing.push(with_status(&reply.element, ElementStatus::AdapterFail));
            }
        }
    }

    fn payload(&mut self, place: &Place, payload: &Payload) {
        let mut read = [0; MOST_PAYLOAD];
        let read = read.get_mut(..payload.len as usize).unwrap_or_default();
        let found = self.memory.read(payload.buffer, read);
        let read = found.is_ok().then_some(&*read);
        let mut write = std::mem::take(&mut self.payload);
        let mut reply = self.session.payload(payload, read, &mut write, &mut self.out);
        if !write.is_empty() && self.memory.write(payload.buffer, &write).is_err() {
            reply = self.session.payload_failed(payload, &mut self.out);
        }
        self.payload = write;
        self.reply(place, &reply);
    }

    #[inline]
    fn remember(&mut self, task: TaskId, place: Place) {
        match self.places.get_mut(task.slot()) {
            Some(entry) => *entry = place,
            // Slots are taken into use one after the other.
            None => self.places.push(place),
        }
    }
}

/// What a command is told whose data cannot be reached: LOGICAL UNIT COMMUNICATION FAILURE.
fn unreachable(fault: Fault) -> Sense {
    tracing::debug!("the data of a command cannot be reached: {fault}");
    Sense::new(key::ABORTED_COMMAND, 0x08, 0x00)
}

const INQUIRY: u8 = 0x12;
/// Addresses nothing.
const NO_LUN: Lun = Lun([0xFF; 8]);
/// The longest payload of a datagram that is read.
const MOST_PAYLOAD: usize = 4096;
