//! Atomic commands from two reactors at once.

use super::{
    random::{Dice, Medium, PATIENCE, Peers, World},
    *,
};
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Instant,
};

/// Both reactors count in one block with COMPARE AND WRITE, among writes beside it and ORDERED
/// tasks; no step may be lost.
fn count_together(medium: Medium, steps: u64) {
    let world = World::new(medium, BLOCK as u32, 2);
    let finished = AtomicUsize::new(0);
    thread::scope(|scope| {
        for reactor in 0..2 {
            let (world, finished) = (&world, &finished);
            scope.spawn(move || {
                let mut dice = Dice::new(u64::from(reactor) + 7);
                let mut peers = Peers::new(world, reactor, 1);
                let mut nexus = peers.nexus();
                let start = Instant::now();
                let mut counted = 0;
                while counted < steps {
                    assert!(start.elapsed() < PATIENCE, "{counted} of {steps}");
                    let (_, mut data) = peers.call(&mut nexus, &read_10(COUNTER, 1), &room(512));
                    let count = u64::from_be_bytes(data[..8].try_into().unwrap()) + 1;
                    data.extend([0; BLOCK]);
                    data[BLOCK..BLOCK + 8].copy_from_slice(&count.to_be_bytes());
                    let cdb = compare_and_write(COUNTER as u8);
                    let (status, _) = peers.call(&mut nexus, &cdb, &out(&data));
                    counted += u64::from(status == Status::GOOD);
                    let beside = COUNTER - 3 + dice.below(3) as u32;
                    let attribute = match dice.below(4) {
                        0 => TaskAttribute::Ordered,
                        1 => TaskAttribute::HeadOfQueue,
                        _ => TaskAttribute::Simple,
                    };
                    let how = How { attribute, ..out(&[0xA5; BLOCK]) };
                    let (status, _) = peers.call(&mut nexus, &write_10(beside, 1), &how);
                    assert_eq!(status, Status::GOOD);
                }
                finished.fetch_add(1, SeqCst);
                while finished.load(SeqCst) < 2 {
                    peers.idle();
                }
                let (_, data) = peers.call(&mut nexus, &read_10(COUNTER, 1), &room(512));
                assert_eq!(u64::from_be_bytes(data[..8].try_into().unwrap()), 2 * steps);
                assert!(data[8..].iter().all(|&byte| byte == 0));
            });
        }
    });
    assert!(world.lu.gate.enter(0).is_some());
}

#[test]
fn two_reactors_count_in_ram_without_losing_a_step() {
    count_together(Medium::Ram, 3000);
}

#[test]
fn two_reactors_count_in_a_file_without_losing_a_step() {
    count_together(Medium::File { has_ring: true }, 300);
}

#[test]
fn two_reactors_count_in_a_file_without_io_uring() {
    count_together(Medium::File { has_ring: false }, 300);
}

const COUNTER: u32 = 4;
