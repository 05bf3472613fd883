//! A vring as the VMM describes it, message by message.

use std::fs::File;

use vmm_sys_util::eventfd::EventFd;

use super::fault::Fault;
use crate::{door::event, memory::GuestMap, ring::Areas};

/// What the VMM said about a ring so far.
#[derive(Debug)]
pub(super) struct Vring {
    /// Which queue it is.
    pub(super) index: u16,
    /// Entries, 0 if not said yet.
    pub(super) size: u16,
    /// Where it is.
    pub(super) addresses: Option<Addresses>,
    /// Where to go on.
    pub(super) base: u32,
    /// SET_VRING_KICK came.
    pub(super) kicked: bool,
    /// Where notifications come from.
    pub(super) kick: Option<EventFd>,
    /// Where interrupts go.
    pub(super) call: Option<EventFd>,
    /// Where faults are told.
    pub(super) error: Option<EventFd>,
    /// SET_VRING_ENABLE.
    pub(super) enabled: bool,
    /// Its queue has it.
    pub(super) running: bool,
    /// It starts when this process has the images.
    pub(super) waits: bool,
    /// Size, base or addresses are not those it runs with.
    pub(super) changed: bool,
    /// The base was said since it runs.
    pub(super) based: bool,
}

/// Where a ring is, in the address space of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// Descriptor area.
    pub(super) descriptor: u64,
    /// Driver area.
    pub(super) driver: u64,
    /// Device area.
    pub(super) device: u64,
}

impl Vring {
    /// A ring that nothing is known of.
    pub(super) fn new(index: u16) -> Self {
        Self {
            index,
            size: 0,
            addresses: None,
            base: 0,
            kicked: false,
            kick: None,
            call: None,
            error: None,
            enabled: false,
            running: false,
            waits: false,
            changed: false,
            based: false,
        }
    }

    /// Whether it has to run.
    pub(super) fn is_ready(&self) -> bool {
        self.kicked && self.size > 0 && self.addresses.is_some()
    }

    /// It stopped, and goes on there. Who starts it gives new eventfds.
    pub(super) fn stopped(&mut self, base: u32) {
        self.base = base;
        (self.kicked, self.running, self.changed) = (false, false, false);
        self.waits = false;
        (self.kick, self.call) = (None, None);
    }

    /// Where it is in this process.
    pub(super) fn areas(&self, map: &GuestMap, features: u64) -> Result<Areas, Fault> {
        let index = self.index;
        let Some(Addresses { descriptor, driver, device }) = self.addresses else {
            return Err(Fault::NoMemory(index));
        };
        let [table, available, used] = Areas::sizes(self.size, features);
        let at = |address, len| map.at_user(address, len).ok_or(Fault::Unshared { index, address });
        Ok(Areas {
            descriptor: at(descriptor, table)?,
            driver: at(driver, available)?,
            device: at(device, used)?,
        })
    }
}

/// A copy of an eventfd.
pub(super) fn copy(event: &Option<EventFd>) -> Result<Option<EventFd>, Fault> {
    Ok(event.as_ref().map(EventFd::try_clone).transpose()?)
}

/// Takes a descriptor of the VMM as an eventfd that does not block a reactor.
pub(super) fn event(index: u8, file: Option<File>) -> Result<Option<EventFd>, Fault> {
    let Some(file) = file else { return Ok(None) };
    event::adopt(file.into())?.ok_or(Fault::NotEvent(index)).map(Some)
}
