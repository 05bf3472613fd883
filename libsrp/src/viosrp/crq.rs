//! Elements of the command/response queue: sixteen bytes each.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::Tag;
use crate::wire::{codes, raw};

/// Bytes of an element.
pub const ELEMENT_LEN: usize = size_of::<RawElement>();

/// An element, by the class of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 0x00: the slot is free. Whatever follows the first byte means nothing.
    Free,
    /// 0x80: a command or a response.
    Message(Message),
    /// 0xC0: initialization.
    Init(Init),
    /// 0xFF: an event of the transport. Only the hypervisor makes it.
    Event(TransportEvent),
    /// 0x81 to 0xBF and 0xC1 to 0xFE: reserved, as it came.
    Reserved([u8; ELEMENT_LEN]),
    /// 0x01 to 0x7F: invalid, as it came.
    Invalid([u8; ELEMENT_LEN]),
}

impl Element {
    /// Reads an element; every sixteen bytes are one.
    pub fn parse(bytes: &[u8; ELEMENT_LEN]) -> Self {
        let Ok(raw) = RawElement::ref_from_bytes(bytes) else { return Self::Invalid(*bytes) };
        match raw.valid {
            VALID_FREE => Self::Free,
            0x01..VALID_MESSAGE => Self::Invalid(*bytes),
            VALID_MESSAGE => Self::Message(Message {
                format: Format::from_code(raw.format),
                status: ElementStatus::from_code(raw.status),
                timeout: raw.timeout.get(),
                len: raw.len.get(),
                pointer: raw.pointer,
            }),
            VALID_INIT => Self::Init(Init::from_code(raw.format)),
            VALID_EVENT => Self::Event(TransportEvent::from_code(raw.format)),
            _ => Self::Reserved(*bytes),
        }
    }

    /// The sixteen bytes, ready for a queue.
    pub fn to_bytes(&self) -> [u8; ELEMENT_LEN] {
        let (valid, format) = match self {
            Self::Free => (VALID_FREE, 0),
            Self::Message(message) => return message.to_bytes(),
            Self::Init(init) => (VALID_INIT, init.code()),
            Self::Event(event) => (VALID_EVENT, event.code()),
            Self::Reserved(bytes) | Self::Invalid(bytes) => return *bytes,
        };
        let mut bytes = [0; ELEMENT_LEN];
        bytes[0] = valid;
        bytes[1] = format;
        bytes
    }
}

/// A command or a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is pointed at.
    pub format: Format,
    /// How the request went.
    pub status: ElementStatus,
    /// Seconds the client will wait, 0 for ever. Advice only.
    pub timeout: u16,
    /// Bytes of the information unit or datagram.
    pub len: u16,
    /// From the client, the I/O bus address of the unit; from the server, the tag of the request,
    /// byte for byte.
    pub pointer: [u8; 8],
}

impl Message {
    /// The answer to a request of `format` and `tag`, with `len` bytes written where the request
    /// was.
    pub const fn answer(format: Format, status: ElementStatus, len: u16, tag: Tag) -> Self {
        Self { format, status, timeout: 0, len, pointer: tag.0 }
    }

    /// The I/O bus address of a client's unit.
    pub const fn address(&self) -> u64 {
        u64::from_be_bytes(self.pointer)
    }

    /// The tag in a server's response.
    pub const fn tag(&self) -> Tag {
        Tag(self.pointer)
    }

    /// The answer to a PING; `None` when this is none.
    pub fn pong(&self) -> Option<Self> {
        let ping = self.format == Format::Six && self.status == ElementStatus::Ping;
        ping.then(|| Self::answer(Format::Six, ElementStatus::PingResponse, 0, Tag::default()))
    }

    fn to_bytes(self) -> [u8; ELEMENT_LEN] {
        let raw = RawElement {
            valid: VALID_MESSAGE,
            format: self.format.code(),
            status: self.status.code(),
            timeout: self.timeout.into(),
            len: self.len.into(),
            pointer: self.pointer,
            ..RawElement::new_zeroed()
        };
        let mut bytes = [0; ELEMENT_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

codes! {
    /// What a message points at. Sources number the last ones differently: LoPAR and Linux have
    /// 5 for Linux and 6 for a message in the element itself; QEMU and SLOF have 6 and 7.
    pub enum Format(u8) {
        /// An SRP information unit.
        Srp = 0x01,
        /// A management datagram.
        Mad = 0x02,
        /// OS/400's own.
        Os400 = 0x03,
        /// AIX's own.
        Aix = 0x04,
        /// LoPAR: Linux's own.
        Five = 0x05,
        /// LoPAR: inline, of which only PING is known. QEMU: Linux's own.
        Six = 0x06,
        /// QEMU: inline.
        Seven = 0x07,
    }
}

codes! {
    /// How a request went. Linux reads the SRP response only when this is `Ok` or `OkAlternate`.
    pub enum ElementStatus(u8) {
        /// Look at the response.
        Ok = 0x00,
        /// A nonrecoverable error.
        Nonrecoverable = 0x01,
        /// The request violates the maximum transfer.
        MaxTransfer = 0x02,
        /// The partner panicked.
        PartnerPanic = 0x03,
        /// The device is busy.
        DeviceBusy = 0x08,
        /// The adapter or the path to it failed: a multipath client takes another path.
        AdapterFail = 0x10,
        /// An event overlaid the element that was here.
        Overwritten = 0x20,
        /// As `Ok`.
        OkAlternate = 0x99,
        /// In a message of format 6: are you there?
        Ping = 0xF5,
        /// In a message of format 6: yes.
        PingResponse = 0xF6,
    }
}

codes! {
    /// The steps of initialization.
    pub enum Init(u8) {
        /// INIT.
        Init = 0x01,
        /// INIT COMPLETE.
        Complete = 0x02,
    }
}

codes! {
    /// What happened to the partner.
    pub enum TransportEvent(u8) {
        /// It failed.
        PartnerFailed = 0x01,
        /// It deregistered its queue.
        PartnerDeregistered = 0x02,
        /// It was terminated.
        PartnerTerminated = 0x04,
        /// It was suspended or migrated.
        Migrated = 0x06,
        /// It is about to be suspended.
        PrepareForSuspend = 0x09,
        /// It goes on.
        Resume = 0x0A,
    }
}

const VALID_FREE: u8 = 0x00;
const VALID_MESSAGE: u8 = 0x80;
const VALID_INIT: u8 = 0xC0;
const VALID_EVENT: u8 = 0xFF;

raw! {
    struct RawElement = 16 {
        valid: u8,
        format: u8,
        _reserved2: u8,
        status: u8,
        timeout: U16,
        len: U16,
        pointer: [u8; 8],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SRP_REQUEST: [u8; 16] =
        [0x80, 0x01, 0, 0, 0, 60, 0x01, 0x00, 0, 0, 0, 0, 0x12, 0x34, 0x50, 0x00];

    #[test]
    fn linux_srp_request_round_trips() {
        let element = Element::Message(Message {
            format: Format::Srp,
            status: ElementStatus::Ok,
            timeout: 60,
            len: 256,
            pointer: [0, 0, 0, 0, 0x12, 0x34, 0x50, 0x00],
        });
        assert_eq!(Element::parse(&SRP_REQUEST), element);
        assert_eq!(element.to_bytes(), SRP_REQUEST);
        let Element::Message(message) = element else { unreachable!() };
        assert_eq!(message.address(), 0x1234_5000);
        assert_eq!(message.pong(), None);
    }

    #[test]
    fn every_first_byte_falls_into_its_class() {
        for valid in 0..=u8::MAX {
            let mut bytes = SRP_REQUEST;
            bytes[0] = valid;
            let right = match Element::parse(&bytes) {
                Element::Free => valid == 0,
                Element::Invalid(kept) => (0x01..=0x7F).contains(&valid) && kept == bytes,
                Element::Message(_) => valid == 0x80,
                Element::Init(Init::Init) => valid == 0xC0,
                Element::Event(TransportEvent::PartnerFailed) => valid == 0xFF,
                Element::Reserved(kept) => {
                    matches!(valid, 0x81..=0xBF | 0xC1..=0xFE) && kept == bytes
                }
                _ => false,
            };
            assert!(right, "{valid:#x}");
        }
    }

    #[test]
    fn init_and_init_complete_round_trip() {
        for (code, init) in [(1, Init::Init), (2, Init::Complete), (9, Init::Unknown(9))] {
            let bytes = [0xC0, code, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Element::parse(&bytes), Element::Init(init));
            assert_eq!(Element::Init(init).to_bytes(), bytes);
        }
    }

    #[test]
    fn transport_events_round_trip() {
        let events = [
            (0x01, TransportEvent::PartnerFailed),
            (0x02, TransportEvent::PartnerDeregistered),
            (0x04, TransportEvent::PartnerTerminated),
            (0x06, TransportEvent::Migrated),
            (0x09, TransportEvent::PrepareForSuspend),
            (0x0A, TransportEvent::Resume),
            (0x55, TransportEvent::Unknown(0x55)),
        ];
        for (code, event) in events {
            let bytes = [0xFF, code, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Element::parse(&bytes), Element::Event(event));
            assert_eq!(Element::Event(event).to_bytes(), bytes);
        }
    }

    #[test]
    fn ping_is_answered() {
        let ping = [0x80, 0x06, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let Element::Message(message) = Element::parse(&ping) else { panic!("no message") };
        let pong = Element::Message(message.pong().unwrap());
        assert_eq!(pong.to_bytes(), [0x80, 0x06, 0, 0xF6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_inline_messages_are_no_ping() {
        for (format, status) in [(0x06, 0xF6), (0x07, 0xF5), (0x01, 0xF5)] {
            let bytes = [0x80, format, 0, status, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let Element::Message(message) = Element::parse(&bytes) else { panic!("no message") };
            assert_eq!(message.pong(), None);
        }
    }

    #[test]
    fn answer_carries_the_tag_byte_for_byte() {
        let tag = Tag([1, 2, 3, 4, 5, 6, 7, 8]);
        let answer = Message::answer(Format::Srp, ElementStatus::AdapterFail, 36, tag);
        let bytes = [0x80, 0x01, 0, 0x10, 0, 0, 0, 36, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Element::Message(answer).to_bytes(), bytes);
        assert_eq!(answer.tag(), tag);
    }

    proptest! {
        #[test]
        fn what_was_emitted_parses_to_the_same(bytes in any::<[u8; 16]>(), valid in 0..4_usize) {
            let mut bytes = bytes;
            bytes[0] = [bytes[0], 0x80, 0xC0, 0xFF][valid];
            let element = Element::parse(&bytes);
            prop_assert_eq!(Element::parse(&element.to_bytes()), element);
        }
    }
}
