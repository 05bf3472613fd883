//! The vhost-user socket: messages as the front end of the `vhost` crate sends them, and any
//! others.

use crate::{Error, Memory, Protocol, Queue, Ring, TIMEOUT, feature};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use std::{
    io::{IoSlice, IoSliceMut, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};
use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{Frontend, VhostUserFrontend, message::VhostUserHeaderFlag},
};

/// Numbers of messages that are sent by hand.
pub mod request {
    /// SET_VRING_BASE.
    pub const SET_VRING_BASE: u32 = 10;
    /// SET_STATUS.
    pub const SET_STATUS: u32 = 39;
}

/// Head of a message, as sent; nothing in it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the message.
    pub request: u32,
    /// Version 1, [`Header::REPLY`], [`Header::NEED_REPLY`].
    pub flags: u32,
    /// Bytes that follow.
    pub size: u32,
}

impl Header {
    /// It is an answer.
    pub const REPLY: u32 = 4;
    /// An answer is wanted, with REPLY_ACK.
    pub const NEED_REPLY: u32 = 8;

    /// A true header of version 1.
    pub fn new(request: u32, size: usize) -> Self {
        Self { request, flags: 1, size: size as u32 }
    }

    /// The header on the wire.
    pub fn bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// A message that the back end sent.
#[derive(Debug)]
pub struct Message {
    /// Its head.
    pub header: Header,
    /// What follows the head.
    pub body: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a back end.
pub struct Link {
    socket: UnixStream,
    frontend: Frontend,
    protocol: Protocol,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects, and tries for [`TIMEOUT`] where nobody listens yet.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let since = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Ok(socket) => return Self::over(socket),
                Err(error) if since.elapsed() > TIMEOUT => return Err(error.into()),
                Err(_) => sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Takes a connected socket.
    pub fn over(socket: UnixStream) -> Result<Self, Error> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        // The indices that the back end does not have are for it to refuse.
        let frontend = Frontend::from_stream(socket.try_clone()?, 256);
        Ok(Self { socket, frontend, protocol: Protocol::empty() })
    }

    /// The front end of the `vhost` crate, for every message that it knows.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The socket itself.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Protocol features in force.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Owns the back end and agrees on protocol features: all of `protocol` that it offers. Gives
    /// the feature bits that it offers. From here on every message is acknowledged if REPLY_ACK
    /// is in force.
    pub fn open(&mut self, protocol: Protocol) -> Result<u64, Error> {
        let offered = self.frontend.get_features()?;
        if offered & feature::PROTOCOL != 0 {
            self.protocol = self.frontend.get_protocol_features()? & protocol;
            self.frontend.set_protocol_features(self.protocol)?;
            if self.protocol.contains(Protocol::REPLY_ACK) {
                self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        self.frontend.set_owner()?;
        Ok(offered)
    }

    /// Sends the whole memory table.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), Error> {
        self.frontend.set_mem_table(&memory.table()?)?;
        Ok(())
    }

    /// Sets a queue up and starts it: size, base, addresses, eventfds, enable. The base is where
    /// the driver stands.
    pub fn start(&mut self, queue: &Queue) -> Result<(), Error> {
        let base = match &queue.ring {
            Ring::Split(ring) => u32::from(ring.base()),
            Ring::Packed(ring) => ring.base(),
        };
        self.start_at(queue, base)
    }

    /// As [`Link::start`] at the base that [`Link::stop`] gave.
    pub fn start_at(&mut self, queue: &Queue, base: u32) -> Result<(), Error> {
        let size = queue.ring.size();
        self.frontend.set_vring_num(queue.index, size)?;
        // Upstream's call takes 16 bits, of the 32 that a packed ring needs.
        let body = [queue.index as u32, base].map(u32::to_ne_bytes).concat();
        self.call(request::SET_VRING_BASE, &body, &[])?;
        self.set_addresses(queue, None)?;
        self.frontend.set_vring_err(queue.index, &queue.error)?;
        self.frontend.set_vring_call(queue.index, &queue.call)?;
        self.frontend.set_vring_kick(queue.index, &queue.kick)?;
        if !self.protocol.is_empty() {
            self.frontend.set_vring_enable(queue.index, true)?;
        }
        Ok(())
    }

    /// Tells where the areas of a queue are, and at which guest address what the back end writes
    /// to it is to be logged.
    pub fn set_addresses(&mut self, queue: &Queue, log: Option<u64>) -> Result<(), Error> {
        let [first, second, third] = queue.ring.areas();
        let addresses = VringConfigData {
            queue_max_size: queue.ring.size(),
            queue_size: queue.ring.size(),
            flags: u32::from(log.is_some()),
            desc_table_addr: first.user_address(),
            avail_ring_addr: second.user_address(),
            used_ring_addr: third.user_address(),
            log_addr: log,
        };
        Ok(self.frontend.set_vring_addr(queue.index, &addresses)?)
    }

    /// Stops a queue and gives the base at which it may be started again.
    pub fn stop(&mut self, queue: &Queue) -> Result<u32, Error> {
        Ok(self.frontend.get_vring_base(queue.index)?)
    }

    /// Sends a well-formed message that has no answer of its own, and waits for the
    /// acknowledgement if REPLY_ACK is in force.
    pub fn call(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let mut header = Header::new(request, body.len());
        let acknowledged = self.protocol.contains(Protocol::REPLY_ACK);
        if acknowledged {
            header.flags |= Header::NEED_REPLY;
        }
        self.send(header, body, fds)?;
        if !acknowledged {
            return Ok(());
        }
        let answer = self.receive()?;
        if answer.header.request != request {
            return Err(Error::Unexpected { expected: request, found: answer.header.request });
        }
        match answer.body.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            refusal => Err(Error::Refused { request, answer: refusal.unwrap_or(u64::MAX) }),
        }
    }

    /// Sends any bytes as a message, true to the protocol or not.
    pub fn send(&self, header: Header, body: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        self.send_bytes(&[&header.bytes(), body].concat(), fds)
    }

    /// Sends any bytes: half a header, two messages at once.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let mut rest = bytes;
        let mut control = control;
        while !rest.is_empty() {
            let parts = [IoSlice::new(rest)];
            let fd = self.socket.as_raw_fd();
            let sent = sendmsg::<()>(fd, &parts, control, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(std::io::Error::from)?;
            rest = &rest[sent..];
            control = &[];
        }
        Ok(())
    }

    /// Receives one message.
    pub fn receive(&self) -> Result<Message, Error> {
        let mut head = [0; 12];
        let mut space = cmsg_space!([RawFd; 8]);
        let mut fds = Vec::new();
        let mut parts = [IoSliceMut::new(&mut head)];
        let received = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .map_err(std::io::Error::from)?;
        for message in received.cmsgs().map_err(std::io::Error::from)? {
            if let ControlMessageOwned::ScmRights(rights) = message {
                fds.extend(rights.into_iter().map(owned));
            }
        }
        let have = received.bytes;
        if have == 0 {
            return Err(Error::Socket(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut socket = &self.socket;
        socket.read_exact(&mut head[have..])?;
        let field =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let header = Header { request: field(0), flags: field(4), size: field(8) };
        let mut body = vec![0; header.size.min(1 << 16) as usize];
        socket.read_exact(&mut body)?;
        Ok(Message { header, body, fds })
    }
}

#[allow(unsafe_code)] // Received descriptors come as numbers.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
