//! The vhost-user front door: a controller as a Unix socket that a VMM plugs into.
//!
//! A [`Server`] is one socket of one controller. Its thread accepts a VMM, answers its messages, and
//! tells the queues on the reactors what they mean; when the VMM is gone it waits for the next one.
//! A second VMM waits until the first is gone. The controller, its nexuses and its queues outlive the
//! connection, so a VMM that connects again finds everything as it was.
//!
//! * A ring starts with SET_VRING_KICK, as soon as its size, its addresses and the memory are known,
//!   and takes requests when it is enabled. The available ring is looked at without waiting for a
//!   notification.
//! * GET_VRING_BASE, RESET_DEVICE and the end of the connection finish what is in flight first. So do
//!   a new memory table and a new dirty log on a ring that runs; the answer follows afterwards.
//! * Images that move between processes are taken over before the first ring starts, and given up
//!   when the last one has stopped. While another process has one, the rings wait.
//! * A message that is broken closes this connection and nothing else. A message that cannot be done
//!   is answered with an error if the VMM asked for an answer, and closes the connection if not.
//! * Messages that a VMM sends though they were not negotiated are tolerated: SET_STATUS, GET_STATUS,
//!   SET_LOG_FD, SEND_RARP, SET_VRING_ENDIAN (little), a descriptor with REM_MEM_REG, feature bits
//!   that were not offered, accesses beyond the end of the configuration space, and any unknown
//!   request.
//!
//! The vhost-user specification names the messages; `vhost` reads most of them from the socket.

mod connection;
mod device;
mod fault;
mod holding;
mod transfer;
mod vring;

use std::{
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
use device::Device;
pub use device::PROTOCOL;

/// The thread that serves one socket of a controller.
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
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn listen(listener: UnixListener, controller: Arc<Controller>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(Some(listener.try_clone()?), controller));
        Self::spawn(shared, move |shared| shared.accept(&listener))
    }

    /// Serves the one VMM at the other end of a socket; [`Server::wait`] tells its end.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn connected(stream: UnixStream, controller: Arc<Controller>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(None, controller));
        Self::spawn(shared, move |shared| shared.serve(stream))
    }

    /// Returns when the server has ended: after [`Server::stop`], or when the VMM of
    /// [`Server::connected`] is gone.
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
                "the vhost-user thread failed"
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
        let thread = thread::Builder::new().name("vhost-user".to_owned()).stack_size(STACK).spawn(
            move || {
                work(&its);
                device::close(&its.controller);
                *its.lock(&its.ended) = true;
                its.end.notify_all();
            },
        )?;
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
    fn new(listener: Option<UnixListener>, controller: Arc<Controller>) -> Self {
        Self {
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
            let device = Device::new(Arc::clone(&self.controller), Arc::clone(&self.running));
            match connection::serve(theirs, device) {
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
