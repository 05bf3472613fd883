//! What the rings cost, without a back end: chains are added, and the time to take, walk,
//! translate and give back each is measured, for our ring and for the `virtio-queue` crate's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vhost_frontend::{Buffer, Error, Memory, Queue, Table, feature};
use virtio_queue::{Queue as Upstream, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use vmm_glue::{
    memory::{GuestMap, Region},
    ring::{Areas, Chain, Popped, Ring, Setup},
};

/// How requests look.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Data descriptors.
    parts: usize,
    indirect: bool,
    regions: usize,
    packed: bool,
}

const PLAIN: Shape =
    Shape { name: "1 data descriptor", parts: 1, indirect: false, regions: 1, packed: false };

const SHAPES: &[Shape] = &[
    PLAIN,
    Shape { name: "4 data descriptors", parts: 4, ..PLAIN },
    Shape { name: "1 data descriptor, indirect", indirect: true, ..PLAIN },
    Shape { name: "4 data descriptors, indirect", parts: 4, indirect: true, ..PLAIN },
    Shape { name: "1 data descriptor, 8 regions", regions: 8, ..PLAIN },
    Shape {
        name: "4 data descriptors, indirect, 8 regions",
        parts: 4,
        indirect: true,
        regions: 8,
        ..PLAIN
    },
    Shape { name: "1 data descriptor, packed ring", packed: true, ..PLAIN },
    Shape { name: "4 data descriptors, packed ring", parts: 4, packed: true, ..PLAIN },
    Shape {
        name: "1 data descriptor, indirect, packed ring",
        indirect: true,
        packed: true,
        ..PLAIN
    },
];

const SIZE: u16 = 256;
const BATCH: usize = 32;
const FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT | feature::EVENT_IDX;

/// Prints a table of all shapes.
pub fn print() {
    println!("| a ring alone, ns a chain | ours | virtio-queue | ratio |\n|---|---|---|---|");
    for &shape in SHAPES {
        let median = |upstream| {
            let mut runs: Vec<f64> =
                (0..5).map(|_| measure(shape, upstream).expect("a ring")).collect();
            runs.sort_by(f64::total_cmp);
            runs[2]
        };
        let ours = median(false);
        if shape.packed {
            // virtio-queue has none.
            println!("| {} | {ours:.1} | - | - |", shape.name);
        } else {
            let theirs = median(true);
            println!("| {} | {ours:.1} | {theirs:.1} | {:.1} |", shape.name, theirs / ours);
        }
    }
}

/// The device's side.
trait Device {
    /// Takes, walks and gives back everything available; how many chains, and the bytes in them.
    fn turn(&mut self) -> (usize, u64);
}

fn measure(shape: Shape, upstream: bool) -> Result<f64, Error> {
    let memory = Memory::new(shape.regions, 8 << 20)?;
    let features = FEATURES | if shape.packed { feature::RING_PACKED } else { 0 };
    let mut queue = Queue::new(&memory, 2, SIZE, features)?;
    let requests =
        (0..BATCH).map(|number| request(&memory, number, shape)).collect::<Result<Vec<_>, _>>()?;
    let mut device: Box<dyn Device> = if upstream {
        Box::new(theirs(&memory, &queue))
    } else {
        Box::new(ours(&memory, &queue, features)?)
    };
    let bytes: u64 = requests.iter().flat_map(|(chain, _)| chain).map(|it| u64::from(it.len)).sum();
    let rounds = 20_000;
    let mut spent = Duration::ZERO;
    for round in 0..rounds + rounds / 10 {
        for (chain, table) in &requests {
            queue.add(chain, table.as_ref())?;
        }
        queue.publish();
        let since = Instant::now();
        let turned = device.turn();
        if round >= rounds / 10 {
            spent += since.elapsed();
        }
        assert_eq!(turned, (BATCH, bytes), "the device saw other chains");
        while queue.take()?.is_some() {}
    }
    Ok(spent.as_nanos() as f64 / (rounds * BATCH) as f64)
}

/// A request of 51 bytes, a response of 108, 4 KiB of data in parts.
fn request(
    memory: &Arc<Memory>,
    number: usize,
    shape: Shape,
) -> Result<(Vec<Buffer>, Option<Table>), Error> {
    let Shape { parts, indirect, regions, .. } = shape;
    let mut region = number;
    let mut window = |bytes: usize| {
        region += 1;
        memory.window_in(region % regions, bytes as u64, 64)
    };
    let mut chain = vec![Buffer::out(&window(51)?), Buffer::into(&window(108)?)];
    for _ in 0..parts {
        chain.push(Buffer::into(&window(4096 / parts)?));
    }
    let table = indirect.then(|| Table::new(memory, chain.len())).transpose()?;
    Ok((chain, table))
}

struct Ours {
    ring: Ring,
    map: Arc<GuestMap>,
    chain: Chain,
}

fn ours(memory: &Arc<Memory>, queue: &Queue, features: u64) -> Result<Ours, Error> {
    let mut regions = Vec::new();
    for (index, it) in memory.table()?.iter().enumerate() {
        let file = memory.file(index)?.try_clone()?;
        let (gpa, size) = (it.guest_phys_addr, it.memory_size);
        let region = Region::map(gpa, size, it.userspace_addr, it.mmap_offset, file);
        regions.push(region.expect("a mapping"));
    }
    let map = Arc::new(GuestMap::new(regions).expect("a map"));
    let [descriptor, driver, device] = queue
        .ring
        .areas()
        .map(|window| map.at(window.address(), window.len()).expect("a ring in memory"));
    let areas = Areas { descriptor, driver, device };
    let base = match &queue.ring {
        vhost_frontend::Ring::Split(_) => 0,
        vhost_frontend::Ring::Packed(ring) => ring.base(),
    };
    let setup = Setup { size: SIZE, areas, base, features, inflight: None };
    Ok(Ours { ring: Ring::open(setup).expect("a ring"), map, chain: Chain::default() })
}

impl Device for Ours {
    fn turn(&mut self) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        while self.ring.pop(&self.map, &mut self.chain).expect("a chain") == Popped::Chain {
            let segments = self.chain.readable.iter().chain(&self.chain.writable);
            bytes += segments.map(|segment| segment.len as u64).sum::<u64>();
            self.ring.push(self.chain.id, self.chain.writable_len);
            count += 1;
        }
        self.ring.publish();
        (count, bytes)
    }
}

struct Theirs {
    queue: Upstream,
    map: GuestMemoryMmap<()>,
    segments: Vec<(*mut u8, usize)>,
}

fn theirs(memory: &Arc<Memory>, queue: &Queue) -> Theirs {
    let mut device = Upstream::new(SIZE).expect("a queue");
    let [descriptors, available, used] =
        queue.ring.areas().map(|window| window.address()).map(|it| (it as u32, (it >> 32) as u32));
    device.set_size(SIZE);
    device.set_desc_table_address(Some(descriptors.0), Some(descriptors.1));
    device.set_avail_ring_address(Some(available.0), Some(available.1));
    device.set_used_ring_address(Some(used.0), Some(used.1));
    device.set_event_idx(true);
    device.set_ready(true);
    Theirs { queue: device, map: memory.map().clone(), segments: Vec::new() }
}

impl Device for Theirs {
    fn turn(&mut self) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        while let Some(chain) = self.queue.pop_descriptor_chain(&self.map) {
            self.segments.clear();
            let (head, mut written) = (chain.head_index(), 0);
            for descriptor in chain {
                let len = descriptor.len() as usize;
                let slice = self.map.get_slice(descriptor.addr(), len).expect("memory");
                self.segments.push((slice.ptr_guard_mut().as_ptr(), len));
                written += if descriptor.is_write_only() { descriptor.len() } else { 0 };
            }
            bytes += self.segments.iter().map(|segment| segment.1 as u64).sum::<u64>();
            self.queue.add_used(&self.map, head, written).expect("the used ring");
            count += 1;
        }
        self.queue.needs_notification(&self.map).expect("the used event");
        (count, bytes)
    }
}
