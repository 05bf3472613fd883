//! The vfio-user front door, as VMMs use it and as they should not.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

mod common;

use std::{os::fd::AsRawFd, sync::Arc, time::Duration};

use common::{Disk, Host};
use vhost_frontend::{
    Buffer, Device, Error, Memory, Queue, Setup, feature, scsi,
    vfio::{self, Client, NO_REPLY, access, command, irq, region, words},
};
use vmm_glue::vfio_user;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const LUN: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];
const STATUS: u64 = 0x14;

fn host(queues: u16) -> Host {
    Host::behind(&Disk::new(1), queues, vfio_user::listen)
}

fn client(host: &Host) -> Client {
    let mut client = Client::connect(host.path()).unwrap();
    client.open().unwrap();
    client
}

/// A request that is written and read back.
fn works<L>(device: &mut Device<L>) {
    device.settle(LUN).unwrap();
    let data: Vec<u8> = (0..8192u32).map(|n| (n * 7 / 5) as u8).collect();
    assert!(device.request(LUN, &scsi::write(100, 16), &data, 0).unwrap().is_good());
    let read = device.request(LUN, &scsi::read(100, 16), &[], 8192).unwrap();
    assert!(read.is_good() && read.data == data);
    assert_eq!((read.used, read.residual), (108 + 8192, 0));
}

#[test]
fn a_disk_is_found_written_and_read() {
    let host = host(2);
    let setup = Setup { queues: 2, ..Setup::default() };
    let mut device = Device::plug(host.path(), &setup).unwrap();
    works(&mut device);
    assert_eq!(device.capacity(LUN).unwrap(), (16384, 512));
    assert_eq!(device.task_management(5, LUN, 0).unwrap(), 0);
    let status = host.server().status();
    assert_eq!((status.connected, status.queues), (true, 4));
    assert!(device.request_on(3, LUN, &scsi::inquiry(36), &[], 36).is_ok());
}

#[test]
fn packed_rings_work_as_well() {
    let host = host(1);
    let features = Setup::default().features | feature::RING_PACKED;
    let setup = Setup { features, required: features, ..Setup::default() };
    works(&mut Device::plug(host.path(), &setup).unwrap());
}

#[test]
fn doorbells_are_heard_as_messages_one_by_one_and_many_at_once() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    // Nobody listens to these.
    for queue in &mut device.queues {
        queue.kick = EventFd::new(EFD_NONBLOCK).unwrap();
    }
    let header = device.memory.window(64, 64).unwrap();
    let response = device.memory.window(128, 64).unwrap();
    header.write(0, &scsi::request(LUN, 1, &scsi::test_unit_ready()));
    let chain = [
        Buffer::out(&header.part(0, scsi::REQUEST)),
        Buffer::into(&response.part(0, scsi::RESPONSE)),
    ];
    let doorbell = 0x3000 + 2 * 4;
    let mut many = 2u64.to_ne_bytes().to_vec();
    for offset in [0x3000, doorbell] {
        many.extend(access(region::REGISTERS, offset, 2));
        many.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    }
    for turn in 0..3 {
        device.queues[2].add(&chain, None).unwrap();
        device.queues[2].publish();
        match turn {
            0 => device.link.write(region::REGISTERS, doorbell, &[2, 0]).unwrap(),
            1 => {
                let body = [&access(region::REGISTERS, doorbell, 2)[..], &[2, 0]].concat();
                device.link.send(command::REGION_WRITE, NO_REPLY, &body, &[]).unwrap();
            }
            _ => {
                let done = device.link.call(command::REGION_WRITE_MULTI, &many, &[]).unwrap();
                assert_eq!(done.body, 2u64.to_ne_bytes());
            }
        }
        device.queues[2].take_within(Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn the_function_says_what_it_is() {
    let host = host(1);
    let mut client = client(&host);
    let info = client.call(command::GET_INFO, &words(&[16, 0, 0, 0]), &[]).unwrap();
    assert_eq!(info.body, words(&[16, 3, 9, 5]));
    let sizes: Vec<u64> = (0..9)
        .map(|index| {
            let body = words(&[32, 0, index, 0, 0, 0, 0, 0]);
            let info = client.call(command::GET_REGION_INFO, &body, &[]).unwrap().body;
            u64::from_ne_bytes(*info[16..].first_chunk().unwrap())
        })
        .collect();
    assert_eq!(sizes, [0x4000, 0x4000, 0, 0, 0, 0, 0, 256, 0]);
    let counts: Vec<u8> = (0..5)
        .map(|index| {
            let body = words(&[16, 0, index, 0]);
            client.call(command::GET_IRQ_INFO, &body, &[]).unwrap().body[12]
        })
        .collect();
    assert_eq!(counts, [1, 0, 4, 0, 0]);
    assert_eq!(client.read(region::CONFIG, 0, 4).unwrap(), [0xF4, 0x1A, 0x48, 0x10]);
    assert_eq!(client.common(0x12, 2).unwrap(), 3);
    // The configuration of the SCSI device: queues, and segments at most.
    assert_eq!(client.read(region::REGISTERS, 0x2000, 8).unwrap(), [1, 0, 0, 0, 126, 0, 0, 0]);
}

#[test]
fn the_window_in_the_configuration_space_reaches_the_registers() {
    let host = host(3);
    let mut client = client(&host);
    // BAR 0, the number of queues, two bytes.
    client.write(region::CONFIG, 0x98, &[0]).unwrap();
    client.write(region::CONFIG, 0x9C, &[0x12, 0, 0, 0, 2, 0, 0, 0]).unwrap();
    assert_eq!(client.read(region::CONFIG, 0xA4, 2).unwrap(), [5, 0]);
    client.write(region::CONFIG, 0x9C, &[0x14, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    client.write(region::CONFIG, 0xA4, &[1]).unwrap();
    assert_eq!(client.common(STATUS, 1).unwrap(), 1);
}

#[test]
fn the_pin_interrupts_until_the_status_is_read() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    device.settle(LUN).unwrap();
    let pin = EventFd::new(EFD_NONBLOCK).unwrap();
    device.link.set_irqs(irq::INTX, &[&pin]).unwrap();
    device.link.write(region::CONFIG, 0x42, &[0, 0]).unwrap();
    let waits = || {
        for _ in 0..500 {
            if pin.read().is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    };
    // The change of interrupts is an interrupt.
    assert!(waits());
    assert_eq!(device.link.read(region::CONFIG, 6, 1).unwrap(), [0x18]);
    assert_eq!(device.link.read(region::REGISTERS, 0x1000, 1).unwrap(), [1]);
    assert_eq!(device.link.read(region::CONFIG, 6, 1).unwrap(), [0x10]);
    device.queues[2].want_calls(true);
    let unmask = words(&[20, 0x11, irq::INTX, 0, 1]);
    device.link.call(command::SET_IRQS, &unmask, &[]).unwrap();
    assert!(pin.read().is_err());
    device.request(LUN, &scsi::test_unit_ready(), &[], 0).unwrap();
    assert!(waits());
    // Not seen to yet: it comes again.
    device.link.call(command::SET_IRQS, &unmask, &[]).unwrap();
    assert!(waits());
    assert_eq!(device.link.read(region::REGISTERS, 0x1000, 1).unwrap(), [1]);
}

#[test]
fn a_masked_vector_is_pending() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    device.settle(LUN).unwrap();
    device.queues[2].want_calls(true);
    while device.queues[2].call.read().is_ok() {}
    let one = |action: u32| words(&[20, action | 1, irq::MSIX, 3, 1]);
    device.link.call(command::SET_IRQS, &one(8), &[]).unwrap();
    device.request(LUN, &scsi::test_unit_ready(), &[], 0).unwrap();
    assert!(device.queues[2].call.read().is_err());
    assert_eq!(device.link.read(1, 0x2000, 1).unwrap(), [8]);
    device.link.call(command::SET_IRQS, &one(16), &[]).unwrap();
    assert!(device.queues[2].wait_call(Duration::from_secs(5)).unwrap());
    assert_eq!(device.link.read(1, 0x2000, 1).unwrap(), [0]);
}

#[test]
fn a_reset_by_the_driver_by_the_function_and_by_the_client_begins_anew() {
    let host = host(1);
    let setup = Setup::default();
    let mut device = Device::plug(host.path(), &setup).unwrap();
    for turn in 0..3 {
        works(&mut device);
        match turn {
            0 => device.link.set_common(STATUS, 1, 0).unwrap(),
            1 => device.link.write(region::CONFIG, 0xAC, &[1]).unwrap(),
            _ => drop(device.link.call(command::RESET, &[], &[]).unwrap()),
        }
        assert_eq!(device.link.common(STATUS, 1).unwrap(), 0);
        assert_eq!(host.server().status().queues, 0);
        let Device { link, memory, .. } = device;
        device = Device::drive(link, memory, &setup).unwrap();
    }
}

#[test]
fn one_queue_is_reset_and_enabled_again() {
    let host = host(1);
    let required = Setup::default().required | 1 << 40;
    let setup = Setup { required, ..Setup::default() };
    let mut device = Device::plug(host.path(), &setup).unwrap();
    works(&mut device);
    device.link.set_common(0x16, 2, 2).unwrap();
    device.link.set_common(0x3A, 2, 1).unwrap();
    assert_eq!(device.link.common(0x3A, 2).unwrap(), 0);
    assert_eq!(device.link.common(0x1C, 2).unwrap(), 0);
    let kick = device.queues[2].kick.try_clone().unwrap();
    let call = device.queues[2].call.try_clone().unwrap();
    let again = Queue::new(&device.memory, 2, setup.size, device.features).unwrap();
    device.queues[2] = Queue { kick, call, ..again };
    device.link.enable(&device.queues[2]).unwrap();
    works(&mut device);
}

/// Every page of guest memory is a map of its own, as behind an emulated IOMMU.
#[test]
fn buffers_and_rings_span_maps() {
    let host = host(1);
    let mut client = client(&host);
    let memory = Memory::new(1, 4 << 20).unwrap();
    let (start, len) = memory.bounds(0).unwrap();
    let file = memory.file(0).unwrap();
    for page in (0..len / 4096).rev().map(|page| page * 4096) {
        client.map(start + page, 4096, Some((file, page))).unwrap();
    }
    let setup = Setup { data: 1 << 20, ..Setup::default() };
    works(&mut Device::drive(client, memory, &setup).unwrap());
}

#[test]
fn pages_come_and_go_while_requests_run() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    device.settle(LUN).unwrap();
    let spare = Memory::at(&[(1 << 32, 1 << 20)]).unwrap();
    let file = spare.file(0).unwrap().try_clone().unwrap();
    let header = device.memory.window(64, 64).unwrap();
    let response = device.memory.window(128, 64).unwrap();
    header.write(0, &scsi::request(LUN, 1, &scsi::read(0, 8)));
    let data = spare.at_address(1 << 32, 4096).unwrap();
    let chain = [
        Buffer::out(&header.part(0, scsi::REQUEST)),
        Buffer::into(&response.part(0, scsi::RESPONSE)),
        Buffer::into(&data),
    ];
    for turn in 0..50 {
        device.link.map(1 << 32, 4096, Some((&file, 0))).unwrap();
        device.queues[2].round_trip(&chain).unwrap();
        assert_eq!(response.bytes(10, 2), [0, 0], "{turn}");
        device.link.unmap(1 << 32, 4096).unwrap();
        // What is not there cannot be written to: the request comes back empty.
        let used = device.queues[2].round_trip(&chain).unwrap();
        assert_eq!(used.len, 0);
    }
}

#[test]
fn memory_without_a_descriptor_is_carried_by_messages() {
    let host = host(1);
    let mut client = client(&host);
    let memory = Memory::new(1, 8 << 20).unwrap();
    let (start, len) = memory.bounds(0).unwrap();
    client.map(start, len, None).unwrap();
    client.memory = Some(Arc::clone(&memory));
    // Packed rings and event indices are not offered then.
    let mut device = Device::drive(client, memory, &Setup::default()).unwrap();
    assert_eq!(device.offered & (feature::RING_PACKED | feature::EVENT_IDX), 0);
    let header = device.memory.window(64, 64).unwrap();
    let response = device.memory.window(128, 64).unwrap();
    let data = device.memory.window(65536, 4096).unwrap();
    let table = vhost_frontend::Table::new(&device.memory, 3).unwrap();
    let request = |device: &mut Device<Client>, cdb: &[u8], buffer: Option<Buffer>| {
        header.write(0, &scsi::request(LUN, 1, cdb));
        response.fill(0xEE);
        let mut chain = vec![Buffer::out(&header.part(0, scsi::REQUEST))];
        let answer = Buffer::into(&response.part(0, scsi::RESPONSE));
        let is_read = cdb[0] == 0x28;
        chain.extend(buffer.filter(|_| !is_read));
        chain.push(answer);
        chain.extend(buffer.filter(|_| is_read));
        device.queues[2].add(&chain, Some(&table)).unwrap();
        device.queues[2].submit().unwrap();
        let Device { link, queues, .. } = device;
        let queue = &mut queues[2];
        link.serve_until(|| queue.take().unwrap().is_some()).unwrap();
        assert!(queue.wait_call(Duration::from_secs(5)).unwrap());
        response.bytes(10, 2)
    };
    for _ in 0..4 {
        request(&mut device, &scsi::test_unit_ready(), None);
    }
    let bytes: Vec<u8> = (0..65536u32).map(|n| (n * 7 / 5) as u8).collect();
    data.write(0, &bytes);
    let sent = request(&mut device, &scsi::write(8, 128), Some(Buffer::out(&data)));
    assert_eq!(sent, [0, 0]);
    data.fill(0);
    // It goes for a moment, and comes back with other borders.
    device.link.unmap(start, len).unwrap();
    device.link.map(start + 4096, len - 4096, None).unwrap();
    device.link.map(start, 4096, None).unwrap();
    let read = request(&mut device, &scsi::read(8, 128), Some(Buffer::into(&data)));
    assert_eq!(read, [0, 0]);
    assert!(data.bytes(0, 65536) == bytes);
    assert!(device.link.served.iter().all(|&served| served > 65536));
    // A reset forgets what was carried.
    device.link.call(command::RESET, &[], &[]).unwrap();
    let Device { link, memory, .. } = device;
    let mut device = Device::drive(link, memory, &Setup::default()).unwrap();
    assert_eq!(request(&mut device, &scsi::read(8, 128), Some(Buffer::into(&data)))[1], 0);
}

#[test]
fn a_client_that_refuses_to_be_read_ends_its_device_and_nothing_else() {
    let host = host(1);
    let mut client = client(&host);
    let memory = Memory::new(1, 8 << 20).unwrap();
    let (start, len) = memory.bounds(0).unwrap();
    client.map(start, len, None).unwrap();
    let mut device = Device::drive(client, memory, &Setup::default()).unwrap();
    device.queues[2].kick().unwrap();
    let mut status = 0;
    for _ in 0..1000 {
        status = device.link.common(STATUS, 1).unwrap();
        if status == 0x4F {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status, 0x4F);
    drop(device);
    works(&mut Device::plug(host.path(), &Setup::default()).unwrap());
}

#[test]
fn a_ring_rests_while_its_memory_is_away() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    works(&mut device);
    let (start, len) = device.memory.bounds(0).unwrap();
    device.link.unmap(start, len).unwrap();
    let header = device.memory.window(64, 64).unwrap();
    let response = device.memory.window(128, 64).unwrap();
    header.write(0, &scsi::request(LUN, 1, &scsi::test_unit_ready()));
    let chain = [
        Buffer::out(&header.part(0, scsi::REQUEST)),
        Buffer::into(&response.part(0, scsi::RESPONSE)),
    ];
    device.queues[2].add(&chain, None).unwrap();
    device.queues[2].submit().unwrap();
    assert!(device.queues[2].take_within(Duration::from_millis(50)).is_err());
    // It comes back with other borders.
    let file = device.memory.file(0).unwrap().try_clone().unwrap();
    device.link.map(start, len / 2, Some((&file, 0))).unwrap();
    device.link.map(start + len / 2, len / 2, Some((&file, len / 2))).unwrap();
    device.queues[2].take_within(Duration::from_secs(5)).unwrap();
    works(&mut device);
}

#[test]
fn the_next_client_finds_the_device_anew() {
    let host = host(1);
    for _ in 0..3 {
        let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
        works(&mut device);
        drop(device);
        host.wait_for("the end", |server| !server.status().connected);
        assert_eq!(host.server().status().queues, 0);
    }
    // A second one waits for the first.
    let first = client(&host);
    let mut second = Client::connect(host.path()).unwrap();
    second.send(command::VERSION, 0, &[0, 0, 0, 0], &[]).unwrap();
    drop(first);
    assert_eq!(second.reply().unwrap().command, command::VERSION);
}

#[test]
fn what_cannot_be_is_refused_and_the_connection_goes_on() {
    let host = host(1);
    let mut client = client(&host);
    let event = EventFd::new(0).unwrap();
    let long = access(region::CONFIG, 0, 2 << 20);
    let outside = access(region::REGISTERS, u64::MAX, 4);
    let einval = [
        (command::VERSION, vec![0; 4], &[][..]),
        (command::DMA_MAP, vec![0; 31], &[]),
        (command::DMA_MAP, vfio::map(0, 0, 0), &[]),
        (command::DMA_MAP, vfio::map(u64::MAX - 4095, 8192, 0), &[]),
        (command::DMA_UNMAP, vec![0; 8], &[]),
        (command::DMA_UNMAP, vfio::unmap(0, 0), &[]),
        (command::GET_REGION_INFO, words(&[32, 0, 9]), &[]),
        (command::GET_REGION_INFO, vec![], &[]),
        (command::GET_REGION_IO_FDS, words(&[32, 0, 9]), &[]),
        (command::GET_IRQ_INFO, words(&[16, 0, 5]), &[]),
        (command::SET_IRQS, words(&[20, 0x24, 2, 0, 1000]), &[]),
        (command::SET_IRQS, words(&[20, 0x24, 2, 0, 3]), &[event.as_raw_fd()]),
        (command::SET_IRQS, words(&[20, 0xFF, 2, 0, 3]), &[]),
        (command::REGION_READ, long, &[]),
        (command::REGION_READ, outside.clone(), &[]),
        (command::REGION_READ, access(region::REGISTERS, 0x3FFF, 2), &[]),
        (command::REGION_READ, access(2, 0, 1), &[]),
        (command::REGION_READ, access(u32::MAX, 0, 1), &[]),
        (command::REGION_WRITE, [outside, vec![0; 4]].concat(), &[]),
        (command::REGION_WRITE, access(region::CONFIG, 0, 4), &[]),
        (command::REGION_WRITE_MULTI, vec![0xFF; 64], &[]),
        (command::DMA_READ, vec![0; 16], &[]),
        (command::DMA_WRITE, vec![0; 16], &[]),
    ];
    for (number, body, fds) in einval {
        assert_eq!(client.errno(number, &body, fds).unwrap(), 22, "{number} {body:02x?}");
    }
    assert_eq!(client.errno(command::DEVICE_FEATURE, &words(&[8, 0x5_0001]), &[]).unwrap(), 25);
    assert_eq!(client.errno(14, &[], &[]).unwrap(), 95);
    assert_eq!(client.errno(0x7777, &[], &[]).unwrap(), 38);
    // Over what is there, and a descriptor that is no memory.
    let memory = Memory::new(1, 1 << 20).unwrap();
    let file = memory.file(0).unwrap().as_raw_fd();
    client.map(0, 8192, Some((&file, 0))).unwrap();
    assert_eq!(client.errno(command::DMA_MAP, &vfio::map(4096, 4096, 0), &[file]).unwrap(), 17);
    assert_eq!(client.errno(command::DMA_UNMAP, &vfio::unmap(0, 4096), &[]).unwrap(), 22);
    let beyond = vfio::map(1 << 30, 4096, 1 << 20);
    assert_eq!(client.errno(command::DMA_MAP, &beyond, &[file]).unwrap(), 22);
    assert_ne!(
        client.errno(command::DMA_MAP, &vfio::map(1 << 30, 4096, 0), &[event.as_raw_fd()]).unwrap(),
        0
    );
    assert_eq!(client.common(0x12, 2).unwrap(), 3);
}

#[test]
fn what_is_no_message_closes_the_connection_and_nothing_else() {
    let host = host(1);
    let version = |client: &Client, body: &[u8]| {
        client.send_head(1, command::VERSION, 16 + body.len() as u32, 0, body, &[]).unwrap();
    };
    let begins: [&dyn Fn(&Client); 9] = [
        // Something else first, a wrong version, no JSON.
        &|client| client.send_head(1, command::GET_INFO, 32, 0, &[0; 16], &[]).unwrap(),
        &|client| version(client, &[1, 0, 0, 0]),
        &|client| version(client, &[0, 0]),
        &|client| version(client, b"\0\0\0\0{\"capabilities\": 3}\0"),
        // A reply, a size below the head's, one beyond all.
        &|client| {
            version(client, &[0, 0, 0, 0]);
            client.send_head(1, command::RESET, 16, 1, &[], &[]).unwrap();
        },
        &|client| client.send_head(1, command::VERSION, 15, 0, &[], &[]).unwrap(),
        &|client| client.send_head(1, command::VERSION, u32::MAX, 0, &[], &[]).unwrap(),
        // Parts.
        &|client| client.send_bytes(&[1, 0, 1], &[]).unwrap(),
        &|client| client.send_head(1, command::VERSION, 64, 0, &[0; 8], &[]).unwrap(),
    ];
    for (number, begin) in begins.iter().enumerate() {
        let client = Client::connect(host.path()).unwrap();
        begin(&client);
        client.socket().shutdown(std::net::Shutdown::Write).unwrap();
        while client.receive().is_ok() {}
        drop(client);
        host.wait_for("the end", |server| !server.status().connected);
        assert!(number < 9);
    }
    works(&mut Device::plug(host.path(), &Setup::default()).unwrap());
}

#[test]
fn a_queue_outside_memory_needs_a_reset_and_tells_so() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    works(&mut device);
    let vector = EventFd::new(EFD_NONBLOCK).unwrap();
    device.link.set_common(STATUS, 1, 0).unwrap();
    device.link.set_irqs(irq::MSIX, &[&vector]).unwrap();
    device.link.negotiate(feature::VERSION_1).unwrap();
    device.link.set_common(0x10, 2, 0).unwrap();
    device.link.set_common(0x16, 2, 2).unwrap();
    device.link.set_common(0x20, 8, 0xDEAD_0000).unwrap();
    device.link.set_common(0x1C, 2, 1).unwrap();
    device.link.set_common(STATUS, 1, 15).unwrap();
    assert_eq!(device.link.common(STATUS, 1).unwrap(), 0x4F);
    assert_eq!(vector.read().unwrap(), 1);
    let Device { link, memory, .. } = device;
    works(&mut Device::drive(link, memory, &Setup::default()).unwrap());
}

#[test]
fn a_ring_that_the_driver_breaks_needs_a_reset() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    let vhost_frontend::Ring::Split(ring) = &device.queues[2].ring else { panic!() };
    ring.set_available_index(5000);
    device.queues[2].kick().unwrap();
    for _ in 0..1000 {
        if device.link.common(STATUS, 1).unwrap() == 0x4F {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(device.link.common(STATUS, 1).unwrap(), 0x4F);
    let Device { link, memory, .. } = device;
    works(&mut Device::drive(link, memory, &Setup::default()).unwrap());
}

#[test]
fn a_stopped_server_lets_its_client_go() {
    let host = host(1);
    let mut device = Device::plug(host.path(), &Setup::default()).unwrap();
    works(&mut device);
    host.server().stop();
    assert!(matches!(device.link.common(STATUS, 1), Err(Error::Socket(_))));
    assert_eq!(host.controller.places(), []);
    let _: Arc<Memory> = device.memory;
}
