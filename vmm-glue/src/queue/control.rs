//! The control queue: task management.
//!
//! A function is answered when all that it aborted is in the used rings: the driver forgets those
//! requests then. They may belong to queues on other reactors, so before the answer every queue of
//! the device publishes what it has.

use std::sync::Arc;

use libsrp::{Tag, TaskManagement};
use vscsi_target::{
    engine::{Completion, Owner},
    reactor::Cx,
};

use super::{Note, Running};
use crate::{
    controller::{Controller, Place, Router},
    ring::{Popped, RingError},
    scsi::{
        code,
        control::{Control, code_of, notification_response},
    },
};

/// Held by every queue until it has published; the last one tells the control queue.
#[derive(Debug)]
pub struct Barrier {
    router: Arc<dyn Router>,
    origin: Place,
    id: u16,
}

impl Drop for Barrier {
    fn drop(&mut self) {
        self.router.note(self.origin, Note::Passed(self.id));
    }
}

impl Running {
    /// Takes requests of the control queue; whether there were any.
    pub(super) fn take_control(&mut self, cx: &mut Cx<'_>) -> Result<bool, RingError> {
        let mut any = false;
        for _ in 0..BATCH {
            match self.ring.pop(&self.map, &mut self.chain)? {
                Popped::Empty => break,
                Popped::Chain => self.take_one(cx)?,
                Popped::Bad => {
                    self.slots.take(self.chain.id)?;
                    self.give_back(self.chain.id, 0);
                }
            }
            any = true;
        }
        Ok(any)
    }

    fn take_one(&mut self, cx: &mut Cx<'_>) -> Result<(), RingError> {
        let id = self.chain.id;
        let slot = self.slots.take(id)?;
        slot.set_response(&self.chain.writable, self.chain.writable_len as usize);
        let mut bytes = [0; LONGEST];
        let len = LONGEST.min(self.chain.readable_len as usize);
        let request = bytes.get_mut(..len).unwrap_or_default();
        vscsi_target::reactor::sg::gather(&self.chain.readable, request);
        match Control::parse(request) {
            Control::Manage { function, address, tag } => {
                let view = address.and_then(|address| {
                    let view = self.views.get_mut(usize::from(address.target))?.as_mut()?;
                    Some((view, address.lun))
                });
                let Some((view, lun)) = view else {
                    self.answer(id, &[code::BAD_TARGET]);
                    return Ok(());
                };
                let (tag, managed) = (Tag::from_u64(id.into()), Tag::from_u64(tag));
                let request = TaskManagement { tag, lun, function, managed };
                let owner = Owner { endpoint: cx.me, cookie: id.into() };
                cx.engine.manage(view, &request, owner);
            }
            Control::Notification { address, .. } => {
                let is_there = address.is_some_and(|address| {
                    let view = self.views.get_mut(usize::from(address.target));
                    view.and_then(Option::as_mut).is_some_and(|v| v.find(address.lun).is_some())
                });
                let code = if is_there { code::OK } else { code::BAD_TARGET };
                self.answer(id, &notification_response(code));
            }
            Control::Unknown => self.answer(id, &[code::FUNCTION_REJECTED]),
        }
        Ok(())
    }

    /// A task management function is done in the core: every queue is to publish before it is told.
    pub(super) fn managed(&mut self, controller: &Controller, completion: &Completion) {
        let id = completion.owner.cookie as u16;
        let Some(slot) = self.slots.get(id) else { return };
        slot.code = code_of(completion.response.code);
        let router = Arc::clone(controller.router());
        let origin = controller.place(super::CONTROL_QUEUE);
        let Some(origin) = origin else { return self.passed(id) };
        let barrier = Arc::new(Barrier { router, origin, id });
        for place in controller.places() {
            controller.router().note(place, Note::Barrier(Arc::clone(&barrier)));
        }
    }

    /// Every queue has published.
    pub(super) fn passed(&mut self, id: u16) {
        if let Some(slot) = self.slots.get(id) {
            let code = slot.code;
            self.answer(id, &[code]);
        }
    }

    fn answer(&mut self, id: u16, bytes: &[u8]) {
        let Some(slot) = self.slots.get(id) else { return };
        slot.respond(bytes);
        self.log_slot(id, 0);
        self.give_back(id, bytes.len() as u32);
    }
}

/// Control requests taken before the others have their turn.
const BATCH: usize = 16;
/// Bytes of the longest control request.
const LONGEST: usize = 24;
