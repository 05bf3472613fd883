//! The netlink socket of the family `TCM-USER`.
#![allow(unsafe_code)] // Nothing that is safe joins a netlink group.

use std::{
    io,
    mem::{self, size_of_val},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    },
};
use thiserror::Error;

use super::netlink::{self, Kind, Message};

/// Why the kernel's events cannot be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The kernel has no such family.
    #[error("the kernel has no TCMU: module target_core_user is not loaded")]
    NoFamily,
    /// It has no group to join.
    #[error("the kernel's TCMU family has no group of events")]
    NoGroup,
    /// The system refused.
    #[error("cannot {what} TCMU's netlink socket: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// A socket that receives the family's events.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    family: u16,
    sequence: u32,
    /// What arrived while an answer was waited for.
    pending: Vec<Message>,
    buffer: Vec<u8>,
}

impl Socket {
    /// Joins the group of events.
    pub fn open() -> Result<Self, SocketError> {
        let failed =
            |what| move |source: Errno| SocketError::System { what, source: source.into() };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkGeneric;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .map_err(failed("make"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
        let mut socket =
            Self { fd, family: 0, sequence: 0, pending: Vec::new(), buffer: vec![0; ROOM] };
        let request = netlink::get_family(socket.number());
        socket.send(&request).map_err(failed("ask by"))?;
        // The kernel answers before the call returns.
        let answers = socket.receive().map_err(failed("read"))?;
        let family = answers.iter().find_map(|message| match message {
            Message::Family { id, group } => Some((*id, *group)),
            _ => None,
        });
        let (id, group) = family.ok_or(SocketError::NoFamily)?;
        let group = group.ok_or(SocketError::NoGroup)?;
        socket.family = id;
        socket.join(group).map_err(|source| SocketError::System { what: "join by", source })?;
        Ok(socket)
    }

    /// Tells the kernel whether it is to wait for answers to its events.
    pub fn set_features(&mut self, answers: bool) -> Result<(), SocketError> {
        let request = netlink::set_features(self.family, self.number(), answers);
        let failed = |source: Errno| SocketError::System { what: "use", source: source.into() };
        self.send(&request).map_err(failed)?;
        let mut status = None;
        for message in self.receive().map_err(failed)? {
            match message {
                Message::Status(answer) => status = status.or(Some(answer)),
                other => self.pending.push(other),
            }
        }
        match status {
            None | Some(0) => Ok(()),
            Some(status) => Err(failed(Errno::from_raw(status.saturating_neg()))),
        }
    }

    /// Answers an event with 0 or a negative error number.
    pub fn answer(&mut self, kind: Kind, device: u32, status: i32) -> io::Result<()> {
        let answer = netlink::answer(self.family, self.number(), kind, device, status);
        Ok(self.send(&answer)?)
    }

    /// What arrived; nothing if that is nothing.
    ///
    /// # Errors
    /// `ENOBUFS` if events were lost.
    pub fn receive(&mut self) -> Result<Vec<Message>, Errno> {
        let mut messages = mem::take(&mut self.pending);
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(len) => {
                    let bytes = self.buffer.get(..len).unwrap_or_default();
                    messages.extend(netlink::messages(bytes, self.family));
                }
                Err(Errno::EAGAIN) => return Ok(messages),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), Errno> {
        send(self.fd.as_raw_fd(), message, MsgFlags::empty()).map(drop)
    }

    fn number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn join(&self, group: u32) -> io::Result<()> {
        // SAFETY: an open socket, and the option's value is a `u32` of ours of that size.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                ptr::from_ref(&group).cast(),
                size_of_val(&group) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Longer than any message of the family.
const ROOM: usize = 16 << 10;
