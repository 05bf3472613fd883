//! The datamover of RFC 7143: one TCP connection, its socket, what was received of a PDU that is
//! not complete yet, and what waits to be sent.

mod join;
mod receive;
mod send;

use crate::{
    conn::{Conn, Sink},
    datamover::{Datamover, Detached, Reading, Sent, Unreachable, Writing},
    digest::Crc32c,
    negotiate::{DEFAULT_MRDSL, Parameters, SessionType},
    output::{Flushed, Output, Payload},
    pdu::{BHS_LEN, Bhs, Digests, Frame},
    session::{Joining, Session, task::Gather},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};
use vscsi_target::{engine::DataIn, model::lu::flag, reactor::Cx};

/// Output above which nothing more is read from a connection: its initiator does not read.
pub const OUTPUT_LIMIT: usize = 4 << 20;

/// The longest PDU of a login, and what may be sent behind the last one.
const INBOX: usize = 64 * 1024;

/// A TCP connection.
#[derive(Debug)]
pub struct Tcp {
    fd: OwnedFd,
    /// Digests agreed on.
    digests: Digests,
    /// Own MaxRecvDataSegmentLength.
    recv_max: u32,
    /// The initiator's MaxRecvDataSegmentLength.
    send_max: u32,
    output: Output,
    /// Received and not consumed: a login's PDUs, less than a header, or everything behind a
    /// stalled request.
    rest: Vec<u8>,
    /// The PDU whose data segment is being received.
    body: Option<Body>,
    /// As which source the socket is watched, and whether for input and output.
    watching: Option<(u32, bool, bool)>,
}

/// The data segment being received.
#[derive(Debug)]
struct Body {
    /// Where it goes.
    sink: Sink,
    /// The PDU's header.
    header: Bhs,
    /// Data bytes still to come.
    left: usize,
    /// Padding bytes still to come.
    pad: usize,
    /// The running digest, where there is one.
    crc: Option<Crc32c>,
    /// The digest received so far.
    digest: [u8; 4],
    /// How many bytes of it.
    digest_have: usize,
}

impl Body {
    /// Whether all of it, with padding and digest, has come.
    fn is_complete(&self) -> bool {
        self.left == 0 && self.pad == 0 && (self.crc.is_none() || self.digest_have == 4)
    }

    /// Whether the digest received is the right one.
    fn digest_matches(&self) -> bool {
        self.crc.as_ref().is_none_or(|crc| crc.finish() == self.digest)
    }

    /// Takes padding and digest from the front of `bytes`; gives how many bytes that were.
    fn take_trailer(&mut self, bytes: &[u8]) -> usize {
        let pad = self.pad.min(bytes.len());
        if let Some(crc) = &mut self.crc {
            crc.update(&bytes[..pad]);
        }
        self.pad -= pad;
        let mut used = pad;
        if self.pad == 0 && self.crc.is_some() {
            let digest = (4 - self.digest_have).min(bytes.len() - used);
            self.digest[self.digest_have..self.digest_have + digest]
                .copy_from_slice(&bytes[used..used + digest]);
            self.digest_have += digest;
            used += digest;
        }
        used
    }
}

impl Tcp {
    /// A connection in login; the socket is nonblocking.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            digests: Digests::NONE,
            recv_max: DEFAULT_MRDSL,
            send_max: DEFAULT_MRDSL,
            output: Output::default(),
            rest: Vec::new(),
            body: None,
            watching: None,
        }
    }

    fn negotiated(&mut self, agreed: &Parameters) {
        self.digests = agreed.digests();
        self.recv_max = agreed.target_mrdsl;
        self.send_max = agreed.initiator_mrdsl;
    }
}

impl Datamover for Tcp {
    type Link = OwnedFd;
    type Remote = ();

    const SOURCES: u32 = 1;
    const ALWAYS_TELLS: bool = true;

    fn open(link: OwnedFd, _cx: &mut Cx<'_>) -> io::Result<Self> {
        Ok(Self::new(link))
    }

    fn watch(&mut self, source: u32, cx: &mut Cx<'_>) -> io::Result<()> {
        if self.watching.is_none() {
            cx.watch(self.fd.as_raw_fd(), source, true, false)?;
            self.watching = Some((source, true, false));
        }
        Ok(())
    }

    fn close(self, cx: &mut Cx<'_>) {
        cx.unwatch(self.fd.as_raw_fd());
    }

    fn fill(&mut self, _cx: &mut Cx<'_>) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let room = chunk.len().min(INBOX.saturating_sub(self.rest.len()));
        if room == 0 {
            return Err(io::Error::other("more than a login's worth of data"));
        }
        match nix::unistd::read(&self.fd, &mut chunk[..room]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                self.rest.extend_from_slice(&chunk[..got]);
                Ok(true)
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn login_pdu(&mut self, data: &mut Vec<u8>) -> io::Result<Option<Bhs>> {
        let Some(header) = self.rest.first_chunk::<BHS_LEN>().copied() else { return Ok(None) };
        // MaxRecvDataSegmentLength during login (RFC 7143 6.1).
        let frame = Frame::of(&header, Digests::NONE, DEFAULT_MRDSL).map_err(io::Error::other)?;
        if self.rest.len() < frame.total() {
            return Ok(None);
        }
        let start = frame.data_start();
        data.clear();
        data.extend_from_slice(&self.rest[start..start + frame.data]);
        self.rest.drain(..frame.total());
        Ok(Some(header))
    }

    fn enter(&mut self, agreed: &Parameters, _: SessionType, _: &mut Cx<'_>) -> io::Result<()> {
        self.negotiated(agreed);
        Ok(())
    }

    fn detach(self, cx: &mut Cx<'_>) -> Option<Detached> {
        cx.unwatch(self.fd.as_raw_fd());
        Some(Detached { fd: self.fd, rest: self.rest, unsent: self.output.into_small() })
    }

    fn join(session: &mut Session<Self>, joining: Joining, cx: &mut Cx<'_>) {
        session.join(joining, cx);
    }

    fn receive(
        session: &mut Session<Self>,
        index: usize,
        conn: &mut Conn<Self>,
        cx: &mut Cx<'_>,
    ) -> bool {
        session.receive_bytes(index, conn, cx)
    }

    fn resume(session: &mut Session<Self>, index: usize, conn: &mut Conn<Self>, cx: &mut Cx<'_>) {
        session.resume_bytes(index, conn, cx);
    }

    fn holds_input(&self) -> bool {
        !self.rest.is_empty()
    }

    fn segment_max(&self) -> u32 {
        self.send_max
    }

    fn set_segment_max(&mut self, length: u32) {
        self.send_max = length;
    }

    fn put(&mut self, header: &Bhs, data: &[u8]) {
        self.output.put_header(header, self.digests.header);
        self.output.put_data(data, self.digests.data);
    }

    fn put_response(&mut self, header: &Bhs, data: &[u8], (): &(), _fenced: bool) {
        self.put(header, data);
    }

    fn owns_data(&self) -> bool {
        // A digest needs memory that nobody writes to any more.
        self.digests.data
    }

    fn data_in(&mut self, payload: Payload, read: &Reading<()>) -> Sent {
        self.send_data(payload, read)
    }

    fn solicit(
        &mut self,
        gather: &mut Gather,
        write: &mut Writing<'_, ()>,
    ) -> Result<(), Unreachable> {
        self.send_r2ts(gather, write);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.output.is_empty()
    }

    fn is_congested(&self) -> bool {
        self.output.queued() >= OUTPUT_LIMIT
    }

    fn flush(&mut self, wanted: bool, cx: &mut Cx<'_>) -> io::Result<()> {
        let mut blocked = false;
        if !self.output.is_empty() {
            match self.output.flush(self.fd.as_fd())? {
                Flushed::All => {}
                Flushed::Blocked => {
                    blocked = true;
                    // Atomic commands wait for readers of lent memory: let them not wait for us.
                    self.output.take_over(&cx.engine.pool, |data| match data {
                        DataIn::Lent(_, hold) => hold.itl().lu.flags() & flag::ATOMICS != 0,
                        _ => false,
                    });
                }
            }
        }
        let reads = wanted && !self.is_congested();
        if let Some((source, input, output)) = self.watching
            && (input, output) != (reads, blocked)
        {
            cx.rewatch(self.fd.as_raw_fd(), source, reads, blocked)?;
            self.watching = Some((source, reads, blocked));
        }
        Ok(())
    }

    fn shut(&mut self) {
        // The peer gets to read everything before the socket goes.
        let how = nix::sys::socket::Shutdown::Write;
        let _ = nix::sys::socket::shutdown(self.fd.as_raw_fd(), how);
    }
}
