//! What the kernel writes about TCMU devices: their rings, its netlink messages, their names.

use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_glue::{
    memory::{GuestMap, Region},
    tcmu::{
        layout::{Header, Operation, cdb_len, mailbox},
        name::{DeviceName, Reference},
        netlink,
        ring::{Answer, Request, Ring, Taken},
    },
};
use vscsi_target::reactor::sg::Segment;

use crate::Seed;

/// A ring in plain memory. The first byte says what the others are: the whole memory from the mailbox
/// on; a ring with a mailbox that makes sense; or what a netlink socket receives. The second byte says
/// in which order commands are answered, and the third where the head is.
pub fn ring(data: &[u8]) {
    let &[kind, order, head, ref bytes @ ..] = data else { return };
    match kind % 3 {
        0 => memory(bytes, order, None),
        1 => memory(bytes, order, Some(u32::from(head) * 8)),
        _ => messages(bytes),
    }
}

fn memory(bytes: &[u8], order: u8, head: Option<u32>) {
    let file = File::from(memfd_create("tcmu", MFdFlags::empty()).expect("memory"));
    file.set_len(LEN).expect("memory");
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect("memory");
    let room = bytes.get(..LEN as usize - mailbox::LEN as usize).unwrap_or(bytes);
    match head {
        None => put(0, room),
        Some(head) => {
            put(0, &[2, 0, 7, 0]);
            put(4, &mailbox::LEN.to_ne_bytes());
            put(8, &RING.to_ne_bytes());
            put(12, &head.to_ne_bytes());
            put(mailbox::LEN.into(), room);
        }
    }
    let region = Region::map(0, LEN, 0, 0, file.try_clone().expect("memory")).expect("memory");
    let map = GuestMap::new(vec![region.clone()]).expect("one region");
    let start = map.at(0, 1).expect("mapped") as usize;
    let all = || {
        let mut all = vec![0; LEN as usize];
        file.read_exact_at(&mut all, 0).expect("memory");
        all
    };
    let before = all();
    let Ok(mut ring) = Ring::open(region.clone()) else { return };
    let ring_end = u32_at(&before, 4) as usize + u32_at(&before, 8) as usize;
    let check = |list: &[Segment]| {
        for segment in list {
            let at = segment.base as usize - start;
            assert!(at >= ring_end && at + segment.len <= LEN as usize);
        }
    };
    let mut request = Request::default();
    let mut busy = Vec::new();
    for turn in 0..64usize {
        match ring.take(&mut request, 1) {
            Ok(Taken::Command) => {
                assert!(request.id != 0 && !busy.contains(&request.id));
                check(&request.data);
                check(&request.data_in);
                let total = |list: &[Segment]| list.iter().map(|part| part.len as u64).sum::<u64>();
                assert_eq!(total(&request.data), u64::from(request.data_len));
                assert_eq!(total(&request.data_in), u64::from(request.data_in_len));
                if !request.torn {
                    let first = request.cdb().first_chunk().copied().unwrap_or([0x00; 8]);
                    assert!(
                        request.cdb().len() >= 6 && request.cdb().len() <= cdb_len(first).max(10)
                    );
                }
                busy.push(request.id);
            }
            Ok(Taken::Manage) => {}
            Ok(Taken::Reset) => panic!("nobody emptied the ring"),
            Ok(Taken::Empty) => {
                if busy.is_empty() {
                    break;
                }
            }
            Err(_) => break,
        }
        if turn % 3 == 2 && !busy.is_empty() {
            let id = busy.remove(usize::from(order) % busy.len());
            let sense: &[u8] = if order & 1 == 0 { &[] } else { &[0x70, 0, 5] };
            let status = if sense.is_empty() { 0 } else { 2 };
            assert!(ring.answer(id, &Answer { status, sense, read: Some(7) }));
            assert!(!ring.answer(id, &Answer::default()));
            ring.publish();
        }
    }
    // Only the ring and the tail are written, never data.
    let after = all();
    assert_eq!(before[ring_end..], after[ring_end..]);
    assert_eq!(before[..mailbox::TAIL as usize], after[..mailbox::TAIL as usize]);
    let behind = mailbox::ALIVE as usize + 8..mailbox::LEN as usize;
    assert_eq!(before[behind.clone()], after[behind]);
    drop(ring);
    // The process is killed. The next one finds what is in progress, as far as the ring makes sense.
    let Ok(mut ring) = Ring::open(region) else { return };
    let mut again = BTreeSet::new();
    let mut whole = true;
    loop {
        match ring.take(&mut request, 1) {
            Ok(Taken::Command) => {
                again.insert(request.id);
            }
            Ok(Taken::Empty) => break,
            Ok(_) => {}
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    assert!(!whole || busy.iter().all(|id| again.contains(id)), "{busy:?} {again:?}");
    for id in again {
        ring.clear_data(id, order.into());
        ring.answer(id, &Answer::default());
    }
    ring.publish();
    assert_eq!(after[..mailbox::TAIL as usize], all()[..mailbox::TAIL as usize]);
}

fn messages(bytes: &[u8]) {
    for message in netlink::messages(bytes, FAMILY) {
        if let netlink::Message::Event(event) = message
            && let Some(name) = DeviceName::parse(&event.name)
        {
            assert!(!name.name.is_empty() && !name.name.contains('/'));
            let said = name.reference();
            assert_eq!(said.is_some(), Reference::parse(&name.config).is_some());
        }
    }
}

/// Commands of each kind, padding, task management, events.
pub fn ring_seeds() -> Vec<Seed> {
    let two = [command(0, 1, 0), command(128, 2, 0)].concat();
    let seed = |name, kind: u8, order: u8, len: usize, bytes: &[u8]| {
        let mut all = vec![kind, order, (len / 8) as u8];
        all.extend_from_slice(bytes);
        Seed { name, bytes: all }
    };
    let mut manage = vec![0; 40];
    manage[0] = 40 | 2;
    manage[8] = 5;
    manage[12] = 2;
    manage[32] = 1;
    manage[34] = 2;
    let mut pad = command(0, 1, 0);
    pad[0] &= !1;
    let mut whole = vec![0; 128];
    whole[..4].copy_from_slice(&[2, 0, 7, 0]);
    whole[4] = 128;
    whole[8..12].copy_from_slice(&RING.to_ne_bytes());
    whole[12..16].copy_from_slice(&256u32.to_ne_bytes());
    whole.extend(&two);
    // As a process that was killed left it: taken, answered, and in the middle of an exchange.
    let taken = [command(0, 1, 0x20), command(128, 2, 0xA0)].concat();
    let mut exchange = taken.clone();
    exchange[40..48].copy_from_slice(&[128, 0, 0, 0, 2, 0, 0, 0x5C]);
    let event = b"\x44\0\0\0\x1c\0\0\0\0\0\0\0\0\0\0\0\x03\x02\0\0\
        \x17\0\x01\0tcm-user/0/d/vscsi\0\0\x08\0\x02\0\x03\0\0\0\x08\0\x08\0\x07\0\0\0\
        \x05\0\x06\0\x01\0\0\0";
    vec![
        seed("in_order", 1, 0, two.len(), &two),
        seed("out_of_order", 1, 6, two.len(), &two),
        seed("sense", 1, 1, two.len(), &two),
        seed("manage", 1, 0, two.len() + 40, &[two.clone(), manage].concat()),
        seed("pad", 1, 0, pad.len(), &pad),
        seed("mailbox", 0, 0, 0, &whole),
        seed("killed", 1, 0, taken.len(), &taken),
        seed("killed_in_exchange", 1, 0, exchange.len(), &exchange),
        seed("event", 2, 0, 0, event),
    ]
}

/// A READ(10) of 512 bytes with one iovec, at this place in the ring.
fn command(at: u32, id: u16, flags: u8) -> Vec<u8> {
    let mut entry = vec![0; 128];
    let header = Header { len: 128, operation: Operation::Command, id, kernel: 0, flags };
    entry[..8].copy_from_slice(&header.emit().to_ne_bytes());
    entry[8] = 1;
    entry[24..32].copy_from_slice(&u64::from(mailbox::LEN + at + 112).to_ne_bytes());
    entry[48..56].copy_from_slice(&8192u64.to_ne_bytes());
    entry[56..64].copy_from_slice(&512u64.to_ne_bytes());
    entry[112..122].copy_from_slice(&[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0]);
    entry
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

const LEN: u64 = 16 << 10;
const RING: u32 = 4096;
const FAMILY: u16 = 0x1C;
