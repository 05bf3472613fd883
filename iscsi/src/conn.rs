//! One connection in full feature phase: what the protocol keeps of it. What carries its PDUs is
//! its [`Datamover`].

use crate::{datamover::Datamover, exchange::TextExchange, login::LoggedIn};
use std::net::SocketAddr;
use vscsi_target::reactor::Cx;

/// A connection of a session.
#[derive(Debug)]
pub struct Conn<M> {
    /// What carries its PDUs.
    pub mover: M,
    /// Connection identifier.
    pub cid: u16,
    /// The peer as the transport names it.
    pub peer: String,
    /// Next StatSN.
    pub stat_sn: u32,
    /// Data segments that are handled as a whole (text, ping data).
    pub collected: Vec<u8>,
    /// Since when (ns) a request waits for earlier ones, and there is no room to keep it.
    pub stalled: Option<u64>,
    /// When something was received last (ns).
    pub heard: u64,
    /// A NOP-In was sent and has to be answered by then (ns).
    pub ping_due: Option<u64>,
    /// Its text negotiation.
    pub text: TextExchange,
    /// The address it came to.
    pub local: SocketAddr,
    /// Tasks of this connection in progress.
    pub tasks: u32,
    /// What becomes of the connection.
    pub fate: Fate,
    /// It was logged out, so that its end is not the session's.
    pub logged_out: bool,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Open,
    /// Logged out: the response is sent when its tasks have ended.
    LogoutWhenIdle {
        /// Initiator task tag of the request.
        itt: u32,
    },
    /// Closes when everything is sent; input is ignored.
    CloseWhenSent,
    /// Everything is sent and our side is shut; the peer may close until then (ns).
    Lingering {
        /// Until then.
        until: u64,
    },
    /// Broken: nothing more is sent.
    Broken,
}

/// Where a data segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Into the buffer of a task from `offset` on; bytes past its end are dropped.
    Task {
        /// Cookie of the task.
        task: u64,
        /// Where the next byte goes.
        offset: usize,
    },
    /// Into [`Conn::collected`].
    Collect,
    /// Into [`Conn::collected`] behind its additional header segments: its turn has not come yet.
    Early,
    /// Nowhere.
    Discard,
}

impl<M: Datamover> Conn<M> {
    /// A connection that has just finished its login.
    pub fn new(mover: M, login: &LoggedIn, peer: String, local: SocketAddr, now: u64) -> Box<Self> {
        Box::new(Self {
            mover,
            cid: login.cid,
            peer,
            stat_sn: login.stat_sn,
            collected: Vec::new(),
            stalled: None,
            heard: now,
            ping_due: None,
            text: TextExchange::new(),
            local,
            tasks: 0,
            fate: Fate::Open,
            logged_out: false,
        })
    }

    /// StatSN for a PDU that carries status: it advances.
    pub fn next_stat_sn(&mut self) -> u32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        stat_sn
    }

    /// The peer gave a sign of life.
    pub fn heard(&mut self, now: u64) {
        self.heard = now;
        self.ping_due = None;
    }

    /// Whether what comes in is acted on.
    pub fn takes_requests(&self) -> bool {
        matches!(self.fate, Fate::Open | Fate::LogoutWhenIdle { .. })
    }

    /// Whether input is wanted and there is room for its answers.
    pub fn reads(&self) -> bool {
        self.wants_input() && !self.mover.is_congested()
    }

    fn wants_input(&self) -> bool {
        match self.fate {
            Fate::Open | Fate::LogoutWhenIdle { .. } => self.stalled.is_none(),
            Fate::Lingering { .. } => true,
            Fate::CloseWhenSent | Fate::Broken => false,
        }
    }

    /// Sends what waits and watches for what is needed next.
    pub fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Err(error) = self.mover.flush(self.wants_input(), cx) {
            tracing::debug!(peer = %self.peer, %error, "sending failed");
            self.fate = Fate::Broken;
        }
    }
}
