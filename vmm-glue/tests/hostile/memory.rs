//! Memory that moves, shrinks and goes away.

use std::{
    net::Shutdown,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vhost_frontend::{Protocol, Queue, feature};

use super::*;

#[test]
fn the_memory_table_changes_under_load() {
    let siege = Siege::new();
    let mut device = siege.device();
    let table = device.memory.table().unwrap();
    let tasks: Vec<_> = (0..4).map(|n| Task::new(&device, n % 2, 4096)).collect();
    for round in 0..100 {
        for task in &tasks {
            let chain = task.read(0);
            device.queues[2].add(&chain, None).unwrap();
        }
        device.queues[2].submit().unwrap();
        // Every other time without the memory that half of them want.
        let regions = if round % 2 == 0 { 1 } else { 2 };
        device.link.frontend().set_mem_table(&table[..regions]).unwrap();
        for _ in &tasks {
            device.queues[2].take_within(LONG).unwrap();
        }
    }
    works(&mut device);
    drop(device);
    siege.check();
}

#[test]
fn a_memory_table_without_the_rings_breaks_them_and_nothing_else() {
    let siege = Siege::new();
    let mut device = siege.device();
    let table = device.memory.table().unwrap();
    // Refused or not: the rings are not in memory any more.
    let _ = device.link.frontend().set_mem_table(&table[1..]);
    assert!(is_broken(&device.queues[2]));
    device.queues[2].kick().unwrap();
    siege.neighbour.goes_on();
    device.link.frontend().set_mem_table(&table).unwrap();
    device.restart().unwrap();
    works(&mut device);
    drop(device);
    siege.check();
}

#[test]
fn rings_that_move_while_they_run_do_no_harm() {
    let siege = Siege::new();
    for round in 0..12u64 {
        let mut device = siege.device();
        let task = Task::new(&device, 1, 4096);
        let chain = task.read(0);
        device.queues[2].add(&chain, None).unwrap();
        device.queues[2].submit().unwrap();
        let mut other = Queue::new(&device.memory, 2, 16, device.features).unwrap();
        let [first, second, third] = device.queues[2].ring.areas().map(|area| area.user_address());
        let bodies = [
            [first + 1, third, second],
            [0, 0, 0],
            [u64::MAX, u64::MAX, u64::MAX],
            [first, first, first],
            [third, second, first],
            [first, third + (1 << 40), second],
        ];
        let link = &mut device.link;
        match round {
            0..6 => {
                // SET_VRING_ADDR: index, flags, descriptor, used, available, log.
                let addresses = bodies[round as usize].map(u64::to_ne_bytes).concat();
                let body = [&2u32.to_ne_bytes()[..], &[0; 4], &addresses, &[0; 8]].concat();
                let _ = link.call(9, &body, &[]);
            }
            6 => drop(link.set_addresses(&other, None)),
            7 => drop(link.start(&other)),
            // SET_VRING_NUM and SET_VRING_BASE of a ring that runs.
            8..11 => {
                let size = [0u32, 3, 0x1_0001][round as usize - 8];
                let body = [2u32.to_ne_bytes(), size.to_ne_bytes()].concat();
                let _ = link.call(8, &body, &[]);
            }
            _ => {
                let body = [2u32.to_ne_bytes(), 0xFFFFu32.to_ne_bytes()].concat();
                let _ = link.call(10, &body, &[]);
                let _ = link.call(12, &[2, 0, 0, 0, 0, 0, 0, 0], &[other.kick.as_raw_fd()]);
            }
        }
        let _ = device.queues[2].kick();
        let _ = (other.kick(), other.take());
        siege.neighbour.goes_on();
        drop(device);
        siege.check();
    }
}

#[test]
fn features_may_be_set_again_and_again() {
    let siege = Siege::new();
    let mut device = siege.device();
    let features = device.features;
    for other in
        [features, 0, u64::MAX, feature::VERSION_1, features | feature::RING_PACKED, features]
    {
        let _ = device.link.frontend().set_features(other);
        let _ = device.link.frontend().set_owner();
    }
    siege.neighbour.goes_on();
    drop(device);
    siege.check();
}

#[test]
fn data_that_is_truncated_away_breaks_only_this_guest() {
    let siege = Siege::new();
    for writes in [true, false] {
        let mut device = siege.device();
        let task = Task::new(&device, 1, 64 << 10);
        let chain = if writes { task.write(0) } else { task.read(0) };
        device.memory.truncate(1, 0).unwrap();
        device.queues[2].add(&chain, None).unwrap();
        device.queues[2].submit().unwrap();
        assert!(is_broken(&device.queues[2]), "writes: {writes}");
        siege.neighbour.goes_on();
        drop(device);
        siege.check();
    }
}

#[test]
fn rings_that_are_truncated_away_break_only_this_guest() {
    let siege = Siege::new();
    let mut device = siege.device();
    let task = Task::new(&device, 1, 4096);
    let chain = task.read(0);
    device.queues[2].add(&chain, None).unwrap();
    device.queues[2].publish();
    device.memory.truncate(0, 0).unwrap();
    // Nothing here touches the memory any more.
    device.queues[2].kick().unwrap();
    assert!(is_broken(&device.queues[2]));
    siege.neighbour.goes_on();
    drop(device);
    siege.check();
}

#[test]
fn memory_that_goes_in_the_middle_of_a_load_does_no_harm() {
    let siege = Siege::new();
    for cut in [0u64, 4096, 1 << 20] {
        let mut device = siege.device();
        let tasks: Vec<_> = (0..4).map(|_| Task::new(&device, 1, 512 << 10)).collect();
        let chains: Vec<_> = tasks.iter().map(|task| task.read(0)).collect();
        let memory = Arc::clone(&device.memory);
        let cutter = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            memory.truncate(1, cut).unwrap();
        });
        let since = Instant::now();
        while device.queues[2].error.read().is_err() {
            for chain in &chains {
                let _ = device.queues[2].add(chain, None);
            }
            device.queues[2].submit().unwrap();
            while device.queues[2].take().unwrap().is_some() {}
            assert!(since.elapsed() < LONG, "the loss was not noticed");
        }
        cutter.join().unwrap();
        drop(device);
        siege.check();
    }
}

#[test]
fn logs_that_are_truncated_away_do_no_harm() {
    let siege = Siege::new();
    let protocol = setup().protocol | Protocol::INFLIGHT_SHMFD | Protocol::LOG_SHMFD;
    let mut device = siege.device_with(&Setup { protocol, ..setup() });
    let log = memfd(1 << 20);
    let region = VhostUserDirtyLogRegion {
        mmap_size: 1 << 20,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    device.link.frontend().set_log_base(0, Some(region)).unwrap();
    let features = device.features | feature::LOG_ALL;
    device.link.frontend().set_features(features).unwrap();
    works(&mut device);
    log.set_len(0).unwrap();
    works(&mut device);
    // A region that the back end made may be sealed.
    let _ = device.inflight.as_ref().unwrap().file.set_len(0);
    let _ = device.request(LUN, &scsi::inquiry(36), &[], 36);
    siege.neighbour.goes_on();
    drop(device);
    siege.check();
}

#[test]
fn an_inflight_region_full_of_nonsense_is_survived() {
    let siege = Siege::new();
    let protocol = setup().protocol | Protocol::INFLIGHT_SHMFD;
    for byte in [0xFFu8, 0x01, 0x55] {
        let mut device = siege.device_with(&Setup { protocol, ..setup() });
        let inflight = device.inflight.as_ref().unwrap();
        let junk = vec![byte; inflight.size as usize];
        inflight.file.write_all_at(&junk, inflight.offset).unwrap();
        // A VMM that connects again brings it back.
        device.link.socket().shutdown(Shutdown::Both).unwrap();
        let _ = device.reconnect(siege.host.path());
        let _ = device.queues[2].kick();
        siege.neighbour.goes_on();
        drop(device);
        siege.check();
    }
}
