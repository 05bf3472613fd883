//! Tasks: what a transport hands in and gets back, and the table of those in progress.

use super::manage::Sweep;
use crate::{
    backend::Op,
    model::{Itl, nexus::LunTable, reservation::NexusId},
    opcode::{Access, Fail, Lane, Row},
    reactor::{
        EndpointId,
        pool::{DetachedBuf, Pool, PoolBuf},
        sg::{self, Segment},
    },
};
use libsrp::{Response, Tag, TaskAttribute};
use std::{
    io, mem,
    sync::{Arc, atomic::AtomicBool},
};

/// Names a task on its reactor; stale keys name nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskKey(pub u64);

/// Who gets the completion: an endpoint and a number of its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The endpoint's own name for the task.
    pub cookie: u64,
}

/// A task that waits for the transport to bring its Data-Out. Linear: give it back to the engine
/// with `data_arrived`, `fail` or `abandon`; dropping it is a bug, which a debug build panics on.
#[derive(Debug)]
#[must_use]
pub struct TaskToken {
    key: TaskKey,
}

impl TaskToken {
    pub(super) fn new(key: TaskKey) -> Self {
        Self { key }
    }

    pub(super) fn spend(self) -> TaskKey {
        let key = self.key;
        mem::forget(self);
        key
    }
}

impl Drop for TaskToken {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "task {:?} was dropped", self.key);
    }
}

/// Data-Out that the transport has to bring: fill `buffer[..len]`, then give both back.
#[derive(Debug)]
pub struct DataOut {
    /// The task.
    pub token: TaskToken,
    /// Where the data goes, at least `len` bytes.
    pub buffer: PoolBuf,
    /// How many bytes the command needs: what its CDB asks for, at most what the initiator sends.
    pub len: usize,
}

/// Where a completed command's Data-In is. Dropping it gives the memory back, so keep it until the
/// data is sent.
#[derive(Debug)]
pub enum DataIn {
    /// There is none.
    None,
    /// In a pool buffer.
    Buffer(PoolBuf, usize),
    /// In the backend's own memory, which stays as it is addressed until this is dropped.
    Lent(Segment, Hold),
    /// It was put into the transport's own memory: this many bytes.
    Placed(usize),
}

impl DataIn {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Buffer(_, len) | Self::Placed(len) => *len,
            Self::Lent(segment, _) => segment.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in a pool buffer, and how many: for transports whose device reaches only memory
    /// that was registered, or that need memory nobody writes to any more. What a backend lends is
    /// copied and the loan ends.
    ///
    /// # Errors
    /// The data as it was, if there is none here ([`DataIn::None`], [`DataIn::Placed`]) or the pool
    /// has no buffer for it.
    pub fn into_buffer(self, pool: &Pool) -> Result<(PoolBuf, usize), Self> {
        match self {
            Self::Buffer(buffer, len) => Ok((buffer, len)),
            Self::Lent(segment, hold) => match pool.take(segment.len) {
                Some(mut buffer) => {
                    let len = sg::gather(&[segment], buffer.bytes_mut());
                    Ok((buffer, len))
                }
                None => Err(Self::Lent(segment, hold)),
            },
            Self::None | Self::Placed(_) => Err(self),
        }
    }
}

/// Keeps a logical unit alive, and a read counted in its gate, while its memory is lent.
#[derive(Debug)]
pub struct Hold {
    pub(super) itl: Arc<Itl>,
    pub(super) reactor: u16,
    pub(super) epoch: u8,
}

impl Hold {
    /// The I_T_L nexus that was read through.
    pub fn itl(&self) -> &Arc<Itl> {
        &self.itl
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.itl.lu.gate.leave(self.reactor, self.epoch);
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send the response.
    Respond,
    /// It was aborted: send nothing (SAM-5 5.6); the data is not valid.
    Silent,
}

/// A finished task.
#[derive(Debug)]
pub struct Completion {
    /// Whose it is.
    pub owner: Owner,
    /// Whether to respond.
    pub outcome: Outcome,
    /// What to respond.
    pub response: Response,
    /// Data-In to send before the response.
    pub data: DataIn,
}

impl Completion {
    /// Takes the data out, to keep it until it is sent.
    pub fn take_data(&mut self) -> DataIn {
        mem::replace(&mut self.data, DataIn::None)
    }
}

/// The transport's memory for a command's data.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// It has none: the engine lends pool buffers, and asks for Data-Out when it knows how much.
    Pool,
    /// Its own (guest memory): readable and writable until the completion.
    Own {
        /// Data-Out, complete already.
        out: &'a [Segment],
        /// For Data-In.
        into: &'a [Segment],
    },
}

/// What became of a submitted command.
#[derive(Debug)]
#[must_use]
pub enum Submitted {
    /// A completion will come (perhaps already in this turn).
    Accepted,
    /// Bring this data first. (Only with [`Memory::Pool`].)
    NeedsData(DataOut),
}

/// A worker's result on its way back.
#[derive(Debug)]
pub struct Worked {
    /// The task.
    pub task: TaskKey,
    /// What it did.
    pub work: Work,
}

/// What a worker did.
#[derive(Debug)]
pub enum Work {
    /// It called a handler.
    Called {
        /// How the handler ended.
        result: Result<(), Fail>,
        /// Its Data-In.
        reply: Vec<u8>,
        /// Nexuses to abort.
        abort: Vec<NexusId>,
        /// The Data-Out buffer.
        data: Option<DetachedBuf>,
    },
    /// It did a media operation on this buffer.
    Moved {
        /// How it ended.
        result: io::Result<()>,
        /// The memory it worked on.
        data: Option<DetachedBuf>,
    },
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The transport is bringing its Data-Out.
    AwaitsData,
    /// It waits at the gate.
    AwaitsGate,
    /// A backend or a worker has it.
    Running,
    /// It did its work, and waits until the tasks it aborted are gone (PREEMPT AND ABORT).
    AwaitsSweep,
    /// It ended before its Data-Out came: only the token is still out.
    Ended,
}

/// What makes a task a media task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Media {
    pub(super) op: Op,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    /// Bytes to move between medium and memory: whole blocks.
    pub(super) len: usize,
}

/// The transport's own memory of a task.
#[derive(Debug, Default)]
pub(super) struct OwnMemory {
    pub(super) is_own: bool,
    pub(super) segments: Vec<Segment>,
    /// The backend was given `buffer` instead; the data has to be copied back.
    pub(super) bounced: bool,
}

/// One task. Built on the stack, and put into the table only if it cannot end at once.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) owner: Owner,
    pub(super) tag: Tag,
    pub(super) itl: Arc<Itl>,
    pub(super) row: &'static Row,
    pub(super) attribute: TaskAttribute,
    pub(super) stage: Stage,
    pub(super) cdb: [u8; 32],
    pub(super) cdb_len: u8,
    /// What the CDB asks to move, in bytes.
    pub(super) wanted: u64,
    /// What the initiator sends and takes.
    pub(super) capacity_out: u32,
    pub(super) capacity_in: u32,
    pub(super) media: Option<Media>,
    /// Data-Out, or where Data-In goes.
    pub(super) buffer: Option<PoolBuf>,
    /// How much of the buffer is Data-Out.
    pub(super) received: usize,
    pub(super) own: OwnMemory,
    pub(super) table: Option<Arc<LunTable>>,
    /// The epoch it is counted in, once it passed the gate.
    pub(super) epoch: Option<u8>,
    /// The name it has at the gate, if it had to wait there or raised it.
    pub(super) key_at_gate: Option<TaskKey>,
    /// It holds the gate.
    pub(super) raised: bool,
    /// A sweep aborted it: `true` when it still ends in TASK ABORTED.
    pub(super) aborted: Option<bool>,
    /// When it came to the gate, in seconds of [`Engine::tick`](super::Engine::tick).
    pub(super) since: u32,
    /// It is past its deadline, and what has it was asked to give it back.
    pub(super) overdue: bool,
    /// Tells a worker that nobody wants its work any more.
    pub(super) cancelled: Option<Arc<AtomicBool>>,
    /// Sweeps that wait for it to end.
    pub(super) sweeps: Vec<Arc<Sweep>>,
}

impl Task {
    pub(super) fn cdb(&self) -> &[u8] {
        &self.cdb[..usize::from(self.cdb_len)]
    }

    pub(super) fn is_read(&self) -> bool {
        self.media.is_some_and(|media| matches!(media.op, Op::Read))
    }

    /// The blocks it touches, for the gate. A handler on a worker works the exact ones out itself, so
    /// it waits for atomic commands wherever they are.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        match self.media {
            Some(media) => Some((media.lba, media.blocks)),
            None => match (self.row.lane, self.row.access) {
                (Lane::Worker, Access::Read | Access::Write) => Some((0, u64::MAX)),
                _ => None,
            },
        }
    }
}

/// The tasks of a reactor that did not end at once.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    task: Option<Task>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, task: Task) -> TaskKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, task: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.task = Some(task);
        TaskKey(u64::from(slot.generation) << 32 | u64::from(index))
    }

    pub(super) fn at(&mut self, key: TaskKey) -> Option<&mut Task> {
        let slot = self.slots.get_mut(key.0 as u32 as usize)?;
        if u64::from(slot.generation) != key.0 >> 32 {
            return None;
        }
        slot.task.as_mut()
    }

    /// Takes a task out for a moment; its key stays valid for [`Table::put_back`].
    pub(super) fn lift(&mut self, key: TaskKey) -> Option<Task> {
        self.at(key)?;
        self.slots[key.0 as u32 as usize].task.take()
    }

    pub(super) fn put_back(&mut self, key: TaskKey, task: Task) {
        self.slots[key.0 as u32 as usize].task = Some(task);
    }

    pub(super) fn remove(&mut self, key: TaskKey) -> Option<Task> {
        self.at(key)?;
        let index = key.0 as u32;
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        slot.task.take()
    }

    /// The keys of all tasks that fit.
    pub(super) fn matching(&self, fits: impl Fn(&Task) -> bool) -> Vec<TaskKey> {
        let keys = self.slots.iter().zip(0u64..).filter_map(|(slot, index)| {
            fits(slot.task.as_ref()?).then_some(TaskKey(u64::from(slot.generation) << 32 | index))
        });
        keys.collect()
    }
}
