//! The device's side is the `virtio-queue` crate: rings that it understands are rings.

use super::*;
use virtio_queue::{Queue as Device, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

fn device(ring: &SplitRing, event_idx: bool) -> Device {
    let mut device = Device::new(ring.size()).unwrap();
    let [descriptors, available, used] = ring.areas();
    device.set_size(ring.size());
    device.try_set_desc_table_address(vm_memory::GuestAddress(descriptors.address())).unwrap();
    device.try_set_avail_ring_address(vm_memory::GuestAddress(available.address())).unwrap();
    device.try_set_used_ring_address(vm_memory::GuestAddress(used.address())).unwrap();
    device.set_event_idx(event_idx);
    device.set_ready(true);
    device
}

fn chain(count: usize) -> Vec<Buffer> {
    (0..count)
        .map(|n| Buffer { address: 0x10_0000 + 64 * n as u64, len: 8, writable: n > 0 })
        .collect()
}

fn pop(device: &mut Device, map: &GuestMemoryMmap<()>) -> Option<(u16, Vec<Buffer>)> {
    let popped = device.iter(map).unwrap().next()?;
    let head = popped.head_index();
    let buffers = popped.map(|descriptor| Buffer {
        address: descriptor.addr().0,
        len: descriptor.len(),
        writable: descriptor.is_write_only(),
    });
    Some((head, buffers.collect()))
}

#[test]
fn a_device_sees_direct_and_indirect_chains_as_they_were_added() {
    let memory = Memory::new(1, 1 << 20).unwrap();
    let mut ring = SplitRing::new(&memory, 8, 0).unwrap();
    let mut device = device(&ring, false);
    let table = Table::new(&memory, 6).unwrap();
    for round in 0..40 {
        let direct = ring.add(&chain(3), None).unwrap();
        let indirect = ring.add(&chain(6), Some(&table)).unwrap();
        assert!(pop(&mut device, memory.map()).is_none(), "not published in round {round}");
        assert!(ring.publish());
        assert_eq!(pop(&mut device, memory.map()), Some((direct, chain(3))));
        assert_eq!(pop(&mut device, memory.map()), Some((indirect, chain(6))));
        // Out of order, so that the free list is shuffled.
        device.add_used(memory.map(), indirect, 7).unwrap();
        device.add_used(memory.map(), direct, 9).unwrap();
        assert_eq!(ring.take().unwrap(), Some(Used { head: indirect, len: 7 }));
        assert_eq!(ring.take().unwrap(), Some(Used { head: direct, len: 9 }));
        assert_eq!(ring.take().unwrap(), None);
        assert_eq!(ring.free(), 8);
    }
}

#[test]
fn kicks_and_calls_follow_the_event_indices() {
    let memory = Memory::new(1, 1 << 20).unwrap();
    let mut ring = SplitRing::new(&memory, 8, feature::EVENT_IDX).unwrap();
    let mut device = device(&ring, true);
    let head = ring.add(&chain(2), None).unwrap();
    assert!(ring.publish(), "the device has not set its event yet: index 0");
    device.disable_notification(memory.map()).unwrap();
    let second = ring.add(&chain(2), None).unwrap();
    assert!(!ring.publish());
    pop(&mut device, memory.map()).unwrap();
    pop(&mut device, memory.map()).unwrap();
    device.enable_notification(memory.map()).unwrap();
    ring.add(&chain(2), None).unwrap();
    assert!(ring.publish());
    assert!(!ring.want_calls(false));
    device.add_used(memory.map(), head, 0).unwrap();
    assert!(!device.needs_notification(memory.map()).unwrap());
    ring.take().unwrap().unwrap();
    assert!(!ring.want_calls(true));
    device.add_used(memory.map(), second, 0).unwrap();
    assert!(device.needs_notification(memory.map()).unwrap());
    assert!(ring.want_calls(true), "one is waiting");
}

#[test]
fn in_order_one_entry_gives_back_a_batch_and_descriptors_go_round() {
    let memory = Memory::new(1, 1 << 20).unwrap();
    let mut ring = SplitRing::new(&memory, 8, feature::IN_ORDER).unwrap();
    for round in 0..20u16 {
        let first = ring.add(&chain(2), None).unwrap();
        let last = ring.add(&chain(3), None).unwrap();
        assert_eq!((first, last), (round * 5 % 8, (round * 5 + 2) % 8));
        ring.publish();
        // As a device that writes one entry for both does.
        ring.used.u32(4 + 8 * usize::from(round * 2 % 8)).store(u32::from(last).to_le(), Relaxed);
        ring.used.u16(2).store((round * 2 + 2).to_le(), Release);
        let heads: Vec<u16> =
            std::iter::from_fn(|| ring.take().unwrap()).map(|used| used.head).collect();
        assert_eq!(heads, [first, last]);
    }
}

#[test]
fn what_the_device_never_had_or_gives_back_twice_is_an_error() {
    let memory = Memory::new(1, 1 << 20).unwrap();
    let mut ring = SplitRing::new(&memory, 8, 0).unwrap();
    let mut device = device(&ring, false);
    let head = ring.add(&chain(2), None).unwrap();
    ring.publish();
    for _ in 0..2 {
        device.add_used(memory.map(), head, 0).unwrap();
    }
    assert!(ring.take().unwrap().is_some());
    assert!(matches!(ring.take(), Err(Error::NotOwned(n)) if n == u32::from(head)));
}

#[test]
fn a_hand_written_chain_is_popped_and_given_back() {
    let memory = Memory::new(1, 1 << 20).unwrap();
    let mut ring = SplitRing::new(&memory, 8, 0).unwrap();
    let mut device = device(&ring, false);
    let flags = Descriptor::NEXT;
    ring.set_descriptor(5, Descriptor { address: 0x10_0000, len: 1, flags, next: 7 });
    ring.set_descriptor(7, Descriptor { address: 0x10_0100, len: 2, flags: 0, next: 0 });
    ring.offer(5);
    let (head, buffers) = pop(&mut device, memory.map()).unwrap();
    assert_eq!((head, buffers.len()), (5, 2));
    device.add_used(memory.map(), 5, 0).unwrap();
    assert_eq!(ring.take().unwrap(), Some(Used { head: 5, len: 0 }));
}
