//! A virtual SCSI server with a toy partition, over the public API and real reactors.

#![allow(dead_code)] // The example's partition, of which each file uses a part.
#![allow(clippy::unwrap_used)] // A test fails by it.

mod calls;
mod data;
mod events;
#[path = "../../examples/partition/main.rs"]
mod partition;
mod units;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use libsrp::{Lun, Status, Tag, rsp::Rsp, viosrp::crq::Element};
use partition::guest::{Data, Guest, lun};
use vmm_glue::{
    crq::{Config, Server},
    embed::{Reactors, ram_disk},
};
use vscsi_target::model::{LogicalUnit, Target};

/// A partition with targets 0 and 2, the latter with LUNs 0 and 3.
struct World {
    guest: Guest,
    disk: Arc<LogicalUnit>,
    target: Arc<Target>,
    reactors: Reactors<Server>,
}

impl World {
    fn new() -> Self {
        Self::with(Config::new("test"))
    }

    fn with(config: Config) -> Self {
        let reactors = Reactors::<Server>::start(1).unwrap();
        let unit = |serial| ram_disk(reactors.postboxes(), 8 << 20, serial).unwrap();
        let disk = unit("A0");
        let first = reactors.export(0, "eui.0", vec![(0, Arc::clone(&disk))]).unwrap();
        let second = reactors.export(2, "eui.2", vec![(0, unit("B0")), (3, unit("B3"))]).unwrap();
        let target = Arc::clone(&second.target);
        let guest = Guest::new(config, vec![first, second], &reactors).unwrap();
        Self { guest, disk, target, reactors }
    }

    /// Initialized, logged in, and past the unit attentions of a power-on.
    fn ready() -> Self {
        let mut world = Self::new();
        world.guest.connect().unwrap();
        world.guest.log_in().unwrap();
        world.settle();
        world
    }

    /// Takes the unit attentions of a power-on.
    fn settle(&mut self) {
        for unit in [lun(0, 0), lun(2, 0), lun(2, 3)] {
            let status = self.status(unit, &[0; 6]);
            assert_eq!(status, Status::CHECK_CONDITION);
        }
    }

    /// The status of a command without data.
    fn status(&mut self, unit: Lun, cdb: &[u8]) -> Status {
        let answer = self.guest.command(Tag([9; 8]), unit, cdb, Data::None).unwrap();
        Rsp::parse(&answer).unwrap().status
    }

    /// Nothing comes for a while.
    fn is_quiet(&mut self) -> bool {
        thread::sleep(Duration::from_millis(30));
        self.guest.poll().is_none()
    }

    fn wait(&mut self) -> Element {
        self.guest.wait().unwrap()
    }
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// READ(10) and WRITE(10) of blocks.
fn read_10(lba: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

fn write_10(lba: u8, blocks: u8) -> [u8; 10] {
    [0x2A, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

#[test]
fn the_example_runs() {
    partition::main().unwrap();
}
