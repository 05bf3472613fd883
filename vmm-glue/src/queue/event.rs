//! The event queue: its buffers stay in the ring until there is something to tell.

use super::Running;
use crate::{
    controller::Controller,
    ring::{Popped, RingError},
    scsi::event,
};

impl Running {
    /// Tells what is waiting, as far as there are buffers; whether anything was told.
    pub(super) fn take_events(&mut self, controller: &Controller) -> Result<bool, RingError> {
        let mut any = false;
        while controller.events().is_waiting() {
            let popped = self.ring.pop(&self.map, &mut self.chain)?;
            if popped == Popped::Empty {
                break;
            }
            any = true;
            let id = self.chain.id;
            let slot = self.slots.take(id)?;
            if popped == Popped::Bad || (self.chain.writable_len as usize) < event::LEN {
                self.give_back(id, 0);
                continue;
            }
            slot.set_response(&self.chain.writable, event::LEN);
            if let Some((event, missed)) = controller.events().next() {
                slot.respond(&event.bytes(missed));
            }
            self.log_slot(id, 0);
            self.give_back(id, event::LEN as u32);
        }
        Ok(any)
    }
}
