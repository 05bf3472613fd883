//! Full queues, and events that must not be lost.

use std::time::Duration;

use libsrp::{
    TaskAttribute,
    viosrp::crq::{Format, Init, TransportEvent},
};
use vmm_glue::crq::{Adapter, Delivery, Hcall, SavedQueue};

use super::{
    partition::guest::{QUEUE, SLOTS, UNITS, command},
    *,
};

const INIT: Element = Element::Init(Init::Init);
const COMPLETE: Element = Element::Init(Init::Complete);
const PING: [u8; 16] = [0x80, 6, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Fills the client's queue, and leaves `more` answers waiting.
fn fill(world: &mut World, more: u64) {
    for _ in 0..SLOTS + more {
        let ping = Element::parse(&PING);
        until("room", || world.guest.send(ping) == Hcall::Success);
    }
    let adapter = &world.guest.adapter;
    until("a full queue", || more == 0 || adapter.stats().full > 0);
    let last = world.guest.read(QUEUE + 16 * (SLOTS - 1), 1);
    assert_eq!(last, [0x80]);
}

/// A command that waits at the gate, which is held until the epoch is left.
fn hold(world: &mut World, tag: u8) -> u8 {
    let epoch = world.disk.gate.enter(0).unwrap();
    let mut unit = command(Tag([tag; 8]), lun(0, 0), &read_10(0, 0), Data::None).unwrap();
    unit[29] = TaskAttribute::Ordered.code();
    // VERIFY of a block, without data.
    unit[32] = 0x2F;
    unit[40] = 1;
    let _ = world.guest.send_unit(Format::Srp, UNITS + 0x8000, &unit, 256);
    let adapter = &world.guest.adapter;
    let before = adapter.stats().commands;
    until("the command", || adapter.stats().commands >= before);
    epoch
}

#[test]
fn answers_are_held_while_the_queue_is_full_and_none_is_lost() {
    let mut world = World::new();
    world.guest.connect().unwrap();
    // Start at slot 0 again.
    world.guest.free().unwrap();
    assert_eq!(world.guest.register(), Hcall::Success);
    let _ = world.guest.send(COMPLETE);
    fill(&mut world, 100);
    for _ in 0..SLOTS + 100 {
        let Element::Message(message) = world.wait() else { panic!() };
        assert_eq!(message.format, Format::Six);
    }
    assert!(world.is_quiet());
    world.guest.log_in().unwrap();
}

#[test]
fn an_event_waits_for_room_and_what_waited_before_it_is_void() {
    let mut world = World::new();
    assert_eq!(world.guest.register(), Hcall::Success);
    let _ = world.guest.send(COMPLETE);
    fill(&mut world, 50);
    world.guest.adapter.disconnect(TransportEvent::PartnerFailed);
    assert_eq!(world.guest.send(INIT), Hcall::Closed);
    for _ in 0..SLOTS {
        assert!(matches!(world.wait(), Element::Message(_)));
    }
    assert_eq!(world.wait(), Element::Event(TransportEvent::PartnerFailed));
    assert!(world.is_quiet());
    world.guest.free().unwrap();
    world.guest.connect().unwrap();
}

#[test]
fn a_server_that_ends_overwrites_the_last_element_of_a_full_queue() {
    let mut world = World::new();
    assert_eq!(world.guest.register(), Hcall::Success);
    let _ = world.guest.send(COMPLETE);
    fill(&mut world, 1);
    let World { mut guest, reactors, .. } = world;
    drop(reactors);
    for _ in 0..SLOTS - 1 {
        assert!(matches!(guest.wait().unwrap(), Element::Message(_)));
    }
    assert_eq!(guest.wait().unwrap(), Element::Event(TransportEvent::PartnerDeregistered));
    assert!(guest.poll().is_none());
    assert_eq!(guest.send(INIT), Hcall::Closed);
    guest.free().unwrap();
    assert_eq!(guest.register(), Hcall::Closed);
}

#[test]
fn a_migrated_client_enables_its_queue_and_goes_on_in_the_next_slot() {
    let mut world = World::ready();
    let epoch = hold(&mut world, 7);
    world.guest.adapter.migrated();
    assert_eq!(world.wait(), Element::Event(TransportEvent::Migrated));
    assert_eq!(world.guest.send(INIT), Hcall::Closed);
    until("the queue", || world.guest.adapter.enable_crq() == Hcall::Success);
    assert_eq!(world.guest.send(INIT), Hcall::Success);
    assert_eq!(world.wait(), COMPLETE);
    world.guest.log_in().unwrap();
    world.disk.gate.leave(0, epoch);
    // What was in progress is not answered, and the nexus is the same.
    assert_eq!(world.status(lun(0, 0), &[0; 6]), Status::GOOD);
    assert!(world.is_quiet());
}

#[test]
fn a_queue_goes_on_in_another_process_where_it_was() {
    let mut world = World::ready();
    assert_eq!(world.guest.adapter.vio_signal(true), Hcall::Success);
    world.guest.adapter.prepare_suspend();
    assert!(world.guest.adapter.wait_suspended(Duration::from_secs(10)));
    let saved = world.guest.adapter.save_queue().unwrap();
    // INIT COMPLETE, the login, three commands.
    assert_eq!((saved.ioba, saved.len, saved.next, saved.signal), (QUEUE, 4096, 5, true));
    let export = world.reactors.export(7, "eui.7", vec![(0, Arc::clone(&world.disk))]).unwrap();
    let window = Arc::clone(&world.guest.window);
    let delivery = Delivery::Memory(Box::new(|| {}));
    let config = Config::new("there");
    let adapter = Adapter::new(config, vec![export], window, &world.reactors, delivery).unwrap();
    assert_eq!(adapter.restore_queue(&SavedQueue { next: 256, ..saved }), Hcall::Parameter);
    assert_eq!(adapter.restore_queue(&saved), Hcall::Success);
    adapter.migrated();
    world.guest.adapter = adapter;
    assert_eq!(world.wait(), Element::Event(TransportEvent::Migrated));
    until("the queue", || world.guest.adapter.enable_crq() == Hcall::Success);
    assert_eq!(world.guest.send(INIT), Hcall::Success);
    assert_eq!(world.wait(), COMPLETE);
    world.guest.log_in().unwrap();
    assert_eq!(world.status(lun(7, 0), &[0; 6]), Status::CHECK_CONDITION);
    assert_eq!(world.status(lun(7, 0), &[0; 6]), Status::GOOD);
    assert_eq!(world.guest.adapter.stats().logins, 1);
}

#[test]
fn a_restarted_client_gets_init_complete_and_no_answer_to_what_it_sent_before() {
    let mut world = World::ready();
    let epoch = hold(&mut world, 7);
    assert_eq!(world.guest.send(INIT), Hcall::Success);
    assert_eq!(world.wait(), COMPLETE);
    world.disk.gate.leave(0, epoch);
    assert!(world.is_quiet());
    world.guest.log_in().unwrap();
    world.settle();
}

#[test]
fn a_freed_queue_gets_nothing_that_was_in_progress() {
    let mut world = World::ready();
    let epoch = hold(&mut world, 7);
    world.guest.free().unwrap();
    world.guest.connect().unwrap();
    world.disk.gate.leave(0, epoch);
    assert!(world.is_quiet());
}

#[test]
fn what_was_sent_before_the_queue_was_freed_is_not_taken() {
    let mut world = World::ready();
    world.guest.adapter.prepare_suspend();
    assert!(world.guest.adapter.wait_suspended(Duration::from_secs(10)));
    let unit = command(Tag([3; 8]), lun(0, 0), &[0; 6], Data::None).unwrap();
    let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
    let taken = world.guest.adapter.stats().commands;
    world.guest.free().unwrap();
    world.guest.adapter.resume();
    world.guest.connect().unwrap();
    world.guest.log_in().unwrap();
    assert!(world.is_quiet());
    assert_eq!(world.guest.adapter.stats().commands, taken);
}

#[test]
fn a_unit_in_memory_that_is_not_there_ends_the_connection_once() {
    let mut world = World::ready();
    let pointer = 0x10u64.to_be_bytes();
    let (format, len) = (Format::Srp, 256);
    let status = libsrp::viosrp::crq::ElementStatus::Ok;
    let message = libsrp::viosrp::crq::Message { format, status, timeout: 0, len, pointer };
    assert_eq!(world.guest.send(Element::Message(message)), Hcall::Success);
    assert_eq!(world.wait(), Element::Event(TransportEvent::PartnerDeregistered));
    // The client starts over, and is not told of it again.
    assert_eq!(world.guest.adapter.stats().violations, 1);
    world.guest.free().unwrap();
    world.guest.connect().unwrap();
    assert!(world.is_quiet());
}

#[test]
fn a_map_of_luns_that_changes_is_reported_in_an_empty_unit() {
    let mut world = World::ready();
    let mut unit = [0; 28];
    unit[3] = 1;
    unit[8..16].copy_from_slice(&[0xE1; 8]);
    let buffer = UNITS + 0x4000;
    unit[16..24].copy_from_slice(&buffer.to_be_bytes());
    let _ = world.guest.send_unit(Format::Mad, UNITS + 0x3000, &unit, 256);
    assert!(world.is_quiet());
    let disk = ram_disk(world.reactors.postboxes(), 1 << 20, "NEW").unwrap();
    world.target.map(9, disk, None).unwrap();
    let Element::Message(message) = world.wait() else { panic!() };
    assert_eq!((message.format, message.tag()), (Format::Mad, Tag([0xE1; 8])));
    let request = world.guest.read(buffer, 54);
    let request = libsrp::aer::AerReq::parse(&request).unwrap();
    assert_eq!(request.lun, lun(2, 9));
    assert_eq!((request.sense[12], request.sense[13]), (0x3F, 0x0E));
    // The others of the target hear of it too, but there is no buffer for that.
    let mut answer = [0; 16];
    answer[0] = 0x42;
    answer[8..].copy_from_slice(&request.tag.0);
    let _ = world.guest.send_unit(Format::Srp, UNITS, &answer, 16);
    assert!(world.is_quiet());
    assert_eq!(world.guest.adapter.stats().violations, 0);
    assert_eq!(world.status(lun(0, 0), &[0; 6]), Status::GOOD);
}
