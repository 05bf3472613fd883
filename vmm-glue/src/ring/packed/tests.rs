use super::*;
use crate::ring::{
    Ring,
    rig::{self, DATA, DESCRIPTOR as TABLE, DEVICE, DRIVER, GPA, Guest, Piece},
};

const PACKED: u64 = feature::RING_PACKED | feature::INDIRECT_DESC;

fn piece(nth: u64, len: u32, write: bool) -> Piece {
    Piece { addr: DATA + nth * 0x1000, len, write }
}

fn lengths(segments: &[vscsi_target::reactor::sg::Segment]) -> Vec<usize> {
    segments.iter().map(|segment| segment.len).collect()
}

#[test]
fn chains_go_round_a_ring_of_any_size() {
    for size in [3, 5, 7, 8, 255] {
        let guest = Guest::new(1);
        let (mut ring, mut driver) = (guest.open(size, PACKED), guest.driver(size, PACKED));
        let mut chain = Chain::default();
        for turn in 0..u32::from(size) * 5 {
            let id = driver.add(&[piece(0, 7, false), piece(1, turn, true)]).unwrap();
            assert_eq!(rig::pop(&mut ring, &guest, &mut chain), Some(id));
            assert_eq!((chain.readable_len, chain.writable_len), (7, turn));
            assert_eq!(chain.readable[0].base, guest.at(DATA));
            assert_eq!(rig::pop(&mut ring, &guest, &mut chain), None);
            ring.push(id, turn);
            assert_eq!(driver.used(), None);
            assert!(ring.publish() && !ring.publish());
            assert_eq!(driver.used(), Some((id, turn)));
            assert_eq!(driver.used(), None);
        }
    }
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    let guest = Guest::new(1);
    let (mut ring, mut driver) = (guest.open(8, PACKED), guest.driver(8, PACKED));
    let mut chain = Chain::default();
    let ids: Vec<u16> =
        (0..3).map(|n| driver.add(&[piece(0, 1, false), piece(1, n, true)]).unwrap()).collect();
    while rig::pop(&mut ring, &guest, &mut chain).is_some() {}
    for id in ids.iter().rev() {
        ring.push(*id, u32::from(*id) + 1);
        assert_eq!(driver.used(), None);
    }
    ring.publish();
    for id in ids.iter().rev() {
        assert_eq!(driver.used(), Some((*id, u32::from(*id) + 1)));
    }
    assert_eq!(driver.used(), None);
}

#[test]
fn used_elements_say_whether_anything_was_written() {
    let guest = Guest::new(1);
    let (mut ring, mut driver) = (guest.open(2, PACKED), guest.driver(2, PACKED));
    let mut chain = Chain::default();
    for len in [0, 5] {
        let id = driver.add(&[piece(0, 16, true)]).unwrap();
        rig::pop(&mut ring, &guest, &mut chain);
        ring.push(id, len);
        ring.publish();
    }
    let flags = [0, 16].map(|at| guest.read::<u16>(GPA + TABLE + at + 14));
    assert_eq!(flags, [BOTH, BOTH | WRITE]);
}

#[test]
fn a_table_is_taken_whole_whatever_its_other_flags_say() {
    let guest = Guest::new(1);
    let mut ring = guest.open(4, PACKED);
    let table = DATA + 0x8000;
    for (nth, (len, flags)) in [(5, INDIRECT), (6, NEXT | WRITE), (7, WRITE)].iter().enumerate() {
        let place = table + 16 * nth as u64;
        guest.write(place, DATA + 0x100 * nth as u64);
        guest.write(place + 8, *len as u32);
        guest.write(place + 14, *flags);
    }
    let mut chain = Chain::default();
    raw(&guest, 0, (table, 48, 3), INDIRECT | AVAIL);
    assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Chain));
    assert_eq!((lengths(&chain.readable), lengths(&chain.writable)), (vec![5], vec![6, 7]));
    assert_eq!(chain.id, 3);
    // A table in a chain, one that is no table, one of nothing.
    raw(&guest, 1, (table, 48, 0), INDIRECT | NEXT | AVAIL);
    raw(&guest, 2, (table, 48, 0), AVAIL);
    assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Bad));
    raw(&guest, 3, (table, 47, 1), INDIRECT | AVAIL);
    assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Bad));
    for id in [3, 0, 1] {
        ring.push(id, 0);
    }
    ring.publish();
    raw(&guest, 0, (table, 0, 1), INDIRECT | USED);
    assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Bad));
}

#[test]
fn tables_need_the_feature() {
    let guest = Guest::new(1);
    let mut ring = guest.open(4, feature::RING_PACKED);
    raw(&guest, 0, (DATA, 16, 3), INDIRECT | AVAIL);
    assert_eq!(ring.pop(&guest.map, &mut Chain::default()), Ok(Popped::Bad));
}

/// Writes a descriptor: address, length and id, and its flags.
fn raw(guest: &Guest, at: u64, (addr, len, id): (u64, u32, u16), flags: u16) {
    let place = GPA + TABLE + 16 * at;
    guest.write(place, addr);
    guest.write(place + 8, len);
    guest.write(place + 12, id);
    guest.write(place + 14, flags);
}

#[test]
fn a_chain_with_a_bad_address_can_still_be_given_back() {
    let guest = Guest::new(1);
    let (mut ring, mut driver) = (guest.open(4, PACKED), guest.driver(4, PACKED));
    let bad = Piece { addr: 0x10, len: 4, write: false };
    let id = driver.add(&[piece(0, 4, false), bad, piece(1, 4, true)]).unwrap();
    let mut chain = Chain::default();
    assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Bad));
    assert_eq!(chain.id, id);
    ring.push(id, 0);
    ring.publish();
    assert_eq!((driver.used(), driver.room()), (Some((id, 0)), 4));
}

#[test]
fn what_cannot_be_breaks_the_ring() {
    let guest = Guest::new(1);
    let mut chain = Chain::default();
    let mut pop = |ring: &mut Ring| ring.pop(&guest.map, &mut chain);
    let mut ring = guest.open(2, PACKED);
    raw(&guest, 0, (DATA, 1, 0), NEXT | AVAIL);
    raw(&guest, 1, (DATA, 1, 0), NEXT | AVAIL);
    assert_eq!(pop(&mut ring), Err(RingError::TooMany(2)));
    raw(&guest, 0, (DATA, 1, 2), AVAIL);
    assert_eq!(pop(&mut ring), Err(RingError::Head(2)));
    raw(&guest, 0, (DATA, 1, 1), AVAIL);
    raw(&guest, 1, (DATA, 1, 1), AVAIL);
    assert_eq!(pop(&mut ring), Ok(Popped::Chain));
    assert_eq!(pop(&mut ring), Err(RingError::Busy(1)));
    raw(&guest, 1, (DATA, 1, 0), AVAIL);
    assert_eq!(pop(&mut ring), Ok(Popped::Chain));
    // Both are out, and the ring says that there is more.
    raw(&guest, 0, (DATA, 1, 0), USED);
    assert_eq!(pop(&mut ring), Err(RingError::TooMany(2)));
}

#[test]
fn giving_back_what_is_not_out_does_nothing() {
    let guest = Guest::new(1);
    let mut ring = guest.open(2, PACKED);
    ring.push(1, 0);
    ring.push(2, 0);
    assert!(!ring.publish());
}

#[test]
fn a_ring_goes_on_at_its_base() {
    let guest = Guest::new(1);
    let at = |base| Ring::open(Setup { base, ..guest.setup(5, PACKED) });
    assert_eq!(at(0x8003_8003).unwrap().base(), 0x8003_8003);
    assert_eq!(at(0x0004_0004).unwrap().base(), 0x0004_0004);
    assert_eq!(at(0x8000).unwrap().base(), 0x8000_8000);
    for base in [0x8005_8005, 0x8001_8003, 0x0003_8003, 5] {
        assert_eq!(at(base).unwrap_err(), RingError::Base(base));
    }
    let (mut ring, mut driver) = (guest.open(3, PACKED), guest.driver(3, PACKED));
    let mut chain = Chain::default();
    for base in [0x8001_8001, 0x8002_8002, 0, 0x0001_0001] {
        let id = driver.add(&[piece(0, 1, false)]).unwrap();
        rig::pop(&mut ring, &guest, &mut chain);
        ring.push(id, 0);
        ring.publish();
        assert_eq!(ring.base(), base);
        driver.used();
        ring = Ring::open(Setup { base, ..guest.setup(3, PACKED) }).unwrap();
    }
}

#[test]
fn impossible_sizes_and_places_are_refused() {
    let guest = Guest::new(1);
    let setup = guest.setup(4, PACKED);
    for size in [0, 32769] {
        let refused = Ring::open(Setup { size, ..guest.setup(4, PACKED) }).unwrap_err();
        assert_eq!(refused, RingError::Size(size));
    }
    let device = setup.areas.device.wrapping_add(2);
    let areas = Areas { device, ..setup.areas };
    assert_eq!(Ring::open(Setup { areas, ..setup }).unwrap_err(), RingError::Unaligned);
}

#[test]
fn events_are_asked_for_as_the_features_allow() {
    let guest = Guest::new(1);
    let word = |at| guest.read::<u32>(GPA + at);
    let mut ring = guest.open(4, PACKED);
    ring.suppress();
    assert_eq!(word(DEVICE), 1 << 16);
    assert!(!ring.rearm());
    assert_eq!(word(DEVICE), 0);
    let mut ring = guest.open(4, PACKED | feature::EVENT_IDX);
    let mut driver = guest.driver(4, PACKED | feature::EVENT_IDX);
    assert!(!ring.rearm());
    assert_eq!(word(DEVICE), 2 << 16 | 1 << 15);
    let id = driver.add(&[piece(0, 1, false)]).unwrap();
    assert!(driver.must_notify() && ring.rearm());
    rig::pop(&mut ring, &guest, &mut Chain::default());
    assert!(!ring.rearm());
    assert_eq!(word(DEVICE), 2 << 16 | 1 << 15 | 1);
    // Flags that mean nothing, and an index outside the ring.
    guest.write(GPA + DRIVER, 3u32 << 16);
    ring.push(id, 0);
    assert!(ring.publish());
    driver.used();
    for (event, wanted) in [(0x7FFF, false), (0xFFFF, false), (1 << 15 | 1, true)] {
        let mut ring =
            Ring::open(Setup { base: 0x8001_8001, ..guest.setup(4, PACKED | feature::EVENT_IDX) })
                .unwrap();
        raw(&guest, 1, (DATA, 1, 0), AVAIL);
        rig::pop(&mut ring, &guest, &mut Chain::default());
        guest.write(GPA + DRIVER, 2u32 << 16 | event);
        ring.push(0, 0);
        assert_eq!(ring.publish(), wanted, "{event:#x}");
    }
}

#[test]
fn in_order_completions_come_in_order() {
    let guest = Guest::new(1);
    let features = PACKED | feature::IN_ORDER;
    let (mut ring, mut driver) = (guest.open(4, features), guest.driver(4, features));
    let [a, b] = [1, 2].map(|len| driver.add(&[piece(0, len, true)]).unwrap());
    let mut chain = Chain::default();
    while rig::pop(&mut ring, &guest, &mut chain).is_some() {}
    ring.push(b, 2);
    assert!(!ring.publish());
    ring.push(a, 1);
    ring.publish();
    assert_eq!([driver.used(), driver.used()], [Some((a, 1)), Some((b, 2))]);
}

#[test]
fn what_is_written_to_the_ring_is_logged() {
    use std::os::unix::fs::FileExt;
    let guest = Guest::new(1);
    let (mut ring, mut driver) = (guest.open(512, PACKED), guest.driver(512, PACKED));
    let file = rig::memory(0x40000);
    let pages = DirtyLog::map(0x40000, 0, file.try_clone().unwrap()).unwrap();
    let dirty = || {
        let mut bytes = vec![0; 0x40000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        file.write_all_at(&[0; 0x40000], 0).unwrap();
        let bits = (0..8 * bytes.len()).filter(|bit| bytes[bit / 8] >> (bit % 8) & 1 != 0);
        bits.map(|page| (page as u64) * 4096 - GPA).collect::<Vec<_>>()
    };
    ring.set_log(Some(Arc::new(pages)), &guest.map);
    assert_eq!(dirty(), [TABLE, TABLE + 4096, DEVICE]);
    let mut chain = Chain::default();
    for _ in 0..257 {
        driver.add(&[piece(0, 1, true)]).unwrap();
        rig::pop(&mut ring, &guest, &mut chain);
    }
    assert!(dirty().is_empty());
    ring.push(7, 1);
    ring.publish();
    assert_eq!(dirty(), [TABLE]);
    ring.rearm();
    assert_eq!(dirty(), [DEVICE]);
    (0..256).filter(|id| *id != 7).for_each(|id| ring.push(id, 1));
    ring.publish();
    dirty();
    ring.push(256, 1);
    ring.publish();
    assert_eq!(dirty(), [TABLE + 4096]);
    ring.set_log(None, &guest.map);
    ring.suppress();
    assert!(dirty().is_empty());
}
