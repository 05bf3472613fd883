//! CAPABILITIES: what client and server can do beyond the base.

use core::fmt;

use thiserror::Error;
use zerocopy::big_endian::{U16, U32};

use crate::wire::{self, NoRoom, WireError, codes, raw};

/// The payload of the datagram: a header and a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities<'a> {
    /// What the sender says of itself and of the list.
    pub flags: CapabilityFlags,
    /// The sender's name, NUL-padded.
    pub name: [u8; 32],
    /// The sender's location code, NUL-padded.
    pub location: [u8; 32],
    list: &'a [u8],
}

impl<'a> Capabilities<'a> {
    /// Bytes in front of the list.
    pub const HEADER_LEN: usize = size_of::<RawHeader>();
    /// The longest payload accepted, in bytes, as Linux's server has it.
    pub const MAX_LEN: usize = 4096;

    /// Reads a payload of exactly the length its datagram states.
    pub fn parse(payload: &'a [u8]) -> Result<Self, CapabilitiesError> {
        if payload.len() > Self::MAX_LEN {
            return Err(CapabilitiesError::TooLong(payload.len()));
        }
        let (raw, list) = wire::read::<RawHeader>(payload)?;
        let mut rest = list;
        while !rest.is_empty() {
            (_, rest) = split_entry(rest)?;
        }
        let flags = CapabilityFlags(raw.flags.get());
        Ok(Self { flags, name: raw.name, location: raw.location, list })
    }

    /// The capabilities asked about.
    pub fn iter(&self) -> impl Iterator<Item = Capability<'a>> + use<'a> {
        let mut rest = self.list;
        core::iter::from_fn(move || {
            // `parse` has walked the list, so what fails here is its end.
            let (entry, behind) = split_entry(rest).ok()?;
            rest = behind;
            Some(entry)
        })
    }

    /// Writes header and list with the support that `support` states for each entry; gives the
    /// bytes written.
    pub fn emit(
        &self,
        out: &mut [u8],
        mut support: impl FnMut(&Capability<'a>) -> Support,
    ) -> Result<usize, NoRoom> {
        let len = Self::HEADER_LEN.saturating_add(self.list.len());
        let out = wire::room_for(len, out)?;
        let raw =
            RawHeader { flags: self.flags.0.into(), name: self.name, location: self.location };
        let mut at = wire::write(&raw, out)?;
        for entry in self.iter() {
            let entry = Capability { support: support(&entry), ..entry };
            at += entry.emit(&mut out[at..])?;
        }
        Ok(at)
    }
}

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability<'a> {
    /// Which.
    pub kind: CapabilityKind,
    /// Whether it is supported.
    pub support: Support,
    /// Its data: four bytes for the kinds known.
    pub value: &'a [u8],
}

impl Capability<'_> {
    /// Bytes in front of the data.
    pub const HEADER_LEN: usize = size_of::<RawEntry>();

    /// Writes the entry; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let needed = Self::HEADER_LEN.saturating_add(self.value.len());
        let room = out.len();
        let len = u16::try_from(needed).map_err(|_| NoRoom { needed, room })?;
        let out = wire::room_for(needed, out)?;
        let raw = RawEntry {
            kind: self.kind.code().into(),
            len: len.into(),
            support: self.support.code().into(),
        };
        let header = wire::write(&raw, out)?;
        out[header..].copy_from_slice(self.value);
        Ok(needed)
    }
}

codes! {
    /// Which capability.
    pub enum CapabilityKind(u32) {
        /// Partition migration; the value is an "ecl" of 1.
        Migration = 1,
        /// Reservations; the value is their type, 1 for SCSI-2.
        Reservation = 2,
    }
}

codes! {
    /// Whether a capability is supported. Linux takes nothing but `Yes` as support.
    pub enum Support(u16) {
        /// No.
        No = 0,
        /// Yes.
        Yes = 1,
        /// Yes, and the value says more.
        YesWithData = 2,
    }
}

/// A set of flags; bits without a name are kept.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilityFlags(pub u32);

impl CapabilityFlags {
    /// The client was migrated.
    pub const MIGRATED: Self = Self(0x1);
    /// The client reconnects.
    pub const RECONNECT: Self = Self(0x2);
    /// A list is supported.
    pub const LIST_SUPPORTED: Self = Self(0x4);
    /// The list has data.
    pub const LIST_DATA: Self = Self(0x8);

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for CapabilityFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A payload that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CapabilitiesError {
    /// The payload ends within the header or an entry.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The payload is longer than [`Capabilities::MAX_LEN`].
    #[error("capabilities of {0} bytes")]
    TooLong(usize),
    /// An entry states a length below that of its own header.
    #[error("a capability of {0} bytes")]
    EntryLength(u16),
}

fn split_entry(list: &[u8]) -> Result<(Capability<'_>, &[u8]), CapabilitiesError> {
    let (raw, rest) = wire::read::<RawEntry>(list)?;
    let len = raw.len.get();
    let value_len = usize::from(len)
        .checked_sub(Capability::HEADER_LEN)
        .ok_or(CapabilitiesError::EntryLength(len))?;
    let (value, rest) = rest
        .split_at_checked(value_len)
        .ok_or_else(|| WireError::Truncated { needed: usize::from(len), got: list.len() })?;
    let entry = Capability {
        kind: CapabilityKind::from_code(raw.kind.get()),
        support: Support::from_code(raw.support.get()),
        value,
    };
    Ok((entry, rest))
}

raw! {
    struct RawHeader = 68 {
        flags: U32,
        name: [u8; 32],
        location: [u8; 32],
    }
}

raw! {
    struct RawEntry = 8 {
        kind: U32,
        len: U16,
        support: U16,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// What Linux's client sends: migration and SCSI-2 reserve.
    fn linux_request() -> [u8; 92] {
        let mut bytes = [0; 92];
        bytes[3] = 0x04;
        bytes[4..8].copy_from_slice(b"name");
        bytes[36..39].copy_from_slice(b"loc");
        bytes[68..80].copy_from_slice(&[0, 0, 0, 1, 0, 12, 0, 1, 0, 0, 0, 1]);
        bytes[80..92].copy_from_slice(&[0, 0, 0, 2, 0, 12, 0, 1, 0, 0, 0, 1]);
        bytes
    }

    #[test]
    fn linux_request_has_two_entries() {
        let bytes = linux_request();
        let capabilities = Capabilities::parse(&bytes).unwrap();
        assert!(capabilities.flags.contains(CapabilityFlags::LIST_SUPPORTED));
        assert!(!capabilities.flags.contains(CapabilityFlags::MIGRATED));
        let entries: Vec<_> = capabilities.iter().collect();
        let entry =
            |kind| Capability { kind, support: Support::Yes, value: [0, 0, 0, 1].as_slice() };
        assert_eq!(entries, [entry(CapabilityKind::Migration), entry(CapabilityKind::Reservation)]);
    }

    #[test]
    fn unchanged_answer_has_the_same_bytes() {
        let bytes = linux_request();
        let capabilities = Capabilities::parse(&bytes).unwrap();
        let mut out = [0xA5; 96];
        assert_eq!(capabilities.emit(&mut out, |entry| entry.support), Ok(92));
        assert_eq!(out[..92], bytes);
        assert_eq!(out[92..], [0xA5; 4]);
    }

    #[test]
    fn denied_entries_say_no() {
        let bytes = linux_request();
        let capabilities = Capabilities::parse(&bytes).unwrap();
        let mut out = [0xA5; 92];
        capabilities.emit(&mut out, |_| Support::No).unwrap();
        let mut expected = bytes;
        expected[75] = 0;
        expected[87] = 0;
        assert_eq!(out, expected);
    }

    #[test]
    fn payload_lengths_are_judged() {
        let mut long = [0; 4097];
        for entry in long[68..].chunks_exact_mut(12) {
            entry.copy_from_slice(&[0, 0, 0, 9, 0, 12, 0, 0, 0, 0, 0, 0]);
        }
        let header = |got| Err(CapabilitiesError::Wire(WireError::Truncated { needed: 68, got }));
        assert_eq!(Capabilities::parse(&[]), header(0));
        assert_eq!(Capabilities::parse(&long[..15]), header(15));
        assert_eq!(Capabilities::parse(&long[..67]), header(67));
        assert_eq!(Capabilities::parse(&long[..68]).unwrap().iter().count(), 0);
        assert_eq!(Capabilities::parse(&long[..92]).unwrap().iter().count(), 2);
        assert_eq!(Capabilities::parse(&long), Err(CapabilitiesError::TooLong(4097)));
    }

    #[test]
    fn payload_of_the_longest_length_is_accepted() {
        let mut longest = [0; 4096];
        longest[72..74].copy_from_slice(&4028_u16.to_be_bytes());
        let capabilities = Capabilities::parse(&longest).unwrap();
        assert_eq!(capabilities.iter().next().unwrap().value.len(), 4020);
    }

    #[test]
    fn entry_without_length_is_refused() {
        let mut bytes = linux_request();
        bytes[73] = 0;
        assert_eq!(Capabilities::parse(&bytes), Err(CapabilitiesError::EntryLength(0)));
        bytes[73] = 7;
        assert_eq!(Capabilities::parse(&bytes), Err(CapabilitiesError::EntryLength(7)));
    }

    #[test]
    fn entry_beyond_the_payload_is_truncated() {
        let mut bytes = linux_request();
        bytes[85] = 13;
        let error = WireError::Truncated { needed: 13, got: 12 };
        assert_eq!(Capabilities::parse(&bytes), Err(CapabilitiesError::Wire(error)));
    }

    #[test]
    fn unknown_kinds_are_kept() {
        let mut bytes = linux_request();
        bytes[71] = 0x77;
        let capabilities = Capabilities::parse(&bytes).unwrap();
        assert_eq!(capabilities.iter().next().unwrap().kind, CapabilityKind::Unknown(0x77));
    }

    #[test]
    fn answer_without_room_is_an_error() {
        let bytes = linux_request();
        let capabilities = Capabilities::parse(&bytes).unwrap();
        let error = NoRoom { needed: 92, room: 91 };
        assert_eq!(capabilities.emit(&mut [0; 91], |entry| entry.support), Err(error));
    }

    proptest! {
        #[test]
        fn accepted_payloads_are_emitted_unchanged(
            mut bytes in prop::collection::vec(any::<u8>(), 68..400),
            lens in prop::collection::vec(0..20_u16, 20),
        ) {
            let mut at = 68;
            for len in lens {
                let Some(field) = bytes.get_mut(at + 4..at + 6) else { break };
                field.copy_from_slice(&len.to_be_bytes());
                at += usize::from(len);
            }
            if let Ok(capabilities) = Capabilities::parse(&bytes) {
                let mut out = std::vec![0xA5; bytes.len()];
                prop_assert_eq!(capabilities.emit(&mut out, |e| e.support), Ok(bytes.len()));
                prop_assert_eq!(out, bytes);
            }
        }
    }
}
