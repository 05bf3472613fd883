//! What a guest writes: rings of both kinds, and the requests of a virtio-scsi device.

use std::{os::unix::fs::FileExt, sync::Arc};

use vmm_glue::{
    memory::{GuestMap, Region},
    ring::{Areas, Chain, Popped, Ring, Setup, feature, inflight::InflightArea},
    scsi::{Address, Layout, config::Config, control::Control},
};
use vscsi_target::reactor::sg::Segment;

use crate::Seed;

/// A ring in a small guest. The first byte says which features, the second how large it is; the
/// others are the guest's memory, rings first. At the end the process dies, and another one goes on
/// with the log.
pub fn ring(data: &[u8]) {
    let &[options, size, ref bytes @ ..] = data else { return };
    let size = u16::from(size % 17);
    let mut features = 0;
    for (bit, mask) in [
        (1, feature::RING_PACKED),
        (2, feature::INDIRECT_DESC),
        (4, feature::EVENT_IDX),
        (8, feature::IN_ORDER),
    ] {
        features |= if options & bit != 0 { mask } else { 0 };
    }
    let map = guest(bytes);
    let (file, len) = InflightArea::create(1, size.max(1), features).expect("memory");
    let log = InflightArea::map(len, 0, file, size.max(1), features).expect("memory");
    let open = || {
        let at = |gpa| map.at(gpa, 1).expect("mapped");
        let areas = Areas { descriptor: at(0), driver: at(DRIVER), device: at(DEVICE) };
        let base = if features & feature::RING_PACKED != 0 { 0x8000_8000 } else { 0 };
        let inflight = Some((Arc::clone(&log), 0));
        Ring::open(Setup { size, areas, base, features, inflight })
    };
    let Ok(mut ring) = open() else { return };
    let (mut chain, mut out) = (Chain::default(), Vec::new());
    let mut broken = false;
    // The guest does not go on meanwhile, but what the device writes may look like that.
    for turn in 0..64 {
        match ring.pop(&map, &mut chain) {
            Ok(Popped::Empty) => {}
            Ok(popped) => {
                assert!(chain.id < size && !chain.again);
                if out.contains(&chain.id) {
                    // The queue stops at such a driver.
                    return;
                }
                out.push(chain.id);
                if popped == Popped::Chain {
                    check(&map, &chain);
                }
            }
            Err(_) => broken = true,
        }
        assert!(out.len() <= usize::from(size));
        if turn % 3 == 2 && !out.is_empty() {
            ring.push(out.remove(turn % out.len()), 5);
        }
        if turn % 5 == 4 {
            ring.publish();
        }
        if turn % 7 == 6 && !ring.rearm() {
            ring.suppress();
        }
        if broken {
            break;
        }
    }
    for id in out.drain(..out.len() / 2) {
        ring.push(id, 0);
    }
    ring.publish();
    // In order, those that came before wait for others.
    let least = out.len();
    drop(ring);
    let mut ring = open().expect("a log of our own");
    let mut again = Vec::new();
    while let Ok(Popped::Chain | Popped::Bad) = ring.pop(&map, &mut chain) {
        if !chain.again {
            break;
        }
        again.push(chain.id);
    }
    assert!(again.len() >= least && out.iter().all(|id| again.contains(id)));
    assert!(features & feature::IN_ORDER != 0 || again == out);
}

/// Requests, control requests and the configuration space, all read from the same bytes.
pub fn virtio_scsi(data: &[u8]) {
    let &[sense, cdb, pi, ref bytes @ ..] = data else { return };
    let mut config = Config::new(4);
    config.write(20, &[sense, 0, 0, 0, cdb, 0, 0, 0]);
    config.write(u32::from(pi), bytes);
    assert_eq!(config.read(0, 36), config.bytes());
    let layout = Layout { pi: pi & 1 != 0, ..config.layout };
    match layout.request(bytes) {
        Some(request) => {
            assert!(bytes.len() >= layout.request_len());
            assert_eq!(request.cdb.len(), layout.cdb_size);
        }
        None => assert!(bytes.len() < layout.request_len()),
    }
    let address = match Control::parse(bytes) {
        Control::Manage { address, .. } | Control::Notification { address, .. } => address,
        Control::Unknown => None,
    };
    if let Some(Address { target, lun }) = address
        && let Some(number) = lun.number()
    {
        let told = Address::parse(Address::in_event(target, number));
        assert_eq!(told, Some(Address { target, lun }));
    }
}

/// Chains of each kind, in rings of both kinds.
pub fn ring_seeds() -> Vec<Seed> {
    let mut split = vec![0; MEMORY];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        split[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for (at, addr, len, flags, next) in [
        (0, DATA, 51, 1, 1),
        (16, DATA + 0x100, 108, 3, 2),
        (32, DATA + 0x200, 512, 2, 0),
        (48, TABLE, 48, 4, 0),
        (64, 0x10_0000, 1, 0, 0),
        (TABLE, DATA, 51, 1, 2),
        (TABLE + 32, DATA + 0x100, 108, 3, 1),
        (TABLE + 16, REGION - 8, 16, 2, 0),
    ] {
        put(at, &entry(addr, len, [flags, next]));
    }
    // Three chains, by their heads; after them, when to interrupt.
    put(DRIVER, &[0, 0, 3, 0, 0, 0, 3, 0, 4, 0]);
    let mut packed = vec![0; MEMORY];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        packed[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for (at, addr, len, id, flags) in [
        (0, DATA, 51, 0, 0x81),
        (16, DATA + 0x100, 108, 0, 0x83),
        (32, DATA + 0x200, 512, 5, 0x82),
        (48, TABLE, 48, 2, 0x84),
        (64, 0x10_0000, 1, 1, 0x80),
        (TABLE, DATA, 51, 0, 0),
        (TABLE + 16, DATA + 0x100, 108, 0, 2),
        (TABLE + 32, REGION - 8, 16, 0, 2),
    ] {
        put(at, &entry(addr, len, [id, flags]));
    }
    put(DRIVER, &[1, 0x80, 2, 0]);
    let seed = |name, options, size, memory: &[u8]| Seed {
        name,
        bytes: [&[options, size], memory].concat(),
    };
    vec![
        seed("split", 2, 8, &split),
        seed("split_event_in_order", 14, 8, &split),
        seed("packed", 3, 7, &packed),
        seed("packed_event_in_order", 15, 7, &packed),
        seed("packed_full", 3, 5, &packed),
    ]
}

/// Requests as Linux's driver sends them.
pub fn virtio_scsi_seeds() -> Vec<Seed> {
    let seed = |name, head: [u8; 3], rest: &[u8]| Seed { name, bytes: [&head, rest].concat() };
    let mut read = [0; 51];
    read[..4].copy_from_slice(&[1, 0, 0x40, 3]);
    read[19..29].copy_from_slice(&[0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0]);
    let mut reset = [0; 24];
    reset[4] = 5;
    reset[8..12].copy_from_slice(&[1, 2, 0x40, 3]);
    let mut subscribe = [0; 16];
    (subscribe[0], subscribe[4], subscribe[12]) = (2, 1, 2);
    vec![
        seed("read", [96, 32, 200], &read),
        seed("read_pi", [18, 16, 201], &read),
        seed("logical_unit_reset", [96, 32, 200], &reset),
        seed("subscribe", [96, 32, 200], &subscribe),
        seed("report_luns", [96, 32, 200], &[0xC1, 1, 0, 0, 0, 0, 0, 0]),
    ]
}

/// A descriptor, of either kind.
fn entry(addr: u64, len: u32, rest: [u16; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&rest[0].to_le_bytes());
    bytes[14..].copy_from_slice(&rest[1].to_le_bytes());
    bytes
}

/// Two regions that adjoin, the first with these bytes, and one elsewhere.
fn guest(bytes: &[u8]) -> GuestMap {
    let regions = [0, REGION, 4 * REGION].map(|gpa| {
        let (file, _) = InflightArea::create(1, 256, 0).expect("memory");
        file.set_len(REGION).expect("memory");
        if gpa == 0 {
            let bytes = bytes.get(..REGION as usize).unwrap_or(bytes);
            file.write_all_at(bytes, 0).expect("memory");
        }
        Region::map(gpa, REGION, 0, 0, file).expect("memory")
    });
    GuestMap::new(regions.into()).expect("no overlap")
}

fn check(map: &GuestMap, chain: &Chain) {
    for (list, len) in
        [(&chain.readable, chain.readable_len), (&chain.writable, chain.writable_len)]
    {
        assert_eq!(list.iter().map(|segment| segment.len).sum::<usize>(), len as usize);
        for Segment { base, len } in list {
            let first = map.gpa_of(*base).expect("in a region");
            let region = map.at(first, *len).expect("all of it");
            assert_eq!(region, *base);
        }
    }
}

/// Where the rings and a table of indirect descriptors are in a guest, and room for data.
const DRIVER: u64 = 0x100;
const DEVICE: u64 = 0x140;
const TABLE: u64 = 0x200;
const DATA: u64 = 0x400;
const REGION: u64 = 0x1000;
/// Bytes of the seeds' memory.
const MEMORY: usize = 0x240;
