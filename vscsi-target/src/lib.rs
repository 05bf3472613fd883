//! The SCSI command core: model, opcode table, command handlers, backends and reactors.
//!
//! A transport turns what it receives into libsrp's [`libsrp::Command`], gives it to the
//! [`engine::Engine`] of its reactor and gets a [`engine::Completion`] back. The core does not know
//! which fabric a command came by, except through what the target port declares.

pub mod backend;
pub mod engine;
pub mod limits;
pub mod log_budget;
pub mod model;
pub mod opcode;
pub mod reactor;
mod replace;
pub mod sbc;
pub mod sense;
pub mod spc;
pub mod traffic;

#[cfg(test)]
pub(crate) mod testing;
