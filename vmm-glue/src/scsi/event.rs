//! Events (VIRTIO 1.3, 5.6.6.3).

use vscsi_target::model::Attention;

use super::Address;

/// Something a driver wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A logical unit can be used now.
    Added {
        /// Its target.
        target: u8,
        /// Its number.
        number: u16,
    },
    /// A logical unit cannot be used any more.
    Removed {
        /// Its target.
        target: u8,
        /// Its number.
        number: u16,
    },
    /// Something about a logical unit changed.
    Changed {
        /// Its target.
        target: u8,
        /// Its number.
        number: u16,
        /// What, as its unit attention says it.
        condition: Attention,
    },
    /// Nothing but that events were missed.
    Missed,
}

impl Event {
    /// The logical unit it is about.
    pub fn place(self) -> Option<(u8, u16)> {
        match self {
            Self::Added { target, number }
            | Self::Removed { target, number }
            | Self::Changed { target, number, .. } => Some((target, number)),
            Self::Missed => None,
        }
    }

    /// The event on the wire; `missed` says that others before it were dropped.
    pub fn bytes(self, missed: bool) -> [u8; LEN] {
        let (event, address, reason): (u32, [u8; 8], u32) = match self {
            Self::Added { target, number } => {
                (TRANSPORT_RESET, Address::in_event(target, number), RESCAN)
            }
            Self::Removed { target, number } => {
                (TRANSPORT_RESET, Address::in_event(target, number), REMOVED)
            }
            Self::Changed { target, number, condition: Attention(asc, ascq) } => {
                let reason = u32::from(ascq) << 8 | u32::from(asc);
                (PARAM_CHANGE, Address::in_event(target, number), reason)
            }
            Self::Missed => (NO_EVENT, [0; 8], 0),
        };
        let missed = if missed || self == Self::Missed { EVENTS_MISSED } else { 0 };
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&(event | missed).to_le_bytes());
        bytes[4..12].copy_from_slice(&address);
        bytes[12..].copy_from_slice(&reason.to_le_bytes());
        bytes
    }
}

/// Bytes of an event.
pub const LEN: usize = 16;

const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
const EVENTS_MISSED: u32 = 1 << 31;
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_change_says_its_codes_low_byte_first() {
        let condition = Attention::CAPACITY_CHANGED;
        let bytes = Event::Changed { target: 0, number: 1, condition }.bytes(false);
        assert_eq!(bytes, [3, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0x2A, 0x09, 0, 0]);
    }

    #[test]
    fn logical_units_are_encoded_as_report_luns_does() {
        let bytes = Event::Added { target: 3, number: 300 }.bytes(true);
        assert_eq!(bytes, [1, 0, 0, 0x80, 1, 3, 0x41, 0x2C, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
