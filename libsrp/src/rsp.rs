//! RSP: the answer to a CMD or a TSK_MGMT (SRP clause 6).

use thiserror::Error;
use zerocopy::FromZeros;
use zerocopy::big_endian::U32;

use crate::opcode::Opcode;
use crate::wire::{self, NoRoom, WireError, codes, raw};
use crate::{Residual, Response, ResponseCode, Status, Tag};

/// An answer as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsp<'a> {
    /// The tag of the request answered.
    pub tag: Tag,
    /// Added to the initiator's request limit.
    pub limit_delta: i32,
    /// Sent with a solicited event.
    pub solicited: bool,
    /// SCSI status.
    pub status: Status,
    /// Data-Out residual. What OVER and UNDER mean depends on the [`ResidualFlavour`].
    pub data_out: Residual,
    /// Data-In residual.
    pub data_in: Residual,
    /// Response data: the outcome of task management.
    pub code: Option<RspCode>,
    /// Sense data.
    pub sense: &'a [u8],
}

impl<'a> Rsp<'a> {
    /// Bytes in front of response data and sense data.
    pub const HEADER_LEN: usize = size_of::<RawRsp>();

    /// The answer that carries a core's response, no longer than `max_len` bytes: sense data is
    /// cut to what remains.
    pub fn new(
        response: &'a Response,
        limit_delta: i32,
        flavour: ResidualFlavour,
        max_len: usize,
    ) -> Self {
        let checked = response.status == Status::CHECK_CONDITION;
        let (sense, code) = match flavour {
            ResidualFlavour::Srp => (response.sense.as_bytes(), RspCode::of(response.code)),
            // A partition finds sense data at a fixed place, where response data would lie.
            ResidualFlavour::Vscsi if checked => (response.sense.as_bytes(), None),
            ResidualFlavour::Vscsi => (&[][..], RspCode::of(response.code)),
        };
        let taken = Self::HEADER_LEN + code.map_or(0, |_| RSP_DATA_LEN);
        let sense_len = sense.len().min(max_len.saturating_sub(taken));
        Self {
            tag: response.tag,
            limit_delta,
            solicited: false,
            status: response.status,
            data_out: flavour.apply(response.data_out),
            data_in: flavour.apply(response.data_in),
            code,
            sense: &sense[..sense_len],
        }
    }

    /// Reads the unit. With both flags of a direction set, UNDER is taken.
    pub fn parse(iu: &'a [u8]) -> Result<Self, RspError> {
        let (raw, rest) = wire::read_unit::<RawRsp>(iu, Opcode::Rsp.code())?;
        // Response data takes its place in front of sense data even where its flag is clear.
        let code_len = raw.code_len.get() as usize;
        let sense_len = if raw.flags & SNSVALID != 0 { raw.sense_len.get() as usize } else { 0 };
        let truncated = WireError::Truncated {
            needed: Self::HEADER_LEN.saturating_add(code_len).saturating_add(sense_len),
            got: iu.len(),
        };
        let (data, rest) = rest.split_at_checked(code_len).ok_or(truncated)?;
        let sense = rest.get(..sense_len).ok_or(truncated)?;
        let code = match data {
            _ if raw.flags & RSPVALID == 0 => None,
            [_, _, _, code, ..] => Some(RspCode::from_code(*code)),
            _ => return Err(RspError::ResponseDataLength(raw.code_len.get())),
        };
        Ok(Self {
            tag: Tag(raw.tag),
            limit_delta: raw.limit_delta.get().cast_signed(),
            solicited: raw.sol_not & 1 != 0,
            status: Status(raw.status),
            data_out: residual(raw.flags, DOUNDER, DOOVER, raw.out_residual.get()),
            data_in: residual(raw.flags, DIUNDER, DIOVER, raw.in_residual.get()),
            code,
            sense,
        })
    }

    /// The bytes that [`Self::emit`] writes.
    pub fn encoded_len(&self) -> usize {
        let code = self.code.map_or(0, |_| RSP_DATA_LEN);
        Self::HEADER_LEN.saturating_add(code).saturating_add(self.sense.len())
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let len = self.encoded_len();
        let out = wire::room_for(len, out)?;
        let (out_flag, out_residual) = residual_fields(self.data_out, DOUNDER, DOOVER);
        let (in_flag, in_residual) = residual_fields(self.data_in, DIUNDER, DIOVER);
        let rsp_valid = if self.code.is_some() { RSPVALID } else { 0 };
        let sns_valid = if self.sense.is_empty() { 0 } else { SNSVALID };
        let code_len = if self.code.is_some() { RSP_DATA_LEN as u32 } else { 0 };
        let raw = RawRsp {
            opcode: Opcode::Rsp.code(),
            sol_not: self.solicited.into(),
            limit_delta: self.limit_delta.cast_unsigned().into(),
            tag: self.tag.0,
            flags: rsp_valid | sns_valid | out_flag | in_flag,
            status: self.status.0,
            out_residual: out_residual.into(),
            in_residual: in_residual.into(),
            // The slice lies in memory beside a unit, so it is far shorter than 4 GiB.
            sense_len: (self.sense.len() as u32).into(),
            code_len: code_len.into(),
            ..RawRsp::new_zeroed()
        };
        let header = wire::write(&raw, out)?;
        let mut rest = &mut out[header..];
        if let Some(code) = self.code {
            let (data, behind) = rest.split_at_mut(RSP_DATA_LEN);
            data.copy_from_slice(&[0, 0, 0, code.code()]);
            rest = behind;
        }
        rest.copy_from_slice(self.sense);
        Ok(len)
    }
}

codes! {
    /// The last byte of response data: the outcome of task management, or of a command that could
    /// not be started.
    pub enum RspCode(u8) {
        /// The function is complete.
        Complete = 0x00,
        /// The request's fields are invalid.
        InvalidFields = 0x02,
        /// The function is not supported.
        NotSupported = 0x04,
        /// The function failed.
        Failed = 0x05,
    }
}

impl RspCode {
    /// SRP's code for an outcome; `None` for an ordinary response. A task that is not there has
    /// been dealt with, as LIO and QEMU answer too; SRP has no word for a query that found its
    /// task.
    pub const fn of(code: ResponseCode) -> Option<Self> {
        match code {
            ResponseCode::None => None,
            ResponseCode::FunctionComplete
            | ResponseCode::FunctionSucceeded
            | ResponseCode::TaskDoesNotExist => Some(Self::Complete),
            ResponseCode::FunctionRejected => Some(Self::NotSupported),
            ResponseCode::IncorrectLun | ResponseCode::InvalidFields => Some(Self::InvalidFields),
            ResponseCode::FunctionFailed => Some(Self::Failed),
        }
    }
}

/// What a transport's initiators read from the residual flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResidualFlavour {
    /// UNDER: fewer bytes were moved than the buffer holds; OVER: the command wanted more.
    #[default]
    Srp,
    /// OVER: bytes that were not moved. Linux's ibmvscsi reads no other flag, and takes the count
    /// as what is missing of the buffer; so a command that wanted more has nothing to say.
    Vscsi,
}

impl ResidualFlavour {
    /// The residual as this flavour puts it on the wire.
    pub const fn apply(self, residual: Residual) -> Residual {
        match (self, residual) {
            (Self::Srp, residual) => residual,
            (Self::Vscsi, Residual::Under(count)) => Residual::Over(count),
            (Self::Vscsi, _) => Residual::None,
        }
    }
}

/// An RSP that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RspError {
    /// The unit cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Response data is announced but too short to hold a code.
    #[error("response data of {0} bytes holds no code")]
    ResponseDataLength(u32),
}

fn residual(flags: u8, under: u8, over: u8, count: u32) -> Residual {
    match flags {
        _ if flags & under != 0 => Residual::Under(count),
        _ if flags & over != 0 => Residual::Over(count),
        _ => Residual::None,
    }
}

fn residual_fields(residual: Residual, under: u8, over: u8) -> (u8, u32) {
    match residual {
        Residual::None => (0, 0),
        Residual::Under(count) => (under, count),
        Residual::Over(count) => (over, count),
    }
}

const RSP_DATA_LEN: usize = 4;
const RSPVALID: u8 = 0x01;
const SNSVALID: u8 = 0x02;
const DOOVER: u8 = 0x04;
const DOUNDER: u8 = 0x08;
const DIOVER: u8 = 0x10;
const DIUNDER: u8 = 0x20;

raw! {
    struct RawRsp = 36 {
        opcode: u8,
        sol_not: u8,
        _reserved2: [u8; 2],
        limit_delta: U32,
        tag: [u8; 8],
        _reserved16: [u8; 2],
        flags: u8,
        status: u8,
        out_residual: U32,
        in_residual: U32,
        sense_len: U32,
        code_len: U32,
    }
}

#[cfg(test)]
mod tests;
