//! `Command` to `Response`: what the core costs a command, without any transport.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used)] // A benchmark may just stop.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use libsrp::{Command, Lun, Tag, TaskAttribute};
use std::{hint::black_box, sync::Arc};
use vscsi_target::{
    backend::{Backend, Mem, Null},
    engine::{Completion, Engine, Memory, Owner, Submitted},
    model::{
        Identity, LogicalUnit, LuConfig, Model, Nexus, NexusView,
        reservation::{NexusId, Reservations, TransportId},
    },
    reactor::{EndpointId, Postboxes, pool::Pool, ring::Ring, sg::Segment, workers::Workers},
    spc::mode::Modes,
};

/// Commands a batch, as a transport finds them in its queue.
const BATCH: u64 = 32;

fn rig(backend: Backend) -> (Engine, NexusView) {
    let postboxes = Postboxes::new(2).unwrap();
    let model = Model::new(Arc::clone(&postboxes));
    let target = model.add_target("iqn.2026-11.example:bench").unwrap();
    let port = target.add_port(1, 5, "iqn.2026-11.example:bench,t,0x0001".to_owned());
    let config = LuConfig {
        identity: Identity::derive("bench", None),
        removable: false,
        read_only: false,
        state_dir: None,
    };
    let modes = Modes::for_backend(backend.properties(), None);
    let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, postboxes);
    target.map(0, lu, None).unwrap();
    let identity = NexusId::new(TransportId::iscsi("iqn.a", [0; 6]).unwrap(), port);
    let nexus = Nexus::establish(target, port, identity, "iqn.a".to_owned());
    let mut view = NexusView::new(nexus);
    let itl = Arc::clone(view.find(Lun::default()).unwrap());
    while itl.take_attention().is_some() {}
    let workers = Arc::new(Workers::new(2));
    let engine = Engine::new(model, 0, Pool::new(64 << 20), Ring::new(64), workers);
    (engine, view)
}

fn batch(
    engine: &mut Engine,
    nexus: &mut NexusView,
    done: &mut Vec<Completion>,
    command: &Command<'_>,
    memory: Memory<'_>,
) {
    for cookie in 0..BATCH {
        let owner = Owner { endpoint: EndpointId { index: 0, generation: 0 }, cookie };
        match engine.submit(nexus, black_box(command), memory, owner) {
            Submitted::Accepted => {}
            Submitted::NeedsData(data) => engine.data_arrived(data.token, data.buffer),
        }
    }
    engine.completions(done);
    assert_eq!(done.len() as u64, BATCH);
    done.clear();
}

fn commands(c: &mut Criterion) {
    let read: [u8; 16] = [0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let write: [u8; 16] = [0x2A, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let ready: [u8; 16] = [0; 16];
    let command = |cdb, data_out, data_in| Command {
        tag: Tag::from_u64(7),
        lun: Lun::default(),
        attribute: TaskAttribute::Simple,
        priority: 0,
        cdb,
        data_out,
        data_in,
    };
    let mut memory = vec![0u8; 4096];
    let segment = [Segment::of(&mut memory)];
    let own = Memory::Own { out: &segment, into: &segment };
    let read = command(&read, 0, 4096);
    let write = command(&write, 4096, 0);
    let ready = command(&ready, 0, 0);
    let cases = [
        ("null, READ 4 KiB, lent", false, read, Memory::Pool),
        ("null, READ 4 KiB, placed", false, read, own),
        ("null, WRITE 4 KiB, pool", false, write, Memory::Pool),
        ("null, WRITE 4 KiB, own memory", false, write, own),
        ("null, TEST UNIT READY", false, ready, Memory::Pool),
        ("RAM, READ 4 KiB, lent", true, read, Memory::Pool),
        ("RAM, READ 4 KiB, placed", true, read, own),
        ("RAM, WRITE 4 KiB, own memory", true, write, own),
    ];
    let mut group = c.benchmark_group("command to response");
    group.throughput(Throughput::Elements(BATCH));
    for (name, is_ram, command, memory) in cases {
        let backend = if is_ram {
            Backend::Mem(Mem::new(64 << 20, 512).unwrap())
        } else {
            Backend::Null(Null::new(1 << 30, 512))
        };
        let (mut engine, mut nexus) = rig(backend);
        let mut done = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| batch(&mut engine, &mut nexus, &mut done, &command, memory));
        });
    }
    group.finish();
}

criterion_group!(benches, commands);
criterion_main!(benches);
