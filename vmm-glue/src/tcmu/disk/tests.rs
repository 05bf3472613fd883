use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use vscsi_target::{
    backend::{Backend, Mem},
    engine::Engine,
    model::{
        Identity, LogicalUnit, LuConfig, Model,
        reservation::{Capabilities, NexusId, Reservations, TransportId},
    },
    reactor::{Endpoint, Inbox, Postboxes, Reactor, pool::Pool, workers::Workers},
    spc::mode::Modes,
};

use super::*;
use crate::tcmu::{
    layout::mailbox,
    rig::{DATA, Kernel},
};

/// Only devices run on this reactor.
#[derive(Debug)]
struct Only(Disk);

impl Endpoint for Only {
    type Seed = Seed;
    type Note = Note;

    fn open(seed: Seed, cx: &mut Cx<'_>) -> Option<Self> {
        Disk::open(seed, cx).map(Self)
    }

    fn note(&mut self, note: Note, cx: &mut Cx<'_>) {
        self.0.note(note, cx);
    }

    fn ready(&mut self, source: u32, ready: Ready, cx: &mut Cx<'_>) {
        self.0.ready(source, ready, cx);
    }

    fn completed(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        self.0.completed(completion, cx);
    }

    fn expired(&mut self, cx: &mut Cx<'_>) {
        self.0.expired(cx);
    }

    fn flush(&mut self, cx: &mut Cx<'_>) {
        self.0.flush(cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> bool {
        self.0.poll(cx)
    }

    fn rest(&mut self, cx: &mut Cx<'_>) -> bool {
        self.0.rest(cx)
    }

    fn stop(&mut self, cx: &mut Cx<'_>) {
        self.0.stop(cx);
    }
}

/// A device of a RAM disk of 1 MiB, on a reactor of its own, and the kernel's side of it.
struct Rig {
    kernel: Kernel,
    /// The kernel's end of what stands in for the device's file.
    file: UnixStream,
    place: Place,
    inbox: Arc<Inbox<Only>>,
    postboxes: Arc<Postboxes>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    /// A handler takes the device up, with what is in its ring.
    fn start(kernel: Kernel) -> Self {
        let postboxes = Postboxes::new(1).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.test:t").unwrap();
        let port = target.add_port(1, 6, "naa.3000000000000001".to_owned());
        let config = LuConfig {
            identity: Identity::derive("seed", Some("SN0001")),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let backend = Backend::Mem(Mem::new(1 << 20, 512).unwrap());
        let modes = Modes::for_backend(backend.properties(), None);
        let reservations = Reservations::new(Capabilities::default());
        let lu = LogicalUnit::new(config, backend, reservations, modes, Arc::clone(&postboxes));
        target.map(0, lu, None).unwrap();
        let identity = NexusId::new(TransportId::sas([3, 0, 0, 0, 0, 0, 0, 2]), port);
        let nexus = Nexus::establish(target, port, identity, "user_0/d".to_owned());
        for (_, itl) in nexus.table().iter() {
            itl.take_attention();
        }
        let inbox = Inbox::new(0, Arc::clone(&postboxes));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (inbox, stop) = (Arc::clone(&inbox), Arc::clone(&stop));
            move || {
                let ring = vscsi_target::reactor::ring::Ring::new(8);
                let workers = Arc::new(Workers::new(1));
                let engine = Engine::new(model, 0, Pool::new(1 << 20), ring, workers);
                Reactor::new(engine, inbox).unwrap().run(&stop);
            }
        });
        let (file, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        file.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (opened, wait) = mpsc::sync_channel(1);
        let ring = kernel.open().unwrap();
        let lun = Lun::from_number(0).unwrap();
        let file_of_handler = File::from(OwnedFd::from(theirs));
        let (name, file_of_device, patience) = ("d".into(), file_of_handler, 30_000);
        inbox.open(Seed { name, file: file_of_device, ring, nexus, lun, patience, opened });
        let place = wait.recv_timeout(Duration::from_secs(10)).unwrap();
        let mut rig = Self { kernel, file, place, inbox, postboxes, stop, thread: Some(thread) };
        // It tells at once, in case the one before did not.
        rig.told();
        rig
    }

    /// The handler told that there are responses.
    fn told(&mut self) {
        self.file.read_exact(&mut [0; 4]).unwrap();
    }

    /// Tells the handler of commands, and waits for as many responses as are missing.
    fn exchange(&mut self, count: usize) -> Vec<(u16, u8, Option<u32>, [u8; 4])> {
        self.file.write_all(&[1, 0, 0, 0]).unwrap();
        let mut responses = Vec::new();
        while responses.len() < count {
            self.told();
            responses.extend(self.kernel.responses());
        }
        responses
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.postboxes.wake(0);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Milliseconds of the reactors' clock.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    Duration::from(now).as_millis() as u64
}

const WRITE: [u8; 10] = [0x2A, 0, 0, 0, 0, 9, 0, 0, 2, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 9, 0, 0, 2, 0];
const COMPARE_AND_WRITE: [u8; 16] = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0];

#[test]
fn what_is_written_is_read_from_where_the_kernel_put_it() {
    let mut rig = Rig::start(Kernel::new(4096));
    rig.kernel.put(DATA, &[7; 700]);
    rig.kernel.put(DATA + 4096, &[9; 324]);
    rig.kernel.command(1, &WRITE, &[(DATA, 700), (DATA + 4096, 324)]);
    assert_eq!(rig.exchange(1), [(1, 0, None, [0; 4])]);
    rig.kernel.command(2, &READ, &[(DATA + 8192, 1024)]);
    assert_eq!(rig.exchange(1), [(2, 0, None, [0; 4])]);
    let read = rig.kernel.bytes::<1024>(DATA + 8192);
    assert!(read[..700] == [7; 700] && read[700..] == [9; 324]);
}

#[test]
fn a_batch_is_answered_with_few_words() {
    let mut rig = Rig::start(Kernel::new(4096));
    for id in 1..=20 {
        rig.kernel.command(id, &READ, &[(DATA, 1024)]);
    }
    let ids: Vec<u16> = rig.exchange(20).iter().map(|response| response.0).collect();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_short_read_says_its_length_and_an_empty_one_is_zeroes() {
    let mut rig = Rig::start(Kernel::new(4096));
    rig.kernel.put(DATA, &[0xA5; 8192]);
    // INQUIRY with an allocation length of 16, and of 0, and a READ of no blocks.
    rig.kernel.command(1, &[0x12, 0, 0, 0, 16, 0], &[(DATA, 512)]);
    rig.kernel.command(2, &[0x12, 0, 0, 0, 0, 0], &[(DATA + 4096, 512)]);
    rig.kernel.command(3, &[0x28, 0, 0, 0, 0, 9, 0, 0, 0, 0], &[(DATA + 5120, 512)]);
    let responses = rig.exchange(3);
    let told: Vec<_> = responses.iter().map(|r| (r.0, r.1, r.2)).collect();
    assert_eq!(told, [(1, 0, Some(16)), (2, 0, None), (3, 0, None)]);
    assert_eq!(rig.kernel.bytes::<2>(DATA + 15 + 4096), [0; 2]);
    assert_eq!(rig.kernel.bytes::<512>(DATA + 5120), [0; 512]);
}

#[test]
fn a_failure_has_its_sense_data() {
    let mut rig = Rig::start(Kernel::new(4096));
    rig.kernel.command(1, &[0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0], &[(DATA, 512)]);
    let [(1, 2, None, sense)] = rig.exchange(1)[..] else { panic!("another answer") };
    assert_eq!((sense[0] & 0x7F, sense[2]), (0x70, 5));
}

#[test]
fn what_another_process_took_is_done_again_unless_it_may_not_be() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 1024)]);
    kernel.command(2, &COMPARE_AND_WRITE, &[(DATA, 1024)]);
    kernel.put(mailbox::ALIVE.into(), &now().to_ne_bytes());
    {
        let mut ring = kernel.open().unwrap();
        for _ in 0..2 {
            ring.take(&mut Request::default(), now()).unwrap();
        }
    }
    kernel.command(3, &COMPARE_AND_WRITE, &[(DATA, 1024)]);
    let mut rig = Rig::start(kernel);
    let mut answers: Vec<_> = rig.exchange(3).iter().map(|r| (r.0, r.1)).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(1, 0), (2, Status::TASK_ABORTED.0), (3, 0)]);
}

#[test]
fn what_the_kernel_may_have_given_up_is_not_done() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &WRITE, &[(DATA, 1024)]);
    let mut ring = kernel.open().unwrap();
    ring.take(&mut Request::default(), now().saturating_sub(29_999)).unwrap();
    drop(ring);
    // It was seen a while ago, and its process is not heard of since; this one came later still.
    kernel.put(128 + 32, &now().saturating_sub(30_001).to_ne_bytes());
    kernel.put(mailbox::ALIVE.into(), &now().saturating_sub(30_000).to_ne_bytes());
    kernel.command(2, &WRITE, &[(DATA, 1024)]);
    let mut rig = Rig::start(kernel);
    let mut answers: Vec<_> = rig.exchange(2).iter().map(|r| (r.0, r.1)).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(1, Status::BUSY.0), (2, Status::BUSY.0)]);
    rig.kernel.command(3, &WRITE, &[(DATA, 1024)]);
    assert_eq!(rig.exchange(1)[0].1, 0);
}

#[test]
fn task_management_reaches_the_core_and_the_unit_says_so() {
    let mut rig = Rig::start(Kernel::new(4096));
    let mut reset = vec![0; 40];
    reset[0] = 40 | 2;
    reset[8] = 5;
    rig.kernel.put(Kernel::place(0), &reset);
    rig.kernel.move_head(40);
    rig.kernel.command(1, &[0, 0, 0, 0, 0, 0], &[]);
    let [(1, 2, None, sense)] = rig.exchange(1)[..] else { panic!("another answer") };
    assert_eq!(sense[2], 6, "UNIT ATTENTION: it was reset");
    assert_eq!(rig.kernel.tail(), rig.kernel.head);
}

#[test]
fn a_ring_that_makes_no_sense_stops_only_its_device() {
    let mut rig = Rig::start(Kernel::new(4096));
    rig.kernel.command(1, &READ, &[(0, 512)]);
    rig.file.write_all(&[1, 0, 0, 0]).unwrap();
    rig.file.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    rig.file.read_exact(&mut [0; 4]).unwrap_err();
    assert_eq!(rig.kernel.tail(), 0);
    let (done, wait) = mpsc::sync_channel(1);
    rig.inbox.note(rig.place.endpoint, Note::Close(done));
    assert_eq!(
        wait.recv_timeout(Duration::from_secs(10)),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}
