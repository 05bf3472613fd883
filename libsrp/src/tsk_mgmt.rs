//! TSK_MGMT: task management over SRP (SRP clause 6).

use zerocopy::FromZeros;

use crate::cmd::SolicitedNotification;
use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, codes, raw};
use crate::{Lun, Tag, TaskFunction, TaskManagement};

/// A task management request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TskMgmt {
    /// The tag of this request.
    pub tag: Tag,
    /// When the response is to raise a solicited event.
    pub notify: SolicitedNotification,
    /// The addressed logical unit.
    pub lun: Lun,
    /// What is asked.
    pub function: FunctionCode,
    /// The task to manage, for ABORT TASK; anything otherwise.
    pub managed: Tag,
}

impl TskMgmt {
    /// Bytes of the unit.
    pub const LEN: usize = size_of::<RawTskMgmt>();

    /// Reads the unit.
    pub fn parse(iu: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read_unit::<RawTskMgmt>(iu, Opcode::TskMgmt.code())?;
        Ok(Self {
            tag: Tag(raw.tag),
            notify: SolicitedNotification::from_bits(raw.sol_not),
            lun: Lun(raw.lun),
            function: FunctionCode::from_code(raw.function),
            managed: Tag(raw.managed),
        })
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawTskMgmt {
            opcode: Opcode::TskMgmt.code(),
            sol_not: self.notify.bits(),
            tag: self.tag.0,
            lun: self.lun.0,
            function: self.function.code(),
            managed: self.managed.0,
            ..RawTskMgmt::new_zeroed()
        };
        wire::write(&raw, out)
    }

    /// What the command core is to do.
    pub fn request(&self) -> TaskManagement {
        let function = match self.function {
            FunctionCode::AbortTask => TaskFunction::AbortTask,
            FunctionCode::AbortTaskSet => TaskFunction::AbortTaskSet,
            FunctionCode::ClearTaskSet => TaskFunction::ClearTaskSet,
            FunctionCode::LogicalUnitReset => TaskFunction::LogicalUnitReset,
            FunctionCode::ClearAca => TaskFunction::ClearAca,
            FunctionCode::Unknown(code) => TaskFunction::Unknown(code),
        };
        TaskManagement { tag: self.tag, lun: self.lun, function, managed: self.managed }
    }
}

codes! {
    /// The functions SRP has on the wire: no query, no I_T NEXUS RESET.
    pub enum FunctionCode(u8) {
        /// ABORT TASK.
        AbortTask = 0x01,
        /// ABORT TASK SET.
        AbortTaskSet = 0x02,
        /// CLEAR TASK SET.
        ClearTaskSet = 0x04,
        /// LOGICAL UNIT RESET.
        LogicalUnitReset = 0x08,
        /// CLEAR ACA.
        ClearAca = 0x40,
    }
}

raw! {
    struct RawTskMgmt = 48 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 6],
        tag: [u8; 8],
        _reserved16: [u8; 4],
        lun: [u8; 8],
        _reserved28: [u8; 2],
        function: u8,
        _reserved31: u8,
        managed: [u8; 8],
        _reserved40: [u8; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;

    #[rustfmt::skip]
    const ABORT_TASK: [u8; 48] = [
        0x01, 0x06, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 2,
        0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0,
        0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0,
    ];

    fn abort_task() -> TskMgmt {
        TskMgmt {
            tag: Tag([0x80, 0, 0, 1, 0, 0, 0, 2]),
            notify: SolicitedNotification { on_success: true, on_failure: true },
            lun: Lun([0, 3, 0, 0, 0, 0, 0, 0]),
            function: FunctionCode::AbortTask,
            managed: Tag([0, 0, 0, 1, 0, 0, 0, 2]),
        }
    }

    #[test]
    fn abort_task_round_trips() {
        round_trip!(&ABORT_TASK, abort_task(), TskMgmt::parse, TskMgmt::emit);
    }

    #[test]
    fn abort_task_becomes_a_request_to_the_core() {
        let request = abort_task().request();
        assert_eq!(request.function, TaskFunction::AbortTask);
        assert_eq!(request.managed, Tag([0, 0, 0, 1, 0, 0, 0, 2]));
        assert_eq!(request.lun.number(), Some(3));
    }

    #[test]
    fn every_function_code_reaches_the_core_once() {
        let known = [
            (0x01, TaskFunction::AbortTask),
            (0x02, TaskFunction::AbortTaskSet),
            (0x04, TaskFunction::ClearTaskSet),
            (0x08, TaskFunction::LogicalUnitReset),
            (0x40, TaskFunction::ClearAca),
        ];
        for code in 0..=u8::MAX {
            let mut bytes = ABORT_TASK;
            bytes[30] = code;
            let named = known.iter().find(|(c, _)| *c == code).map(|(_, f)| *f);
            let function = TskMgmt::parse(&bytes).unwrap().request().function;
            assert_eq!(function, named.unwrap_or(TaskFunction::Unknown(code)));
        }
    }

    #[test]
    fn junk_in_reserved_bytes_is_ignored() {
        let mut bytes = ABORT_TASK;
        for index in [2, 7, 16, 19, 28, 29, 31, 40, 47] {
            bytes[index] = 0xFF;
        }
        assert_eq!(TskMgmt::parse(&bytes), Ok(abort_task()));
    }
}
