//! A virtual SCSI server with a toy partition, over the public API and real reactors.

#![allow(dead_code)] // The example's partition, of which each file uses a part.
#![allow(clippy::unwrap_used)] // A test fails by it.

#[path = "../examples/partition/main.rs"]
mod partition;

#[test]
fn the_example_runs() {
    partition::main().unwrap();
}
