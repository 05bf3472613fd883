//! A TCMU device as an endpoint of a reactor: commands from the ring to the core, responses back.
//! The hot path of a kernel fabric.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::AsRawFd,
    sync::{Arc, LazyLock, mpsc::SyncSender},
};

use libsrp::{Command, Lun, Response, Status, Tag, TaskFunction, TaskManagement};
use vscsi_target::{
    engine::{Completion, Memory, Outcome, Owner, Submitted},
    model::{Nexus, NexusView},
    opcode::{self, Lane, Transfer},
    reactor::{Cx, Ready},
};

use super::{
    layout,
    ring::{Answer, Request, Ring, RingError, Taken},
};
use crate::{controller::Place, memory::guard};

/// What makes a device's endpoint.
#[derive(Debug)]
pub struct Seed {
    /// Its name, for messages.
    pub name: Arc<str>,
    /// The device's file: events are read from it, completions are told by writing.
    pub file: File,
    /// Its ring.
    pub ring: Ring,
    /// The nexus by which its commands reach the core.
    pub nexus: Arc<Nexus>,
    /// The logical unit they are for.
    pub lun: Lun,
    /// Milliseconds after which the kernel gives a command up.
    pub patience: u64,
    /// Told where the endpoint is.
    pub opened: SyncSender<Place>,
}

/// A message to a device's endpoint. A sender that is dropped means that the endpoint is gone.
#[derive(Debug)]
pub enum Note {
    /// Look at the LUN map: what was removed is not held any more.
    Refresh,
    /// Finish what is in progress and let go of the device.
    Close(SyncSender<()>),
}

/// A device's endpoint.
#[derive(Debug)]
pub struct Disk {
    name: Arc<str>,
    file: File,
    ring: Ring,
    view: NexusView,
    lun: Lun,
    patience: u64,
    /// The one that is being taken.
    request: Request,
    /// How often the kernel emptied the ring: what was in progress then is not answered.
    epoch: u32,
    /// Tasks that the core has, of all epochs, and requests to end tasks.
    in_progress: u32,
    /// The first byte of the CDB and the room for Data-In, by command id.
    commands: Vec<(u8, u32)>,
    /// Commands that an earlier process had.
    again: u32,
    /// Commands that the kernel has given up, or may have.
    too_old: u32,
    /// The ring makes no sense; nothing more is taken from it.
    broken: bool,
    watched: bool,
    closing: Option<SyncSender<()>>,
    /// How often any shared memory was lost when it was last asked whether this one was.
    losses: u64,
}

impl Disk {
    /// Makes the endpoint of a device, and takes up what is in its ring.
    pub fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        let Seed { name, file, ring, nexus, lun, patience, opened } = seed;
        if let Err(error) = cx.watch(file.as_raw_fd(), 0, true, false) {
            tracing::error!(device = %name, %error, "cannot watch a TCMU device");
            return None;
        }
        let place = Place { reactor: cx.reactor, endpoint: cx.me };
        if opened.send(place).is_err() {
            // Whoever asked gave up.
            cx.unwatch(file.as_raw_fd());
            return None;
        }
        let mut disk = Self {
            name,
            file,
            ring,
            view: NexusView::new(nexus),
            lun,
            patience,
            request: Request::default(),
            epoch: 0,
            in_progress: 0,
            commands: Vec::new(),
            again: 0,
            too_old: 0,
            broken: false,
            watched: true,
            closing: None,
            losses: 0,
        };
        // Nobody tells of what was there before.
        while disk.fetch(cx) {}
        // The process before this one may have been killed before it told the kernel.
        disk.tell();
        if disk.again + disk.too_old > 0 {
            tracing::info!(
                device = %disk.name,
                again = disk.again,
                too_old = disk.too_old,
                "commands in progress when the last process ended are taken up"
            );
        }
        Some(disk)
    }

    /// A message arrived.
    pub fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        match note {
            Note::Refresh => {
                self.view.table();
            }
            Note::Close(done) => {
                self.closing = Some(done);
                self.unwatch(cx);
            }
        }
    }

    /// The kernel tells of commands.
    pub fn ready(&mut self, _source: u32, _ready: Ready, cx: &mut Cx<'_>) {
        let mut count = [0; 4];
        match self.file.read(&mut count) {
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The device is going away; its removal is told elsewhere.
            Err(_) => self.unwatch(cx),
        }
        self.fetch(cx);
    }

    /// The core finished a command, or a request to end some.
    #[inline]
    pub fn completed(&mut self, completion: &mut Completion, _cx: &mut Cx<'_>) {
        self.in_progress = self.in_progress.saturating_sub(1);
        let cookie = completion.owner.cookie;
        if cookie & NO_COMMAND != 0 || (cookie >> 16) as u32 != self.epoch {
            return;
        }
        let id = cookie as u16;
        match completion.outcome {
            Outcome::Respond => self.respond(id, &completion.response, completion.data.len()),
            // The kernel waits for the end of what it aborted.
            Outcome::Silent => self.fail(id, Status::TASK_ABORTED),
        }
    }

    /// Not used: a device has no timers.
    pub fn expired(&mut self, cx: &mut Cx<'_>) {
        self.fetch(cx);
    }

    /// Gives back what is answered, with one word to the kernel.
    #[inline]
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        if self.ring.publish() {
            self.tell();
        }
        if self.losses != guard::losses() {
            self.losses = guard::losses();
            if self.ring.is_lost() {
                self.give_up(RingError::MemoryLost);
            }
        }
        if self.closing.is_some() && self.in_progress == 0 {
            self.unwatch(cx);
            cx.close();
        }
    }

    /// Takes commands, if there are any.
    #[inline]
    pub fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.fetch(cx)
    }

    /// Whether there is something to take before the reactor sleeps. The kernel always tells.
    pub fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        self.takes() && self.ring.has_more()
    }

    /// The reactor stops: what is in progress is finished first, what is in the ring stays there.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        if self.closing.is_none() {
            let (nobody, _) = std::sync::mpsc::sync_channel(1);
            self.closing = Some(nobody);
        }
        self.unwatch(cx);
    }

    fn takes(&self) -> bool {
        !self.broken && self.closing.is_none()
    }

    /// Takes a batch of commands; whether there was anything.
    #[inline]
    fn fetch(&mut self, cx: &mut Cx<'_>) -> bool {
        if !self.takes() {
            return false;
        }
        let mut any = false;
        for _ in 0..BATCH {
            match self.ring.take(&mut self.request, cx.now / NANOS_PER_MILLI) {
                Ok(Taken::Empty) => break,
                Ok(Taken::Command) => self.submit(cx),
                Ok(Taken::Manage) => self.manage(cx),
                Ok(Taken::Reset) => self.begin_anew(cx),
                Err(error) => {
                    self.give_up(error);
                    return true;
                }
            }
            any = true;
        }
        any
    }

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>) {
        let Self { request, view, .. } = self;
        let (id, cdb) = (request.id, request.cdb());
        self.again += u32::from(request.again);
        // It may be given up by the kernel, and its initiator have gone on since.
        if (cx.now / NANOS_PER_MILLI).saturating_sub(request.since) >= self.patience {
            self.too_old += 1;
            self.fail(id, Status::BUSY);
            return;
        }
        // Nobody knows whether it was executed before the restart, or who did knew and is gone: the
        // initiator decides.
        if request.torn || request.again && !opcode::may_repeat(cdb) {
            self.fail(id, Status::TASK_ABORTED);
            return;
        }
        // Which way the data goes is the CDB's affair, except where it goes both ways.
        let (into, data_in) = match request.data_in.is_empty() {
            true => (&request.data, request.data_len),
            false => (&request.data_in, request.data_in_len),
        };
        let at = usize::from(id);
        if self.commands.len() <= at {
            self.commands.resize(at + 1, (0, 0));
        }
        if let Some(command) = self.commands.get_mut(at) {
            *command = (cdb.first().copied().unwrap_or(0), data_in);
        }
        let cookie = u64::from(self.epoch) << 16 | u64::from(id);
        let command = Command {
            tag: Tag::from_u64(cookie),
            lun: self.lun,
            attribute: libsrp::TaskAttribute::Simple,
            priority: 0,
            cdb,
            data_out: request.data_len,
            data_in,
        };
        let memory = Memory::Own { out: &request.data, into };
        self.in_progress += 1;
        match cx.engine.submit(view, &command, memory, Owner { endpoint: cx.me, cookie }) {
            Submitted::Accepted => {}
            // It has the data already.
            Submitted::NeedsData(data) => cx.engine.abandon(data.token),
        }
    }

    /// The kernel performed a task management function: the commands it concerns end early here.
    #[cold]
    fn manage(&mut self, cx: &mut Cx<'_>) {
        let owner = Owner { endpoint: cx.me, cookie: NO_COMMAND };
        let tag = Tag::from_u64(NO_COMMAND);
        let lun = self.lun;
        let mut ask = |view: &mut NexusView, function, managed| {
            cx.engine.manage(view, &TaskManagement { tag, lun, function, managed }, owner);
        };
        let function = layout::function(self.request.function);
        tracing::info!(
            device = %self.name,
            commands = self.request.ids.len(),
            "task management by the kernel: {function:?}"
        );
        match function {
            TaskFunction::LogicalUnitReset
            | TaskFunction::ClearTaskSet
            | TaskFunction::ClearAca => {
                self.in_progress += 1;
                ask(&mut self.view, function, Tag::default());
            }
            // All of the kernel's initiators are one nexus here: no others than those it names.
            _ => {
                for &id in &self.request.ids {
                    self.in_progress += 1;
                    let managed = Tag::from_u64(u64::from(self.epoch) << 16 | u64::from(id));
                    ask(&mut self.view, TaskFunction::AbortTask, managed);
                }
            }
        }
    }

    /// The kernel answered the commands in progress itself (`action/reset_ring`).
    #[cold]
    fn begin_anew(&mut self, cx: &mut Cx<'_>) {
        tracing::warn!(
            device = %self.name,
            in_progress = self.in_progress,
            "the kernel emptied the ring"
        );
        self.epoch = self.epoch.wrapping_add(1);
        if self.in_progress > 0 {
            self.in_progress += 1;
            let owner = Owner { endpoint: cx.me, cookie: NO_COMMAND };
            cx.engine.abort_nexus(&self.view, owner);
        }
    }

    /// Answers as the core does; `moved` bytes of Data-In were placed.
    #[inline]
    fn respond(&mut self, id: u16, response: &Response, moved: usize) {
        let &(opcode, room) = self.commands.get(usize::from(id)).unwrap_or(&(0, 0));
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        let is_short = moved < room && response.status == Status::GOOD && reads(opcode);
        let mut read = None;
        if is_short {
            if moved > 0 && self.ring.tells_read_len() {
                read = Some(moved);
            } else {
                // The kernel takes all of it for what was read: not what others left there.
                self.ring.clear_data(id, moved);
            }
        }
        let sense = match response.status {
            Status::CHECK_CONDITION => response.sense.as_bytes(),
            _ => &[],
        };
        self.ring.answer(id, &Answer { status: response.status.0, sense, read });
    }

    fn fail(&mut self, id: u16, status: Status) {
        self.ring.answer(id, &Answer { status: status.0, ..Answer::default() });
    }

    /// Tells the kernel that there are responses; it deals with them before this returns.
    fn tell(&mut self) {
        if let Err(error) = self.file.write(&[0; 4]) {
            // A device that is going away answers its commands itself.
            tracing::debug!(device = %self.name, %error, "cannot tell the kernel of responses");
        }
    }

    #[cold]
    fn give_up(&mut self, error: RingError) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        tracing::error!(
            device = %self.name,
            "the ring cannot be read any further, and the device stops until it is made anew: {error}"
        );
    }

    fn unwatch(&mut self, cx: &mut Cx<'_>) {
        if std::mem::replace(&mut self.watched, false) {
            cx.unwatch(self.file.as_raw_fd());
        }
    }
}

/// Whether commands with this operation code have Data-In.
fn reads(opcode: u8) -> bool {
    static READS: LazyLock<[bool; 256]> = LazyLock::new(|| {
        let mut reads = [false; 256];
        for row in opcode::TABLE {
            let is_read = matches!(row.lane, Lane::Read) || matches!(row.transfer, Transfer::In(_));
            reads[usize::from(row.opcode)] |= is_read;
        }
        reads
    });
    READS[usize::from(opcode)]
}

const NANOS_PER_MILLI: u64 = 1_000_000;
/// Commands taken from a ring before the others have their turn.
const BATCH: usize = 64;
/// The cookie of a completion that is of no command of the ring.
const NO_COMMAND: u64 = 1 << 63;

#[cfg(test)]
mod tests;
