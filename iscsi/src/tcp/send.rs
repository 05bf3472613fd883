//! Data in PDUs of its own: Data-In with phase collapse, and R2Ts (RFC 7143 11.7, 11.8).

use super::Tcp;
use crate::{
    datamover::{Reading, Sent, Writing},
    output::Payload,
    pdu::{BHS_LEN, DataIn, Numbers, R2t, RESERVED_TAG},
    session::task::{Gather, MAX_R2TS, R2tState},
};
use libsrp::{Lun, Status};

impl Tcp {
    /// Cuts the data into Data-In PDUs; the last carries GOOD and the residual when there is one
    /// to collapse.
    pub(super) fn send_data(&mut self, payload: Payload, read: &Reading<()>) -> Sent {
        let segment = self.send_max as usize;
        let burst = read.max_burst as usize;
        let (mut offset, mut in_burst, mut data_sn) = (0, 0, 0);
        while offset < payload.len() {
            let len = segment.min(payload.len() - offset).min(burst - in_burst);
            let last = offset + len == payload.len();
            in_burst += len;
            let is_final = last || in_burst == burst;
            if is_final {
                in_burst = 0;
            }
            let status = if last { read.collapse } else { None };
            let numbers = match status {
                Some(_) => read.numbers,
                None => Numbers { stat_sn: 0, ..read.numbers },
            };
            let pdu = DataIn {
                is_final,
                acknowledge: false,
                status: status.map(|_| Status::GOOD),
                residual: status.unwrap_or_default(),
                data_len: len as u32,
                lun: Lun::default(),
                itt: read.itt,
                ttt: RESERVED_TAG,
                numbers,
                data_sn,
                offset: offset as u32,
            };
            let mut header = [0; BHS_LEN];
            pdu.emit(&mut header);
            self.output.put_header(&header, self.digests.header);
            self.output.put_payload(&payload, offset, len, self.digests.data);
            offset += len;
            data_sn += 1;
        }
        self.output.release(payload);
        Sent { pdus: data_sn, status: read.collapse.is_some() }
    }

    /// Asks for what was not asked for yet, a burst each, as far as R2Ts may be outstanding.
    pub(super) fn send_r2ts(&mut self, gather: &mut Gather, write: &mut Writing<'_, ()>) {
        let most = usize::from(write.max_r2ts).clamp(1, MAX_R2TS);
        let burst = write.max_burst as usize;
        while gather.asked < gather.len && gather.outstanding() < most {
            let len = burst.min(gather.len - gather.asked);
            let ttt = *write.next_ttt;
            *write.next_ttt = ttt.wrapping_add(1) % RESERVED_TAG;
            let Some(free) = gather.r2ts.iter_mut().find(|r2t| r2t.ttt == RESERVED_TAG) else {
                return;
            };
            *free = R2tState { ttt, next: gather.asked, end: gather.asked + len, data_sn: 0 };
            let r2t = R2t {
                lun: write.lun,
                itt: write.itt,
                ttt,
                numbers: write.numbers,
                r2t_sn: gather.r2t_sn,
                offset: gather.asked as u32,
                desired_len: len as u32,
            };
            gather.asked += len;
            gather.r2t_sn += 1;
            *write.r2ts_sent += 1;
            let mut header = [0; BHS_LEN];
            r2t.emit(&mut header);
            self.output.put_header(&header, self.digests.header);
        }
    }
}
