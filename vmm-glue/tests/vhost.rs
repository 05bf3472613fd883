//! The vhost-user front door, as VMMs use it and as they should not.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

mod common;

use std::{
    collections::HashSet,
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::Arc,
    time::Duration,
};

use common::{Disk, Host};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, vhost_user::VhostUserFrontend};
use vhost_frontend::{
    Buffer, Device, Error, Header, Link, Memory, Protocol, Queue, Ring, Setup, Window, feature,
    request, scsi,
};
use vmm_glue::vhost::{Status, connected};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const LUN: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];

#[test]
fn a_disk_is_found_written_and_read() {
    let host = Host::start(1, 1);
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    let inquiry = device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap();
    assert!(inquiry.is_good());
    assert_eq!(inquiry.data[0], 0);
    device.settle(LUN).unwrap();
    assert_eq!(device.capacity(LUN).unwrap(), (16384, 512));
    let data: Vec<u8> = (0..8192u32).map(|n| (n * 7 / 5) as u8).collect();
    assert!(device.request(LUN, &scsi::write(100, 16), &data, 0).unwrap().is_good());
    let read = device.request(LUN, &scsi::read(100, 16), &[], 8192).unwrap();
    assert!(read.is_good());
    assert_eq!((read.used, read.residual), (108 + 8192, 0));
    assert!(read.data == data);
    assert_eq!(device.task_management(5, LUN, 0).unwrap(), 0);
    let status = host.server().status();
    assert_eq!((status.connected, status.queues), (true, 3));
}

#[test]
fn queues_on_several_reactors_share_a_disk() {
    let host = Host::start(4, 2);
    let setup = Setup { queues: 4, ..Setup::default() };
    let mut device = Device::connect(host.path(), &setup).unwrap();
    device.settle(LUN).unwrap();
    let reactors: HashSet<u16> =
        host.controller.places().iter().map(|place| place.reactor).collect();
    assert_eq!(reactors.len(), 2);
    for queue in 2..6 {
        let data = vec![queue as u8; 512];
        let written = device.request_on(queue, LUN, &scsi::write(queue as u32, 1), &data, 0);
        assert!(written.unwrap().is_good());
    }
    for queue in 2..6 {
        let other = 7 - queue;
        let read = device.request_on(queue, LUN, &scsi::read(other as u32, 1), &[], 512).unwrap();
        assert!(read.is_good());
        assert_eq!(read.data, vec![other as u8; 512]);
    }
}

#[test]
fn a_ring_goes_on_where_it_stopped() {
    let host = Host::start(1, 1);
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    for _ in 0..5 {
        device.request(LUN, &scsi::test_unit_ready(), &[], 0).unwrap();
    }
    assert_eq!(device.link.stop(&device.queues[2]).unwrap(), 5);
    assert_eq!(host.server().status().queues, 2);
    // It is stopped: its base stays, and nothing is taken.
    assert_eq!(device.link.stop(&device.queues[2]).unwrap(), 5);
    device.link.start_at(&device.queues[2], 5).unwrap();
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
    assert_eq!(device.link.stop(&device.queues[2]).unwrap(), 6);
}

#[test]
fn a_ring_that_never_ran_has_the_base_that_was_set() {
    let host = Host::start(1, 1);
    let mut link = Link::connect(host.path()).unwrap();
    link.open(Setup::default().protocol).unwrap();
    let body = [2u32, 77].map(u32::to_ne_bytes).concat();
    link.call(request::SET_VRING_BASE, &body, &[]).unwrap();
    assert_eq!(link.frontend().get_vring_base(2).unwrap(), 77);
}

#[test]
fn a_ring_started_twice_goes_on() {
    let host = Host::start(1, 1);
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    device.settle(LUN).unwrap();
    let Ring::Split(ring) = &device.queues[2].ring else { panic!() };
    let base = ring.base();
    device.link.start_at(&device.queues[2], base.into()).unwrap();
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
    // Only another descriptor to notify with, and only half of the ring's entries.
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    device.link.frontend().set_vring_kick(2, &kick).unwrap();
    device.queues[2].kick = kick;
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
    device.link.frontend().set_vring_num(2, 64).unwrap();
    device.link.frontend().set_vring_kick(2, &device.queues[2].kick).unwrap();
    assert_eq!(device.link.stop(&device.queues[2]).unwrap(), u32::from(base) + 2);
}

/// The crash is made up: what a back end that was killed leaves in the in-flight log, in an order
/// that is not that of the heads, and one chain more that it never saw.
#[test]
fn what_was_in_flight_is_done_after_a_reconnect() {
    let disk = Disk::new(1);
    let first = Host::with(&disk, 1);
    let protocol = Setup::default().protocol | Protocol::INFLIGHT_SHMFD;
    let setup = Setup { protocol, ..Setup::default() };
    let mut device = Device::connect(first.path(), &setup).unwrap();
    device.settle(LUN).unwrap();
    drop(first);

    let inflight = device.inflight.as_ref().unwrap().file.try_clone().unwrap();
    let chains: Vec<_> = (0..3u8).map(|n| Write::new(&device, 50, n)).collect();
    let heads: Vec<u16> =
        chains.iter().map(|chain| device.queues[2].add(&chain.buffers(), None).unwrap()).collect();
    device.queues[2].publish();
    // Parts of 16 bytes and 16 for each of 128 entries.
    let part = 2 * (16 + 16 * 128u64).next_multiple_of(64);
    for (head, counter) in [(heads[0], 9u64), (heads[1], 8)] {
        let entry = part + 16 + 16 * u64::from(head);
        inflight.write_all_at(&[1], entry).unwrap();
        inflight.write_all_at(&counter.to_ne_bytes(), entry + 8).unwrap();
    }

    let second = Host::with(&disk, 1);
    device.reconnect(second.path()).unwrap();
    let used: Vec<u16> = (0..3)
        .map(|_| device.queues[2].take_within(Duration::from_secs(5)).unwrap().head)
        .collect();
    assert_eq!(used, [heads[1], heads[0], heads[2]]);
    let read = device.request(LUN, &scsi::read(50, 1), &[], 512).unwrap();
    assert!(read.is_good());
    assert_eq!(read.data, [2; 512], "the last one was written last");
    let Ring::Split(ring) = &device.queues[2].ring else { panic!() };
    let base = u32::from(ring.base());
    assert_eq!(device.link.stop(&device.queues[2]).unwrap(), base);
}

/// A request that writes one block, in memory of its own.
struct Write {
    header: Window,
    data: Window,
    response: Window,
}

impl Write {
    fn new(device: &Device, lba: u32, byte: u8) -> Self {
        let window = |bytes| device.memory.window(bytes, 4096).unwrap();
        let (header, data, response) = (window(51), window(512), window(108));
        header.write(0, &scsi::request(LUN, u64::from(byte), &scsi::write(lba, 1)));
        data.fill(byte);
        response.fill(0xEE);
        Self { header, data, response }
    }

    fn buffers(&self) -> [Buffer; 3] {
        [Buffer::out(&self.header), Buffer::out(&self.data), Buffer::into(&self.response)]
    }
}

#[test]
fn the_memory_table_changes_under_load() {
    let host = Host::start(1, 1);
    let protocol = Setup::default().protocol | Protocol::CONFIGURE_MEM_SLOTS;
    let setup = Setup { regions: 2, protocol, ..Setup::default() };
    let mut device = Device::connect(host.path(), &setup).unwrap();
    device.settle(LUN).unwrap();
    let writes: Vec<_> = (0..32u8).map(|n| Write::new(&device, n.into(), n)).collect();
    let second = device.memory.table().unwrap().pop().unwrap();
    for _ in 0..50 {
        for write in &writes {
            write.response.fill(0xEE);
            device.queues[2].add(&write.buffers(), None).unwrap();
        }
        device.queues[2].submit().unwrap();
        device.link.set_memory(&device.memory).unwrap();
        let frontend = device.link.frontend();
        frontend.remove_mem_region(&second).unwrap();
        frontend.add_mem_region(&second).unwrap();
        for _ in &writes {
            device.queues[2].take_within(Duration::from_secs(5)).unwrap();
        }
        assert!(writes.iter().all(|write| write.response.bytes(10, 2) == [0, 0]));
    }
    let read = device.request(LUN, &scsi::read(31, 1), &[], 512).unwrap();
    assert_eq!(read.data, [31; 512]);
    // Without the memory that the rings are in there is an error, and the VMM may repair it.
    let first = device.memory.table().unwrap().remove(0);
    device.link.frontend().remove_mem_region(&first).unwrap();
    assert!(device.queues[2].error.read().is_ok());
}

#[test]
fn messages_that_were_not_negotiated_are_tolerated() {
    let host = Host::start(1, 1);
    let setup = Setup::default();
    let setup = Setup { protocol: setup.protocol | Protocol::CONFIGURE_MEM_SLOTS, ..setup };
    let mut device = Device::connect(host.path(), &setup).unwrap();
    let file = tempfile();
    let fd = file.as_raw_fd();
    let pair = |first: u32, second: u32| [first, second].map(u32::to_ne_bytes).concat();
    device.link.call(request::SET_STATUS, &0xFu64.to_ne_bytes(), &[]).unwrap();
    device.link.send(Header::new(GET_STATUS, 0), &[], &[]).unwrap();
    assert_eq!(device.link.receive().unwrap().body, 0xFu64.to_ne_bytes());
    device.link.call(SET_LOG_FD, &[], &[fd]).unwrap();
    device.link.call(SEND_RARP, &[0; 8], &[]).unwrap();
    device.link.call(SET_VRING_ENDIAN, &pair(2, 0), &[]).unwrap();
    let refused = device.link.call(SET_VRING_ENDIAN, &pair(2, 1), &[]);
    assert!(matches!(refused, Err(Error::Refused { .. })));
    let refused = device.link.call(4711, &[1; 100], &[fd]);
    assert!(matches!(refused, Err(Error::Refused { .. })));
    // Without the wish for an answer there is none.
    device.link.send(Header::new(4711, 3), &[1; 3], &[]).unwrap();
    // Every feature there is.
    device.link.frontend().set_features(!feature::LOG_ALL).unwrap();
    // A descriptor with REM_MEM_REG, here for a region that is not there.
    let refused = device.link.call(REM_MEM_REG, &[7; 40], &[fd]);
    assert!(matches!(refused, Err(Error::Refused { .. })));
    // A queue that is not there, and a descriptor that is no eventfd.
    let refused = device.link.call(SET_VRING_NUM, &pair(3, 16), &[]);
    assert!(matches!(refused, Err(Error::Refused { .. })));
    let refused = device.link.call(SET_VRING_CALL, &2u64.to_ne_bytes(), &[fd]);
    assert!(matches!(refused, Err(Error::Refused { .. })));
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
}

#[test]
fn no_access_to_the_configuration_fails() {
    let host = Host::start(3, 1);
    let mut link = Link::connect(host.path()).unwrap();
    link.open(Setup::default().protocol).unwrap();
    let read = |offset: u32, size: u32| {
        let body = [offset, size, 0].map(u32::to_ne_bytes).concat();
        let body = [&body[..], &vec![0; size as usize]].concat();
        link.send(Header::new(GET_CONFIG, body.len()), &body, &[]).unwrap();
        let answer = link.receive().unwrap();
        assert_eq!(answer.body[..12], body[..12]);
        answer.body[12..].to_vec()
    };
    assert_eq!(read(0, 4), [3, 0, 0, 0]);
    assert_eq!(read(34, 6), [0; 6]);
    assert_eq!(read(0, 256).len(), 256);
    assert_eq!(read(5000, 4), [0; 4]);
    assert_eq!(read(u32::MAX, 4), [0; 4]);
    assert!(read(20, 0).is_empty());
    // Sense data of 32 bytes at most.
    let body = [[20u32, 4, 0].map(u32::to_ne_bytes).concat(), vec![32, 0, 0, 0]].concat();
    link.call(SET_CONFIG, &body, &[]).unwrap();
    link.call(
        SET_CONFIG,
        &[[5000u32, 4, 0].map(u32::to_ne_bytes).concat(), vec![1; 4]].concat(),
        &[],
    )
    .unwrap();
    let body = [[20u32, 4, 0].map(u32::to_ne_bytes).concat(), vec![0; 4]].concat();
    link.send(Header::new(GET_CONFIG, body.len()), &body, &[]).unwrap();
    assert_eq!(link.receive().unwrap().body[12..], [32, 0, 0, 0]);
}

#[test]
fn a_socket_cut_in_any_message_closes_this_connection_only() {
    let host = Host::start(1, 1);
    let call = EventFd::new(0).unwrap();
    let messages: [(u32, Vec<u8>, Vec<i32>); 4] = [
        (SET_VRING_CALL, 2u64.to_ne_bytes().to_vec(), vec![call.as_raw_fd()]),
        (GET_CONFIG, [0u32, 4, 0, 0].map(u32::to_ne_bytes).concat(), vec![]),
        (SET_VRING_NUM, [2u32, 16].map(u32::to_ne_bytes).concat(), vec![]),
        (4711, vec![0; 8], vec![]),
    ];
    for (number, body, fds) in messages {
        let bytes = [&Header::new(number, body.len()).bytes()[..], &body].concat();
        for cut in [1, 4, 11, 12, 13, bytes.len() - 1] {
            let device = Device::connect(host.path(), &Setup::default()).unwrap();
            device.link.send_bytes(&bytes[..cut], &fds).unwrap();
            drop(device);
            host.wait_for("the queues to stop", |server| server.status().queues == 0);
        }
    }
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    // A message cannot be that long.
    device.link.send(Header { size: 1 << 30, ..Header::new(1, 0) }, &[], &[]).unwrap();
    host.wait_for("the queues to stop", |server| server.status().queues == 0);
    assert!(device.link.frontend().get_features().is_err());
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
}

#[test]
fn a_server_stops_in_the_middle_of_a_message() {
    for bytes in [0, 5, 12, 14] {
        let host = Host::start(1, 1);
        let device = Device::connect(host.path(), &Setup::default()).unwrap();
        let message = [&Header::new(8, 8).bytes()[..], &[0; 8]].concat();
        device.link.send_bytes(&message[..bytes], &[]).unwrap();
        host.server().stop();
        assert!(host.controller.places().is_empty());
        host.server().wait();
        assert!(UnixStream::connect(host.path()).is_err());
    }
}

#[test]
fn a_second_vmm_waits_until_the_first_is_gone() {
    let host = Host::start(1, 1);
    let first = Device::connect(host.path(), &Setup::default()).unwrap();
    let second = UnixStream::connect(host.path()).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let link = Link::over(second.try_clone().unwrap()).unwrap();
    link.send(Header::new(1, 0), &[], &[]).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(link.receive().is_err());
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(link.receive().unwrap().body.len(), 8);
}

#[test]
fn a_connected_socket_is_served_until_the_vmm_is_gone() {
    let host = Host::start(1, 1);
    host.server().stop();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = connected(ours, Arc::clone(&host.controller)).unwrap();
    let link = Link::over(theirs).unwrap();
    let mut device = Device::start(link, &Setup::default()).unwrap();
    assert!(device.request(LUN, &scsi::inquiry(36), &[], 36).unwrap().is_good());
    drop(device);
    server.wait();
    assert_eq!(server.status(), Status { connected: false, queues: 0 });
}

#[test]
fn writes_to_memory_are_logged_while_the_vmm_wants_it() {
    let host = Host::start(1, 1);
    let protocol = Setup::default().protocol | Protocol::LOG_SHMFD;
    let mut device = Device::connect(host.path(), &Setup { protocol, ..Setup::default() }).unwrap();
    device.settle(LUN).unwrap();
    let log = tempfile();
    log.set_len(64 << 10).unwrap();
    let bit = |address: u64| {
        let (page, mut byte) = (address / 4096, [0]);
        log.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] >> (page % 8) & 1 == 1
    };
    let Ring::Split(ring) = &device.queues[2].ring else { panic!() };
    let used = ring.areas()[2].address();
    let read = Read::new(&device);
    let region = VhostUserDirtyLogRegion {
        mmap_size: 64 << 10,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    device.link.frontend().set_log_base(0, Some(region)).unwrap();
    read.run(&mut device);
    assert!(!bit(used) && !bit(read.data.address()) && !bit(read.response.address()));
    let features = device.features;
    device.link.frontend().set_features(features | feature::LOG_ALL).unwrap();
    read.run(&mut device);
    assert!(bit(used) && bit(read.data.address()) && bit(read.response.address()));
    assert!(!bit(read.header.address()));
    device.link.frontend().set_features(features).unwrap();
    log.write_all_at(&vec![0; 64 << 10], 0).unwrap();
    read.run(&mut device);
    assert!(!bit(used) && !bit(read.data.address()));
}

/// A request that reads one block, in pages of its own.
struct Read {
    header: Window,
    data: Window,
    response: Window,
}

impl Read {
    fn new(device: &Device) -> Self {
        let window = || device.memory.window(4096, 4096).unwrap();
        let (header, data, response) = (window(), window(), window());
        header.write(0, &scsi::request(LUN, 1, &scsi::read(0, 8)));
        Self { header, data, response }
    }

    fn run(&self, device: &mut Device) {
        let (header, response) = (self.header.part(0, 51), self.response.part(0, 108));
        let chain = [Buffer::out(&header), Buffer::into(&response), Buffer::into(&self.data)];
        device.queues[2].round_trip(&chain).unwrap();
        assert_eq!(response.bytes(10, 2), [0, 0]);
    }
}

#[test]
fn a_reset_device_starts_anew() {
    let host = Host::start(1, 1);
    let protocol = Setup::default().protocol | Protocol::RESET_DEVICE;
    let setup = Setup { protocol, ..Setup::default() };
    let mut device = Device::connect(host.path(), &setup).unwrap();
    device.settle(LUN).unwrap();
    device.link.frontend().reset_device().unwrap();
    assert_eq!(host.server().status().queues, 0);
    for index in 0..3 {
        let queue = Queue::new(&device.memory, index, setup.size, device.features).unwrap();
        device.link.start(&queue).unwrap();
        device.queues[index] = queue;
    }
    let attention = device.request(LUN, &scsi::test_unit_ready(), &[], 0).unwrap();
    assert_eq!(attention.sense_code().map(|code| (code.0, code.1)), Some((6, 0x29)));
    assert!(device.request(LUN, &scsi::test_unit_ready(), &[], 0).unwrap().is_good());
}

#[test]
fn a_disabled_ring_is_not_served() {
    let host = Host::start(1, 1);
    let mut device = Device::connect(host.path(), &Setup::default()).unwrap();
    device.settle(LUN).unwrap();
    device.link.frontend().set_vring_enable(2, false).unwrap();
    let write = Write::new(&device, 0, 1);
    device.queues[2].add(&write.buffers(), None).unwrap();
    device.queues[2].submit().unwrap();
    assert!(device.queues[2].take_within(Duration::from_millis(100)).is_err());
    device.link.frontend().set_vring_enable(2, true).unwrap();
    device.queues[2].take_within(Duration::from_secs(5)).unwrap();
}

#[test]
fn without_protocol_features_rings_are_enabled() {
    let host = Host::start(1, 1);
    let mut link = Link::connect(host.path()).unwrap();
    link.frontend().get_features().unwrap();
    link.frontend().set_owner().unwrap();
    link.frontend().set_features(feature::VERSION_1).unwrap();
    let memory = Memory::new(1, 4 << 20).unwrap();
    link.set_memory(&memory).unwrap();
    let mut queue = Queue::new(&memory, 2, 16, feature::VERSION_1).unwrap();
    link.start(&queue).unwrap();
    let (header, response) = (memory.window(51, 64).unwrap(), memory.window(108, 64).unwrap());
    header.write(0, &scsi::request(LUN, 1, &scsi::test_unit_ready()));
    queue.round_trip(&[Buffer::out(&header), Buffer::into(&response)]).unwrap();
}

#[test]
fn the_state_of_the_disks_moves_through_a_pipe() {
    let protocol = Setup::default().protocol | Protocol::DEVICE_STATE;
    let setup = Setup { protocol, ..Setup::default() };
    let here = Host::start(1, 1);
    let mut device = Device::connect(here.path(), &setup).unwrap();
    device.settle(LUN).unwrap();
    // D_SENSE in the control mode page.
    let parameters = [0, 0, 0, 0, 0x0A, 0x0A, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    let select = [0x15, 0x10, 0, 0, 16, 0];
    assert!(device.request(LUN, &select, &parameters, 0).unwrap().is_good());
    let move_state = |device: &mut Device, load: u32, end: std::io::PipeWriter| {
        let body = [load, 0].map(u32::to_ne_bytes).concat();
        device.link.send(Header::new(42, 8), &body, &[end.as_raw_fd()]).unwrap();
        drop(end);
        u64::from_ne_bytes(*device.link.receive().unwrap().body.first_chunk().unwrap())
    };
    let check = |device: &mut Device| {
        device.link.send(Header::new(43, 0), &[], &[]).unwrap();
        u64::from_ne_bytes(*device.link.receive().unwrap().body.first_chunk().unwrap())
    };
    let (_, writer) = std::io::pipe().unwrap();
    assert_eq!(move_state(&mut device, 0, writer), 0x101, "queues run");
    for queue in &device.queues {
        device.link.stop(queue).unwrap();
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    assert_eq!(move_state(&mut device, 0, writer), 0x100);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    assert_eq!(check(&mut device), 0);
    assert_ne!(check(&mut device), 0, "nothing is being transferred");

    let there = Host::start(1, 1);
    let mut device = Device::connect(there.path(), &setup).unwrap();
    for queue in &device.queues {
        device.link.stop(queue).unwrap();
    }
    for (bytes, good) in [(&state[..state.len() / 2], false), (&state[..], true)] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let body = [1u32, 0].map(u32::to_ne_bytes).concat();
        device.link.send(Header::new(42, 8), &body, &[reader.as_raw_fd()]).unwrap();
        assert_eq!(device.link.receive().unwrap().body, 0x100u64.to_ne_bytes());
        writer.write_all(bytes).unwrap();
        drop(writer);
        assert_eq!(check(&mut device) == 0, good);
    }
    for index in 0..3 {
        let queue = Queue::new(&device.memory, index, setup.size, device.features).unwrap();
        device.link.start(&queue).unwrap();
        device.queues[index] = queue;
    }
    // The same unit attentions, none, and sense data in descriptor format.
    let sense = device.request(LUN, &scsi::read(u32::MAX, 1), &[], 512).unwrap().sense;
    assert_eq!(sense[..2], [0x72, 5]);
}

#[test]
fn memory_that_is_not_shared_is_named() {
    let host = Host::start(1, 1);
    let setup = Setup { regions: 2, ..Setup::default() };
    let device = Device::connect(host.path(), &setup).unwrap();
    // The rings are in the first region.
    let table = device.memory.table().unwrap();
    let mut link = device.link;
    for queue in &device.queues {
        link.stop(queue).unwrap();
    }
    link.frontend().set_mem_table(&table[1..]).unwrap();
    assert!(link.start(&device.queues[2]).is_err());
    link.frontend().set_mem_table(&table).unwrap();
    link.start(&device.queues[2]).unwrap();
}

/// Two hosts in one process: locks belong to open file descriptions.
#[test]
fn an_image_moves_when_the_guest_has_stopped() {
    let path = std::env::temp_dir().join(format!("vscsi-vhost-moves-{}", std::process::id()));
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let here = Host::with(&Disk::moving(&path), 1);
    let there = Host::with(&Disk::moving(&path), 1);
    std::fs::remove_file(&path).unwrap();
    let mut first = Device::connect(here.path(), &Setup::default()).unwrap();
    first.settle(LUN).unwrap();
    assert!(first.request(LUN, &scsi::write(7, 1), &[7; 512], 0).unwrap().is_good());
    let mut second = Device::connect(there.path(), &Setup::default()).unwrap();
    let write = Write::new(&second, 8, 8);
    second.queues[2].add(&write.buffers(), None).unwrap();
    second.queues[2].submit().unwrap();
    assert!(second.queues[2].take_within(Duration::from_millis(300)).is_err());
    assert_eq!(there.server().status().queues, 0);
    // Messages are answered all the time.
    assert_ne!(second.link.frontend().get_features().unwrap(), 0);
    for queue in &first.queues {
        first.link.stop(queue).unwrap();
    }
    second.queues[2].take_within(Duration::from_secs(5)).unwrap();
    second.settle(LUN).unwrap();
    let read = second.request(LUN, &scsi::read(7, 1), &[], 512).unwrap();
    assert_eq!(read.data, [7; 512]);
    // And back, when it is the other one that is gone.
    for queue in &first.queues {
        first.link.start(queue).unwrap();
    }
    assert_eq!(here.server().status().queues, 0);
    drop(second);
    here.wait_for("the image", |server| server.status().queues == 3);
    first.settle(LUN).unwrap();
}

fn tempfile() -> File {
    File::from(memfd_create("test", MFdFlags::empty()).unwrap())
}

const SET_LOG_FD: u32 = 7;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_CALL: u32 = 13;
const SEND_RARP: u32 = 19;
const SET_VRING_ENDIAN: u32 = 23;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const REM_MEM_REG: u32 = 38;
const GET_STATUS: u32 = 40;
