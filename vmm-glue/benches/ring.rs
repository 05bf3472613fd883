//! What a ring costs a request: taken, its memory found, given back, published; 32 at a time.
//!
//! The driver's part (making available again, looking at what is used) is not in the times. Beside
//! our rings, the same requests through virtio-queue.

#![allow(missing_docs)]
#![allow(unsafe_code)] // The driver's side writes guest memory.
#![allow(clippy::unwrap_used)] // A benchmark may just stop.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs,
    hint::black_box,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_glue::{
    memory::{GuestMap, Region},
    ring::{Areas, Chain, Popped, Ring, Setup, feature},
};
use vscsi_target::reactor::sg::Segment;

/// How requests look.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    descriptors: u64,
    indirect: bool,
    regions: u64,
}

impl Shape {
    /// Descriptors in the ring.
    fn in_ring(&self) -> u64 {
        if self.indirect { 1 } else { self.descriptors }
    }

    /// Address and flags of the `nth` descriptor of a request: half is read, half is written, each
    /// in the next region.
    fn piece(&self, request: u64, nth: u64) -> (u64, u16) {
        let region = (request + nth) % self.regions;
        let write = if nth >= self.descriptors / 2 { WRITE } else { 0 };
        (region * REGION + DATA + 4096 * (4 * request + nth), write)
    }
}

/// Guest memory that a driver can write.
trait Memory {
    fn put<T: vm_memory::ByteValued>(&self, gpa: u64, value: T);
}

impl Memory for GuestMap {
    fn put<T: vm_memory::ByteValued>(&self, gpa: u64, value: T) {
        // SAFETY: aligned places in the benchmark's own memory.
        unsafe { self.at(gpa, size_of::<T>()).unwrap().cast::<T>().write_volatile(value) };
    }
}

impl Memory for GuestMemoryMmap {
    fn put<T: vm_memory::ByteValued>(&self, gpa: u64, value: T) {
        self.write_obj(value, GuestAddress(gpa)).unwrap();
    }
}

/// Writes a split ring's requests and an available ring that names them over and over.
fn prepare_split(memory: &impl Memory, shape: Shape) {
    for request in 0..BATCH {
        let head = request * shape.in_ring();
        let table = TABLES + 64 * request;
        let (first, from) = if shape.indirect { (table, 0) } else { (16 * head, head) };
        for nth in 0..shape.descriptors {
            let (addr, write) = shape.piece(request, nth);
            let next = if nth + 1 < shape.descriptors { NEXT } else { 0 };
            let place = first + 16 * nth;
            memory.put(place, addr);
            memory.put(place + 8, LEN);
            memory.put(place + 12, write | next);
            memory.put(place + 14, (from + nth + 1) as u16);
        }
        if shape.indirect {
            memory.put(16 * head, table);
            memory.put(16 * head + 8, 16 * shape.descriptors as u32);
            memory.put(16 * head + 12, INDIRECT);
        }
    }
    for entry in 0..SIZE {
        memory.put(DRIVER + 4 + 2 * entry, (entry % BATCH * shape.in_ring()) as u16);
    }
    // No interrupts.
    memory.put(DRIVER, 1u16);
}

/// The driver of a packed ring: `next` is the count of descriptors made available so far.
fn prepare_packed(map: &GuestMap, shape: Shape, next: &mut u64) {
    for request in 0..BATCH {
        let table = TABLES + 64 * request;
        for nth in 0..shape.descriptors {
            let (addr, write) = shape.piece(request, nth);
            let chained = if nth + 1 < shape.in_ring() { NEXT } else { 0 };
            if shape.indirect {
                map.put(table + 16 * nth, addr);
                map.put(table + 16 * nth + 8, LEN);
                map.put(table + 16 * nth + 14, write);
            } else {
                make_available(map, next, (addr, LEN, request as u16), write | chained);
            }
        }
        if shape.indirect {
            let len = 16 * shape.descriptors as u32;
            make_available(map, next, (table, len, request as u16), INDIRECT);
        }
    }
}

fn make_available(map: &GuestMap, next: &mut u64, (addr, len, id): (u64, u32, u16), flags: u16) {
    let place = 16 * (*next % SIZE);
    let bit = if (*next / SIZE).is_multiple_of(2) { 1 << 7 } else { 1 << 15 };
    map.put(place, addr);
    map.put(place + 8, len);
    map.put(place + 12, id);
    map.put(place + 14, flags | bit);
    *next += 1;
}

fn ours(shape: Shape, packed: bool) -> impl FnMut() -> Duration {
    let map = GuestMap::new(
        (0..shape.regions)
            .map(|nth| {
                let file = fs::File::from(memfd_create("guest", MFdFlags::empty()).unwrap());
                file.set_len(REGION).unwrap();
                Region::map(nth * REGION, REGION, 0, 0, file).unwrap()
            })
            .collect(),
    )
    .unwrap();
    let at = |gpa| map.at(gpa, 1).unwrap();
    let areas = Areas { descriptor: at(0), driver: at(DRIVER), device: at(DEVICE) };
    let (features, base) = if packed { (feature::RING_PACKED, 0x8000_8000) } else { (0, 0) };
    let features = features | feature::INDIRECT_DESC;
    let setup = Setup { size: SIZE as u16, areas, base, features, inflight: None };
    let mut ring = Ring::open(setup).unwrap();
    if packed {
        map.put(DRIVER + 2, 1u16);
    } else {
        prepare_split(&map, shape);
    }
    let mut chain = Chain::default();
    let mut next = 0u64;
    move || {
        if packed {
            prepare_packed(&map, shape, &mut next);
        } else {
            next += BATCH;
            // SAFETY: the available index, in the map.
            let index = unsafe { AtomicU16::from_ptr(map.at(DRIVER + 2, 2).unwrap().cast()) };
            index.store(next as u16, Ordering::Release);
        }
        let start = Instant::now();
        let mut count = 0;
        while ring.pop(&map, &mut chain).unwrap() == Popped::Chain {
            black_box((&chain.readable, &chain.writable));
            ring.push(chain.id, LEN);
            count += 1;
        }
        black_box(ring.publish());
        let took = start.elapsed();
        assert_eq!(count, BATCH);
        took
    }
}

fn theirs(shape: Shape) -> impl FnMut() -> Duration {
    let ranges: Vec<_> =
        (0..shape.regions).map(|nth| (GuestAddress(nth * REGION), REGION as usize)).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let mut queue = Queue::new(SIZE as u16).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(DRIVER as u32), Some(0));
    queue.set_used_ring_address(Some(DEVICE as u32), Some(0));
    queue.set_ready(true);
    prepare_split(&memory, shape);
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut next = 0u64;
    move || {
        next += BATCH;
        memory.put(DRIVER + 2, next as u16);
        let start = Instant::now();
        let mut count = 0;
        while let Some(chain) = queue.pop_descriptor_chain(&memory) {
            let head = chain.head_index();
            readable.clear();
            writable.clear();
            for entry in chain {
                let len = entry.len() as usize;
                let slice = memory.get_slice(entry.addr(), len).unwrap();
                let base = slice.ptr_guard_mut().as_ptr();
                let into = if entry.is_write_only() { &mut writable } else { &mut readable };
                into.push(Segment { base, len });
            }
            black_box((&readable, &writable));
            queue.add_used(&memory, head, LEN).unwrap();
            count += 1;
        }
        black_box(queue.needs_notification(&memory).unwrap());
        let took = start.elapsed();
        assert_eq!(count, BATCH);
        took
    }
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH));
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(800));
    for regions in [1, 8] {
        let shape = |name, descriptors, indirect| Shape { name, descriptors, indirect, regions };
        let shapes = [shape("1", 1, false), shape("4", 4, false), shape("4 indirect", 4, true)];
        for shape in shapes {
            let name =
                |kind: &str| format!("{kind}, {} descriptors, {regions} regions", shape.name);
            let mut split = ours(shape, false);
            group.bench_function(name("split"), |b| {
                b.iter_custom(|n| (0..n).map(|_| split()).sum())
            });
            let mut packed = ours(shape, true);
            group.bench_function(name("packed"), |b| {
                b.iter_custom(|n| (0..n).map(|_| packed()).sum());
            });
            let mut queue = theirs(shape);
            group.bench_function(name("virtio-queue"), |b| {
                b.iter_custom(|n| (0..n).map(|_| queue()).sum());
            });
        }
    }
    group.finish();
}

const BATCH: u64 = 32;
const SIZE: u64 = 256;
const LEN: u32 = 512;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where everything is in the first region; the descriptors are at 0.
const DRIVER: u64 = 0x1_0000;
const DEVICE: u64 = 0x2_0000;
const TABLES: u64 = 0x3_0000;
const DATA: u64 = 0x4_0000;
const REGION: u64 = 0x20_0000;

criterion_group!(benches, requests);
criterion_main!(benches);
