//! Tasks that a medium, a worker or a gate keeps too long.

use super::*;
use crate::{
    backend::{File, FileOptions},
    reactor::sg::Segment,
};
use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Sender, channel},
    },
    time::Duration,
};

const TIMEOUT: u32 = 10;
const START: u32 = 1000;
const LATE: u32 = START + TIMEOUT + 1;

fn with_deadline(mut rig: Rig) -> Rig {
    rig.engine.set_io_timeout(TIMEOUT);
    rig.engine.tick(START);
    rig
}

/// A few turns; the completion, if it came.
fn turns(rig: &mut Rig, cookie: u64) -> Option<Response> {
    for _ in 0..20 {
        rig.engine.model.postboxes.take(0, &mut rig.mail);
        rig.engine.turn(&mut rig.mail);
        let mut fresh = Vec::new();
        rig.engine.completions(&mut fresh);
        rig.done.append(&mut fresh);
        std::thread::sleep(Duration::from_millis(1));
    }
    let at = rig.done.iter().position(|done| done.owner.cookie == cookie)?;
    Some(rig.done.remove(at).response)
}

fn timed_out(response: &Response) -> bool {
    response.status == Status::CHECK_CONDITION
        && response.sense == Sense::TIMED_OUT.encode(false)
        && response.sense.as_bytes()[2] == 0x0B
}

fn timeouts(rig: &Rig) -> u64 {
    rig.lu.counters[0].timeouts.load(Ordering::Relaxed)
}

fn backend_errors(rig: &Rig) -> u64 {
    rig.lu.counters[0].backend_errors.load(Ordering::Relaxed)
}

/// An image of zeroes, removed at once.
fn image() -> Backend {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("vscsi-deadline-{}-{n}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(name);
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let options =
        FileOptions { path: path.clone(), block_size: 512, read_only: false, direct: false };
    let file = File::open(&options).unwrap();
    std::fs::remove_file(path).unwrap();
    Backend::File(file)
}

/// Keeps the kernel's queue full of reads that wait, so that nothing else gets in. Dropping the
/// second end of the pipe ends them.
fn fill_the_ring(rig: &mut Rig, memory: &mut [[u8; 1]]) -> Option<(OwnedFd, OwnedFd)> {
    if !rig.engine.lanes.ring.is_enabled() {
        eprintln!("skipped: io_uring is not allowed here");
        return None;
    }
    let (reader, writer) = nix::unistd::pipe().unwrap();
    for byte in memory {
        // Of no task: what becomes of them concerns nobody.
        rig.engine.lanes.ring.read(u64::MAX, reader.as_raw_fd(), 0, &[Segment::of(byte)]);
    }
    rig.engine.lanes.ring.submit();
    Some((reader, writer))
}

/// Gives every worker something to do until the sender is dropped.
fn keep_workers_busy(rig: &Rig) -> Sender<()> {
    let (sender, receiver) = channel::<()>();
    let receiver = Arc::new(std::sync::Mutex::new(receiver));
    for _ in 0..2 {
        let receiver = Arc::clone(&receiver);
        let wait = move || {
            let _ = receiver.lock().unwrap().recv();
        };
        rig.engine.workers.run(Box::new(wait));
    }
    sender
}

#[test]
fn a_task_that_waits_at_the_gate_ends_after_its_time_and_not_before() {
    let mut rig = with_deadline(Rig::new());
    let mut nexus = rig.nexus("iqn.a");
    let read = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    let how = How { attribute: TaskAttribute::Ordered, ..How::default() };
    let ordered = rig.submit(&mut nexus, &TUR, &how);
    rig.engine.tick(START + TIMEOUT);
    assert!(turns(&mut rig, ordered).is_none());
    rig.engine.tick(LATE);
    assert!(timed_out(&turns(&mut rig, ordered).unwrap()));
    assert_eq!((timeouts(&rig), rig.engine.tasks_in_progress()), (1, 0));
    // The gate is as if it had never been there.
    rig.wait(read);
    assert_eq!(rig.call(&mut nexus, &TUR, &how).0.status, Status::GOOD);
}

#[test]
fn a_task_let_through_at_the_moment_of_its_deadline_ends_once() {
    let mut rig = with_deadline(Rig::new());
    let mut nexus = rig.nexus("iqn.a");
    let read = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    let how = How { attribute: TaskAttribute::Ordered, ..How::default() };
    let ordered = rig.submit(&mut nexus, &TUR, &how);
    // Ending the lent read lets the task through; the mail that says so is on its way.
    rig.done.retain(|done| done.owner.cookie != read);
    rig.engine.tick(LATE);
    assert!(timed_out(&turns(&mut rig, ordered).unwrap()));
    assert!(turns(&mut rig, ordered).is_none() && !rig.engine.is_busy());
    assert_eq!((timeouts(&rig), rig.lu.overdue()), (1, 0));
    assert_eq!(rig.call(&mut nexus, &TUR, &how).0.status, Status::GOOD);
}

#[test]
fn data_that_the_transport_has_not_brought_is_no_business_of_the_deadline() {
    let mut rig = with_deadline(Rig::new());
    let mut nexus = rig.nexus("iqn.a");
    let owner = rig.owner();
    let (cdb, how) = (write_10(0, 1), out(&[5; 512]));
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(mut data) =
        rig.engine.submit(&mut nexus, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    rig.engine.tick(LATE);
    assert!(turns(&mut rig, owner.cookie).is_none());
    data.buffer.bytes_mut()[..512].fill(5);
    rig.engine.data_arrived(data.token, data.buffer);
    assert_eq!(rig.wait(owner.cookie).1.status, Status::GOOD);
    assert_eq!(timeouts(&rig), 0);
}

#[test]
fn a_worker_that_has_not_begun_does_not_begin_and_nothing_is_answered_before() {
    let mut rig = with_deadline(Rig::new());
    let mut nexus = rig.nexus("iqn.a");
    let busy = keep_workers_busy(&rig);
    let write_same = [0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0];
    let filled = rig.submit(&mut nexus, &write_same, &out(&[9; BLOCK]));
    rig.engine.tick(LATE);
    assert!(turns(&mut rig, filled).is_none());
    assert_eq!((timeouts(&rig), rig.lu.overdue()), (1, 1));
    // Counted once, however long it takes.
    rig.engine.tick(LATE + TIMEOUT + 1);
    drop(busy);
    assert!(timed_out(&rig.wait(filled).1));
    assert_eq!((timeouts(&rig), backend_errors(&rig), rig.lu.overdue()), (1, 0, 0));
    assert_eq!(rig.call(&mut nexus, &read_10(4, 1), &room(512)).1, [0; 512]);
}

#[test]
fn a_command_that_saves_something_has_no_deadline() {
    let mut rig = with_deadline(Rig::new());
    let mut nexus = rig.nexus("iqn.a");
    let busy = keep_workers_busy(&rig);
    let list = [&[0; 8][..], &7u64.to_be_bytes(), &[0; 8]].concat();
    let register = [0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let registered = rig.submit(&mut nexus, &register, &out(&list));
    rig.engine.tick(LATE);
    drop(busy);
    assert_eq!(rig.wait(registered).1.status, Status::GOOD);
    assert_eq!(timeouts(&rig), 0);
}

#[test]
fn what_the_kernel_has_not_started_is_taken_back_without_harm_to_later_flushes() {
    // The kernel writes to it until the engine is gone.
    let mut memory = [[0; 1]; 300];
    let mut rig = with_deadline(Rig::over(image()));
    let mut nexus = rig.nexus("iqn.a");
    let Some((_reader, writer)) = fill_the_ring(&mut rig, &mut memory) else { return };
    let mut forced = write_10(0, 1);
    forced[1] = 0x08;
    let write = rig.submit(&mut nexus, &forced, &out(&[6; 512]));
    let read = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.tick(START + TIMEOUT);
    assert!(turns(&mut rig, write).is_none());
    rig.engine.tick(LATE);
    assert!(timed_out(&turns(&mut rig, write).unwrap()));
    assert!(timed_out(&turns(&mut rig, read).unwrap()));
    assert_eq!((timeouts(&rig), backend_errors(&rig)), (2, 0));
    drop(writer);
    let synchronize = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(rig.call(&mut nexus, &synchronize, &How::default()).0.status, Status::GOOD);
    assert_eq!(rig.call(&mut nexus, &forced, &out(&[6; 512])).0.status, Status::GOOD);
    assert_eq!(rig.call(&mut nexus, &read_10(0, 1), &room(512)).1, [6; 512]);
}

#[test]
fn what_is_done_before_it_can_be_taken_back_ends_with_its_own_result() {
    let mut rig = with_deadline(Rig::over(image()));
    let mut nexus = rig.nexus("iqn.a");
    let read = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.lanes.ring.submit();
    std::thread::sleep(Duration::from_millis(50));
    rig.engine.tick(LATE);
    let (_, response, data) = rig.wait(read);
    assert_eq!((response.status, data.len()), (Status::GOOD, 512));
    assert_eq!((timeouts(&rig), rig.lu.overdue()), (1, 0));
}

#[test]
fn without_a_deadline_nothing_ends() {
    let mut rig = Rig::new();
    rig.engine.tick(START);
    let mut nexus = rig.nexus("iqn.a");
    let busy = keep_workers_busy(&rig);
    let write_same = [0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0];
    let filled = rig.submit(&mut nexus, &write_same, &out(&[9; BLOCK]));
    rig.engine.tick(u32::MAX);
    drop(busy);
    assert_eq!(rig.wait(filled).1.status, Status::GOOD);
    assert_eq!(timeouts(&rig), 0);
}
