//! Takes up the kernel's TCMU devices as they come, and lets go of them as they go.
//!
//! One thread listens to the kernel's events, answers them, and makes an endpoint for each device whose
//! `dev_config` names a logical unit of this process. What cannot be had yet (another process still has
//! the device, the logical unit is not there) is tried again each second.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use libsrp::Lun;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use vscsi_target::model::Nexus;

use super::{
    disk::{Note, Seed},
    name::{DeviceName, Reference},
    netlink::{Change, Event, Kind, Message},
    socket::{Socket, SocketError},
    sysfs::{self, OpenError},
};
use crate::controller::Place;

/// How endpoints of devices are reached.
pub trait Router: Send + Sync + std::fmt::Debug {
    /// How many reactors there are, at least one.
    fn reactors(&self) -> u16;
    /// Makes a device's endpoint.
    fn open(&self, reactor: u16, seed: Seed);
    /// Sends a message to one.
    fn note(&self, to: Place, note: Note);
}

/// Who has the logical units. Called on the watcher's thread, which may wait.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// The logical unit that a device leads to, and a nexus of its own to it.
    ///
    /// # Errors
    /// There is none.
    fn attach(&self, name: &DeviceName, to: &Reference) -> Result<Attachment, Refused>;
    /// Makes an attribute of a device true of its logical unit.
    ///
    /// # Errors
    /// It cannot be.
    fn change(&self, name: &DeviceName, to: &Attachment, change: &Change) -> Result<(), Refused>;
}

/// What a device leads to.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its nexus.
    pub nexus: Arc<Nexus>,
    /// The logical unit number.
    pub lun: u16,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error number that whoever wrote to configfs gets.
    pub errno: Errno,
    /// The same for people.
    pub reason: String,
}

/// A device that is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name.
    pub name: DeviceName,
    /// Its number: `/dev/uio` and this.
    pub minor: u32,
    /// What it leads to.
    pub to: Attachment,
    /// Where its endpoint is.
    pub place: Place,
}

/// Watches for devices until it is stopped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    router: Arc<dyn Router>,
    served: Mutex<BTreeMap<u32, Served>>,
    stop: AtomicBool,
    woken: EventFd,
}

impl Watcher {
    /// Listens to the kernel. Nothing is served before [`Watcher::start`].
    pub fn listen() -> Result<Listening, SocketError> {
        Socket::open().map(Listening)
    }

    /// Serves the devices that are there, and those that come.
    pub fn start(
        listening: Listening,
        host: Arc<dyn Host>,
        router: Arc<dyn Router>,
    ) -> io::Result<Self> {
        let woken = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared {
            router,
            served: Mutex::default(),
            stop: AtomicBool::new(false),
            woken,
        });
        let mut watch = Watch {
            shared: Arc::clone(&shared),
            host,
            socket: listening.0,
            waiting: BTreeMap::new(),
            late: Vec::new(),
            turn: 0,
        };
        let thread = thread::Builder::new().name("tcmu".to_owned()).spawn(move || watch.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The devices that are served now.
    pub fn served(&self) -> Vec<Served> {
        self.shared.lock().values().cloned().collect()
    }

    /// Makes every device look at the LUN map.
    pub fn refresh(&self) {
        for served in self.served() {
            self.shared.router.note(served.place, Note::Refresh);
        }
    }

    /// Lets go of every device, when what is in progress there is done; the reactors run still.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        // A counter that is full wakes as well.
        let _ = self.shared.woken.write(1);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic ends the whole process.
            let _ = thread.join();
        }
    }
}

/// A socket that hears of devices already.
#[derive(Debug)]
pub struct Listening(Socket);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watcher's thread.
#[derive(Debug)]
struct Watch {
    shared: Arc<Shared>,
    host: Arc<dyn Host>,
    socket: Socket,
    /// Devices of ours that cannot be served yet, with what was said about it.
    waiting: BTreeMap<u32, String>,
    /// Answers that somebody else may give.
    late: Vec<Late>,
    turn: u16,
}

#[derive(Debug)]
struct Late {
    at: Instant,
    kind: Kind,
    device: u32,
    status: i32,
}

/// Why a device is not served.
enum Fault {
    Refused(Refused),
    Open(OpenError),
    NoReactor,
}

impl Watch {
    fn run(&mut self) {
        sysfs::end_old_events();
        if let Err(error) = self.socket.set_features(true) {
            tracing::warn!("{error}; whoever makes a TCMU device is not told why it fails");
        }
        self.scan();
        self.hear();
        while !self.shared.stop.load(Ordering::Acquire) {
            self.wait();
            self.hear();
            self.answer_late();
            self.retry();
        }
        self.end();
    }

    /// Deals with the events that are there.
    fn hear(&mut self) {
        match self.socket.receive() {
            Ok(messages) => {
                for message in messages {
                    if let Message::Event(event) = message {
                        self.event(event);
                    }
                }
            }
            // Who waits for an answer to one of those that were lost gets an error.
            Err(Errno::ENOBUFS) => {
                sysfs::end_old_events();
                self.scan();
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the kernel's events of TCMU devices");
                thread::sleep(AGAIN);
            }
        }
    }

    /// Waits for an event, a stop, or until something is to be done anyway.
    fn wait(&self) {
        let now = Instant::now();
        let retry = (!self.waiting.is_empty()).then_some(AGAIN);
        let late = self.late.iter().map(|late| late.at.saturating_duration_since(now));
        let limit = late.chain(retry).min();
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.shared.woken.as_fd(), PollFlags::POLLIN),
        ];
        // After an interruption there is nothing to read.
        let _ = poll(&mut fds, timeout);
    }

    /// Takes up what is there, and lets go of what is not any more.
    fn scan(&mut self) {
        let found = match sysfs::devices() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "cannot list UIO devices");
                return;
            }
        };
        let is_there = |minor: u32| found.iter().any(|(other, _)| *other == minor);
        let gone: Vec<u32> =
            self.shared.lock().keys().copied().filter(|&minor| !is_there(minor)).collect();
        for minor in gone {
            self.let_go(minor);
        }
        self.waiting.retain(|&minor, _| is_there(minor));
        for (minor, name) in found {
            if name.reference().is_some() {
                // What fails is tried again.
                let _ = self.take_up(minor, &name);
            }
        }
    }

    fn retry(&mut self) {
        for minor in self.waiting.keys().copied().collect::<Vec<_>>() {
            match sysfs::name_of(minor) {
                Some(name) if name.reference().is_some() => {
                    let _ = self.take_up(minor, &name);
                }
                _ => {
                    self.waiting.remove(&minor);
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        let Event { kind, name, minor, device, change } = event;
        let name = DeviceName::parse(&name).filter(|name| name.reference().is_some());
        let is_served = self.shared.lock().contains_key(&minor);
        let status = match (kind, name) {
            (Kind::Removed, _) if is_served => {
                self.let_go(minor);
                0
            }
            (Kind::Added, Some(name)) => match self.take_up(minor, &name) {
                Ok(()) => 0,
                // Another process may have that target.
                Err(Some(Errno::ENOENT)) => {
                    return self.answer_later(kind, device, -(Errno::ENOENT as i32));
                }
                Err(errno) => -(errno.unwrap_or(Errno::EIO) as i32),
            },
            (Kind::Reconfigured, _) if is_served => self.change(minor, change),
            _ => {
                self.waiting.remove(&minor);
                return self.answer_later(kind, device, 0);
            }
        };
        if let Err(error) = self.socket.answer(kind, device, status) {
            tracing::warn!(%error, "cannot answer the kernel about uio{minor}");
        }
    }

    /// Serves a device. The error number is for whoever made it.
    fn take_up(&mut self, minor: u32, name: &DeviceName) -> Result<(), Option<Errno>> {
        if self.shared.lock().contains_key(&minor) {
            return Ok(());
        }
        match self.serve(minor, name) {
            Ok(served) => {
                let target = &served.to.nexus.info.target.name;
                tracing::info!(device = %name, minor, %target, lun = served.to.lun, "TCMU device served");
                self.shared.lock().insert(minor, served);
                self.waiting.remove(&minor);
                Ok(())
            }
            Err(fault) => {
                let (errno, reason) = match fault {
                    Fault::Refused(refused) => (Some(refused.errno), refused.reason),
                    Fault::Open(error) if error.is_busy() => {
                        (Some(Errno::EBUSY), format!("{error}; another process serves it"))
                    }
                    Fault::Open(error) => (None, error.to_string()),
                    Fault::NoReactor => (None, "no reactor takes it".to_owned()),
                };
                if self.waiting.get(&minor) != Some(&reason) {
                    tracing::warn!(device = %name, minor, "TCMU device not served: {reason}");
                }
                self.waiting.insert(minor, reason);
                Err(errno)
            }
        }
    }

    fn serve(&mut self, minor: u32, name: &DeviceName) -> Result<Served, Fault> {
        let refused =
            |errno, reason: &str| Fault::Refused(Refused { errno, reason: reason.into() });
        let reference =
            name.reference().ok_or_else(|| refused(Errno::EINVAL, "its subtype is another"))?;
        let to = self.host.attach(name, &reference).map_err(Fault::Refused)?;
        let lun = Lun::from_number(to.lun)
            .ok_or_else(|| refused(Errno::EINVAL, "there are no such logical unit numbers"))?;
        let (file, ring) = sysfs::open(minor).map_err(Fault::Open)?;
        let (opened, place) = mpsc::sync_channel(1);
        let nexus = Arc::clone(&to.nexus);
        let patience = sysfs::patience(name);
        let seed = Seed { name: name.to_string().into(), file, ring, nexus, lun, patience, opened };
        let reactor = self.turn % self.shared.router.reactors().max(1);
        self.turn = self.turn.wrapping_add(1);
        self.shared.router.open(reactor, seed);
        let place = place.recv_timeout(PATIENCE).map_err(|_| Fault::NoReactor)?;
        Ok(Served { name: name.clone(), minor, to, place })
    }

    fn let_go(&mut self, minor: u32) {
        let Some(served) = self.shared.lock().remove(&minor) else { return };
        let (done, wait) = mpsc::sync_channel(1);
        self.shared.router.note(served.place, Note::Close(done));
        // A sender that is dropped is the answer.
        match wait.recv_timeout(PATIENCE) {
            Err(mpsc::RecvTimeoutError::Timeout) => tracing::warn!(
                device = %served.name, minor, "commands are still in progress on a TCMU device that goes"
            ),
            _ => tracing::info!(device = %served.name, minor, "TCMU device let go"),
        }
    }

    /// Makes a new value of an attribute true: what to answer.
    fn change(&mut self, minor: u32, change: Option<Change>) -> i32 {
        let Some(served) = self.shared.lock().get(&minor).cloned() else { return 0 };
        let Some(change) = change else { return 0 };
        match self.host.change(&served.name, &served.to, &change) {
            Ok(()) => {
                tracing::info!(device = %served.name, ?change, "TCMU device changed");
                0
            }
            Err(refused) => {
                tracing::warn!(device = %served.name, ?change, "refused: {}", refused.reason);
                -(refused.errno as i32)
            }
        }
    }

    /// The kernel waits for the answer of whoever has the device. Without anybody it would wait for
    /// ever.
    fn answer_later(&mut self, kind: Kind, device: u32, status: i32) {
        self.late.push(Late { at: Instant::now() + OTHERS, kind, device, status });
    }

    fn answer_late(&mut self) {
        let now = Instant::now();
        let (due, later) = self.late.drain(..).partition(|late| late.at <= now);
        self.late = later;
        let due: Vec<Late> = due;
        for Late { kind, device, status, .. } in due {
            // The kernel refuses a second answer, and nobody else needs to know.
            let _ = self.socket.answer(kind, device, status);
        }
    }

    fn end(&mut self) {
        let all: Vec<u32> = self.shared.lock().keys().copied().collect();
        for minor in all {
            self.let_go(minor);
        }
        for late in &mut self.late {
            late.at = Instant::now();
        }
        self.answer_late();
        if let Err(error) = self.socket.set_features(false) {
            tracing::debug!("{error}");
        }
        // What was told meanwhile waits for an answer. The devices are taken up the next time.
        for message in self.socket.receive().unwrap_or_default() {
            if let Message::Event(Event { kind, device, .. }) = message {
                let _ = self.socket.answer(kind, device, 0);
            }
        }
    }
}

/// How often what cannot be served is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a reactor may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long other processes have to answer for devices of theirs.
const OTHERS: Duration = Duration::from_secs(3);
