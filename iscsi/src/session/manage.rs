//! Task management functions and what they do to the fabric (RFC 7143 11.5, RFC 7144).

use super::{Session, receive::Verdict, task::Kind, window::before};
use crate::{
    conn::{Conn, Fate, Sink},
    datamover::Datamover,
    pdu::{
        BHS_LEN, RESERVED_TAG, RejectReason, TaskFunctionCode, TaskRequest, TaskResponse,
        TaskResponseCode,
    },
};
use libsrp::Response;
use vscsi_target::reactor::Cx;

impl<M: Datamover> Session<M> {
    pub(super) fn begin_management(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        pdu: &TaskRequest,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        if let Some(verdict) = self.order(pdu.immediate, pdu.cmd_sn) {
            return verdict;
        }
        let done = Verdict::Take(Sink::Discard);
        if pdu.itt == RESERVED_TAG {
            self.open_window();
            return Verdict::Reject(RejectReason::InvalidPduField);
        }
        if self.tasks.find(pdu.itt).is_some() {
            self.open_window();
            return Verdict::Reject(RejectReason::TaskInProgress);
        }
        if let Some(code) = self.decide_here(pdu) {
            self.open_window();
            self.send_management(conn, pdu.itt, code, [0; 3]);
            return done;
        }
        let slot = self.tasks.insert(pdu.itt, index as u32, Kind::Management(pdu.function));
        let owner = self.owner(slot, cx);
        if let Some(task) = self.tasks.at(slot) {
            task.lun = pdu.lun;
            task.cmd_sn = pdu.cmd_sn;
            task.immediate = pdu.immediate;
        }
        conn.tasks += 1;
        self.immediate += u32::from(pdu.immediate);
        self.open_window();
        if let Some(nexus) = &mut self.nexus {
            cx.engine.manage(nexus, &pdu.task_management(), owner);
        }
        done
    }

    /// What iSCSI itself answers, without the command core.
    fn decide_here(&mut self, pdu: &TaskRequest) -> Option<TaskResponseCode> {
        match pdu.function {
            // Reassignment belongs to error recovery level 2.
            TaskFunctionCode::TaskReassign => Some(TaskResponseCode::ReassignNotSupported),
            function if function.needs_protocol_level_2() && self.params.protocol_level < 2 => {
                Some(TaskResponseCode::NotSupported)
            }
            TaskFunctionCode::Unknown(_) => Some(TaskResponseCode::NotSupported),
            TaskFunctionCode::AbortTask => self.abort_unseen(pdu),
            _ => None,
        }
    }

    /// ABORT TASK of a command that is not here: not any more, or not yet (RFC 7143 11.6.1).
    fn abort_unseen(&mut self, pdu: &TaskRequest) -> Option<TaskResponseCode> {
        if let Some(slot) = self.tasks.find(pdu.referenced) {
            let is_command = self.tasks.at(slot).is_some_and(|task| task.kind == Kind::Command);
            return (!is_command).then_some(TaskResponseCode::TaskDoesNotExist);
        }
        if before(pdu.ref_cmd_sn, pdu.cmd_sn) && self.window.skip(pdu.ref_cmd_sn) {
            self.early.forget(pdu.ref_cmd_sn);
            return Some(TaskResponseCode::Complete);
        }
        Some(TaskResponseCode::TaskDoesNotExist)
    }

    /// The command core has carried a function out; tasks it ended were completed before.
    pub(super) fn answer_management(
        &mut self,
        conn: &mut Conn<M>,
        itt: u32,
        function: TaskFunctionCode,
        response: &Response,
        cx: &mut Cx<'_>,
    ) {
        let code = TaskResponseCode::from_response(response.code);
        let information = match function {
            TaskFunctionCode::QueryAsynchronousEvent => {
                let [_, a, b, c] = response.qualifier.to_be_bytes();
                [a, b, c]
            }
            _ => [0; 3],
        };
        self.send_management(conn, itt, code, information);
        if function == TaskFunctionCode::TargetColdReset && code == TaskResponseCode::Complete {
            // A cold reset ends every connection of the target (RFC 7143 11.5.1).
            conn.fate = Fate::CloseWhenSent;
            if let Some(nexus) = &self.nexus {
                self.shared.drop_sessions_of(&nexus.info().target.name, Some(self.place(cx)));
            }
        }
    }

    fn send_management(
        &mut self,
        conn: &mut Conn<M>,
        itt: u32,
        response: TaskResponseCode,
        information: [u8; 3],
    ) {
        let pdu = TaskResponse { response, information, itt, numbers: self.status_numbers(conn) };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.mover.put_fenced(&header, &[]);
    }
}
