//! A socket that carries messages with descriptors.
#![allow(unsafe_code)] // Descriptors arrive as numbers.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use thiserror::Error;

use super::message::{Head, MOST_DATA, MOST_DESCRIPTORS};

/// Why nothing more is read.
#[derive(Debug, Error)]
pub(super) enum SocketError {
    /// The system's answer.
    #[error("its socket failed: {0}")]
    System(#[from] io::Error),
    /// The other end is gone before a message is complete.
    #[error("it ended in the middle of a message")]
    Partial,
    /// A size that no message has.
    #[error("message {command} has {size} bytes")]
    Size {
        /// Which message.
        command: u16,
        /// Its bytes.
        size: u32,
    },
}

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// What came with it, in order; more than anybody may send are closed.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Socket(UnixStream);

impl Socket {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Waits for a message; `None` at the end of the connection.
    pub(super) fn receive(&mut self) -> Result<Option<Message>, SocketError> {
        let mut bytes = [0; Head::LEN];
        let (mut have, mut descriptors) = (0, Vec::new());
        while have < bytes.len() {
            let part = bytes.get_mut(have..).unwrap_or_default();
            match self.receive_part(part, &mut descriptors)? {
                0 if have == 0 => return Ok(None),
                0 => return Err(SocketError::Partial),
                more => have += more,
            }
        }
        let head = Head::parse(&bytes);
        let len = head.body().filter(|&len| len <= MOST_BODY);
        let size = SocketError::Size { command: head.command, size: head.size };
        let mut body = vec![0; len.ok_or(size)?];
        self.0.read_exact(&mut body).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SocketError::Partial,
            _ => SocketError::System(error),
        })?;
        Ok(Some(Message { head, body, descriptors }))
    }

    /// Sends a message whose head counts its parts.
    pub(super) fn send(
        &mut self,
        head: &Head,
        parts: [&[u8]; 2],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = head.emit();
        let all = [&bytes[..], parts[0], parts[1]];
        let slices = all.map(IoSlice::new);
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &slices, rights, flags, None) {
                Err(Errno::EINTR) => {}
                sent => break sent?,
            }
        };
        // The descriptors went with the first byte.
        let mut skip = sent;
        for part in all {
            let done = skip.min(part.len());
            skip -= done;
            self.0.write_all(part.get(done..).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Bytes that were received, 0 at the end.
    fn receive_part(&self, part: &mut [u8], into: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut slices = [IoSliceMut::new(part)];
        // Room for more than anybody may send, so that the system does not lose any of them.
        let mut control = cmsg_space!([RawFd; MOST_IN_A_MESSAGE]);
        let received = loop {
            let fd = self.0.as_raw_fd();
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(fd, &mut slices, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(0),
                received => break received?,
            }
        };
        for message in received.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the system has just made these descriptors for us.
                into.extend(numbers.iter().map(|&number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        into.truncate(MOST_DESCRIPTORS);
        Ok(received.bytes)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Bytes of the longest body: data, and what says where it goes.
const MOST_BODY: usize = MOST_DATA + 64;
/// SCM_MAX_FD of Linux.
const MOST_IN_A_MESSAGE: usize = 253;
