//! The `vscsi` program.
fn main() {}
