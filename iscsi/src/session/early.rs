//! Requests that came before their turn: kept until the gap in CmdSN is filled, then delivered in
//! order (RFC 7143 4.2.2.1). Immediate requests meanwhile go on.
//!
//! What is kept is bounded by the command window and by `MAX_KEPT`; a connection whose next
//! request does not fit stalls until the gap is filled.

use super::{
    Session,
    receive::{Along, Verdict},
};
use crate::{
    conn::{Conn, Sink},
    datamover::Datamover,
    pdu::{Bhs, Opcode, initiator_task_tag, opcode, total_ahs_len},
};
use std::collections::HashMap;
use vscsi_target::reactor::Cx;

/// The most memory (bytes) that one session's early requests take.
const MAX_KEPT: usize = 1 << 20;

/// Counted for each PDU beside its additional header segments and data.
const OVERHEAD: usize = 256;

/// The early requests of a session, by CmdSN.
#[derive(Debug)]
pub struct Early<R> {
    requests: HashMap<u32, Vec<Pdu<R>>>,
    kept: usize,
}

impl<R> Default for Early<R> {
    fn default() -> Self {
        Self { requests: HashMap::new(), kept: 0 }
    }
}

/// A PDU with its additional header segments and data in one.
#[derive(Debug)]
struct Pdu<R> {
    cid: u16,
    header: Bhs,
    rest: Vec<u8>,
    /// Memory that came with it.
    remote: R,
}

impl<R> Pdu<R> {
    fn size(&self) -> usize {
        OVERHEAD + self.rest.len()
    }
}

impl<R> Early<R> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether the command of this initiator task tag is among them and its unsolicited data with
    /// it: that has to be kept too.
    pub fn awaits(&self, itt: u32) -> bool {
        !self.is_empty() && self.of_tag(itt).is_some()
    }

    /// Drops a request that shall never run.
    pub fn forget(&mut self, cmd_sn: u32) {
        for pdu in self.requests.remove(&cmd_sn).unwrap_or_default() {
            self.kept -= pdu.size();
        }
    }

    /// Where a PDU whose header is there goes; `None` when there is no room for it.
    fn sink(&self, header: &Bhs, len: usize) -> Option<Sink> {
        let is_data = opcode(header) == Opcode::DataOut;
        if !is_data && self.requests.contains_key(&cmd_sn(header)) {
            // A duplicate.
            return Some(Sink::Discard);
        }
        (self.kept + OVERHEAD + len <= MAX_KEPT).then_some(Sink::Early)
    }

    fn put(&mut self, key: u32, pdu: Pdu<R>) {
        self.kept += pdu.size();
        self.requests.entry(key).or_default().push(pdu);
    }

    fn take(&mut self, cmd_sn: u32) -> Option<Vec<Pdu<R>>> {
        // Almost always there are none.
        if self.is_empty() {
            return None;
        }
        let pdus = self.requests.remove(&cmd_sn)?;
        self.kept -= pdus.iter().map(Pdu::size).sum::<usize>();
        Some(pdus)
    }

    fn of_tag(&self, itt: u32) -> Option<u32> {
        let first = |pdus: &Vec<Pdu<R>>| {
            pdus.first().is_some_and(|pdu| initiator_task_tag(&pdu.header) == itt)
        };
        self.requests.iter().find(|(_, pdus)| first(pdus)).map(|(&cmd_sn, _)| cmd_sn)
    }

    fn of_connection(&self, cid: u16) -> Vec<u32> {
        let first = |pdus: &Vec<Pdu<R>>| pdus.first().is_some_and(|pdu| pdu.cid == cid);
        self.requests.iter().filter(|(_, pdus)| first(pdus)).map(|(&cmd_sn, _)| cmd_sn).collect()
    }
}

impl<M: Datamover> Session<M> {
    /// A PDU came before its turn: keep it, or stall its connection.
    pub(crate) fn begin_early(
        &self,
        conn: &mut Conn<M>,
        header: &Bhs,
        ahs: &[u8],
        data: usize,
    ) -> Verdict {
        match self.early.sink(header, ahs.len() + data) {
            Some(sink) => {
                if sink == Sink::Early {
                    conn.collected.extend_from_slice(ahs);
                }
                Verdict::Take(sink)
            }
            None => Verdict::Stall,
        }
    }

    /// The last byte of an early PDU has come.
    pub(super) fn finish_early(
        &mut self,
        conn: &mut Conn<M>,
        header: &Bhs,
        remote: M::Remote,
        cx: &mut Cx<'_>,
    ) {
        let rest = std::mem::take(&mut conn.collected);
        let pdu = Pdu { cid: conn.cid, header: *header, rest, remote };
        if opcode(header) == Opcode::DataOut {
            match self.early.of_tag(initiator_task_tag(header)) {
                Some(cmd_sn) => self.early.put(cmd_sn, pdu),
                // Its command was delivered while the data was on its way. Data-Out has no use for
                // the connection's index.
                None => self.replay(usize::MAX, conn, &pdu, cx),
            }
        } else if self.window.is_ahead(cmd_sn(header))
            && !self.early.requests.contains_key(&cmd_sn(header))
        {
            self.early.put(cmd_sn(header), pdu);
        }
    }

    /// Delivers what can be delivered now, and lets stalled connections go on.
    pub(super) fn catch_up(&mut self, cx: &mut Cx<'_>) {
        loop {
            let before = self.window.expected();
            while let Some(pdus) = self.early.take(self.window.expected()) {
                self.run_early(&pdus, cx);
            }
            for index in 0..self.conns.len() {
                if matches!(&self.conns[index], Some(conn) if conn.stalled.is_some()) {
                    self.resume(index, cx);
                }
            }
            if self.window.expected() == before {
                return;
            }
        }
    }

    /// The early requests of a connection that is gone will not run.
    pub(super) fn drop_early(&mut self, cid: u16) {
        for cmd_sn in self.early.of_connection(cid) {
            self.early.forget(cmd_sn);
            self.window.skip(cmd_sn);
        }
    }

    /// It is the turn of a request: its connection takes it as if it came now.
    fn run_early(&mut self, pdus: &[Pdu<M::Remote>], cx: &mut Cx<'_>) {
        let Some(first) = pdus.first() else { return };
        let expected = self.window.expected();
        let index = self
            .conns
            .iter()
            .position(|conn| conn.as_ref().is_some_and(|conn| conn.cid == first.cid));
        if let Some(index) = index
            && let Some(mut conn) = self.lift(index)
        {
            for pdu in pdus {
                if conn.takes_requests() {
                    self.replay(index, &mut conn, pdu, cx);
                }
            }
            self.put_back(index, conn);
        }
        if self.window.expected() == expected {
            self.window.skip(expected);
        }
    }

    fn replay(&mut self, index: usize, conn: &mut Conn<M>, pdu: &Pdu<M::Remote>, cx: &mut Cx<'_>) {
        let (ahs, data) = pdu.rest.split_at(total_ahs_len(&pdu.header).min(pdu.rest.len()));
        let along = Along { ahs, data: data.len(), remote: pdu.remote };
        // Another PDU of the connection may be half received.
        let mut other = std::mem::take(&mut conn.collected);
        if let Some(sink) = self.admit(index, conn, &pdu.header, &along, cx) {
            self.deliver(sink, &mut conn.collected, data);
            self.finish(conn, &pdu.header, sink, pdu.remote, cx);
        }
        std::mem::swap(&mut conn.collected, &mut other);
    }
}

fn cmd_sn(header: &Bhs) -> u32 {
    u32::from_be_bytes([header[24], header[25], header[26], header[27]])
}
