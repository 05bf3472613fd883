use super::*;
use crate::memory::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::AtomicBool},
};

/// A queue of two pages whose second comes first in memory.
struct Rig {
    file: File,
    map: Arc<GuestMap>,
    window: Arc<Window>,
}

impl Rig {
    fn new() -> Self {
        let file = File::from(memfd_create("guest", MFdFlags::empty()).unwrap());
        file.set_len(0x3000).unwrap();
        let region = Region::map(0, 0x3000, 0, 0, file.try_clone().unwrap()).unwrap();
        let map = Arc::new(GuestMap::new(vec![region]).unwrap());
        let window = Window::new(Arc::clone(&map), 1, 0x8000, 2);
        let _ = window.put_tce_list(0x8000, &[0x2003, 0x1003]);
        Self { file, map, window }
    }

    fn queue(&self, next: u32) -> Option<ClientQueue> {
        ClientQueue::new(&self.window, &self.map, 0x8000, 0x2000, next)
    }

    /// Where a slot is in memory.
    fn slot(index: u64) -> u64 {
        if index < 256 { 0x2000 + 16 * index } else { 0x1000 + 16 * (index - 256) }
    }

    fn read(&self, index: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.file.read_exact_at(&mut bytes, Self::slot(index)).unwrap();
        bytes
    }

    fn free(&self, index: u64) {
        self.file.write_all_at(&[0], Self::slot(index)).unwrap();
    }
}

fn element(n: u16) -> [u8; 16] {
    let [a, b] = n.to_be_bytes();
    [0x80, 1, 0, 0, 0, 0, 0, 36, 1, 2, 3, 4, 5, 6, a, b]
}

#[test]
fn elements_fill_both_pages_and_go_on_at_the_first() {
    let rig = Rig::new();
    let mut queue = rig.queue(0).unwrap();
    assert!((0..512).all(|n| queue.push(&element(n))));
    assert!((0..512).all(|n| rig.read(n.into()) == element(n)));
    assert!(!queue.push(&element(600)));
    assert_eq!(rig.read(0), element(0));
    rig.free(0);
    assert!(queue.push(&element(600)));
    assert_eq!(rig.read(0), element(600));
    assert!(!queue.push(&element(601)));
    assert_eq!(queue.next(), 1);
}

#[test]
fn a_slot_is_free_only_when_its_first_byte_is_zero() {
    let rig = Rig::new();
    let mut queue = rig.queue(3).unwrap();
    rig.file.write_all_at(&[0x01], Rig::slot(3)).unwrap();
    assert!(!queue.push(&element(1)));
    rig.file.write_all_at(&[0, 9, 9, 9], Rig::slot(3)).unwrap();
    assert!(queue.push(&element(1)));
    assert_eq!((rig.read(3), queue.next()), (element(1), 4));
}

#[test]
fn an_event_that_cannot_wait_takes_the_place_of_the_last_element() {
    let rig = Rig::new();
    let mut queue = rig.queue(0).unwrap();
    assert!((0..512).all(|n| queue.push(&element(n))));
    let event = [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    queue.overwrite_last(&event);
    assert_eq!((rig.read(511), rig.read(510), rig.read(0)), (event, element(510), element(0)));
}

#[test]
fn a_queue_begins_where_another_process_left_it() {
    let rig = Rig::new();
    let mut queue = rig.queue(511).unwrap();
    assert!(queue.push(&element(1)) && queue.push(&element(2)));
    assert_eq!((rig.read(511), rig.read(0)), (element(1), element(2)));
    assert!(rig.queue(512).is_none());
}

#[test]
fn queues_that_cannot_be_are_none() {
    let rig = Rig::new();
    let new = |ioba, len| ClientQueue::new(&rig.window, &rig.map, ioba, len, 0).is_some();
    assert!(new(0x9000, 0x1000));
    assert!(!new(0x8000, 0) && !new(0x8000, 0x800) && !new(0x8010, 0x1000));
    assert!(!new(0x9000, 0x2000) && !new(0x8000, 0x100_1000) && !new(!0xFFF, 0x2000));
}

#[test]
fn who_sees_the_first_byte_sees_the_others() {
    let rig = Rig::new();
    let mut queue = rig.queue(0).unwrap();
    let host = rig.map.at(Rig::slot(0), 16).unwrap() as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    // A client with one slot, which it reads by words.
    let client = std::thread::spawn(move || {
        let mut expected = 0u16;
        while !seen.load(Ordering::Relaxed) || expected < ROUNDS {
            let place = std::ptr::with_exposed_provenance_mut::<u8>(host);
            // SAFETY: a slot of the test's memory, which outlives this thread.
            let (valid, second) =
                unsafe { (AtomicU8::from_ptr(place), AtomicU64::from_ptr(place.add(8).cast())) };
            if valid.load(Ordering::Acquire) == 0 {
                std::hint::spin_loop();
                continue;
            }
            let bytes = second.load(Ordering::Relaxed).to_ne_bytes();
            assert_eq!(bytes[6..], expected.to_be_bytes());
            expected += 1;
            valid.store(0, Ordering::Release);
        }
    });
    for n in 0..ROUNDS {
        queue.next = 0;
        while !queue.push(&element(n)) {
            std::hint::spin_loop();
        }
    }
    stop.store(true, Ordering::Relaxed);
    client.join().unwrap();
}

/// Elements that go through one slot.
const ROUNDS: u16 = 20_000;
