//! Sense data: what went wrong, as a value, and its two encodings (SPC-5 4.4).

use libsrp::SenseData;

/// Sense keys (SPC-5 table 48).
pub mod key {
    #![allow(missing_docs)]
    pub const NO_SENSE: u8 = 0x0;
    pub const RECOVERED_ERROR: u8 = 0x1;
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xB;
    pub const MISCOMPARE: u8 = 0xE;
}

/// The sense-key specific field (SPC-5 4.4.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specific {
    /// Nothing.
    None,
    /// A field of the CDB is wrong: byte and, where known, its most significant wrong bit.
    Cdb(u16, Option<u8>),
    /// A field of the parameter list is wrong.
    Parameter(u16, Option<u8>),
    /// How far a long operation is, in 65536ths.
    Progress(u16),
}

/// One sense value. `Copy`, so the failure path costs no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key, of [`key`].
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION: an LBA or a byte offset, as the command defines it.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION.
    pub command: Option<u64>,
    /// Sense-key specific bytes.
    pub specific: Specific,
    /// The error belongs to an earlier command.
    pub deferred: bool,
}

impl Sense {
    /// NO SENSE.
    pub const NONE: Self = Self::new(key::NO_SENSE, 0x00, 0x00);
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Self = Self::new(key::ILLEGAL_REQUEST, 0x20, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(key::ILLEGAL_REQUEST, 0x21, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(key::ILLEGAL_REQUEST, 0x24, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const LUN_NOT_SUPPORTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x25, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_FIELD_IN_PARAMETERS: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x00);
    /// PARAMETER LIST LENGTH ERROR.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(key::ILLEGAL_REQUEST, 0x1A, 0x00);
    /// COMMAND SEQUENCE ERROR.
    pub const COMMAND_SEQUENCE: Self = Self::new(key::ILLEGAL_REQUEST, 0x2C, 0x00);
    /// LOGICAL UNIT FAILED SELF-TEST.
    pub const SELF_TEST_FAILED: Self = Self::new(key::HARDWARE_ERROR, 0x3E, 0x03);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x39, 0x00);
    /// MEDIUM NOT PRESENT.
    pub const NO_MEDIUM: Self = Self::new(key::NOT_READY, 0x3A, 0x00);
    /// LOGICAL UNIT IS IN PROCESS OF BECOMING READY: its image belongs to another process yet.
    pub const BECOMING_READY: Self = Self::new(key::NOT_READY, 0x04, 0x01);
    /// LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED: it was stopped.
    pub const STOPPED: Self = Self::new(key::NOT_READY, 0x04, 0x02);
    /// LOGICAL UNIT NOT READY, FORMAT IN PROGRESS.
    pub const FORMATTING: Self = Self::new(key::NOT_READY, 0x04, 0x04);
    /// LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS.
    pub const SANITIZING: Self = Self::new(key::NOT_READY, 0x04, 0x1B);
    /// MEDIUM FORMAT CORRUPTED, SANITIZE COMMAND FAILED.
    pub const SANITIZE_FAILED: Self = Self::new(key::MEDIUM_ERROR, 0x31, 0x03);
    /// WRITE PROTECTED.
    pub const WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x00);
    /// SPACE ALLOCATION FAILED WRITE PROTECT: a thin backing ran out of space.
    pub const SPACE_EXHAUSTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x07);
    /// MEDIUM REMOVAL PREVENTED.
    pub const REMOVAL_PREVENTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x53, 0x02);
    /// UNRECOVERED READ ERROR.
    pub const READ_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x11, 0x00);
    /// WRITE ERROR.
    pub const WRITE_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x0C, 0x00);
    /// INTERNAL TARGET FAILURE.
    pub const INTERNAL_FAILURE: Self = Self::new(key::HARDWARE_ERROR, 0x44, 0x00);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub const MISCOMPARE: Self = Self::new(key::MISCOMPARE, 0x1D, 0x00);
    /// NOT ENOUGH UNSOLICITED DATA / UNEXPECTED UNSOLICITED DATA (iSCSI).
    pub const UNEXPECTED_UNSOLICITED_DATA: Self = Self::new(key::ABORTED_COMMAND, 0x0C, 0x0C);
    /// NOT ENOUGH UNSOLICITED DATA (iSCSI).
    pub const NOT_ENOUGH_UNSOLICITED_DATA: Self = Self::new(key::ABORTED_COMMAND, 0x0C, 0x0D);
    /// LOGICAL UNIT COMMUNICATION TIME-OUT: the medium did not answer in time, and the command was
    /// taken back. Initiators try again. COMMAND TIMEOUT DURING PROCESSING would say the same, but
    /// Linux takes it for a duration limit that the application set, and fails the command for good.
    pub const TIMED_OUT: Self = Self::new(key::ABORTED_COMMAND, 0x08, 0x01);
    /// PROTOCOL SERVICE CRC ERROR (iSCSI).
    pub const CRC_ERROR: Self = Self::new(key::ABORTED_COMMAND, 0x47, 0x05);

    /// A sense value of three codes and nothing else.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self {
            key,
            asc,
            ascq,
            information: None,
            command: None,
            specific: Specific::None,
            deferred: false,
        }
    }

    /// INVALID FIELD IN CDB pointing at a byte.
    pub const fn cdb_byte(byte: u16) -> Self {
        let mut sense = Self::INVALID_FIELD_IN_CDB;
        sense.specific = Specific::Cdb(byte, None);
        sense
    }

    /// INVALID FIELD IN CDB pointing at a bit.
    pub const fn cdb_bit(byte: u16, bit: u8) -> Self {
        let mut sense = Self::INVALID_FIELD_IN_CDB;
        sense.specific = Specific::Cdb(byte, Some(bit));
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST pointing at a byte.
    pub const fn parameter_byte(byte: u16) -> Self {
        let mut sense = Self::INVALID_FIELD_IN_PARAMETERS;
        sense.specific = Specific::Parameter(byte, None);
        sense
    }

    /// The same with INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same with a progress indication (0 to 65535).
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Self {
        self.specific = Specific::Progress(progress);
        self
    }

    /// The bytes to send, in descriptor or fixed format (SPC-5 4.4.2, 4.4.3).
    pub fn encode(&self, descriptor: bool) -> SenseData {
        if descriptor { self.encode_descriptor() } else { self.encode_fixed() }
    }

    fn encode_fixed(&self) -> SenseData {
        let mut b = [0u8; 18];
        b[0] = if self.deferred { 0x71 } else { 0x70 };
        b[2] = self.key;
        b[7] = 10;
        // The four-byte field holds what fits; VALID says that it does.
        if let Some(info) = self.information
            && let Ok(info) = u32::try_from(info)
        {
            b[0] |= 0x80;
            b[3..7].copy_from_slice(&info.to_be_bytes());
        }
        if let Some(command) = self.command
            && let Ok(command) = u32::try_from(command)
        {
            b[8..12].copy_from_slice(&command.to_be_bytes());
        }
        b[12] = self.asc;
        b[13] = self.ascq;
        b[15..18].copy_from_slice(&self.specific.encode());
        SenseData::new(&b)
    }

    fn encode_descriptor(&self) -> SenseData {
        let mut b = [0u8; 8 + 12 + 12 + 8];
        b[0] = if self.deferred { 0x73 } else { 0x72 };
        b[1] = self.key;
        b[2] = self.asc;
        b[3] = self.ascq;
        let mut at = 8;
        for (kind, value) in [(0x00, self.information), (0x01, self.command)] {
            if let Some(value) = value {
                b[at] = kind;
                b[at + 1] = 0x0A;
                b[at + 2] = if kind == 0 { 0x80 } else { 0 };
                b[at + 4..at + 12].copy_from_slice(&value.to_be_bytes());
                at += 12;
            }
        }
        if self.specific != Specific::None {
            b[at] = 0x02;
            b[at + 1] = 0x06;
            b[at + 4..at + 7].copy_from_slice(&self.specific.encode());
            at += 8;
        }
        b[7] = (at - 8) as u8;
        SenseData::new(&b[..at])
    }
}

impl Specific {
    fn encode(self) -> [u8; 3] {
        let pointer = |flags: u8, byte: u16, bit: Option<u8>| {
            let [high, low] = byte.to_be_bytes();
            [0x80 | flags | bit.map_or(0, |bit| 0x08 | (bit & 7)), high, low]
        };
        match self {
            Self::None => [0; 3],
            Self::Cdb(byte, bit) => pointer(0x40, byte, bit),
            Self::Parameter(byte, bit) => pointer(0, byte, bit),
            Self::Progress(done) => {
                let [high, low] = done.to_be_bytes();
                [0x80, high, low]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_carries_codes_information_and_field_pointer() {
        let sense = Sense::cdb_bit(2, 5).with_information(0x0102_0304).encode(false);
        assert_eq!(
            sense.as_bytes(),
            [0xF0, 0, 5, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCD, 0, 2]
        );
    }

    #[test]
    fn fixed_format_leaves_out_information_that_does_not_fit() {
        let sense = Sense::READ_ERROR.with_information(1 << 32).encode(false);
        assert_eq!(sense.as_bytes()[0], 0x70);
        assert_eq!(sense.as_bytes()[3..7], [0; 4]);
    }

    #[test]
    fn descriptor_format_carries_eight_byte_information() {
        let sense = Sense::READ_ERROR.with_information(1 << 32).encode(true);
        assert_eq!(
            sense.as_bytes(),
            [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 0x0A, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]
        );
    }

    #[test]
    fn progress_is_sense_key_specific() {
        let sense = Sense::FORMATTING.with_progress(0x8000).encode(true);
        assert_eq!(sense.as_bytes()[7..16], [8, 2, 6, 0, 0, 0x80, 0x80, 0, 0]);
    }
}
