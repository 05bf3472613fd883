//! What is not SCSI: NOP, text, Reject, Async Message and keepalive (RFC 7143 11.9 to 11.19).

use super::{Session, receive::Verdict};
use crate::{
    conn::{Conn, Fate, Sink},
    datamover::Datamover,
    discovery::SendTargets,
    exchange::Context,
    negotiate::SessionType,
    pdu::{
        AsyncEvent, AsyncMessage, BHS_LEN, Bhs, NopIn, NopOut, PduError, RESERVED_TAG, Reject,
        RejectReason, Request, TextRequest,
    },
};
use libsrp::Lun;
use std::time::Duration;
use vscsi_target::reactor::Cx;

/// How long a command may wait for earlier ones of other connections.
const STALL: Duration = Duration::from_secs(15);

impl<M: Datamover> Session<M> {
    /// SCSI has no place in a discovery session (RFC 7143 4.3).
    pub(super) fn refuse_in_discovery(&mut self, request: &Request) -> Option<Verdict> {
        let is_scsi = matches!(
            request,
            Request::ScsiCommand(_) | Request::DataOut(_) | Request::TaskRequest(_)
        );
        (self.kind == SessionType::Discovery && is_scsi)
            .then_some(Verdict::Reject(RejectReason::CommandNotSupported))
    }

    /// A header that is no request.
    pub(super) fn refuse_request(&mut self, header: &Bhs, error: PduError) -> Verdict {
        match error {
            PduError::UnsolicitedDataWithoutWrite { .. } => {
                // The command had a number, which was used up.
                let cmd_sn = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
                match self.order(crate::pdu::is_immediate(header), cmd_sn) {
                    Some(verdict) => verdict,
                    None => {
                        self.open_window();
                        Verdict::Reject(RejectReason::InvalidPduField)
                    }
                }
            }
            _ => Verdict::Reject(RejectReason::CommandNotSupported),
        }
    }

    /// Sends a Reject with the header it is about.
    pub fn reject(&mut self, conn: &mut Conn<M>, bad: &Bhs, reason: RejectReason) {
        let pdu = Reject {
            reason,
            data_len: BHS_LEN as u32,
            numbers: self.status_numbers(conn),
            data_sn: 0,
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.mover.put(&header, bad);
        self.facts.counters.count_rejected();
    }

    pub(super) fn begin_nop(&mut self, pdu: &NopOut) -> Verdict {
        if pdu.itt == RESERVED_TAG {
            // An answer to our ping, or a mere sign of life: it is never numbered.
            return Verdict::Take(Sink::Discard);
        }
        match self.order(pdu.immediate, pdu.cmd_sn) {
            Some(verdict) => verdict,
            None => {
                self.open_window();
                Verdict::Take(Sink::Collect)
            }
        }
    }

    pub(super) fn finish_nop(&mut self, conn: &mut Conn<M>, pdu: &NopOut) {
        let data = std::mem::take(&mut conn.collected);
        let len = data.len().min(conn.mover.segment_max() as usize);
        let answer = NopIn {
            data_len: len as u32,
            lun: Lun::default(),
            itt: pdu.itt,
            ttt: RESERVED_TAG,
            numbers: self.status_numbers(conn),
        };
        let mut header = [0; BHS_LEN];
        answer.emit(&mut header);
        conn.mover.put(&header, &data[..len]);
        conn.collected = data;
        conn.collected.clear();
    }

    pub(super) fn begin_text(&mut self, pdu: &TextRequest) -> Verdict {
        match self.order(pdu.immediate, pdu.cmd_sn) {
            Some(verdict) => verdict,
            None => {
                self.open_window();
                if pdu.itt == RESERVED_TAG {
                    return Verdict::Reject(RejectReason::ProtocolError);
                }
                Verdict::Take(Sink::Collect)
            }
        }
    }

    pub(super) fn finish_text(&mut self, conn: &mut Conn<M>, header: &Bhs, pdu: &TextRequest) {
        let context = Context {
            session_type: self.kind,
            target: self.facts.target.as_ref(),
            max_piece: conn.mover.segment_max(),
        };
        let (shared, facts, local) = (&self.shared, &self.facts, conn.local);
        let find =
            |wanted: &SendTargets| shared.listed(&facts.initiator, wanted, local, facts.transport);
        match conn.text.request(pdu, &conn.collected, &context, find) {
            Ok(reply) => {
                let numbers = self.status_numbers(conn);
                let mut header = [0; BHS_LEN];
                reply.pdu(numbers).emit(&mut header);
                conn.mover.put(&header, &reply.text);
                if let Some(length) = reply.max_recv_data_segment {
                    conn.mover.set_segment_max(length);
                }
            }
            Err(error) => {
                tracing::debug!(peer = %conn.peer, %error, "text request rejected");
                self.reject(conn, header, error.reject_reason());
            }
        }
    }

    /// Sends an Async Message on a connection.
    pub(super) fn send_async(
        &mut self,
        conn: &mut Conn<M>,
        event: AsyncEvent,
        parameters: [u16; 3],
    ) {
        let [parameter1, parameter2, parameter3] = parameters;
        let pdu = AsyncMessage {
            event,
            vendor_code: 0,
            lun: Lun::default(),
            data_len: 0,
            numbers: self.status_numbers(conn),
            parameter1,
            parameter2,
            parameter3,
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.mover.put(&header, &[]);
    }

    /// Pings silent connections, and gives up those that do not answer.
    pub(super) fn keep_alive(&mut self, cx: &mut Cx<'_>) {
        let idle = self.shared.limits.ping_after.as_nanos() as u64;
        let answer = self.shared.limits.ping_answer.as_nanos() as u64;
        if self.grace.is_some_and(|grace| grace <= cx.now) {
            self.grace = None;
            self.drop_session();
        }
        for index in 0..self.conns.len() {
            let Some(mut conn) = self.lift(index) else { continue };
            let stalled =
                conn.stalled.is_some_and(|since| since + STALL.as_nanos() as u64 <= cx.now);
            let over = matches!(conn.fate, Fate::Lingering { until } if until <= cx.now);
            let silent = conn.ping_due.is_some_and(|due| due <= cx.now);
            if stalled || over || silent {
                if silent || stalled {
                    tracing::info!(
                        initiator = %self.facts.initiator, peer = %conn.peer, silent, stalled,
                        "connection given up"
                    );
                }
                conn.fate = Fate::Broken;
            } else if conn.fate == Fate::Open
                && conn.ping_due.is_none()
                && conn.heard + idle <= cx.now
            {
                conn.ping_due = Some(cx.now + answer);
                self.ping(&mut conn);
            }
            self.put_back(index, conn);
        }
    }

    fn ping(&mut self, conn: &mut Conn<M>) {
        let ttt = self.next_ttt;
        self.next_ttt = ttt.wrapping_add(1) % RESERVED_TAG;
        let pdu = NopIn {
            data_len: 0,
            lun: Lun::default(),
            itt: RESERVED_TAG,
            ttt,
            // Not a status: StatSN is the next one and stays.
            numbers: self.numbers(conn.stat_sn),
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.mover.put(&header, &[]);
    }

    /// Asks for a timer at the next time anything is due.
    pub(super) fn schedule(&mut self, cx: &mut Cx<'_>) {
        let idle = self.shared.limits.ping_after.as_nanos() as u64;
        let due = self.conns.iter().flatten().map(|conn| match conn.fate {
            Fate::Lingering { until } => until,
            Fate::Open => {
                let ping = conn.ping_due.unwrap_or(conn.heard + idle);
                conn.stalled.map_or(ping, |since| ping.min(since + STALL.as_nanos() as u64))
            }
            _ => conn.ping_due.unwrap_or(u64::MAX),
        });
        let next = due.chain(self.grace).min().unwrap_or(u64::MAX);
        self.schedule_at(next, cx);
    }

    /// Asks for a timer at `time` unless an earlier one is set.
    pub(crate) fn schedule_at(&mut self, time: u64, cx: &mut Cx<'_>) {
        if time < self.wake {
            self.wake = time;
            cx.wake_at(time);
        }
    }
}
