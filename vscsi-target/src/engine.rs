//! The engine: every reactor's part of the command core, from `Command` to `Response`.

pub mod call;
pub mod manage;
pub mod task;

pub use call::Call;
pub use task::{
    Completion, DataIn, DataOut, Engine, Memory, Outcome, Owner, Submitted, TaskKey, TaskToken,
};
