//! From bytes to PDUs: one `recv` takes many.

use super::Session;
use crate::{
    conn::{Body, Conn, Fate, Sink},
    digest::{Crc32c, crc32c},
    pdu::{BHS_LEN, Bhs, Frame, RejectReason},
};
use std::io::{self, IoSliceMut};
use vscsi_target::reactor::Cx;

/// Least size of the shared receive buffer.
const SCRATCH: usize = 256 * 1024;

/// Rounds of receiving in one turn, so that one connection does not starve the others.
const ROUNDS: usize = 4;

/// Data above which the rest of a data segment is received straight into the task's buffer.
const DIRECT_AT: usize = 2048;

/// What to do with a PDU whose header is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take its data segment.
    Take(Sink),
    /// Earlier requests have to come first: keep it until then.
    Early,
    /// There is no room to keep it: the connection waits.
    Stall,
    /// Answer with a Reject, drop its data and go on.
    Reject(RejectReason),
    /// Answer with a Reject and close: error recovery level 0 has nothing else.
    Fatal(RejectReason),
}

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

impl Session {
    /// Receives what a connection has; true if that was anything.
    pub(super) fn receive(&mut self, index: usize, cx: &mut Cx<'_>) -> bool {
        let Some(mut conn) = self.lift(index) else { return false };
        let mut found = false;
        let mut scratch = std::mem::take(cx.scratch);
        if scratch.len() < SCRATCH {
            scratch.resize(SCRATCH, 0);
        }
        for _ in 0..ROUNDS {
            if !conn.reads() {
                break;
            }
            match self.receive_once(index, &mut conn, &mut scratch, cx) {
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
        self.put_back(index, conn);
        if found {
            self.catch_up(cx);
        }
        found
    }

    /// One system call.
    fn receive_once(
        &mut self,
        index: usize,
        conn: &mut Conn,
        scratch: &mut [u8],
        cx: &mut Cx<'_>,
    ) -> io::Result<Received> {
        let held = conn.rest.len().min(scratch.len() / 2);
        scratch[..held].copy_from_slice(&conn.rest[..held]);
        let mut direct = 0;
        let mut target: &mut [u8] = &mut [];
        if let Some(body) = &conn.body
            && body.left >= DIRECT_AT
            && let Sink::Task { task, offset } = body.sink
            && let Some(gather) = self.tasks.gather(task)
        {
            let end = gather.buffer.capacity().min(offset.saturating_add(body.left));
            target = gather.buffer.bytes_mut().get_mut(offset..end).unwrap_or_default();
            direct = target.len();
        }
        let asked = direct + scratch.len() - held;
        let got = match nix::sys::uio::readv(
            &conn.fd,
            &mut [IoSliceMut::new(target), IoSliceMut::new(&mut scratch[held..])],
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {
                return Ok(Received::Nothing);
            }
            Err(error) => return Err(error.into()),
        };
        conn.heard = cx.now;
        conn.ping_due = None;
        let placed = got.min(direct);
        if placed > 0 {
            self.placed(conn, placed);
            self.body_may_be_complete(conn, cx);
        }
        conn.rest.clear();
        let end = held + got - placed;
        let used = self.feed(index, conn, &scratch[..end], cx);
        conn.rest.extend_from_slice(&scratch[used..end]);
        Ok(if got == asked { Received::Much } else { Received::All })
    }

    /// Data that the kernel has put into the task's buffer.
    fn placed(&mut self, conn: &mut Conn, len: usize) {
        let Some(body) = &mut conn.body else { return };
        let Sink::Task { task, offset } = &mut body.sink else { return };
        if let Some(crc) = &mut body.crc
            && let Some(gather) = self.tasks.gather(*task)
            && let Some(bytes) = gather.buffer.bytes().get(*offset..*offset + len)
        {
            crc.update(bytes);
        }
        *offset += len;
        body.left -= len.min(body.left);
    }

    /// Goes on with what was received before, after a stall or a login.
    pub(super) fn resume(&mut self, index: usize, cx: &mut Cx<'_>) {
        let Some(mut conn) = self.lift(index) else { return };
        let since = conn.stalled.take();
        let before = self.window.expected();
        let mut rest = std::mem::take(&mut conn.rest);
        let used = self.feed(index, &mut conn, &rest, cx);
        rest.drain(..used);
        conn.rest = rest;
        if conn.stalled.is_some() && self.window.expected() == before {
            conn.stalled = since.or(conn.stalled);
        }
        self.put_back(index, conn);
    }

    /// Parses as many PDUs as are there; gives how many bytes were consumed.
    pub(super) fn feed(
        &mut self,
        index: usize,
        conn: &mut Conn,
        bytes: &[u8],
        cx: &mut Cx<'_>,
    ) -> usize {
        let mut at = 0;
        loop {
            if !conn.takes_requests() {
                return bytes.len();
            }
            if conn.body.is_some() {
                at += self.feed_body(conn, &bytes[at..]);
                if !self.body_may_be_complete(conn, cx) {
                    return at;
                }
                continue;
            }
            let Some(header) = bytes.get(at..).and_then(<[u8]>::first_chunk::<BHS_LEN>) else {
                return at;
            };
            let frame = match Frame::of(header, conn.digests, conn.recv_max) {
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
            let mut verdict = self.begin(index, conn, header, ahs, frame.data, cx);
            if verdict == Verdict::Early {
                verdict = self.begin_early(conn, header, ahs, frame.data);
            }
            let sink = match verdict {
                Verdict::Take(sink) => sink,
                // What is missing can only be behind this, and is never read.
                Verdict::Stall if self.params.max_connections <= 1 => {
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
            conn.body = Some(Body {
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
    fn feed_body(&mut self, conn: &mut Conn, bytes: &[u8]) -> usize {
        let Some(body) = &mut conn.body else { return 0 };
        let data = &bytes[..body.left.min(bytes.len())];
        if let Some(crc) = &mut body.crc {
            crc.update(data);
        }
        match &mut body.sink {
            Sink::Discard => {}
            Sink::Collect | Sink::Early => conn.collected.extend_from_slice(data),
            Sink::Task { task, offset } => {
                if let Some(gather) = self.tasks.gather(*task) {
                    let room = gather.buffer.bytes_mut().get_mut(*offset..).unwrap_or_default();
                    let fits = data.len().min(room.len());
                    room[..fits].copy_from_slice(&data[..fits]);
                }
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
    fn body_may_be_complete(&mut self, conn: &mut Conn, cx: &mut Cx<'_>) -> bool {
        let Some(body) = conn.body.take_if(|body| body.is_complete()) else { return false };
        if body.digest_matches() {
            self.finish(conn, &body, cx);
        } else {
            tracing::debug!(peer = %conn.peer, "data digest error");
            self.reject(conn, &body.header, RejectReason::DataDigest);
            conn.fate = Fate::CloseWhenSent;
        }
        true
    }

    /// A header is complete: decides what to do with the PDU, and starts it.
    pub(super) fn begin(
        &mut self,
        index: usize,
        conn: &mut Conn,
        header: &Bhs,
        ahs: &[u8],
        data: usize,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        use crate::pdu::{Request, opcode};
        let request = match Request::parse(header) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(peer = %conn.peer, %error, "request refused");
                return self.refuse_request(header, error);
            }
        };
        if let Some(verdict) = self.refuse_in_discovery(&request) {
            return verdict;
        }
        match request {
            Request::ScsiCommand(pdu) => self.begin_command(index, conn, &pdu, ahs, data, cx),
            Request::DataOut(pdu) => self.begin_data_out(conn, &pdu, cx),
            Request::TaskRequest(pdu) => self.begin_management(index, conn, &pdu, cx),
            Request::LogoutRequest(pdu) => self.begin_logout(index, conn, &pdu, cx),
            Request::NopOut(pdu) => self.begin_nop(&pdu),
            Request::TextRequest(pdu) => self.begin_text(&pdu),
            Request::Snack(_) | Request::LoginRequest(_) => {
                tracing::debug!(peer = %conn.peer, opcode = ?opcode(header), "not in this phase");
                Verdict::Reject(RejectReason::ProtocolError)
            }
        }
    }

    /// A PDU is complete with its data.
    pub(super) fn finish(&mut self, conn: &mut Conn, body: &Body, cx: &mut Cx<'_>) {
        use crate::pdu::{NopOut, Opcode, TextRequest, opcode};
        if body.sink == Sink::Early {
            return self.finish_early(conn, &body.header, cx);
        }
        match opcode(&body.header) {
            Opcode::ScsiCommand => {
                if let Sink::Task { task, .. } = body.sink {
                    self.finish_immediate(conn, task, cx);
                }
            }
            Opcode::DataOut => {
                if let Sink::Task { task, .. } = body.sink {
                    self.finish_data_out(conn, &body.header, task, cx);
                }
            }
            Opcode::NopOut if body.sink == Sink::Collect => {
                if let Ok(pdu) = NopOut::parse(&body.header) {
                    self.finish_nop(conn, &pdu);
                }
            }
            Opcode::TextRequest if body.sink == Sink::Collect => {
                if let Ok(pdu) = TextRequest::parse(&body.header) {
                    self.finish_text(conn, &body.header, &pdu);
                }
            }
            _ => {}
        }
    }
}
