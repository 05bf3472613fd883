//! Messages of the vfio-user protocol, version 0.1 (its specification comes with QEMU and libvfio-user).
//!
//! Values and bytes only. All fields are in the byte order of the host, as both ends are on it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The head of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The sender's number of the message, which the reply repeats.
    pub id: u16,
    /// Which command, a constant of [`command`].
    pub command: u16,
    /// Bytes of the message with this head.
    pub size: u32,
    /// Constants of [`flag`].
    pub flags: u32,
    /// An errno value, where the ERROR flag is set.
    pub error: u32,
}

/// Numbers of the commands.
#[allow(missing_docs)] // They are called as in the specification.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_REGION_IO_FDS: u16 = 6;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const RESET: u16 = 13;
    pub const DIRTY_PAGES: u16 = 14;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// Flags of a message.
pub mod flag {
    /// The bits that say what kind of message it is: 0 for a command.
    pub const TYPE: u32 = 0xF;
    /// Of [`TYPE`]: a reply.
    pub const REPLY: u32 = 1;
    /// Nobody waits for a reply.
    pub const NO_REPLY: u32 = 0x10;
    /// The command failed.
    pub const ERROR: u32 = 0x20;
}

impl Head {
    /// Bytes of a head.
    pub const LEN: usize = 16;

    /// Reads a head.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, e0, e1, e2, e3] = *bytes;
        Self {
            id: u16::from_ne_bytes([i0, i1]),
            command: u16::from_ne_bytes([c0, c1]),
            size: u32::from_ne_bytes([s0, s1, s2, s3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            error: u32::from_ne_bytes([e0, e1, e2, e3]),
        }
    }

    /// Its bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_ne_bytes());
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip([self.size, self.flags, self.error])
        {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Bytes that follow the head; `None` if the message would be shorter than its head.
    pub fn body(&self) -> Option<usize> {
        (self.size as usize).checked_sub(Self::LEN)
    }

    /// The head of a reply with a body of `len` bytes.
    pub fn reply(&self, len: usize) -> Self {
        let size = (Self::LEN + len) as u32;
        Self { size, flags: flag::REPLY, error: 0, ..*self }
    }

    /// The head of a reply that says the command failed.
    pub fn failure(&self, errno: i32) -> Self {
        let error = errno.unsigned_abs();
        Self { size: Self::LEN as u32, flags: flag::REPLY | flag::ERROR, error, ..*self }
    }
}

/// Reads the fields of a body one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_ne_bytes(*bytes))
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }
}

/// What a client says of itself in VERSION.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Both sides must have the same.
    pub major: u16,
    /// The lower one counts.
    pub minor: u16,
    /// The rest.
    pub capabilities: Capabilities,
}

/// Capabilities of a client; those without a meaning here are passed over.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Capabilities {
    /// Descriptors that it takes with one message.
    pub max_msg_fds: Option<u64>,
    /// Bytes that it moves by one message.
    pub max_data_xfer_size: Option<u64>,
    /// It sends and takes REGION_WRITE_MULTI.
    pub write_multiple: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

impl Version {
    /// Reads the body of VERSION; `None` if it is too short or its capabilities are no JSON of the
    /// right form.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (major, minor) = (fields.u16()?, fields.u16()?);
        let text = fields.0.split(|&byte| byte == 0).next().unwrap_or_default();
        let data = match text.trim_ascii() {
            [] => VersionData::default(),
            text => serde_json::from_slice(text).ok()?,
        };
        Some(Self { major, minor, capabilities: data.capabilities })
    }

    /// The body of the reply.
    pub fn answer(&self) -> Vec<u8> {
        let mut capabilities = Map::new();
        let mut add = |name: &str, value: Value| capabilities.insert(name.to_owned(), value);
        add("max_msg_fds", json!(MOST_DESCRIPTORS));
        add("max_data_xfer_size", json!(MOST_DATA));
        add("max_dma_maps", json!(MOST_MAPS));
        add("pgsizes", json!(PAGE_SIZES));
        // What the client did not offer must not be in the answer.
        if self.capabilities.write_multiple == Some(true) {
            add("write_multiple", json!(true));
        }
        let mut body = [MAJOR, self.minor.min(MINOR)].map(u16::to_ne_bytes).concat();
        body.extend_from_slice(json!({ "capabilities": capabilities }).to_string().as_bytes());
        body.push(0);
        body
    }

    /// Descriptors that the client takes with one message.
    pub fn descriptors(&self) -> usize {
        self.capabilities.max_msg_fds.unwrap_or(1).min(MOST_DESCRIPTORS as u64) as usize
    }

    /// Bytes that the client moves by one DMA_READ or DMA_WRITE, at least one.
    pub fn data(&self) -> usize {
        let most = MOST_DATA as u64;
        self.capabilities.max_data_xfer_size.unwrap_or(most).clamp(1, most) as usize
    }
}

/// The body of DMA_MAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// The device may write there.
    pub writable: bool,
    /// Where it starts in the file of the descriptor that comes with it.
    pub offset: u64,
    /// The address for the device.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaMap {
    /// Reads it; `None` if it is too short.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (_argsz, flags) = (fields.u32()?, fields.u32()?);
        let writable = flags & WRITEABLE != 0;
        let (offset, address, size) = (fields.u64()?, fields.u64()?, fields.u64()?);
        Some(Self { writable, offset, address, size })
    }
}

/// The body of DMA_UNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// Everything, wherever it is.
    pub all: bool,
    /// The address for the device.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaUnmap {
    /// Bytes of the body, which is the reply too.
    pub const LEN: usize = 24;

    /// Reads it; `None` if it is too short.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (_argsz, flags) = (fields.u32()?, fields.u32()?);
        Some(Self { all: flags & UNMAP_ALL != 0, address: fields.u64()?, size: fields.u64()? })
    }
}

/// The body of SET_IRQS without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs {
    /// What comes with it.
    pub data: IrqData,
    /// What it is about.
    pub action: IrqAction,
    /// The kind of interrupt, a constant of [`irq`].
    pub index: u32,
    /// The first interrupt of that kind.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// What comes with SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData {
    /// Nothing: all of them are meant.
    None,
    /// A byte for each, which says whether it is meant.
    Bool,
    /// An eventfd for each, or none at all to take them away.
    EventFd,
}

/// What SET_IRQS is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold interrupts back.
    Mask,
    /// Let them come.
    Unmask,
    /// Make one, or say where they go.
    Trigger,
}

impl SetIrqs {
    /// Reads it, and gives the data that follows; `None` if it is too short or its flags contradict
    /// each other.
    pub fn parse(body: &[u8]) -> Option<(Self, &[u8])> {
        let mut fields = Fields(body);
        let (_argsz, flags) = (fields.u32()?, fields.u32()?);
        let data = match flags & 7 {
            1 => IrqData::None,
            2 => IrqData::Bool,
            4 => IrqData::EventFd,
            _ => return None,
        };
        let action = match flags >> 3 {
            1 => IrqAction::Mask,
            2 => IrqAction::Unmask,
            4 => IrqAction::Trigger,
            _ => return None,
        };
        let (index, start, count) = (fields.u32()?, fields.u32()?, fields.u32()?);
        Some((Self { data, action, index, start, count }, fields.0))
    }
}

/// The body of REGION_READ and the first part of that of REGION_WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where in the region.
    pub offset: u64,
    /// Which region, a constant of [`region`].
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

impl Access {
    /// Bytes of it.
    pub const LEN: usize = 16;

    /// Reads it, and gives what follows; `None` if it is too short.
    pub fn parse(body: &[u8]) -> Option<(Self, &[u8])> {
        let mut fields = Fields(body);
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        Some((Self { offset, region, count }, fields.0))
    }

    /// Its bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.region.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.count.to_ne_bytes());
        bytes
    }
}

/// The writes of REGION_WRITE_MULTI, each with at most 8 bytes; `None` if there are fewer than it
/// says, or one is longer.
pub fn writes(body: &[u8]) -> Option<Vec<(Access, &[u8])>> {
    let mut fields = Fields(body);
    let count = usize::try_from(fields.u64()?).ok()?;
    let (entries, _) = fields.0.as_chunks::<{ Access::LEN + 8 }>();
    let entries = entries.get(..count)?.iter().map(|entry| {
        let (access, data) = Access::parse(entry)?;
        Some((access, data.get(..access.count as usize)?))
    });
    entries.collect()
}

/// A body of 32-bit fields.
pub fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}

/// Kinds of interrupts.
pub mod irq {
    /// The interrupt pin.
    pub const INTX: u32 = 0;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// How many kinds there are, with those that this device does not have.
    pub const KINDS: u32 = 5;
}

/// Regions of the device.
pub mod region {
    /// BAR 0: what the driver works with.
    pub const REGISTERS: u32 = 0;
    /// BAR 1: the MSI-X table and its pending bits.
    pub const MSIX: u32 = 1;
    /// The configuration space.
    pub const CONFIG: u32 = 7;
    /// How many there are, with those that this device does not have.
    pub const COUNT: u32 = 9;
}

/// The major version.
pub const MAJOR: u16 = 0;
const MINOR: u16 = 1;
/// Descriptors that are taken with one message.
pub const MOST_DESCRIPTORS: usize = 16;
/// Bytes of data in one message.
pub const MOST_DATA: usize = 1 << 20;
/// Pieces of memory that a client may map.
pub const MOST_MAPS: usize = 65_535;
/// Pages of 4 KiB.
const PAGE_SIZES: u64 = 4096;
const WRITEABLE: u32 = 2;
const UNMAP_ALL: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_head_is_16_bytes() {
        let head = Head { id: 0x0102, command: 10, size: 0x24, flags: 0x10, error: 0 };
        let bytes = [2, 1, 10, 0, 0x24, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((head.emit(), Head::parse(&bytes)), (bytes, head));
        assert_eq!(head.body(), Some(20));
        let reply = head.reply(16).emit();
        assert_eq!(reply, [2, 1, 10, 0, 0x20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let failure = head.failure(22).emit();
        assert_eq!(failure, [2, 1, 10, 0, 0x10, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0]);
        assert_eq!(Head { size: 15, ..head }.body(), None);
    }

    #[test]
    fn a_version_is_answered_with_what_both_have() {
        let mut body = vec![0, 0, 0, 0];
        body.extend(
            b"{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true},\
                      \"write_multiple\":true,\"max_data_xfer_size\":4096}}\0",
        );
        let version = Version::parse(&body).unwrap();
        assert_eq!((version.descriptors(), version.data()), (8, 4096));
        let answer = version.answer();
        assert_eq!(answer.last(), Some(&0));
        let text = std::str::from_utf8(&answer[4..answer.len() - 1]).unwrap();
        let said: Value = serde_json::from_str(text).unwrap();
        assert_eq!(said["capabilities"]["write_multiple"], true);
        assert_eq!(said["capabilities"]["max_msg_fds"], 16);
        assert!(said["capabilities"]["twin_socket"].is_null());
    }

    #[test]
    fn a_version_without_capabilities_has_the_defaults() {
        for body in [&b"\0\0\x01\0"[..], b"\0\0\x01\0\0", b"\0\0\x01\0{}\0", b"\0\0\x01\0{\"x\":1}"]
        {
            let version = Version::parse(body).unwrap();
            assert_eq!(version.descriptors(), 1);
            assert!(!String::from_utf8(version.answer()).unwrap().contains("multiple"));
        }
    }

    #[test]
    fn a_version_that_is_none_is_refused() {
        for body in [
            &b"\0\0\0"[..],
            b"\0\0\0\0{",
            b"\0\0\0\0{\"capabilities\":1}\0",
            b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"\0\0\0\0\xFF\xFE\0",
        ] {
            assert_eq!(Version::parse(body), None, "{body:02x?}");
        }
        let huge = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":99999,\"max_data_xfer_size\":0}}\0";
        let version = Version::parse(huge).unwrap();
        assert_eq!(version.descriptors(), 16);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn maps_are_read_from_their_bytes() {
        let mut body = [0xA5; 32];
        body[..8].copy_from_slice(&[32, 0, 0, 0, 3, 0, 0, 0]);
        body[8..16].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 0]);
        body[16..24].copy_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        body[24..].copy_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        let map = DmaMap { writable: true, offset: 0x1000, address: 1 << 32, size: 0x2_0000 };
        assert_eq!(DmaMap::parse(&body), Some(map));
        assert_eq!(DmaMap::parse(&body[..31]), None);
        let unmap = [24, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
        let all = DmaUnmap { all: true, address: 1 << 32, size: 0x2_0000 };
        assert_eq!(DmaUnmap::parse(&unmap), Some(all));
        assert_eq!(DmaUnmap::parse(&unmap[..23]), None);
    }

    #[test]
    fn interrupts_have_one_kind_of_data_and_one_action() {
        let with = |flags: u32| words([20, flags, 2, 1, 3]);
        let set = SetIrqs {
            data: IrqData::EventFd,
            action: IrqAction::Trigger,
            index: 2,
            start: 1,
            count: 3,
        };
        assert_eq!(SetIrqs::parse(&with(0x24)), Some((set, &[][..])));
        for flags in [0, 1, 8, 3 | 8, 1 | 0x18, 0x64, u32::MAX] {
            assert_eq!(SetIrqs::parse(&with(flags)), None, "{flags:#x}");
        }
        assert_eq!(SetIrqs::parse(&with(0x24)[..19]), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn writes_in_one_message_are_those_that_it_counts() {
        let mut body = vec![2, 0, 0, 0, 0, 0, 0, 0];
        for offset in [0x3000u64, 0x14] {
            body.extend(Access { offset, region: 0, count: 2 }.emit());
            body.extend([7, 0, 0xA5, 0xA5, 0xA5, 0xA5, 0xA5, 0xA5]);
        }
        let found = writes(&body).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].0.offset, found[1].1), (0x14, &[7, 0][..]));
        assert_eq!(writes(&body[..55]), None);
        body[0] = 3;
        assert_eq!(writes(&body), None);
        body[0] = 1;
        body[20] = 9;
        assert_eq!(writes(&body), None);
        assert_eq!(writes(&[0xFF; 8]), None);
    }
}
