//! The vfio-user socket: messages of a client, true to the protocol or not, and the virtio-pci
//! driver that plugs a function with them.

use crate::{Device, Error, Memory, Queue, Setup, TIMEOUT, device::Scratch, feature};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut, Read},
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::EventFd;

/// Numbers of the commands.
#[allow(missing_docs)] // They are called as in the specification.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_REGION_IO_FDS: u16 = 6;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
}

/// Regions of the function.
pub mod region {
    /// BAR 0.
    pub const REGISTERS: u32 = 0;
    /// The configuration space.
    pub const CONFIG: u32 = 7;
}

/// Kinds of interrupts.
pub mod irq {
    /// The pin.
    pub const INTX: u32 = 0;
    /// MSI-X.
    pub const MSIX: u32 = 2;
}

/// A message of the server.
#[derive(Debug)]
pub struct Answer {
    /// Which message it answers, or its own number.
    pub id: u16,
    /// Which command.
    pub command: u16,
    /// 0 of a command, [`Answer::REPLY`], [`Answer::ERROR`].
    pub flags: u32,
    /// An errno value.
    pub error: u32,
    /// What follows the head.
    pub body: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// It is a reply.
    pub const REPLY: u32 = 1;
    /// It says that the command failed.
    pub const ERROR: u32 = 0x20;
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    id: u16,
    /// Memory that the server reaches by messages.
    pub memory: Option<Arc<Memory>>,
    /// DMA_READ and DMA_WRITE that were answered, and the bytes of each kind.
    pub served: [u64; 2],
    waiting: VecDeque<Answer>,
}

/// NO_REPLY of a command.
pub const NO_REPLY: u32 = 0x10;

impl Client {
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
        Ok(Self { socket, id: 0, memory: None, served: [0; 2], waiting: VecDeque::new() })
    }

    /// The socket itself.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Says which version it speaks.
    pub fn open(&mut self) -> Result<Vec<u8>, Error> {
        let mut body = vec![0, 0, 1, 0];
        body.extend(b"{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true}}\0");
        Ok(self.call(command::VERSION, &body, &[])?.body)
    }

    /// Sends a command and waits for the reply, which is not an error.
    pub fn call(&mut self, command: u16, body: &[u8], fds: &[RawFd]) -> Result<Answer, Error> {
        let id = self.send(command, 0, body, fds)?;
        let answer = self.reply()?;
        if (answer.id, answer.command) != (id, command) {
            let (expected, found) = (command.into(), answer.command.into());
            return Err(Error::Unexpected { expected, found });
        }
        if answer.flags & Answer::ERROR != 0 {
            return Err(Error::Refused { request: command.into(), answer: answer.error.into() });
        }
        Ok(answer)
    }

    /// As [`Client::call`]: the errno, or 0.
    pub fn errno(&mut self, command: u16, body: &[u8], fds: &[RawFd]) -> Result<u64, Error> {
        match self.call(command, body, fds) {
            Ok(_) => Ok(0),
            Err(Error::Refused { answer, .. }) => Ok(answer),
            Err(other) => Err(other),
        }
    }

    /// Sends a command: its number.
    pub fn send(
        &mut self,
        command: u16,
        flags: u32,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<u16, Error> {
        self.id = self.id.wrapping_add(1);
        self.send_head(self.id, command, 16 + body.len() as u32, flags, body, fds)?;
        Ok(self.id)
    }

    /// Sends a message with any head.
    pub fn send_head(
        &self,
        id: u16,
        command: u16,
        size: u32,
        flags: u32,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<(), Error> {
        let mut bytes = [id, command].map(u16::to_ne_bytes).concat();
        bytes.extend([size, flags, 0].map(u32::to_ne_bytes).as_flattened());
        bytes.extend(body);
        self.send_bytes(&bytes, fds)
    }

    /// Sends any bytes.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let rights = [ControlMessage::ScmRights(fds)];
        let mut control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let mut rest = bytes;
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

    /// The next reply. What the server asks meanwhile is answered.
    pub fn reply(&mut self) -> Result<Answer, Error> {
        loop {
            let answer = match self.waiting.pop_front() {
                Some(answer) => answer,
                None => self.receive()?,
            };
            if answer.flags & 0xF != 0 {
                return Ok(answer);
            }
            self.serve(&answer)?;
        }
    }

    /// Answers what the server asks until `done`.
    pub fn serve_until(&mut self, mut done: impl FnMut() -> bool) -> Result<(), Error> {
        let since = Instant::now();
        self.socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        while !done() {
            match self.receive() {
                Ok(answer) if answer.flags & 0xF == 0 => self.serve(&answer)?,
                Ok(answer) => self.waiting.push_back(answer),
                Err(Error::Socket(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if since.elapsed() > TIMEOUT {
                return Err(Error::Timeout);
            }
        }
        self.socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(())
    }

    /// Answers a DMA_READ or DMA_WRITE.
    fn serve(&mut self, asked: &Answer) -> Result<(), Error> {
        let field = |at: usize| {
            let bytes = asked.body.get(at..at + 8).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        let (address, count) = (field(0), field(8));
        let memory = self.memory.clone();
        let window = memory.and_then(|memory| memory.at_address(address, count).ok());
        let Some(window) = window else {
            let flags = Answer::REPLY | Answer::ERROR;
            return self.send_head(asked.id, asked.command, 16, flags, &[], &[]);
        };
        let mut body = asked.body.get(..16).unwrap_or_default().to_vec();
        if asked.command == command::DMA_READ {
            self.served[0] += count;
            body.extend(window.bytes(0, window.len()));
        } else {
            self.served[1] += count;
            window.write(0, asked.body.get(16..).unwrap_or_default());
        }
        let size = 16 + body.len() as u32;
        self.send_head(asked.id, asked.command, size, Answer::REPLY, &body, &[])
    }

    /// Receives one message.
    pub fn receive(&self) -> Result<Answer, Error> {
        let mut head = [0; 16];
        let mut space = cmsg_space!([RawFd; 32]);
        let mut fds = Vec::new();
        let mut parts = [IoSliceMut::new(&mut head)];
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
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
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let mut body = vec![0; word(4).saturating_sub(16).min(2 << 20) as usize];
        socket.read_exact(&mut body)?;
        let (flags, error) = (word(8), word(12));
        Ok(Answer { id: half(0), command: half(2), flags, error, body, fds })
    }

    /// Reads from a region.
    pub fn read(&mut self, region: u32, offset: u64, count: usize) -> Result<Vec<u8>, Error> {
        let body = access(region, offset, count);
        Ok(self.call(command::REGION_READ, &body, &[])?.body.split_off(16))
    }

    /// Writes to a region.
    pub fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let body = [&access(region, offset, bytes.len()), bytes].concat();
        self.call(command::REGION_WRITE, &body, &[]).map(drop)
    }

    /// Maps memory, with its descriptor or without.
    pub fn map(
        &mut self,
        address: u64,
        size: u64,
        file: Option<(&dyn AsRawFd, u64)>,
    ) -> Result<(), Error> {
        let offset = file.map_or(0, |(_, offset)| offset);
        let fds: Vec<RawFd> = file.iter().map(|(file, _)| file.as_raw_fd()).collect();
        self.call(command::DMA_MAP, &map(address, size, offset), &fds).map(drop)
    }

    /// Unmaps memory.
    pub fn unmap(&mut self, address: u64, size: u64) -> Result<(), Error> {
        self.call(command::DMA_UNMAP, &unmap(address, size), &[]).map(drop)
    }

    /// Says where interrupts go, 16 at a time.
    pub fn set_irqs(&mut self, index: u32, events: &[&EventFd]) -> Result<(), Error> {
        for (part, events) in events.chunks(16).enumerate() {
            let fds: Vec<RawFd> = events.iter().map(|event| event.as_raw_fd()).collect();
            let body = words(&[20, 0x24, index, part as u32 * 16, fds.len() as u32]);
            self.call(command::SET_IRQS, &body, &fds)?;
        }
        Ok(())
    }

    /// The doorbells, by queue.
    pub fn doorbells(&mut self) -> Result<Vec<EventFd>, Error> {
        let body = words(&[1 << 16, 0, region::REGISTERS, 0]);
        let answer = self.call(command::GET_REGION_IO_FDS, &body, &[])?;
        Ok(answer.fds.into_iter().map(event).collect())
    }

    /// Reads a field of the common configuration.
    pub fn common(&mut self, offset: u64, bytes: usize) -> Result<u64, Error> {
        let read = self.read(region::REGISTERS, offset, bytes)?;
        Ok(read.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Writes a field of the common configuration.
    pub fn set_common(&mut self, offset: u64, bytes: usize, value: u64) -> Result<(), Error> {
        self.write(region::REGISTERS, offset, &value.to_le_bytes()[..bytes])
    }

    /// Up to FEATURES_OK: what is offered, and what is used of `wanted`.
    pub fn negotiate(&mut self, wanted: u64) -> Result<(u64, u64), Error> {
        self.set_common(STATUS, 1, 0)?;
        self.set_common(STATUS, 1, 3)?;
        let mut offered = 0;
        for half in 0..2 {
            self.set_common(0x00, 4, half)?;
            offered |= self.common(0x04, 4)? << (32 * half);
        }
        let features = offered & wanted;
        for half in 0..2 {
            self.set_common(0x08, 4, half)?;
            self.set_common(0x0C, 4, features >> (32 * half))?;
        }
        self.set_common(STATUS, 1, 11)?;
        if self.common(STATUS, 1)? != 11 {
            return Err(Error::Missing { offered, missing: features });
        }
        Ok((offered, features))
    }

    /// Describes a queue, with a vector of its own, and enables it.
    pub fn enable(&mut self, queue: &Queue) -> Result<(), Error> {
        let index = queue.index as u64;
        self.set_common(0x16, 2, index)?;
        self.set_common(0x18, 2, queue.ring.size().into())?;
        self.set_common(0x1A, 2, index + 1)?;
        for (at, area) in [0x20, 0x28, 0x30].into_iter().zip(queue.ring.areas()) {
            self.set_common(at, 8, area.address())?;
        }
        self.set_common(0x1C, 2, 1)
    }
}

/// Where the device status is.
const STATUS: u64 = 0x14;

impl Device<Client> {
    /// Connects to a server and starts everything, as a VMM and a guest's driver do: MSI-X with a
    /// vector for each queue, and doorbells by eventfds.
    pub fn plug(path: impl AsRef<Path>, setup: &Setup) -> Result<Self, Error> {
        let mut link = Client::connect(path)?;
        link.open()?;
        let memory = Memory::new(setup.regions, setup.region)?;
        for region in 0..memory.regions() {
            let (start, len) = memory.bounds(region)?;
            link.map(start, len, Some((memory.file(region)?, 0)))?;
        }
        Self::drive(link, memory, setup)
    }

    /// As [`Device::plug`] on a connection that has its memory.
    pub fn drive(mut link: Client, memory: Arc<Memory>, setup: &Setup) -> Result<Self, Error> {
        let wanted = setup.features | setup.required | feature::ACCESS_PLATFORM;
        let (offered, features) = link.negotiate(wanted)?;
        if setup.required & !offered != 0 {
            return Err(Error::Missing { offered, missing: setup.required & !offered });
        }
        let mut queues = (0..setup.queues + 2)
            .map(|index| Queue::new(&memory, index, setup.size, features))
            .collect::<Result<Vec<_>, _>>()?;
        for (queue, doorbell) in queues.iter_mut().zip(link.doorbells()?) {
            queue.kick = doorbell;
        }
        let spare = EventFd::new(0)?;
        let events: Vec<&EventFd> =
            std::iter::once(&spare).chain(queues.iter().map(|queue| &queue.call)).collect();
        link.set_irqs(irq::MSIX, &events)?;
        // Memory space, bus master; MSI-X.
        link.write(region::CONFIG, 0x04, &[6, 0])?;
        link.write(region::CONFIG, 0x42, &[0, 0x80])?;
        for queue in &queues {
            link.enable(queue)?;
        }
        link.set_common(STATUS, 1, 15)?;
        let scratch = Scratch::new(&memory, setup)?;
        Ok(Self::of(link, memory, queues, (offered, features), scratch, setup))
    }
}

/// The body of REGION_READ, and the first part of that of REGION_WRITE.
pub fn access(region: u32, offset: u64, count: usize) -> Vec<u8> {
    [&offset.to_ne_bytes()[..], &words(&[region, count as u32])].concat()
}

/// The body of DMA_MAP: to be read and written.
pub fn map(address: u64, size: u64, offset: u64) -> Vec<u8> {
    let mut body = words(&[32, 3]);
    body.extend([offset, address, size].map(u64::to_ne_bytes).as_flattened());
    body
}

/// The body of DMA_UNMAP.
pub fn unmap(address: u64, size: u64) -> Vec<u8> {
    let mut body = words(&[24, 0]);
    body.extend([address, size].map(u64::to_ne_bytes).as_flattened());
    body
}

/// Bytes of 32-bit fields.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[allow(unsafe_code)] // Received descriptors come as numbers.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[allow(unsafe_code)] // Descriptors become eventfds by number.
fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: a descriptor that nobody else owns.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}
