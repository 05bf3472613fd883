//! A socket that this process was started with.
#![allow(unsafe_code)] // The command line gives a descriptor by its number.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    sys::socket::{
        AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
    },
};

/// Takes a connected Unix socket over. Call it before the process opens anything itself, and once
/// for a number.
///
/// # Errors
/// EBADF where the number is no descriptor, ENOTSOCK where it is no Unix stream socket.
pub fn stream(number: RawFd) -> io::Result<UnixStream> {
    // SAFETY: F_GETFD touches no memory, and fails for a number that is no descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(Errno::last().into());
    }
    // SAFETY: the descriptor is open. It was before this program opened any, and so is nobody
    // else's; the standard streams are not owned by anyone.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let kind = getsockopt(&socket, sockopt::SockType)?;
    if address.family() != Some(AddressFamily::Unix) || kind != SockType::Stream {
        return Err(Errno::ENOTSOCK.into());
    }
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::IntoRawFd};

    #[test]
    fn only_a_unix_stream_is_taken() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let taken = stream(theirs.into_raw_fd()).unwrap();
        assert!(taken.peer_addr().is_ok());
        drop(ours);
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        assert_eq!(stream(file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(stream(i32::MAX).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
