//! Any information unit, by the side that sends it (SRP clause 6).
//!
//! A login over RDMA/CM has a layout of its own: [`LoginReq::parse_compact`].

use thiserror::Error;

use crate::aer::{AerReq, AerRsp};
use crate::cmd::{Cmd, CmdEmitError, CmdError};
use crate::credit::{CredReq, CredRsp};
use crate::descriptor::DataRules;
use crate::login::{LoginRej, LoginReq, LoginRsp};
use crate::logout::{ILogout, TLogout};
use crate::opcode::Opcode;
use crate::rsp::{Rsp, RspError};
use crate::tsk_mgmt::TskMgmt;
use crate::wire::{NoRoom, WireError};

/// A unit an initiator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitiatorIu<'a> {
    /// LOGIN_REQ in its ordinary layout.
    LoginReq(LoginReq),
    /// TSK_MGMT.
    TskMgmt(TskMgmt),
    /// CMD.
    Cmd(Cmd<'a>),
    /// I_LOGOUT.
    ILogout(ILogout),
    /// CRED_RSP.
    CredRsp(CredRsp),
    /// AER_RSP.
    AerRsp(AerRsp),
}

impl<'a> InitiatorIu<'a> {
    /// Reads what a target received; descriptors of a CMD must keep to `rules`.
    pub fn parse(iu: &'a [u8], rules: &DataRules) -> Result<Self, IuError> {
        match opcode(iu)? {
            Opcode::LoginReq => Ok(Self::LoginReq(LoginReq::parse(iu)?)),
            Opcode::TskMgmt => Ok(Self::TskMgmt(TskMgmt::parse(iu)?)),
            Opcode::Cmd => Ok(Self::Cmd(Cmd::parse(iu, rules)?)),
            Opcode::ILogout => Ok(Self::ILogout(ILogout::parse(iu)?)),
            Opcode::CredRsp => Ok(Self::CredRsp(CredRsp::parse(iu)?)),
            Opcode::AerRsp => Ok(Self::AerRsp(AerRsp::parse(iu)?)),
            other => Err(IuError::Unexpected(other)),
        }
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, CmdEmitError> {
        match self {
            Self::LoginReq(unit) => Ok(unit.emit(out)?),
            Self::TskMgmt(unit) => Ok(unit.emit(out)?),
            Self::Cmd(unit) => unit.emit(out),
            Self::ILogout(unit) => Ok(unit.emit(out)?),
            Self::CredRsp(unit) => Ok(unit.emit(out)?),
            Self::AerRsp(unit) => Ok(unit.emit(out)?),
        }
    }
}

/// A unit a target sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetIu<'a> {
    /// LOGIN_RSP.
    LoginRsp(LoginRsp),
    /// LOGIN_REJ.
    LoginRej(LoginRej),
    /// RSP.
    Rsp(Rsp<'a>),
    /// T_LOGOUT.
    TLogout(TLogout),
    /// CRED_REQ.
    CredReq(CredReq),
    /// AER_REQ.
    AerReq(AerReq<'a>),
}

impl<'a> TargetIu<'a> {
    /// Reads what an initiator received.
    pub fn parse(iu: &'a [u8]) -> Result<Self, IuError> {
        match opcode(iu)? {
            Opcode::LoginRsp => Ok(Self::LoginRsp(LoginRsp::parse(iu)?)),
            Opcode::LoginRej => Ok(Self::LoginRej(LoginRej::parse(iu)?)),
            Opcode::Rsp => Ok(Self::Rsp(Rsp::parse(iu)?)),
            Opcode::TLogout => Ok(Self::TLogout(TLogout::parse(iu)?)),
            Opcode::CredReq => Ok(Self::CredReq(CredReq::parse(iu)?)),
            Opcode::AerReq => Ok(Self::AerReq(AerReq::parse(iu)?)),
            other => Err(IuError::Unexpected(other)),
        }
    }

    /// Writes the unit; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        match self {
            Self::LoginRsp(unit) => unit.emit(out),
            Self::LoginRej(unit) => unit.emit(out),
            Self::Rsp(unit) => unit.emit(out),
            Self::TLogout(unit) => unit.emit(out),
            Self::CredReq(unit) => unit.emit(out),
            Self::AerReq(unit) => unit.emit(out),
        }
    }
}

/// A unit that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IuError {
    /// The unit cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The CMD cannot be used.
    #[error(transparent)]
    Cmd(#[from] CmdError),
    /// The RSP cannot be used.
    #[error(transparent)]
    Rsp(#[from] RspError),
    /// Nobody sends this opcode in this direction.
    #[error("unexpected {0:?}")]
    Unexpected(Opcode),
}

fn opcode(iu: &[u8]) -> Result<Opcode, WireError> {
    let code = iu.first().ok_or(WireError::Truncated { needed: 1, got: 0 })?;
    Ok(Opcode::from_code(*code))
}

#[cfg(test)]
mod tests;
