//! PDUs become requests: what a header begins, and what its data completes.
//!
//! A datamover that receives a stream begins a PDU when its header is there, puts the data where the
//! verdict says, and then finishes it. One that receives messages does the same with [`Session::admit`],
//! [`Session::deliver`] and [`Session::finish`].

use super::Session;
use crate::{
    conn::{Conn, Fate, Sink},
    datamover::Datamover,
    pdu::{Bhs, RejectReason},
};
use vscsi_target::reactor::Cx;

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

/// What comes along with a basic header segment.
#[derive(Clone, Copy, Debug)]
pub struct Along<'a, R> {
    /// Additional header segments.
    pub ahs: &'a [u8],
    /// Length of the data segment in bytes, without padding.
    pub data: usize,
    /// Memory of the initiator.
    pub remote: R,
}

impl<M: Datamover> Session<M> {
    /// Receives what a connection has; true if that was anything.
    pub(super) fn receive(&mut self, index: usize, cx: &mut Cx<'_>) -> bool {
        let Some(mut conn) = self.lift(index) else { return false };
        let found = M::receive(self, index, &mut conn, cx);
        self.put_back(index, conn);
        if found {
            self.catch_up(cx);
        }
        found
    }

    /// Goes on with what a connection received before, after a stall or a login.
    pub(super) fn resume(&mut self, index: usize, cx: &mut Cx<'_>) {
        let Some(mut conn) = self.lift(index) else { return };
        M::resume(self, index, &mut conn, cx);
        self.put_back(index, conn);
    }

    /// Takes the header of a PDU that is there as a whole. Where its data goes, if the PDU goes on:
    /// then [`Session::deliver`] and [`Session::finish`] follow.
    pub fn admit(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        header: &Bhs,
        along: &Along<'_, M::Remote>,
        cx: &mut Cx<'_>,
    ) -> Option<Sink> {
        conn.collected.clear();
        let mut verdict = self.begin(index, conn, header, along, cx);
        if verdict == Verdict::Early {
            verdict = self.begin_early(conn, header, along.ahs, along.data);
        }
        match verdict {
            Verdict::Take(sink) => return Some(sink),
            Verdict::Reject(reason) => self.reject(conn, header, reason),
            Verdict::Fatal(reason) => {
                self.reject(conn, header, reason);
                conn.fate = Fate::CloseWhenSent;
            }
            Verdict::Early | Verdict::Stall => {
                tracing::debug!(peer = %conn.peer, "commands are missing in the sequence");
                conn.fate = Fate::CloseWhenSent;
            }
        }
        None
    }

    /// Puts the whole data segment of a PDU where it goes; `collected` is the connection's.
    pub fn deliver(&mut self, sink: Sink, collected: &mut Vec<u8>, data: &[u8]) {
        match sink {
            Sink::Task { task, offset } => self.store(task, offset, data),
            Sink::Collect | Sink::Early => collected.extend_from_slice(data),
            Sink::Discard => {}
        }
    }

    /// The buffer of a task from `offset` on; empty when nobody waits for data there.
    pub(crate) fn room(&mut self, cookie: u64, offset: usize) -> &mut [u8] {
        self.tasks
            .gather(cookie)
            .and_then(|gather| gather.buffer.as_mut())
            .and_then(|buffer| buffer.bytes_mut().get_mut(offset..))
            .unwrap_or_default()
    }

    /// Puts data into the buffer of a task; what does not fit is dropped.
    pub(crate) fn store(&mut self, cookie: u64, offset: usize, data: &[u8]) {
        let room = self.room(cookie, offset);
        let fits = data.len().min(room.len());
        room[..fits].copy_from_slice(&data[..fits]);
    }

    /// A header is complete: decides what to do with the PDU, and starts it.
    pub(crate) fn begin(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        header: &Bhs,
        along: &Along<'_, M::Remote>,
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
            Request::ScsiCommand(pdu) => self.begin_command(index, conn, &pdu, along, cx),
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
    pub fn finish(
        &mut self,
        conn: &mut Conn<M>,
        header: &Bhs,
        sink: Sink,
        remote: M::Remote,
        cx: &mut Cx<'_>,
    ) {
        use crate::pdu::{NopOut, Opcode, TextRequest, opcode};
        if sink == Sink::Early {
            return self.finish_early(conn, header, remote, cx);
        }
        match opcode(header) {
            Opcode::ScsiCommand => {
                if let Sink::Task { task, .. } = sink {
                    self.finish_immediate(conn, task, cx);
                }
            }
            Opcode::DataOut => {
                if let Sink::Task { task, .. } = sink {
                    self.finish_data_out(conn, header, task, cx);
                }
            }
            Opcode::NopOut if sink == Sink::Collect => {
                if let Ok(pdu) = NopOut::parse(header) {
                    self.finish_nop(conn, &pdu);
                }
            }
            Opcode::TextRequest if sink == Sink::Collect => {
                if let Ok(pdu) = TextRequest::parse(header) {
                    self.finish_text(conn, header, &pdu);
                }
            }
            _ => {}
        }
    }
}
