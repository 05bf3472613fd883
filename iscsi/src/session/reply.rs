//! Completions of SCSI commands: Data-In and SCSI Response (RFC 7143 11.4, 11.7).

use super::{Session, task::Kind};
use crate::{
    conn::Conn,
    datamover::{Datamover, Reading, Sent},
    output::Payload,
    pdu::{BHS_LEN, ScsiResponse, ServiceResponse},
};
use libsrp::{Residual, Response, Status, Tag};
use vscsi_target::{
    engine::{Completion, Outcome},
    reactor::{Cx, pool::Pool},
    sense::Sense,
};

/// What of a task its answer needs.
#[derive(Clone, Copy, Debug)]
struct Answered<R> {
    itt: u32,
    edtl: u32,
    r2ts_sent: u32,
    remote: R,
    /// Its data was on the way when it ended.
    fenced: bool,
}

impl<M: Datamover> Session<M> {
    /// Turns a completion into PDUs.
    pub(super) fn answer(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        let Some(slot) = self.tasks.of_cookie(completion.owner.cookie) else { return };
        let Some(task) = self.tasks.at(slot) else { return };
        let out = task.out.take();
        let kind = task.kind;
        let index = task.conn as usize;
        let silent = task.orphan || completion.outcome == Outcome::Silent && kind == Kind::Command;
        let answered = Answered {
            itt: task.itt,
            edtl: task.edtl,
            r2ts_sent: task.r2ts_sent,
            remote: task.remote,
            fenced: task.fetching || out.as_ref().is_some_and(|out| out.buffer.is_none()),
        };
        if let Some(gather) = out {
            // It ended while it still waited for data: aborted.
            self.abandon(gather, completion.owner.cookie, cx);
        }
        self.forget(slot);
        if silent {
            return;
        }
        let Some(mut conn) = self.lift(index) else { return };
        if conn.takes_requests() {
            match kind {
                Kind::Management(function) => {
                    self.answer_management(
                        &mut conn,
                        answered.itt,
                        function,
                        &completion.response,
                        cx,
                    );
                }
                Kind::Command | Kind::Free => {
                    let pool = cx.engine.pool.clone();
                    self.answer_command(&mut conn, answered, completion, &pool);
                }
            }
        }
        self.put_back(index, conn);
    }

    fn answer_command(
        &mut self,
        conn: &mut Conn<M>,
        task: Answered<M::Remote>,
        completion: &mut Completion,
        pool: &Pool,
    ) {
        let data = completion.take_data();
        let response = &completion.response;
        let residual = match response.data_in {
            Residual::None => response.data_out,
            residual => residual,
        };
        let max = task.edtl as usize;
        let payload = Payload::of(data, max, conn.mover.owns_data(), pool)
            .filter(|payload| !payload.is_empty());
        let collapses = payload.is_some()
            && response.status == Status::GOOD
            && response.sense.is_empty()
            && response.qualifier == 0;
        let mut sent = Sent { pdus: 0, status: false };
        if let Some(payload) = payload {
            self.counters().count_read(payload.len() as u64);
            let reading = Reading {
                itt: task.itt,
                remote: task.remote,
                collapse: collapses.then_some(residual),
                numbers: self.numbers(conn.stat_sn),
                max_burst: self.params.max_burst,
            };
            sent = conn.mover.data_in(payload, &reading);
        }
        if sent.status {
            conn.next_stat_sn();
        } else {
            self.send_response(conn, &task, response, residual, sent.pdus);
        }
    }

    fn send_response(
        &mut self,
        conn: &mut Conn<M>,
        task: &Answered<M::Remote>,
        response: &Response,
        residual: Residual,
        data_pdus: u32,
    ) {
        let mut sense = response.sense.as_bytes();
        // What the initiator has no room for is cut off, and with it the length that counts it.
        sense = &sense[..sense.len().min(conn.mover.segment_max() as usize - 2)];
        let data_len = if sense.is_empty() { 0 } else { sense.len() + 2 };
        let qualifier = match self.params.protocol_level {
            0 | 1 => 0,
            _ => response.qualifier as u16,
        };
        let pdu = ScsiResponse {
            response: ServiceResponse::Completed,
            status: response.status,
            qualifier,
            data_len: data_len as u32,
            itt: task.itt,
            snack_tag: 0,
            numbers: self.status_numbers(conn),
            exp_data_sn: task.r2ts_sent.wrapping_add(data_pdus),
            bidi_residual: Residual::None,
            residual,
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        if sense.is_empty() {
            return conn.mover.put_response(&header, &[], &task.remote, task.fenced);
        }
        let mut data = [0; 2 + libsrp::SENSE_MAX];
        data[..2].copy_from_slice(&(sense.len() as u16).to_be_bytes());
        data[2..2 + sense.len()].copy_from_slice(sense);
        conn.mover.put_response(&header, &data[..data_len], &task.remote, task.fenced);
    }

    /// Ends a command that never reached the engine.
    pub(super) fn send_check_condition(
        &mut self,
        conn: &mut Conn<M>,
        itt: u32,
        remote: M::Remote,
        sense: Sense,
        residual: Residual,
    ) {
        let response = Response {
            status: Status::CHECK_CONDITION,
            sense: sense.encode(false),
            ..Response::good(Tag::from_u64(u64::from(itt)))
        };
        let task = Answered { itt, edtl: 0, r2ts_sent: 0, remote, fenced: false };
        self.send_response(conn, &task, &response, residual, 0);
    }
}
