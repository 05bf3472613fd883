//! Task Management Function Request and Response (RFC 7143 11.5 and 11.6, RFC 7144 6.3).

use libsrp::{Lun, ResponseCode, Tag, TaskFunction, TaskManagement};
use zerocopy::big_endian::U32;

use super::{Bhs, FINAL, IMMEDIATE, Numbers, Opcode, PduError, codes, expect, first_byte, raw};

raw! { RawTaskRequest {
    opcode: u8, function: u8, reserved: [u8; 2], ahs_words: u8, data_len: [u8; 3], lun: [u8; 8],
    itt: U32, referenced: U32, cmd_sn: U32, exp_stat_sn: U32, ref_cmd_sn: U32, exp_data_sn: U32,
    reserved40: [u8; 8],
} }

raw! { RawTaskResponse {
    opcode: u8, flags: u8, response: u8, reserved: u8, ahs_words: u8, data_len: [u8; 3],
    information: [u8; 3], reserved11: [u8; 5], itt: U32, reserved20: U32, stat_sn: U32,
    exp_cmd_sn: U32, max_cmd_sn: U32, reserved36: [u8; 12],
} }

codes! {
    /// A task management function as iSCSI numbers it.
    pub enum TaskFunctionCode {
        /// ABORT TASK.
        AbortTask = 1,
        /// ABORT TASK SET.
        AbortTaskSet = 2,
        /// CLEAR ACA.
        ClearAca = 3,
        /// CLEAR TASK SET.
        ClearTaskSet = 4,
        /// LOGICAL UNIT RESET.
        LogicalUnitReset = 5,
        /// TARGET WARM RESET.
        TargetWarmReset = 6,
        /// TARGET COLD RESET: closes every connection too.
        TargetColdReset = 7,
        /// TASK REASSIGN (ErrorRecoveryLevel 2), which the command core never sees.
        TaskReassign = 8,
        /// QUERY TASK (RFC 7144).
        QueryTask = 9,
        /// QUERY TASK SET (RFC 7144).
        QueryTaskSet = 10,
        /// I_T NEXUS RESET (RFC 7144).
        ItNexusReset = 11,
        /// QUERY ASYNCHRONOUS EVENT (RFC 7144).
        QueryAsynchronousEvent = 12,
    }
}

impl TaskFunctionCode {
    /// The function as the command core knows it. TASK REASSIGN is the transport's own and comes
    /// out unknown.
    pub const fn function(self) -> TaskFunction {
        match self {
            Self::AbortTask => TaskFunction::AbortTask,
            Self::AbortTaskSet => TaskFunction::AbortTaskSet,
            Self::ClearAca => TaskFunction::ClearAca,
            Self::ClearTaskSet => TaskFunction::ClearTaskSet,
            Self::LogicalUnitReset => TaskFunction::LogicalUnitReset,
            Self::TargetWarmReset | Self::TargetColdReset => TaskFunction::TargetReset,
            Self::TaskReassign => TaskFunction::Unknown(8),
            Self::QueryTask => TaskFunction::QueryTask,
            Self::QueryTaskSet => TaskFunction::QueryTaskSet,
            Self::ItNexusReset => TaskFunction::ItNexusReset,
            Self::QueryAsynchronousEvent => TaskFunction::QueryAsynchronousEvent,
            Self::Unknown(code) => TaskFunction::Unknown(code),
        }
    }

    /// iSCSI's code of a function of the core; a target reset is the warm one.
    pub const fn from_function(function: TaskFunction) -> Self {
        match function {
            TaskFunction::AbortTask => Self::AbortTask,
            TaskFunction::AbortTaskSet => Self::AbortTaskSet,
            TaskFunction::ClearTaskSet => Self::ClearTaskSet,
            TaskFunction::LogicalUnitReset => Self::LogicalUnitReset,
            TaskFunction::ClearAca => Self::ClearAca,
            TaskFunction::ItNexusReset => Self::ItNexusReset,
            TaskFunction::QueryTask => Self::QueryTask,
            TaskFunction::QueryTaskSet => Self::QueryTaskSet,
            TaskFunction::QueryAsynchronousEvent => Self::QueryAsynchronousEvent,
            TaskFunction::TargetReset => Self::TargetWarmReset,
            TaskFunction::Unknown(code) => Self::from_code(code),
        }
    }

    /// Whether the function exists only where iSCSIProtocolLevel 2 or more was agreed.
    pub const fn needs_protocol_level_2(self) -> bool {
        matches!(
            self,
            Self::QueryTask
                | Self::QueryTaskSet
                | Self::ItNexusReset
                | Self::QueryAsynchronousEvent
        )
    }
}

/// A Task Management Function Request PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRequest {
    /// Immediate delivery, the usual way.
    pub immediate: bool,
    /// What is asked.
    pub function: TaskFunctionCode,
    /// The logical unit, for functions that name one.
    pub lun: Lun,
    /// Initiator task tag of this request.
    pub itt: u32,
    /// Initiator task tag of the task to manage, for ABORT TASK, TASK REASSIGN and QUERY TASK.
    pub referenced: u32,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// Expected status sequence number.
    pub exp_stat_sn: u32,
    /// CmdSN of the task to abort.
    pub ref_cmd_sn: u32,
    /// First data PDU wanted again, with TASK REASSIGN.
    pub exp_data_sn: u32,
}

impl TaskRequest {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::TaskRequest)?;
        let raw: &RawTaskRequest = zerocopy::transmute_ref!(header);
        Ok(Self {
            immediate: raw.opcode & IMMEDIATE != 0,
            function: TaskFunctionCode::from_code(raw.function & 0x7F),
            lun: Lun(raw.lun),
            itt: raw.itt.get(),
            referenced: raw.referenced.get(),
            cmd_sn: raw.cmd_sn.get(),
            exp_stat_sn: raw.exp_stat_sn.get(),
            ref_cmd_sn: raw.ref_cmd_sn.get(),
            exp_data_sn: raw.exp_data_sn.get(),
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawTaskRequest {
            opcode: first_byte(Opcode::TaskRequest, self.immediate),
            function: FINAL | (self.function.code() & 0x7F),
            reserved: [0; 2],
            ahs_words: 0,
            data_len: [0; 3],
            lun: self.lun.0,
            itt: self.itt.into(),
            referenced: self.referenced.into(),
            cmd_sn: self.cmd_sn.into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            ref_cmd_sn: self.ref_cmd_sn.into(),
            exp_data_sn: self.exp_data_sn.into(),
            reserved40: [0; 8],
        });
    }

    /// The request for the core.
    pub const fn task_management(&self) -> TaskManagement {
        TaskManagement {
            tag: Tag::from_u64(self.itt as u64),
            lun: self.lun,
            function: self.function.function(),
            managed: Tag::from_u64(self.referenced as u64),
        }
    }
}

codes! {
    /// How a task management function ended (RFC 7143 11.6.1).
    pub enum TaskResponseCode {
        /// Function complete.
        Complete = 0,
        /// The referenced task does not exist.
        TaskDoesNotExist = 1,
        /// The logical unit does not exist.
        LunDoesNotExist = 2,
        /// The task is still allegiant to another connection.
        StillAllegiant = 3,
        /// Task allegiance reassignment is not supported.
        ReassignNotSupported = 4,
        /// The function is not supported.
        NotSupported = 5,
        /// The function is not authorized.
        NotAuthorized = 6,
        /// Function succeeded: a query found what it asked about (RFC 7144).
        Succeeded = 7,
        /// Function rejected.
        Rejected = 255,
    }
}

impl TaskResponseCode {
    /// iSCSI's code for an outcome of the core.
    pub const fn from_response(code: ResponseCode) -> Self {
        match code {
            ResponseCode::None | ResponseCode::FunctionComplete => Self::Complete,
            ResponseCode::FunctionSucceeded => Self::Succeeded,
            ResponseCode::FunctionRejected => Self::NotSupported,
            ResponseCode::IncorrectLun => Self::LunDoesNotExist,
            ResponseCode::TaskDoesNotExist => Self::TaskDoesNotExist,
            ResponseCode::FunctionFailed | ResponseCode::InvalidFields => Self::Rejected,
        }
    }

    /// The outcome as the core names it.
    pub const fn response(self) -> ResponseCode {
        match self {
            Self::Complete => ResponseCode::FunctionComplete,
            Self::TaskDoesNotExist => ResponseCode::TaskDoesNotExist,
            Self::LunDoesNotExist => ResponseCode::IncorrectLun,
            Self::Succeeded => ResponseCode::FunctionSucceeded,
            Self::NotSupported | Self::ReassignNotSupported => ResponseCode::FunctionRejected,
            Self::StillAllegiant | Self::NotAuthorized | Self::Rejected | Self::Unknown(_) => {
                ResponseCode::FunctionFailed
            }
        }
    }
}

/// A Task Management Function Response PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskResponse {
    /// The outcome.
    pub response: TaskResponseCode,
    /// Additional response information (RFC 7144), for QUERY ASYNCHRONOUS EVENT.
    pub information: [u8; 3],
    /// Initiator task tag of the request.
    pub itt: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl TaskResponse {
    /// # Errors
    /// Another opcode.
    pub fn parse(header: &Bhs) -> Result<Self, PduError> {
        expect(header, Opcode::TaskResponse)?;
        let raw: &RawTaskResponse = zerocopy::transmute_ref!(header);
        Ok(Self {
            response: TaskResponseCode::from_code(raw.response),
            information: raw.information,
            itt: raw.itt.get(),
            numbers: Numbers {
                stat_sn: raw.stat_sn.get(),
                exp_cmd_sn: raw.exp_cmd_sn.get(),
                max_cmd_sn: raw.max_cmd_sn.get(),
            },
        })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut Bhs) {
        *header = zerocopy::transmute!(RawTaskResponse {
            opcode: Opcode::TaskResponse.code(),
            flags: FINAL,
            response: self.response.code(),
            reserved: 0,
            ahs_words: 0,
            data_len: [0; 3],
            information: self.information,
            reserved11: [0; 5],
            itt: self.itt.into(),
            reserved20: 0.into(),
            stat_sn: self.numbers.stat_sn.into(),
            exp_cmd_sn: self.numbers.exp_cmd_sn.into(),
            max_cmd_sn: self.numbers.max_cmd_sn.into(),
            reserved36: [0; 12],
        });
    }
}
