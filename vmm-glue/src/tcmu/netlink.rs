//! The generic netlink family `TCM-USER`, by which the kernel tells of devices that come, change and
//! go, and waits for answers (`linux/target_core_user.h`, `linux/genetlink.h`). Values and bytes; the
//! socket is in [`super::socket`].

/// An event of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// The name of the UIO device.
    pub name: String,
    /// Its number: it is `/dev/uio` and this.
    pub minor: u32,
    /// What the kernel calls the device in answers.
    pub device: u32,
    /// What a [`Kind::Reconfigured`] is about.
    pub change: Option<Change>,
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added,
    /// It goes away.
    Removed,
    /// Somebody wrote to an attribute of it.
    Reconfigured,
}

/// A new value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `dev_config`: subtype and what follows it.
    Config(String),
    /// `dev_size`, in bytes.
    Size(u64),
    /// `emulate_write_cache`.
    WriteCache(bool),
}

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An event of the family.
    Event(Event),
    /// The family's number, and that of its multicast group `config`.
    Family {
        /// The family.
        id: u16,
        /// The group, if it is there.
        group: Option<u32>,
    },
    /// The answer to a request: 0, or a negative error number.
    Status(i32),
    /// Something else, or nothing that makes sense.
    Other,
}

/// Reads the messages in what was received; `family` is the number of `TCM-USER`.
pub fn messages(bytes: &[u8], family: u16) -> Vec<Message> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((len, kind)) = head(rest) {
        let Some(message) = rest.get(..len) else { break };
        let body = message.get(NETLINK_HEADER..).unwrap_or_default();
        found.push(match kind {
            ERROR => body
                .first_chunk()
                .map_or(Message::Other, |code| Message::Status(i32::from_ne_bytes(*code))),
            CONTROLLER => family_of(body),
            kind if kind == family => event(body).map_or(Message::Other, Message::Event),
            _ => Message::Other,
        });
        rest = rest.get(aligned(len)..).unwrap_or_default();
    }
    found
}

/// Length and kind of the message that begins here, if its length makes sense.
fn head(bytes: &[u8]) -> Option<(usize, u16)> {
    let &[l0, l1, l2, l3, k0, k1, ..] = bytes.get(..NETLINK_HEADER)? else { return None };
    let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    (len >= NETLINK_HEADER).then(|| (len, u16::from_ne_bytes([k0, k1])))
}

fn event(body: &[u8]) -> Option<Event> {
    let kind = match body.first()? {
        1 => Kind::Added,
        2 => Kind::Removed,
        3 => Kind::Reconfigured,
        _ => return None,
    };
    let (mut name, mut minor, mut device, mut change) = (None, None, None, None);
    for (number, value) in attributes(body.get(GENERIC_HEADER..)?) {
        match number {
            ATTR_DEVICE => name = text(value),
            ATTR_MINOR => minor = value.first_chunk().map(|word| u32::from_ne_bytes(*word)),
            ATTR_DEVICE_ID => device = value.first_chunk().map(|word| u32::from_ne_bytes(*word)),
            ATTR_CONFIG => change = text(value).map(Change::Config),
            ATTR_SIZE => {
                change = value.first_chunk().map(|word| Change::Size(u64::from_ne_bytes(*word)));
            }
            ATTR_WRITE_CACHE => change = value.first().map(|&on| Change::WriteCache(on != 0)),
            _ => {}
        }
    }
    Some(Event { kind, name: name?, minor: minor?, device: device?, change })
}

fn family_of(body: &[u8]) -> Message {
    let (mut id, mut group) = (None, None);
    for (number, value) in attributes(body.get(GENERIC_HEADER..).unwrap_or_default()) {
        match number {
            CONTROL_FAMILY_ID => id = value.first_chunk().map(|word| u16::from_ne_bytes(*word)),
            CONTROL_GROUPS => group = attributes(value).find_map(|(_, one)| config_group(one)),
            _ => {}
        }
    }
    id.map_or(Message::Other, |id| Message::Family { id, group })
}

/// The number of a multicast group, if it is `config`.
fn config_group(attributes_of_one: &[u8]) -> Option<u32> {
    let (mut is_it, mut id) = (false, None);
    for (number, value) in attributes(attributes_of_one) {
        match number {
            GROUP_NAME => is_it = text(value).as_deref() == Some("config"),
            GROUP_ID => id = value.first_chunk().map(|word| u32::from_ne_bytes(*word)),
            _ => {}
        }
    }
    id.filter(|_| is_it)
}

/// Numbers and values of attributes, as far as their lengths make sense.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let &[l0, l1, n0, n1] = rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(ATTRIBUTE_HEADER..len)?;
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((u16::from_ne_bytes([n0, n1]) & ATTRIBUTE_NUMBER, value))
    })
}

/// A string that ends at its first 0.
fn text(value: &[u8]) -> Option<String> {
    let value = value.split(|&byte| byte == 0).next()?;
    // Somebody writes attributes with `echo`, which ends them with a line feed.
    Some(std::str::from_utf8(value).ok()?.trim_end_matches('\n').to_owned())
}

/// Asks for the number of the family.
pub fn get_family(sequence: u32) -> Vec<u8> {
    let mut message = Builder::new(CONTROLLER, REQUEST, sequence, GET_FAMILY, 1);
    message.attribute(CONTROL_FAMILY_NAME, b"TCM-USER\0");
    message.finish()
}

/// Says whether this process answers events.
pub fn set_features(family: u16, sequence: u32, answers: bool) -> Vec<u8> {
    let mut message = Builder::new(family, REQUEST | ACKNOWLEDGE, sequence, SET_FEATURES, 2);
    message.attribute(ATTR_ANSWERS, &[answers.into()]);
    message.finish()
}

/// Answers an event: 0, or a negative error number, which whoever changed the device gets.
pub fn answer(family: u16, sequence: u32, kind: Kind, device: u32, status: i32) -> Vec<u8> {
    let command = match kind {
        Kind::Added => ADDED_DONE,
        Kind::Removed => REMOVED_DONE,
        Kind::Reconfigured => RECONFIGURED_DONE,
    };
    let mut message = Builder::new(family, REQUEST, sequence, command, 2);
    message.attribute(ATTR_STATUS, &status.to_ne_bytes());
    message.attribute(ATTR_DEVICE_ID, &device.to_ne_bytes());
    message.finish()
}

struct Builder(Vec<u8>);

impl Builder {
    fn new(kind: u16, flags: u16, sequence: u32, command: u8, version: u8) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel's own port.
        bytes.extend([0; 4]);
        bytes.extend([command, version, 0, 0]);
        Self(bytes)
    }

    fn attribute(&mut self, number: u16, value: &[u8]) {
        let len = ATTRIBUTE_HEADER + value.len();
        self.0.extend((len as u16).to_ne_bytes());
        self.0.extend(number.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// `nlmsghdr` and `genlmsghdr`.
const NETLINK_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// Without the bits that say how an attribute is written.
const ATTRIBUTE_NUMBER: u16 = 0x3FFF;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// Kinds of messages.
const ERROR: u16 = 2;
const CONTROLLER: u16 = 0x10;
/// Commands and attributes of the controller of families.
const GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const CONTROL_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// Commands and attributes of TCM-USER.
const ADDED_DONE: u8 = 4;
const REMOVED_DONE: u8 = 5;
const RECONFIGURED_DONE: u8 = 6;
const SET_FEATURES: u8 = 7;
const ATTR_DEVICE: u16 = 1;
const ATTR_MINOR: u16 = 2;
const ATTR_CONFIG: u16 = 4;
const ATTR_SIZE: u16 = 5;
const ATTR_WRITE_CACHE: u16 = 6;
const ATTR_STATUS: u16 = 7;
const ATTR_DEVICE_ID: u16 = 8;
const ATTR_ANSWERS: u16 = 9;

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const FAMILY: u16 = 0x1C;

    /// nlmsghdr, genlmsghdr.
    fn message(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![20 + attributes.len() as u8, 0, 0, 0];
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 10]);
        bytes.extend([command, 2, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    const SUBJECT: &[u8] = b"\x17\0\x01\0tcm-user/0/d/vscsi\0\0\
        \x08\0\x02\0\x03\0\0\0\x08\0\x08\0\x07\0\0\0";

    fn event(kind: Kind, change: Option<Change>) -> Message {
        let name = "tcm-user/0/d/vscsi".to_owned();
        Message::Event(Event { kind, name, minor: 3, device: 7, change })
    }

    #[test]
    fn a_name_of_eighteen_bytes_has_its_terminator_and_padding() {
        // 4 + 18 + 1 bytes, padded to 24.
        let attribute = b"\x17\0\x01\0tcm-user/0/d/vscsi\0\0";
        assert_eq!(attribute.len(), 24);
        let (number, value) = attributes(attribute).next().unwrap();
        assert_eq!((number, value.len()), (1, 19));
    }

    #[test]
    fn events_and_what_they_change_are_read() {
        let with = |command, more: &[u8]| message(FAMILY, command, &[SUBJECT, more].concat());
        let mut bytes = with(1, b"");
        bytes.extend(with(3, b"\x0c\0\x05\0\0\0\0\0\x01\0\0\0"));
        bytes.extend(with(3, b"\x05\0\x06\0\x01\0\0\0"));
        bytes.extend(with(3, b"\x0d\0\x04\0vscsi/0\n\0\0\0\0"));
        bytes.extend(with(2, b""));
        let expected = [
            event(Kind::Added, None),
            event(Kind::Reconfigured, Some(Change::Size(1 << 32))),
            event(Kind::Reconfigured, Some(Change::WriteCache(true))),
            event(Kind::Reconfigured, Some(Change::Config("vscsi/0".to_owned()))),
            event(Kind::Removed, None),
        ];
        assert_eq!(messages(&bytes, FAMILY), expected);
    }

    #[test]
    fn the_family_and_its_group_are_found_among_others() {
        let groups = b"\x2c\0\x07\x80\
            \x14\0\x01\0\x09\0\x01\0othr\0\0\0\0\x08\0\x02\0\x05\0\0\0\
            \x18\0\x02\0\x0b\0\x01\0config\0\0\x08\0\x02\0\x2a\0\0\0";
        let mut groups = groups.to_vec();
        // Lengths of what is nested: two of them.
        groups[0] = groups.len() as u8;
        groups[4] = 0x18;
        let attributes = [b"\x06\0\x01\0\x1c\0\0\0".as_slice(), &groups].concat();
        let found = messages(&message(0x10, 1, &attributes), 0);
        assert_eq!(found, [Message::Family { id: FAMILY, group: Some(42) }]);
    }

    #[test]
    fn an_error_is_its_number() {
        let mut bytes = message(2, 0xFE, &[]);
        bytes[16..20].copy_from_slice(&(-2i32).to_le_bytes());
        assert_eq!(messages(&bytes, FAMILY), [Message::Status(-2)]);
    }

    #[test]
    fn lengths_that_make_no_sense_end_the_list() {
        let whole = message(FAMILY, 1, SUBJECT);
        for len in 0..whole.len() {
            assert!(messages(&whole[..len], FAMILY).is_empty(), "{len}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0x7F, 0xFF] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                messages(&bytes, FAMILY);
            }
        }
        assert_eq!(messages(&message(FAMILY, 1, &SUBJECT[..28]), FAMILY), [Message::Other]);
    }

    #[test]
    fn an_answer_names_device_and_status() {
        let bytes = answer(FAMILY, 9, Kind::Reconfigured, 7, -22);
        let expected = b"\x24\0\0\0\x1c\0\x01\0\x09\0\0\0\0\0\0\0\x06\x02\0\0\
            \x08\0\x07\0\xea\xff\xff\xff\x08\0\x08\0\x07\0\0\0";
        assert_eq!(bytes, expected);
        let bytes = set_features(FAMILY, 1, true);
        let expected =
            b"\x1c\0\0\0\x1c\0\x05\0\x01\0\0\0\0\0\0\0\x07\x02\0\0\x05\0\x09\0\x01\0\0\0";
        assert_eq!(bytes, expected);
        let bytes = get_family(1);
        let expected = b"\x24\0\0\0\x10\0\x01\0\x01\0\0\0\0\0\0\0\x03\x01\0\0\
            \x0d\0\x02\0TCM-USER\0\0\0\0";
        assert_eq!(bytes, expected);
    }
}
