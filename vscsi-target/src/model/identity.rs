//! Who a logical unit is: the designators of VPD page 83h, stable across restarts and unique.

use sha2::{Digest, Sha256};

/// The identity of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// T10 vendor identification, left-aligned ASCII.
    pub vendor: [u8; 8],
    /// Product identification, left-aligned ASCII.
    pub product: [u8; 16],
    /// Product revision level.
    pub revision: [u8; 4],
    /// Unit serial number (VPD 80h), printable ASCII.
    pub serial: String,
    /// Locally assigned NAA (type 3) name.
    pub naa: u64,
    /// EUI-64 with the locally administered bit set.
    pub eui: u64,
}

impl Identity {
    /// Derives every name from one seed: the configured serial number, or what stays the same
    /// about a logical unit over restarts (target name and canonical path of the image).
    ///
    /// `serial` is used as it is when given; otherwise it is 20 hexadecimal digits of the seed's
    /// SHA-256. Names of different seeds differ with overwhelming probability.
    pub fn derive(seed: &str, serial: Option<&str>) -> Self {
        let digest = Sha256::digest(serial.unwrap_or(seed).as_bytes());
        let word =
            |at: usize| digest[at..at + 8].iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let serial = serial.map_or_else(
            || digest[16..26].iter().map(|byte| format!("{byte:02x}")).collect(),
            str::to_owned,
        );
        Self {
            vendor: *b"VSCSI   ",
            product: *b"VIRTUAL-DISK    ",
            revision: *b"0001",
            serial,
            naa: 3 << 60 | word(0) >> 4,
            // The second-lowest bit of the first byte marks a locally administered identifier.
            eui: word(8) & !(0x03 << 56) | 0x02 << 56,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_identity() {
        assert_eq!(Identity::derive("a", None), Identity::derive("a", None));
    }

    #[test]
    fn different_seeds_and_serials_differ() {
        let a = Identity::derive("a", None);
        let b = Identity::derive("b", None);
        let c = Identity::derive("a", Some("SN1"));
        assert!(a.naa != b.naa && a.eui != b.eui && a.serial != b.serial && a.naa != c.naa);
        assert_eq!(c.serial, "SN1");
        assert_eq!(a.naa >> 60, 3);
        assert_eq!(a.eui >> 56 & 3, 2);
    }
}
