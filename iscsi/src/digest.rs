//! CRC32C as iSCSI puts it on the wire (RFC 7143 13.1).
//!
//! The header digest covers the BHS and every AHS, the data digest the data segment and its
//! padding; both are sent least significant byte first.

use std::fmt;

use crc_fast::CrcAlgorithm;

/// The digest of one contiguous piece, in wire order.
#[inline]
pub fn crc32c(bytes: &[u8]) -> [u8; 4] {
    wire(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// A digest over several pieces.
#[derive(Clone, Copy)]
pub struct Crc32c(crc_fast::Digest);

impl Crc32c {
    /// The digest of nothing yet.
    #[inline]
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds the next piece.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds the zero bytes that pad `len` data bytes to a multiple of four.
    #[inline]
    pub fn pad(&mut self, len: usize) {
        self.0.update(&[0; 3][..len.wrapping_neg() & 3]);
    }

    /// The digest of everything added, in wire order.
    #[inline]
    pub fn finish(&self) -> [u8; 4] {
        wire(self.0.finalize())
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crc32c({:02x?})", self.finish())
    }
}

fn wire(crc: u64) -> [u8; 4] {
    // The algorithm is 32 bits wide; the crate returns every width as 64.
    (crc as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_give_the_vector_of_the_rfc() {
        assert_eq!(crc32c(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
    }

    #[test]
    fn ones_give_the_vector_of_the_rfc() {
        assert_eq!(crc32c(&[0xFF; 32]), [0x43, 0xAB, 0xA8, 0x62]);
    }

    #[test]
    fn ascending_bytes_give_the_vector_of_the_rfc() {
        let bytes: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&bytes), [0x4E, 0x79, 0xDD, 0x46]);
    }

    #[test]
    fn descending_bytes_give_the_vector_of_the_rfc() {
        let bytes: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&bytes), [0x5C, 0xDB, 0x3F, 0x11]);
    }

    #[test]
    fn read_10_command_gives_the_vector_of_the_rfc() {
        let mut header = [0; 48];
        header[..2].copy_from_slice(&[0x01, 0xC0]);
        header[16] = 0x14;
        header[22] = 0x04;
        header[27] = 0x14;
        header[31] = 0x18;
        header[32] = 0x28;
        header[40] = 0x02;
        assert_eq!(crc32c(&header), [0x56, 0x3A, 0x96, 0xD9]);
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut digest = Crc32c::new();
        bytes.chunks(7).for_each(|piece| digest.update(piece));
        assert_eq!(digest.finish(), crc32c(&bytes));
    }

    #[test]
    fn padding_counts_as_zeros() {
        let mut digest = Crc32c::new();
        digest.update(b"hello");
        digest.pad(5);
        assert_eq!(digest.finish(), crc32c(b"hello\0\0\0"));
    }
}
