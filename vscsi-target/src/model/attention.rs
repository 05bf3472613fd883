//! Unit attention conditions of one I_T_L nexus (SAM-5 5.14): queued in the order they were
//! established, each at most once, a reset in front of what it makes obsolete.

use crate::sense::{Sense, key};
use std::collections::VecDeque;

/// A unit attention condition: additional sense code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attention(pub u8, pub u8);

impl Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    pub const POWER_ON: Self = Self(0x29, 0x00);
    /// BUS DEVICE RESET FUNCTION OCCURRED: a logical unit reset.
    pub const LOGICAL_UNIT_RESET: Self = Self(0x29, 0x03);
    /// I_T NEXUS LOSS OCCURRED.
    pub const NEXUS_LOSS: Self = Self(0x29, 0x07);
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    pub const MEDIUM_CHANGED: Self = Self(0x28, 0x00);
    /// MODE PARAMETERS CHANGED.
    pub const MODE_PARAMETERS_CHANGED: Self = Self(0x2A, 0x01);
    /// LOG PARAMETERS CHANGED.
    pub const LOG_PARAMETERS_CHANGED: Self = Self(0x2A, 0x02);
    /// RESERVATIONS PREEMPTED.
    pub const RESERVATIONS_PREEMPTED: Self = Self(0x2A, 0x03);
    /// RESERVATIONS RELEASED.
    pub const RESERVATIONS_RELEASED: Self = Self(0x2A, 0x04);
    /// REGISTRATIONS PREEMPTED.
    pub const REGISTRATIONS_PREEMPTED: Self = Self(0x2A, 0x05);
    /// CAPACITY DATA HAS CHANGED.
    pub const CAPACITY_CHANGED: Self = Self(0x2A, 0x09);
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    pub const COMMANDS_CLEARED: Self = Self(0x2F, 0x00);
    /// INQUIRY DATA HAS CHANGED.
    pub const INQUIRY_CHANGED: Self = Self(0x3F, 0x03);
    /// REPORTED LUNS DATA HAS CHANGED.
    pub const LUNS_CHANGED: Self = Self(0x3F, 0x0E);

    /// The sense data that reports it.
    pub const fn sense(self) -> Sense {
        Sense::new(key::UNIT_ATTENTION, self.0, self.1)
    }

    /// Whether it belongs to the reset family, which comes first and clears what it supersedes.
    const fn is_reset(self) -> bool {
        self.0 == 0x29
    }
}

/// The pending unit attentions of one I_T_L nexus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attentions {
    queue: VecDeque<Attention>,
}

impl Attentions {
    /// Bounds the queue; beyond it nothing can be lost that a power-on condition would not say.
    pub const LIMIT: usize = 16;

    /// What was pending elsewhere, in its order; `None` when that is more than can be pending.
    pub fn resumed(conditions: impl ExactSizeIterator<Item = Attention>) -> Option<Self> {
        (conditions.len() <= Self::LIMIT).then(|| Self { queue: conditions.collect() })
    }

    /// All conditions, in the order they will be reported.
    pub fn iter(&self) -> impl Iterator<Item = Attention> {
        self.queue.iter().copied()
    }

    /// Establishes a condition. A reset removes the conditions that it makes obsolete, except
    /// that the LUN inventory changed, and goes in front (SAM-5 table 47).
    pub fn establish(&mut self, condition: Attention) {
        if condition.is_reset() {
            // POWER ON says more than any other reset code: keep it when it is already pending.
            if self.queue.contains(&Attention::POWER_ON) {
                return;
            }
            self.queue.retain(|&old| old == Attention::LUNS_CHANGED);
            self.queue.push_front(condition);
        } else if !self.queue.contains(&condition) {
            if self.queue.len() == Self::LIMIT {
                self.queue.clear();
                self.queue.push_back(Attention::POWER_ON);
            } else {
                self.queue.push_back(condition);
            }
        }
    }

    /// Takes the first condition to report it.
    pub fn take(&mut self) -> Option<Attention> {
        self.queue.pop_front()
    }

    /// Removes a condition that became known otherwise (REPORT LUNS clears 3F/0E).
    pub fn clear(&mut self, condition: Attention) {
        self.queue.retain(|&old| old != condition);
    }

    /// The first condition, left in place (QUERY ASYNCHRONOUS EVENT).
    pub fn peek(&self) -> Option<Attention> {
        self.queue.front().copied()
    }

    /// Whether none is pending.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many are pending.
    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_is_reported_once_in_order() {
        let mut pending = Attentions::default();
        for condition in [
            Attention::CAPACITY_CHANGED,
            Attention::MODE_PARAMETERS_CHANGED,
            Attention::CAPACITY_CHANGED,
        ] {
            pending.establish(condition);
        }
        assert_eq!(pending.take(), Some(Attention::CAPACITY_CHANGED));
        assert_eq!(pending.take(), Some(Attention::MODE_PARAMETERS_CHANGED));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn a_reset_supersedes_all_but_the_lun_inventory() {
        let mut pending = Attentions::default();
        pending.establish(Attention::LUNS_CHANGED);
        pending.establish(Attention::CAPACITY_CHANGED);
        pending.establish(Attention::LOGICAL_UNIT_RESET);
        assert_eq!(pending.take(), Some(Attention::LOGICAL_UNIT_RESET));
        assert_eq!(pending.take(), Some(Attention::LUNS_CHANGED));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_flood_collapses_into_power_on() {
        let mut pending = Attentions::default();
        for ascq in 0..=255 {
            pending.establish(Attention(0x3F, ascq));
        }
        assert!(pending.len() <= Attentions::LIMIT);
        assert_eq!(pending.peek(), Some(Attention::POWER_ON));
    }
}
