//! The limits that VPD page B0h reports and the SBC handlers enforce.

/// Bytes that one READ, WRITE or VERIFY moves at most.
pub const MAX_TRANSFER: u32 = 8 << 20;
/// Blocks of one COMPARE AND WRITE.
pub const MAX_COMPARE_AND_WRITE: u8 = 255;
/// Blocks of one UNMAP: no limit.
pub const MAX_UNMAP_BLOCKS: u32 = u32::MAX;
/// Block descriptors of one UNMAP.
pub const MAX_UNMAP_DESCRIPTORS: u32 = 256;
/// Blocks that one WRITE SAME fills at most: as many as its 10-byte form can name.
pub const MAX_WRITE_SAME: u64 = 65535;
/// Bytes of one WRITE ATOMIC.
pub const MAX_ATOMIC: u32 = 1 << 20;
/// Bytes of the echo buffer of READ BUFFER and WRITE BUFFER.
pub const ECHO_BUFFER: u16 = 4096;
/// Bytes of the data buffer of READ BUFFER and WRITE BUFFER.
pub const DATA_BUFFER: u32 = 64 << 10;
