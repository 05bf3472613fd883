//! Where data is: windows, descriptors, and memory that cannot be reached.

use std::{fs::File, sync::Arc};

use libsrp::{
    cmd::Cmd,
    descriptor::{DataBuffer, DataBuffers, Descriptor, Descriptors, Indirect},
    viosrp::crq::{ElementStatus, Format},
};
use vmm_glue::memory::{GuestMap, Region};

use super::{
    partition::guest::{DATA, IOBA, MEMORY, UNITS, command},
    *,
};

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + seed) as u8).collect()
}

/// Writes blocks to the medium by one segment.
fn put(world: &mut World, lba: u8, bytes: &[u8]) {
    world.guest.write(DATA, bytes);
    let (len, cdb) = (bytes.len() as u32, write_10(lba, (bytes.len() / 512) as u8));
    let answer = world.guest.command(Tag([1; 8]), lun(0, 0), &cdb, Data::Out(DATA, len)).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().status, Status::GOOD);
}

/// Reads eight blocks by an indirect list whose first `listed` descriptors are in the unit.
fn read_by_list(
    world: &mut World,
    count: u64,
    listed: usize,
    table: u64,
) -> (Vec<u8>, Vec<Descriptor>) {
    let len = (4096 / count) as u32;
    let list: Vec<_> = (0..count)
        .map(|n| Descriptor { address: DATA + 0x2_0000 + 0x1800 * n, key: 0, len })
        .collect();
    let bytes: Vec<u8> = list.iter().flat_map(|one| one.to_bytes()).collect();
    world.guest.write(table, &bytes);
    let total: u32 = len * count as u32;
    let head = Descriptor { address: table, key: 0, len: bytes.len() as u32 };
    let in_unit = Descriptors::from_table(&bytes[..16 * listed]).unwrap();
    let data_in = DataBuffer::Indirect(Indirect::new(head, total, in_unit));
    let data = DataBuffers { data_in, ..DataBuffers::default() };
    let mut cdb = [0; 16];
    cdb[..10].copy_from_slice(&read_10(8, 8));
    let mut unit = [0; 256];
    let attribute = libsrp::TaskAttribute::Simple;
    let notify = libsrp::cmd::SolicitedNotification::default();
    let cmd = Cmd { tag: Tag([4; 8]), notify, lun: lun(0, 0), attribute, cdb: &cdb, data };
    let written = cmd.emit(&mut unit).unwrap();
    assert!(written <= 256);
    let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
    let (message, answer) = world.guest.answer(UNITS).unwrap();
    assert_eq!(message.status, ElementStatus::Ok);
    (answer, list)
}

fn check_list(world: &World, answer: &[u8], list: &[Descriptor], expected: &[u8]) {
    let rsp = Rsp::parse(answer).unwrap();
    assert_eq!((rsp.status, rsp.sense), (Status::GOOD, &[][..]));
    let mut got = Vec::new();
    for part in list {
        got.extend(world.guest.read(part.address, part.len as usize));
    }
    assert_eq!(got, expected[..got.len()]);
}

#[test]
fn ten_descriptors_in_the_unit_are_used_from_there() {
    let mut world = World::ready();
    let expected = pattern(4096, 3);
    put(&mut world, 8, &expected);
    // 4096 is no multiple of ten: six bytes are missing at the end.
    let (answer, list) = read_by_list(&mut world, 10, 10, DATA + 0x1_0000);
    let rsp = Rsp::parse(&answer).unwrap();
    assert_eq!(rsp.data_in, libsrp::Residual::None);
    check_list(&world, &answer, &list, &expected);
}

#[test]
fn sixteen_descriptors_of_which_ten_are_in_the_unit_are_fetched() {
    let mut world = World::ready();
    let expected = pattern(4096, 5);
    put(&mut world, 8, &expected);
    let (answer, list) = read_by_list(&mut world, 16, 10, DATA + 0x1_0000);
    check_list(&world, &answer, &list, &expected);
}

#[test]
fn a_table_that_is_not_there_fails_the_command_and_nothing_else() {
    let mut world = World::ready();
    let (window, table) = (Arc::clone(&world.guest.window), DATA + 0x1_0000);
    put(&mut world, 8, &pattern(4096, 5));
    let _ = window.put_tce(table, 0);
    // The table is written past the window, as the guest's processor would.
    let (answer, _) = read_by_list(&mut world, 16, 10, table);
    let rsp = Rsp::parse(&answer).unwrap();
    assert_eq!((rsp.status, rsp.sense[2], rsp.sense[12]), (Status::CHECK_CONDITION, 0x0B, 0x08));
    assert_eq!(world.status(lun(0, 0), &[0; 6]), Status::GOOD);
    assert_eq!(world.guest.adapter.stats().faults, 1);
}

#[test]
fn data_where_the_window_forbids_it_fails_the_command() {
    let mut world = World::ready();
    let window = Arc::clone(&world.guest.window);
    let page = DATA - IOBA;
    let mut sense = |tce, data| {
        let _ = window.put_tce(DATA, tce);
        let cdb = match data {
            Data::In(..) => read_10(0, 1),
            _ => write_10(0, 1),
        };
        let answer = world.guest.command(Tag([1; 8]), lun(0, 0), &cdb, data).unwrap();
        let rsp = Rsp::parse(&answer).unwrap();
        (rsp.status, rsp.sense.get(12).copied())
    };
    let bad = (Status::CHECK_CONDITION, Some(0x08));
    let good = (Status::GOOD, None);
    assert_eq!(sense(page | 1, Data::In(DATA, 512)), bad);
    assert_eq!(sense(page | 1, Data::Out(DATA, 512)), good);
    assert_eq!(sense(page | 2, Data::In(DATA, 512)), good);
    assert_eq!(sense(page | 2, Data::Out(DATA, 512)), bad);
    assert_eq!(sense(page, Data::In(DATA, 512)), bad);
    // There is no such memory.
    assert_eq!(sense(MEMORY | 3, Data::In(DATA, 512)), bad);
    assert_eq!(sense(page | 3, Data::In(IOBA + MEMORY - 256, 512)), bad);
    assert_eq!(sense(page | 3, Data::In(u64::MAX - 255, 512)), bad);
}

#[test]
fn a_segment_over_scattered_pages_is_one_buffer() {
    let mut world = World::ready();
    let expected = pattern(8192, 9);
    put(&mut world, 8, &expected);
    // Two neighbours of the window, the second before the first in memory.
    let (a, b) = (DATA + 0x8000, DATA + 0x9000);
    let _ = world.guest.window.put_tce(a, (DATA - IOBA + 0xB000) | 3);
    let _ = world.guest.window.put_tce(b, (DATA - IOBA + 0xA000) | 3);
    let cdb = read_10(8, 8);
    let data = Data::In(a + 2048, 4096);
    let answer = world.guest.command(Tag([1; 8]), lun(0, 0), &cdb, data).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().status, Status::GOOD);
    assert_eq!(world.guest.read(DATA + 0xB800, 2048), expected[..2048]);
    assert_eq!(world.guest.read(DATA + 0xA000, 2048), expected[2048..4096]);
}

#[test]
fn a_bypassed_window_has_guest_physical_addresses() {
    let mut world = World::ready();
    world.guest.window.set_bypass(true);
    let unit = command(Tag([1; 8]), lun(0, 0), &read_10(0, 1), Data::In(0x20_0000, 512)).unwrap();
    world.guest.write(UNITS, &unit);
    let pointer = (UNITS - IOBA).to_be_bytes();
    let (format, status) = (Format::Srp, ElementStatus::Ok);
    let message = libsrp::viosrp::crq::Message { format, status, timeout: 0, len: 64, pointer };
    let _ = world.guest.send(Element::Message(message));
    let (_, answer) = world.guest.answer(UNITS).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().status, Status::GOOD);
}

#[test]
fn a_unit_over_two_pages_is_read_and_answered() {
    let mut world = World::ready();
    let at = UNITS + 4096 - 40;
    let _ = world.guest.window.put_tce(UNITS + 4096, (UNITS - IOBA + 0x5000) | 3);
    let unit = command(Tag([6; 8]), lun(0, 0), &[0; 6], Data::None).unwrap();
    world.guest.write(at, &unit[..40]);
    world.guest.write(UNITS + 0x5000, &unit[40..]);
    let pointer = at.to_be_bytes();
    let (format, status) = (Format::Srp, ElementStatus::Ok);
    let message = libsrp::viosrp::crq::Message { format, status, timeout: 0, len: 256, pointer };
    let _ = world.guest.send(Element::Message(message));
    let (message, _) = world.guest.answer(UNITS).unwrap();
    assert_eq!((message.tag(), message.len), (Tag([6; 8]), 36));
    assert_eq!(world.guest.read(at, 1), [0xC1]);
}

#[test]
fn a_unit_that_cannot_be_written_is_answered_by_its_element() {
    let mut world = World::ready();
    let page = UNITS + 0x6000;
    let _ = world.guest.window.put_tce(page, (page - IOBA) | 1);
    let unit = command(Tag([6; 8]), lun(0, 0), &[0; 6], Data::None).unwrap();
    let _ = world.guest.send_unit(Format::Srp, page, &unit, 256);
    let Element::Message(message) = world.wait() else { panic!() };
    assert_eq!((message.status, message.tag()), (ElementStatus::AdapterFail, Tag([6; 8])));
    assert_eq!(world.guest.read(page, 1), [0x02]);
}

#[test]
fn a_partition_whose_memory_is_exchanged_goes_on() {
    let mut world = World::ready();
    let file: File = world.guest.memory.try_clone().unwrap();
    let half = MEMORY / 2;
    let regions =
        [0, half].map(|at| Region::map(at, half, 0, at, file.try_clone().unwrap()).unwrap());
    world.guest.window.set_map(Arc::new(GuestMap::new(regions.to_vec()).unwrap()));
    let expected = pattern(4096, 1);
    put(&mut world, 8, &expected);
    // Over both regions.
    let at = IOBA + half - 1024;
    let answer =
        world.guest.command(Tag([1; 8]), lun(0, 0), &read_10(8, 8), Data::In(at, 4096)).unwrap();
    assert_eq!(Rsp::parse(&answer).unwrap().status, Status::GOOD);
    assert_eq!(world.guest.read(at, 4096), expected);
    // Without the memory of its queue it gets nothing more, and harms nobody.
    let region = Region::map(half, half, 0, half, file).unwrap();
    world.guest.window.set_map(Arc::new(GuestMap::new(vec![region]).unwrap()));
    let unit = command(Tag([6; 8]), lun(0, 0), &[0; 6], Data::None).unwrap();
    let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
    assert!(world.is_quiet());
    world.guest.free().unwrap();
}

#[test]
fn memory_that_is_taken_away_ends_the_connection_and_nothing_else() {
    let mut world = World::ready();
    let unit = command(Tag([6; 8]), lun(0, 0), &read_10(0, 8), Data::In(DATA, 4096)).unwrap();
    world.guest.write(UNITS, &unit);
    world.guest.memory.set_len(DATA - IOBA).unwrap();
    let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
    let mut other = World::new();
    other.guest.connect().unwrap();
    other.guest.log_in().unwrap();
    other.settle();
    until("the end", || {
        let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
        world.guest.poll().is_none()
    });
    world.guest.free().unwrap();
    assert_eq!(other.status(lun(0, 0), &[0; 6]), Status::GOOD);
}

#[test]
fn huge_lengths_cost_no_more_than_the_longest_transfer() {
    let mut world = World::ready();
    world.guest.window.set_bypass(false);
    let answer = world
        .guest
        .command(Tag([1; 8]), lun(0, 0), &read_10(0, 1), Data::In(DATA, u32::MAX))
        .unwrap();
    // The window ends before that.
    assert_eq!(Rsp::parse(&answer).unwrap().sense[12], 0x08);
}
