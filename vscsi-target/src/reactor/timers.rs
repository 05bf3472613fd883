//! One timer an endpoint, in a heap with lazy deletion.
//!
//! Endpoints mostly push their time further away. So an endpoint keeps one entry in the heap, at or
//! before its wish, and only when that comes up it is entered again for the wish.

use super::turn::EndpointId;
use std::{cmp::Reverse, collections::BinaryHeap};

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
    slots: Vec<Timer>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    generation: u32,
    wish: u64,
    /// The time of the one heap entry that counts.
    entered: u64,
}

impl Timers {
    /// Wants to be told at `time`, instead of at an earlier wish; [`NEVER`] takes it back.
    pub(super) fn set(&mut self, endpoint: EndpointId, time: u64) {
        let index = endpoint.index as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Timer { generation: 0, wish: NEVER, entered: NEVER });
        }
        let Some(timer) = self.slots.get_mut(index) else { return };
        if timer.generation != endpoint.generation {
            *timer = Timer { generation: endpoint.generation, wish: NEVER, entered: NEVER };
        }
        timer.wish = time;
        if time < timer.entered {
            timer.entered = time;
            self.heap.push(Reverse((time, endpoint.index, endpoint.generation)));
        }
    }

    /// An endpoint whose time has come, which is forgotten with that.
    pub(super) fn pop(&mut self, now: u64) -> Option<EndpointId> {
        loop {
            let Reverse((time, index, generation)) = *self.heap.peek()?;
            if time > now {
                return None;
            }
            self.heap.pop();
            let Some(timer) = self.slots.get_mut(index as usize) else { continue };
            if timer.generation != generation || timer.entered != time {
                continue;
            }
            timer.entered = NEVER;
            if timer.wish <= now {
                timer.wish = NEVER;
                return Some(EndpointId { index, generation });
            }
            if timer.wish != NEVER {
                timer.entered = timer.wish;
                self.heap.push(Reverse((timer.wish, index, generation)));
            }
        }
    }

    /// When to look again at the latest.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((time, ..))| *time)
    }
}

/// No time.
pub(super) const NEVER: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    const A: EndpointId = EndpointId { index: 0, generation: 3 };
    const B: EndpointId = EndpointId { index: 1, generation: 1 };

    fn due(timers: &mut Timers, now: u64) -> Vec<EndpointId> {
        std::iter::from_fn(|| timers.pop(now)).collect()
    }

    #[test]
    fn timers_come_in_order_and_once() {
        let mut timers = Timers::default();
        timers.set(A, 20);
        timers.set(B, 10);
        assert_eq!(timers.next(), Some(10));
        assert_eq!(due(&mut timers, 9), []);
        assert_eq!(due(&mut timers, 20), [B, A]);
        assert_eq!(due(&mut timers, 1000), []);
    }

    #[test]
    fn later_wish_replaces_without_growing_the_heap() {
        let mut timers = Timers::default();
        (10..1000).for_each(|time| timers.set(A, time));
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(due(&mut timers, 998), []);
        assert_eq!(due(&mut timers, 999), [A]);
    }

    #[test]
    fn earlier_wish_replaces_and_the_old_time_passes_silently() {
        let mut timers = Timers::default();
        timers.set(A, 50);
        timers.set(A, 10);
        assert_eq!(due(&mut timers, 10), [A]);
        assert_eq!(due(&mut timers, 100), []);
    }

    #[test]
    fn wish_taken_back_or_of_an_earlier_use_of_the_slot_does_not_come() {
        let mut timers = Timers::default();
        timers.set(A, 10);
        timers.set(A, NEVER);
        timers.set(B, 10);
        timers.set(EndpointId { generation: 2, ..B }, 30);
        assert_eq!(due(&mut timers, 29), []);
        assert_eq!(due(&mut timers, 30), [EndpointId { generation: 2, ..B }]);
        assert_eq!(timers.next(), None);
    }
}
