//! How a session ends: logout, loss of a connection, reinstatement, kick, stop.

use super::{NEXUS_COOKIE, Session, receive::Verdict};
use crate::{
    conn::{Conn, Fate, Sink},
    datamover::Datamover,
    pdu::{
        AsyncEvent, BHS_LEN, LogoutOutcome, LogoutReason, LogoutRequest, LogoutResponse,
        RejectReason,
    },
};
use std::time::Duration;
use vscsi_target::{engine::Owner, reactor::Cx};

/// How long the peer has to close after our side was shut.
const LINGER: Duration = Duration::from_secs(1);

/// Where a session is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is alive.
    No,
    /// Its tasks are being ended; then the logout, if one was asked for, is answered.
    Quieting {
        /// Connection and initiator task tag of a Logout Request.
        logout: Option<(usize, u32)>,
    },
    /// Nothing of it is left in the core.
    Quiet,
}

impl<M: Datamover> Session<M> {
    pub(super) fn begin_logout(
        &mut self,
        index: usize,
        conn: &mut Conn<M>,
        pdu: &LogoutRequest,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        if let Some(verdict) = self.order(pdu.immediate, pdu.cmd_sn) {
            return verdict;
        }
        self.open_window();
        let alone = self.conns.iter().flatten().next().is_none();
        match pdu.reason {
            LogoutReason::CloseSession => self.logout_session(index, conn, pdu.itt, cx),
            LogoutReason::CloseConnection if pdu.cid == conn.cid => {
                if alone {
                    self.logout_session(index, conn, pdu.itt, cx);
                } else {
                    self.orphan_tasks(index, cx);
                    conn.tasks = self.tasks_of(index);
                    conn.fate = Fate::LogoutWhenIdle { itt: pdu.itt };
                }
            }
            LogoutReason::CloseConnection => {
                let outcome = self.logout_other(pdu.cid, cx);
                self.send_logout(conn, pdu.itt, outcome);
            }
            LogoutReason::RemoveForRecovery => {
                self.send_logout(conn, pdu.itt, LogoutOutcome::RecoveryNotSupported);
            }
            LogoutReason::Unknown(_) => return Verdict::Reject(RejectReason::InvalidPduField),
        }
        Verdict::Take(Sink::Discard)
    }

    fn logout_session(&mut self, index: usize, conn: &mut Conn<M>, itt: u32, cx: &mut Cx<'_>) {
        conn.logged_out = true;
        // The response waits until nothing of the session is in progress.
        conn.fate = Fate::LogoutWhenIdle { itt };
        for other in self.conns.iter_mut().flatten() {
            other.logged_out = true;
            other.fate = Fate::CloseWhenSent;
        }
        self.quiet(Some((index, itt)), cx);
    }

    fn logout_other(&mut self, cid: u16, cx: &mut Cx<'_>) -> LogoutOutcome {
        let found =
            self.conns.iter().position(|conn| conn.as_ref().is_some_and(|conn| conn.cid == cid));
        let Some(other) = found else { return LogoutOutcome::CidNotFound };
        self.orphan_tasks(other, cx);
        if let Some(Some(conn)) = self.conns.get_mut(other) {
            conn.logged_out = true;
            conn.fate = Fate::CloseWhenSent;
        }
        LogoutOutcome::Closed
    }

    fn send_logout(&mut self, conn: &mut Conn<M>, itt: u32, response: LogoutOutcome) {
        let pdu = LogoutResponse {
            response,
            itt,
            numbers: self.status_numbers(conn),
            time2wait: self.params.time2wait,
            time2retain: 0,
        };
        let mut header = [0; BHS_LEN];
        pdu.emit(&mut header);
        conn.mover.put_fenced(&header, &[]);
    }

    /// The connection's tasks are nobody's any more: those that wait for data end now, the others
    /// without an answer.
    pub(super) fn orphan_tasks(&mut self, index: usize, cx: &mut Cx<'_>) {
        for slot in 0..self.tasks.slots() {
            let Some(task) = self.tasks.at(slot).filter(|task| task.conn as usize == index) else {
                continue;
            };
            task.orphan = true;
            if let Some(gather) = task.out.take() {
                self.abandon(gather, self.tasks.cookie(slot), cx);
                self.forget(slot);
            }
        }
    }

    fn tasks_of(&self, index: usize) -> u32 {
        self.tasks.iter().filter(|(_, task)| task.conn as usize == index).count() as u32
    }

    /// Ends every task of the session in the core.
    fn quiet(&mut self, logout: Option<(usize, u32)>, cx: &mut Cx<'_>) {
        match &mut self.ending {
            Ending::No => {}
            Ending::Quieting { .. } | Ending::Quiet => return,
        }
        self.ending = Ending::Quieting { logout };
        self.facts.set_closing();
        for index in 0..self.conns.len() {
            self.orphan_tasks(index, cx);
        }
        let owner = Owner { endpoint: cx.me, cookie: NEXUS_COOKIE };
        match &mut self.nexus {
            Some(nexus) => cx.engine.abort_nexus(nexus, owner),
            // Without a nexus nothing can be in progress; settle() finds it so.
            None => self.ending = Ending::Quieting { logout },
        }
    }

    /// No task of the nexus is left.
    pub(super) fn nexus_is_quiet(&mut self, cx: &mut Cx<'_>) {
        let Ending::Quieting { logout } = self.ending else { return };
        self.ending = Ending::Quiet;
        for slot in 0..self.tasks.slots() {
            if let Some(gather) = self.tasks.at(slot).and_then(|task| task.out.take()) {
                self.abandon(gather, self.tasks.cookie(slot), cx);
            }
            self.forget(slot);
        }
        // The I_T nexus loss comes before anybody learns that the session is gone.
        self.nexus = None;
        self.shared.released(&self.facts);
        if let Some((index, itt)) = logout
            && let Some(mut conn) = self.lift(index)
        {
            self.send_logout(&mut conn, itt, LogoutOutcome::Closed);
            conn.fate = Fate::CloseWhenSent;
            self.put_back(index, conn);
        }
    }

    /// Ends the session at once: a connection was lost, or the session is replaced.
    pub fn end(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.conns.len() {
            let lingers = matches!(
                self.conns[index].as_ref().map(|conn| conn.fate),
                Some(Fate::Lingering { .. })
            );
            if !lingers {
                self.close_conn(index, cx);
            }
        }
        self.quiet(None, cx);
    }

    /// Tells the initiator that the session is dropped, and drops it.
    pub fn drop_session(&mut self) {
        for index in 0..self.conns.len() {
            let Some(mut conn) = self.lift(index) else { continue };
            if conn.fate == Fate::Open {
                let wait = self.params.time2wait;
                self.send_async(&mut conn, AsyncEvent::SessionDrop, [0, wait, 0]);
                conn.fate = Fate::CloseWhenSent;
            }
            self.put_back(index, conn);
        }
    }

    /// How long the initiator has to log out when the reactor stops.
    pub fn stop_grace(&self) -> Duration {
        self.shared.limits.stop
    }

    /// Asks the initiator to log out within `grace`, after which the session is dropped. Asked
    /// again, only the earlier end counts.
    pub fn request_logout(&mut self, grace: Duration, cx: &mut Cx<'_>) {
        if let Some(earlier) = self.grace {
            let until = earlier.min(cx.now + grace.as_nanos() as u64);
            self.grace = Some(until);
            self.schedule_at(until, cx);
            return;
        }
        let seconds = u16::try_from(grace.as_secs()).unwrap_or(u16::MAX);
        for index in 0..self.conns.len() {
            let Some(mut conn) = self.lift(index) else { continue };
            if conn.fate == Fate::Open {
                self.send_async(&mut conn, AsyncEvent::LogoutRequest, [0, 0, seconds]);
            }
            self.put_back(index, conn);
        }
        let until = cx.now + grace.as_nanos() as u64;
        self.grace = Some(until);
        self.schedule_at(until, cx);
    }

    /// Draws the conclusions from what happened to the connections.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>) {
        let mut lost = false;
        for index in 0..self.conns.len() {
            let Some(mut conn) = self.lift(index) else { continue };
            if let Fate::LogoutWhenIdle { itt } = conn.fate
                && self.ending == Ending::No
                && conn.tasks == 0
            {
                conn.logged_out = true;
                self.send_logout(&mut conn, itt, LogoutOutcome::Closed);
                conn.fate = Fate::CloseWhenSent;
            }
            if conn.fate == Fate::CloseWhenSent && conn.mover.is_empty() {
                conn.mover.shut();
                let until = cx.now + LINGER.as_nanos() as u64;
                conn.fate = Fate::Lingering { until };
                self.schedule_at(until, cx);
                lost |= !conn.logged_out;
                conn.flush(cx);
            }
            if conn.fate == Fate::CloseWhenSent && conn.ping_due.is_none() {
                // A peer that does not read must not keep the session.
                let due = cx.now + self.shared.limits.ping_answer.as_nanos() as u64;
                conn.ping_due = Some(due);
                self.schedule_at(due, cx);
            }
            let broken = conn.fate == Fate::Broken;
            lost |= broken && !conn.logged_out;
            self.put_back(index, conn);
            if broken {
                self.orphan_tasks(index, cx);
                self.close_conn(index, cx);
            }
        }
        let alone = self.conns.iter().all(Option::is_none);
        if self.ending == Ending::No && (lost || alone) {
            // Level 0: the loss of one connection is the loss of the session (RFC 7143 7.1.5).
            self.end(cx);
        }
        if self.nexus.is_none() && matches!(self.ending, Ending::Quieting { .. }) {
            self.nexus_is_quiet(cx);
            self.flush_all(cx);
        }
        if self.ending == Ending::Quiet && self.conns.iter().all(Option::is_none) {
            self.shared.leave(self.place(cx));
            cx.close();
        }
    }
}
