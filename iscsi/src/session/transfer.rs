//! Data-Out: immediate and unsolicited data, R2Ts and what they bring (RFC 7143 4.2.5, 11.7).

use super::{
    Session,
    receive::Verdict,
    task::{Gather, Kind, MAX_R2TS, R2tState},
};
use crate::{
    conn::{Conn, Sink},
    pdu::{Bhs, DataOut, R2t, RESERVED_TAG},
};
use vscsi_target::{reactor::Cx, sense::Sense};

impl Session {
    /// The immediate data of a command, perhaps none, has come.
    pub(super) fn finish_immediate(&mut self, conn: &mut Conn, cookie: u64, cx: &mut Cx<'_>) {
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
        conn: &mut Conn,
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
        conn: &mut Conn,
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

    /// Asks for more, or hands the complete data to the engine.
    fn advance_gather(&mut self, conn: &mut Conn, cookie: u64, cx: &mut Cx<'_>) {
        let most = usize::from(self.params.max_outstanding_r2t).clamp(1, MAX_R2TS);
        let burst = self.params.max_burst as usize;
        let numbers = self.numbers(conn.stat_sn);
        let Some(slot) = self.tasks.of_cookie(cookie) else { return };
        let Some(task) = self.tasks.at(slot) else { return };
        let Some(gather) = &mut task.out else { return };
        if gather.is_complete() {
            if let Some(gather) = task.out.take() {
                let len = gather.len as u64;
                cx.engine.data_arrived(gather.token, gather.buffer);
                self.counters().count_written(len);
            }
            return;
        }
        if gather.unsolicited {
            return;
        }
        while gather.asked < gather.len && gather.outstanding() < most {
            let len = burst.min(gather.len - gather.asked);
            let ttt = self.next_ttt;
            self.next_ttt = ttt.wrapping_add(1) % RESERVED_TAG;
            let Some(free) = gather.r2ts.iter_mut().find(|r2t| r2t.ttt == RESERVED_TAG) else {
                return;
            };
            *free = R2tState { ttt, next: gather.asked, end: gather.asked + len, data_sn: 0 };
            let r2t = R2t {
                lun: task.lun,
                itt: task.itt,
                ttt,
                numbers,
                r2t_sn: gather.r2t_sn,
                offset: gather.asked as u32,
                desired_len: len as u32,
            };
            gather.asked += len;
            gather.r2t_sn += 1;
            task.r2ts_sent += 1;
            let mut header = [0; 48];
            r2t.emit(&mut header);
            conn.output.put_header(&header, conn.digests.header);
        }
    }

    /// Ends the gathering of a command: the engine completes it with `sense`.
    fn fail_gather(&mut self, cookie: u64, sense: Sense, cx: &mut Cx<'_>) {
        let Some(slot) = self.tasks.of_cookie(cookie) else { return };
        if let Some(task) = self.tasks.at(slot)
            && task.kind == Kind::Command
            && let Some(gather) = task.out.take()
        {
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
