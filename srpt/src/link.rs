//! What a channel needs of its connection, and RDMA's connection as that.
//!
//! The channel's endpoint is generic over it, so that it can be driven without a device.

use crate::buffer::DmaBuf;
use rdma::{Buffer, Connection, Done, Event, Remote, SendFlags, TooLong, WorkError};
use std::{fmt::Debug, io, os::fd::RawFd};
use vscsi_target::reactor::pool::PoolBuf;

/// A connection, as [`rdma::Connection`] describes it.
pub trait Link: Debug + Sized {
    /// A receive buffer with a message in it.
    type Received;
    /// A pool buffer that the device reaches.
    type Memory: Memory;

    /// Readable when there is something for [`Link::event`].
    fn event_fd(&self) -> RawFd;
    /// Readable when something has come after [`Link::arm`].
    fn completion_fd(&self) -> RawFd;
    /// The next event of the connection manager.
    fn event(&mut self) -> Option<Event>;
    /// Takes what made [`Link::completion_fd`] readable.
    fn notified(&mut self);
    /// Asks for an event at the next completion: true if something has come already.
    fn arm(&mut self) -> bool;
    /// What has come or ended, put into `into`: true if there was anything.
    fn poll(&mut self, into: &mut Vec<Came<Self>>) -> bool;
    /// Shows a message.
    fn received<R>(&self, buffer: &Self::Received, len: usize, look: impl FnOnce(&[u8]) -> R) -> R;
    /// Gives a receive buffer back.
    fn repost(&mut self, buffer: Self::Received);
    /// Sends a message.
    ///
    /// # Errors
    /// It is longer than what was agreed on.
    fn send(&mut self, message: &[u8], solicited: bool) -> Result<(), TooLong>;
    /// Lets the device reach the first `len` bytes of a buffer.
    ///
    /// # Errors
    /// It takes no more memory.
    fn memory(&self, buffer: PoolBuf, len: usize) -> io::Result<Self::Memory>;
    /// Writes the first `len` bytes to the peer's memory. What is sent later arrives later.
    fn write(&mut self, memory: Self::Memory, len: usize, remote: &[Remote]);
    /// Reads `len` bytes of the peer's memory. Gives the memory back if there is nothing to read.
    fn read(
        &mut self,
        memory: Self::Memory,
        len: usize,
        remote: &[Remote],
        cookie: u64,
    ) -> Option<Self::Memory>;
    /// Posts nothing more of a read; gives the memory if nothing was posted.
    fn cancel(&mut self, cookie: u64) -> Option<Self::Memory>;
    /// Posts what waits.
    ///
    /// # Errors
    /// The connection is broken.
    fn flush(&mut self) -> Result<(), WorkError>;
    /// Nothing waits, and everything posted is complete.
    fn is_idle(&self) -> bool;
    /// Disconnects.
    fn disconnect(&mut self);
}

/// A pool buffer that a device reaches.
pub trait Memory: Debug {
    /// The bytes that it reaches.
    fn bytes(&self) -> &[u8];
    /// The buffer.
    fn into_buffer(self) -> PoolBuf;
}

/// What has come or ended.
#[derive(Debug)]
pub enum Came<L: Link> {
    /// A message of `len` bytes.
    Message {
        /// Where it is.
        buffer: L::Received,
        /// How long it is.
        len: usize,
    },
    /// A read.
    Read {
        /// What the caller named it.
        cookie: u64,
        /// Where the data is.
        memory: L::Memory,
    },
    /// The connection.
    Broken(WorkError),
}

/// An RDMA connection.
#[derive(Debug)]
pub struct RdmaLink {
    connection: Connection<DmaBuf>,
    done: Vec<Done<DmaBuf>>,
}

impl RdmaLink {
    /// This one.
    pub fn new(connection: Connection<DmaBuf>) -> Self {
        Self { connection, done: Vec::new() }
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        tracing::debug!(counters = ?self.connection.counters(), "connection let go");
    }
}

impl Link for RdmaLink {
    type Received = Buffer;
    type Memory = DmaBuf;

    fn event_fd(&self) -> RawFd {
        self.connection.event_fd()
    }

    fn completion_fd(&self) -> RawFd {
        self.connection.completion_fd()
    }

    fn event(&mut self) -> Option<Event> {
        self.connection.event()
    }

    fn notified(&mut self) {
        self.connection.notified();
    }

    fn arm(&mut self) -> bool {
        self.connection.arm()
    }

    fn poll(&mut self, into: &mut Vec<Came<Self>>) -> bool {
        let any = self.connection.poll(&mut self.done);
        into.extend(self.done.drain(..).map(|done| match done {
            Done::Received { buffer, len } => Came::Message { buffer, len },
            Done::Read { cookie, owner } => Came::Read { cookie, memory: owner },
            Done::Broken(error) => Came::Broken(error),
        }));
        any
    }

    fn received<R>(&self, buffer: &Buffer, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        self.connection.received(buffer, len, look)
    }

    fn repost(&mut self, buffer: Buffer) {
        self.connection.repost(buffer);
    }

    fn send(&mut self, message: &[u8], solicited: bool) -> Result<(), TooLong> {
        self.connection.send(&[message], SendFlags { solicited, ..SendFlags::default() })
    }

    fn memory(&self, buffer: PoolBuf, len: usize) -> io::Result<DmaBuf> {
        DmaBuf::new(buffer, len, self.connection.device())
    }

    fn write(&mut self, memory: DmaBuf, len: usize, remote: &[Remote]) {
        self.connection.write(memory, 0, len, remote);
    }

    fn read(
        &mut self,
        memory: DmaBuf,
        len: usize,
        remote: &[Remote],
        cookie: u64,
    ) -> Option<DmaBuf> {
        self.connection.read(memory, 0, len, remote, cookie)
    }

    fn cancel(&mut self, cookie: u64) -> Option<DmaBuf> {
        self.connection.cancel(cookie)
    }

    fn flush(&mut self) -> Result<(), WorkError> {
        self.connection.flush()
    }

    fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }

    fn disconnect(&mut self) {
        self.connection.disconnect();
    }
}
