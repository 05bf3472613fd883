//! The ring of a TCMU device on the wire: offsets and codes of `linux/target_core_user.h`, mailbox
//! version 2, in the byte order of the machine. Values and bytes only.

use libsrp::TaskFunction;

/// Byte offsets from the start of the mapping.
pub mod mailbox {
    /// The version, 16 bits.
    pub const VERSION: u32 = 0;
    /// What the kernel can do, 16 bits of [`super::capability`].
    pub const FLAGS: u32 = 2;
    /// Where the command ring begins, 32 bits.
    pub const RING_OFFSET: u32 = 4;
    /// Bytes of the command ring, 32 bits.
    pub const RING_SIZE: u32 = 8;
    /// Where in the ring the kernel puts the next entry, 32 bits.
    pub const HEAD: u32 = 12;
    /// Where in the ring the first entry is that was not given back, 32 bits. On a cache line of its
    /// own; the only word of the mailbox that a handler writes.
    pub const TAIL: u32 = 64;
    /// When a handler last saw that the ring was empty, in milliseconds, 64 bits: a note to the next
    /// one, in what is left of the handler's cache line.
    pub const ALIVE: u32 = 72;
    /// Bytes of the mailbox.
    pub const LEN: u32 = 128;
}

/// Bits of [`mailbox::FLAGS`].
pub mod capability {
    /// Entries may be given back in another order than they came in.
    pub const OUT_OF_ORDER: u16 = 1;
    /// A response may say how many bytes were read.
    pub const READ_LEN: u16 = 2;
    /// Task management is told by entries of its own, if the device's `tmr_notification` is set.
    pub const TASK_MANAGEMENT: u16 = 4;
}

/// Byte offsets in an entry.
pub mod entry {
    /// Length and operation, command id, flags of the kernel and of the handler: 64 bits.
    pub const HEADER: u32 = 0;
    /// Number of iovecs for the data, 32 bits; for the status of a response, 8 bits of 64.
    pub const IOVECS: u32 = 8;
    /// Number of iovecs for the Data-In of a command with data both ways, 32 bits; in a response the
    /// bytes read.
    pub const IOVECS_IN: u32 = 12;
    /// Sense data of a response, [`SENSE`] bytes.
    pub const SENSE_DATA: u32 = 16;
    /// Where the CDB is, from the start of the mapping, 64 bits.
    pub const CDB: u32 = 24;
    /// 8 bytes that the kernel does not read: since when the command is known, in milliseconds; in an
    /// exchange, the response.
    pub const SINCE: u32 = 32;
    /// 8 more: a note of an exchange that is going on.
    pub const NOTE: u32 = 40;
    /// The iovecs: offset from the start of the mapping and length, 64 bits each.
    pub const LIST: u32 = 48;
    /// Bytes of an entry for a command, without what of its iovecs and its CDB lies behind.
    pub const LEN: u32 = 112;
    /// Bytes of [`SENSE_DATA`].
    pub const SENSE: usize = 96;
}

/// Byte offsets in a task management entry.
pub mod manage {
    /// The function, 8 bits.
    pub const FUNCTION: u32 = 8;
    /// Number of commands it concerns, 32 bits.
    pub const COUNT: u32 = 12;
    /// Their ids, 16 bits each.
    pub const IDS: u32 = 32;
}

/// Bits of a header's last byte, the handler's flags.
pub mod flag {
    /// The operation is not known.
    pub const UNKNOWN_OPERATION: u8 = 1;
    /// The response says how many bytes were read.
    pub const READ_LEN: u8 = 2;
    // The kernel looks at the three lowest bits. Those below are this handler's notes to the one that
    // comes after it.
    /// The command was handed to the core: it may have been executed.
    pub const TAKEN: u8 = 0x20;
    /// The command was executed, and its response is being written over the request.
    pub const ANSWERING: u8 = 0x40;
    /// The entry has a whole response.
    pub const ANSWERED: u8 = 0x80;
}

/// The first eight bytes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the entry, a multiple of 8.
    pub len: u32,
    /// What it is.
    pub operation: Operation,
    /// The kernel's name for the command; 0 is none.
    pub id: u16,
    /// The kernel's flags; none are defined.
    pub kernel: u8,
    /// The handler's flags, of [`flag`].
    pub flags: u8,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing: the next one begins at the start of the ring.
    Pad,
    /// A SCSI command.
    Command,
    /// A task management function was performed on these commands.
    Manage,
    /// A code that nobody defined yet.
    Unknown(u8),
}

impl Header {
    /// Reads a header.
    pub fn parse(word: u64) -> Self {
        let [l0, l1, l2, l3, i0, i1, kernel, flags] = word.to_ne_bytes();
        let len = u32::from_ne_bytes([l0, l1, l2, l3]);
        Self {
            len: len & !OPERATION_MASK,
            operation: match len & OPERATION_MASK {
                0 => Operation::Pad,
                1 => Operation::Command,
                2 => Operation::Manage,
                other => Operation::Unknown(other as u8),
            },
            id: u16::from_ne_bytes([i0, i1]),
            kernel,
            flags,
        }
    }

    /// Writes it.
    pub fn emit(&self) -> u64 {
        let operation = match self.operation {
            Operation::Pad => 0,
            Operation::Command => 1,
            Operation::Manage => 2,
            Operation::Unknown(other) => u32::from(other) & OPERATION_MASK,
        };
        let [l0, l1, l2, l3] = (self.len & !OPERATION_MASK | operation).to_ne_bytes();
        let [i0, i1] = self.id.to_ne_bytes();
        u64::from_ne_bytes([l0, l1, l2, l3, i0, i1, self.kernel, self.flags])
    }
}

/// The eight bytes of a response before its sense data: status and bytes read.
pub fn response_word(status: u8, read: u32) -> u64 {
    let [r0, r1, r2, r3] = read.to_ne_bytes();
    u64::from_ne_bytes([status, 0, 0, 0, r0, r1, r2, r3])
}

/// Bytes of the CDB that begins with these 8, as the kernel counts them when it copies one: by the
/// operation code's group (SAM-5 5.2.3), and by the ADDITIONAL CDB LENGTH of opcode 7Fh.
pub fn cdb_len(first: [u8; 8]) -> usize {
    match first[0] >> 5 {
        _ if first[0] == 0x7F => 8 + usize::from(first[7]),
        0 => 6,
        4 => 16,
        3 | 5 => 12,
        _ => 10,
    }
}

/// What a task management entry is about.
pub fn function(code: u8) -> TaskFunction {
    match code {
        1 => TaskFunction::AbortTask,
        2 => TaskFunction::AbortTaskSet,
        3 => TaskFunction::ClearAca,
        4 => TaskFunction::ClearTaskSet,
        // A target reset reaches one logical unit here: others have devices of their own.
        5..=7 => TaskFunction::LogicalUnitReset,
        // 128: the kernel's own PREEMPT AND ABORT, whose commands are in the list.
        other => TaskFunction::Unknown(other),
    }
}

/// The version of the mailbox that this is about.
pub const VERSION: u16 = 2;
/// Every entry begins at a multiple of this.
pub const ALIGN: u32 = 8;
/// The longest CDB (SPC-5 4.2.3).
pub const MOST_CDB: usize = 260;
const OPERATION_MASK: u32 = 7;

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_and_writes_the_same_bytes() {
        let bytes = [0x81, 0, 0, 0, 0x34, 0x12, 0, 0xA2];
        let header = Header::parse(u64::from_le_bytes(bytes));
        let expected = Header {
            len: 128,
            operation: Operation::Command,
            id: 0x1234,
            kernel: 0,
            flags: flag::ANSWERED | flag::TAKEN | flag::READ_LEN,
        };
        assert_eq!(header, expected);
        assert_eq!(header.emit().to_le_bytes(), bytes);
        for (code, operation) in
            [(0, Operation::Pad), (2, Operation::Manage), (7, Operation::Unknown(7))]
        {
            let header = Header::parse(u64::from(0x100u32 | code));
            assert_eq!((header.operation, header.len), (operation, 0x100));
            assert_eq!(header.emit(), u64::from(0x100u32 | code));
        }
    }

    #[test]
    fn a_response_has_its_status_first_and_its_length_at_four() {
        let bytes = response_word(0x28, 0x0403_0201).to_le_bytes();
        assert_eq!(bytes, [0x28, 0, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_cdb_is_as_long_as_its_group_says() {
        let len = |opcode| cdb_len([opcode, 0, 0, 0, 0, 0, 0, 24]);
        let lengths = [0x00, 0x28, 0x5F, 0x6A, 0x7F, 0x88, 0xA0, 0xC0].map(len);
        assert_eq!(lengths, [6, 10, 10, 12, 32, 16, 12, 10]);
    }
}
