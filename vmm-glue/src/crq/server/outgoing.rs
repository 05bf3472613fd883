//! Elements on their way to the client, held while its queue is full.

use std::{
    collections::VecDeque,
    sync::atomic::{Ordering, fence},
};

use super::super::{
    queue::{ClientQueue, Delivered, Delivery},
    shared::Shared,
};

/// What waits for the client, and how it gets there.
#[derive(Debug)]
pub(super) struct Outgoing {
    delivery: Delivery,
    queue: Option<ClientQueue>,
    waiting: VecDeque<[u8; 16]>,
    /// The first of those that wait is an event, which must not be lost.
    has_event: bool,
}

impl Outgoing {
    pub(super) fn new(delivery: Delivery, room: usize) -> Self {
        Self { delivery, queue: None, waiting: VecDeque::with_capacity(room), has_event: false }
    }

    /// The client has a queue, or none any more. What waited means nothing there.
    pub(super) fn set_queue(&mut self, queue: Option<ClientQueue>) {
        self.discard();
        self.queue = queue;
    }

    /// The client's queue, if this process writes it.
    pub(super) fn queue(&mut self) -> Option<&mut ClientQueue> {
        self.queue.as_mut()
    }

    /// What waits means nothing any more.
    pub(super) fn discard(&mut self) {
        self.waiting.clear();
        self.has_event = false;
        if let Delivery::Partner(partner) = &mut self.delivery {
            partner.discard();
        }
    }

    /// Everything before means nothing; this is what the client gets to know.
    pub(super) fn event(&mut self, element: [u8; 16]) {
        self.discard();
        self.waiting.push_back(element);
        self.has_event = true;
    }

    #[inline]
    pub(super) fn push(&mut self, element: [u8; 16]) {
        self.waiting.push_back(element);
    }

    /// How many elements wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Delivers as many as there is room for, with one interrupt: whether there were any.
    #[inline]
    pub(super) fn deliver(&mut self, shared: &Shared) -> bool {
        let mut any = false;
        while let Some(element) = self.waiting.front() {
            let delivered = match (&mut self.delivery, &mut self.queue) {
                (Delivery::Memory(_), Some(queue)) => match queue.push(element) {
                    true => Delivered::Taken,
                    false => Delivered::Full,
                },
                (Delivery::Memory(_), None) => Delivered::Closed,
                (Delivery::Partner(partner), _) => partner.deliver(*element),
            };
            match delivered {
                Delivered::Taken => any = true,
                Delivered::Full => break,
                Delivered::Closed => {}
            }
            self.waiting.pop_front();
            self.has_event = false;
        }
        if any {
            self.interrupt(shared);
        }
        any
    }

    fn interrupt(&mut self, shared: &Shared) {
        // Either this sees that the client wants interrupts, or the client, looking once more after
        // it said so, sees the elements.
        fence(Ordering::SeqCst);
        if shared.signal.load(Ordering::Relaxed) {
            match &mut self.delivery {
                Delivery::Memory(interrupt) => interrupt.interrupt(),
                Delivery::Partner(partner) => partner.interrupt(),
            }
        }
    }

    /// There will be no later: an event that still waits takes the place of the last element.
    pub(super) fn insist(&mut self, shared: &Shared) {
        self.deliver(shared);
        if let (true, Some(event), Some(queue)) =
            (self.has_event, self.waiting.front(), &mut self.queue)
        {
            queue.overwrite_last(event);
            self.interrupt(shared);
        }
        self.waiting.clear();
    }
}
