//! What the datamover needs of RDMA: a connection of the `rdma` crate, or in tests one that is none.

use crate::{
    greeting::Abilities,
    memory::{Memory, Owned},
};
use rdma::{Connection, Event, Remote, Request, SendFlags, Setup, TooLong, WorkError};
use std::{fmt, io, os::fd::RawFd};

/// What has come or ended.
#[derive(Debug)]
pub enum Done<B, O> {
    /// A message of `len` bytes.
    Received {
        /// Where it is.
        buffer: B,
        /// How long it is.
        len: usize,
    },
    /// All data of a read has come.
    Read {
        /// What the caller named it.
        cookie: u64,
        /// Where the data is.
        owner: O,
    },
    /// Nothing works any more.
    Broken(WorkError),
}

/// A reliable connection. The functions are those of [`rdma::Connection`].
pub trait Verbs: Sized + fmt::Debug + 'static {
    /// A peer that wants to connect.
    type Request: Send + fmt::Debug + 'static;
    /// A receive buffer with something in it.
    type Buffer: fmt::Debug;
    /// Memory the device may use.
    type Owner: fmt::Debug;
    /// What has come or ended, as the connection gives it.
    type Done: fmt::Debug;

    /// Makes the queues and accepts the peer. Gives what the peer can do.
    ///
    /// # Errors
    /// The connection cannot be made; the peer is told.
    fn accept(request: Self::Request, setup: &Setup) -> io::Result<(Self, Abilities)>;

    /// Where events of the connection manager and completions are told of.
    fn descriptors(&self) -> [RawFd; 2];

    /// Lets the device use memory.
    ///
    /// # Errors
    /// It cannot be registered.
    fn own(&self, memory: Memory) -> io::Result<Self::Owner>;
    /// Gives memory back.
    fn disown(owner: Self::Owner) -> Memory;

    /// RDMA Reads in progress at a time.
    fn reads_at_once(&self) -> u8;
    /// The next event of the connection manager.
    fn event(&mut self) -> Option<Event>;
    /// Takes the events of completions.
    fn notified(&mut self);
    /// Asks for an event at the next completion; true if something came meanwhile.
    fn arm(&mut self) -> bool;
    /// What has come or ended; true if there was anything.
    fn poll(&mut self, done: &mut Vec<Self::Done>) -> bool;
    /// Which of the three it is.
    fn done(done: Self::Done) -> Done<Self::Buffer, Self::Owner>;
    /// Shows what is in a buffer.
    fn received<R>(&self, buffer: &Self::Buffer, len: usize, look: impl FnOnce(&[u8]) -> R) -> R;
    /// Gives a buffer back.
    fn repost(&mut self, buffer: Self::Buffer);

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// It does not fit into a send slot.
    fn send(&mut self, parts: &[&[u8]], flags: SendFlags) -> Result<(), TooLong>;
    /// Sends the first `len` bytes of memory.
    fn send_owned(&mut self, owner: Self::Owner, len: usize, flags: SendFlags);
    /// Writes the first `len` bytes of memory to the peer's.
    fn write(&mut self, owner: Self::Owner, len: usize, remote: Remote);
    /// Reads the peer's memory into ours from `offset` on; gives ours back if there is nothing to
    /// read.
    fn read(
        &mut self,
        owner: Self::Owner,
        offset: usize,
        remote: Remote,
        cookie: u64,
    ) -> Option<Self::Owner>;
    /// Posts nothing more of a read; gives our memory if nothing was posted.
    fn cancel(&mut self, cookie: u64) -> Option<Self::Owner>;
    /// Posts what waits.
    ///
    /// # Errors
    /// The connection is broken.
    fn flush(&mut self) -> Result<(), WorkError>;
    /// Nothing waits and everything posted is complete.
    fn is_idle(&self) -> bool;
    /// Work that waits to be posted.
    fn queued(&self) -> usize;
    /// Disconnects.
    fn disconnect(&mut self);
}

impl Verbs for Connection<Owned> {
    type Request = Request;
    type Buffer = rdma::Buffer;
    type Owner = Owned;
    type Done = rdma::Done<Owned>;

    fn accept(request: Request, setup: &Setup) -> io::Result<(Self, Abilities)> {
        let theirs = Abilities::parse(request.private_data());
        let mut connection = match Self::open(request, setup) {
            Ok(connection) => connection,
            Err((error, request)) => {
                request.reject(&[]);
                return Err(io::Error::other(format!("{error}; {}", error.fix())));
            }
        };
        Self::accept(&mut connection, &theirs.answer().emit()).map_err(io::Error::other)?;
        Ok((connection, theirs))
    }

    fn descriptors(&self) -> [RawFd; 2] {
        [self.event_fd(), self.completion_fd()]
    }

    fn own(&self, memory: Memory) -> io::Result<Owned> {
        Owned::of(memory, self.device())
    }

    fn disown(owner: Owned) -> Memory {
        owner.into_memory()
    }

    fn reads_at_once(&self) -> u8 {
        self.reads_at_once()
    }

    fn event(&mut self) -> Option<Event> {
        self.event()
    }

    fn notified(&mut self) {
        self.notified();
    }

    fn arm(&mut self) -> bool {
        self.arm()
    }

    fn poll(&mut self, done: &mut Vec<rdma::Done<Owned>>) -> bool {
        self.poll(done)
    }

    fn done(done: rdma::Done<Owned>) -> Done<rdma::Buffer, Owned> {
        match done {
            rdma::Done::Received { buffer, len } => Done::Received { buffer, len },
            rdma::Done::Read { cookie, owner } => Done::Read { cookie, owner },
            rdma::Done::Broken(error) => Done::Broken(error),
        }
    }

    fn received<R>(&self, buffer: &rdma::Buffer, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        self.received(buffer, len, look)
    }

    fn repost(&mut self, buffer: rdma::Buffer) {
        self.repost(buffer);
    }

    fn send(&mut self, parts: &[&[u8]], flags: SendFlags) -> Result<(), TooLong> {
        self.send(parts, flags)
    }

    fn send_owned(&mut self, owner: Owned, len: usize, flags: SendFlags) {
        self.send_owned(owner, len, flags);
    }

    fn write(&mut self, owner: Owned, len: usize, remote: Remote) {
        self.write(owner, 0, len, &[remote]);
    }

    fn read(&mut self, owner: Owned, offset: usize, to: Remote, cookie: u64) -> Option<Owned> {
        self.read(owner, offset, to.len as usize, &[to], cookie)
    }

    fn cancel(&mut self, cookie: u64) -> Option<Owned> {
        self.cancel(cookie)
    }

    fn flush(&mut self) -> Result<(), WorkError> {
        self.flush()
    }

    fn is_idle(&self) -> bool {
        self.is_idle()
    }

    fn queued(&self) -> usize {
        self.queued()
    }

    fn disconnect(&mut self) {
        self.disconnect();
    }
}
