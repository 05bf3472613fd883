//! A reliable connection: one queue pair with a completion queue of its own.
#![allow(unsafe_code)] // Verbs, called with handles and lists that this value owns.

mod pair;

use std::{ffi::CStr, fmt, mem, os::fd::RawFd, sync::Arc};

use rdma_sys::{
    ibv_poll_cq, ibv_post_send, ibv_req_notify_cq, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc,
    ibv_wc_status, ibv_wr_opcode, rdma_cm_event_type, rdma_t,
};

use crate::{
    device::Device,
    error::{RdmaError, TooLong, WorkError},
    listener::{Channel, Request},
    memory::{Registered, Remote},
    queue::{Freed, Kind, SendFlags, SendQueue, Slots, Work},
    receive::{Buffer, RECEIVE, Receives, Region, Ring, SharedRing},
    table::{Table, table},
};
use pair::Pair;

/// What a connection is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Receive buffers: at least as many as the peer may send messages without an answer.
    pub receives: u32,
    /// Size of each in bytes.
    pub receive_size: u32,
    /// Depth of the send queue in work requests; less where the device has less.
    pub sends: u32,
    /// Send slots: registered memory for messages in progress.
    pub send_slots: u16,
    /// Size of each in bytes.
    pub send_size: u32,
    /// Completion vector, taken modulo what the device has: connections of one thread share one.
    pub vector: u32,
    /// Receive buffers that all connections of this thread, device and receive size share instead of
    /// having `receives` each. A peer that sends more than it may then takes buffers of others.
    pub shared_receives: Option<u32>,
}

/// What the connection manager says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both sides are connected.
    Established,
    /// The peer disconnected, or could not be reached any more.
    Disconnected,
    /// The device was removed: the connection is to be dropped soon.
    Removed,
    /// The address of the peer has moved to another device or port: the connection is not usable.
    AddressChange,
    /// The connection was never established.
    Failed(String),
}

/// What has come or ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Done<O> {
    /// A message of `len` bytes.
    Received {
        /// Where it is.
        buffer: Buffer,
        /// How long it is.
        len: usize,
    },
    /// All data of a read has come.
    Read {
        /// What the caller named it.
        cookie: u64,
        /// Where the data is.
        owner: O,
    },
    /// Nothing works any more: the connection is to be dropped.
    Broken(WorkError),
}

/// How much a connection did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// RDMA Writes.
    pub writes: u64,
    /// RDMA Reads.
    pub reads: u64,
    /// Messages sent.
    pub sends: u64,
    /// Receives posted.
    pub receives: u64,
    /// Completions of sends, writes and reads.
    pub completions: u64,
    /// Times that work was posted.
    pub doorbells: u64,
}

/// Completions taken at a time. Few, so that the peer has the first answers and goes on while this
/// side works on the next.
const BATCH: usize = 4;

/// A connection. `O` is what owns memory that data goes from or to.
///
/// Fields are dropped in order: the queue pair first, which ends all use of memory.
pub struct Connection<O: Registered> {
    pair: Pair,
    send: SendQueue<O>,
    receives: Receives,
    slots: SendSlots,
    broken: Option<WorkError>,
    /// Taken from the completion queue while it was armed.
    early: Vec<ibv_wc>,
    counters: Counters,
    // Reused lists.
    chain: Vec<Work>,
    works: Vec<ibv_send_wr>,
    gather: Vec<ibv_sge>,
}

/// Registered memory for messages.
struct SendSlots {
    region: Region,
    size: usize,
}

impl Slots for SendSlots {
    fn at(&self, slot: u16) -> (u64, u32) {
        (self.region.addr(usize::from(slot) * self.size), self.region.key())
    }

    fn fill(&mut self, slot: u16, message: &[u8]) {
        let room = self.region.bytes_mut(usize::from(slot) * self.size, self.size);
        let len = message.len().min(room.len());
        room[..len].copy_from_slice(&message[..len]);
    }
}

impl<O: Registered> Connection<O> {
    /// Makes the queues for a request and posts the receive buffers; the peer hears nothing yet.
    ///
    /// # Errors
    /// What the device does not give, with the request to reject.
    // The request is needed to tell the peer; this happens once a connection.
    #[allow(clippy::result_large_err)]
    pub fn open(request: Request, setup: &Setup) -> Result<Self, (RdmaError, Request)> {
        let device = match request.device() {
            Ok(device) => device,
            Err(error) => return Err((error, request)),
        };
        match Self::prepare(&device, setup) {
            Ok(parts) => Self::join(request, device, setup, parts),
            Err(error) => Err((error, request)),
        }
    }

    fn prepare(
        device: &Arc<Device>,
        setup: &Setup,
    ) -> Result<(&'static Table, Arc<Channel>, Receives, SendSlots), RdmaError> {
        let table = table()?;
        let most = u32::try_from(device.attributes().max_qp_wr).unwrap_or(0);
        if most < setup.receives {
            let needed = setup.receives;
            return Err(RdmaError::Limit { what: "receives of a connection", most, needed });
        }
        let receives = match setup.shared_receives {
            None => Receives::Own(Ring::new(device, setup.receives, setup.receive_size)?),
            Some(count) => Receives::Shared(SharedRing::of(
                device,
                table,
                count.max(setup.receives),
                setup.receive_size,
            )?),
        };
        let size = (setup.send_size as usize).next_multiple_of(64);
        let region = Region::new(device, size * usize::from(setup.send_slots))?;
        Ok((table, Arc::new(Channel::new()?), receives, SendSlots { region, size }))
    }

    #[allow(clippy::result_large_err)]
    fn join(
        mut request: Request,
        device: Arc<Device>,
        setup: &Setup,
        (table, channel, receives, slots): (&'static Table, Arc<Channel>, Receives, SendSlots),
    ) -> Result<Self, (RdmaError, Request)> {
        if let Err(error) = request.id.migrate(channel) {
            return Err((error, request));
        }
        let depth = pair::depth(&device, setup);
        let pair = Pair::new(table, request, device, setup, &receives)?;
        let mut connection = Self {
            // As many reads again wait in the device's queue, which starts them by itself.
            send: SendQueue::new(depth, pair.reads.saturating_mul(2), setup.send_slots),
            pair,
            receives,
            slots,
            broken: None,
            early: Vec::new(),
            counters: Counters::default(),
            chain: Vec::new(),
            works: Vec::new(),
            gather: Vec::new(),
        };
        // What cannot be posted now shows at the first flush; the peer gets no answer then.
        connection.post_receives();
        Ok(connection)
    }

    /// Accepts the peer, with private data of at most 196 bytes.
    ///
    /// # Errors
    /// The peer has gone, or the connection manager refuses.
    pub fn accept(&mut self, private: &[u8]) -> Result<(), RdmaError> {
        self.pair.accept(private, matches!(self.receives, Receives::Shared(_)))
    }

    /// Asks the peer of an id whose route is known.
    pub(crate) fn connect(&mut self, private: &[u8]) -> Result<(), RdmaError> {
        self.pair.connect(private)
    }

    pub(crate) fn channel(&self) -> &Arc<Channel> {
        &self.pair.id.channel
    }

    /// Turns the peer away, with private data of at most 148 bytes.
    pub fn reject(self, private: &[u8]) {
        self.pair.reject(private);
    }

    /// The device it goes by.
    pub fn device(&self) -> &Arc<Device> {
        &self.pair.device
    }

    /// How many RDMA Reads may be in progress at a time.
    pub fn reads_at_once(&self) -> u8 {
        self.pair.reads
    }

    /// Readable when there is something for [`Connection::event`].
    pub fn event_fd(&self) -> RawFd {
        self.pair.id.channel.fd()
    }

    /// Readable when something has come after [`Connection::arm`]: call [`Connection::notified`],
    /// then [`Connection::poll`].
    pub fn completion_fd(&self) -> RawFd {
        self.pair.completions.fd()
    }

    /// The next event of the connection manager; `None` when there is none now.
    pub fn event(&mut self) -> Option<Event> {
        let channel = Arc::clone(&self.pair.id.channel);
        loop {
            let event = channel.next(|event| event_of(event.event, event.status)).ok()??;
            match event {
                None => {}
                Some(event) => {
                    if event == Event::Removed {
                        self.pair.device.retire();
                    }
                    return Some(event);
                }
            }
        }
    }

    /// Takes the events that made [`Connection::completion_fd`] readable.
    pub fn notified(&mut self) {
        self.pair.completions.take_events();
    }

    /// Asks for an event at the next completion. True if something came meanwhile, which
    /// [`Connection::poll`] gives.
    pub fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        // SAFETY: an open queue.
        if unsafe { ibv_req_notify_cq(self.pair.completions.queue, 0) } != 0 {
            return false;
        }
        // What came before the queue was armed raises no event.
        let mut taken: [mem::MaybeUninit<ibv_wc>; BATCH] =
            [const { mem::MaybeUninit::uninit() }; BATCH];
        let count = self.take(&mut taken);
        for one in taken.into_iter().take(count) {
            // SAFETY: the first `count` were filled.
            self.early.push(unsafe { one.assume_init() });
        }
        count > 0
    }

    /// What has come or ended, put into `done`: true if there was anything. At most a batch, so that
    /// the caller answers between two of them.
    pub fn poll(&mut self, done: &mut Vec<Done<O>>) -> bool {
        let early = mem::take(&mut self.early);
        let mut any = !early.is_empty();
        for one in &early {
            self.completion(one, done);
        }
        self.early = early;
        self.early.clear();
        let mut taken: [mem::MaybeUninit<ibv_wc>; BATCH] =
            [const { mem::MaybeUninit::uninit() }; BATCH];
        let count = self.take(&mut taken);
        for one in taken.iter().take(count) {
            any = true;
            // SAFETY: the first `count` were filled.
            self.completion(unsafe { one.assume_init_ref() }, done);
        }
        any
    }

    fn take(&mut self, into: &mut [mem::MaybeUninit<ibv_wc>]) -> usize {
        let most = into.len() as i32;
        // SAFETY: an open queue, and room for `most` completions.
        let count =
            unsafe { ibv_poll_cq(self.pair.completions.queue, most, into.as_mut_ptr().cast()) };
        usize::try_from(count).unwrap_or(0).min(into.len())
    }

    fn completion(&mut self, one: &ibv_wc, done: &mut Vec<Done<O>>) {
        if one.status != ibv_wc_status::IBV_WC_SUCCESS {
            if self.broken.is_none() {
                let error = WorkError { status: one.status.cast_signed() };
                self.broken = Some(error);
                done.push(Done::Broken(error));
            }
            return;
        }
        if one.wr_id & RECEIVE != 0 {
            let buffer = Buffer(one.wr_id as u32);
            done.push(Done::Received { buffer, len: one.byte_len as usize });
            return;
        }
        self.counters.completions += 1;
        self.send.completed(one.wr_id, |freed| match freed {
            Freed::Read { cookie, owner } => done.push(Done::Read { cookie, owner }),
            Freed::Owner(_) | Freed::Slot(_) => {}
        });
    }

    /// Shows the first `len` bytes of a buffer.
    pub fn received<R>(&self, buffer: &Buffer, len: usize, look: impl FnOnce(&[u8]) -> R) -> R {
        self.receives.with(buffer, len, look)
    }

    /// Gives a receive buffer back: it is posted at the next flush.
    pub fn repost(&mut self, buffer: Buffer) {
        self.receives.give_back(buffer);
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// It is longer than a slot: see [`Connection::send_owned`].
    pub fn send(&mut self, parts: &[&[u8]], flags: SendFlags) -> Result<(), TooLong> {
        let len = parts.iter().map(|part| part.len()).sum();
        let most = self.slots.size;
        if len > most {
            return Err(TooLong { len, most });
        }
        match self.send.take_slot() {
            Some(slot) => {
                let room = self.slots.region.bytes_mut(usize::from(slot) * most, most);
                let mut at = 0;
                for part in parts {
                    room[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                self.send.send(slot, len as u32, flags);
            }
            None => self.send.send_later(parts.concat().into_boxed_slice(), flags),
        }
        Ok(())
    }

    /// Sends the first `len` bytes of the owner's memory as one message.
    pub fn send_owned(&mut self, owner: O, len: usize, flags: SendFlags) {
        self.send.send_owned(owner, len, flags);
    }

    /// Send slots that are free.
    pub fn free_slots(&self) -> usize {
        self.send.free_slots()
    }

    /// Writes `len` bytes of the owner's memory from `offset` on to the peer's, piece by piece. What
    /// is sent afterwards arrives afterwards.
    pub fn write(&mut self, owner: O, offset: usize, len: usize, remote: &[Remote]) {
        self.send.write(owner, offset, len, remote);
    }

    /// Reads `len` bytes of the peer's memory, piece by piece, into the owner's from `offset` on.
    /// [`Done::Read`] gives the owner back. Gives it back at once when there is nothing to read.
    pub fn read(
        &mut self,
        owner: O,
        offset: usize,
        len: usize,
        remote: &[Remote],
        cookie: u64,
    ) -> Option<O> {
        self.send.read(owner, offset, len, remote, cookie)
    }

    /// Posts nothing more of a read. Gives the owner if nothing was posted; otherwise [`Done::Read`]
    /// gives it when what was posted has ended, with the data incomplete.
    pub fn cancel(&mut self, cookie: u64) -> Option<O> {
        self.send.cancel(cookie)
    }

    /// Posts what waits, as far as the queue has room.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> Result<(), WorkError> {
        self.post_receives();
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.chain.clear();
        self.send.chain(&mut self.slots, &mut self.chain);
        if self.chain.is_empty() {
            return Ok(());
        }
        self.gather.clear();
        self.gather.extend(self.chain.iter().map(|work| ibv_sge {
            addr: work.addr,
            length: work.len,
            lkey: work.key,
        }));
        self.works.clear();
        let gather = self.gather.as_mut_ptr();
        for (at, work) in self.chain.iter().enumerate() {
            let request = self.request(work, gather.wrapping_add(at));
            self.works.push(request);
        }
        let first = self.works.as_mut_ptr();
        for at in 1..self.works.len() {
            self.works[at - 1].next = first.wrapping_add(at);
        }
        for work in &self.chain {
            match work.kind {
                Kind::Send(_) => self.counters.sends += 1,
                Kind::Write { .. } => self.counters.writes += 1,
                Kind::Read { .. } => self.counters.reads += 1,
            }
        }
        self.counters.doorbells += 1;
        let mut bad = std::ptr::null_mut();
        // SAFETY: an open queue pair; the lists outlive the call, and what they point to is kept by
        // `send` until a completion frees it or the queue pair is gone.
        let posted = unsafe { ibv_post_send(self.pair.raw(), first, &raw mut bad) };
        if posted != 0 {
            let error = WorkError { status: -posted.abs() };
            self.broken = Some(error);
            return Err(error);
        }
        Ok(())
    }

    fn request(&self, work: &Work, gather: *mut ibv_sge) -> ibv_send_wr {
        // SAFETY: plain numbers, pointers and unions of such.
        let mut request: ibv_send_wr = unsafe { mem::zeroed() };
        request.wr_id = work.sequence;
        request.sg_list = gather;
        request.num_sge = 1;
        let mut flags = 0;
        if work.signaled {
            flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        match work.kind {
            Kind::Send(how) => {
                request.opcode = ibv_wr_opcode::IBV_WR_SEND;
                if let Some(key) = how.invalidate {
                    request.opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_INV;
                    request.imm_data_invalidated_rkey_union.invalidated_rkey = key;
                }
                if how.fence {
                    flags |= ibv_send_flags::IBV_SEND_FENCE.0;
                }
                if how.solicited {
                    flags |= ibv_send_flags::IBV_SEND_SOLICITED.0;
                }
                if work.len <= self.pair.inline {
                    flags |= ibv_send_flags::IBV_SEND_INLINE.0;
                }
            }
            Kind::Write { addr, key } => {
                request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                request.wr.rdma = rdma_t { remote_addr: addr, rkey: key };
            }
            Kind::Read { addr, key } => {
                request.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
                request.wr.rdma = rdma_t { remote_addr: addr, rkey: key };
            }
        }
        request.send_flags = flags;
        request
    }

    fn post_receives(&mut self) {
        // SAFETY: an id with an open queue pair.
        let posted = unsafe { self.receives.post(self.pair.raw(), &mut self.counters.receives) };
        if let Err(error) = posted {
            self.broken.get_or_insert(error);
        }
    }

    /// Nothing waits, and everything posted is complete: what was sent was received.
    pub fn is_idle(&self) -> bool {
        self.send.is_idle()
    }

    /// Work that waits to be posted.
    pub fn queued(&self) -> usize {
        self.send.waiting()
    }

    /// Disconnects: what is posted and incomplete is lost. The peer hears of it; dropping the
    /// connection does the same.
    pub fn disconnect(&mut self) {
        self.pair.disconnect();
    }

    /// How much it did.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

impl<O: Registered> fmt::Debug for Connection<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("device", &self.pair.device)
            .field("broken", &self.broken)
            .field("queued", &self.queued())
            .finish_non_exhaustive()
    }
}

fn event_of(kind: rdma_cm_event_type::Type, status: i32) -> Option<Event> {
    use rdma_cm_event_type as of;
    match kind {
        of::RDMA_CM_EVENT_ESTABLISHED => Some(Event::Established),
        of::RDMA_CM_EVENT_DISCONNECTED => Some(Event::Disconnected),
        of::RDMA_CM_EVENT_DEVICE_REMOVAL => Some(Event::Removed),
        of::RDMA_CM_EVENT_ADDR_CHANGE => Some(Event::AddressChange),
        of::RDMA_CM_EVENT_CONNECT_ERROR
        | of::RDMA_CM_EVENT_UNREACHABLE
        | of::RDMA_CM_EVENT_REJECTED => {
            let reason = match status {
                ..0 => std::io::Error::from_raw_os_error(-status).to_string(),
                _ => format!("status {status}"),
            };
            Some(Event::Failed(reason))
        }
        _ => None,
    }
}

/// What rdma-core calls a completion's status.
pub(crate) fn status_text(status: u32) -> String {
    let Ok(table) = table() else { return format!("status {status}") };
    // SAFETY: takes any number, and gives a constant string.
    let text = unsafe { CStr::from_ptr((table.ibv_wc_status_str)(status)) };
    text.to_string_lossy().into_owned()
}
