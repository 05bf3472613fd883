//! Eventfds as descriptors, and descriptors of a VMM as eventfds.
#![allow(unsafe_code)] // Descriptors from the VMM become eventfds.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};
use vmm_sys_util::eventfd::EventFd;

/// Takes a descriptor of the VMM as an eventfd that does not block a reactor; `None` if it is none.
pub(crate) fn adopt(file: OwnedFd) -> io::Result<Option<EventFd>> {
    let kind = fstat(&file)?.st_mode & SFlag::S_IFMT.bits();
    // Anonymous inodes have no type. A file or a pipe could block whoever writes to it.
    if kind != 0 {
        return Ok(None);
    }
    let flags = fcntl(&file, FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(&file, FcntlArg::F_SETFL(flags))?;
    // SAFETY: a descriptor that nobody else owns.
    Ok(Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }))
}

/// Lends the descriptor of an eventfd.
pub(crate) fn lend(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: open as long as the eventfd, which is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// The descriptor of an eventfd.
pub(crate) fn into_descriptor(event: EventFd) -> OwnedFd {
    // SAFETY: a descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}
