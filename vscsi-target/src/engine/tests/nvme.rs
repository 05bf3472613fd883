//! The NVMe backend over a controller in software.

use super::*;
use crate::{backend::nvme::over_model, reactor::sg::Segment};
use ::nvme::{
    model::{Behaviour, Model as Controller},
    wire::Status as NvmeStatus,
};

/// MEDIUM ERROR
const MEDIUM: u8 = 3;

fn rig(behaviour: Behaviour) -> (Rig, NexusView, Controller) {
    let model = Controller::new(behaviour);
    let rig = Rig::over(Backend::Nvme(Box::new(over_model(&model))));
    let nexus = rig.nexus("iqn.2026-11.example:i");
    (rig, nexus, model)
}

fn key_of(response: &Response) -> (Status, u8) {
    let sense = response.sense.as_bytes();
    (response.status, sense.get(2).map_or(0, |byte| byte & 0xF))
}

fn out(bytes: &[u8]) -> How<'_> {
    How { out: bytes, ..How::default() }
}

fn room(room: u32) -> How<'static> {
    How { room, ..How::default() }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 3) as u8).collect()
}

/// READ (10) or WRITE (10).
fn cdb(opcode: u8, lba: u8, blocks: u16) -> [u8; 10] {
    let [high, low] = blocks.to_be_bytes();
    [opcode, 0, 0, 0, 0, lba, 0, high, low, 0]
}

#[test]
fn data_of_pool_buffers_is_moved_by_the_device() {
    let (mut rig, mut nexus, model) = rig(Behaviour::default());
    let data = pattern(200 * BLOCK);
    let (response, _) = rig.call(&mut nexus, &cdb(0x2A, 8, 200), &out(&data));
    assert_eq!(response.status, Status::GOOD);
    assert_eq!(model.medium()[8 * BLOCK..][..data.len()], data[..]);
    let (response, read) = rig.call(&mut nexus, &cdb(0x28, 8, 200), &room(data.len() as u32));
    assert_eq!((response.status, read == data), (Status::GOOD, true));
    assert_eq!(rig.lu.backend.bounces(), 0);
    // 100 KiB are two commands of at most 64 KiB.
    assert_eq!(model.commands().len(), 4);
}

#[test]
fn memory_the_device_does_not_reach_is_copied_and_counted() {
    let (mut rig, mut nexus, model) = rig(Behaviour::default());
    let mut data = pattern(16 * BLOCK);
    let mut into = vec![0; data.len()];
    for (opcode, copied) in [(0x2A, 1), (0x28, 2)] {
        let owner = rig.owner();
        let len = data.len() as u32;
        let (data_out, data_in) = if opcode == 0x2A { (len, 0) } else { (0, len) };
        let cdb = cdb(opcode, 0, 16);
        let command = Command {
            tag: Tag::from_u64(owner.cookie),
            lun: Lun::default(),
            attribute: TaskAttribute::Simple,
            cdb: &cdb,
            data_out,
            data_in,
            ..How::default().command(owner.cookie, &cdb)
        };
        let (from, to) = ([Segment::of(&mut data)], [Segment::of(&mut into)]);
        let memory = match opcode {
            0x2A => Memory::Own { out: &from, into: &[] },
            _ => Memory::Own { out: &[], into: &to },
        };
        assert!(matches!(
            rig.engine.submit(&mut nexus, &command, memory, owner),
            Submitted::Accepted
        ));
        let (_, response, _) = rig.wait(owner.cookie);
        assert_eq!(response.status, Status::GOOD);
        assert_eq!(rig.lu.backend.bounces(), copied);
    }
    assert_eq!(into, data);
    assert_eq!(model.medium()[..data.len()], data[..]);
}

#[test]
fn write_same_with_unmap_reads_as_zeroes() {
    let (mut rig, mut nexus, model) = rig(Behaviour::default());
    model.medium().fill(7);
    assert!(rig.lu.backend.properties().thin);
    // WRITE SAME (16) with UNMAP and NDOB.
    let mut same = [0; 16];
    (same[0], same[1], same[9], same[13]) = (0x93, 0x09, 4, 32);
    let (response, _) = rig.call(&mut nexus, &same, &How::default());
    assert_eq!(response.status, Status::GOOD);
    let medium = model.medium();
    assert!(medium[4 * BLOCK..36 * BLOCK].iter().all(|byte| *byte == 0));
    assert!(medium[3 * BLOCK..4 * BLOCK].iter().all(|byte| *byte == 7));
    assert_eq!(medium[36 * BLOCK], 7);
    drop(medium);
    // First zeroes, then a hint: the hint alone would promise nothing.
    let opcodes: Vec<u8> = model.commands().iter().map(|sqe| sqe.opcode).collect();
    assert!(opcodes.starts_with(&[8]) && opcodes.ends_with(&[9]), "{opcodes:?}");
}

#[test]
fn plain_namespace_is_not_thin_and_is_zeroed_by_writing() {
    let (rig, _, model) = rig(Behaviour { plain: true, ..Behaviour::default() });
    model.medium().fill(7);
    let properties = rig.lu.backend.properties();
    assert!(!properties.thin && !properties.volatile_cache && !properties.untorn_writes);
    rig.lu.backend.write_zeroes(BLOCK as u64, 300 << 10, true).unwrap();
    let medium = model.medium();
    assert!(medium[BLOCK..BLOCK + (300 << 10)].iter().all(|byte| *byte == 0));
    assert_eq!((medium[BLOCK - 1], medium[BLOCK + (300 << 10)]), (7, 7));
}

#[test]
fn failed_flush_stays_failed() {
    let (mut rig, mut nexus, model) = rig(Behaviour::default());
    model.behaviour().failures.push_back(NvmeStatus(0x280 | 1 << 14));
    let sync = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for _ in 0..2 {
        let (response, _) = rig.call(&mut nexus, &sync, &How::default());
        assert_eq!(key_of(&response), (Status::CHECK_CONDITION, MEDIUM));
    }
    assert_eq!(model.commands().len(), 1);
}

#[test]
fn lost_command_is_timed_out_by_a_reset_and_the_next_one_works() {
    let (mut rig, mut nexus, model) = rig(Behaviour { lost: 1, ..Behaviour::default() });
    rig.engine.set_io_timeout(5);
    rig.engine.tick(10);
    let cookie = rig.submit(&mut nexus, &cdb(0x28, 0, 8), &room(4096));
    rig.engine.turn(&mut Vec::new());
    while model.behaviour().lost > 0 {
        std::thread::yield_now();
    }
    assert!(rig.engine.has_deadlines());
    rig.engine.tick(20);
    let (_, response, _) = rig.wait(cookie);
    assert_eq!(response.status, Status::CHECK_CONDITION);
    // LOGICAL UNIT COMMUNICATION TIME-OUT
    assert_eq!(response.sense.as_bytes()[12..14], [0x08, 0x01]);
    let (response, _) = rig.call(&mut nexus, &cdb(0x28, 0, 8), &room(4096));
    assert_eq!(response.status, Status::GOOD);
    assert_eq!(rig.lu.backend.resets(), 1);
}

#[test]
fn removed_controller_fails_commands_of_both_lanes() {
    let (mut rig, mut nexus, model) = rig(Behaviour { lost: 1, ..Behaviour::default() });
    rig.engine.tick(1);
    let cookie = rig.submit(&mut nexus, &cdb(0x28, 0, 8), &room(4096));
    rig.engine.turn(&mut Vec::new());
    model.behaviour().gone = true;
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.engine.tick(2);
    let (_, response, _) = rig.wait(cookie);
    assert_eq!(key_of(&response), (Status::CHECK_CONDITION, MEDIUM));
    let (response, _) = rig.call(&mut nexus, &cdb(0x28, 0, 8), &room(4096));
    assert_eq!(key_of(&response), (Status::CHECK_CONDITION, MEDIUM));
    // WRITE SAME (10), on a worker.
    let same = [0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    let (response, _) = rig.call(&mut nexus, &same, &out(&[0; BLOCK]));
    assert_eq!(key_of(&response), (Status::CHECK_CONDITION, MEDIUM));
}
