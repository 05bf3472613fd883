//! An image that several processes have open, of which one at a time uses it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{File, FileOptions, OpenError, open};

/// What an image needs that was opened without its lock.
#[derive(Debug)]
pub(super) struct Handover {
    options: FileOptions,
    /// While this process has a block device: what refuses it to others, and to mounts.
    claim: Mutex<Option<fs::File>>,
}

impl Handover {
    pub(super) fn new(options: FileOptions) -> Self {
        Self { options, claim: Mutex::default() }
    }

    fn claim(&self) -> MutexGuard<'_, Option<fs::File>> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File {
    /// Whether it was opened by [`File::open_for_handover`].
    pub fn is_handed_over(&self) -> bool {
        self.handover.is_some()
    }

    /// Blocking: takes the image over: its lock, its size now, and none of what the page cache may
    /// still hold from before another host wrote. Does nothing unless opened for handover.
    ///
    /// # Errors
    /// [`OpenError::Locked`] or [`OpenError::Busy`] while another process has it.
    pub fn acquire(&self) -> Result<(), OpenError> {
        let Some(Handover { options, .. }) = &self.handover else { return Ok(()) };
        if self.device && !options.read_only {
            self.claim_device()?;
        }
        let taken = open::lock(options, &self.file).and_then(|()| {
            let io = |source| OpenError::Io { path: options.path.clone(), source };
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|errno| io(errno.into()))?;
            match self.resize(None).map_err(io)? {
                0 => Err(OpenError::Empty { path: options.path.clone() }),
                _ => Ok(()),
            }
        });
        if taken.is_err() {
            self.release();
        }
        taken
    }

    /// Gives the image to whoever acquires it next. Nothing may be in progress.
    pub fn release(&self) {
        if let Some(handover) = &self.handover {
            open::unlock(&self.file);
            *handover.claim() = None;
        }
    }

    /// Opens the device once more, which is refused while it is mounted or another process has it.
    fn claim_device(&self) -> Result<(), OpenError> {
        let Some(handover) = &self.handover else { return Ok(()) };
        let options = &handover.options;
        let io = |source| OpenError::Io { path: options.path.clone(), source };
        let claim =
            open::open_flags(options, true).map_err(|error| open::refused(options, error))?;
        let (old, new) = (self.file.metadata().map_err(io)?, claim.metadata().map_err(io)?);
        if old.rdev() != new.rdev() {
            return Err(io(io::Error::other("another device has this name now")));
        }
        *handover.claim() = Some(claim);
        Ok(())
    }
}
