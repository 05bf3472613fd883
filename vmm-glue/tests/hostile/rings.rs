//! What a guest writes into its rings.

use vhost_frontend::{Buffer, Descriptor, Device, Table};

use super::*;

/// Free for a test: the polite driver takes the first ones.
const FREE: u16 = 8;

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, len, flags, next }
}

/// Offers a chain by its head, and expects it back with nothing written.
fn refused(device: &mut Device, what: &str, chain: &[Descriptor]) {
    for (index, entry) in (FREE..).zip(chain) {
        ring(device).set_descriptor(index, *entry);
    }
    ring(device).offer(FREE);
    let queue = &mut device.queues[2];
    queue.kick().unwrap();
    let used = queue.take_within(LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((used.head, used.len), (FREE, 0), "{what}");
    works(device);
}

#[test]
fn chains_that_cannot_be_come_back_empty_and_the_ring_goes_on() {
    const NEXT: u16 = Descriptor::NEXT;
    const WRITE: u16 = Descriptor::WRITE;
    let siege = Siege::new();
    let mut device = siege.device();
    let (start, len) = device.memory.bounds(0).unwrap();
    let (second, _) = device.memory.bounds(1).unwrap();
    let end = start + len;
    let good = descriptor(start, 51, NEXT, FREE + 1);
    let last = |address, len, flags| [good, descriptor(address, len, flags, 0)];
    let chains: [(&str, &[Descriptor]); 17] = [
        ("a loop of one", &[descriptor(start, 16, NEXT, FREE)]),
        ("a loop of two", &[good, descriptor(start, 16, NEXT | WRITE, FREE)]),
        ("a loop that starts later", &[good, descriptor(start, 16, NEXT | WRITE, FREE + 1)]),
        ("a next outside of the ring", &[good, descriptor(start, 16, NEXT | WRITE, 16)]),
        ("a next far outside", &[good, descriptor(start, 16, NEXT | WRITE, u16::MAX)]),
        ("an address below memory", &last(0, 108, WRITE)),
        ("an address above memory", &last(1 << 60, 108, WRITE)),
        ("the last address", &last(u64::MAX, 108, WRITE)),
        ("a length that overflows", &last(u64::MAX - 50, u32::MAX, WRITE)),
        ("a length beyond the region", &last(end - 50, 108, WRITE)),
        ("a length over the hole", &last(start, (second - start) as u32 + 512, WRITE)),
        ("the most bytes", &last(start, u32::MAX, WRITE)),
        (
            "data out behind data in",
            &[good, descriptor(start, 108, WRITE | NEXT, FREE + 2), descriptor(start, 8, 0, 0)],
        ),
        ("no room for a response", &last(start, 107, WRITE)),
        ("no response at all", &[descriptor(start, 51, 0, 0)]),
        (
            "less than a request",
            &[descriptor(start, 50, NEXT, FREE + 1), descriptor(start, 108, WRITE, 0)],
        ),
        ("nothing", &[descriptor(start, 0, 0, 0)]),
    ];
    for (what, chain) in chains {
        refused(&mut device, what, chain);
    }
    // Each is possible, and together they are more than 32 bits count.
    let half = descriptor(start, 4 << 20, WRITE | NEXT, 0);
    for index in FREE..FREE + 8 {
        ring(&mut device).set_descriptor(index, Descriptor { next: index + 1, ..half });
    }
    refused(&mut device, "a chain longer than the ring", &[]);
    drop(device);
    siege.check();
}

#[test]
fn indirect_tables_that_cannot_be_come_back_empty() {
    const INDIRECT: u16 = Descriptor::INDIRECT;
    const NEXT: u16 = Descriptor::NEXT;
    let siege = Siege::new();
    let mut device = siege.device();
    let table = device.memory.window(4096, 4096).unwrap();
    let at = table.address();
    let (start, len) = device.memory.bounds(0).unwrap();
    let fill = |entries: &[Descriptor]| {
        for (index, entry) in entries.iter().enumerate() {
            table.write(index * 16, &entry.bytes());
        }
    };
    let small = descriptor(start, 1, NEXT, 1);
    let tables: [(&str, &[Descriptor], Descriptor); 11] = [
        ("an empty table", &[], descriptor(at, 0, INDIRECT, 0)),
        ("half a descriptor", &[], descriptor(at, 24, INDIRECT, 0)),
        ("a table outside", &[], descriptor(0, 32, INDIRECT, 0)),
        ("a table over the end", &[], descriptor(start + len - 16, 32, INDIRECT, 0)),
        ("a table of 4 GiB", &[], descriptor(at, !15, INDIRECT, 0)),
        ("a table and more", &[small], descriptor(at, 32, INDIRECT | NEXT, FREE + 1)),
        ("a table in a table", &[descriptor(at, 16, INDIRECT, 0)], descriptor(at, 16, INDIRECT, 0)),
        ("a loop", &[small, descriptor(start, 1, NEXT, 0)], descriptor(at, 32, INDIRECT, 0)),
        ("a next outside", &[descriptor(start, 1, NEXT, 2)], descriptor(at, 32, INDIRECT, 0)),
        (
            "a next far outside",
            &[descriptor(start, 1, NEXT, u16::MAX)],
            descriptor(at, 32, INDIRECT, 0),
        ),
        ("an address outside", &[descriptor(0, 51, 0, 0)], descriptor(at, 16, INDIRECT, 0)),
    ];
    for (what, entries, head) in tables {
        fill(entries);
        refused(&mut device, what, &[head]);
    }
    drop(device);
    siege.check();
}

#[test]
fn a_table_that_changes_while_it_is_read_does_no_harm() {
    let siege = Siege::new();
    let mut device = siege.device();
    let task = Task::new(&device, 1, 4096);
    let table = device.memory.window(64, 64).unwrap();
    let (a, b) = (task.read(0), task.header.address());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, table) = (Arc::clone(&stop), table.clone());
        move || {
            let mut n = 0u64;
            while !stop.load(SeqCst) {
                n = n
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let address = if n >> 60 < 8 { b } else { n };
                table.write((n >> 33) as usize % 4 * 16, &address.to_le_bytes());
                table.write((n >> 35) as usize % 4 * 16 + 8, &(n >> 20).to_le_bytes());
            }
        }
    });
    let flags = [0, Descriptor::WRITE, Descriptor::WRITE];
    for _ in 0..2000 {
        for (index, (buffer, flags)) in a.iter().zip(flags).enumerate() {
            let next = if index < 2 { Descriptor::NEXT } else { 0 };
            let entry = descriptor(buffer.address, buffer.len, flags | next, index as u16 + 1);
            table.write(index * 16, &entry.bytes());
        }
        ring(&mut device)
            .set_descriptor(FREE, descriptor(table.address(), 48, Descriptor::INDIRECT, 0));
        ring(&mut device).offer(FREE);
        device.queues[2].kick().unwrap();
        assert_eq!(device.queues[2].take_within(LONG).unwrap().head, FREE);
    }
    stop.store(true, SeqCst);
    writer.join().unwrap();
    works(&mut device);
    drop(device);
    siege.check();
}

#[test]
fn an_index_that_jumps_breaks_the_ring_until_it_is_started_anew() {
    let siege = Siege::new();
    let mut device = siege.device();
    for step in [17, 0x8000, 0xFFFF] {
        let index = ring(&mut device).base().wrapping_add(step);
        ring(&mut device).set_available_index(index);
        device.queues[2].kick().unwrap();
        assert!(is_broken(&device.queues[2]), "{step}");
        // More of it is not looked at.
        device.queues[2].kick().unwrap();
        siege.neighbour.goes_on();
        device.restart().unwrap();
        works(&mut device);
    }
    drop(device);
    siege.check();
}

#[test]
fn a_head_that_is_no_descriptor_or_in_use_breaks_the_ring() {
    let siege = Siege::new();
    let mut device = siege.device();
    for head in [16, 0x8000, 0xFFFF] {
        ring(&mut device).offer(head);
        device.queues[2].kick().unwrap();
        assert!(is_broken(&device.queues[2]), "{head}");
        device.restart().unwrap();
        works(&mut device);
    }
    drop(device);
    siege.check();
}

#[test]
fn the_control_and_event_queues_take_nonsense_too() {
    let siege = Siege::new();
    let mut device = siege.device();
    let junk = device.memory.window(4096, 4096).unwrap();
    junk.fill(0xA5);
    let (start, _) = device.memory.bounds(0).unwrap();
    let out = Buffer::out(&junk);
    let into = Buffer { address: start, len: 0, writable: true };
    let tiny = Buffer { len: 3, ..Buffer::into(&junk) };
    let outside = Buffer { address: 0, len: 24, writable: false };
    for chain in
        [&[out][..], &[into], &[tiny], &[out, tiny], &[out, Buffer::into(&junk)], &[outside]]
    {
        device.queues[0].round_trip(chain).unwrap();
        let head = device.queues[1].add(chain, None).unwrap();
        device.queues[1].submit().unwrap();
        // Kept until there is an event, or given back at once.
        if let Ok(used) = device.queues[1].take_within(Duration::from_millis(20)) {
            assert_eq!(used.head, head);
        }
    }
    for subtype in [8, 0xFFFF_FFFF] {
        assert_ne!(device.task_management(subtype, LUN, 0).unwrap(), 0);
    }
    // Nonsense in a table too.
    let table = Table::new(&device.memory, 4).unwrap();
    device.queues[0].add(&[outside, tiny], Some(&table)).unwrap();
    device.queues[0].submit().unwrap();
    device.queues[0].take_within(LONG).unwrap();
    works(&mut device);
    drop(device);
    siege.check();
}
