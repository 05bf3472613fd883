//! PHYSICAL ADAPTER INFO: what hardware stands behind a logical unit.

use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::Lun;
use crate::wire::{self, NoRoom, WireError, raw};

/// The payload of the datagram. The client fills in LUN and version, the server the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalAdapterInfo {
    /// The logical unit asked about.
    pub lun: Lun,
    /// The version of this layout: 1.
    pub version: u32,
    /// The part number of the field-replaceable unit, NUL-padded.
    pub part_number: [u8; 128],
    /// The serial number, NUL-padded.
    pub serial_number: [u8; 128],
    /// The location, NUL-padded.
    pub location: [u8; 256],
}

impl PhysicalAdapterInfo {
    /// Bytes of the payload.
    pub const LEN: usize = size_of::<RawPhysicalAdapterInfo>();

    /// Reads the payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read::<RawPhysicalAdapterInfo>(bytes)?;
        Ok(Self {
            lun: Lun(raw.lun),
            version: raw.version.get(),
            part_number: raw.part_number,
            serial_number: raw.serial_number,
            location: raw.location,
        })
    }

    /// Writes the payload; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawPhysicalAdapterInfo {
            lun: self.lun.0,
            version: self.version.into(),
            part_number: self.part_number,
            serial_number: self.serial_number,
            location: self.location,
            ..RawPhysicalAdapterInfo::new_zeroed()
        };
        wire::write(&raw, out)
    }
}

raw! {
    struct RawPhysicalAdapterInfo = 528 {
        lun: [u8; 8],
        version: U32,
        part_number: [u8; 128],
        serial_number: [u8; 128],
        location: [u8; 256],
        _reserved524: [u8; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;
    use crate::viosrp::padded;

    #[test]
    fn filled_in_information_round_trips() {
        let mut bytes = [0; 528];
        bytes[..12].copy_from_slice(&[0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes[12..15].copy_from_slice(b"FRU");
        bytes[140..143].copy_from_slice(b"SER");
        bytes[268..271].copy_from_slice(b"U78");
        let info = PhysicalAdapterInfo {
            lun: Lun([0x80, 2, 0, 0, 0, 0, 0, 0]),
            version: 1,
            part_number: padded("FRU"),
            serial_number: padded("SER"),
            location: padded("U78"),
        };
        round_trip!(bytes, info, PhysicalAdapterInfo::parse, PhysicalAdapterInfo::emit);
    }
}
