//! From bytes to PDUs: one `readv` takes many.

use super::{Body, Tcp};
use crate::{
    conn::{Conn, Fate, Sink},
    digest::{Crc32c, crc32c},
    pdu::{BHS_LEN, Frame, RejectReason},
    session::{
        Session,
        receive::{Along, Verdict},
    },
};
use std::io::{self, IoSliceMut};
use vscsi_target::reactor::Cx;

/// Least size of the shared receive buffer.
const SCRATCH: usize = 256 * 1024;

/// Rounds of receiving in one turn, so that one connection does not starve the others.
const ROUNDS: usize = 4;

/// Data above which the rest of a data segment is received straight into the task's buffer.
const DIRECT_AT: usize = 2048;

/// What one system call brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// Nothing is there.
    Nothing,
    /// Everything that was there.
    All,
    /// As much as was asked for.
    Much,
}

impl Session<Tcp> {
    /// Receives what a connection has; true if that was anything.
    pub(super) fn receive_bytes(
        &mut self,
        index: usize,
        conn: &mut Conn<Tcp>,
        cx: &mut Cx<'_>,
    ) -> bool {
        let mut found = false;
        let mut scratch = std::mem::take(cx.scratch);
        if scratch.len() < SCRATCH {
            scratch.resize(SCRATCH, 0);
        }
        for _ in 0..ROUNDS {
            if !conn.reads() {
                break;
            }
            match self.receive_once(index, conn, &mut scratch, cx) {
                Ok(Received::Much) => found = true,
                Ok(Received::Nothing) => break,
                Ok(Received::All) => {
                    found = true;
                    break;
                }
                Err(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "connection ended");
                    conn.fate = Fate::Broken;
                    found = true;
                    break;
                }
            }
        }
        *cx.scratch = scratch;
        found
    }

    /// One system call.
    fn receive_once(
        &mut self,
        index: usize,
        conn: &mut Conn<Tcp>,
        scratch: &mut [u8],
        cx: &mut Cx<'_>,
    ) -> io::Result<Received> {
        let held = conn.mover.rest.len().min(scratch.len() / 2);
        scratch[..held].copy_from_slice(&conn.mover.rest[..held]);
        let mut direct = 0;
        let mut target: &mut [u8] = &mut [];
        if let Some(body) = &conn.mover.body
            && body.left >= DIRECT_AT
            && let Sink::Task { task, offset } = body.sink
        {
            let room = self.room(task, offset);
            direct = room.len().min(body.left);
            target = &mut room[..direct];
        }
        let asked = direct + scratch.len() - held;
        let got = match nix::sys::uio::readv(
            &conn.mover.fd,
            &mut [IoSliceMut::new(target), IoSliceMut::new(&mut scratch[held..])],
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {
                return Ok(Received::Nothing);
            }
            Err(error) => return Err(error.into()),
        };
        conn.heard(cx.now);
        let placed = got.min(direct);
        if placed > 0 {
            self.placed(conn, placed);
            self.body_may_be_complete(conn, cx);
        }
        conn.mover.rest.clear();
        let end = held + got - placed;
        let used = self.feed(index, conn, &scratch[..end], cx);
        conn.mover.rest.extend_from_slice(&scratch[used..end]);
        Ok(if got == asked { Received::Much } else { Received::All })
    }

    /// Data that the kernel has put into the task's buffer.
    fn placed(&mut self, conn: &mut Conn<Tcp>, len: usize) {
        let Some(body) = &mut conn.mover.body else { return };
        let Sink::Task { task, offset } = &mut body.sink else { return };
        if let Some(crc) = &mut body.crc
            && let Some(bytes) = self.room(*task, *offset).get(..len)
        {
            crc.update(bytes);
        }
        *offset += len;
        body.left -= len.min(body.left);
    }

    /// Goes on with what was received before, after a stall or a login.
    pub(super) fn resume_bytes(&mut self, index: usize, conn: &mut Conn<Tcp>, cx: &mut Cx<'_>) {
        let since = conn.stalled.take();
        let before = self.exp_cmd_sn();
        let mut rest = std::mem::take(&mut conn.mover.rest);
        let used = self.feed(index, conn, &rest, cx);
        rest.drain(..used);
        conn.mover.rest = rest;
        if conn.stalled.is_some() && self.exp_cmd_sn() == before {
            conn.stalled = since.or(conn.stalled);
        }
    }

    /// Parses as many PDUs as are there; gives how many bytes were consumed.
    fn feed(&mut self, index: usize, conn: &mut Conn<Tcp>, bytes: &[u8], cx: &mut Cx<'_>) -> usize {
        let mut at = 0;
        loop {
            if !conn.takes_requests() {
                return bytes.len();
            }
            if conn.mover.body.is_some() {
                at += self.feed_body(conn, &bytes[at..]);
                if !self.body_may_be_complete(conn, cx) {
                    return at;
                }
                continue;
            }
            let Some(header) = bytes.get(at..).and_then(<[u8]>::first_chunk::<BHS_LEN>) else {
                return at;
            };
            let frame = match Frame::of(header, conn.mover.digests, conn.mover.recv_max) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "malformed PDU");
                    self.reject(conn, header, RejectReason::ProtocolError);
                    conn.fate = Fate::CloseWhenSent;
                    return bytes.len();
                }
            };
            let Some(head) = bytes.get(at..at + frame.data_start()) else { return at };
            let (head, digest) = head.split_at(BHS_LEN + frame.ahs);
            if !digest.is_empty() && crc32c(head) != digest {
                // The lengths in this header cannot be trusted either (RFC 7143 7.7).
                tracing::debug!(peer = %conn.peer, "header digest error");
                conn.fate = Fate::Broken;
                return bytes.len();
            }
            conn.collected.clear();
            let ahs = &head[BHS_LEN..];
            let along = Along { ahs, data: frame.data, remote: () };
            let mut verdict = self.begin(index, conn, header, &along, cx);
            if verdict == Verdict::Early {
                verdict = self.begin_early(conn, header, ahs, frame.data);
            }
            let sink = match verdict {
                Verdict::Take(sink) => sink,
                // What is missing can only be behind this, and is never read.
                Verdict::Stall if self.has_one_connection() => {
                    tracing::debug!(peer = %conn.peer, "commands are missing in the sequence");
                    conn.fate = Fate::CloseWhenSent;
                    return bytes.len();
                }
                Verdict::Early | Verdict::Stall => {
                    conn.stalled = Some(cx.now);
                    self.schedule_at(cx.now, cx);
                    return at;
                }
                Verdict::Reject(reason) => {
                    self.reject(conn, header, reason);
                    Sink::Discard
                }
                Verdict::Fatal(reason) => {
                    self.reject(conn, header, reason);
                    conn.fate = Fate::CloseWhenSent;
                    return bytes.len();
                }
            };
            at += frame.data_start();
            let crc = (frame.data_digest > 0).then(Crc32c::new);
            conn.mover.body = Some(Body {
                sink,
                header: *header,
                left: frame.data,
                pad: frame.pad,
                crc,
                digest: [0; 4],
                digest_have: 0,
            });
        }
    }

    /// Takes data, padding and digest from `bytes`; gives how many were consumed.
    fn feed_body(&mut self, conn: &mut Conn<Tcp>, bytes: &[u8]) -> usize {
        let Some(body) = &mut conn.mover.body else { return 0 };
        let data = &bytes[..body.left.min(bytes.len())];
        if let Some(crc) = &mut body.crc {
            crc.update(data);
        }
        match &mut body.sink {
            Sink::Discard => {}
            Sink::Collect | Sink::Early => conn.collected.extend_from_slice(data),
            Sink::Task { task, offset } => {
                self.store(*task, *offset, data);
                *offset += data.len();
            }
        }
        body.left -= data.len();
        let mut used = data.len();
        if body.left == 0 {
            used += body.take_trailer(&bytes[used..]);
        }
        used
    }

    /// Acts on a PDU whose last byte has come; false while it has not.
    fn body_may_be_complete(&mut self, conn: &mut Conn<Tcp>, cx: &mut Cx<'_>) -> bool {
        let Some(body) = conn.mover.body.take_if(|body| body.is_complete()) else { return false };
        if body.digest_matches() {
            self.finish(conn, &body.header, body.sink, (), cx);
        } else {
            tracing::debug!(peer = %conn.peer, "data digest error");
            self.reject(conn, &body.header, RejectReason::DataDigest);
            conn.fate = Fate::CloseWhenSent;
        }
        true
    }
}
