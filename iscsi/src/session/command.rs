//! SCSI Command PDUs: into the engine, in CmdSN order.

use super::{
    MAX_IMMEDIATE, Session,
    receive::{Along, Verdict},
    task::{Gather, Kind, MAX_R2TS, R2tState},
    window::Arrival,
};
use crate::{
    conn::{Conn, Sink},
    datamover::Datamover,
    pdu::{RESERVED_TAG, RejectReason, ScsiCommand, parse_ahs},
};
use libsrp::Residual;
use vscsi_target::{
    engine::{Memory, Submitted},
    reactor::Cx,
    sense::Sense,
};

/// The longest CDB: 16 bytes in the header and 244 behind it.
const MAX_CDB: usize = 260;

impl<M: Datamover> Session<M> {
    /// Takes a request's place in the order of commands. `Some` when it has to go no further.
    pub(super) fn order(&mut self, immediate: bool, cmd_sn: u32) -> Option<Verdict> {
        if immediate {
            return (self.immediate >= MAX_IMMEDIATE)
                .then_some(Verdict::Reject(RejectReason::TooManyImmediate));
        }
        match self.window.judge(cmd_sn) {
            Arrival::InOrder => {
                self.window.take();
                None
            }
            Arrival::Early => Some(Verdict::Early),
            Arrival::Ignore => Some(Verdict::Take(Sink::Discard)),
        }
    }

    pub(super) fn begin_command(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        pdu: &ScsiCommand,
        along: &Along<'_, M::Remote>,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        if let Some(verdict) = self.order(pdu.immediate, pdu.cmd_sn) {
            return verdict;
        }
        self.counters().count_command();
        let verdict = self.start_command(index, conn, pdu, along, cx);
        self.open_window();
        verdict
    }

    fn start_command(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        pdu: &ScsiCommand,
        along: &Along<'_, M::Remote>,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        let Along { ahs, data, remote } = *along;
        let ahs = match parse_ahs(ahs) {
            Ok(ahs) => ahs,
            Err(error) => {
                tracing::debug!(peer = %conn.peer, %error, "command refused");
                return Verdict::Reject(RejectReason::InvalidPduField);
            }
        };
        if pdu.itt == RESERVED_TAG {
            return Verdict::Reject(RejectReason::InvalidPduField);
        }
        if self.tasks.find(pdu.itt).is_some() {
            return Verdict::Reject(RejectReason::TaskInProgress);
        }
        if let Some(sense) = self.refuse_command(pdu, data) {
            let residual = match pdu.edtl {
                0 => Residual::None,
                edtl => Residual::Under(edtl),
            };
            self.send_check_condition(conn, pdu.itt, remote, sense, residual);
            return Verdict::Take(Sink::Discard);
        }
        let slot = self.tasks.insert(pdu.itt, index as u32, Kind::Command);
        let owner = self.owner(slot, cx);
        if let Some(task) = self.tasks.at(slot) {
            task.lun = pdu.lun;
            task.cmd_sn = pdu.cmd_sn;
            task.immediate = pdu.immediate;
            task.edtl = pdu.edtl;
            task.remote = remote;
        }
        conn.tasks += 1;
        self.immediate += u32::from(pdu.immediate);

        let mut long = [0; MAX_CDB];
        let cdb = (!ahs.extended_cdb.is_empty()).then(|| {
            let len = (16 + ahs.extended_cdb.len()).min(MAX_CDB);
            long[..16].copy_from_slice(&pdu.cdb);
            long[16..len].copy_from_slice(&ahs.extended_cdb[..len - 16]);
            &long[..len]
        });
        let mut command = pdu.command(cdb, None);
        if self.params.protocol_level < 2 {
            command.priority = 0;
        }
        let Some(nexus) = &mut self.nexus else { return Verdict::Take(Sink::Discard) };
        match cx.engine.submit(nexus, &command, Memory::Pool, owner) {
            Submitted::Accepted => Verdict::Take(Sink::Discard),
            Submitted::NeedsData(need) => {
                let gather = Gather {
                    token: need.token,
                    buffer: Some(need.buffer),
                    len: need.len,
                    received: 0,
                    unsolicited: !pdu.is_final,
                    unsolicited_len: data,
                    data_sn: 0,
                    asked: 0,
                    r2t_sn: 0,
                    r2ts: [R2tState::FREE; MAX_R2TS],
                };
                if let Some(task) = self.tasks.at(slot) {
                    task.out = Some(gather);
                }
                Verdict::Take(Sink::Task { task: owner.cookie, offset: 0 })
            }
        }
    }

    /// What the agreement of this session or this target does not allow (RFC 7143 11.4.7.2).
    fn refuse_command(&self, pdu: &ScsiCommand, data: usize) -> Option<Sense> {
        let first_burst = self.params.first_burst as usize;
        if pdu.read && pdu.write && pdu.edtl > 0 {
            // No command of a disk moves data both ways.
            return Some(Sense::INVALID_FIELD_IN_CDB);
        }
        let has_immediate = data > 0;
        let refused = has_immediate
            && (!pdu.write
                || !self.params.immediate_data
                || data > first_burst
                || data > pdu.edtl as usize)
            || !pdu.is_final && self.params.initial_r2t;
        refused.then_some(Sense::UNEXPECTED_UNSOLICITED_DATA)
    }
}
