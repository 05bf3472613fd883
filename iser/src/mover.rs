//! The datamover: control-type PDUs in messages, Data-In by RDMA Write, Data-Out by RDMA Read.

use crate::{
    greeting::Abilities,
    header::{HEADER_LEN, Header, HelloReply, Tags},
    memory::{Memory, Owned},
    message::{AHS_AT, MAX_AHS, Malformed, Message, Pdu},
    source::Covers,
    verbs::{Done, Verbs},
};
use iscsi::{
    conn::{Conn, Fate},
    datamover::{Datamover, Reading, Sent, Unreachable, Writing},
    negotiate::{DEFAULT_MRDSL, Parameters, RdmaPreferences, SessionType},
    output::{Owned as Kept, Payload},
    pdu::{BHS_LEN, Bhs},
    session::{Session, receive::Along, task::Gather},
};
use rdma::{Connection, Event, Remote, SendFlags, Setup};
use std::{collections::VecDeque, io};
use vscsi_target::reactor::{Cx, pool::Pool};

/// The longest data segment that Linux has room for in full feature phase, whatever it says by
/// InitiatorRecvDataSegmentLength.
pub const SEGMENT_MAX: u32 = 128;

/// Work that may wait to be posted. All commands of a session make less; more means that the peer
/// asks without taking the answers.
const MOST_QUEUED: usize = 1 << 16;

/// Receive buffers beside those for commands and unexpected PDUs: answers to pings, a login.
const SPARE_RECEIVES: u32 = 8;

/// Messages beside the answers to commands: rejects, pings, task management.
const SPARE_SENDS: u32 = 32;

/// A connection on its way to the reactor that takes it.
#[derive(Debug)]
pub struct Link<R> {
    /// The peer that wants to connect.
    pub request: R,
    /// By what is not declared, the memory of a write covers all of it.
    pub strict: bool,
    /// Receive buffers that the connections of a reactor share.
    pub shared_receives: Option<u32>,
    /// Commands in progress in a session.
    pub window: u32,
    /// What will be negotiated.
    pub wanted: RdmaPreferences,
}

/// A connection.
#[derive(Debug)]
pub struct Iser<V: Verbs = Connection<Owned>> {
    verbs: V,
    pool: Pool,
    strict: bool,
    /// Both sides let memory be invalidated with a response.
    invalidates: bool,
    covers: Covers,
    /// Longest data segment to the initiator, in bytes.
    segment_max: u32,
    /// Longest data segment to the target, in bytes.
    recv_max: u32,
    /// A Hello may come first.
    hello: bool,
    watched: bool,
    /// The connection manager has something to say.
    eventful: bool,
    shut: bool,
    /// Why nothing can be sent any more.
    broken: Option<io::Error>,
    /// Received in login and not looked at.
    waiting: VecDeque<(V::Buffer, usize)>,
    /// Reused.
    done: Vec<V::Done>,
}

impl<V: Verbs> Iser<V> {
    fn setup(link: &Link<V::Request>, reactor: u16) -> Setup {
        let receives = link.window + link.wanted.unexpected_pdus + SPARE_RECEIVES;
        let segment = link.wanted.recv_data_segment.max(DEFAULT_MRDSL);
        let messages = link.window + SPARE_SENDS;
        Setup {
            receives,
            receive_size: (AHS_AT + MAX_AHS) as u32 + segment,
            sends: 2 * messages,
            send_slots: u16::try_from(messages).unwrap_or(u16::MAX),
            send_size: (HEADER_LEN + BHS_LEN) as u32 + SEGMENT_MAX,
            vector: reactor.into(),
            shared_receives: link.shared_receives,
        }
    }

    fn new(verbs: V, theirs: Abilities, strict: bool, pool: Pool) -> Self {
        Self {
            verbs,
            pool,
            strict,
            invalidates: theirs.invalidate,
            covers: Covers::of(None, strict),
            segment_max: DEFAULT_MRDSL,
            recv_max: DEFAULT_MRDSL,
            hello: false,
            watched: false,
            eventful: false,
            shut: false,
            broken: None,
            waiting: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Looks at what the connection manager says.
    fn events(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.eventful) {
            return Ok(());
        }
        while let Some(event) = self.verbs.event() {
            let (kind, why) = match event {
                Event::Established => continue,
                Event::Disconnected => (io::ErrorKind::ConnectionReset, "disconnected".to_owned()),
                Event::Removed => (io::ErrorKind::NotFound, "the device was removed".to_owned()),
                Event::AddressChange => {
                    (io::ErrorKind::AddrNotAvailable, "the peer's address moved".to_owned())
                }
                Event::Failed(why) => (io::ErrorKind::ConnectionAborted, why),
            };
            return Err(io::Error::new(kind, why));
        }
        Ok(())
    }

    fn parse(&self, buffer: &V::Buffer, len: usize) -> Result<Message, Malformed> {
        self.verbs.received(buffer, len, |bytes| Message::parse(bytes, self.recv_max))
    }

    fn send(&mut self, header: &Bhs, data: &[u8], flags: SendFlags) {
        let mut first = [0; HEADER_LEN];
        Header::Control(Tags::default()).emit(&mut first);
        let pad = &[0; 3][..data.len().wrapping_neg() & 3];
        let parts: [&[u8]; 4] = [&first, header, data, pad];
        if let Err(too_long) = self.verbs.send(&parts, flags) {
            self.send_long(&parts, too_long.len, flags);
        }
    }

    /// A message of login or discovery, which no slot is large enough for.
    fn send_long(&mut self, parts: &[&[u8]], len: usize, flags: SendFlags) {
        let mut memory = match self.pool.take(len) {
            Some(buffer) => Memory::Pool(buffer),
            None => Memory::Heap(vec![0; len].into_boxed_slice()),
        };
        let mut room = memory.bytes_mut();
        for part in parts {
            let (here, rest) = room.split_at_mut(part.len().min(room.len()));
            here.copy_from_slice(&part[..here.len()]);
            room = rest;
        }
        match self.verbs.own(memory) {
            Ok(owner) => self.verbs.send_owned(owner, len, flags),
            Err(error) => self.broke(error),
        }
    }

    fn greet(&mut self, reads: u16) {
        let reply = HelloReply {
            reject: false,
            max_version: VERSION,
            version: VERSION,
            reads: reads.min(self.verbs.reads_at_once().into()),
        };
        let mut bytes = [0; HEADER_LEN];
        Header::HelloReply(reply).emit(&mut bytes);
        // A header fits into any slot.
        let _ = self.verbs.send(&[&bytes], SendFlags::default());
    }

    fn broke(&mut self, error: io::Error) {
        self.broken.get_or_insert(error);
    }

    /// Gives a message to the session.
    fn message(
        session: &mut Session<Self>,
        index: usize,
        conn: &mut Conn<Self>,
        buffer: &V::Buffer,
        len: usize,
        cx: &mut Cx<'_>,
    ) {
        if !conn.takes_requests() {
            return;
        }
        let pdu = match conn.mover.parse(buffer, len) {
            Ok(Message::Pdu(pdu)) => pdu,
            Ok(Message::Hello(hello)) if std::mem::take(&mut conn.mover.hello) => {
                return conn.mover.greet(hello.reads);
            }
            Ok(Message::Hello(_)) => {
                tracing::debug!(peer = %conn.peer, "a Hello that was not agreed on");
                conn.fate = Fate::Broken;
                return;
            }
            Err(error) => {
                tracing::debug!(peer = %conn.peer, %error, "malformed message");
                conn.fate = Fate::Broken;
                return;
            }
        };
        conn.mover.hello = false;
        let Pdu { tags, header, ahs, data } = pdu;
        let mut extra = [0; MAX_AHS];
        if ahs > 0 {
            conn.mover.verbs.received(buffer, len, |bytes| {
                extra[..ahs].copy_from_slice(&bytes[AHS_AT..AHS_AT + ahs]);
            });
        }
        let along = Along { ahs: &extra[..ahs], data: data.len(), remote: tags };
        let Some(sink) = session.admit(index, conn, &header, &along, cx) else { return };
        if !data.is_empty() {
            let Conn { mover, collected, .. } = &mut *conn;
            mover.verbs.received(buffer, len, |bytes| {
                session.deliver(sink, collected, &bytes[data]);
            });
        }
        session.finish(conn, &header, sink, tags, cx);
    }
}

impl<V: Verbs> Datamover for Iser<V> {
    type Link = Link<V::Request>;
    type Remote = Tags;

    const SOURCES: u32 = 2;
    const ALWAYS_TELLS: bool = false;

    fn open(link: Self::Link, cx: &mut Cx<'_>) -> io::Result<Self> {
        let (setup, strict) = (Self::setup(&link, cx.reactor), link.strict);
        let (verbs, theirs) = V::accept(link.request, &setup)?;
        Ok(Self::new(verbs, theirs, strict, cx.engine.pool.clone()))
    }

    fn watch(&mut self, source: u32, cx: &mut Cx<'_>) -> io::Result<()> {
        if !self.watched {
            let [events, completions] = self.verbs.descriptors();
            cx.watch(events, source, true, false)?;
            self.watched = true;
            cx.watch(completions, source + 1, true, false)?;
        }
        Ok(())
    }

    fn close(self, cx: &mut Cx<'_>) {
        if self.watched {
            for descriptor in self.verbs.descriptors() {
                cx.unwatch(descriptor);
            }
        }
    }

    fn fill(&mut self, _cx: &mut Cx<'_>) -> io::Result<bool> {
        self.events()?;
        let mut done = std::mem::take(&mut self.done);
        let any = self.verbs.poll(&mut done);
        let mut result = Ok(any);
        for one in done.drain(..) {
            match V::done(one) {
                Done::Received { buffer, len } => self.waiting.push_back((buffer, len)),
                Done::Read { .. } => {}
                Done::Broken(error) => result = Err(io::Error::other(error)),
            }
        }
        self.done = done;
        result
    }

    fn login_pdu(&mut self, data: &mut Vec<u8>) -> io::Result<Option<Bhs>> {
        let Some((buffer, len)) = self.waiting.pop_front() else { return Ok(None) };
        let result = match self.parse(&buffer, len) {
            Ok(Message::Pdu(pdu)) => {
                data.clear();
                self.verbs.received(&buffer, len, |bytes| data.extend_from_slice(&bytes[pdu.data]));
                Ok(Some(pdu.header))
            }
            Ok(Message::Hello(_)) => Err(io::Error::other("a Hello in login")),
            Err(error) => Err(io::Error::other(error)),
        };
        self.verbs.repost(buffer);
        result
    }

    fn enter(&mut self, agreed: &Parameters, kind: SessionType, _: &mut Cx<'_>) -> io::Result<()> {
        let rdma = &agreed.rdma;
        (self.segment_max, self.recv_max) = match kind {
            SessionType::Normal => (SEGMENT_MAX.min(rdma.initiator_recv), rdma.target_recv),
            SessionType::Discovery => {
                (DEFAULT_MRDSL.min(agreed.initiator_mrdsl), agreed.target_mrdsl)
            }
        };
        self.covers = Covers::of(rdma.tagged_is_solicited, self.strict);
        self.hello = rdma.hello_required;
        Ok(())
    }

    fn ready(&mut self, source: u32) {
        match source {
            0 => self.eventful = true,
            _ => self.verbs.notified(),
        }
    }

    fn receive(
        session: &mut Session<Self>,
        index: usize,
        conn: &mut Conn<Self>,
        cx: &mut Cx<'_>,
    ) -> bool {
        if let Err(error) = conn.mover.events() {
            tracing::debug!(peer = %conn.peer, %error, "connection ended");
            conn.fate = Fate::Broken;
            return true;
        }
        let mut done = std::mem::take(&mut conn.mover.done);
        let any = conn.mover.verbs.poll(&mut done);
        for one in done.drain(..) {
            match V::done(one) {
                Done::Received { buffer, len } => {
                    conn.heard(cx.now);
                    Self::message(session, index, conn, &buffer, len, cx);
                    conn.mover.verbs.repost(buffer);
                }
                Done::Read { cookie, owner } => {
                    if let Memory::Pool(buffer) = V::disown(owner) {
                        session.fetched(conn, cookie, buffer, cx);
                    }
                }
                Done::Broken(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "connection lost");
                    conn.fate = Fate::Broken;
                }
            }
        }
        conn.mover.done = done;
        any
    }

    fn resume(session: &mut Session<Self>, index: usize, conn: &mut Conn<Self>, cx: &mut Cx<'_>) {
        while let Some((buffer, len)) = conn.mover.waiting.pop_front() {
            Self::message(session, index, conn, &buffer, len, cx);
            conn.mover.verbs.repost(buffer);
        }
    }

    fn holds_input(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn rest(&mut self) -> bool {
        self.verbs.arm()
    }

    fn segment_max(&self) -> u32 {
        self.segment_max
    }

    fn put(&mut self, header: &Bhs, data: &[u8]) {
        self.send(header, data, SendFlags::default());
    }

    fn put_fenced(&mut self, header: &Bhs, data: &[u8]) {
        self.send(header, data, SendFlags { fence: true, ..SendFlags::default() });
    }

    fn put_response(&mut self, header: &Bhs, data: &[u8], remote: &Tags, fence: bool) {
        let invalidate = match self.invalidates {
            true => remote.read.or(remote.write).map(|tag| tag.key),
            false => None,
        };
        self.send(header, data, SendFlags { invalidate, fence, solicited: false });
    }

    fn owns_data(&self) -> bool {
        true
    }

    fn data_in(&mut self, payload: Payload, read: &Reading<Tags>) -> Sent {
        let sent = Sent { pdus: 0, status: false };
        let Some(tag) = read.remote.read else {
            self.broke(io::Error::other("a read without memory for its data"));
            return sent;
        };
        let len = payload.len();
        let memory = match payload.into_parts() {
            (_, Kept::Pooled(buffer)) => Memory::Pool(buffer),
            (_, Kept::Heap(bytes)) => Memory::Heap(bytes),
            // Lent memory is copied, since `owns_data` says so.
            (_, Kept::Lent(_) | Kept::Copies(_)) => return sent,
        };
        match self.verbs.own(memory) {
            // No command moves 4 GiB: its length has 32 bits.
            Ok(owner) => {
                let remote = Remote { addr: tag.base, key: tag.key, len: len as u32 };
                self.verbs.write(owner, len, remote);
            }
            Err(error) => self.broke(error),
        }
        sent
    }

    fn solicit(
        &mut self,
        gather: &mut Gather,
        write: &mut Writing<'_, Tags>,
    ) -> Result<(), Unreachable> {
        let Some(buffer) = gather.buffer.take() else { return Ok(()) };
        let tag = write.remote.write.ok_or(Unreachable)?;
        let offset = gather.received;
        let len = gather.len.saturating_sub(offset) as u32;
        let remote = self
            .covers
            .source(tag, gather.unsolicited_len as u64, offset as u64, len)
            .ok_or(Unreachable)?;
        gather.asked = gather.len;
        match self.verbs.own(Memory::Pool(buffer)) {
            Ok(owner) => {
                if let Some(owner) = self.verbs.read(owner, offset, remote, write.cookie)
                    && let Memory::Pool(buffer) = V::disown(owner)
                {
                    gather.buffer = Some(buffer);
                }
            }
            Err(error) => self.broke(error),
        }
        Ok(())
    }

    fn cancel(&mut self, cookie: u64) {
        self.verbs.cancel(cookie);
    }

    fn is_empty(&self) -> bool {
        self.verbs.is_idle()
    }

    fn is_congested(&self) -> bool {
        self.verbs.queued() > MOST_QUEUED
    }

    fn flush(&mut self, _wanted: bool, _cx: &mut Cx<'_>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if self.shut {
            return Ok(());
        }
        if self.is_congested() {
            return Err(io::Error::other("the initiator does not take its answers"));
        }
        self.verbs.flush().map_err(io::Error::other)
    }

    fn shut(&mut self) {
        self.shut = true;
        self.verbs.disconnect();
    }
}

/// The version of iSER in a Hello (RFC 7145 9.3).
const VERSION: u8 = 10;

#[cfg(test)]
mod tests;
