//! How a channel ends: logout from either side, a lost connection, a later login, the target's stop.
//!
//! The initiator is told by T_LOGOUT and then disconnected, as Linux's initiator ignores the former
//! and expects the latter. When the connection is gone, what was started on the channel ends without
//! answers; with the last channel of a nexus all tasks of the nexus end, and then the nexus.

use super::{Conn, NEXUS_COOKIE};
use crate::{link::Link, registry::Left};
use libsrp::logout::LogoutReason;
use std::time::Duration;
use vscsi_target::{engine::Owner, reactor::Cx};

/// Where a channel is in its life. Times are those of [`Cx::now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepted, but not established.
    Accepting {
        /// Given up then.
        until: u64,
    },
    /// It takes requests.
    Open,
    /// It takes no more requests, and those in progress finish.
    Finishing {
        /// Logged out then at the latest.
        until: u64,
        /// What the initiator is told.
        reason: LogoutReason,
    },
    /// The initiator is being told.
    LoggingOut {
        /// Disconnected then at the latest.
        until: u64,
    },
    /// Disconnected on this side.
    Disconnecting {
        /// The other side has until then.
        until: u64,
    },
    /// The connection is gone; the tasks of the nexus are being ended.
    Quieting,
}

impl Phase {
    /// Whether requests in progress are answered.
    pub(super) fn answers(self) -> bool {
        matches!(self, Self::Open | Self::Finishing { .. })
    }

    /// When something has to be done.
    pub(super) fn until(self) -> Option<u64> {
        match self {
            Self::Accepting { until }
            | Self::Finishing { until, .. }
            | Self::LoggingOut { until }
            | Self::Disconnecting { until } => Some(until),
            Self::Open | Self::Quieting => None,
        }
    }
}

impl<L: Link> Conn<L> {
    /// How long commands in progress have when the reactor stops.
    pub fn stop_grace(&self) -> Duration {
        self.shared.limits.stop
    }

    /// Takes no more requests, lets those in progress finish within `grace`, and logs the initiator
    /// out. Asked again, only the earlier end counts.
    pub(super) fn log_out(&mut self, reason: LogoutReason, grace: Duration, cx: &mut Cx<'_>) {
        let until = cx.now.saturating_add(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX));
        match self.phase {
            Phase::Accepting { .. } => return self.close(cx),
            Phase::Open => self.phase = Phase::Finishing { until, reason },
            Phase::Finishing { until: earlier, reason } => {
                self.phase = Phase::Finishing { until: until.min(earlier), reason };
            }
            Phase::LoggingOut { .. } | Phase::Disconnecting { .. } | Phase::Quieting => return,
        }
        if let Some(until) = self.phase.until() {
            cx.wake_at(until);
        }
    }

    /// Goes on to the next phase when it is time.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Finishing { until, reason } = self.phase
            && (self.channel.is_idle() || cx.now >= until)
        {
            let unit = self.channel.logout(reason, &mut self.out);
            self.send(unit);
            let until = cx.now + self.shared.limits.close.as_nanos() as u64;
            self.phase = Phase::LoggingOut { until };
            cx.wake_at(until);
            if let Some(Err(error)) = self.link.as_mut().map(Link::flush) {
                return self.lost(&error.to_string(), cx);
            }
        }
        if let Phase::LoggingOut { until } = self.phase
            && (cx.now >= until || self.link.as_ref().is_none_or(Link::is_idle))
        {
            self.close(cx);
        }
        if let Phase::Disconnecting { until } = self.phase
            && cx.now >= until
        {
            self.end(cx);
        }
    }

    /// Disconnects, and gives the initiator time to do the same.
    pub(super) fn close(&mut self, cx: &mut Cx<'_>) {
        let Some(link) = &mut self.link else { return };
        // What was answered already is not held back.
        let _ = link.flush();
        link.disconnect();
        let until = cx.now + self.shared.limits.close.as_nanos() as u64;
        self.phase = Phase::Disconnecting { until };
        cx.wake_at(until);
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self, why: &str, cx: &mut Cx<'_>) {
        // What is incomplete then fails, of course.
        let why = match self.phase {
            Phase::LoggingOut { .. } | Phase::Disconnecting { .. } => "closed by this side",
            _ => why,
        };
        if self.link.is_some() {
            tracing::info!(
                session = self.session.id, channel = self.facts.number, peer = %self.facts.peer,
                commands = self.facts.counters.commands(), "SRP channel ended: {why}"
            );
            self.end(cx);
        }
    }

    /// Gives the connection up, and with it all memory that the device might still use.
    pub(super) fn let_go(&mut self, cx: &mut Cx<'_>) {
        if let Some(link) = self.link.take() {
            cx.unwatch(link.event_fd());
            cx.unwatch(link.completion_fd());
        }
        self.slot = None;
        self.early.clear();
        for gather in self.gathers.iter_mut().filter_map(Option::take) {
            cx.engine.abandon(gather.token);
        }
    }

    /// Ends the channel: what it started is nobody's any more.
    fn end(&mut self, cx: &mut Cx<'_>) {
        if self.phase == Phase::Quieting {
            return;
        }
        self.phase = Phase::Quieting;
        self.let_go(cx);
        cx.engine.orphan(cx.me);
        match (self.shared.registry.leave(&self.session, &self.facts), &self.nexus) {
            (Left::Nothing, Some(nexus)) => {
                let owner = Owner { endpoint: cx.me, cookie: NEXUS_COOKIE };
                cx.engine.abort_nexus(nexus, owner);
            }
            (Left::Nothing, None) => self.nexus_is_quiet(cx),
            (Left::Others, _) => {
                self.nexus = None;
                self.gone(cx);
            }
        }
    }

    /// No task of the nexus is left.
    pub(super) fn nexus_is_quiet(&mut self, cx: &mut Cx<'_>) {
        // The I_T nexus loss comes before anybody learns that the session is gone.
        self.nexus = None;
        self.shared.released(&self.session);
        self.gone(cx);
    }

    fn gone(&mut self, cx: &mut Cx<'_>) {
        self.shared.leave(self.place(cx));
        cx.close();
    }
}
