//! What a VMM says on its socket.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use vhost_frontend::{Header, Link};

use super::*;

/// A message and what comes with it.
struct Message {
    request: u32,
    body: Vec<u8>,
    fds: Vec<RawFd>,
}

fn numbers(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn pair(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// Everything a VMM says from its first word to the end of a guest.
fn conversation(memory: &File, events: &[RawFd]) -> Vec<Message> {
    let message =
        |request, body: Vec<u8>, fds: &[RawFd]| Message { request, body, fds: fds.to_vec() };
    let region = [0x10_0000, 1 << 20, 0x7000_0000_0000, 0];
    let table = [&pair(1, 0)[..], &numbers(&region)].concat();
    let mut all = vec![
        message(1, vec![], &[]),
        message(15, vec![], &[]),
        // MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD.
        message(16, numbers(&[1 | 2 | 8 | 32 | 512 | 4096]), &[]),
        message(17, vec![], &[]),
        message(3, vec![], &[]),
        message(2, numbers(&[1 << 32 | 1 << 30 | 1 << 28]), &[]),
        message(24, [&pair(0, 0)[..], &pair(36, 0), &[0; 32]].concat(), &[]),
        message(31, [numbers(&[0, 0]), vec![3, 0, 16, 0, 0, 0, 0, 0]].concat(), &[]),
        message(5, table, &[memory.as_raw_fd()]),
    ];
    for index in 0..3 {
        let base = 0x7000_0000_0000 + u64::from(index) * 0x4000;
        let addresses = numbers(&[base, base + 0x2000, base + 0x1000, 0]);
        all.extend([
            message(8, pair(index, 16), &[]),
            message(10, pair(index, 0), &[]),
            message(9, [&pair(index, 0)[..], &addresses].concat(), &[]),
            message(14, numbers(&[index.into()]), &events[..1]),
            message(13, numbers(&[index.into()]), &events[1..2]),
            message(12, numbers(&[index.into()]), &events[2..3]),
            message(18, pair(index, 1), &[]),
        ]);
    }
    all.extend([message(34, vec![], &[]), message(11, pair(2, 0), &[])]);
    all
}

fn events() -> Vec<vmm_sys_util::eventfd::EventFd> {
    (0..3).map(|_| vmm_sys_util::eventfd::EventFd::new(0).unwrap()).collect()
}

fn link(siege: &Siege) -> Link {
    Link::over(UnixStream::connect(siege.host.path()).unwrap()).unwrap()
}

#[test]
fn a_socket_may_be_cut_at_every_message_and_inside_of_it() {
    let siege = Siege::new();
    let memory = memfd(1 << 20);
    let events = events();
    let fds: Vec<RawFd> = events.iter().map(AsRawFd::as_raw_fd).collect();
    let all = conversation(&memory, &fds);
    let before = descriptors();
    for (cut, last) in all.iter().enumerate() {
        let header = Header::new(last.request, last.body.len()).bytes();
        let bytes = [&header[..], &last.body].concat();
        for part in [0, 1, 11, 12, bytes.len().saturating_sub(1), bytes.len()] {
            let link = link(&siege);
            for message in &all[..cut] {
                let header = Header::new(message.request, message.body.len());
                link.send(header, &message.body, &message.fds).unwrap();
            }
            let part = &bytes[..part.min(bytes.len())];
            // It may have had enough already.
            let _ = link.send_bytes(part, if part.is_empty() { &[] } else { &last.fds });
        }
        siege.neighbour.goes_on();
    }
    siege.check();
    siege.host.wait_for("the last connection to end", |server| !server.status().connected);
    descriptors_go_back_to(before);
}

#[test]
fn messages_with_wrong_sizes_flags_and_descriptors_end_at_most_their_connection() {
    let siege = Siege::new();
    let memory = memfd(1 << 20);
    let events = events();
    let fds: Vec<RawFd> = events.iter().map(AsRawFd::as_raw_fd).collect();
    let all = conversation(&memory, &fds);
    let file = memory.as_raw_fd();
    let many = [file; 16];
    for at in 0..all.len() {
        for fault in 0..9 {
            let link = link(&siege);
            for message in &all[..at] {
                let header = Header::new(message.request, message.body.len());
                link.send(header, &message.body, &message.fds).unwrap();
            }
            let Message { request, body, fds } = &all[at];
            let mut header = Header::new(*request, body.len());
            let longer = [&body[..], &[0xFF; 300]].concat();
            let inverted: Vec<u8> = body.iter().map(|byte| !byte).collect();
            let _ = match fault {
                0 => link.send(Header::new(*request, 0), &[], fds),
                1 => link.send(Header::new(*request, longer.len()), &longer, fds),
                2 => link.send(Header { size: u32::MAX, ..header }, body, fds),
                3 => link.send(Header { flags: 0, ..header }, body, fds),
                4 => link.send(Header { flags: u32::MAX, ..header }, body, fds),
                5 => link.send(header, body, &[]),
                6 => link.send(header, body, &many),
                7 => link.send(header, &inverted, fds),
                _ => {
                    header.flags |= Header::NEED_REPLY;
                    link.send(header, body, &[file])
                }
            };
        }
        siege.neighbour.goes_on();
    }
    siege.check();
}

#[test]
fn memory_regions_that_cannot_be_are_refused() {
    let siege = Siege::new();
    let memory = memfd(1 << 20);
    let pipe = nix::unistd::pipe().unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    let good = [0x10_0000, 1 << 20, 0x7000_0000_0000, 0];
    let tables: [(&[[u64; 4]], RawFd); 12] = [
        (&[], memory.as_raw_fd()),
        (&[good, good], memory.as_raw_fd()),
        (&[good, [0x18_0000, 4096, 0, 0]], memory.as_raw_fd()),
        (&[[0, 0, 0, 0]], memory.as_raw_fd()),
        (&[[0, u64::MAX, 0, 0]], memory.as_raw_fd()),
        (&[[u64::MAX, 4096, 0, 0]], memory.as_raw_fd()),
        (&[[0, 4096, u64::MAX, 0]], memory.as_raw_fd()),
        (&[[0, 4096, 0, u64::MAX]], memory.as_raw_fd()),
        (&[[0, 2 << 20, 0, 0]], memory.as_raw_fd()),
        (&[good], pipe.0.as_raw_fd()),
        (&[good], null.as_raw_fd()),
        (&[good], read_only.as_raw_fd()),
    ];
    for (regions, fd) in tables {
        let mut link = link(&siege);
        link.open(vhost_frontend::Protocol::REPLY_ACK).unwrap();
        let body: Vec<u8> = regions.iter().flat_map(|region| numbers(region)).collect();
        let body = [&pair(regions.len() as u32, 0)[..], &body].concat();
        let answer = link.call(5, &body, &vec![fd; regions.len()]);
        // No memory at all is a table too.
        assert!(answer.is_err() || regions.is_empty(), "{regions:x?}");
    }
    siege.check();
}

#[test]
fn random_messages_end_at_most_their_connection() {
    let siege = Siege::new();
    let memory = memfd(1 << 20);
    let events = events();
    let fds: Vec<RawFd> = events.iter().map(AsRawFd::as_raw_fd).collect();
    let all = conversation(&memory, &fds);
    let others = [memory.as_raw_fd(), fds[0], fds[1], fds[2]];
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let before = descriptors();
    for round in 0..300 {
        let link = link(&siege);
        for message in &all[..random(all.len() as u64) as usize] {
            let header = Header::new(message.request, message.body.len());
            link.send(header, &message.body, &message.fds).unwrap();
        }
        for _ in 0..random(20) {
            let chosen = &all[random(all.len() as u64) as usize];
            let request = if random(2) == 0 { chosen.request } else { random(48) as u32 };
            let mut body = chosen.body.clone();
            body.resize(if random(4) == 0 { random(280) as usize } else { body.len() }, 0xFF);
            for _ in 0..random(3) {
                let at = random(body.len().max(1) as u64) as usize;
                if let Some(byte) = body.get_mut(at) {
                    *byte = random(256) as u8;
                }
            }
            let count = random(4) as usize;
            let with = if random(2) == 0 { &chosen.fds[..] } else { &others[..count] };
            let flags = if random(3) == 0 { 9 } else { 1 };
            let header = Header { request, flags, size: body.len() as u32 };
            if link.send(header, &body, with).is_err() {
                break;
            }
        }
        if round % 30 == 0 {
            siege.neighbour.goes_on();
        }
    }
    siege.check();
    siege.host.wait_for("the last connection to end", |server| !server.status().connected);
    descriptors_go_back_to(before);
}
