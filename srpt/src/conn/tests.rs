//! Whole channels over the command core, without a device.

use super::*;
use libsrp::{
    Lun, Status, Tag,
    cmd::{Cmd, SolicitedNotification},
    descriptor::{DataBuffer, DataBuffers, Descriptors, Immediate, Indirect},
    iu::TargetIu,
    login::MultiChannelAction,
    rsp::RspCode,
    tsk_mgmt::{FunctionCode, TskMgmt},
};
use rig::{CREDIT, Cable, Rig, Sent};
use std::thread;

mod rig;

fn cdb(opcode: u8, lba: u8, blocks: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[5], cdb[8]) = (opcode, lba, blocks);
    cdb
}

fn command(tag: u8, cdb: &[u8; 16], data: DataBuffers<'_>) -> Vec<u8> {
    let unit = Cmd {
        tag: Tag([0, 0, 0, 0, 0, 0, 0, tag]),
        notify: SolicitedNotification::default(),
        lun: Lun::default(),
        attribute: libsrp::TaskAttribute::Simple,
        cdb,
        data,
    };
    let mut iu = vec![0; 8260];
    let len = unit.emit(&mut iu).unwrap();
    iu.truncate(len);
    iu
}

fn function(tag: u8, function: FunctionCode, managed: u8) -> Vec<u8> {
    let unit = TskMgmt {
        tag: Tag([0x80, 0, 0, 0, 0, 0, 0, tag]),
        notify: SolicitedNotification::default(),
        lun: Lun::default(),
        function,
        managed: Tag([0, 0, 0, 0, 0, 0, 0, managed]),
    };
    let mut iu = vec![0; 48];
    unit.emit(&mut iu).unwrap();
    iu
}

fn segment(address: u64, len: u32) -> Descriptor {
    Descriptor { address, key: 7, len }
}

fn write(tag: u8, lba: u8, address: u64) -> Vec<u8> {
    let data_out = DataBuffer::Direct(segment(address, 512));
    command(tag, &cdb(0x2A, lba, 1), DataBuffers { data_out, data_in: DataBuffer::None })
}

fn read(tag: u8, lba: u8, address: u64) -> Vec<u8> {
    let data_in = DataBuffer::Direct(segment(address, 512));
    command(tag, &cdb(0x28, lba, 1), DataBuffers { data_out: DataBuffer::None, data_in })
}

fn test_unit_ready(tag: u8) -> Vec<u8> {
    command(tag, &[0; 16], DataBuffers::default())
}

/// Status, credit, response code and tag of the next message.
fn rsp(cable: &Cable) -> (Status, i32, Option<RspCode>, u8) {
    let message = cable.message();
    match TargetIu::parse(&message) {
        Ok(TargetIu::Rsp(rsp)) => (rsp.status, rsp.limit_delta, rsp.code, rsp.tag.0[7]),
        other => panic!("{other:?}"),
    }
}

fn good(tag: u8) -> (Status, i32, Option<RspCode>, u8) {
    (Status::GOOD, 1, None, tag)
}

fn done(tag: u8, credit: i32) -> (Status, i32, Option<RspCode>, u8) {
    (Status::GOOD, credit, Some(RspCode::Complete), tag)
}

/// The T_LOGOUT that comes next, and what follows.
fn assert_logged_out(cable: &Cable, reason: u8) {
    let message = cable.message();
    assert_eq!((message[0], message.len(), &message[4..8]), (0x80, 16, &[0, 0, 0, reason][..]));
    cable.wait("the connection to go", |wire| wire.disconnected && wire.dropped);
}

#[test]
fn what_is_written_is_read_back_from_and_to_segments() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().memory[0x1000..0x1200].fill(0xDA);
    cable.send(&[write(1, 9, 0x1000)]);
    assert_eq!(rsp(&cable), good(1));

    let segments = [segment(0x5000, 100), segment(0x7000, 412)];
    let list: Vec<u8> = segments.iter().flat_map(|part| part.to_bytes()).collect();
    let list = Descriptors::from_table(&list).unwrap();
    let data_in = DataBuffer::Indirect(Indirect::new(segment(0x9000, 32), 512, list));
    let data = DataBuffers { data_out: DataBuffer::None, data_in };
    cable.send(&[command(2, &cdb(0x28, 9, 1), data)]);
    cable.wait("an answer", |wire| wire.sent.len() == 3);
    let wire = cable.lock();
    assert_eq!(wire.sent[0], Sent::Write { address: 0x5000, len: 100 });
    assert_eq!(wire.sent[1], Sent::Write { address: 0x7000, len: 412 });
    assert!(wire.memory[0x5000..0x5064].iter().all(|&byte| byte == 0xDA));
    assert!(wire.memory[0x7000..0x719C].iter().all(|&byte| byte == 0xDA));
    assert_eq!(wire.memory[0x719C], 0);
    drop(wire);
    assert_eq!(rsp(&cable), good(2));
    let counters = &rig.shared.sessions()[0].channels()[0].counters;
    assert_eq!(
        (counters.commands(), counters.written_bytes(), counters.read_bytes()),
        (2, 512, 512)
    );
}

#[test]
fn immediate_data_is_written_without_a_read() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    let data_out = DataBuffer::Immediate(Immediate { offset: 68, data: &[0xAD; 512] });
    let data = DataBuffers { data_out, data_in: DataBuffer::None };
    cable.send(&[command(1, &cdb(0x2A, 3, 1), data)]);
    assert_eq!(rsp(&cable), good(1));
    cable.send(&[read(2, 3, 0x2000)]);
    assert_eq!(rsp(&cable), good(2));
    let wire = cable.lock();
    assert_eq!((wire.posted_reads, wire.memory[0x2000], wire.memory[0x21FF]), (0, 0xAD, 0xAD));
}

#[test]
fn external_table_is_fetched_for_both_directions() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    let segments = [segment(0x1000, 256), segment(0x3000, 256)];
    {
        let mut wire = cable.lock();
        let table: Vec<u8> = segments.iter().flat_map(|part| part.to_bytes()).collect();
        wire.memory[0x9000..0x9020].copy_from_slice(&table);
        wire.memory[0x1000..0x1100].fill(1);
        wire.memory[0x3000..0x3100].fill(2);
    }
    let table = Indirect::new(segment(0x9000, 32), 512, Descriptors::default());
    let there = DataBuffer::Indirect(table);
    let out = DataBuffers { data_out: there, data_in: DataBuffer::None };
    cable.send(&[command(1, &cdb(0x2A, 5, 1), out)]);
    assert_eq!(rsp(&cable), good(1));
    cable.lock().memory[0x1000..0x3100].fill(0);
    let into = DataBuffers { data_out: DataBuffer::None, data_in: there };
    cable.send(&[command(2, &cdb(0x28, 5, 1), into)]);
    assert_eq!(rsp(&cable), good(2));
    let wire = cable.lock();
    assert_eq!((wire.posted_reads, wire.memory[0x10FF], wire.memory[0x3000]), (3, 1, 2));
}

#[test]
fn command_with_less_room_than_it_wants_is_cut_and_says_so() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    let data_in = DataBuffer::Direct(segment(0x1000, 100));
    let data = DataBuffers { data_out: DataBuffer::None, data_in };
    cable.send(&[command(1, &cdb(0x28, 0, 1), data)]);
    let message = cable.message();
    let Ok(TargetIu::Rsp(rsp)) = TargetIu::parse(&message) else { panic!() };
    assert_eq!(rsp.data_in, libsrp::Residual::Over(412));
    assert!(cable.lock().sent.is_empty() || cable.lock().memory[0x1064] == 0);
}

#[test]
fn commands_before_the_connection_is_established_are_answered_after() {
    let mut rig = Rig::new();
    let cable = rig.accept(0, MultiChannelAction::Single);
    cable.send(&[test_unit_ready(1)]);
    thread::sleep(Duration::from_millis(50));
    assert!(cable.lock().sent.is_empty());
    cable.event(Event::Established);
    assert_eq!(rsp(&cable), good(1));
}

#[test]
fn a_batch_of_reads_is_answered_by_one_doorbell() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.send(&[test_unit_ready(0)]);
    rsp(&cable);
    let before = cable.lock().doorbells;
    let batch: Vec<_> = (1..17).map(|tag| read(tag, tag, u64::from(tag) * 512)).collect();
    cable.send(&batch);
    for tag in 1..17 {
        assert_eq!(rsp(&cable), good(tag));
    }
    assert_eq!(cable.lock().doorbells - before, 1);
}

#[test]
fn bad_descriptors_are_answered_and_the_channel_goes_on() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    let mut iu = read(1, 0, 0x1000);
    iu[5] = 0x0F;
    cable.send(&[iu, test_unit_ready(2)]);
    let (status, credit, code, tag) = rsp(&cable);
    assert_eq!((status, credit, tag), (Status::CHECK_CONDITION, 1, 1));
    assert_eq!(code, Some(RspCode::InvalidFields));
    assert_eq!(rsp(&cable), good(2));
}

#[test]
fn abort_of_a_write_whose_data_is_being_read_waits_for_the_read() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_reads = true;
    cable.send(&[write(1, 0, 0x1000)]);
    cable.wait("a read", |wire| wire.posted_reads == 1);
    cable.send(&[function(9, FunctionCode::AbortTask, 1), test_unit_ready(2)]);
    assert_eq!(rsp(&cable), good(2));
    thread::sleep(Duration::from_millis(50));
    assert!(cable.lock().sent.is_empty());
    cable.change(|wire| wire.holds_reads = false);
    assert_eq!(rsp(&cable), done(9, 2));
    cable.send(&[test_unit_ready(3)]);
    assert_eq!(rsp(&cable), good(3));
}

#[test]
fn abort_of_a_write_whose_read_was_not_posted_takes_it_back() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_posting = true;
    cable.send(&[write(1, 0, 0x1000), function(9, FunctionCode::AbortTask, 1)]);
    assert_eq!(rsp(&cable), done(9, 2));
    cable.change(|wire| wire.holds_posting = false);
    cable.send(&[test_unit_ready(2)]);
    assert_eq!(rsp(&cable), good(2));
    assert_eq!(cable.lock().posted_reads, 0);
}

#[test]
fn abort_of_a_command_whose_table_is_being_read_waits_for_it() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_reads = true;
    let table = Indirect::new(segment(0x9000, 32), 512, Descriptors::default());
    let data = DataBuffers { data_out: DataBuffer::None, data_in: DataBuffer::Indirect(table) };
    cable.send(&[command(1, &cdb(0x28, 0, 1), data)]);
    cable.wait("a read", |wire| wire.posted_reads == 1);
    cable.send(&[function(9, FunctionCode::AbortTask, 1)]);
    cable.wait("the abort", |wire| wire.cancels == 1);
    thread::sleep(Duration::from_millis(50));
    assert!(cable.lock().sent.is_empty());
    cable.change(|wire| wire.holds_reads = false);
    assert_eq!(rsp(&cable), done(9, 2));
}

#[test]
fn unit_reset_on_one_channel_ends_commands_of_the_other() {
    let mut rig = Rig::new();
    let (first, second) = (rig.channel(), rig.another());
    second.lock().holds_reads = true;
    second.send(&[write(1, 0, 0x1000)]);
    second.wait("a read", |wire| wire.posted_reads == 1);
    first.send(&[function(9, FunctionCode::LogicalUnitReset, 0xFF)]);
    second.wait("the abort", |wire| wire.cancels == 1);
    thread::sleep(Duration::from_millis(50));
    assert!(first.lock().sent.is_empty());
    second.change(|wire| wire.holds_reads = false);
    assert_eq!(rsp(&first), done(9, 1));
    // The other channel gets its credit back by itself.
    let message = second.message();
    let Ok(TargetIu::CredReq(request)) = TargetIu::parse(&message) else { panic!("{message:?}") };
    assert_eq!(request.limit_delta, 1);
    // Unit attention, then ready.
    second.send(&[test_unit_ready(2), test_unit_ready(3)]);
    assert_eq!(rsp(&second).0, Status::CHECK_CONDITION);
    assert_eq!(rsp(&second), good(3));
}

#[test]
fn unit_reset_on_one_channel_ends_a_command_of_the_other_whose_table_is_read() {
    let mut rig = Rig::new();
    let (first, second) = (rig.channel(), rig.another());
    second.lock().holds_reads = true;
    let table = Indirect::new(segment(0x9000, 32), 512, Descriptors::default());
    let data = DataBuffers { data_out: DataBuffer::None, data_in: DataBuffer::Indirect(table) };
    second.send(&[command(1, &cdb(0x28, 0, 1), data)]);
    second.wait("a read", |wire| wire.posted_reads == 1);
    first.send(&[function(9, FunctionCode::LogicalUnitReset, 0xFF)]);
    assert_eq!(rsp(&first), done(9, 1));
    second.change(|wire| wire.holds_reads = false);
    // No answer, but its credit.
    assert_eq!(second.message()[0], 0x81);
}

#[test]
fn abort_task_finds_a_command_of_another_channel() {
    let mut rig = Rig::new();
    let (first, second) = (rig.channel(), rig.another());
    second.lock().holds_posting = true;
    second.send(&[write(1, 0, 0x1000)]);
    second.wait("a read", |wire| wire.asked_reads == 1);
    first.send(&[function(9, FunctionCode::AbortTask, 1)]);
    assert_eq!(rsp(&first), done(9, 1));
    assert_eq!(second.message()[0], 0x81);
}

#[test]
fn kicked_channel_is_logged_out_and_its_nexus_ends() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_reads = true;
    cable.send(&[write(1, 0, 0x1000)]);
    cable.wait("a read", |wire| wire.posted_reads == 1);
    assert!(!rig.shared.kick(77));
    assert!(rig.shared.kick(rig.shared.sessions()[0].id));
    assert_logged_out(&cable, 0);
    rig.wait_for_the_end();
}

#[test]
fn nexus_lives_as_long_as_one_of_its_channels() {
    let mut rig = Rig::new();
    let (first, second) = (rig.channel(), rig.another());
    first.event(Event::Disconnected);
    first.wait("the connection to go", |wire| wire.dropped);
    second.send(&[test_unit_ready(1)]);
    assert_eq!(rsp(&second), good(1));
    second.change(|wire| wire.broken = true);
    second.wait("the connection to go", |wire| wire.dropped);
    rig.wait_for_the_end();
}

#[test]
fn later_login_ends_every_channel_before_it() {
    let mut rig = Rig::new();
    let cables = [rig.channel(), rig.another(), rig.another()];
    for cable in &cables {
        cable.send(&[test_unit_ready(1)]);
        assert_eq!(rsp(cable), good(1));
    }
    let crate::registry::Claimed::Waits(places) = rig.log_in_again() else { panic!() };
    assert_eq!(places.len(), 3);
    for place in places {
        rig.shared.router.note(place, Note::Replaced);
    }
    for cable in &cables {
        assert_logged_out(cable, 4);
    }
    rig.wait_for_the_end();
}

#[test]
fn units_that_do_not_belong_there_end_the_channel() {
    let logout = |opcode: u8| {
        let mut iu = vec![0; 16];
        iu[0] = opcode;
        iu
    };
    for (units, reason) in [
        (vec![vec![0xFF; 16]], 2),
        (vec![Vec::new()], 2),
        (vec![vec![0x02; 47]], 2),
        (vec![logout(0x41)], 3),
        (vec![logout(0x42)], 3),
        (vec![write(1, 0, 0x1000); CREDIT as usize + 1], 0),
    ] {
        let mut rig = Rig::new();
        let cable = rig.channel();
        cable.lock().holds_reads = true;
        cable.send(&units);
        assert_logged_out(&cable, reason);
        rig.wait_for_the_end();
    }
}

#[test]
fn initiator_that_logs_out_is_disconnected() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    let mut iu = vec![0; 16];
    iu[0] = 0x03;
    cable.send(&[iu]);
    cable.wait("the connection to go", |wire| wire.disconnected && wire.dropped);
    assert!(cable.lock().sent.is_empty());
    rig.wait_for_the_end();
}

#[test]
fn target_that_stops_finishes_what_is_in_progress_and_takes_nothing_new() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_reads = true;
    cable.send(&[write(1, 0, 0x1000)]);
    cable.wait("a read", |wire| wire.posted_reads == 1);
    rig.shared.stop(Duration::from_secs(30));
    thread::sleep(Duration::from_millis(50));
    cable.send(&[test_unit_ready(2)]);
    cable.change(|wire| wire.holds_reads = false);
    assert_eq!(rsp(&cable), good(1));
    assert_logged_out(&cable, 0);
    rig.wait_for_the_end();
}

#[test]
fn command_that_does_not_finish_in_time_is_given_up_at_stop() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    cable.lock().holds_reads = true;
    cable.send(&[write(1, 0, 0x1000)]);
    cable.wait("a read", |wire| wire.posted_reads == 1);
    rig.shared.stop(Duration::from_millis(50));
    assert_logged_out(&cable, 0);
    rig.wait_for_the_end();
}

#[test]
fn an_abort_storm_leaves_the_credit_as_it_was() {
    let mut rig = Rig::new();
    let cable = rig.channel();
    for round in 0..100 {
        cable.lock().holds_posting = round % 2 == 0;
        let mut credit = 0;
        cable.send(&[write(1, 0, 0x1000), function(9, FunctionCode::AbortTask, 1)]);
        // Where the read was quicker than the abort the command was answered before it came.
        while credit < 2 {
            credit += rsp(&cable).1;
        }
        assert_eq!(credit, 2);
        cable.change(|wire| wire.holds_posting = false);
    }
}
