//! One TCP connection in full feature phase: its socket, what was received of a PDU that is not
//! complete yet, and what waits to be sent.

use crate::{
    digest::Crc32c,
    exchange::TextExchange,
    login::LoggedIn,
    output::{Flushed, Output},
    pdu::{BHS_LEN, Bhs, Digests},
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};
use vscsi_target::{engine::DataIn, model::lu::flag, reactor::Cx};

/// Output above which nothing more is read from a connection: its initiator does not read.
pub const OUTPUT_LIMIT: usize = 4 << 20;

/// A connection of a session.
#[derive(Debug)]
pub struct Conn {
    /// The socket.
    pub fd: OwnedFd,
    /// Connection identifier.
    pub cid: u16,
    /// The peer as the socket names it.
    pub peer: String,
    /// Digests agreed on.
    pub digests: Digests,
    /// Own MaxRecvDataSegmentLength.
    pub recv_max: u32,
    /// The initiator's MaxRecvDataSegmentLength.
    pub send_max: u32,
    /// Next StatSN.
    pub stat_sn: u32,
    /// What waits to be sent.
    pub output: Output,
    /// Received and not consumed: less than a header, or everything behind a stalled request.
    pub rest: Vec<u8>,
    /// The PDU whose data segment is being received.
    pub body: Option<Body>,
    /// Data segments that are handled as a whole (text, ping data).
    pub collected: Vec<u8>,
    /// Since when (ns) a request waits for earlier ones, and there is no room to keep it.
    pub stalled: Option<u64>,
    /// When something was received last (ns).
    pub heard: u64,
    /// A NOP-In was sent and has to be answered by then (ns).
    pub ping_due: Option<u64>,
    /// Its text negotiation.
    pub text: TextExchange,
    /// The address it came to.
    pub local: Option<SocketAddr>,
    /// Tasks of this connection in progress.
    pub tasks: u32,
    /// What becomes of the connection.
    pub fate: Fate,
    /// It was logged out, so that its end is not the session's.
    pub logged_out: bool,
    watching: (bool, bool),
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Open,
    /// Logged out: the response is sent when its tasks have ended.
    LogoutWhenIdle {
        /// Initiator task tag of the request.
        itt: u32,
    },
    /// Closes when everything is sent; input is ignored.
    CloseWhenSent,
    /// Everything is sent and our side is shut; the peer may close until then (ns).
    Lingering {
        /// Until then.
        until: u64,
    },
    /// Broken: nothing more is sent.
    Broken,
}

/// The data segment being received.
#[derive(Debug)]
pub struct Body {
    /// Where it goes.
    pub sink: Sink,
    /// The PDU's header.
    pub header: Bhs,
    /// Data bytes still to come.
    pub left: usize,
    /// Padding bytes still to come.
    pub pad: usize,
    /// The running digest, where there is one.
    pub crc: Option<Crc32c>,
    /// The digest received so far.
    pub digest: [u8; 4],
    /// How many bytes of it.
    pub digest_have: usize,
}

/// Where a data segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Into the buffer of a task from `offset` on; bytes past its end are dropped.
    Task {
        /// Cookie of the task.
        task: u64,
        /// Where the next byte goes.
        offset: usize,
    },
    /// Into [`Conn::collected`].
    Collect,
    /// Into [`Conn::collected`] behind its additional header segments: its turn has not come yet.
    Early,
    /// Nowhere.
    Discard,
}

impl Body {
    /// Whether all of it, with padding and digest, has come.
    pub fn is_complete(&self) -> bool {
        self.left == 0 && self.pad == 0 && (self.crc.is_none() || self.digest_have == 4)
    }

    /// Whether the digest received is the right one.
    pub fn digest_matches(&self) -> bool {
        self.crc.as_ref().is_none_or(|crc| crc.finish() == self.digest)
    }

    /// Takes padding and digest from the front of `bytes`; gives how many bytes that were.
    pub fn take_trailer(&mut self, bytes: &[u8]) -> usize {
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

/// What a new connection starts with.
#[derive(Debug)]
pub struct ConnSetup {
    /// The socket, nonblocking.
    pub fd: OwnedFd,
    /// Connection identifier.
    pub cid: u16,
    /// The peer as the socket names it.
    pub peer: String,
    /// The address it came to; `None` on other sockets than TCP.
    pub local: Option<SocketAddr>,
    /// Digests agreed on.
    pub digests: Digests,
    /// Own MaxRecvDataSegmentLength.
    pub recv_max: u32,
    /// The initiator's MaxRecvDataSegmentLength.
    pub send_max: u32,
    /// StatSN after the final Login Response.
    pub stat_sn: u32,
    /// Received behind the last Login Request.
    pub rest: Vec<u8>,
}

impl ConnSetup {
    /// Of a login that has ended.
    pub fn new(
        fd: OwnedFd,
        login: &LoggedIn,
        peer: String,
        local: Option<SocketAddr>,
        rest: Vec<u8>,
    ) -> Self {
        Self {
            fd,
            cid: login.cid,
            peer,
            local,
            digests: login.parameters.digests(),
            recv_max: login.parameters.target_mrdsl,
            send_max: login.parameters.initiator_mrdsl,
            stat_sn: login.stat_sn,
            rest,
        }
    }
}

impl Conn {
    /// A connection that has just finished its login.
    pub fn new(setup: ConnSetup, now: u64) -> Box<Self> {
        Box::new(Self {
            fd: setup.fd,
            cid: setup.cid,
            peer: setup.peer,
            digests: setup.digests,
            recv_max: setup.recv_max,
            send_max: setup.send_max.max(512),
            stat_sn: setup.stat_sn,
            output: Output::default(),
            rest: setup.rest,
            body: None,
            collected: Vec::new(),
            stalled: None,
            heard: now,
            ping_due: None,
            text: TextExchange::new(),
            local: setup.local,
            tasks: 0,
            fate: Fate::Open,
            logged_out: false,
            watching: (false, false),
        })
    }

    /// The socket's number.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// StatSN for a PDU that carries status: it advances.
    pub fn next_stat_sn(&mut self) -> u32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        stat_sn
    }

    /// Whether what comes in is acted on.
    pub fn takes_requests(&self) -> bool {
        matches!(self.fate, Fate::Open | Fate::LogoutWhenIdle { .. })
    }

    /// Whether input is wanted.
    pub fn reads(&self) -> bool {
        match self.fate {
            Fate::Open | Fate::LogoutWhenIdle { .. } => {
                self.stalled.is_none() && self.output.queued() < OUTPUT_LIMIT
            }
            Fate::Lingering { .. } => true,
            Fate::CloseWhenSent | Fate::Broken => false,
        }
    }

    /// Starts to watch the socket as `source`.
    pub fn watch(&mut self, source: u32, cx: &mut Cx<'_>) -> io::Result<()> {
        cx.watch(self.raw_fd(), source, true, false)?;
        self.watching = (true, false);
        Ok(())
    }

    /// Takes over a socket that is watched as `source` already, for input only.
    pub fn watched(&mut self) {
        self.watching = (true, false);
    }

    /// Sends what waits and watches for what is needed next.
    pub fn flush(&mut self, source: u32, cx: &mut Cx<'_>) {
        let mut blocked = false;
        if !self.output.is_empty() {
            match self.output.flush(self.fd.as_fd()) {
                Ok(Flushed::All) => {}
                Ok(Flushed::Blocked) => {
                    blocked = true;
                    // Atomic commands wait for readers of lent memory: let them not wait for us.
                    self.output.take_over(&cx.engine.pool, |data| match data {
                        DataIn::Lent(_, hold) => hold.itl().lu.flags() & flag::ATOMICS != 0,
                        _ => false,
                    });
                }
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "sending failed");
                    self.fate = Fate::Broken;
                    return;
                }
            }
        }
        let wanted = (self.reads(), blocked);
        if wanted != self.watching {
            match cx.rewatch(self.raw_fd(), source, wanted.0, wanted.1) {
                Ok(()) => self.watching = wanted,
                Err(_) => self.fate = Fate::Broken,
            }
        }
    }
}

/// The shortest header with its digest, and the longest with all additional segments.
pub const MAX_HEADER: usize = BHS_LEN + 255 * 4 + 4;
