//! A message of the initiator: an iSER header, and the PDU behind it.

use crate::header::{HEADER_LEN, Header, Hello, Tags};
use iscsi::pdu::{BHS_LEN, Bhs, DataOut, Digests, Frame, FrameError, Opcode, RESERVED_TAG, opcode};
use std::ops::Range;
use thiserror::Error;

/// The longest additional header segments taken, in bytes (MaxAHSLength).
pub const MAX_AHS: usize = 256;

/// Where additional header segments begin in a message.
pub const AHS_AT: usize = HEADER_LEN + BHS_LEN;

/// A message whose lengths fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An iSCSI PDU.
    Pdu(Pdu),
    /// A greeting.
    Hello(Hello),
}

/// Where the parts of a PDU are in its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// Memory that came with it.
    pub tags: Tags,
    /// Basic header segment.
    pub header: Bhs,
    /// Length of the additional header segments in bytes, at most [`MAX_AHS`].
    pub ahs: usize,
    /// The data segment, without padding.
    pub data: Range<usize>,
}

/// A message that is none: the connection is closed (RFC 7145 8.1).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Not even the headers are there.
    #[error("a message of {0} bytes")]
    TooShort(usize),
    /// No target takes what the iSER header announces.
    #[error("iSER opcode {0}")]
    Opcode(u8),
    /// A PDU that targets send, or that does not exist in messages.
    #[error("a {0:?} PDU in a message")]
    NotForTargets(Opcode),
    /// Data that the target fetches by itself.
    #[error("Data-Out with target transfer tag {0:#x}")]
    Solicited(u32),
    /// A data segment longer than agreed on, or header segments where there may be none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More additional header segments than agreed on.
    #[error("{0} bytes of additional header segments")]
    AhsTooLong(usize),
    /// The PDU's lengths are not that of the message.
    #[error("a PDU of {expected} bytes in a message of {len}")]
    Length {
        /// Of the message.
        len: usize,
        /// By its headers, with padding.
        expected: usize,
    },
}

impl Message {
    /// Parses a message, where `max_data` is the longest data segment agreed on. Padding behind the
    /// data may be missing.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub fn parse(bytes: &[u8], max_data: u32) -> Result<Self, Malformed> {
        let too_short = Malformed::TooShort(bytes.len());
        let Some((first, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(too_short);
        };
        let tags = match Header::parse(first) {
            Header::Control(tags) => tags,
            Header::Hello(hello) => return Ok(Self::Hello(hello)),
            Header::HelloReply(_) => return Err(Malformed::Opcode(3)),
            Header::Unknown(opcode) => return Err(Malformed::Opcode(opcode)),
        };
        let Some(header) = rest.first_chunk::<BHS_LEN>() else { return Err(too_short) };
        match opcode(header) {
            Opcode::DataOut => {
                let ttt = DataOut::parse(header).map_or(RESERVED_TAG, |pdu| pdu.ttt);
                if ttt != RESERVED_TAG {
                    return Err(Malformed::Solicited(ttt));
                }
            }
            other if other.code() & TARGETS != 0 => return Err(Malformed::NotForTargets(other)),
            _ => {}
        }
        let frame = Frame::of(header, Digests::NONE, max_data)?;
        if frame.ahs > MAX_AHS {
            return Err(Malformed::AhsTooLong(frame.ahs));
        }
        let start = HEADER_LEN + frame.data_start();
        let data = start..start + frame.data;
        // libiscsi 1.19 announces immediate data and leaves it in the memory it advertises, from the
        // first byte on.
        let left_behind =
            bytes.len() == start && tags.write.is_some() && opcode(header) == Opcode::ScsiCommand;
        let data = if left_behind { start..start } else { data };
        let expected = data.end + frame.pad;
        if !(data.end..=expected).contains(&bytes.len()) {
            return Err(Malformed::Length { len: bytes.len(), expected });
        }
        Ok(Self::Pdu(Pdu { tags, header: *header, ahs: frame.ahs, data }))
    }
}

/// Set in the opcodes of all PDUs that targets send.
const TARGETS: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Tag;
    use proptest::prelude::*;

    /// A WRITE(10) of one block whose 5 immediate bytes are padded.
    fn write() -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN + BHS_LEN];
        bytes[..12].copy_from_slice(&[0x18, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]);
        bytes[HEADER_LEN] = 0x01;
        bytes[HEADER_LEN + 1] = 0xA1;
        bytes[HEADER_LEN + 7] = 5;
        bytes.extend_from_slice(b"hello\0\0\0");
        bytes
    }

    #[test]
    fn command_with_immediate_data_and_memory() {
        let Ok(Message::Pdu(pdu)) = Message::parse(&write(), 8192) else { panic!() };
        assert_eq!(pdu.tags.write, Some(Tag { key: 7, base: 1 << 32 }));
        assert_eq!((pdu.ahs, pdu.data.clone()), (0, 76..81));
        assert_eq!(&write()[pdu.data], b"hello");
        assert_eq!(pdu.header[..], write()[28..76]);
    }

    #[test]
    fn padding_may_be_missing_but_data_may_not() {
        let bytes = write();
        for len in 81..=84 {
            assert!(Message::parse(&bytes[..len], 8192).is_ok(), "{len}");
        }
        for len in 77..81 {
            let expected = Malformed::Length { len, expected: 84 };
            assert_eq!(Message::parse(&bytes[..len], 8192), Err(expected));
        }
        for len in 0..76 {
            assert_eq!(Message::parse(&bytes[..len], 8192), Err(Malformed::TooShort(len)));
        }
    }

    #[test]
    fn immediate_data_that_stays_in_advertised_memory_is_none() {
        let mut bytes = write();
        let Ok(Message::Pdu(pdu)) = Message::parse(&bytes[..76], 8192) else { panic!() };
        assert_eq!(pdu.data, 76..76);
        let expected = Err(Malformed::Length { len: 76, expected: 84 });
        // Without memory it would be nowhere, and only commands have any.
        bytes[0] = 0x10;
        assert_eq!(Message::parse(&bytes[..76], 8192), expected);
        (bytes[0], bytes[HEADER_LEN]) = (0x18, 0x00);
        assert_eq!(Message::parse(&bytes[..76], 8192), expected);
    }

    #[test]
    fn more_than_the_headers_say_is_malformed() {
        let mut bytes = write();
        bytes.push(0);
        let expected = Malformed::Length { len: 85, expected: 84 };
        assert_eq!(Message::parse(&bytes, 8192), Err(expected));
    }

    #[test]
    fn what_targets_send_and_solicited_data_is_malformed() {
        let mut bytes = write();
        for (code, opcode) in [(0x25, Opcode::DataIn), (0x31, Opcode::R2t), (0x3F, Opcode::Reject)]
        {
            bytes[HEADER_LEN] = code;
            assert_eq!(Message::parse(&bytes, 8192), Err(Malformed::NotForTargets(opcode)));
        }
        bytes[HEADER_LEN] = 0x05;
        bytes[HEADER_LEN + 20..HEADER_LEN + 24].copy_from_slice(&[0, 0, 0, 3]);
        assert_eq!(Message::parse(&bytes, 8192), Err(Malformed::Solicited(3)));
        bytes[HEADER_LEN + 20..HEADER_LEN + 24].copy_from_slice(&[0xFF; 4]);
        assert!(Message::parse(&bytes, 8192).is_ok());
    }

    #[test]
    fn other_opcodes_of_iser_are_malformed_and_a_hello_is_a_greeting() {
        let mut bytes = write();
        for opcode in [0, 3, 4, 15] {
            bytes[0] = opcode << 4;
            assert_eq!(Message::parse(&bytes, 8192), Err(Malformed::Opcode(opcode)));
        }
        bytes[..4].copy_from_slice(&[0x20, 0xA1, 0, 4]);
        let hello = Hello { max_version: 10, min_version: 1, reads: 4 };
        assert_eq!(Message::parse(&bytes[..HEADER_LEN], 8192), Ok(Message::Hello(hello)));
    }

    #[test]
    fn lengths_above_what_was_agreed_on_are_malformed() {
        let mut bytes = write();
        assert!(matches!(Message::parse(&bytes, 4), Err(Malformed::Frame(_))));
        bytes[HEADER_LEN + 4] = 65;
        bytes.resize(2000, 0);
        assert_eq!(Message::parse(&bytes, 8192), Err(Malformed::AhsTooLong(260)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(Message::Pdu(pdu)) = Message::parse(&bytes, 8192) {
                prop_assert!(pdu.data.end <= bytes.len());
                prop_assert!(pdu.ahs <= MAX_AHS && AHS_AT + pdu.ahs == pdu.data.start);
            }
        }
    }
}
