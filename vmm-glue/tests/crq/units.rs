//! Targets and logical units behind one adapter, and task management.

use libsrp::{
    Residual,
    cmd::SolicitedNotification,
    rsp::RspCode,
    tsk_mgmt::{FunctionCode, TskMgmt},
    viosrp::crq::Format,
};
use vmm_glue::crq::Hcall;

use super::{
    partition::guest::{DATA, UNITS, command},
    *,
};

const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 96, 0];
const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];

fn inquiry(world: &mut World, unit: Lun) -> Vec<u8> {
    let data = Data::In(DATA, 96);
    let answer = world.guest.command(Tag([1; 8]), unit, &INQUIRY, data).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().status, Status::GOOD);
    world.guest.read(DATA, 96)
}

#[test]
fn logical_units_are_there_and_others_say_that_they_are_not() {
    let mut world = World::ready();
    for unit in [lun(0, 0), lun(2, 0), lun(2, 3), Lun([0; 8]), Lun([0x42, 3, 0, 0, 0, 0, 0, 0])] {
        assert_eq!(inquiry(&mut world, unit)[0], 0x00, "{unit:?}");
    }
    for unit in [lun(0, 1), lun(1, 0), lun(63, 31), Lun([0x82, 0x80, 0, 0, 0, 0, 0, 0])] {
        assert_eq!(inquiry(&mut world, unit)[0], 0x7F, "{unit:?}");
    }
}

#[test]
fn luns_are_reported_by_target_in_the_form_that_clients_take() {
    let mut world = World::ready();
    let mut report = |unit| {
        let data = Data::In(DATA, 512);
        let answer = world.guest.command(Tag([1; 8]), unit, &REPORT_LUNS, data).unwrap();
        let rsp = Rsp::parse(&answer).unwrap();
        let sense = rsp.sense.get(12).copied();
        let len = usize::from(world.guest.read(DATA, 512)[3]);
        (sense, rsp.data_in, world.guest.read(DATA + 8, len))
    };
    assert_eq!(report(lun(0, 0)), (None, Residual::Over(496), vec![0; 8]));
    let second = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
    assert_eq!(report(lun(2, 0)), (None, Residual::Over(488), second));
    assert_eq!(report(Lun::REPORT_LUNS).0, None);
    // A target that is not there has none to report.
    assert_eq!(report(lun(1, 0)).0, Some(0x25));
}

#[test]
fn commands_to_units_that_are_not_there_fail() {
    let mut world = World::ready();
    for unit in [lun(0, 1), lun(1, 0)] {
        let answer = world.guest.command(Tag([1; 8]), unit, &[0; 6], Data::None).unwrap();
        let rsp = Rsp::parse(&answer).unwrap();
        assert_eq!((rsp.status, rsp.sense[2], rsp.sense[12]), (Status::CHECK_CONDITION, 5, 0x25));
    }
}

#[test]
fn a_block_read_into_a_page_tells_what_is_missing() {
    let mut world = World::ready();
    let data = Data::In(DATA, 4096);
    let answer = world.guest.command(Tag([1; 8]), lun(0, 0), &read_10(0, 1), data).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().data_in, Residual::Over(3584));
}

/// A function with its own unit, and what comes of it.
fn manage(world: &mut World, unit: Lun, function: FunctionCode, managed: u8) -> Option<RspCode> {
    let mut iu = [0; 256];
    let notify = SolicitedNotification::default();
    let (tag, managed) = (Tag([0xF0; 8]), Tag([managed; 8]));
    TskMgmt { tag, notify, lun: unit, function, managed }.emit(&mut iu).unwrap();
    assert_eq!(world.guest.send_unit(Format::Srp, UNITS + 0x800, &iu, 256), Hcall::Success);
    let (message, answer) = world.guest.answer(UNITS + 0x800).unwrap();
    assert_eq!(message.tag(), tag);
    let rsp = Rsp::parse(&answer).unwrap();
    assert_eq!(rsp.limit_delta, 1);
    rsp.code
}

/// A command that waits at the gate.
fn hold(world: &mut World, tag: u8) -> u8 {
    let epoch = world.disk.gate.enter(0).unwrap();
    let data = Data::In(DATA, 512);
    let mut unit = command(Tag([tag; 8]), lun(0, 0), &read_10(0, 1), data).unwrap();
    unit[29] = libsrp::TaskAttribute::Ordered.code();
    let _ = world.guest.send_unit(Format::Srp, UNITS + 0x1000, &unit, 256);
    epoch
}

#[test]
fn an_aborted_command_is_never_answered() {
    let mut world = World::ready();
    let epoch = hold(&mut world, 7);
    assert_eq!(manage(&mut world, lun(0, 0), FunctionCode::AbortTask, 7), Some(RspCode::Complete));
    world.disk.gate.leave(0, epoch);
    assert!(world.is_quiet());
    assert_eq!(world.status(lun(0, 0), &[0; 6]), Status::GOOD);
}

#[test]
fn a_logical_unit_reset_ends_its_commands_and_is_told_to_it() {
    let mut world = World::ready();
    let epoch = hold(&mut world, 7);
    let reset = FunctionCode::LogicalUnitReset;
    assert_eq!(manage(&mut world, lun(0, 0), reset, 0), Some(RspCode::Complete));
    world.disk.gate.leave(0, epoch);
    assert!(world.is_quiet());
    assert_eq!(world.status(lun(0, 0), &[0; 6]), Status::CHECK_CONDITION);
    assert_eq!(world.status(lun(2, 0), &[0; 6]), Status::GOOD);
}

#[test]
fn functions_that_find_nothing_say_what_linux_expects() {
    let mut world = World::ready();
    let mut code = |unit, function| manage(&mut world, unit, function, 99);
    assert_eq!(code(lun(0, 0), FunctionCode::AbortTask), Some(RspCode::Complete));
    assert_eq!(code(lun(0, 0), FunctionCode::ClearTaskSet), Some(RspCode::Complete));
    assert_eq!(code(lun(0, 0), FunctionCode::AbortTaskSet), Some(RspCode::Complete));
    assert_eq!(code(lun(0, 1), FunctionCode::AbortTask), Some(RspCode::InvalidFields));
    assert_eq!(code(lun(1, 0), FunctionCode::LogicalUnitReset), Some(RspCode::InvalidFields));
    assert_eq!(code(lun(0, 0), FunctionCode::Unknown(0x20)), Some(RspCode::NotSupported));
}
