//! Submission queue entries (clause 3.3.3.1): 64 bytes.

use super::le;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sqe {
    /// What to do.
    pub opcode: u8,
    /// Names the command until it completes.
    pub cid: u16,
    /// The namespace, 0 for none.
    pub nsid: u32,
    /// First PRP entry.
    pub prp1: u64,
    /// Second PRP entry, or where the list of the others is.
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub words: [u32; 6],
}

impl Sqe {
    /// Its size in bytes.
    pub const BYTES: usize = 64;

    /// Lays it out. PRPs are used, commands are not fused, metadata has no address.
    pub fn emit(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (first, rest) = bytes.split_at_mut(40);
        first[0] = self.opcode;
        first[2..4].copy_from_slice(&self.cid.to_le_bytes());
        first[4..8].copy_from_slice(&self.nsid.to_le_bytes());
        first[24..32].copy_from_slice(&self.prp1.to_le_bytes());
        first[32..40].copy_from_slice(&self.prp2.to_le_bytes());
        for (word, bytes) in self.words.iter().zip(rest.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads one, as a controller would.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let mut words = [0; 6];
        for (i, word) in words.iter_mut().enumerate() {
            *word = le(bytes, 40 + 4 * i, 4) as u32;
        }
        Self {
            opcode: bytes[0],
            cid: le(bytes, 2, 2) as u16,
            nsid: le(bytes, 4, 4) as u32,
            prp1: le(bytes, 24, 8),
            prp2: le(bytes, 32, 8),
            words,
        }
    }

    /// Read (NVM command set 3.2.4) of `blocks`, 1 to 65536.
    pub fn read(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::of_blocks(0x02, nsid, lba, blocks, 0)
    }

    /// Write (NVM command set 3.2.6); on the medium before it completes if `fua`.
    pub fn write(nsid: u32, lba: u64, blocks: u32, fua: bool) -> Self {
        Self::of_blocks(0x01, nsid, lba, blocks, u32::from(fua) << 30)
    }

    /// Write Zeroes (NVM command set 3.2.8); deallocating if `deallocate`.
    pub fn write_zeroes(nsid: u32, lba: u64, blocks: u32, deallocate: bool) -> Self {
        Self::of_blocks(0x08, nsid, lba, blocks, u32::from(deallocate) << 25)
    }

    /// Flush (7.1).
    pub fn flush(nsid: u32) -> Self {
        Self { opcode: 0x00, nsid, ..Self::default() }
    }

    /// Dataset Management (NVM command set 3.2.3) that deallocates one range, which [`Sqe::range`]
    /// lays out for `prp1`.
    pub fn deallocate(nsid: u32) -> Self {
        let mut sqe = Self { opcode: 0x09, nsid, ..Self::default() };
        // One range is 0; attribute: deallocate.
        sqe.words[1] = 1 << 2;
        sqe
    }

    /// The range of a Dataset Management command: 16 bytes.
    pub fn range(lba: u64, blocks: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&lba.to_le_bytes());
        bytes
    }

    fn of_blocks(opcode: u8, nsid: u32, lba: u64, blocks: u32, flags: u32) -> Self {
        debug_assert!((1..=65536).contains(&blocks));
        let count = blocks.saturating_sub(1) & 0xFFFF;
        let words = [lba as u32, (lba >> 32) as u32, count | flags, 0, 0, 0];
        Self { opcode, nsid, words, ..Self::default() }
    }
}

/// Admin commands (clause 5).
pub mod admin {
    use super::Sqe;

    /// Identify (5.17) of the controller, into 4096 bytes.
    pub fn identify_controller() -> Sqe {
        identify(0, 0x01)
    }

    /// Identify of a namespace.
    pub fn identify_namespace(nsid: u32) -> Sqe {
        identify(nsid, 0x00)
    }

    /// Identify: the active namespaces with numbers above `after`.
    pub fn identify_active(after: u32) -> Sqe {
        identify(after, 0x02)
    }

    fn identify(nsid: u32, structure: u32) -> Sqe {
        Sqe { opcode: 0x06, nsid, words: [structure, 0, 0, 0, 0, 0], ..Sqe::default() }
    }

    /// Set Features, Number of Queues (5.27.1.5): this many of each kind, 1 to 65535.
    pub fn set_queues(count: u16) -> Sqe {
        let most = u32::from(count.max(1) - 1);
        Sqe { opcode: 0x09, words: [0x07, most << 16 | most, 0, 0, 0, 0], ..Sqe::default() }
    }

    /// How many queues of each kind were given, from dword 0 of the completion of [`set_queues`].
    pub fn queues_given(dword: u32) -> u16 {
        let (submission, completion) = (dword & 0xFFFF, dword >> 16);
        u16::try_from(submission.min(completion)).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// Get Features, Volatile Write Cache (5.27.1.4). Bit 0 of the completion: it is on.
    pub fn get_write_cache() -> Sqe {
        Sqe { opcode: 0x0A, words: [0x06, 0, 0, 0, 0, 0], ..Sqe::default() }
    }

    /// Create I/O Completion Queue (5.4) of `entries` at `prp1`, contiguous; with interrupts by
    /// `vector` if there is one.
    pub fn create_completion_queue(qid: u16, entries: u16, vector: Option<u16>, at: u64) -> Sqe {
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 2);
        let words = [u32::from(entries - 1) << 16 | u32::from(qid), interrupts | 1, 0, 0, 0, 0];
        Sqe { opcode: 0x05, prp1: at, words, ..Sqe::default() }
    }

    /// Create I/O Submission Queue (5.5) of `entries` at `prp1`, contiguous, that completes on the
    /// completion queue of the same number.
    pub fn create_submission_queue(qid: u16, entries: u16, at: u64) -> Sqe {
        let id = u32::from(qid);
        let words = [u32::from(entries - 1) << 16 | id, id << 16 | 1, 0, 0, 0, 0];
        Sqe { opcode: 0x01, prp1: at, words, ..Sqe::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_with_fua_is_laid_out_as_specified() {
        let mut sqe = Sqe::write(1, 0x1_2345_6789, 8, true);
        (sqe.cid, sqe.prp1, sqe.prp2) = (0x0102, 0x1000, 0x0A0B_0C0D_0E0F_0000);
        let bytes = sqe.emit();
        let mut expected = [0xA5; 64];
        expected[..8].copy_from_slice(&[0x01, 0, 0x02, 0x01, 1, 0, 0, 0]);
        expected[8..24].fill(0);
        expected[24..32].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 0]);
        expected[32..40].copy_from_slice(&[0, 0, 0x0F, 0x0E, 0x0D, 0x0C, 0x0B, 0x0A]);
        expected[40..48].copy_from_slice(&[0x89, 0x67, 0x45, 0x23, 1, 0, 0, 0]);
        expected[48..52].copy_from_slice(&[7, 0, 0, 0x40]);
        expected[52..].fill(0);
        assert_eq!(bytes, expected);
        assert_eq!(Sqe::parse(&bytes), sqe);
    }

    #[test]
    fn every_command_has_its_opcode_and_words() {
        assert_eq!(Sqe::read(3, 0, 65536).words, [0, 0, 0xFFFF, 0, 0, 0]);
        let zeroes = Sqe::write_zeroes(1, 5, 1, true);
        assert_eq!((zeroes.opcode, zeroes.words[2]), (0x08, 1 << 25));
        let deallocate = Sqe::deallocate(1);
        assert_eq!((deallocate.opcode, deallocate.words[..2].to_vec()), (0x09, vec![0, 4]));
        let range = Sqe::range(0x0102, 0x20);
        assert_eq!(range, [0, 0, 0, 0, 0x20, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Sqe::flush(9).emit()[..8], [0, 0, 0, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn queues_are_made_contiguous_with_or_without_interrupts() {
        let queue = admin::create_completion_queue(2, 256, Some(3), 0x8000);
        assert_eq!((queue.opcode, queue.prp1), (0x05, 0x8000));
        assert_eq!(queue.words[..2], [0x00FF_0002, 0x0003_0003]);
        assert_eq!(admin::create_completion_queue(1, 2, None, 0).words[1], 1);
        let queue = admin::create_submission_queue(2, 256, 0x9000);
        assert_eq!(
            (queue.opcode, queue.words[0], queue.words[1]),
            (0x01, 0x00FF_0002, 0x0002_0001)
        );
        assert_eq!(admin::set_queues(4).words[..2], [0x07, 0x0003_0003]);
        assert_eq!(admin::queues_given(0x0003_0007), 4);
        assert_eq!(admin::queues_given(u32::MAX), u16::MAX);
    }
}
