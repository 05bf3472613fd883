//! What a client of vfio-user sends on its socket: any messages, in any order, with any descriptors.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::Arc,
};

use nix::sys::{
    eventfd::EventFd,
    memfd::{MFdFlags, memfd_create},
};
use vhost_frontend::vfio::{Client, access, command, map, unmap, words};
use vmm_glue::{controller::Controller, vfio_user};

use crate::{Seed, vhost::Queues};

/// A conversation with the front door, after the version unless the first byte's highest bit says
/// otherwise. A message is its command, options (how many descriptors and of which kind, whether a
/// reply is wanted, whether it is a reply, whether the size is a lie), the length of its body, and
/// the body. Behind the last come the bytes of the guest's memory, which holds the rings.
pub fn vfio(data: &[u8]) {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let controller = Controller::new("fuzz".into(), 2, Vec::new(), Arc::new(Queues::default()));
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let server = vfio_user::connected(theirs, controller).expect("a thread");
    let memory = File::from(memfd_create(c"fuzz", MFdFlags::empty()).expect("memory"));
    memory.set_len(MEMORY).expect("memory");
    let room = rest.len().min(MEMORY as usize);
    memory.write_all_at(&rest[..room], 0).expect("memory");
    let event: OwnedFd = EventFd::new().expect("an eventfd").into();
    let fds = [memory.as_raw_fd(), event.as_raw_fd(), event.as_raw_fd()];
    let mut client = Client::over(ours).expect("a client");
    if first & 0x80 == 0 && client.open().is_err() {
        return;
    }
    for _ in 0..(first & 0x7F).min(MOST_MESSAGES) {
        let &[command, options, len, ref after @ ..] = rest else { break };
        let Some((body, after)) = after.split_at_checked(len.into()) else { break };
        rest = after;
        let count = usize::from(options & 3);
        let skip = usize::from(options >> 4 & 1);
        let sent: Vec<RawFd> = fds.iter().skip(skip).take(count).copied().collect();
        let no_reply = u32::from(options & 4) << 2;
        let flags = no_reply | u32::from(options >> 5 & 1);
        let size = 16 + body.len() as u32 + u32::from(options & 8);
        // It may have had enough.
        if client.send_head(1, command.into(), size, flags, body, &sent).is_err() {
            break;
        }
    }
    drop(client);
    server.wait();
}

/// What QEMU says, and a driver through it.
pub fn vfio_seeds() -> Vec<Seed> {
    let all = conversation();
    let bytes = |messages: &[Vec<u8>]| [&[messages.len() as u8][..], &messages.concat()].concat();
    let mut version = vec![0x81, 1, 0, 30];
    version.extend(b"\0\0\x01\0{\"capabilities\":{\"x\":1}}\0\0");
    vec![
        Seed { name: "version", bytes: version },
        Seed { name: "questions", bytes: bytes(&all[..7]) },
        Seed { name: "two_rings", bytes: bytes(&all[7..]) },
        Seed { name: "memory", bytes: bytes(&memory()) },
    ]
}

fn message(command: u16, options: u8, body: &[u8]) -> Vec<u8> {
    [&[command as u8, options, body.len() as u8][..], body].concat()
}

fn write(region: u32, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let body = [&access(region, offset, bytes.len()), bytes].concat();
    message(command::REGION_WRITE, NO_REPLY, &body)
}

fn conversation() -> Vec<Vec<u8>> {
    let mut all = vec![
        message(command::GET_INFO, 0, &words(&[16, 0, 0, 0])),
        message(command::GET_REGION_INFO, 0, &words(&[32, 0, 7, 0, 0, 0, 0, 0])),
        message(command::GET_IRQ_INFO, 0, &words(&[16, 0, 2, 0])),
        message(command::GET_REGION_IO_FDS, 0, &words(&[512, 0, 0, 0])),
        message(command::REGION_READ, 0, &access(7, 0, 64)),
        message(command::DEVICE_FEATURE, 0, &words(&[8, 0x1_0001])),
        message(command::RESET, 0, &[]),
        message(command::DMA_MAP, ONE_MEMORY, &map(0, MEMORY, 0)),
        message(command::SET_IRQS, TWO_EVENTS, &words(&[20, 0x24, 2, 0, 2])),
        write(7, 0x42, &[0, 0x80]),
        write(0, 0x08, &[1, 0, 0, 0]),
        write(0, 0x0C, &[1, 0, 0, 0]),
        write(0, 0x14, &[11]),
    ];
    for queue in [0u16, 2] {
        all.push(write(0, 0x16, &queue.to_le_bytes()));
        let base = u64::from(queue) * 0x4000;
        // Size, vector, enabled, offset, and the areas at once.
        let areas = [base, base + 0x1000, base + 0x2000].map(u64::to_le_bytes);
        all.push(write(0, 0x20, areas.as_flattened()));
        all.push(write(0, 0x18, &[16, 0, 1, 0, 1, 0]));
    }
    all.extend([
        write(0, 0x14, &[15]),
        write(0, 0x3008, &[2, 0]),
        message(command::REGION_READ, 0, &access(0, 0x1000, 1)),
        message(command::DMA_UNMAP, 0, &unmap(0, MEMORY)),
        write(0, 0x14, &[0]),
    ]);
    all
}

fn memory() -> Vec<Vec<u8>> {
    let piece = |address: u64| map(address, 0x1000, address);
    vec![
        message(command::DMA_MAP, ONE_MEMORY | NO_REPLY, &piece(0x1000)),
        message(command::DMA_MAP, ONE_MEMORY | NO_REPLY, &piece(0)),
        message(command::DMA_MAP, 0, &piece(0x8000)),
        message(command::DMA_MAP, ONE_MEMORY | 16, &piece(0x9000)),
        message(command::DMA_UNMAP, 0, &unmap(0, 0x1000)),
        message(command::DMA_UNMAP, 0, &[&words(&[24, 2]), &[0; 16][..]].concat()),
    ]
}

const MEMORY: u64 = 1 << 16;
/// Answers to more could fill the socket.
const MOST_MESSAGES: u8 = 40;
const NO_REPLY: u8 = 4;
const ONE_MEMORY: u8 = 1;
const TWO_EVENTS: u8 = 2 | 16;
