//! What every front door has: a socket, the thread that serves it, and the way to the queues.
//!
//! A [`Server`] is one socket of one controller. Its thread accepts a VMM, serves it by the door's
//! protocol, and waits for the next one when it is gone. A second VMM waits until the first is gone.

pub(crate) mod event;
pub(crate) mod holding;
pub(crate) mod reach;

use std::{
    error::Error,
    fmt, io,
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::controller::Controller;

/// How a door speaks with its VMM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    /// What it is called, for logs and as a thread's name.
    pub(crate) name: &'static str,
    /// Serves a connection to its end and stops the queues that it started. The counter tells how
    /// many run.
    pub(crate) serve: Serve,
}

type Serve = fn(UnixStream, &Arc<Controller>, &Arc<AtomicU16>) -> Result<(), Broken>;

/// Why a connection ended.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

/// The thread that serves one socket of a controller, or one connection.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// A VMM is connected.
    pub connected: bool,
    /// Queues that run, the control and the event queue among them.
    pub queues: u16,
}

impl Server {
    /// Serves the VMMs that connect to a socket, one after the other.
    pub(crate) fn listen(
        protocol: Protocol,
        listener: UnixListener,
        controller: Arc<Controller>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(protocol, Some(listener.try_clone()?), controller));
        Self::spawn(shared, move |shared| shared.accept(&listener))
    }

    /// Serves the one VMM at the other end of a socket.
    pub(crate) fn connected(
        protocol: Protocol,
        stream: UnixStream,
        controller: Arc<Controller>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(protocol, None, controller));
        Self::spawn(shared, move |shared| shared.serve(stream))
    }

    /// Returns when the server has ended: after [`Server::stop`], or when the VMM of
    /// a server of one connection is gone.
    pub fn wait(&self) {
        let mut ended = self.shared.lock(&self.shared.ended);
        while !*ended {
            ended = self.shared.end.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the connection and accepts none any more. The queues finish what is in flight and close
    /// before this returns, so the reactors must still run. Repeating it does nothing.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.shared.listener {
            // Wakes the accept.
            let _ =
                nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        if let Some(stream) = &*self.shared.lock(&self.shared.stream) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let thread = self.shared.lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(
                controller = self.shared.controller.name,
                "the {} thread failed",
                self.shared.protocol.name
            );
        }
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        Status {
            connected: self.shared.lock(&self.shared.stream).is_some(),
            queues: self.shared.running.load(Ordering::Relaxed),
        }
    }

    /// The controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.shared.controller
    }

    fn spawn(shared: Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) -> io::Result<Self> {
        let its = Arc::clone(&shared);
        let name = its.protocol.name.to_owned();
        let thread = thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            work(&its);
            reach::close(&its.controller);
            *its.lock(&its.ended) = true;
            its.end.notify_all();
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread shares with who has the server.
struct Shared {
    protocol: Protocol,
    controller: Arc<Controller>,
    listener: Option<UnixListener>,
    /// The connection, while there is one.
    stream: Mutex<Option<UnixStream>>,
    stopping: AtomicBool,
    /// Queues that run.
    running: Arc<AtomicU16>,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Shared {
    fn new(
        protocol: Protocol,
        listener: Option<UnixListener>,
        controller: Arc<Controller>,
    ) -> Self {
        Self {
            protocol,
            controller,
            listener,
            stream: Mutex::default(),
            stopping: AtomicBool::new(false),
            running: Arc::default(),
            ended: Mutex::new(false),
            end: Condvar::new(),
        }
    }

    fn accept(&self, listener: &UnixListener) {
        while !self.stopping.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => self.serve(stream),
                Err(_) if self.stopping.load(Ordering::SeqCst) => {}
                Err(error) => {
                    tracing::warn!(
                        controller = self.controller.name,
                        "cannot accept a VMM, and tries again: {error}"
                    );
                    // Out of descriptors, most likely.
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// Serves a connection to its end.
    fn serve(&self, stream: UnixStream) {
        let name = &self.controller.name;
        // One that was inherited may be in any mode.
        let copies = stream
            .set_nonblocking(false)
            .and_then(|()| stream.try_clone())
            .and_then(|one| Ok((one, stream.try_clone()?)));
        let (ours, theirs) = match copies {
            Ok(copies) => copies,
            Err(error) => return tracing::warn!(controller = name, "cannot serve a VMM: {error}"),
        };
        *self.lock(&self.stream) = Some(ours);
        // A stop before this did not see the stream.
        if !self.stopping.load(Ordering::SeqCst) {
            tracing::info!(controller = name, "a VMM connected");
            match (self.protocol.serve)(theirs, &self.controller, &self.running) {
                Ok(()) => tracing::info!(controller = name, "the VMM disconnected"),
                Err(error) => tracing::warn!(
                    controller = name,
                    "the connection to the VMM is closed; it may connect again: {error}"
                ),
            }
        }
        *self.lock(&self.stream) = None;
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("controller", &self.controller.name).finish_non_exhaustive()
    }
}

/// Bytes of the thread's stack: it handles one small message at a time.
const STACK: usize = 256 << 10;
/// How long to wait before a failed accept is tried again.
const RETRY: Duration = Duration::from_millis(100);
