//! What a VMM sends on its socket: any messages, in any order, with any descriptors.

use std::{
    collections::HashMap,
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{Arc, Mutex},
};

use nix::sys::{
    eventfd::EventFd,
    memfd::{MFdFlags, memfd_create},
};
use vhost_frontend::{Header, Link};
use vmm_glue::{
    controller::{Controller, Place, Router},
    queue::{Note, Seed as QueueSeed, Start},
    ring::Chain,
    vhost,
};
use vscsi_target::reactor::EndpointId;

use crate::Seed;

/// A conversation with the front door. A message is its number, options (how many descriptors,
/// whether an answer is wanted, whether the size is a lie), the length of its body, and the body.
/// Behind a zero length come the bytes of the guest's memory, which holds the rings.
pub fn vhost(data: &[u8]) {
    let Some((&most, mut rest)) = data.split_first() else { return };
    let router = Arc::new(Queues::default());
    let controller = Controller::new("fuzz".into(), 2, Vec::new(), router);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let server = vhost::connected(theirs, controller).expect("a thread");
    let memory = File::from(memfd_create(c"fuzz", MFdFlags::empty()).expect("memory"));
    memory.set_len(MEMORY).expect("memory");
    let room = rest.len().min(MEMORY as usize);
    memory.write_all_at(&rest[..room], 0).expect("memory");
    let event: OwnedFd = EventFd::new().expect("an eventfd").into();
    let fds = [memory.as_raw_fd(), event.as_raw_fd(), event.as_raw_fd()];
    let link = Link::over(ours).expect("a link");
    for _ in 0..most.min(MOST_MESSAGES) {
        let &[request, options, len, ref after @ ..] = rest else { break };
        let Some((body, after)) = after.split_at_checked(len.into()) else { break };
        rest = after;
        let count = usize::from(options & 3);
        // Where one is sent it is memory or an event, by the fifth bit.
        let first = usize::from(options >> 4 & 1);
        let sent: Vec<RawFd> = fds.iter().skip(first).take(count).copied().collect();
        let mut header = Header::new(request.into(), body.len());
        header.flags |= if options & 4 != 0 { Header::NEED_REPLY } else { 0 };
        header.size += u32::from(options & 8);
        // It may have had enough.
        if link.send(header, body, &sent).is_err() {
            break;
        }
    }
    drop(link);
    server.wait();
}

/// Queues without a reactor: they take what is in a ring once, when it starts.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    started: Mutex<HashMap<u32, Start>>,
}

impl Router for Queues {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, _reactor: u16, seed: QueueSeed) {
        let endpoint = EndpointId { index: seed.index.into(), generation: 0 };
        let place = Place { reactor: 0, endpoint };
        seed.controller.set_place(seed.index, Some(place));
        let _ = seed.opened.send(place);
    }

    fn note(&self, to: Place, note: Note) {
        let mut started = self.started.lock().expect("nobody panicked");
        let queue = to.endpoint.index;
        match note {
            Note::Start(mut start, done) => {
                start.ring.set_log(start.log.clone(), &start.map);
                let mut chain = Chain::default();
                for _ in 0..8 {
                    if start.ring.pop(&start.map, &mut chain).is_err() {
                        break;
                    }
                }
                start.ring.publish();
                started.insert(queue, *start);
                let _ = done.send(());
            }
            Note::Stop(done) | Note::Close(done) => {
                let _ = done.send(started.remove(&queue).map(|start| start.ring.base()));
            }
            Note::Remap(map, areas, done) => {
                if let Some(start) = started.get_mut(&queue) {
                    let moved = areas.map(|areas| start.ring.move_to(areas));
                    start.map = map;
                    if !matches!(moved, Some(Ok(()))) {
                        started.remove(&queue);
                    }
                }
                let _ = done.send(());
            }
            Note::Log(log, done) => {
                if let Some(start) = started.get_mut(&queue) {
                    start.ring.set_log(log, &start.map);
                }
                let _ = done.send(());
            }
            Note::Exchange(exchange, done) => {
                if let Some(start) = started.get_mut(&queue) {
                    let moved = exchange.areas.map(|areas| start.ring.move_to(areas));
                    start.map = exchange.map;
                    if !matches!(moved, Some(Ok(()))) {
                        started.remove(&queue);
                    }
                }
                let _ = done.send(());
            }
            Note::Enable(_, done) => {
                let _ = done.send(());
            }
            _ => {}
        }
    }
}

/// What QEMU says, up to a point.
pub fn vhost_seeds() -> Vec<Seed> {
    let all = conversation();
    let bytes = |messages: &[Vec<u8>]| [&[messages.len() as u8][..], &messages.concat()].concat();
    vec![
        Seed { name: "negotiation", bytes: bytes(&all[..9]) },
        Seed { name: "two_rings", bytes: bytes(&all) },
        Seed { name: "log_and_reset", bytes: bytes(&[&all[..9], &all[23..]].concat()) },
    ]
}

fn conversation() -> Vec<Vec<u8>> {
    let message = |request: u8, options: u8, body: &[u8]| {
        [&[request, options, body.len() as u8][..], body].concat()
    };
    let numbers = |list: &[u64]| list.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
    let pair = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let (one_memory, one_event) = (1, 1 | 16);
    let mut all = vec![
        message(1, 0, &[]),
        message(15, 0, &[]),
        message(16, 0, &numbers(&[1 | 2 | 8 | 32 | 512 | 4096 | 8192 | 32768])),
        message(17, 0, &[]),
        message(3, 0, &[]),
        message(2, 0, &numbers(&[1 << 32 | 1 << 30 | 1 << 28])),
        message(24, 0, &[&pair(0, 0)[..], &pair(36, 0), &[0; 32]].concat()),
        message(31, 0, &[numbers(&[0, 0]), vec![4, 0, 16, 0, 0, 0, 0, 0]].concat()),
        message(
            5,
            one_memory | 4,
            &[&pair(1, 0)[..], &numbers(&[0, MEMORY, 0x7000_0000, 0])].concat(),
        ),
    ];
    for index in [0, 2] {
        let base = 0x7000_0000 + u64::from(index) * 0x4000;
        let addresses = numbers(&[base, base + 0x2000, base + 0x1000, 0]);
        all.extend([
            message(8, 0, &pair(index, 16)),
            message(10, 0, &pair(index, 0)),
            message(9, 0, &[&pair(index, 0)[..], &addresses].concat()),
            message(14, one_event, &numbers(&[index.into()])),
            message(13, one_event, &numbers(&[index.into()])),
            message(12, one_event, &numbers(&[index.into()])),
            message(18, 4, &pair(index, 1)),
        ]);
    }
    all.extend([
        message(6, one_memory, &numbers(&[4096, 0])),
        message(2, 4, &numbers(&[1 << 32 | 1 << 30 | 1 << 28 | 1 << 26])),
        message(11, 0, &pair(2, 0)),
        message(34, 4, &[]),
        message(39, 4, &numbers(&[15])),
        message(200, 4, &[]),
    ]);
    all
}

const MEMORY: u64 = 1 << 16;
/// Answers to more could fill the socket.
const MOST_MESSAGES: u8 = 40;
