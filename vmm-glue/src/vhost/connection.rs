//! The messages of one connection.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg},
    unistd::close,
};
use thiserror::Error;
use vhost::vhost_user::{
    self, BackendReqHandler,
    message::{FrontendReq, MAX_MSG_SIZE},
};

use super::device::Device;

/// Why a connection ends.
#[derive(Debug, Error)]
pub(super) enum Broken {
    /// The socket failed.
    #[error("its socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The file behind the memory was truncated.
    #[error("the memory that the VMM shared was taken away")]
    Lost,
    /// A part of a message.
    #[error("it ended in the middle of a message")]
    Partial,
    /// A message with more bytes than any has.
    #[error("message {request} has {size} bytes")]
    Large {
        /// Which message.
        request: u32,
        /// Bytes of its body.
        size: u32,
    },
    /// A message with fewer bytes than it must have.
    #[error("message {request} has only {size} bytes")]
    Short {
        /// Which message.
        request: u32,
        /// Bytes of its body.
        size: u32,
    },
    /// The memory came without descriptors.
    #[error(
        "message {request} shares no memory that can be used: {source:?}. With QEMU, the memory has \
         to be a memory-backend-memfd or memory-backend-file with share=on"
    )]
    Unshared {
        /// Which message.
        request: u32,
        /// What was found.
        source: vhost_user::Error,
    },
    /// A message that is broken, or cannot be done and has no answer that says so.
    #[error("message {request} is broken or cannot be done: {source:?}")]
    Message {
        /// Which message.
        request: u32,
        /// What was found.
        source: vhost_user::Error,
    },
}

/// Serves a VMM until it disconnects, and stops what it started.
pub(super) fn serve(stream: UnixStream, device: Device) -> Result<(), Broken> {
    let device = Arc::new(Mutex::new(device));
    let handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&device));
    let mut connection = Connection { stream, device, handler };
    let end = connection.serve();
    connection.device().stop();
    end
}

struct Connection {
    stream: UnixStream,
    device: Arc<Mutex<Device>>,
    handler: BackendReqHandler<Mutex<Device>>,
}

/// The head of a message.
#[derive(Clone, Copy)]
struct Head {
    request: u32,
    flags: u32,
    size: u32,
}

impl Connection {
    fn serve(&mut self) -> Result<(), Broken> {
        loop {
            self.wait()?;
            let Some(head) = self.peek()? else { return Ok(()) };
            if is_known(head.request) {
                self.handle(head)?;
            } else {
                self.tolerate(head)?;
            }
            if self.device().has_lost_memory() {
                return Err(Broken::Lost);
            }
        }
    }

    /// Waits for a message where there is something to do meanwhile.
    fn wait(&self) -> Result<(), Broken> {
        loop {
            let Some(period) = self.device().period() else { return Ok(()) };
            let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(period)) {
                Ok(0) => self.device().tick(),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Broken::Socket(errno.into())),
            }
        }
    }

    /// Lets the `vhost` crate read a message.
    fn handle(&mut self, head: Head) -> Result<(), Broken> {
        self.device().take_refused();
        let Err(source) = self.handler.handle_request() else { return Ok(()) };
        let refused = self.device().take_refused();
        let request = head.request;
        // The VMM knows by the answer that it was refused.
        if refused && self.wants_ack(head) && !has_answer(request) {
            return Ok(());
        }
        match source {
            vhost_user::Error::SocketBroken(error) | vhost_user::Error::SocketError(error) => {
                Err(Broken::Socket(error))
            }
            vhost_user::Error::Disconnected | vhost_user::Error::PartialMessage => {
                Err(Broken::Partial)
            }
            source if !refused && is_memory(request) => Err(Broken::Unshared { request, source }),
            source => Err(Broken::Message { request, source }),
        }
    }

    /// Takes a message that the `vhost` crate would close the connection for.
    fn tolerate(&mut self, head: Head) -> Result<(), Broken> {
        let body = self.receive(head)?;
        let number = |at: usize| {
            body.get(at..at + 4)
                .and_then(|bytes| bytes.first_chunk())
                .map(|b| u32::from_ne_bytes(*b))
        };
        let done = match Request::of(head.request) {
            Some(Request::GET_CONFIG) => return self.get_config(head, &body),
            Some(Request::SET_CONFIG) => match (number(0), body.get(12..)) {
                (Some(offset), Some(bytes)) => {
                    self.device().write_config(offset, bytes);
                    true
                }
                _ => return Err(Broken::Short { request: head.request, size: head.size }),
            },
            Some(Request::GET_STATUS) => {
                let status = self.device().status;
                return self.answer(head, &status.to_ne_bytes());
            }
            Some(Request::SET_STATUS) => {
                self.device().status = number(0).unwrap_or(0).into();
                true
            }
            // All is little-endian.
            Some(Request::SET_VRING_ENDIAN) => number(4) == Some(0),
            Some(Request::SET_LOG_FD | Request::SEND_RARP | Request::VRING_KICK) => true,
            _ => {
                tracing::debug!(request = head.request, "refused an unknown vhost-user message");
                false
            }
        };
        if self.wants_ack(head) {
            self.answer(head, &u64::from(!done).to_ne_bytes())?;
        }
        Ok(())
    }

    /// No access to the configuration fails, whatever the guest reads.
    fn get_config(&mut self, head: Head, body: &[u8]) -> Result<(), Broken> {
        let short = Broken::Short { request: head.request, size: head.size };
        let Some(fixed) = body.get(..12) else { return Err(short) };
        let number = |at: usize| {
            let bytes = fixed.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let (offset, len) = (number(0), number(4));
        if len as usize > MAX_MSG_SIZE {
            return Err(Broken::Large { request: head.request, size: len });
        }
        let read = self.device().read_config(offset, len);
        self.answer(head, &[fixed, &read].concat())
    }

    /// The head of the next message, which stays in the socket; `None` at the end.
    fn peek(&self) -> Result<Option<Head>, Broken> {
        let mut bytes = [0; 12];
        loop {
            match recv(self.stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) {
                Ok(0) => return Ok(None),
                Ok(have) if have == bytes.len() => break,
                Ok(_) if self.has_ended()? => return Err(Broken::Partial),
                // Nothing tells of more bytes behind those that are there.
                Ok(_) => thread::sleep(REST_EVERY),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(Broken::Socket(errno.into())),
            }
        }
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let head = Head {
            request: u32::from_ne_bytes([r0, r1, r2, r3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            size: u32::from_ne_bytes([s0, s1, s2, s3]),
        };
        if head.size as usize > MAX_MSG_SIZE {
            return Err(Broken::Large { request: head.request, size: head.size });
        }
        Ok(Some(head))
    }

    /// Whether no more bytes will come.
    fn has_ended(&self) -> Result<bool, Broken> {
        let mut fds =
            [PollFd::new(self.stream.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
        let ended = match poll(&mut fds, PollTimeout::ZERO) {
            Ok(ready) => ready > 0,
            Err(Errno::EINTR) => false,
            Err(errno) => return Err(Broken::Socket(errno.into())),
        };
        Ok(ended)
    }

    /// Takes a message out of the socket. Descriptors that came with it are closed.
    fn receive(&mut self, head: Head) -> Result<Vec<u8>, Broken> {
        let mut bytes = [0; 12];
        // Room for as many as a message may have: `recv_with_fd` takes one and loses a second.
        let mut control = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let have = {
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            let fd = self.stream.as_raw_fd();
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags);
            let received = received.map_err(io::Error::from)?;
            for message in received.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    fds.into_iter().for_each(|fd| {
                        let _ = close(fd);
                    });
                }
            }
            received.bytes
        };
        let mut body = vec![0; head.size as usize];
        let rest = bytes.get_mut(have..).unwrap_or_default();
        self.stream.read_exact(rest).and_then(|()| self.stream.read_exact(&mut body)).map_err(
            |error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Broken::Partial,
                _ => Broken::Socket(error),
            },
        )?;
        Ok(body)
    }

    fn answer(&mut self, head: Head, body: &[u8]) -> Result<(), Broken> {
        let fields = [head.request, VERSION | REPLY, body.len() as u32].map(u32::to_ne_bytes);
        Ok(self.stream.write_all(&[fields.as_flattened(), body].concat())?)
    }

    fn wants_ack(&self, head: Head) -> bool {
        head.flags & NEED_REPLY != 0 && self.device().acknowledges()
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Request = FrontendReq;

/// Finds a request by its number.
trait Of: Sized {
    fn of(number: u32) -> Option<Self>;
}

impl Of for Request {
    fn of(number: u32) -> Option<Self> {
        Self::try_from(number).ok()
    }
}

/// Whether the `vhost` crate handles a message well.
fn is_known(request: u32) -> bool {
    use FrontendReq as R;
    matches!(
        R::of(request),
        Some(
            R::GET_FEATURES
                | R::SET_FEATURES
                | R::SET_OWNER
                | R::RESET_OWNER
                | R::SET_MEM_TABLE
                | R::SET_LOG_BASE
                | R::SET_VRING_NUM
                | R::SET_VRING_ADDR
                | R::SET_VRING_BASE
                | R::GET_VRING_BASE
                | R::SET_VRING_KICK
                | R::SET_VRING_CALL
                | R::SET_VRING_ERR
                | R::GET_PROTOCOL_FEATURES
                | R::SET_PROTOCOL_FEATURES
                | R::GET_QUEUE_NUM
                | R::SET_VRING_ENABLE
                | R::SET_BACKEND_REQ_FD
                | R::GET_INFLIGHT_FD
                | R::SET_INFLIGHT_FD
                | R::RESET_DEVICE
                | R::GET_MAX_MEM_SLOTS
                | R::ADD_MEM_REG
                | R::REM_MEM_REG
                | R::SET_DEVICE_STATE_FD
                | R::CHECK_DEVICE_STATE
        )
    )
}

/// Whether a message has an answer of its own, which cannot say that it was refused.
fn has_answer(request: u32) -> bool {
    use FrontendReq as R;
    matches!(
        R::of(request),
        Some(
            R::GET_FEATURES
                | R::GET_PROTOCOL_FEATURES
                | R::GET_QUEUE_NUM
                | R::GET_VRING_BASE
                | R::GET_INFLIGHT_FD
                | R::GET_MAX_MEM_SLOTS
                | R::SET_LOG_BASE
        )
    )
}

fn is_memory(request: u32) -> bool {
    matches!(FrontendReq::of(request), Some(FrontendReq::SET_MEM_TABLE | FrontendReq::ADD_MEM_REG))
}

/// The most descriptors that a message has.
const MOST_DESCRIPTORS: usize = 32;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// How often the rest of a message head is looked for.
const REST_EVERY: Duration = Duration::from_millis(1);
