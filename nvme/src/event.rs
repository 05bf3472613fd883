//! Eventfds: what interrupts and other threads raise.
#![allow(unsafe_code)] // Descriptors are borrowed for poll(2).

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that is never waited for in a read or write.
#[derive(Debug)]
pub(crate) struct Event(pub(crate) EventFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    pub(crate) fn raise(&self) {
        // One that is full is readable already.
        let _ = self.0.write(1);
    }

    /// Takes it down, and says whether it was raised.
    pub(crate) fn lower(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Waits until it is raised, at most so many milliseconds.
    pub(crate) fn wait(&self, milliseconds: PollTimeout) {
        Self::wait_for([self], milliseconds);
    }

    /// Waits until one of them is raised.
    pub(crate) fn wait_for<const N: usize>(events: [&Self; N], limit: PollTimeout) {
        let mut fds = events.map(|event| {
            // SAFETY: the descriptor belongs to the event, which is borrowed for longer.
            let fd = unsafe { BorrowedFd::borrow_raw(event.0.as_raw_fd()) };
            PollFd::new(fd, PollFlags::POLLIN)
        });
        let _ = poll(&mut fds, limit);
    }
}
