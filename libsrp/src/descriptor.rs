//! Data buffer descriptors: where a command's data lies (SRP clause 5).
//!
//! [`DataBuffers::parse`] makes every check that needs only the unit. What it cannot see is a
//! descriptor table that stays in the initiator's memory: fetch [`Indirect::external_table`] and
//! read it with [`Descriptors::from_table`].

use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use crate::wire::{self, raw};

/// One segment of the initiator's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Virtual address, or I/O bus address of a partition.
    pub address: u64,
    /// The memory key (R_Key); 0 from a partition.
    pub key: u32,
    /// Length in bytes; 0 is legal.
    pub len: u32,
}

impl Descriptor {
    /// Bytes of a descriptor.
    pub const LEN: usize = size_of::<RawDescriptor>();

    /// The part of `len` bytes from `offset` on; `None` where that leaves the segment or the
    /// address space.
    pub fn part(self, offset: u32, len: u32) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let address = self.address.checked_add(u64::from(offset))?;
        Some(Self { address, key: self.key, len })
    }

    /// The sixteen bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(RawDescriptor::from(self).as_bytes());
        bytes
    }

    /// Reads sixteen bytes from the wire.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        RawDescriptor::read_from_bytes(bytes).map(Self::from).unwrap_or_default()
    }
}

/// Where one direction's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataBuffer<'a> {
    /// The initiator gave no buffer.
    #[default]
    None,
    /// One segment.
    Direct(Descriptor),
    /// A list of segments.
    Indirect(Indirect<'a>),
    /// In the unit itself: Data-Out only (SRP2).
    Immediate(Immediate<'a>),
}

impl DataBuffer<'_> {
    /// How many bytes the buffer holds. For a list, never more than the segments known add up to;
    /// with an external table, that check is left to whoever reads the table.
    pub fn capacity(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Direct(descriptor) => descriptor.len,
            Self::Indirect(indirect) => indirect.capacity(),
            // Cannot exceed the limit that DataRules states as u32.
            Self::Immediate(immediate) => u32::try_from(immediate.data.len()).unwrap_or(u32::MAX),
        }
    }

    /// The format's code: half of byte 5 of a CMD.
    pub(crate) fn format(&self) -> u8 {
        match self {
            Self::None => FORMAT_NONE,
            Self::Direct(_) => FORMAT_DIRECT,
            Self::Indirect(_) => FORMAT_INDIRECT,
            Self::Immediate(_) => FORMAT_IMMEDIATE,
        }
    }

    /// The bytes this takes in the descriptor area.
    pub(crate) fn area_len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Direct(_) => Descriptor::LEN,
            Self::Indirect(indirect) => {
                Indirect::HEADER_LEN + indirect.list.0.len() * Descriptor::LEN
            }
            Self::Immediate(_) => IMMEDIATE_LEN,
        }
    }

    /// Writes the descriptor area, which the caller has cut to [`Self::area_len`].
    pub(crate) fn emit_area(&self, area: &mut [u8]) {
        match self {
            Self::None => {}
            Self::Direct(descriptor) => area.copy_from_slice(&descriptor.to_bytes()),
            Self::Indirect(indirect) => {
                let (table, rest) = area.split_at_mut(Descriptor::LEN);
                let (total, list) = rest.split_at_mut(size_of::<U32>());
                table.copy_from_slice(&indirect.table.to_bytes());
                total.copy_from_slice(&indirect.total_len.to_be_bytes());
                list.copy_from_slice(indirect.list.0.as_bytes());
            }
            Self::Immediate(_) => area.copy_from_slice(&self.capacity().to_be_bytes()),
        }
    }
}

/// A list of segments, of which the unit carries the first ones or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect<'a> {
    table: Descriptor,
    total_len: u32,
    list: Descriptors<'a>,
}

impl<'a> Indirect<'a> {
    /// Bytes in front of the list.
    pub const HEADER_LEN: usize = size_of::<RawIndirect>();

    /// A buffer of `total_len` bytes whose whole list lies at `table`, with the first descriptors
    /// (or all) in the unit.
    pub fn new(table: Descriptor, total_len: u32, list: Descriptors<'a>) -> Self {
        Self { table, total_len, list }
    }

    /// The total length the initiator states, in bytes.
    pub fn total_len(&self) -> u32 {
        self.total_len
    }

    /// How many descriptors the whole list has.
    pub fn count(&self) -> u32 {
        self.table.len / Descriptor::LEN as u32
    }

    /// The descriptors that the unit carries.
    pub fn list(&self) -> Descriptors<'a> {
        self.list
    }

    /// Whether the unit carries the whole list.
    pub fn is_complete(&self) -> bool {
        self.list.len() >= self.count() as usize
    }

    /// The initiator's memory that holds the whole list, when the unit does not.
    pub fn external_table(&self) -> Option<Descriptor> {
        (!self.is_complete()).then_some(self.table)
    }

    /// The smaller of the stated total and what the segments add up to. While the table is
    /// external only the stated total is known.
    pub fn capacity(&self) -> u32 {
        if self.is_complete() { self.list.capacity(self.total_len) } else { self.total_len }
    }
}

/// A sequence of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptors<'a>(&'a [RawDescriptor]);

impl<'a> Descriptors<'a> {
    /// The descriptors of a table read from the initiator's memory; `None` unless the bytes are
    /// whole descriptors.
    pub fn from_table(table: &'a [u8]) -> Option<Self> {
        <[RawDescriptor]>::ref_from_bytes(table).ok().map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other, those of length 0 included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Descriptor> + use<'a> {
        self.0.iter().map(|raw| Descriptor::from(*raw))
    }

    /// The smaller of `total_len` and the sum of the lengths.
    pub fn capacity(&self, total_len: u32) -> u32 {
        let sum = self.iter().fold(0, |sum: u32, segment| sum.saturating_add(segment.len));
        sum.min(total_len)
    }
}

/// Data that comes with the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate<'a> {
    /// Where it starts, in bytes from the start of the unit: agreed at login.
    pub offset: u16,
    /// The data.
    pub data: &'a [u8],
}

/// Both directions of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataBuffers<'a> {
    /// What the initiator sends from.
    pub data_out: DataBuffer<'a>,
    /// What the initiator receives to.
    pub data_in: DataBuffer<'a>,
}

impl<'a> DataBuffers<'a> {
    /// Reads the descriptor areas of `iu`, which start at byte `start`. Of `fields`, the counts
    /// matter for indirect lists only: Linux leaves them 0 otherwise and SLOF sets 1.
    pub fn parse(
        iu: &'a [u8],
        start: usize,
        fields: BufferFields,
        rules: &DataRules,
    ) -> Result<Self, DataError> {
        let mut area = Area { iu, at: start };
        let out_format = fields.formats >> 4;
        let in_format = fields.formats & 0x0F;

        let mut immediate_len = None;
        let data_out = match out_format {
            FORMAT_NONE => DataBuffer::None,
            FORMAT_DIRECT => area.direct()?,
            FORMAT_INDIRECT => area.indirect(fields.out_count, rules)?,
            FORMAT_IMMEDIATE => {
                immediate_len = Some(area.take::<U32>()?.get());
                DataBuffer::None
            }
            format => return Err(DataError::OutFormat(format)),
        };
        let data_in = match in_format {
            FORMAT_NONE => DataBuffer::None,
            FORMAT_DIRECT => area.direct()?,
            FORMAT_INDIRECT => area.indirect(fields.in_count, rules)?,
            format => return Err(DataError::InFormat(format)),
        };
        let data_out = match immediate_len {
            Some(len) => DataBuffer::Immediate(area.immediate(len, rules)?),
            None => data_out,
        };
        Ok(Self { data_out, data_in })
    }
}

/// What the header of a CMD says of its descriptors: bytes 5 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BufferFields {
    /// Data-Out's format in the high half, Data-In's in the low half.
    pub formats: u8,
    /// Data-Out descriptors in the unit.
    pub out_count: u8,
    /// Data-In descriptors in the unit.
    pub in_count: u8,
}

/// What a channel accepts as descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRules {
    /// The most descriptors a list may have; it bounds the table that has to be fetched.
    pub max_descriptors: u32,
    /// Immediate data, where the login granted it.
    pub immediate: Option<ImmediateRules>,
    /// What to do with a unit that ends within the list its count announces.
    pub short_list: ShortList,
}

impl DataRules {
    /// SRP over RDMA without immediate data. Linux's initiator lists at most 2048 segments.
    pub const SRP: Self =
        Self { max_descriptors: 2048, immediate: None, short_list: ShortList::Refuse };

    /// A partition: the table's length decides, whatever the count says.
    pub const VSCSI: Self =
        Self { max_descriptors: 2048, immediate: None, short_list: ShortList::FetchTable };
}

/// What was agreed about immediate data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImmediateRules {
    /// Where it starts, in bytes from the start of the unit.
    pub offset: u16,
    /// The most bytes of it.
    pub max_len: u32,
}

/// How to take a unit that ends before its list does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortList {
    /// It is an error.
    Refuse,
    /// Believe the whole descriptors that are there and have the rest fetched from the table.
    FetchTable,
}

/// A descriptor area that cannot be used. The command's tag is known, so it can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DataError {
    /// Not a Data-Out format.
    #[error("Data-Out format {0} is not known")]
    OutFormat(u8),
    /// Not a Data-In format (immediate data goes out only).
    #[error("Data-In format {0} is not known")]
    InFormat(u8),
    /// The unit ends within the descriptors.
    #[error("descriptors need {needed} bytes of a unit of {got}")]
    Truncated {
        /// Bytes of the unit the descriptors end at.
        needed: usize,
        /// Bytes of the unit.
        got: usize,
    },
    /// The table is not made of whole descriptors.
    #[error("a descriptor table of {0} bytes is not a multiple of 16")]
    TableLength(u32),
    /// The list is longer than the channel accepts.
    #[error("{count} descriptors where {max} are allowed")]
    TooManyDescriptors {
        /// Descriptors in the table.
        count: u32,
        /// The channel's limit.
        max: u32,
    },
    /// Immediate data without an agreement about it.
    #[error("immediate data was not granted at login")]
    ImmediateNotGranted,
    /// The agreed offset lies within the descriptors.
    #[error("immediate data at {offset} overlaps descriptors up to {end}")]
    ImmediateOffset {
        /// The agreed offset.
        offset: u16,
        /// Where the descriptors end.
        end: usize,
    },
    /// More immediate data than was agreed.
    #[error("{len} bytes of immediate data where {max} are allowed")]
    ImmediateTooLong {
        /// Bytes announced.
        len: u32,
        /// Bytes allowed.
        max: u32,
    },
    /// The unit ends within the immediate data.
    #[error("immediate data needs {needed} bytes of a unit of {got}")]
    ImmediateTruncated {
        /// Bytes of the unit the data ends at.
        needed: usize,
        /// Bytes of the unit.
        got: usize,
    },
}

/// A cursor over the descriptor areas of a unit.
struct Area<'a> {
    iu: &'a [u8],
    at: usize,
}

impl<'a> Area<'a> {
    fn rest(&self) -> &'a [u8] {
        self.iu.get(self.at..).unwrap_or_default()
    }

    fn take<T>(&mut self) -> Result<&'a T, DataError>
    where
        T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
    {
        let needed = self.at.saturating_add(size_of::<T>());
        let (raw, _) = wire::read::<T>(self.rest())
            .map_err(|_| DataError::Truncated { needed, got: self.iu.len() })?;
        self.at = needed;
        Ok(raw)
    }

    fn direct(&mut self) -> Result<DataBuffer<'a>, DataError> {
        self.take::<RawDescriptor>().map(|raw| DataBuffer::Direct((*raw).into()))
    }

    fn indirect(&mut self, listed: u8, rules: &DataRules) -> Result<DataBuffer<'a>, DataError> {
        let header = self.take::<RawIndirect>()?;
        let table = Descriptor::from(header.table);
        if !table.len.is_multiple_of(Descriptor::LEN as u32) {
            return Err(DataError::TableLength(table.len));
        }
        let count = table.len / Descriptor::LEN as u32;
        if count > rules.max_descriptors {
            return Err(DataError::TooManyDescriptors { count, max: rules.max_descriptors });
        }

        let listed = usize::from(listed);
        let present = self.rest().len() / Descriptor::LEN;
        if present < listed && rules.short_list == ShortList::Refuse {
            let needed = self.at.saturating_add(listed * Descriptor::LEN);
            return Err(DataError::Truncated { needed, got: self.iu.len() });
        }
        // Entries beyond the table's end are room in the unit, not descriptors.
        let used = listed.min(present).min(count as usize);
        let list = self.rest().get(..used * Descriptor::LEN).and_then(Descriptors::from_table);
        self.at = self.at.saturating_add(listed * Descriptor::LEN);
        let total_len = header.total_len.get();
        Ok(DataBuffer::Indirect(Indirect::new(table, total_len, list.unwrap_or_default())))
    }

    fn immediate(&self, len: u32, rules: &DataRules) -> Result<Immediate<'a>, DataError> {
        let rules = rules.immediate.ok_or(DataError::ImmediateNotGranted)?;
        let start = usize::from(rules.offset);
        if start < self.at {
            return Err(DataError::ImmediateOffset { offset: rules.offset, end: self.at });
        }
        if len > rules.max_len {
            return Err(DataError::ImmediateTooLong { len, max: rules.max_len });
        }
        let needed = start.saturating_add(len as usize);
        let data = self
            .iu
            .get(start..needed)
            .ok_or(DataError::ImmediateTruncated { needed, got: self.iu.len() })?;
        Ok(Immediate { offset: rules.offset, data })
    }
}

impl From<RawDescriptor> for Descriptor {
    fn from(raw: RawDescriptor) -> Self {
        Self { address: raw.address.get(), key: raw.key.get(), len: raw.len.get() }
    }
}

impl From<Descriptor> for RawDescriptor {
    fn from(value: Descriptor) -> Self {
        Self { address: value.address.into(), key: value.key.into(), len: value.len.into() }
    }
}

const FORMAT_NONE: u8 = 0;
const FORMAT_DIRECT: u8 = 1;
const FORMAT_INDIRECT: u8 = 2;
const FORMAT_IMMEDIATE: u8 = 3;
const IMMEDIATE_LEN: usize = size_of::<U32>();

raw! {
    struct RawDescriptor = 16 {
        address: U64,
        key: U32,
        len: U32,
    }
}

raw! {
    struct RawIndirect = 20 {
        table: RawDescriptor,
        total_len: U32,
    }
}

#[cfg(test)]
mod tests;
