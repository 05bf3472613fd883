//! A whole device, driven as a guest's driver does, one request at a time.

use crate::{Buffer, Error, Link, Memory, Protocol, Queue, Used, Window, feature, scsi};
use std::{fs::File, os::fd::AsRawFd, path::Path, sync::Arc, time::Duration};
use vhost::{
    VhostBackend,
    vhost_user::{VhostUserFrontend, message::VhostUserInflight},
};

/// What a device is set up with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Request queues; the control and the event queue come on top.
    pub queues: usize,
    /// Descriptors in each queue: a power of two.
    pub size: u16,
    /// Regions of guest memory.
    pub regions: usize,
    /// Bytes in each region.
    pub region: u64,
    /// Features to use; those that are not offered are left out.
    pub features: u64,
    /// Features to use, or fail.
    pub required: u64,
    /// Protocol features to use where they are offered. With INFLIGHT_SHMFD in it the region is
    /// asked for and set.
    pub protocol: Protocol,
    /// Bytes of data that [`Device::request`] can carry.
    pub data: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            queues: 1,
            size: 128,
            regions: 1,
            region: 64 << 20,
            features: feature::VERSION_1
                | feature::INDIRECT
                | feature::EVENT_IDX
                | feature::HOTPLUG
                | feature::CHANGE,
            required: feature::VERSION_1,
            protocol: Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIG,
            data: 1 << 20,
        }
    }
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// virtio-scsi response code, 0 OK: clause 5.6.6.1.
    pub response: u8,
    /// SCSI status.
    pub status: u8,
    /// Bytes of buffer that were not transferred.
    pub residual: u32,
    /// Sense data, as long as the device says.
    pub sense: Vec<u8>,
    /// The data-in buffer, all of it: what the residual covers is as it was (0xEE).
    pub data: Vec<u8>,
    /// Length in the used ring.
    pub used: u32,
}

impl Response {
    /// Sense key, additional sense code and its qualifier.
    pub fn sense_code(&self) -> Option<(u8, u8, u8)> {
        match self.sense.first()? & 0x7F {
            0x70 | 0x71 => {
                Some((self.sense.get(2)? & 15, *self.sense.get(12)?, *self.sense.get(13)?))
            }
            _ => Some((self.sense.get(1)? & 15, *self.sense.get(2)?, *self.sense.get(3)?)),
        }
    }

    /// Whether it is OK with GOOD status.
    pub fn is_good(&self) -> bool {
        (self.response, self.status) == (0, 0)
    }
}

/// An event of the device: clause 5.6.6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind; bit 31 when others were missed.
    pub event: u32,
    /// Which logical unit.
    pub lun: [u8; 8],
    /// What happened.
    pub reason: u32,
}

/// Shared memory of INFLIGHT_SHMFD.
#[derive(Debug)]
pub struct Inflight {
    /// Bytes.
    pub size: u64,
    /// Where in the file they begin.
    pub offset: u64,
    /// The file.
    pub file: File,
}

/// A connected device with all its queues started, by vhost-user unless it says otherwise.
#[derive(Debug)]
pub struct Device<L = Link> {
    /// The socket.
    pub link: L,
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// 0 control, 1 events, from 2 requests.
    pub queues: Vec<Queue>,
    /// Feature bits in force.
    pub features: u64,
    /// Feature bits the back end offered.
    pub offered: u64,
    /// The region in which the back end notes what it has begun, where it is in use. It outlives
    /// the connection; a VMM drops it when the guest resets the device.
    pub inflight: Option<Inflight>,
    wanted: Setup,
    scratch: Scratch,
    tag: u64,
}

/// Buffers of the one request that is in flight.
#[derive(Debug)]
pub(crate) struct Scratch {
    header: Window,
    response: Window,
    out: Window,
    into: Window,
    events: Vec<(u16, Window)>,
}

impl Scratch {
    pub(crate) fn new(memory: &Arc<Memory>, setup: &Setup) -> Result<Self, Error> {
        Ok(Self {
            header: memory.window(64, 64)?,
            response: memory.window(scsi::RESPONSE as u64, 64)?,
            out: memory.window(setup.data as u64, 4096)?,
            into: memory.window(setup.data as u64, 4096)?,
            events: Vec::new(),
        })
    }
}

impl Device {
    /// Connects to a socket and starts everything, as a VMM does when a driver says DRIVER_OK.
    pub fn connect(path: impl AsRef<Path>, setup: &Setup) -> Result<Self, Error> {
        Self::start(Link::connect(path)?, setup)
    }

    /// As [`Device::connect`] on a link that has not said anything yet.
    pub fn start(mut link: Link, setup: &Setup) -> Result<Self, Error> {
        let (offered, features) = negotiate(&mut link, setup)?;
        let memory = Memory::new(setup.regions, setup.region)?;
        let queues = (0..setup.queues + 2)
            .map(|index| Queue::new(&memory, index, setup.size, features))
            .collect::<Result<Vec<_>, _>>()?;
        let scratch = Scratch::new(&memory, setup)?;
        let mut device = Self::of(link, memory, queues, (offered, features), scratch, setup);
        device.start_queues(|queue, link| link.start(queue))?;
        Ok(device)
    }

    /// Connects again after the back end went away, with the same memory, rings and inflight
    /// region, as a VMM does: the back end finds out by itself what is not done.
    pub fn reconnect(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let mut link = Link::connect(path)?;
        let (offered, features) = negotiate(&mut link, &self.wanted)?;
        (self.link, self.offered, self.features) = (link, offered, features);
        self.start_queues(|queue, link| match &queue.ring {
            // Without a base of its own a VMM resumes a split ring at the used index.
            crate::Ring::Split(ring) => link.start_at(queue, u32::from(ring.used_index())),
            crate::Ring::Packed(_) => link.start(queue),
        })
    }

    /// Memory, inflight region and queues, in the order of a VMM.
    fn start_queues(
        &mut self,
        start: impl Fn(&Queue, &mut Link) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.link.protocol().contains(Protocol::INFLIGHT_SHMFD) {
            let count = self.queues.len() as u16;
            let region =
                |size, offset| VhostUserInflight::new(size, offset, count, self.wanted.size);
            let frontend = self.link.frontend();
            let inflight = match self.inflight.take() {
                Some(known) => known,
                None => {
                    let (made, file) = frontend.get_inflight_fd(&region(0, 0))?;
                    Inflight { size: made.mmap_size, offset: made.mmap_offset, file }
                }
            };
            let known = region(inflight.size, inflight.offset);
            frontend.set_inflight_fd(&known, inflight.file.as_raw_fd())?;
            self.inflight = Some(inflight);
        }
        self.link.set_memory(&self.memory)?;
        for queue in &self.queues {
            start(queue, &mut self.link)?;
        }
        if !self.link.protocol().contains(Protocol::REPLY_ACK) {
            // An answer shows that all before it was done: some back ends lose a kick that
            // overtakes the message that enables its queue.
            self.link.frontend().get_features()?;
        }
        Ok(())
    }

    /// Puts the state of the rings in memory back to where a driver that resets the device begins:
    /// stops every queue, makes empty ones and starts them.
    pub fn restart(&mut self) -> Result<(), Error> {
        for queue in &self.queues {
            self.link.stop(queue)?;
        }
        self.scratch.events.clear();
        for index in 0..self.queues.len() {
            let queue = Queue::new(&self.memory, index, self.wanted.size, self.features)?;
            self.link.start(&queue)?;
            self.queues[index] = queue;
        }
        Ok(())
    }
}

impl<L> Device<L> {
    pub(crate) fn of(
        link: L,
        memory: Arc<Memory>,
        queues: Vec<Queue>,
        (offered, features): (u64, u64),
        scratch: Scratch,
        setup: &Setup,
    ) -> Self {
        let (wanted, inflight, tag) = (setup.clone(), None, 0x1000);
        Self { link, memory, queues, features, offered, inflight, wanted, scratch, tag }
    }

    /// Sends a command to the first request queue and waits for the response. `out` is what it
    /// writes, `into` how many bytes it may read.
    pub fn request(
        &mut self,
        lun: [u8; 8],
        cdb: &[u8],
        out: &[u8],
        into: usize,
    ) -> Result<Response, Error> {
        self.request_on(2, lun, cdb, out, into)
    }

    /// As [`Device::request`], on a queue by its index (from 2).
    pub fn request_on(
        &mut self,
        queue: usize,
        lun: [u8; 8],
        cdb: &[u8],
        out: &[u8],
        into: usize,
    ) -> Result<Response, Error> {
        self.tag += 1;
        let scratch = &self.scratch;
        scratch.header.write(0, &scsi::request(lun, self.tag, cdb));
        scratch.response.fill(0xEE);
        let mut chain = vec![Buffer::out(&scratch.header.part(0, scsi::REQUEST))];
        if !out.is_empty() {
            let data = scratch.out.part(0, out.len());
            data.write(0, out);
            chain.push(Buffer::out(&data));
        }
        chain.push(Buffer::into(&scratch.response));
        if into > 0 {
            let data = scratch.into.part(0, into);
            data.fill(0xEE);
            chain.push(Buffer::into(&data));
        }
        let used = self.queues[queue].round_trip(&chain)?;
        Ok(self.response(into, used))
    }

    fn response(&self, into: usize, used: Used) -> Response {
        let mut head = [0; scsi::RESPONSE];
        self.scratch.response.read(0, &mut head);
        let field =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Response {
            response: head[11],
            status: head[10],
            residual: field(4),
            sense: head[12..].iter().copied().take(field(0) as usize).collect(),
            data: self.scratch.into.bytes(0, into),
            used: used.len,
        }
    }

    /// Sends commands until no unit attention is left at the logical unit.
    pub fn settle(&mut self, lun: [u8; 8]) -> Result<(), Error> {
        for _ in 0..16 {
            if self.request(lun, &scsi::test_unit_ready(), &[], 0)?.is_good() {
                return Ok(());
            }
        }
        Err(Error::Timeout)
    }

    /// Blocks of a disk and the bytes in one.
    pub fn capacity(&mut self, lun: [u8; 8]) -> Result<(u64, u32), Error> {
        let response = self.request(lun, &scsi::read_capacity(), &[], 8)?;
        let field =
            |at: usize| response.data[at..].iter().take(4).fold(0, |n, &b| n << 8 | u64::from(b));
        Ok((field(0) + 1, field(4) as u32))
    }

    /// Sends a task management request and gives its response code.
    pub fn task_management(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> Result<u8, Error> {
        let header = self.scratch.header.part(0, scsi::TASK_MANAGEMENT);
        let answer = self.scratch.response.part(0, 1);
        header.write(0, &scsi::task_management(subtype, lun, id));
        answer.fill(0xEE);
        self.queues[0].round_trip(&[Buffer::out(&header), Buffer::into(&answer)])?;
        Ok(answer.bytes(0, 1)[0])
    }

    /// Gives the device `count` more buffers for events.
    pub fn post_events(&mut self, count: usize) -> Result<(), Error> {
        for _ in 0..count {
            let window = self.memory.window(scsi::EVENT as u64, 16)?;
            let head = self.queues[1].add(&[Buffer::into(&window)], None)?;
            self.scratch.events.push((head, window));
        }
        self.queues[1].submit()?;
        Ok(())
    }

    /// Waits for an event; its buffer goes back to the device.
    pub fn event(&mut self, time: Duration) -> Result<Event, Error> {
        let used = self.queues[1].take_within(time)?;
        let unknown = || Error::NotOwned(u32::from(used.head));
        let at = self.scratch.events.iter().position(|(head, _)| *head == used.head);
        let (_, window) = self.scratch.events.swap_remove(at.ok_or_else(unknown)?);
        let bytes = window.bytes(0, scsi::EVENT);
        let field = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut lun = [0; 8];
        lun.copy_from_slice(&bytes[4..12]);
        let head = self.queues[1].add(&[Buffer::into(&window)], None)?;
        self.scratch.events.push((head, window));
        self.queues[1].submit()?;
        Ok(Event { event: field(0), lun, reason: field(12) })
    }
}

fn negotiate(link: &mut Link, setup: &Setup) -> Result<(u64, u64), Error> {
    let offered = link.open(setup.protocol)?;
    let missing = setup.required & !offered;
    if missing != 0 {
        return Err(Error::Missing { offered, missing });
    }
    let features = (setup.features | setup.required | feature::PROTOCOL) & offered;
    link.frontend().set_features(features)?;
    Ok((offered, features))
}
