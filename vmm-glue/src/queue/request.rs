//! Request queues: commands from the ring to the core, responses back. The hot path of a guest.

use libsrp::{Command, Tag};
use vscsi_target::{
    engine::{Completion, Memory, Outcome, Owner, Submitted},
    opcode,
    reactor::{Cx, sg::Segment},
};

use super::{Running, slot::Slot};
use crate::{
    ring::{Popped, RingError},
    scsi::{MOST_REQUEST, ResponseBytes, code},
};

impl Running {
    /// Takes a batch of commands; whether there were any.
    #[inline]
    pub(super) fn take_requests(&mut self, cx: &mut Cx<'_>) -> Result<bool, RingError> {
        let mut any = false;
        for _ in 0..BATCH {
            match self.ring.pop(&self.map, &mut self.chain)? {
                Popped::Empty => break,
                Popped::Chain => self.take_request(cx)?,
                Popped::Bad => {
                    self.slots.take(self.chain.id)?;
                    self.give_back(self.chain.id, 0);
                }
            }
            any = true;
        }
        Ok(any)
    }

    #[inline]
    fn take_request(&mut self, cx: &mut Cx<'_>) -> Result<(), RingError> {
        let Self { chain, slots, views, layout, log, tracks, .. } = self;
        let id = chain.id;
        let slot = slots.take(id)?;
        let (request_len, response_len) = (layout.request_len(), layout.response_len());
        let mut small = [0; SMALL];
        let mut large;
        let header: &mut [u8] = match small.get_mut(..request_len) {
            Some(header) => header,
            None => {
                large = [0; MOST_REQUEST];
                large.get_mut(..request_len).unwrap_or_default()
            }
        };
        let has_room = chain.writable_len as usize >= response_len;
        let sent = take(&mut chain.readable, header);
        let (Some(out), true, Some(request)) = (sent, has_room, layout.request(header)) else {
            self.give_back(id, 0);
            return Ok(());
        };
        slot.set_response(&chain.writable, response_len);
        let into = skip(&mut chain.writable, response_len);
        let mut out = chain.readable.get_mut(out..).unwrap_or_default();
        let mut into = chain.writable.get_mut(into..).unwrap_or_default();
        let (mut data_out, mut data_in) =
            (chain.readable_len - request_len as u32, chain.writable_len - response_len as u32);
        if layout.pi {
            // No logical unit has protection information: what comes with it is passed over.
            (out, data_out) = pass(out, data_out, request.pi_out);
            (into, data_in) = pass(into, data_in, request.pi_in);
        }
        if log.is_some() {
            slot.set_data(into);
        }
        if *tracks {
            slot.hold(out);
            slot.hold(into);
        }
        let view = request.address.and_then(|address| {
            Some((views.get_mut(usize::from(address.target))?.as_mut()?, address.lun))
        });
        let Some((view, lun)) = view else {
            self.respond(id, &ResponseBytes::failed(code::BAD_TARGET), 0);
            return Ok(());
        };
        if chain.again && !opcode::may_repeat(request.cdb) {
            // Nobody knows whether it was executed before the restart: the initiator decides.
            self.respond(id, &ResponseBytes::failed(code::RESET), 0);
            return Ok(());
        }
        let command = Command {
            tag: Tag::from_u64(request.tag),
            lun,
            attribute: request.attribute,
            priority: request.priority,
            cdb: request.cdb,
            data_out,
            data_in,
        };
        let owner = Owner { endpoint: cx.me, cookie: id.into() };
        let memory = Memory::Own { out, into };
        match cx.engine.submit(view, &command, memory, owner) {
            Submitted::Accepted => {}
            // It has the data already.
            Submitted::NeedsData(data) => cx.engine.abandon(data.token),
        }
        Ok(())
    }

    /// A command ended.
    #[inline]
    pub(super) fn completed(&mut self, completion: &Completion) {
        // The cookie is the number of a chain.
        let id = completion.owner.cookie as u16;
        match completion.outcome {
            Outcome::Respond => {
                let response = ResponseBytes::of(&completion.response, &self.layout);
                self.respond(id, &response, completion.data.len());
            }
            // Linux repeats what a reset ended, and fails what was aborted. What it aborts itself, one
            // by one, it has forgotten by then.
            Outcome::Silent => self.respond(id, &ResponseBytes::failed(code::RESET), 0),
        }
    }

    /// Writes a response and gives the chain back.
    #[inline]
    fn respond(&mut self, id: u16, response: &ResponseBytes, moved: usize) {
        let Some(slot) = self.slots.get(id) else { return };
        slot.respond(response.as_bytes());
        self.log_slot(id, moved);
        self.give_back(id, (self.layout.response_len() + moved) as u32);
    }

    /// Logs what was written for a request, if that is wanted.
    #[inline]
    pub(super) fn log_slot(&mut self, id: u16, moved: usize) {
        if let Some(log) = &self.log
            && let Some(slot) = self.slots.get(id)
        {
            Slot::log(slot, log, &self.map, moved);
        }
    }

    /// Gives a chain back, `len` bytes written.
    #[inline]
    pub(super) fn give_back(&mut self, id: u16, len: u32) {
        self.slots.free(id);
        self.ring.push(id, len);
    }
}

/// Takes the bytes of `into` from the front of a list: where the rest of the list begins, with its
/// first segment cut. `None` if the list is too short.
#[inline]
pub(super) fn take(list: &mut [Segment], into: &mut [u8]) -> Option<usize> {
    let got = vscsi_target::reactor::sg::gather(list, into);
    (got == into.len()).then(|| skip(list, got))
}

/// Where the list goes on after `len` bytes; the segment there is cut.
#[inline]
fn skip(list: &mut [Segment], len: usize) -> usize {
    let mut left = len;
    for (at, segment) in list.iter_mut().enumerate() {
        if left < segment.len {
            segment.base = segment.base.wrapping_add(left);
            segment.len -= left;
            return at;
        }
        left -= segment.len;
    }
    list.len()
}

/// The list after protection information of `pi` bytes.
fn pass(list: &mut [Segment], len: u32, pi: u32) -> (&mut [Segment], u32) {
    let pi = pi.min(len);
    let at = skip(list, pi as usize);
    (list.get_mut(at..).unwrap_or_default(), len - pi)
}

/// Commands taken from a ring before the others have their turn.
const BATCH: usize = 64;
/// Room for a request of the usual layout.
const SMALL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_begins_where_the_request_ends() {
        let mut bytes = [1u8, 2, 3, 4, 5, 6];
        let (a, b) = bytes.split_at_mut(4);
        let mut list = [Segment::of(a), Segment::of(b)];
        let mut head = [0; 3];
        assert_eq!(take(&mut list, &mut head), Some(0));
        assert_eq!((head, list[0].len), ([1, 2, 3], 1));
        assert_eq!(take(&mut list, &mut head[..1]), Some(1));
        assert_eq!(take(&mut list[1..], &mut head), None);
        assert_eq!(skip(&mut list[1..], 2), 1);
    }
}
