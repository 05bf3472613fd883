//! What a session needs of the connections it is made of: the seam between the iSCSI layer and
//! what carries its PDUs (RFC 7145 1.1 calls it the datamover).
//!
//! [`crate::tcp::Tcp`] is the one of RFC 7143; iSER has another in its own crate. Sessions,
//! connections and logins are generic over it, so that the protocol is the same code for both and
//! nothing is dispatched at run time.

use crate::{
    conn::Conn,
    negotiate::{Parameters, SessionType},
    output::Payload,
    pdu::{Bhs, Numbers},
    session::{Joining, Session, task::Gather},
};
use libsrp::{Lun, Residual};
use std::{fmt, io};
use vscsi_target::reactor::Cx;

/// Carries the PDUs and the data of one connection.
pub trait Datamover: Sized + fmt::Debug + 'static {
    /// What a connection arrives as, on its way to the reactor that takes it.
    type Link: Send + fmt::Debug + 'static;

    /// Memory of the initiator that it advertised with a command. The task keeps it.
    type Remote: Copy + Default + fmt::Debug;

    /// How many descriptors of a connection are watched.
    const SOURCES: u32;

    /// They tell of input all the time, and not only between [`Datamover::rest`] and the next event.
    const ALWAYS_TELLS: bool;

    /// Takes a connection over, nothing of which is watched yet.
    ///
    /// # Errors
    /// The connection cannot be used; the peer is told where that is possible.
    fn open(link: Self::Link, cx: &mut Cx<'_>) -> io::Result<Self>;

    /// Starts to watch its descriptors as `source` and those that follow, if it does not yet.
    ///
    /// # Errors
    /// What the poller says.
    fn watch(&mut self, source: u32, cx: &mut Cx<'_>) -> io::Result<()>;

    /// Ends the connection at once.
    fn close(self, cx: &mut Cx<'_>);

    /// In login: receives what has come. True if that was anything.
    ///
    /// # Errors
    /// The peer is gone, or sent more than a login takes.
    fn fill(&mut self, cx: &mut Cx<'_>) -> io::Result<bool>;

    /// In login: the next PDU that is there as a whole, with its data segment put into `data`.
    ///
    /// # Errors
    /// It is none that may come in login.
    fn login_pdu(&mut self, data: &mut Vec<u8>) -> io::Result<Option<Bhs>>;

    /// The final Login Response was put, and what was agreed on is in force behind it.
    ///
    /// # Errors
    /// What the connection needs in full feature phase is not there.
    fn enter(&mut self, agreed: &Parameters, kind: SessionType, cx: &mut Cx<'_>) -> io::Result<()>;

    /// What is needed to hand a connection in login over to another reactor. `None` where a session
    /// has one connection only.
    fn detach(self, _cx: &mut Cx<'_>) -> Option<Detached> {
        None
    }

    /// A connection joins the session.
    fn join(_session: &mut Session<Self>, _joining: Joining, _cx: &mut Cx<'_>) {}

    /// One of its descriptors is ready: the `source` it was watched as, from 0 on.
    fn ready(&mut self, _source: u32) {}

    /// Receives what the connection has and gives it to the session; true if there was anything.
    /// The connection is taken out of the session meanwhile.
    fn receive(
        session: &mut Session<Self>,
        index: usize,
        conn: &mut Conn<Self>,
        cx: &mut Cx<'_>,
    ) -> bool;

    /// Goes on with what was received before: behind the login, or behind a request that stalled.
    fn resume(session: &mut Session<Self>, index: usize, conn: &mut Conn<Self>, cx: &mut Cx<'_>);

    /// Whether [`Datamover::resume`] has anything to go on with.
    fn holds_input(&self) -> bool;

    /// It is not polled any more, and asks for events. True if there is work already.
    fn rest(&mut self) -> bool {
        false
    }

    /// The longest data segment of a PDU to the initiator, in bytes; at least 64.
    fn segment_max(&self) -> u32;

    /// The initiator receives segments of this length from now on (RFC 7143 13.12).
    fn set_segment_max(&mut self, _length: u32) {}

    /// Sends a PDU.
    fn put(&mut self, header: &Bhs, data: &[u8]);

    /// Sends a PDU that says that tasks are gone: no transfer of theirs is under way any more when
    /// the initiator has it.
    fn put_fenced(&mut self, header: &Bhs, data: &[u8]) {
        self.put(header, data);
    }

    /// Sends the SCSI Response of a command that came with `remote`. `fenced` as in
    /// [`Datamover::put_fenced`]: it ended while its data was on the way.
    fn put_response(&mut self, header: &Bhs, data: &[u8], remote: &Self::Remote, fenced: bool);

    /// Whether data has to lie in memory of its own: what the backend lends is copied then.
    fn owns_data(&self) -> bool;

    /// Sends the Data-In of a command.
    fn data_in(&mut self, payload: Payload, read: &Reading<Self::Remote>) -> Sent;

    /// Fetches, or asks for, Data-Out that is still missing. Unsolicited data is complete.
    ///
    /// # Errors
    /// The initiator did not say where the data is.
    fn solicit(
        &mut self,
        gather: &mut Gather,
        write: &mut Writing<'_, Self::Remote>,
    ) -> Result<(), Unreachable>;

    /// The task of a cookie has ended: what it still has to fetch is not needed.
    fn cancel(&mut self, _cookie: u64) {}

    /// Whether nothing waits to be sent, and the peer has everything where that is known.
    fn is_empty(&self) -> bool;

    /// Whether so much waits to be sent that nothing more should be received.
    fn is_congested(&self) -> bool;

    /// Sends what waits, and watches for what is needed next: input if it is `wanted` and the
    /// connection is not congested.
    ///
    /// # Errors
    /// The connection is broken.
    fn flush(&mut self, wanted: bool, cx: &mut Cx<'_>) -> io::Result<()>;

    /// Everything is sent: lets the peer know that nothing more comes.
    fn shut(&mut self);
}

/// A connection in login, on its way to a session it joins.
#[derive(Debug)]
pub struct Detached {
    /// The socket.
    pub fd: std::os::fd::OwnedFd,
    /// Received behind the last Login Request.
    pub rest: Vec<u8>,
    /// Of the login, still to be sent.
    pub unsent: Vec<u8>,
}

/// The command that Data-In belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Reading<R> {
    /// Initiator task tag.
    pub itt: u32,
    /// Memory that came with the command.
    pub remote: R,
    /// The status is GOOD with nothing but this residual, and may go along with the last data.
    pub collapse: Option<Residual>,
    /// Sequence numbers; StatSN is the next one.
    pub numbers: Numbers,
    /// MaxBurstLength in bytes.
    pub max_burst: u32,
}

/// What became of Data-In.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Data-In PDUs sent.
    pub pdus: u32,
    /// The status went along and used up a StatSN.
    pub status: bool,
}

/// The command that Data-Out is missing of.
#[derive(Debug)]
pub struct Writing<'a, R> {
    /// Cookie of the task.
    pub cookie: u64,
    /// Initiator task tag.
    pub itt: u32,
    /// The logical unit addressed.
    pub lun: Lun,
    /// Memory that came with the command.
    pub remote: R,
    /// Sequence numbers; StatSN is the next one.
    pub numbers: Numbers,
    /// MaxBurstLength in bytes.
    pub max_burst: u32,
    /// MaxOutstandingR2T.
    pub max_r2ts: u16,
    /// R2Ts sent for the command so far.
    pub r2ts_sent: &'a mut u32,
    /// The next target transfer tag.
    pub next_ttt: &'a mut u32,
}

/// Data-Out is missing and the initiator did not say where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;
