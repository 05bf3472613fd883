//! Keeps the live state of a logical unit in a file, so that it outlives the process.
//!
//! The file carries the kernel's boot id. A process of the same boot takes the state over: an
//! initiator that comes back finds its reservations, and no unit attention. A state of another boot
//! is that of before a power loss, and is ignored; what must survive one is stored elsewhere. A
//! state that was handed over ([`super::handover`]) is for any boot.
//!
//! Nothing is synced, since what has been handed to the kernel outlives the process. Most changes are
//! written a moment later by one thread for all logical units, never by a reactor. What a command
//! promises to keep goes through [`LogicalUnit::store_then`] on its worker thread instead, which
//! writes before the change holds and so before GOOD.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::replace::replace;

use super::{
    LogicalUnit, LuConfig,
    snapshot::{self, Snapshot, SnapshotError, UnitState},
};

/// Why the live state of a logical unit cannot be kept, or what was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The operating system refused.
    #[error("cannot {what} the live state in {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what this or any earlier version writes.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// The process is about to end: what is changed now would be forgotten.
    #[error("the target is about to end")]
    Frozen,
}

impl LogicalUnit {
    /// Restores what a process of this boot kept of this logical unit, and keeps it from now on. Does
    /// nothing without a state directory. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written, and when it is there and cannot be understood: starting
    /// without it could grant what a reservation denies.
    pub fn keep(self: &Arc<Self>) -> Result<(), LiveError> {
        if self.backend.is_handed_over() {
            // The state belongs to whoever has the image, and is read when that is this process.
            return Ok(());
        }
        match (file(&self.config), boot_id()) {
            (Some(path), Some(boot)) => self.keep_in(path, boot),
            _ => Ok(()),
        }
    }

    pub(super) fn keep_in(self: &Arc<Self>, path: PathBuf, boot: &str) -> Result<(), LiveError> {
        if let Some(snapshot) = load(&path, boot)? {
            let fail = |source| LiveError::Content { path: path.clone(), source };
            self.restore(snapshot).map_err(fail)?;
        }
        self.keep_on(path, boot)
    }

    /// Keeps the state from now on, whatever was kept before.
    pub(super) fn keep_on(self: &Arc<Self>, path: PathBuf, boot: &str) -> Result<(), LiveError> {
        let live = self.live.get_or_init(|| Live::new(Arc::downgrade(self), path, boot));
        // Here rather than at the first change, which may be on a reactor.
        LazyLock::force(&SAVER);
        let _alone = live.alone();
        live.dirty.store(false, SeqCst);
        live.write(Some(&live.boot), &self.snapshot(), false)?;
        live.phase.store(KEEPING, SeqCst);
        Ok(())
    }

    /// Hands the next state to the kernel, then makes it hold. Blocks, so only on worker threads.
    ///
    /// `next` makes the state that will hold of the one that holds now; `apply` makes it hold.
    ///
    /// # Errors
    /// The state could not be written; `apply` was not called.
    pub fn store_then<R>(
        &self,
        next: impl FnOnce(&mut Snapshot),
        apply: impl FnOnce() -> R,
    ) -> Result<R, LiveError> {
        let Some(live) = self.live.get() else { return Ok(apply()) };
        // Held until the change holds, so that nobody writes the old state over the new one.
        let _alone = live.alone();
        match live.phase.load(SeqCst) {
            PAUSED => return Ok(apply()),
            FROZEN => return Err(LiveError::Frozen),
            _ => {}
        }
        let mut snapshot = self.snapshot();
        next(&mut snapshot);
        live.write(Some(&live.boot), &snapshot, false)?;
        Ok(apply())
    }

    /// Writes the state a last time, and forgets what changes afterwards: the end of the process is
    /// no I_T nexus loss for initiators that will come back. Blocks.
    pub fn freeze(&self) -> Result<(), LiveError> {
        let Some(live) = self.live.get() else { return Ok(()) };
        let _alone = live.alone();
        if live.phase.load(SeqCst) == KEEPING {
            live.phase.store(FROZEN, SeqCst);
            live.write(Some(&live.boot), &self.snapshot(), false)?;
        }
        Ok(())
    }

    /// The logical unit is out of service: nothing volatile is left of it. Blocks.
    pub(super) fn forget(&self) {
        let Some(live) = self.live.get() else { return };
        let _alone = live.alone();
        if live.phase.swap(PAUSED, SeqCst) == KEEPING
            && let Err(error) = fs::remove_file(&live.path)
        {
            tracing::warn!(path = %live.path.display(), %error, "live state cannot be removed");
        }
    }

    /// Writes the state for a process of any boot, durably, and keeps it no longer.
    pub(super) fn hand_over(&self) -> Result<(), LiveError> {
        let Some(live) = self.live.get() else { return Ok(()) };
        let _alone = live.alone();
        if live.phase.load(SeqCst) == KEEPING {
            live.write(None, &self.snapshot(), true)?;
            live.phase.store(PAUSED, SeqCst);
        }
        Ok(())
    }

    /// Something changed that an initiator could notice. Costs next to nothing when nothing is kept,
    /// and never blocks.
    pub(super) fn changed(&self) {
        if let Some(live) = self.live.get()
            && live.phase.load(SeqCst) == KEEPING
            && !live.dirty.swap(true, SeqCst)
            && let Some(saver) = &*SAVER
        {
            // The thread lives as long as the process.
            let _ = saver.send(Weak::clone(&live.unit));
        }
    }

    /// Writes what changed, unless the state is not kept any more.
    fn save_changes(&self) {
        let Some(live) = self.live.get() else { return };
        let _alone = live.alone();
        live.dirty.store(false, SeqCst);
        if live.phase.load(SeqCst) != KEEPING {
            return;
        }
        match live.write(Some(&live.boot), &self.snapshot(), false) {
            Ok(()) => live.failing.store(false, SeqCst),
            Err(error) if !live.failing.swap(true, SeqCst) => {
                tracing::error!(lu = self.id, %error, "a restart now would lose changes");
            }
            Err(_) => {}
        }
    }
}

/// Where and since when a logical unit's live state is kept.
#[derive(Debug)]
pub(super) struct Live {
    unit: Weak<LogicalUnit>,
    path: PathBuf,
    boot: String,
    phase: AtomicU8,
    /// The saver knows that something changed.
    dirty: AtomicBool,
    /// The last write failed, and somebody was told.
    failing: AtomicBool,
    file: Mutex<()>,
}

impl Live {
    fn new(unit: Weak<LogicalUnit>, path: PathBuf, boot: &str) -> Self {
        Self {
            unit,
            path,
            boot: boot.to_owned(),
            phase: AtomicU8::new(PAUSED),
            dirty: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            file: Mutex::default(),
        }
    }

    /// Nobody else writes the file meanwhile. Taken before the state of the logical unit.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a new file and renames it over the old one.
    fn write(&self, boot: Option<&str>, state: &Snapshot, durable: bool) -> Result<(), LiveError> {
        let fail = |what, source| LiveError::Io { what, path: self.path.clone(), source };
        let kept = Kept {
            version: snapshot::VERSION,
            boot: boot.map(str::to_owned),
            state: UnitState::from(state),
        };
        let text = serde_json::to_vec(&kept).map_err(|e| fail("write", e.into()))?;
        replace(&self.path, &text, durable).map_err(|(what, source)| fail(what, source))
    }
}

/// The file of a logical unit's live state, if it may keep any.
pub(super) fn file(config: &LuConfig) -> Option<PathBuf> {
    let name = format!("{:016x}.live.json", config.identity.naa);
    config.state_dir.as_ref().map(|directory| directory.join(name))
}

/// What tells this boot of the kernel from others; `None` where that cannot be told.
pub(super) fn boot_id() -> Option<&'static str> {
    static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    });
    BOOT.as_deref()
}

/// What was kept in this boot, or handed over; `None` when nothing was.
pub(super) fn load(path: &Path, boot: &str) -> Result<Option<Snapshot>, LiveError> {
    let fail = |what, source| LiveError::Io { what, path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail("open", e)),
    };
    let mut text = Vec::new();
    let limit = snapshot::MAX_LEN as u64 + 1;
    file.take(limit).read_to_end(&mut text).map_err(|e| fail("read", e))?;
    decode(&text, boot).map_err(|source| LiveError::Content { path: path.to_owned(), source })
}

/// Reads what a file holds.
fn decode(text: &[u8], boot: &str) -> Result<Option<Snapshot>, SnapshotError> {
    let end = text.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let kept: Kept = match snapshot::parse(&text[..end]) {
        Ok(kept) => kept,
        // As a file is never seen half written while the system is up, it was down meanwhile.
        Err(SnapshotError::Json(error)) if error.is_eof() => {
            tracing::warn!("a live state was cut off by a power failure: ignored");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if kept.boot.is_some_and(|of| of != boot) {
        return Ok(None);
    }
    Snapshot::try_from(kept.state).map(Some)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// `None` when it was handed over, to whichever host.
    #[serde(deserialize_with = "Option::deserialize")]
    boot: Option<String>,
    state: UnitState,
}

/// Whoever wants the thread's attention; `None` when there is no thread, and then only what commands
/// promise is written.
static SAVER: LazyLock<Option<Sender<Weak<LogicalUnit>>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel();
    let spawned =
        thread::Builder::new().name("vscsi-live".to_owned()).spawn(move || save_all(&receiver));
    if let Err(error) = &spawned {
        tracing::error!(%error, "no thread to keep the live state of logical units");
    }
    spawned.is_ok().then_some(sender)
});

fn save_all(changed: &Receiver<Weak<LogicalUnit>>) {
    while let Ok(first) = changed.recv() {
        // Changes rarely come alone: a unit attention is established and reported, a nexus comes
        // with a power-on condition for every logical unit.
        thread::sleep(TOGETHER);
        for unit in std::iter::once(first).chain(changed.try_iter()) {
            if let Some(unit) = unit.upgrade() {
                unit.save_changes();
            }
        }
    }
}

/// Nothing is written: it is not wanted yet, or no more.
const PAUSED: u8 = 0;
/// Every change is written.
const KEEPING: u8 = 1;
/// Nothing is written and nothing may be promised.
const FROZEN: u8 = 2;

/// How long changes are gathered before they are written.
const TOGETHER: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
