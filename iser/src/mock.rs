//! A connection that is none: both sides in one process, for tests on machines without RDMA.
//!
//! It keeps the order that a reliable connection keeps, and what a test needs to see: which message
//! came with which flags, and where data was written when it came.

use crate::{
    greeting::Abilities,
    memory::Memory,
    mover::{Iser, Link},
    verbs::{Done, Verbs},
};
use iscsi::{
    applicant::Arrival,
    endpoint::{Note, Peer},
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma::{Event, Remote, SendFlags, Setup, TooLong, WorkError};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use vscsi_target::{
    engine::Completion,
    reactor::{self, Cx, Ready},
};

/// What lies between the two sides.
#[derive(Debug)]
pub struct Wire {
    state: Mutex<State>,
    changed: Condvar,
    events: EventFd,
    completions: EventFd,
    private: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    to_target: VecDeque<Vec<u8>>,
    to_initiator: VecDeque<Message>,
    /// The initiator's memory by key: the address of its first byte, and the bytes.
    memory: BTreeMap<u32, (u64, Vec<u8>)>,
    /// Reads are not carried out.
    hold: bool,
    /// Reads asked for and not ended.
    reads: usize,
    gone: bool,
    closed: bool,
}

/// A message to the initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// How it was sent.
    pub flags: SendFlags,
    /// RDMA Reads that were in progress when it was sent.
    pub reads: usize,
}

impl Wire {
    /// A connection whose initiator says this by private data.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(private: &[u8]) -> io::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            events: EventFd::from_flags(flags)?,
            completions: EventFd::from_flags(flags)?,
            private: private.to_vec(),
        }))
    }

    /// Sends a message to the target.
    pub fn send(&self, message: Vec<u8>) {
        self.state().to_target.push_back(message);
        let _ = self.completions.write(1);
    }

    /// The next message of the target; `None` when the target has closed, or keeps silent for `limit`.
    pub fn receive(&self, limit: Duration) -> Option<Message> {
        let state = self.state();
        let waits = |state: &mut State| state.to_initiator.is_empty() && !state.closed;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.to_initiator.pop_front()
    }

    /// Waits until the target has closed the connection: whether it did within `limit`.
    pub fn is_closed(&self, limit: Duration) -> bool {
        let state = self.state();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.closed
    }

    /// Registers memory that begins at an address.
    pub fn register(&self, key: u32, base: u64, bytes: Vec<u8>) {
        self.state().memory.insert(key, (base, bytes));
    }

    /// What is in memory, which is not registered any more.
    pub fn take(&self, key: u32) -> Option<Vec<u8>> {
        self.state().memory.remove(&key).map(|(_, bytes)| bytes)
    }

    /// Lets RDMA Reads of the target wait, or go on.
    pub fn hold(&self, hold: bool) {
        self.state().hold = hold;
        let _ = self.completions.write(1);
    }

    /// RDMA Reads that the target asked for and that have not ended.
    pub fn reads(&self) -> usize {
        self.state().reads
    }

    /// Messages that the target has not taken yet; none when it has closed.
    pub fn unread(&self) -> usize {
        let state = self.state();
        if state.closed { 0 } else { state.to_target.len() }
    }

    /// The initiator disconnects.
    pub fn disconnect(&self) {
        self.state().gone = true;
        let _ = self.events.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn at(&mut self, remote: &Remote) -> Option<&mut [u8]> {
        let (base, bytes) = self.memory.get_mut(&remote.key)?;
        let start = usize::try_from(remote.addr.checked_sub(*base)?).ok()?;
        bytes.get_mut(start..start.checked_add(remote.len as usize)?)
    }
}

/// The target's side.
#[derive(Debug)]
pub struct Mock {
    wire: Arc<Wire>,
    slot: usize,
    work: VecDeque<Work>,
    reads: VecDeque<Read>,
    done: VecDeque<Done<Vec<u8>, Memory>>,
    broken: bool,
    told: bool,
}

#[derive(Debug)]
enum Work {
    Send(Vec<u8>, SendFlags),
    Write(Memory, Remote),
}

#[derive(Debug)]
struct Read {
    memory: Memory,
    offset: usize,
    remote: Remote,
    cookie: u64,
    posted: bool,
}

/// IBV_WC_REM_ACCESS_ERR.
const ACCESS: WorkError = WorkError { status: 10 };

impl Mock {
    fn break_down(&mut self) {
        if !self.broken {
            self.broken = true;
            self.done.push_back(Done::Broken(ACCESS));
        }
    }

    fn run_reads(&mut self) {
        let wire = Arc::clone(&self.wire);
        let mut state = wire.state();
        for read in &mut self.reads {
            read.posted = true;
        }
        if state.hold {
            return;
        }
        while let Some(mut read) = self.reads.pop_front() {
            state.reads -= 1;
            let into = read.memory.bytes_mut().get_mut(read.offset..).unwrap_or_default();
            match (state.at(&read.remote), into.get_mut(..read.remote.len as usize)) {
                (Some(from), Some(into)) => {
                    into.copy_from_slice(from);
                    self.done.push_back(Done::Read { cookie: read.cookie, owner: read.memory });
                }
                _ => return self.break_down(),
            }
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.wire.state().closed = true;
        self.wire.changed.notify_all();
    }
}

impl Verbs for Mock {
    type Request = Arc<Wire>;
    type Buffer = Vec<u8>;
    type Owner = Memory;
    type Done = Done<Vec<u8>, Memory>;

    fn accept(wire: Arc<Wire>, setup: &Setup) -> io::Result<(Self, Abilities)> {
        let theirs = Abilities::parse(&wire.private);
        let mock = Self {
            wire,
            slot: setup.send_size as usize,
            work: VecDeque::new(),
            reads: VecDeque::new(),
            done: VecDeque::new(),
            broken: false,
            told: false,
        };
        Ok((mock, theirs))
    }

    fn descriptors(&self) -> [RawFd; 2] {
        [self.wire.events.as_raw_fd(), self.wire.completions.as_raw_fd()]
    }

    fn own(&self, memory: Memory) -> io::Result<Memory> {
        Ok(memory)
    }

    fn disown(owner: Memory) -> Memory {
        owner
    }

    fn reads_at_once(&self) -> u8 {
        4
    }

    fn event(&mut self) -> Option<Event> {
        let _ = self.wire.events.read();
        let gone = self.wire.state().gone && !self.told;
        self.told |= gone;
        gone.then_some(Event::Disconnected)
    }

    fn notified(&mut self) {
        let _ = self.wire.completions.read();
    }

    fn arm(&mut self) -> bool {
        self.run_reads();
        !self.done.is_empty() || !self.wire.state().to_target.is_empty()
    }

    fn poll(&mut self, done: &mut Vec<Self::Done>) -> bool {
        self.run_reads();
        let before = done.len();
        done.extend(self.done.drain(..));
        if !self.broken {
            let messages = std::mem::take(&mut self.wire.state().to_target);
            done.extend(
                messages.into_iter().map(|buffer| Done::Received { len: buffer.len(), buffer }),
            );
        }
        done.len() > before
    }

    fn done(done: Self::Done) -> Done<Vec<u8>, Memory> {
        done
    }

    fn received<R>(&self, buffer: &Vec<u8>, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        look(&buffer[..len.min(buffer.len())])
    }

    fn repost(&mut self, _buffer: Vec<u8>) {}

    fn send(&mut self, parts: &[&[u8]], flags: SendFlags) -> Result<(), TooLong> {
        let bytes = parts.concat();
        if bytes.len() > self.slot {
            return Err(TooLong { len: bytes.len(), most: self.slot });
        }
        self.work.push_back(Work::Send(bytes, flags));
        Ok(())
    }

    fn send_owned(&mut self, owner: Memory, len: usize, flags: SendFlags) {
        self.work.push_back(Work::Send(owner.bytes()[..len].to_vec(), flags));
    }

    fn write(&mut self, owner: Memory, len: usize, remote: Remote) {
        debug_assert_eq!(len, remote.len as usize);
        self.work.push_back(Work::Write(owner, remote));
    }

    fn read(
        &mut self,
        memory: Memory,
        offset: usize,
        remote: Remote,
        cookie: u64,
    ) -> Option<Memory> {
        self.reads.push_back(Read { memory, offset, remote, cookie, posted: false });
        self.wire.state().reads += 1;
        None
    }

    fn cancel(&mut self, cookie: u64) -> Option<Memory> {
        let at = self.reads.iter().position(|read| read.cookie == cookie && !read.posted)?;
        self.wire.state().reads -= 1;
        self.reads.remove(at).map(|read| read.memory)
    }

    fn flush(&mut self) -> Result<(), WorkError> {
        self.run_reads();
        // A message that waits for reads keeps back what comes after it.
        while let Some(work) = self.work.pop_front() {
            if self.broken {
                return Err(ACCESS);
            }
            if let Work::Send(_, SendFlags { fence: true, .. }) = work
                && self.reads.iter().any(|read| read.posted)
            {
                self.work.push_front(work);
                return Ok(());
            }
            let mut state = self.wire.state();
            match work {
                Work::Send(bytes, flags) => {
                    let reads = state.reads;
                    state.to_initiator.push_back(Message { bytes, flags, reads });
                }
                Work::Write(memory, remote) => match state.at(&remote) {
                    Some(to) => to.copy_from_slice(&memory.bytes()[..remote.len as usize]),
                    None => {
                        drop(state);
                        self.break_down();
                        return Err(ACCESS);
                    }
                },
            }
            drop(state);
            self.wire.changed.notify_all();
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.work.is_empty() && self.reads.is_empty()
    }

    fn queued(&self) -> usize {
        self.work.len() + self.reads.len()
    }

    fn disconnect(&mut self) {
        let mut state = self.wire.state();
        state.closed = true;
        state.gone = true;
        drop(state);
        self.wire.changed.notify_all();
        let _ = self.wire.events.write(1);
    }
}

/// An initiator at a mock connection, as an endpoint.
#[derive(Debug)]
pub struct Endpoint(Peer<Iser<Mock>>);

impl reactor::Endpoint for Endpoint {
    type Seed = Arrival<Link<Arc<Wire>>>;
    type Note = Note;

    fn open(seed: Self::Seed, cx: &mut Cx<'_>) -> Option<Self> {
        Peer::open(seed, cx).map(Self)
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        self.0.note(note, cx);
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        self.0.ready(source, ready, cx);
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        self.0.completed(completion, cx);
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        self.0.expired(cx);
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        self.0.flush(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.0.poll(cx)
    }

    fn rest(&mut self, _cx: &mut Cx<'_>) -> bool {
        self.0.rest()
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        self.0.stop(cx);
    }
}
