//! A virtqueue as its driver sees it: a ring, its doorbell and its interrupt.

use crate::{Error, Memory, PackedRing, SplitRing, TIMEOUT, Window, feature};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// One buffer of a descriptor chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn out(window: &Window) -> Self {
        Self { address: window.address(), len: window.len() as u32, writable: false }
    }

    /// A buffer that the device writes.
    pub fn into(window: &Window) -> Self {
        Self { address: window.address(), len: window.len() as u32, writable: true }
    }
}

/// Room for an indirect descriptor table.
#[derive(Clone, Debug)]
pub struct Table(pub(crate) Window);

impl Table {
    /// Room for `entries` descriptors in region 0.
    pub fn new(memory: &Arc<Memory>, entries: usize) -> Result<Self, Error> {
        Ok(Self(memory.window(entries as u64 * 16, 16)?))
    }
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`Queue::add`] gave for it.
    pub head: u16,
    /// Bytes the device says it wrote; all writable ones where IN_ORDER let it not say.
    pub len: u32,
}

/// A ring of either layout.
#[derive(Debug)]
pub enum Ring {
    /// VIRTIO 1.3 clause 2.7.
    Split(SplitRing),
    /// VIRTIO 1.3 clause 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.size(),
            Self::Packed(ring) => ring.size(),
        }
    }

    /// The areas: descriptors, what the driver writes beside them, what the device writes.
    pub fn areas(&self) -> [&Window; 3] {
        match self {
            Self::Split(ring) => ring.areas(),
            Self::Packed(ring) => ring.areas(),
        }
    }
}

/// A virtqueue.
#[derive(Debug)]
pub struct Queue {
    /// Number in the device: 0 control, 1 events, from 2 requests.
    pub index: usize,
    /// The ring.
    pub ring: Ring,
    /// Written to tell the device of available buffers.
    pub kick: EventFd,
    /// Written by the device to tell of used buffers; does not block.
    pub call: EventFd,
    /// Written by the device when the ring is broken; does not block.
    pub error: EventFd,
}

impl Queue {
    /// An empty queue of `size` descriptors in region 0, of the layout that `features` tell.
    pub fn new(
        memory: &Arc<Memory>,
        index: usize,
        size: u16,
        features: u64,
    ) -> Result<Self, Error> {
        let ring = if features & feature::RING_PACKED != 0 {
            Ring::Packed(PackedRing::new(memory, size, features)?)
        } else {
            Ring::Split(SplitRing::new(memory, size, features)?)
        };
        Ok(Self {
            index,
            ring,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            error: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Adds a chain, through an indirect table where one is given, and gives its identifier.
    /// The device sees it after [`Queue::publish`] at the latest.
    #[inline]
    pub fn add(&mut self, chain: &[Buffer], table: Option<&Table>) -> Result<u16, Error> {
        match &mut self.ring {
            Ring::Split(ring) => ring.add(chain, table),
            Ring::Packed(ring) => ring.add(chain, table),
        }
    }

    /// Makes what was added available; tells whether the device wants a kick for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Publishes, and kicks if the device wants it; tells whether it did.
    #[inline]
    pub fn submit(&mut self) -> Result<bool, Error> {
        let wanted = self.publish();
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Rings the doorbell, wanted or not.
    pub fn kick(&self) -> Result<(), Error> {
        Ok(self.kick.write(1)?)
    }

    /// Takes back a chain that the device has used.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Used>, Error> {
        match &mut self.ring {
            Ring::Split(ring) => ring.take(),
            Ring::Packed(ring) => ring.take(),
        }
    }

    /// Asks for calls from the next used chain on, or for none. With EVENT_IDX on a split ring
    /// "none" is one in 65,536. True if used chains are waiting already.
    #[inline]
    pub fn want_calls(&mut self, wanted: bool) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.want_calls(wanted),
            Ring::Packed(ring) => ring.want_calls(wanted),
        }
    }

    /// Waits for a call and takes it; false when none came in time.
    pub fn wait_call(&self, time: Duration) -> Result<bool, Error> {
        Ok(wait(&self.call, time)? && self.call.read().is_ok())
    }

    /// Waits for the next used chain, without relying on calls.
    pub fn take_within(&mut self, time: Duration) -> Result<Used, Error> {
        let since = Instant::now();
        loop {
            if let Some(used) = self.take()? {
                return Ok(used);
            }
            if since.elapsed() > time {
                return Err(Error::Timeout);
            }
            self.wait_call(Duration::from_millis(1))?;
        }
    }

    /// Adds one chain, submits it and waits until it is used. Others in flight must not be.
    pub fn round_trip(&mut self, chain: &[Buffer]) -> Result<Used, Error> {
        self.add(chain, None)?;
        self.submit()?;
        self.take_within(TIMEOUT)
    }
}

/// Waits until an eventfd can be read.
fn wait(event: &EventFd, time: Duration) -> Result<bool, Error> {
    let fd = borrow(event);
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(Error::Socket(error.into())),
    }
}

#[allow(unsafe_code)] // vmm-sys-util's EventFd has no AsFd.
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the `EventFd` that is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Whether passing `new` from `old` passes `event`: VIRTIO 1.3 clause 2.7.7.1.
#[inline]
pub(crate) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
