//! Requests of the control queue (VIRTIO 1.3, 5.6.6.2).

use libsrp::{ResponseCode, TaskFunction};

use super::{Address, code};

/// A request of the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A task management function.
    Manage {
        /// Which.
        function: TaskFunction,
        /// Target and logical unit.
        address: Option<Address>,
        /// The task it concerns, for ABORT TASK and QUERY TASK.
        tag: u64,
    },
    /// Asynchronous notification: a query or a subscription for these events.
    Notification {
        /// Target and logical unit.
        address: Option<Address>,
        /// The events asked for.
        events: u32,
    },
    /// A type that no standard defines, or too few bytes.
    Unknown,
}

impl Control {
    /// Reads a request.
    pub fn parse(bytes: &[u8]) -> Self {
        let le32 =
            |at: usize| bytes.get(at..at + 4)?.first_chunk().copied().map(u32::from_le_bytes);
        let address = |at: usize| Some(Address::parse(*bytes.get(at..at + 8)?.first_chunk()?));
        let manage = || {
            let function = match le32(4)? {
                0 => TaskFunction::AbortTask,
                1 => TaskFunction::AbortTaskSet,
                2 => TaskFunction::ClearAca,
                3 => TaskFunction::ClearTaskSet,
                4 => TaskFunction::ItNexusReset,
                5 => TaskFunction::LogicalUnitReset,
                6 => TaskFunction::QueryTask,
                7 => TaskFunction::QueryTaskSet,
                other => TaskFunction::Unknown(u8::try_from(other).unwrap_or(u8::MAX)),
            };
            let tag = u64::from_le_bytes(*bytes.get(16..24)?.first_chunk()?);
            Some(Self::Manage { function, address: address(8)?, tag })
        };
        let notification = || Some(Self::Notification { address: address(4)?, events: le32(12)? });
        let parsed = match le32(0) {
            Some(0) => manage(),
            Some(1 | 2) => notification(),
            _ => None,
        };
        parsed.unwrap_or(Self::Unknown)
    }
}

/// The response code of a task management function.
pub fn code_of(outcome: ResponseCode) -> u8 {
    match outcome {
        // A task that is not there any more was completed before.
        ResponseCode::None | ResponseCode::FunctionComplete | ResponseCode::TaskDoesNotExist => {
            code::OK
        }
        ResponseCode::FunctionSucceeded => code::FUNCTION_SUCCEEDED,
        ResponseCode::FunctionRejected => code::FUNCTION_REJECTED,
        ResponseCode::IncorrectLun => code::INCORRECT_LUN,
        ResponseCode::FunctionFailed | ResponseCode::InvalidFields => code::FAILURE,
    }
}

/// The answer to an asynchronous notification request: the events that will be told, which are none,
/// and a response code. (They are those of multimedia units, which a disk has not.)
pub fn notification_response(code: u8) -> [u8; 5] {
    [0, 0, 0, 0, code]
}

#[cfg(test)]
mod tests {
    use super::*;
    use libsrp::Lun;

    #[test]
    fn a_logical_unit_reset_as_linux_sends_it() {
        let mut bytes = [0; 24];
        bytes[4] = 5;
        bytes[8..12].copy_from_slice(&[1, 2, 0x40, 3]);
        let address = Some(Address { target: 2, lun: Lun::from_number(3).unwrap() });
        let function = TaskFunction::LogicalUnitReset;
        assert_eq!(Control::parse(&bytes), Control::Manage { function, address, tag: 0 });
    }

    #[test]
    fn an_abort_names_its_task() {
        let mut bytes = [0; 24];
        bytes[8] = 1;
        bytes[16..].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        let Control::Manage { function, tag, .. } = Control::parse(&bytes) else { panic!() };
        assert_eq!((function, tag), (TaskFunction::AbortTask, 0x1122_3344_5566_7788));
    }

    #[test]
    fn short_and_unknown_requests_are_unknown() {
        for len in 0..24 {
            assert_eq!(Control::parse(&[0; 24][..len]), Control::Unknown);
        }
        assert_eq!(Control::parse(&[3; 24]), Control::Unknown);
    }

    #[test]
    fn a_subscription_names_its_events() {
        let mut bytes = [0; 16];
        bytes[0] = 2;
        bytes[4] = 1;
        bytes[12] = 2;
        assert!(matches!(Control::parse(&bytes), Control::Notification { events: 2, .. }));
    }
}
