//! The plain values every transport exchanges with the command core.

use core::fmt;

/// The opaque eight-byte tag an initiator gives a task. Never interpreted, only compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tag(pub [u8; 8]);

impl Tag {
    /// A tag made of a number, for transports whose tags are numbers (iSCSI's initiator task tag).
    pub const fn from_u64(value: u64) -> Self {
        Self(value.to_be_bytes())
    }

    /// The number given to [`Tag::from_u64`].
    pub const fn to_u64(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.to_u64())
    }
}

/// An eight-byte logical unit number as an initiator sent it (SAM-5 4.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lun(pub [u8; 8]);

impl Lun {
    /// The REPORT LUNS well-known logical unit (SAM-5 4.7.12).
    pub const REPORT_LUNS: Self = Self([0xC1, 0x01, 0, 0, 0, 0, 0, 0]);

    /// Encodes a single-level number: peripheral device addressing below 256, flat space
    /// addressing up to 16383 (SAM-5 4.7.7). `None` above that.
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            0..=0xFF => Some(Self([0, number as u8, 0, 0, 0, 0, 0, 0])),
            0x100..=0x3FFF => {
                Some(Self([0x40 | (number >> 8) as u8, number as u8, 0, 0, 0, 0, 0, 0]))
            }
            _ => None,
        }
    }

    /// The single-level number of a peripheral (bus 0) or flat address, however it was encoded.
    /// `None` for other methods, other buses and deeper levels.
    pub const fn number(self) -> Option<u16> {
        let [a, b, 0, 0, 0, 0, 0, 0] = self.0 else { return None };
        match a >> 6 {
            0b00 if a == 0 => Some(b as u16),
            0b01 => Some(((a as u16 & 0x3F) << 8) | b as u16),
            _ => None,
        }
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(n) => write!(f, "LUN {n}"),
            None => write!(f, "LUN {:#018x}", u64::from_be_bytes(self.0)),
        }
    }
}

/// How a task is to be ordered in its task set (SAM-5 8.9). Codes are SRP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TaskAttribute {
    /// SIMPLE (0).
    #[default]
    Simple,
    /// HEAD OF QUEUE (1).
    HeadOfQueue,
    /// ORDERED (2).
    Ordered,
    /// ACA (4).
    Aca,
    /// A code no standard defines.
    Unknown(u8),
}

/// A SCSI command as every transport hands it to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// The initiator's tag.
    pub tag: Tag,
    /// The addressed logical unit.
    pub lun: Lun,
    /// The task attribute.
    pub attribute: TaskAttribute,
    /// Command priority (SAM-5 8.7), 0 when none was given.
    pub priority: u8,
    /// The CDB: at least one byte; transports with fixed 16-byte fields pass all 16.
    pub cdb: &'a [u8],
    /// How many bytes the initiator is prepared to send.
    pub data_out: u32,
    /// How many bytes the initiator is prepared to receive.
    pub data_in: u32,
}

/// A task management function (SAM-5 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFunction {
    /// ABORT TASK.
    AbortTask,
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// CLEAR ACA.
    ClearAca,
    /// I_T NEXUS RESET.
    ItNexusReset,
    /// QUERY TASK.
    QueryTask,
    /// QUERY TASK SET.
    QueryTaskSet,
    /// QUERY ASYNCHRONOUS EVENT.
    QueryAsynchronousEvent,
    /// TARGET RESET of every logical unit (iSCSI's warm and cold reset; not in SAM-5).
    TargetReset,
    /// A code the transport's standard does not define.
    Unknown(u8),
}

/// A task management request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// The tag of this request.
    pub tag: Tag,
    /// The addressed logical unit.
    pub lun: Lun,
    /// What is asked.
    pub function: TaskFunction,
    /// The task to manage: ABORT TASK and QUERY TASK only.
    pub managed: Tag,
}

/// A SCSI status code (SAM-5 5.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(pub u8);

impl Status {
    /// GOOD.
    pub const GOOD: Self = Self(0x00);
    /// CHECK CONDITION: sense data comes with it.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// CONDITION MET.
    pub const CONDITION_MET: Self = Self(0x04);
    /// BUSY.
    pub const BUSY: Self = Self(0x08);
    /// RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// TASK SET FULL.
    pub const TASK_SET_FULL: Self = Self(0x28);
    /// ACA ACTIVE.
    pub const ACA_ACTIVE: Self = Self(0x30);
    /// TASK ABORTED.
    pub const TASK_ABORTED: Self = Self(0x40);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::GOOD => f.write_str("GOOD"),
            Self::CHECK_CONDITION => f.write_str("CHECK CONDITION"),
            Self::CONDITION_MET => f.write_str("CONDITION MET"),
            Self::BUSY => f.write_str("BUSY"),
            Self::RESERVATION_CONFLICT => f.write_str("RESERVATION CONFLICT"),
            Self::TASK_SET_FULL => f.write_str("TASK SET FULL"),
            Self::ACA_ACTIVE => f.write_str("ACA ACTIVE"),
            Self::TASK_ABORTED => f.write_str("TASK ABORTED"),
            Self(code) => write!(f, "status {code:#04x}"),
        }
    }
}

/// The most sense bytes a response carries; Linux's SRP initiators copy no more.
pub const SENSE_MAX: usize = 96;

/// Sense data as it goes to the initiator, in fixed or descriptor format.
#[derive(Clone, Copy)]
pub struct SenseData {
    len: u8,
    bytes: [u8; SENSE_MAX],
}

impl SenseData {
    /// No sense data.
    pub const NONE: Self = Self { len: 0, bytes: [0; SENSE_MAX] };

    /// Copies up to [`SENSE_MAX`] bytes.
    pub fn new(sense: &[u8]) -> Self {
        let mut data = Self::NONE;
        let len = sense.len().min(SENSE_MAX);
        data.bytes[..len].copy_from_slice(&sense[..len]);
        data.len = len as u8;
        data
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for SenseData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

impl PartialEq for SenseData {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SenseData {}

/// The difference between what the initiator expected to move and what the command asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residual {
    /// They were equal.
    #[default]
    None,
    /// The command moved this many bytes fewer than the initiator's buffer holds.
    Under(u32),
    /// The command would have moved this many bytes more than the initiator's buffer holds.
    Over(u32),
}

impl Residual {
    /// The residual of a command that wanted `wanted` bytes where the buffer holds `capacity`.
    pub fn of(wanted: u64, capacity: u32) -> Self {
        let capacity = u64::from(capacity);
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match wanted {
            n if n < capacity => Self::Under(clamp(capacity - n)),
            n if n > capacity => Self::Over(clamp(n - capacity)),
            _ => Self::None,
        }
    }
}

/// The outcome of a task management function (SAM-5 7.1), or of a command that never started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResponseCode {
    /// A command's ordinary response: look at the status.
    #[default]
    None,
    /// FUNCTION COMPLETE.
    FunctionComplete,
    /// FUNCTION SUCCEEDED: a query function found what it asked about.
    FunctionSucceeded,
    /// FUNCTION REJECTED: not supported.
    FunctionRejected,
    /// INCORRECT LOGICAL UNIT NUMBER.
    IncorrectLun,
    /// The task named does not exist. SAM answers FUNCTION COMPLETE; iSCSI has a code for it.
    TaskDoesNotExist,
    /// The function failed.
    FunctionFailed,
    /// The fields of the request were invalid.
    InvalidFields,
}

/// What the core gives back for a [`Command`] or a [`TaskManagement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The tag of the request answered.
    pub tag: Tag,
    /// SCSI status of a command.
    pub status: Status,
    /// Task management outcome.
    pub code: ResponseCode,
    /// Status qualifier (SAM-5 5.3.2), or for QUERY ASYNCHRONOUS EVENT the three bytes of
    /// additional response information.
    pub qualifier: u32,
    /// Residual of the Data-Out transfer.
    pub data_out: Residual,
    /// Residual of the Data-In transfer.
    pub data_in: Residual,
    /// Sense data, with CHECK CONDITION.
    pub sense: SenseData,
}

impl Response {
    /// GOOD, nothing left over.
    pub const fn good(tag: Tag) -> Self {
        Self {
            tag,
            status: Status::GOOD,
            code: ResponseCode::None,
            qualifier: 0,
            data_out: Residual::None,
            data_in: Residual::None,
            sense: SenseData::NONE,
        }
    }
}
