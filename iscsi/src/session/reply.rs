//! Completions of SCSI commands: Data-In, phase collapse and SCSI Response (RFC 7143 11.4, 11.7).

use super::{Session, task::Kind};
use crate::{
    conn::Conn,
    output::Payload,
    pdu::{BHS_LEN, DataIn, Numbers, RESERVED_TAG, ScsiResponse, ServiceResponse},
};
use libsrp::{Lun, Residual, Response, Status, Tag};
use vscsi_target::{
    engine::{Completion, Outcome},
    reactor::{Cx, pool::Pool},
    sense::Sense,
};

/// What of a task its answer needs.
#[derive(Clone, Copy, Debug)]
struct Answered {
    itt: u32,
    edtl: u32,
    r2ts_sent: u32,
}

impl Session {
    /// Turns a completion into PDUs.
    pub(super) fn answer(&mut self, completion: &mut Completion, cx: &mut Cx<'_>) {
        let Some(slot) = self.tasks.of_cookie(completion.owner.cookie) else { return };
        let Some(task) = self.tasks.at(slot) else { return };
        if let Some(gather) = task.out.take() {
            // It ended while it still waited for data: aborted.
            cx.engine.abandon(gather.token);
        }
        let kind = task.kind;
        let index = task.conn as usize;
        let silent = task.orphan || completion.outcome == Outcome::Silent && kind == Kind::Command;
        let answered = Answered { itt: task.itt, edtl: task.edtl, r2ts_sent: task.r2ts_sent };
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
        conn: &mut Conn,
        task: Answered,
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
        let payload =
            Payload::of(data, max, conn.digests.data, pool).filter(|payload| !payload.is_empty());
        let collapse = payload.is_some()
            && response.status == Status::GOOD
            && response.sense.is_empty()
            && response.qualifier == 0;
        let mut data_pdus = 0;
        if let Some(payload) = payload {
            self.counters().count_read(payload.len() as u64);
            data_pdus = self.send_data(conn, &payload, task.itt, collapse.then_some(residual));
            conn.output.release(payload);
        }
        if !collapse {
            let sent = task.r2ts_sent.wrapping_add(data_pdus);
            self.send_response(conn, task.itt, response, residual, sent);
        }
    }

    /// Cuts the data into Data-In PDUs; the last carries GOOD and the residual when `collapse` has
    /// one. Gives how many PDUs that were.
    fn send_data(
        &mut self,
        conn: &mut Conn,
        payload: &Payload,
        itt: u32,
        collapse: Option<Residual>,
    ) -> u32 {
        let segment = conn.send_max as usize;
        let burst = self.params.max_burst as usize;
        let (mut offset, mut in_burst, mut data_sn) = (0, 0, 0);
        while offset < payload.len() {
            let len = segment.min(payload.len() - offset).min(burst - in_burst);
            let last = offset + len == payload.len();
            in_burst += len;
            let is_final = last || in_burst == burst;
            if is_final {
                in_burst = 0;
            }
            let status = if last { collapse } else { None };
            let numbers = match status {
                Some(_) => self.status_numbers(conn),
                None => Numbers { stat_sn: 0, ..self.numbers(0) },
            };
            let pdu = DataIn {
                is_final,
                acknowledge: false,
                status: status.map(|_| Status::GOOD),
                residual: status.unwrap_or_default(),
                data_len: len as u32,
                lun: Lun::default(),
                itt,
                ttt: RESERVED_TAG,
                numbers,
                data_sn,
                offset: offset as u32,
            };
            let mut header = [0; BHS_LEN];
            pdu.emit(&mut header);
            conn.output.put_header(&header, conn.digests.header);
            conn.output.put_payload(payload, offset, len, conn.digests.data);
            offset += len;
            data_sn += 1;
        }
        data_sn
    }

    fn send_response(
        &mut self,
        conn: &mut Conn,
        itt: u32,
        response: &Response,
        residual: Residual,
        exp_data_sn: u32,
    ) {
        let sense = response.sense.as_bytes();
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
            itt,
            snack_tag: 0,
            numbers: self.status_numbers(conn),
            exp_data_sn,
            bidi_residual: Residual::None,
            residual,
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.output.put_header(&header, conn.digests.header);
        if !sense.is_empty() {
            let mut data = [0; 2 + libsrp::SENSE_MAX];
            data[..2].copy_from_slice(&(sense.len() as u16).to_be_bytes());
            data[2..data_len].copy_from_slice(sense);
            conn.output.put_data(&data[..data_len], conn.digests.data);
        }
    }

    /// Ends a command that never reached the engine.
    pub(super) fn send_check_condition(
        &mut self,
        conn: &mut Conn,
        itt: u32,
        sense: Sense,
        residual: Residual,
    ) {
        let response = Response {
            status: Status::CHECK_CONDITION,
            sense: sense.encode(false),
            ..Response::good(Tag::from_u64(u64::from(itt)))
        };
        self.send_response(conn, itt, &response, residual, 0);
    }
}
