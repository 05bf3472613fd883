//! Interrupts: the pin and the MSI-X vectors, where the client wants them, and what holds them back.
//!
//! A queue interrupts by an eventfd. For a vector that is the client's own, so that nothing stands
//! between a reactor and the guest. A vector that is masked, or that the client has not taken yet, has
//! an eventfd of ours instead, whose counter is its pending bit. Without MSI-X all queues share one
//! eventfd of ours, the line: the device's thread reads it, sets the interrupt status and asserts the
//! pin.
//!
//! Clients usually have the MSI-X table themselves and tell what is masked by SET_IRQS. One that
//! passes writes to the table on is obeyed too; a vector whose control was never written is not
//! masked, whatever it reads as.

use std::{io, os::fd::OwnedFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    message::{IrqAction, IrqData, SetIrqs, irq},
    virtio::NO_VECTOR,
};
use crate::door::event;

/// The interrupts of one device.
#[derive(Debug)]
pub(super) struct Interrupts {
    vectors: Vec<Vector>,
    /// MSI-X is enabled; all of it is masked.
    msix: (bool, bool),
    /// Queues write to it while MSI-X is not enabled.
    line: EventFd,
    /// The interrupt status (VIRTIO 1.3, 4.1.4.5).
    status: u8,
    pin: Pin,
    /// Counts what changes where interrupts go.
    serial: u64,
}

/// INTx.
#[derive(Debug, Default)]
struct Pin {
    trigger: Option<EventFd>,
    /// The client unmasks by it.
    unmask: Option<EventFd>,
    /// Since it was triggered, or by the client.
    masked: bool,
    /// By the command register.
    off: bool,
}

/// A vector of MSI-X.
#[derive(Debug)]
struct Vector {
    trigger: Option<EventFd>,
    /// [`Interrupts::serial`] when `trigger` was set.
    serial: u64,
    /// By SET_IRQS.
    masked: bool,
    /// Its entry of the table.
    entry: [u8; ENTRY],
    /// The control of the entry was written.
    is_controlled: bool,
    /// Takes interrupts that may not be delivered.
    held: EventFd,
}

/// Where the interrupts of a queue go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Nowhere.
    Nowhere,
    /// To the pin.
    Line,
    /// They wait.
    Held(u16),
    /// To the client, by what it gave at that time.
    Vector(u16, u64),
}

impl Vector {
    fn new() -> io::Result<Self> {
        let mut entry = [0; ENTRY];
        // Masked, as the PCI standard wants it to read.
        entry[CONTROL] = 1;
        Ok(Self {
            trigger: None,
            serial: 0,
            masked: false,
            entry,
            is_controlled: false,
            held: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn is_masked(&self, all: bool) -> bool {
        all || self.masked || (self.is_controlled && self.entry[CONTROL] & 1 != 0)
    }
}

impl Interrupts {
    /// Those of a device with this many vectors.
    pub(super) fn new(vectors: u16) -> io::Result<Self> {
        Ok(Self {
            vectors: (0..vectors).map(|_| Vector::new()).collect::<io::Result<_>>()?,
            msix: (false, false),
            line: EventFd::new(EFD_NONBLOCK)?,
            status: 0,
            pin: Pin::default(),
            serial: 0,
        })
    }

    /// The device was reset. What the client gave stays.
    pub(super) fn reset(&mut self) {
        let _ = self.line.read();
        (self.status, self.msix, self.pin.off) = (0, (false, false), false);
        for vector in &mut self.vectors {
            let _ = vector.held.read();
            vector.entry = [0; ENTRY];
            vector.entry[CONTROL] = 1;
            vector.is_controlled = false;
        }
    }

    /// How many interrupts of a kind there are.
    pub(super) fn count(&self, index: u32) -> u32 {
        match index {
            irq::INTX => 1,
            irq::MSIX => self.vectors.len() as u32,
            _ => 0,
        }
    }

    /// What the configuration space says.
    pub(super) fn configure(&mut self, msix: (bool, bool), pin_off: bool) {
        self.msix = msix;
        self.pin.off = pin_off;
        self.deliver();
    }

    /// Does what SET_IRQS says: the errno if that cannot be.
    pub(super) fn set(
        &mut self,
        set: &SetIrqs,
        data: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), i32> {
        let count = self.count(set.index);
        let end = set.start.checked_add(set.count).ok_or(libc::EINVAL)?;
        if count == 0 || end > count {
            return Err(libc::EINVAL);
        }
        let is_meant = |number: u32| match set.data {
            IrqData::Bool => data.get(number as usize).copied().map(|byte| byte != 0),
            _ => Some(true),
        };
        if set.data == IrqData::EventFd {
            return self.set_events(set, descriptors);
        }
        // No interrupts at all: take all of them away.
        if set.count == 0 && set.action == IrqAction::Trigger && set.data == IrqData::None {
            self.serial += 1;
            match set.index {
                irq::INTX => (self.pin.trigger, self.pin.unmask) = (None, None),
                _ => self.vectors.iter_mut().for_each(|vector| {
                    (vector.trigger, vector.masked) = (None, false);
                }),
            }
            return Ok(());
        }
        for number in 0..set.count {
            if !is_meant(number).ok_or(libc::EINVAL)? {
                continue;
            }
            if set.index == irq::INTX {
                match set.action {
                    IrqAction::Mask => self.pin.masked = true,
                    IrqAction::Unmask => self.pin.masked = false,
                    IrqAction::Trigger => self.pin.fire(),
                }
            } else if let Some(vector) = self.vectors.get_mut((set.start + number) as usize) {
                match set.action {
                    IrqAction::Mask => vector.masked = true,
                    IrqAction::Unmask => vector.masked = false,
                    IrqAction::Trigger => fire(vector.trigger.as_ref()),
                }
            }
        }
        self.deliver();
        Ok(())
    }

    fn set_events(&mut self, set: &SetIrqs, descriptors: Vec<OwnedFd>) -> Result<(), i32> {
        let is_pin = set.index == irq::INTX;
        let takes = match set.action {
            IrqAction::Trigger => true,
            IrqAction::Unmask => is_pin,
            IrqAction::Mask => false,
        };
        let fits = descriptors.is_empty() || descriptors.len() == set.count as usize;
        if !takes || !fits {
            return Err(libc::EINVAL);
        }
        let mut events = Vec::new();
        for descriptor in descriptors {
            let event = event::adopt(descriptor).map_err(|error| error.raw_os_error());
            events.push(event.map_err(|errno| errno.unwrap_or(libc::EIO))?.ok_or(libc::EINVAL)?);
        }
        let mut events = events.into_iter();
        self.serial += 1;
        for number in set.start..set.start + set.count {
            let event = events.next();
            if is_pin {
                match set.action {
                    IrqAction::Trigger => {
                        (self.pin.trigger, self.pin.masked) = (event, false);
                    }
                    _ => self.pin.unmask = event,
                }
            } else if let Some(vector) = self.vectors.get_mut(number as usize) {
                (vector.trigger, vector.serial) = (event, self.serial);
            }
        }
        self.deliver();
        Ok(())
    }

    /// Where a queue with this vector interrupts.
    pub(super) fn route(&self, vector: u16) -> Route {
        let (enabled, all_masked) = self.msix;
        if !enabled {
            return Route::Line;
        }
        match self.vectors.get(usize::from(vector)) {
            None => Route::Nowhere,
            Some(its) if its.trigger.is_none() || its.is_masked(all_masked) => Route::Held(vector),
            Some(its) => Route::Vector(vector, its.serial),
        }
    }

    /// The eventfd of a route.
    pub(super) fn event(&self, route: Route) -> io::Result<Option<EventFd>> {
        let vector = |number: u16| self.vectors.get(usize::from(number));
        let event = match route {
            Route::Nowhere => None,
            Route::Line => Some(&self.line),
            Route::Held(number) => vector(number).map(|vector| &vector.held),
            Route::Vector(number, _) => vector(number).and_then(|vector| vector.trigger.as_ref()),
        };
        event.map(EventFd::try_clone).transpose()
    }

    /// What the device's thread waits for: the line, and the client's unmasking.
    pub(super) fn sources(&self) -> (&EventFd, Option<&EventFd>) {
        (&self.line, self.pin.unmask.as_ref())
    }

    /// Takes what the sources have.
    pub(super) fn collect(&mut self) {
        if self.pin.unmask.as_ref().is_some_and(|unmask| unmask.read().is_ok()) {
            self.pin.masked = false;
        }
        self.take_line();
        self.deliver();
    }

    /// The configuration changed; its vector.
    pub(super) fn change(&mut self, vector: u16) {
        self.status |= CONFIGURATION;
        match self.route(vector) {
            Route::Line | Route::Nowhere => self.deliver(),
            Route::Held(number) | Route::Vector(number, _) => {
                let masked = matches!(self.route(vector), Route::Held(_));
                if let Some(its) = self.vectors.get(usize::from(number)) {
                    fire(if masked { Some(&its.held) } else { its.trigger.as_ref() });
                }
            }
        }
    }

    /// Reads the interrupt status, which clears it and takes the pin back.
    pub(super) fn read_status(&mut self) -> u8 {
        self.take_line();
        std::mem::take(&mut self.status)
    }

    /// Whether the pin is asserted.
    pub(super) fn is_asserted(&self) -> bool {
        self.status != 0 && !self.msix.0
    }

    /// Reads the table and the pending bits, which begin at `pending`.
    pub(super) fn read(&self, offset: usize, pending: usize, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            *byte = match at.checked_sub(pending) {
                None => {
                    let vector = self.vectors.get(at / ENTRY);
                    vector.and_then(|vector| vector.entry.get(at % ENTRY)).copied().unwrap_or(0)
                }
                Some(at) => (0..8).fold(0, |bits, bit| {
                    let vector = self.vectors.get(at.saturating_mul(8).saturating_add(bit));
                    bits | u8::from(vector.is_some_and(is_pending)) << bit
                }),
            };
        }
    }

    /// Writes to the table.
    pub(super) fn write(&mut self, offset: usize, from: &[u8]) {
        for (at, &byte) in (offset..).zip(from) {
            let Some(vector) = self.vectors.get_mut(at / ENTRY) else { return };
            let Some(place) = vector.entry.get_mut(at % ENTRY) else { return };
            match at % ENTRY {
                CONTROL => {
                    *place = byte & 1;
                    vector.is_controlled = true;
                }
                // Reserved.
                13.. => {}
                _ => *place = byte,
            }
        }
        self.deliver();
    }

    fn take_line(&mut self) {
        if self.line.read().is_ok() {
            self.status |= QUEUE;
        }
    }

    /// Delivers what nothing holds back any more.
    fn deliver(&mut self) {
        let (enabled, all_masked) = self.msix;
        if enabled {
            for vector in &self.vectors {
                if let Some(trigger) = &vector.trigger
                    && !vector.is_masked(all_masked)
                    && vector.held.read().is_ok()
                {
                    fire(Some(trigger));
                }
            }
        } else if self.status != 0 {
            self.pin.assert();
        }
    }
}

impl Pin {
    fn assert(&mut self) {
        if self.trigger.is_some() && !self.masked && !self.off {
            self.fire();
        }
    }

    /// It masks itself: the client unmasks it when the guest has seen to it.
    fn fire(&mut self) {
        self.masked = true;
        fire(self.trigger.as_ref());
    }
}

/// A counter that is not empty.
fn is_pending(vector: &Vector) -> bool {
    let pending = vector.held.read().is_ok();
    if pending {
        fire(Some(&vector.held));
    }
    pending
}

fn fire(event: Option<&EventFd>) {
    if let Some(event) = event
        && let Err(error) = event.write(1)
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::debug!(%error, "cannot interrupt the guest");
    }
}

/// A queue has used a buffer.
const QUEUE: u8 = 1;
/// The configuration of the device changed.
const CONFIGURATION: u8 = 2;
/// Bytes of an entry of the table: address, data, control.
const ENTRY: usize = 16;
/// The byte with the mask bit.
const CONTROL: usize = 12;
const _: () = assert!(NO_VECTOR == u16::MAX);

#[cfg(test)]
mod tests;
