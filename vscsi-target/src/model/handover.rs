//! A logical unit whose image and state move between processes, so that a guest can: one process at a
//! time has them.
//!
//! It starts without them, and is NOT READY until a transport that is about to start queues calls
//! [`LogicalUnit::acquire`]. The last [`LogicalUnit::release`] gives them up. In between it is like
//! any other. INQUIRY and what else needs neither medium nor state is answered all the time; what
//! would change the state is refused like media access, as it would be lost.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Attention, LogicalUnit, live};
use crate::{backend::OpenError, sense::key, spc::saved};

/// Who uses a logical unit that is handed over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    users: Mutex<u32>,
    /// Its state came from the guest's other host, and what is stored here is older.
    has_state: AtomicBool,
}

impl LogicalUnit {
    /// Whether another process has its image, or may have it.
    pub fn is_away(&self) -> bool {
        self.state().away
    }

    /// Takes the image and the state over, unless another user in this process has them already.
    /// Every success has to be met by a [`LogicalUnit::release`]. Does nothing for a logical unit
    /// that is not handed over. Blocks.
    ///
    /// # Errors
    /// While another process has the image: the error names it. When the state that it left cannot
    /// be read.
    pub fn acquire(self: &Arc<Self>) -> io::Result<()> {
        if !self.backend.is_handed_over() {
            return Ok(());
        }
        let mut users = self.handover.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            self.backend.acquire().map_err(refused)?;
            if let Err(error) = self.move_in() {
                self.backend.release();
                return Err(error);
            }
        }
        *users = users.saturating_add(1);
        Ok(())
    }

    /// Gives the image and the state up if this was the last user: waits until nothing is in
    /// progress, flushes, and saves the state for the next process. Blocks.
    ///
    /// # Errors
    /// When commands do not end, or the data or the state cannot be brought to the medium. Then this
    /// process keeps the image, and the user has not left.
    pub fn release(&self) -> io::Result<()> {
        let mut users = self.handover.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 1 {
            self.update(|state| state.away = true);
            if let Err(error) = self.move_out() {
                self.update(|state| state.away = false);
                return Err(error);
            }
            self.backend.release();
        }
        *users = users.saturating_sub(1);
        Ok(())
    }

    /// What is stored here is older than the state that was just restored.
    pub(super) fn state_came(&self) {
        self.handover.has_state.store(true, SeqCst);
    }

    fn move_in(self: &Arc<Self>) -> io::Result<()> {
        let place = live::file(&self.config).zip(live::boot_id());
        if self.handover.has_state.swap(false, SeqCst) {
            self.store().map_err(io::Error::other)?;
        } else {
            let properties = self.backend.properties();
            let (reservations, modes) =
                saved::restore(&self.config, properties).map_err(io::Error::other)?;
            let kept = place.as_ref().map(|(path, boot)| live::load(path, boot));
            let kept = kept.transpose().map_err(io::Error::other)?.flatten();
            self.update(|state| {
                (state.reservations, state.modes) = (reservations, modes);
                (state.stopped, state.ejected, state.busy) = (false, false, None);
                (state.sanitize_failed, state.sanitize_may_exit) = (false, false);
                (state.aca, state.preventers, state.waiting) = (None, Vec::new(), Vec::new());
            });
            match kept {
                Some(snapshot) => self.restore(snapshot).map_err(io::Error::other)?,
                None => self.establish(Attention::POWER_ON, None),
            }
        }
        if let Some((path, boot)) = place {
            self.keep_on(path, boot).map_err(io::Error::other)?;
        }
        self.update(|state| state.away = false);
        Ok(())
    }

    fn move_out(&self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        // A task is counted at the gate before it looks whether the image is there, so that one which
        // is not counted here does not begin any more. A long operation stops by itself, and leaves
        // its mark.
        let is_busy = || {
            let state = self.state();
            !self.gate.is_idle() || state.busy.is_some_and(|busy| busy.key == key::NOT_READY)
        };
        while is_busy() {
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let is_read_only = self.config.read_only || self.backend.properties().read_only;
        if !is_read_only {
            self.backend.flush()?;
        }
        self.hand_over().map_err(io::Error::other)
    }
}

fn refused(error: OpenError) -> io::Error {
    let kind = match &error {
        OpenError::Locked { .. } | OpenError::Busy { .. } => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{error}; {}", error.fix()))
}

/// How long commands in progress may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
