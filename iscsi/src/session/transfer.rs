//! Data-Out: immediate and unsolicited data, R2Ts and what they bring (RFC 7143 4.2.5, 11.7).

use super::{
    Session,
    receive::Verdict,
    task::{Gather, Kind, R2tState},
};
use crate::{
    conn::{Conn, Fate, Sink},
    datamover::{Datamover, Unreachable, Writing},
    pdu::{Bhs, DataOut, RESERVED_TAG},
};
use vscsi_target::{
    reactor::{Cx, pool::PoolBuf},
    sense::Sense,
};

impl<M: Datamover> Session<M> {
    /// The immediate data of a command, perhaps none, has come.
    pub(super) fn finish_immediate(&mut self, conn: &mut Conn<M>, cookie: u64, cx: &mut Cx<'_>) {
        if let Some(gather) = self.tasks.gather(cookie) {
            gather.received = gather.unsolicited_len.min(gather.len);
            gather.asked = gather.received;
        }
        self.advance_gather(conn, cookie, cx);
    }

    /// A Data-Out header: decides where its data goes. Data nobody waits for, of a command that
    /// has failed or was aborted, is received and dropped.
    pub(super) fn begin_data_out(
        &mut self,
        conn: &mut Conn<M>,
        pdu: &DataOut,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        let discard = Verdict::Take(Sink::Discard);
        let Some(slot) = self.tasks.find(pdu.itt) else {
            return if self.early.awaits(pdu.itt) { Verdict::Early } else { discard };
        };
        let cookie = self.tasks.cookie(slot);
        let first_burst = self.params.first_burst as usize;
        let Some(task) = self.tasks.at(slot) else { return discard };
        let edtl = task.edtl as usize;
        let Some(gather) = &mut task.out else { return discard };
        let accepted = if pdu.ttt == RESERVED_TAG {
            gather.take_unsolicited(pdu, first_burst.min(edtl))
        } else {
            gather.take_solicited(pdu)
        };
        match accepted {
            Ok(Some(offset)) => Verdict::Take(Sink::Task { task: cookie, offset }),
            Ok(None) => discard,
            Err(sense) => {
                tracing::debug!(peer = %conn.peer, itt = pdu.itt, ?sense, "Data-Out refused");
                self.fail_gather(cookie, sense, cx);
                discard
            }
        }
    }

    /// A Data-Out PDU is complete.
    pub(super) fn finish_data_out(
        &mut self,
        conn: &mut Conn<M>,
        header: &Bhs,
        cookie: u64,
        cx: &mut Cx<'_>,
    ) {
        let Ok(pdu) = DataOut::parse(header) else { return };
        let (first_burst, edtl) = match self.tasks.of_cookie(cookie) {
            Some(slot) => (
                self.params.first_burst as usize,
                self.tasks.at(slot).map_or(0, |task| task.edtl as usize),
            ),
            None => return,
        };
        let Some(gather) = self.tasks.gather(cookie) else { return };
        if pdu.ttt == RESERVED_TAG {
            gather.received = gather.unsolicited_len.min(gather.len);
            gather.asked = gather.received;
            if pdu.is_final {
                gather.unsolicited = false;
                if gather.unsolicited_len != first_burst.min(edtl) {
                    self.fail_gather(cookie, Sense::NOT_ENOUGH_UNSOLICITED_DATA, cx);
                    return;
                }
            }
        } else {
            gather.received += pdu.data_len as usize;
            if let Some(r2t) = gather.r2ts.iter_mut().find(|r2t| r2t.ttt == pdu.ttt)
                && r2t.next == r2t.end
            {
                *r2t = R2tState::FREE;
            }
        }
        self.advance_gather(conn, cookie, cx);
    }

    /// The rest of a command's Data-Out was fetched into the buffer that the datamover had. A
    /// buffer nobody waits for any more is dropped.
    pub fn fetched(&mut self, conn: &mut Conn<M>, cookie: u64, buffer: PoolBuf, cx: &mut Cx<'_>) {
        if let Some(gather) = self.tasks.gather(cookie) {
            gather.buffer = Some(buffer);
            gather.received = gather.len;
            self.advance_gather(conn, cookie, cx);
        }
    }

    /// Asks for more, or hands the complete data to the engine.
    fn advance_gather(&mut self, conn: &mut Conn<M>, cookie: u64, cx: &mut Cx<'_>) {
        let numbers = self.numbers(conn.stat_sn);
        let Some(slot) = self.tasks.of_cookie(cookie) else { return };
        let Some(task) = self.tasks.at(slot) else { return };
        let Some(gather) = &mut task.out else { return };
        if gather.is_complete() {
            if let Some(gather) = task.out.take() {
                let len = gather.len as u64;
                match gather.buffer {
                    Some(buffer) => cx.engine.data_arrived(gather.token, buffer),
                    None => cx.engine.abandon(gather.token),
                }
                self.counters().count_written(len);
            }
            return;
        }
        if gather.unsolicited {
            return;
        }
        let mut writing = Writing {
            cookie,
            itt: task.itt,
            lun: task.lun,
            remote: task.remote,
            numbers,
            max_burst: self.params.max_burst,
            max_r2ts: self.params.max_outstanding_r2t,
            r2ts_sent: &mut task.r2ts_sent,
            next_ttt: &mut self.next_ttt,
        };
        if conn.mover.solicit(gather, &mut writing) == Err(Unreachable) {
            tracing::debug!(peer = %conn.peer, itt = task.itt, "a write without its data");
            conn.fate = Fate::Broken;
        }
    }

    /// A command will not be given its data.
    pub(super) fn abandon(&mut self, gather: Gather, cookie: u64, cx: &mut Cx<'_>) {
        if gather.buffer.is_none() {
            // The datamover has it. Its connection may not be at hand.
            self.cancelled.push(cookie);
        }
        cx.engine.abandon(gather.token);
    }

    /// Ends the gathering of a command: the engine completes it with `sense`.
    fn fail_gather(&mut self, cookie: u64, sense: Sense, cx: &mut Cx<'_>) {
        let Some(slot) = self.tasks.of_cookie(cookie) else { return };
        if let Some(task) = self.tasks.at(slot)
            && task.kind == Kind::Command
            && let Some(gather) = task.out.take()
        {
            if gather.buffer.is_none() {
                task.fetching = true;
                self.cancelled.push(cookie);
            }
            cx.engine.fail(gather.token, sense);
        }
    }
}

impl Gather {
    /// Where the data of an unsolicited PDU goes, when at most `limit` bytes may come.
    fn take_unsolicited(&mut self, pdu: &DataOut, limit: usize) -> Result<Option<usize>, Sense> {
        if !self.unsolicited {
            return Err(Sense::UNEXPECTED_UNSOLICITED_DATA);
        }
        let len = pdu.data_len as usize;
        if pdu.data_sn != self.data_sn {
            // A PDU is missing, which level 0 cannot ask for again (RFC 7143 7.9).
            return Err(Sense::CRC_ERROR);
        }
        if pdu.offset as usize != self.unsolicited_len || self.unsolicited_len + len > limit {
            return Err(Sense::NOT_ENOUGH_UNSOLICITED_DATA);
        }
        let offset = self.unsolicited_len;
        self.data_sn += 1;
        self.unsolicited_len += len;
        Ok(Some(offset))
    }

    /// Where the data of a solicited PDU goes; `None` for a transfer that is over.
    fn take_solicited(&mut self, pdu: &DataOut) -> Result<Option<usize>, Sense> {
        let Some(r2t) = self.r2ts.iter_mut().find(|r2t| r2t.ttt == pdu.ttt) else {
            return Ok(None);
        };
        if pdu.data_sn != r2t.data_sn {
            return Err(Sense::CRC_ERROR);
        }
        let offset = r2t.next;
        let end = offset + pdu.data_len as usize;
        if pdu.offset as usize != offset || end > r2t.end || pdu.is_final && end < r2t.end {
            return Err(Sense::NOT_ENOUGH_UNSOLICITED_DATA);
        }
        r2t.next = end;
        r2t.data_sn += 1;
        Ok(Some(offset))
    }
}
