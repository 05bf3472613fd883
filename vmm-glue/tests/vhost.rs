//! The vhost-user front door, as VMMs use it and as they should not.

mod common;

use common::Host;
use vhost_frontend::{Device, Setup, scsi};

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
