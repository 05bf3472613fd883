//! Tasks and the engine that runs them on one reactor.

use super::manage::Sweep;
use crate::{
    model::{Itl, Model, NexusView},
    opcode::Fail,
    reactor::{
        EndpointId, Mail,
        pool::{DetachedBuf, Pool, PoolBuf},
        ring::Ring,
        sg::Segment,
        workers::Workers,
    },
};
use libsrp::{Command, Response, TaskManagement};
use std::sync::Arc;

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

/// A task that waits for the transport to bring its Data-Out. Linear: give it back with
/// [`Engine::data_arrived`] or [`Engine::abandon`]; dropping it is a bug, which a debug build
/// panics on.
#[derive(Debug)]
#[must_use]
pub struct TaskToken {
    key: TaskKey,
}

impl Drop for TaskToken {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "task {:?} was dropped", self.key);
    }
}

/// Data-Out that the transport has to bring: fill `buffer[..len]`, then call
/// [`Engine::data_arrived`].
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

/// Keeps a logical unit, and a reader's place in its gate.
#[derive(Debug)]
pub struct Hold {
    _itl: Arc<Itl>,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send the response.
    Respond,
    /// It was aborted: send nothing (SAM-5 5.6, TAS=0); the data is not valid.
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
    /// How the handler ended.
    pub result: Result<(), Fail>,
    /// Its Data-In.
    pub reply: Vec<u8>,
    /// The Data-Out buffer.
    pub data: Option<DetachedBuf>,
}

/// One reactor's part of the command core.
#[derive(Debug)]
pub struct Engine {
    /// Everything exported.
    pub model: Arc<Model>,
    /// Which reactor this is.
    pub reactor: u16,
    /// Buffers.
    pub pool: Pool,
    /// The ring.
    pub ring: Ring,
    workers: Arc<Workers>,
    done: Vec<Completion>,
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
        Self { model, reactor, pool, ring, workers, done: Vec::new() }
    }

    /// Takes a command. Its completion, if any, is delivered by [`Engine::completions`].
    pub fn submit(
        &mut self,
        _nexus: &mut NexusView,
        command: &Command<'_>,
        _memory: Memory<'_>,
        owner: Owner,
    ) -> Submitted {
        let _ = &self.workers;
        self.done.push(Completion {
            owner,
            outcome: Outcome::Respond,
            response: Response::good(command.tag),
            data: DataIn::None,
        });
        Submitted::Accepted
    }

    /// The Data-Out of a task is complete. `buffer` is the one of [`DataOut`]. When the initiator
    /// sent less than `DataOut::len`, the transport ends the task with [`Engine::fail`] instead.
    pub fn data_arrived(&mut self, token: TaskToken, _buffer: PoolBuf) {
        std::mem::forget(token);
    }

    /// The transport cannot bring the Data-Out: the task ends with CHECK CONDITION and this sense.
    pub fn fail(&mut self, token: TaskToken, _sense: crate::sense::Sense) {
        std::mem::forget(token);
    }

    /// The connection is gone: no completion is wanted.
    pub fn abandon(&mut self, token: TaskToken) {
        std::mem::forget(token);
    }

    /// Takes a task management request; its completion carries the outcome. Tasks it aborts complete
    /// with [`Outcome::Silent`] (or TASK ABORTED) before it does; those waiting for Data-Out are
    /// completed so too, and their tokens then are stale: hand them to [`Engine::abandon`].
    pub fn manage(&mut self, _nexus: &mut NexusView, request: &TaskManagement, owner: Owner) {
        let _ = (request, owner);
    }

    /// Ends every task of an I_T nexus without responses (connection or session gone). `owner` gets
    /// one completion when nothing of it is left.
    pub fn abort_nexus(&mut self, _nexus: &mut NexusView, _owner: Owner) {}

    /// Forgets an endpoint: its tasks run to their end, their completions go nowhere.
    pub fn orphan(&mut self, _endpoint: EndpointId) {}

    /// One round: mail, finished input and output, submission of what was queued.
    pub fn turn(&mut self, _mail: &mut Vec<Mail>) {}

    /// Moves the completions gathered so far into `into`, which must be empty.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        std::mem::swap(&mut self.done, into);
    }

    /// Whether tasks are in progress, so that the reactor must not stop.
    pub fn is_busy(&self) -> bool {
        false
    }
}

/// Keeps the signature of sweeps in one place.
#[derive(Debug)]
pub struct Unused(pub Option<Arc<Sweep>>);
