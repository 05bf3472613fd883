//! Whole conversations over a connection that is none.

mod commands;
mod harness;
mod phases;
