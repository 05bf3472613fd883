//! The gate.
use crate::reactor::Postboxes;
use std::sync::Arc;
/// The gate of a logical unit.
#[derive(Debug)]
pub struct Gate {
    _p: Arc<Postboxes>,
}
impl Gate {
    /// An open gate.
    pub fn new(p: Arc<Postboxes>) -> Self {
        Self { _p: p }
    }
}
