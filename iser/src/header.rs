//! The iSER header in front of every message (RFC 7145 clause 9).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32, U64},
};

/// Length of the header in bytes. The 12 bytes of RFC 5046 are not in use anywhere.
pub const HEADER_LEN: usize = 28;

/// A header as it is on the wire.
pub type RawHeader = [u8; HEADER_LEN];

/// Layout in front of an iSCSI control-type PDU (RFC 7145 9.2).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawControl {
    flags: u8,
    reserved: [u8; 3],
    write_stag: U32,
    write_base: U64,
    read_stag: U32,
    read_base: U64,
}

/// Layout of a Hello and its answer (RFC 7145 9.3 and 9.4).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawHello {
    flags: u8,
    versions: u8,
    depth: U16,
    reserved: [u8; 24],
}

const _: () = assert!(size_of::<RawControl>() == HEADER_LEN);
const _: () = assert!(size_of::<RawHello>() == HEADER_LEN);

/// Memory that an initiator registered for one direction of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The steering tag: a remote key.
    pub key: u32,
    /// Where it begins: an address of the initiator's.
    pub base: u64,
}

/// The memory that came with a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Data-Out is there (WSV).
    pub write: Option<Tag>,
    /// Data-In goes there (RSV).
    pub read: Option<Tag>,
}

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An iSCSI control-type PDU follows.
    Control(Tags),
    /// The initiator's greeting: nothing follows.
    Hello(Hello),
    /// The target's.
    HelloReply(HelloReply),
    /// An opcode without a meaning: bits 7:4 of the first byte.
    Unknown(u8),
}

/// A Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Highest version spoken, at most 15.
    pub max_version: u8,
    /// Lowest version spoken, at most 15.
    pub min_version: u8,
    /// RDMA Reads that the initiator serves at a time (iSER-IRD).
    pub reads: u16,
}

/// The answer to a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// No connection is possible.
    pub reject: bool,
    /// Highest version spoken, at most 15.
    pub max_version: u8,
    /// The version in use, at most 15.
    pub version: u8,
    /// RDMA Reads that the target starts at a time (iSER-ORD).
    pub reads: u16,
}

impl Header {
    /// Parses a header; every pattern is one. Reserved bits are ignored.
    pub fn parse(raw: &RawHeader) -> Self {
        match raw[0] >> 4 {
            CONTROL => {
                let raw: RawControl = zerocopy::transmute!(*raw);
                let tag = |valid: u8, key: U32, base: U64| {
                    (raw.flags & valid != 0).then(|| Tag { key: key.get(), base: base.get() })
                };
                Self::Control(Tags {
                    write: tag(WRITE_VALID, raw.write_stag, raw.write_base),
                    read: tag(READ_VALID, raw.read_stag, raw.read_base),
                })
            }
            HELLO => {
                let raw: RawHello = zerocopy::transmute!(*raw);
                Self::Hello(Hello {
                    max_version: raw.versions >> 4,
                    min_version: raw.versions & 0x0F,
                    reads: raw.depth.get(),
                })
            }
            HELLO_REPLY => {
                let raw: RawHello = zerocopy::transmute!(*raw);
                Self::HelloReply(HelloReply {
                    reject: raw.flags & REJECT != 0,
                    max_version: raw.versions >> 4,
                    version: raw.versions & 0x0F,
                    reads: raw.depth.get(),
                })
            }
            other => Self::Unknown(other),
        }
    }

    /// Writes the header.
    pub fn emit(&self, raw: &mut RawHeader) {
        *raw = match *self {
            Self::Control(Tags { write, read }) => {
                let none = Tag { key: 0, base: 0 };
                let (to_read, to_write) = (read.unwrap_or(none), write.unwrap_or(none));
                let bit = |tag: Option<Tag>, bit| if tag.is_some() { bit } else { 0 };
                zerocopy::transmute!(RawControl {
                    flags: CONTROL << 4 | bit(write, WRITE_VALID) | bit(read, READ_VALID),
                    reserved: [0; 3],
                    write_stag: to_write.key.into(),
                    write_base: to_write.base.into(),
                    read_stag: to_read.key.into(),
                    read_base: to_read.base.into(),
                })
            }
            Self::Hello(hello) => zerocopy::transmute!(RawHello {
                flags: HELLO << 4,
                versions: hello.max_version << 4 | hello.min_version & 0x0F,
                depth: hello.reads.into(),
                reserved: [0; 24],
            }),
            Self::HelloReply(reply) => zerocopy::transmute!(RawHello {
                flags: HELLO_REPLY << 4 | if reply.reject { REJECT } else { 0 },
                versions: reply.max_version << 4 | reply.version & 0x0F,
                depth: reply.reads.into(),
                reserved: [0; 24],
            }),
            Self::Unknown(opcode) => {
                let mut raw = [0; HEADER_LEN];
                raw[0] = opcode << 4;
                raw
            }
        };
    }
}

const CONTROL: u8 = 1;
const HELLO: u8 = 2;
const HELLO_REPLY: u8 = 3;
const WRITE_VALID: u8 = 0x08;
const READ_VALID: u8 = 0x04;
const REJECT: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;

    fn same_both_ways(raw: RawHeader, header: Header) {
        assert_eq!(Header::parse(&raw), header);
        let mut emitted = [0xA5; HEADER_LEN];
        header.emit(&mut emitted);
        assert_eq!(emitted, raw);
    }

    #[rustfmt::skip]
    const READ: RawHeader = [
        0x14, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x00, 0x1A, 0x2B,  0xFF, 0xFF, 0x88, 0x80, 0x12, 0x34, 0x56, 0x78,
    ];
    #[rustfmt::skip]
    const WRITE: RawHeader = [
        0x18, 0, 0, 0,  0xDE, 0xAD, 0xBE, 0xEF,  0, 0, 0x7F, 0xFF, 0, 0, 0x20, 0x01,
        0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn control_header_without_memory() {
        let mut raw = [0; HEADER_LEN];
        raw[0] = 0x10;
        same_both_ways(raw, Header::Control(Tags::default()));
    }

    #[test]
    fn read_command_names_where_data_goes() {
        let read = Some(Tag { key: 0x1A2B, base: 0xFFFF_8880_1234_5678 });
        same_both_ways(READ, Header::Control(Tags { write: None, read }));
    }

    #[test]
    fn write_command_names_where_data_is() {
        let write = Some(Tag { key: 0xDEAD_BEEF, base: 0x7FFF_0000_2001 });
        same_both_ways(WRITE, Header::Control(Tags { write, read: None }));
    }

    #[test]
    fn both_directions_at_once() {
        let mut raw = WRITE;
        raw[0] = 0x1C;
        raw[16..].copy_from_slice(&READ[16..]);
        let Header::Control(Tags { write: Some(write), read: Some(read) }) = Header::parse(&raw)
        else {
            panic!("{:?}", Header::parse(&raw));
        };
        assert_eq!((write.key, read.key), (0xDEAD_BEEF, 0x1A2B));
    }

    #[test]
    fn tags_that_are_not_valid_are_not_looked_at() {
        let mut raw = READ;
        raw[0] = 0x10;
        assert_eq!(Header::parse(&raw), Header::Control(Tags::default()));
    }

    #[test]
    fn hello_and_its_answer() {
        let mut raw = [0; HEADER_LEN];
        raw[..4].copy_from_slice(&[0x20, 0xAA, 0x00, 0x10]);
        same_both_ways(raw, Header::Hello(Hello { max_version: 10, min_version: 10, reads: 16 }));
        raw[..4].copy_from_slice(&[0x31, 0xA1, 0x01, 0x00]);
        let reply = HelloReply { reject: true, max_version: 10, version: 1, reads: 256 };
        same_both_ways(raw, Header::HelloReply(reply));
    }

    #[test]
    fn reserved_bits_are_ignored_and_other_opcodes_are_values() {
        let mut raw = READ;
        (raw[0], raw[1], raw[3]) = (0x17, 0xFF, 0xFF);
        assert_eq!(Header::parse(&raw), Header::parse(&READ));
        for opcode in [0, 4, 15] {
            let mut raw = [0; HEADER_LEN];
            raw[0] = opcode << 4;
            same_both_ways(raw, Header::Unknown(opcode));
        }
    }
}
