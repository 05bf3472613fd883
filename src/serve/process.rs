//! The process: its limits, signals and the threads of its reactors.

use std::{
    fs, io, process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd::gettid,
};
use vscsi_target::{
    engine::Engine,
    model::Model,
    reactor::{Inbox, Reactor, pool::Pool, ring::Ring, workers::Workers},
};

use super::{StartError, fabric::AnyEndpoint};

/// Lets the process have as many descriptors as it may: each connection is one.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// How the process asks itself to end. Unlike the other signals it never means "at once": a VMM may
/// hang up while the process stops anyway.
pub const OWN_REQUEST: Signal = Signal::SIGUSR1;

/// The signals that end the process, blocked in every thread.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    set: SigSet,
}

/// Blocks the signals; call it before threads start. SIGPIPE is ignored by Rust's runtime already.
pub fn block_signals() -> io::Result<Signals> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, OWN_REQUEST] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(Signals { set })
}

impl Signals {
    /// Waits for SIGTERM, SIGINT or [`OWN_REQUEST`], and says which it was.
    pub fn wait(&self) -> Signal {
        loop {
            match self.set.wait() {
                Ok(Signal::SIGHUP) => tracing::info!(
                    "SIGHUP: the configuration is not read again; vscsi lun changes a running \
                     target, everything else needs a restart"
                ),
                Ok(signal) => return signal,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for signals");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }

    /// From now on the next one ends the process at once.
    pub fn exit_on_next(self) {
        let spawned = thread::Builder::new().name("signals".into()).spawn(move || {
            while self.wait() == OWN_REQUEST {}
            tracing::warn!("a second signal: ending at once");
            process::exit(1);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "a second signal will not be seen");
        }
    }
}

/// A reactor's thread, for its processor time.
#[derive(Clone, Copy, Debug)]
pub struct ReactorThread {
    tid: i32,
}

impl ReactorThread {
    /// Processor time used so far; zero where the kernel does not tell.
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.tid);
        let text = fs::read_to_string(path).unwrap_or_default();
        let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }
}

/// Starts one thread an inbox, with this deadline for commands in seconds. All run until `stop` and until their endpoints are gone.
pub fn start_reactors(
    model: &Arc<Model>,
    inboxes: &[Arc<Inbox<AnyEndpoint>>],
    io_timeout: u32,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<(JoinHandle<()>, ReactorThread)>, StartError> {
    let workers = Arc::new(Workers::new(WORKERS));
    let mut threads = Vec::new();
    for (number, inbox) in (0u16..).zip(inboxes) {
        let (model, workers) = (Arc::clone(model), Arc::clone(&workers));
        let (inbox, stop) = (Arc::clone(inbox), Arc::clone(stop));
        let (ready, outcome) = mpsc::channel();
        let body = move || {
            // Pool and ring belong to this thread.
            let (pool, ring) = (Pool::new(POOL), Ring::new(RING));
            if number == 0 && !ring.is_enabled() {
                tracing::warn!("io_uring is not available; files are served by worker threads");
            }
            let mut engine = Engine::new(model, number, pool, ring, workers);
            engine.set_io_timeout(io_timeout);
            match Reactor::new(engine, inbox) {
                Ok(reactor) => {
                    let _ = ready.send(Ok(gettid().as_raw()));
                    reactor.run(&stop);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
            // Without its reactor an endpoint would wait for ever.
            if !stop.load(Ordering::Acquire) {
                tracing::error!("reactor {number} ended");
                process::abort();
            }
        };
        let failed = |source| StartError::System { what: "a reactor", source };
        let name = format!("reactor-{number}");
        let handle = thread::Builder::new().name(name).spawn(body).map_err(failed)?;
        let tid = outcome
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
            .map_err(failed)?;
        threads.push((handle, ReactorThread { tid }));
    }
    Ok(threads)
}

/// Threads for what blocks.
const WORKERS: usize = 16;
/// Bytes of buffers that one reactor lends at a time.
const POOL: usize = 512 << 20;
/// Entries of the submission queue.
const RING: u32 = 256;
