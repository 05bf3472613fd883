//! Commands of SPC: every device type has them.

pub mod mode;
