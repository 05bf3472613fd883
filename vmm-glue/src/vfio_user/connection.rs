//! The messages of one connection.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use thiserror::Error;

use super::{
    device::Device,
    message::{
        self, Access, DmaMap, DmaUnmap, Fields, Head, MAJOR, MOST_DATA, SetIrqs, Version, command,
        flag, irq, region, words,
    },
    pci,
    socket::{Message, Socket, SocketError},
};
use crate::door::event::{into_descriptor, lend};

/// Why a connection ends.
#[derive(Debug, Error)]
pub(super) enum Broken {
    /// The socket failed, or carried what is no message.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refused.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    /// The file behind the memory was truncated.
    #[error("the memory that the VMM shared was taken away")]
    Lost,
    /// It did not begin with VERSION.
    #[error("it begins with message {0} instead of the version")]
    Begin(u16),
    /// Not a version that is spoken here.
    #[error("it speaks version {major}.{minor} of vfio-user, or no version at all")]
    Version {
        /// Its major number.
        major: u16,
        /// Its minor number.
        minor: u16,
    },
    /// A reply to nothing.
    #[error("it replies to message {0}, which was not asked for")]
    Reply(u16),
}

/// Serves a client until it disconnects, and stops what it started.
pub(super) fn serve(stream: UnixStream, device: Device) -> Result<(), Broken> {
    let mut connection = Connection {
        socket: Socket::new(stream),
        device,
        version: Version::default(),
        asked: 0,
        data_at: None,
    };
    let end = connection.serve();
    connection.device.stop();
    end
}

/// A client and its device.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) device: Device,
    /// What the client said of itself.
    pub(super) version: Version,
    /// Number of the last message that was sent without being asked.
    pub(super) asked: u16,
    /// Where data begins in what the client is asked for, once that is known.
    pub(super) data_at: Option<usize>,
}

/// What a command is answered with.
#[derive(Debug, Default)]
struct Reply {
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl From<Vec<u8>> for Reply {
    fn from(body: Vec<u8>) -> Self {
        Self { body, descriptors: Vec::new() }
    }
}

/// A reply, or an errno.
type Answer = Result<Reply, i32>;

impl Connection {
    fn serve(&mut self) -> Result<(), Broken> {
        let Some(first) = self.next()? else { return Ok(()) };
        self.version = self.begin(first)?;
        while let Some(message) = self.next()? {
            self.handle(message)?;
            if self.device.has_lost_memory() {
                return Err(Broken::Lost);
            }
        }
        Ok(())
    }

    /// Waits for a message, and does meanwhile what the device has to do.
    fn next(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            let period = self.device.period();
            let timeout = period.map_or(PollTimeout::NONE, PollTimeout::from);
            let (is_message, is_event) = {
                let mut fds: Vec<PollFd<'_>> = std::iter::once(self.socket.as_fd())
                    .chain(self.device.sources().map(lend))
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                    .collect();
                match poll(&mut fds, timeout) {
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(Broken::System(errno.into())),
                    Ok(_) => {}
                }
                let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
                (ready.next() == Some(true), ready.any(|ready| ready))
            };
            if is_event {
                self.device.collect();
                let asked = self.asked;
                self.carry()?;
                if self.asked != asked {
                    // The message may be handled already.
                    continue;
                }
            }
            if is_message {
                return Ok(self.socket.receive()?);
            }
            if period.is_some() {
                self.device.tick();
            }
        }
    }

    /// The first message.
    fn begin(&mut self, first: Message) -> Result<Version, Broken> {
        let head = first.head;
        if head.command != command::VERSION || head.flags & flag::TYPE != 0 {
            return Err(Broken::Begin(head.command));
        }
        match Version::parse(&first.body).filter(|version| version.major == MAJOR) {
            Some(version) => {
                self.answer(&head, Ok(version.answer().into()))?;
                Ok(version)
            }
            None => {
                self.answer(&head, Err(libc::EINVAL))?;
                let mut fields = Fields(&first.body);
                let mut number = || fields.u16().unwrap_or(u16::MAX);
                Err(Broken::Version { major: number(), minor: number() })
            }
        }
    }

    pub(super) fn handle(&mut self, message: Message) -> Result<(), Broken> {
        let Message { head, body, descriptors } = message;
        if head.flags & flag::TYPE != 0 {
            return Err(Broken::Reply(head.command));
        }
        let is_memory = matches!(head.command, command::DMA_MAP | command::DMA_UNMAP);
        // Messages about memory that nobody waits for are done together.
        if !is_memory {
            self.device.commit();
        }
        let answer = self.dispatch(&head, &body, descriptors);
        if let Err(errno) = answer {
            tracing::debug!(command = head.command, errno, "refused a vfio-user message");
        }
        if head.flags & flag::NO_REPLY != 0 {
            return Ok(());
        }
        self.device.commit();
        self.answer(&head, answer)
    }

    fn dispatch(&mut self, head: &Head, body: &[u8], mut descriptors: Vec<OwnedFd>) -> Answer {
        match head.command {
            command::DMA_MAP => {
                let map = DmaMap::parse(body).ok_or(libc::EINVAL)?;
                self.device.map(&map, descriptors.pop())?;
                Ok(Reply::default())
            }
            command::DMA_UNMAP => {
                let unmap = DmaUnmap::parse(body).ok_or(libc::EINVAL)?;
                self.device.unmap(&unmap)?;
                Ok(body.get(..DmaUnmap::LEN).unwrap_or_default().to_vec().into())
            }
            command::GET_INFO => {
                Ok(words([16, FLAG_RESET | FLAG_PCI, region::COUNT, irq::KINDS]).into())
            }
            command::GET_REGION_INFO => region_info(body),
            command::GET_REGION_IO_FDS => self.io_descriptors(body),
            command::GET_IRQ_INFO => self.irq_info(body),
            command::SET_IRQS => {
                let (set, data) = SetIrqs::parse(body).ok_or(libc::EINVAL)?;
                self.device.set_irqs(&set, data, descriptors)?;
                Ok(Reply::default())
            }
            command::REGION_READ => self.read(body),
            command::REGION_WRITE => {
                let (access, data) = Access::parse(body).ok_or(libc::EINVAL)?;
                let data = data.get(..access.count as usize).ok_or(libc::EINVAL)?;
                self.device.write(access.region, access.offset, data)?;
                Ok(access.emit().to_vec().into())
            }
            command::REGION_WRITE_MULTI => {
                let writes = message::writes(body).ok_or(libc::EINVAL)?;
                for (access, data) in &writes {
                    self.device.write(access.region, access.offset, data)?;
                }
                Ok((writes.len() as u64).to_ne_bytes().to_vec().into())
            }
            command::RESET => {
                self.device.reset();
                Ok(Reply::default())
            }
            // No client moves a device, and none asks what is dirty.
            command::DEVICE_FEATURE => Err(libc::ENOTTY),
            command::DIRTY_PAGES | command::MIG_DATA_READ | command::MIG_DATA_WRITE => {
                Err(libc::ENOTSUP)
            }
            // Said once, and not by a client.
            command::VERSION | command::DMA_READ | command::DMA_WRITE => Err(libc::EINVAL),
            _ => Err(libc::ENOSYS),
        }
    }

    fn read(&mut self, body: &[u8]) -> Answer {
        let (access, _) = Access::parse(body).ok_or(libc::EINVAL)?;
        let len = access.count as usize;
        if len > MOST_DATA {
            return Err(libc::EINVAL);
        }
        let mut bytes = access.emit().to_vec();
        bytes.resize(Access::LEN + len, 0);
        let data = bytes.get_mut(Access::LEN..).unwrap_or_default();
        self.device.read(access.region, access.offset, data)?;
        Ok(bytes.into())
    }

    fn irq_info(&self, body: &[u8]) -> Answer {
        let mut fields = Fields(body.get(8..).unwrap_or_default());
        let index = fields.u32().filter(|&index| index < irq::KINDS).ok_or(libc::EINVAL)?;
        let flags = match index {
            irq::INTX => IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED,
            irq::MSIX => IRQ_EVENTFD | IRQ_MASKABLE,
            _ => 0,
        };
        Ok(words([16, flags, index, self.device.irqs(index)]).into())
    }

    /// The doorbells as ioeventfds, as many as the client takes.
    fn io_descriptors(&self, body: &[u8]) -> Answer {
        let mut fields = Fields(body);
        let most = fields.u32().ok_or(libc::EINVAL)? as usize;
        let index = Fields(body.get(8..).unwrap_or_default()).u32();
        let index = index.filter(|&index| index < region::COUNT).ok_or(libc::EINVAL)?;
        let doorbells = if index == region::REGISTERS { self.device.kicks() } else { &[] };
        let count = doorbells.len().min(self.version.descriptors());
        let need = IO_FDS + count * IO_FD;
        let head = words([need as u32, 0, index, count as u32]);
        // The client asks again with more room.
        if most < need {
            return Ok(head.into());
        }
        let (mut body, mut descriptors) = (head, Vec::new());
        for (number, kick) in (0u32..).zip(doorbells.iter().take(count)) {
            let offset = pci::NOTIFY + number * pci::NOTIFY_STEP;
            body.extend_from_slice(&u64::from(offset).to_ne_bytes());
            // Of any size.
            body.extend_from_slice(&0u64.to_ne_bytes());
            body.extend_from_slice(&words([number, TYPE_IOEVENTFD, 0, 0]));
            // No value is to match.
            body.extend_from_slice(&0u64.to_ne_bytes());
            let copy = kick.try_clone().map_err(|error| errno(&error))?;
            descriptors.push(into_descriptor(copy));
        }
        Ok(Reply { body, descriptors })
    }

    fn answer(&mut self, head: &Head, answer: Answer) -> Result<(), Broken> {
        match answer {
            Ok(Reply { body, descriptors }) => {
                let descriptors: Vec<BorrowedFd<'_>> =
                    descriptors.iter().map(AsFd::as_fd).collect();
                self.socket.send(&head.reply(body.len()), [&body, &[]], &descriptors)?;
            }
            Err(errno) => self.socket.send(&head.failure(errno), [&[], &[]], &[])?,
        }
        Ok(())
    }
}

fn region_info(body: &[u8]) -> Answer {
    let mut fields = Fields(body.get(8..).unwrap_or_default());
    let index = fields.u32().filter(|&index| index < region::COUNT).ok_or(libc::EINVAL)?;
    let size = Device::region_size(index);
    let flags = if size > 0 { REGION_READ | REGION_WRITE } else { 0 };
    let mut body = words([REGION_INFO, flags, index, 0]);
    body.extend_from_slice(&size.to_ne_bytes());
    // Nothing of it can be mapped.
    body.extend_from_slice(&0u64.to_ne_bytes());
    Ok(body.into())
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// VFIO_DEVICE_FLAGS_RESET.
const FLAG_RESET: u32 = 1;
/// VFIO_DEVICE_FLAGS_PCI.
const FLAG_PCI: u32 = 2;
const REGION_READ: u32 = 1;
const REGION_WRITE: u32 = 2;
/// Bytes of the answer to GET_REGION_INFO.
const REGION_INFO: u32 = 32;
/// VFIO_IRQ_INFO_EVENTFD.
const IRQ_EVENTFD: u32 = 1;
/// VFIO_IRQ_INFO_MASKABLE.
const IRQ_MASKABLE: u32 = 2;
/// VFIO_IRQ_INFO_AUTOMASKED.
const IRQ_AUTOMASKED: u32 = 4;
/// Bytes of the answer to GET_REGION_IO_FDS before its list.
const IO_FDS: usize = 16;
/// Bytes of an entry of the list.
const IO_FD: usize = 40;
/// VFIO_USER_IO_FD_TYPE_IOEVENTFD.
const TYPE_IOEVENTFD: u32 = 0;
