//! Task management functions.

/// A task management function on its way over all reactors.
#[derive(Debug)]
pub struct Sweep {}
