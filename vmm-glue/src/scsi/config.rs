//! The configuration space (VIRTIO 1.3, 5.6.4).

use super::Layout;

/// The configuration space of one device, 36 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Request queues.
    pub queues: u16,
    /// What the driver may change.
    pub layout: Layout,
}

impl Config {
    /// The configuration after a reset.
    pub fn new(queues: u16) -> Self {
        Self { queues, layout: Layout::DEFAULT }
    }

    /// All of it.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let words: [u32; 7] = [
            self.queues.into(),
            SEG_MAX,
            MAX_SECTORS,
            COMMANDS_PER_LUN,
            super::event::LEN as u32,
            self.layout.sense_size as u32,
            self.layout.cdb_size as u32,
        ];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        // MAX CHANNEL is 0.
        bytes[30..32].copy_from_slice(&u16::from(u8::MAX).to_le_bytes());
        bytes[32..36].copy_from_slice(&MAX_LUN.to_le_bytes());
        bytes
    }

    /// `len` bytes from `offset`; beyond the end there are zeroes, since no access may fail.
    pub fn read(&self, offset: u32, len: u32) -> Vec<u8> {
        let bytes = self.bytes();
        let start = offset as usize;
        (start..start.saturating_add(len as usize))
            .map(|at| bytes.get(at).copied().unwrap_or(0))
            .collect()
    }

    /// Takes what the driver wrote. Only the sizes of sense data and CDBs can be written; what
    /// cannot be is ignored.
    pub fn write(&mut self, offset: u32, bytes: &[u8]) {
        let mut all = self.bytes();
        for (at, byte) in (offset as usize..).zip(bytes) {
            if let Some(place) = all.get_mut(at) {
                *place = *byte;
            }
        }
        let word = |at: usize| {
            let bytes = all.get(at..at + 4).unwrap_or_default();
            bytes.iter().rev().fold(0usize, |word, byte| word << 8 | usize::from(*byte))
        };
        let (sense, cdb) = (word(20), word(24));
        if sense <= MOST_SENSE {
            self.layout.sense_size = sense;
        }
        if (6..=MOST_CDB).contains(&cdb) {
            self.layout.cdb_size = cdb;
        }
    }
}

/// Bytes of the configuration space.
pub const LEN: usize = 36;
/// The longest CDB (SPC-5 4.2.3).
pub const MOST_CDB: usize = 260;
/// The longest sense data (SPC-5 4.4.1).
const MOST_SENSE: usize = 252;
/// Data segments of a request that drivers use at most, as in QEMU.
const SEG_MAX: u32 = 126;
/// Sectors of a request at most.
const MAX_SECTORS: u32 = 0xFFFF;
const COMMANDS_PER_LUN: u32 = 128;
const MAX_LUN: u32 = 16383;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_changes_two_sizes_and_nothing_else() {
        let mut config = Config::new(4);
        config.write(0, &[9; LEN]);
        assert_eq!(config, Config::new(4));
        config.write(20, &[18, 0, 0, 0, 16, 0, 0, 0]);
        assert_eq!((config.layout.sense_size, config.layout.cdb_size), (18, 16));
        config.write(u32::MAX, &[1; 8]);
        assert_eq!(config.layout.cdb_size, 16);
    }

    #[test]
    fn reads_beyond_the_end_give_zeroes() {
        let config = Config::new(4);
        assert_eq!(config.read(0, 5), [4, 0, 0, 0, 126]);
        assert_eq!(config.read(34, 4), [0, 0, 0, 0]);
        assert_eq!(config.read(32, 4), [0xFF, 0x3F, 0, 0]);
        assert_eq!(config.read(u32::MAX, 2), [0, 0]);
    }
}
