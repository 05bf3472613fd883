//! Guests and VMMs that break every rule. Whatever they do, the process lives, the controller next
//! door on the same reactor keeps answering, and the one that was attacked works again for whoever
//! behaves.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

#[path = "../common/mod.rs"]
mod common;
mod memory;
mod messages;
mod rings;

use std::{
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use common::Host;
use vhost_frontend::{Buffer, Device, Queue, Ring, Setup, SplitRing, Window, scsi};
use vmm_glue::{
    controller::{Controller, Export},
    vhost::{Server, listen},
};
use vscsi_target::model::reservation::{NexusId, TransportId};

const LUN: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];
const LONG: Duration = Duration::from_secs(10);

/// A controller under attack, and its neighbour, who must not notice.
struct Siege {
    neighbour: Neighbour,
    host: Host,
    /// Descriptors of the process are counted, and two cores are few.
    _alone: MutexGuard<'static, ()>,
}

impl Siege {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::start(1, 1);
        Self { neighbour: Neighbour::new(&host), host, _alone: alone }
    }

    /// A front end that behaves until it is told otherwise.
    fn device(&self) -> Device {
        self.device_with(&setup())
    }

    fn device_with(&self, setup: &Setup) -> Device {
        let mut device = Device::connect(self.host.path(), setup).unwrap();
        device.settle(LUN).unwrap();
        device
    }

    /// Both controllers still do what they should.
    fn check(&self) {
        works(&mut self.device());
        self.neighbour.goes_on();
    }
}

/// Small rings, which end soon.
fn setup() -> Setup {
    Setup { size: 16, regions: 2, region: 4 << 20, data: 64 << 10, ..Setup::default() }
}

/// A whole round trip of data.
fn works(device: &mut Device) {
    device.settle(LUN).unwrap();
    let data: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
    assert!(device.request(LUN, &scsi::write(64, 8), &data, 0).unwrap().is_good());
    let read = device.request(LUN, &scsi::read(64, 8), &[], 4096).unwrap();
    assert!(read.is_good() && read.data == data);
}

/// A second controller of the same target and reactor, with a front end that never rests.
struct Neighbour {
    server: Option<Server>,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    fn new(host: &Host) -> Self {
        let port = host.target.add_port(1, 5, "iqn.2026-11.test:t,t,0x0002".to_owned());
        let initiator = TransportId::iscsi("iqn.2026-11.test:neighbour", [0; 6]).unwrap();
        let target = Arc::clone(&host.target);
        let export = Export { id: 0, target, port, initiator: NexusId::new(initiator, port) };
        let router = Arc::clone(host.controller.router());
        let controller = Controller::new("neighbour".to_owned(), 1, vec![export], router);
        let path = host.path().with_extension("neighbour");
        let listener = UnixListener::bind(&path).unwrap();
        let server = listen(listener, controller).unwrap();
        let mut device = Device::connect(&path, &setup()).unwrap();
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            move || {
                let mut lba = 0;
                while !stop.load(SeqCst) {
                    // A logical unit reset from next door is told here too, and nothing else.
                    device.settle(LUN).unwrap();
                    lba = 8000 + (lba + 8) % 800;
                    let data = [lba as u8; 4096];
                    let written = device.request(LUN, &scsi::write(lba, 8), &data, 0).unwrap();
                    let read = device.request(LUN, &scsi::read(lba, 8), &[], 4096).unwrap();
                    let good = written.is_good() && read.is_good();
                    assert!(good && read.data == data || !good && is_reset(&written, &read));
                    answers.fetch_add(1, SeqCst);
                }
            }
        });
        Self { server: Some(server), path, stop, answers, thread: Some(thread) }
    }

    /// Waits for some more answers.
    fn goes_on(&self) {
        let (before, since) = (self.answers.load(SeqCst), Instant::now());
        while self.answers.load(SeqCst) < before + 3 {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended && since.elapsed() < LONG, "the neighbour got no answers any more");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn is_reset(written: &vhost_frontend::Response, read: &vhost_frontend::Response) -> bool {
    [written, read].iter().any(|response| response.sense_code().is_some_and(|code| code.0 == 6))
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let ended = self.thread.take().unwrap().join();
        drop(self.server.take());
        let _ = std::fs::remove_file(&self.path);
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// The first request queue's ring.
fn ring(device: &mut Device) -> &mut SplitRing {
    match &mut device.queues[2].ring {
        Ring::Split(ring) => ring,
        Ring::Packed(_) => unreachable!("not asked for"),
    }
}

/// Waits until the back end says that a ring is broken.
fn is_broken(queue: &Queue) -> bool {
    let mut fds = [nix::poll::PollFd::new(borrowed(queue), nix::poll::PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(10_000u16));
    ready == Ok(1) && queue.error.read().is_ok()
}

#[allow(unsafe_code)] // vmm-sys-util's EventFd has no AsFd.
fn borrowed(queue: &Queue) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: open as long as the queue.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(queue.error.as_raw_fd()) }
}

/// One of several requests in flight, with data wherever it is wanted.
struct Task {
    header: Window,
    response: Window,
    data: Window,
}

impl Task {
    fn new(device: &Device, region: usize, len: u64) -> Self {
        let window = |len, align| device.memory.window(len, align).unwrap();
        Self {
            header: window(64, 64),
            response: window(scsi::RESPONSE as u64, 64),
            data: device.memory.window_in(region, len, 4096).unwrap(),
        }
    }

    fn read(&self, lba: u32) -> Vec<Buffer> {
        let cdb = scsi::read(lba, (self.data.len() / 512) as u16);
        self.header.write(0, &scsi::request(LUN, lba.into(), &cdb));
        let header = Buffer::out(&self.header.part(0, scsi::REQUEST));
        vec![header, Buffer::into(&self.response), Buffer::into(&self.data)]
    }

    fn write(&self, lba: u32) -> Vec<Buffer> {
        let cdb = scsi::write(lba, (self.data.len() / 512) as u16);
        self.header.write(0, &scsi::request(LUN, lba.into(), &cdb));
        let header = Buffer::out(&self.header.part(0, scsi::REQUEST));
        vec![header, Buffer::out(&self.data), Buffer::into(&self.response)]
    }
}

/// Descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until there are hardly more than before: other tests in this process come and go.
fn descriptors_go_back_to(before: usize) {
    let since = Instant::now();
    while descriptors() > before + 2 {
        let left = descriptors();
        assert!(since.elapsed() < Duration::from_secs(30), "{before} descriptors became {left}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file of this length, as memory is shared.
fn memfd(len: u64) -> std::fs::File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = std::fs::File::from(memfd_create("hostile", MFdFlags::empty()).unwrap());
    file.set_len(len).unwrap();
    file
}
