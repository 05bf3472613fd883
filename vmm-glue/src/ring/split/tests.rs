use std::fs;

use proptest::{collection::vec, prelude::*, sample::Index};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vscsi_target::reactor::sg::Segment;

use super::*;
use crate::{
    memory::Region,
    ring::{
        Ring,
        rig::{self, DATA, DESCRIPTOR, DEVICE, DRIVER, GPA, Guest, Piece, REGION},
    },
};

/// A guest whose memory virtio-queue has too, and its queue there.
fn twins(size: u16) -> (Guest, GuestMemoryMmap, Queue) {
    let file = rig::memory(REGION);
    let twin = |file: &fs::File| file.try_clone().unwrap();
    let region = Region::map(GPA, REGION, 0, 0, twin(&file)).unwrap();
    let guest = Guest { map: Arc::new(GuestMap::new(vec![region]).unwrap()) };
    let file = Some(FileOffset::new(file, 0));
    let range = (GuestAddress(GPA), REGION as usize, file);
    let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
    let mut queue = Queue::new(size).unwrap();
    let halves = |offset: u64| (Some((GPA + offset) as u32), Some(((GPA + offset) >> 32) as u32));
    let (low, high) = halves(DESCRIPTOR);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(DRIVER);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(DEVICE);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
    (guest, memory, queue)
}

/// Where what a chain reads and writes is, as virtio-queue sees it: the next chain of its queue.
type Ranges = Vec<(u64, usize)>;
fn theirs(queue: &mut Queue, memory: &GuestMemoryMmap) -> Option<(u16, Ranges, Ranges)> {
    let chain = queue.pop_descriptor_chain(memory)?;
    let head = chain.head_index();
    let entries = chain.filter(|entry| entry.len() > 0);
    let (writable, readable): (Vec<_>, Vec<_>) = entries.partition(|e| e.is_write_only());
    let ranges = |entries: Vec<Descriptor>| {
        entries.iter().map(|entry| (entry.addr().0, entry.len() as usize)).collect()
    };
    Some((head, ranges(readable), ranges(writable)))
}

fn ours(guest: &Guest, chain: &Chain) -> (u16, Ranges, Ranges) {
    let ranges = |list: &[Segment]| {
        list.iter().map(|s| (guest.map.gpa_of(s.base).unwrap(), s.len)).collect()
    };
    (chain.id, ranges(&chain.readable), ranges(&chain.writable))
}

/// A request: its pieces, of which that many are written, and whether they are in a table.
#[derive(Clone, Debug)]
struct Request {
    pieces: Vec<(u64, u32)>,
    written: usize,
    indirect: bool,
}

fn requests() -> impl Strategy<Value = Vec<(Request, Index)>> {
    let piece = (0..0x1000u64, 0..0x2000u32);
    let request = (vec(piece, 1..6), 0..6usize, any::<bool>())
        .prop_map(|(pieces, written, indirect)| Request { pieces, written, indirect });
    vec((request, any::<Index>()), 1..60)
}

/// Has the driver make a request available.
fn add(guest: &Guest, driver: &mut rig::Driver<'_>, table: u64, request: &Request) -> Option<u16> {
    let count = request.pieces.len();
    let pieces: Vec<_> = (0..)
        .zip(&request.pieces)
        .map(|(nth, (addr, len))| Piece {
            addr: DATA + addr,
            len: *len,
            write: nth + request.written >= count,
        })
        .collect();
    if !request.indirect {
        return driver.add(&pieces);
    }
    // Backwards through the table, but for the first.
    let place = |nth: usize| if nth == 0 { 0 } else { count - nth };
    for (nth, piece) in pieces.iter().enumerate() {
        let at = table + 16 * place(nth) as u64;
        let next = u16::from(nth + 1 < count);
        guest.write(at, piece.addr);
        guest.write(at + 8, piece.len);
        guest.write(at + 12, next | u16::from(piece.write) << 1);
        guest.write(at + 14, place(nth + 1) as u16);
    }
    let head = driver.add(&[Piece { addr: table, len: 16 * count as u32, write: false }])?;
    guest.write(GPA + DESCRIPTOR + 16 * u64::from(head) + 12, 4u16);
    Some(head)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn valid_chains_are_what_virtio_queue_says_they_are(requests in requests()) {
        let (guest, memory, mut queue) = twins(16);
        let mut ring = guest.open(16, feature::INDIRECT_DESC);
        let mut driver = guest.driver(16, 0);
        let (mut chain, mut out) = (Chain::default(), Vec::new());
        for (nth, (request, which)) in (0..).zip(&requests) {
            let table = DATA + 0x8000 + 0x100 * nth;
            if add(&guest, &mut driver, table, request).is_some() {
                prop_assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Chain));
                let theirs = theirs(&mut queue, &memory).unwrap();
                out.push(theirs.0);
                prop_assert_eq!(ours(&guest, &chain), theirs);
                let read: usize = chain.readable.iter().map(|segment| segment.len).sum();
                prop_assert_eq!(chain.readable_len as usize, read);
            } else {
                // Back in any order, so that chains go all over the table.
                let id = out.swap_remove(which.index(out.len()));
                ring.push(id, 9);
                ring.publish();
                prop_assert_eq!(driver.used(), Some((id, 9)));
            }
        }
        prop_assert_eq!(ring.pop(&guest.map, &mut chain), Ok(Popped::Empty));
    }

    #[test]
    fn whatever_is_in_a_table_is_taken_as_virtio_queue_does_or_refused(
        table in vec((0..6u64, 0..0x40u32, 0..8u16, 0..9u16), 16),
        heads in vec(0..9u16, 1..8),
    ) {
        let (guest, memory, mut queue) = twins(8);
        for (nth, (addr, len, flags, next)) in (0..).zip(&table) {
            // The second half is a table for indirect descriptors of the first.
            let place = if nth < 8 { GPA + DESCRIPTOR } else { DATA } + 16 * (nth % 8);
            let places = [DATA, DATA + 16, DATA + 0x1000, GPA + REGION - 0x20, 0, u64::MAX - 0x20];
            guest.write(place, places[*addr as usize]);
            guest.write(place + 8, *len);
            guest.write(place + 12, *flags);
            guest.write(place + 14, *next);
        }
        for (nth, head) in (0..).zip(&heads) {
            guest.write(GPA + DRIVER + 4 + 2 * nth, *head);
        }
        guest.write(GPA + DRIVER + 2, heads.len() as u16);
        let mut ring = guest.open(8, feature::INDIRECT_DESC);
        let mut chain = Chain::default();
        for head in heads {
            let popped = ring.pop(&guest.map, &mut chain);
            if head >= 8 {
                prop_assert_eq!(popped, Err(RingError::Head(head)));
                break;
            }
            let theirs = theirs(&mut queue, &memory).unwrap();
            prop_assert_eq!(chain.id, head);
            if popped == Ok(Popped::Chain) {
                prop_assert_eq!(ours(&guest, &chain), theirs);
            } else {
                prop_assert_eq!(popped, Ok(Popped::Bad));
            }
        }
    }
}

#[test]
fn an_index_that_jumps_breaks_the_ring() {
    let guest = Guest::new(1);
    let mut ring = guest.open(4, 0);
    let mut chain = Chain::default();
    let mut index = |index: u16| {
        guest.write(GPA + DRIVER + 2, index);
        ring.pop(&guest.map, &mut chain)
    };
    assert_eq!(index(5), Err(RingError::AvailableIndex { index: 5, expected: 0 }));
    assert_eq!(index(u16::MAX), Err(RingError::AvailableIndex { index: u16::MAX, expected: 0 }));
    // Descriptors of zeroes: nothing to read.
    (0..4).for_each(|_| assert_eq!(index(4), Ok(Popped::Chain)));
    // All four are out: a fifth cannot be available.
    assert_eq!(index(5), Err(RingError::AvailableIndex { index: 5, expected: 4 }));
}

#[test]
fn indices_go_round() {
    let guest = Guest::new(1);
    let mut driver = guest.driver(8, 0);
    let mut ring = guest.open(8, 0);
    let mut chain = Chain::default();
    for turn in 0..70_000u32 {
        let id = driver.add(&[Piece { addr: DATA, len: 1, write: true }]).unwrap();
        assert_eq!(rig::pop(&mut ring, &guest, &mut chain), Some(id));
        ring.push(id, turn);
        assert!(ring.publish());
        assert_eq!(driver.used(), Some((id, turn)));
    }
    assert_eq!(ring.base(), 70_000 % 0x1_0000);
}

#[test]
fn sizes_that_are_no_power_of_two_are_refused() {
    let guest = Guest::new(1);
    for size in [0, 3, 65535] {
        let refused = Ring::open(Setup { size, ..guest.setup(4, 0) }).unwrap_err();
        assert_eq!(refused, RingError::Size(size));
    }
}
