//! The state of a device on its way to another host (vhost-user, "Migrating back-end state").
//!
//! The front end gives a pipe. A thread of its own writes or reads it, since the front end may be
//! slow, and its next message must be read meanwhile. The bytes are JSON: what every nexus's logical
//! units keep, by target id.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vscsi_target::model::snapshot;

use crate::controller::Controller;

/// Why a state does not arrive.
#[derive(Debug, Error)]
pub(super) enum TransferError {
    /// The pipe failed.
    #[error("the pipe of the device's state failed: {0}")]
    Pipe(#[from] io::Error),
    /// Nothing was begun.
    #[error("no state of the device is being transferred")]
    Nothing,
    /// Queues run.
    #[error("the state of the device can only be transferred while no queue runs")]
    Running,
    /// Not ended in time.
    #[error("the other end of the pipe did not finish within {} s", PATIENCE.as_secs())]
    Late,
    /// Too much.
    #[error("the saved state has more than {MOST} bytes")]
    Large,
    /// Not what was saved.
    #[error("the saved state of the device is damaged: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version's.
    #[error("the saved state has format version {0}, which is not supported (this is {VERSION})")]
    Version(u32),
    /// A target that is not here.
    #[error(
        "the saved state is of target {0} too, which this controller does not have: both hosts need \
         the same targets"
    )]
    NoTarget(u8),
    /// A target's state.
    #[error("target {id}: {source}")]
    Target {
        /// Which target.
        id: u8,
        /// What is wrong.
        source: snapshot::SnapshotError,
    },
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    targets: BTreeMap<u8, serde_json::Value>,
}

/// A transfer that was begun.
#[derive(Debug)]
pub(super) struct Transfer {
    /// What came, or nothing if it went the other way.
    end: Receiver<Result<Option<Vec<u8>>, TransferError>>,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

impl Transfer {
    /// Begins to send the state of a controller.
    pub(super) fn save(controller: &Controller, pipe: File) -> Result<Self, TransferError> {
        let mut targets = BTreeMap::new();
        for (id, nexus) in controller.nexuses() {
            targets.insert(*id, serde_json::from_slice(&snapshot::save(nexus))?);
        }
        let bytes = serde_json::to_vec(&Saved { version: VERSION, targets })?;
        Self::spawn(pipe, move |pipe| pipe.send(&bytes).map(|()| None))
    }

    /// Begins to receive a state.
    pub(super) fn load(pipe: File) -> Result<Self, TransferError> {
        Self::spawn(pipe, |pipe| pipe.receive().map(Some))
    }

    /// Ends a transfer: all is sent, or what came is this controller's state now.
    pub(super) fn finish(self, controller: &Controller) -> Result<(), TransferError> {
        match self.end.recv_timeout(PATIENCE) {
            Ok(end) => end?.map_or(Ok(()), |bytes| restore(controller, &bytes)),
            Err(RecvTimeoutError::Timeout) => Err(TransferError::Late),
            Err(RecvTimeoutError::Disconnected) => Err(TransferError::Nothing),
        }
    }

    fn spawn(
        file: File,
        work: impl FnOnce(&mut Pipe) -> Result<Option<Vec<u8>>, TransferError> + Send + 'static,
    ) -> Result<Self, TransferError> {
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(flags)).map_err(io::Error::from)?;
        let given_up = Arc::new(AtomicBool::new(false));
        let mut pipe = Pipe { file, given_up: Arc::clone(&given_up) };
        let (done, end) = sync_channel(1);
        thread::Builder::new().name("vhost-state".to_owned()).spawn(move || {
            let end = work(&mut pipe);
            // The front end reads until it is closed.
            drop(pipe);
            let _ = done.send(end);
        })?;
        Ok(Self { end, given_up })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

fn restore(controller: &Controller, bytes: &[u8]) -> Result<(), TransferError> {
    let saved: Saved = serde_json::from_slice(bytes)?;
    if saved.version != VERSION {
        return Err(TransferError::Version(saved.version));
    }
    let nexus = |id: u8| controller.nexuses().iter().find(|(its, _)| *its == id);
    if let Some(id) = saved.targets.keys().find(|id| nexus(**id).is_none()) {
        return Err(TransferError::NoTarget(*id));
    }
    for (id, state) in &saved.targets {
        let Some((_, nexus)) = nexus(*id) else { continue };
        snapshot::restore(nexus, &serde_json::to_vec(state)?)
            .map_err(|source| TransferError::Target { id: *id, source })?;
    }
    Ok(())
}

/// One end of a pipe, which is left as soon as nobody waits for the other.
struct Pipe {
    file: File,
    given_up: Arc<AtomicBool>,
}

impl Pipe {
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            self.wait(PollFlags::POLLOUT)?;
            match self.file.write(bytes) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>, TransferError> {
        let (mut all, mut part) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            self.wait(PollFlags::POLLIN)?;
            match self.file.read(&mut part) {
                Ok(0) => return Ok(all),
                Ok(have) => all.extend_from_slice(part.get(..have).unwrap_or_default()),
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(error.into()),
            }
            if all.len() > MOST {
                return Err(TransferError::Large);
            }
        }
    }

    fn wait(&self, what: PollFlags) -> Result<(), TransferError> {
        while !self.given_up.load(Ordering::Relaxed) {
            match poll(&mut [PollFd::new(self.file.as_fd(), what)], PollTimeout::from(LOOK_EVERY)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Err(TransferError::Late)
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

const VERSION: u32 = 1;
/// More bytes than the states of all logical units have.
const MOST: usize = 64 << 20;
/// How long the front end may take for its end of the pipe, once it asks whether all went well.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a transfer sees that nobody waits for it, in milliseconds.
const LOOK_EVERY: u8 = 200;
