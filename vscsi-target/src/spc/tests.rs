//! Tests of the handlers without a directory of their own.

use crate::{
    limits,
    model::{Attention, Nexus, lu, reservation::NexusId},
    opcode::{Fail, TABLE, service_action},
    sense::Sense,
    testing::{Fixture, sense},
};
use libsrp::Status;
use proptest::prelude::*;
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

const CONFLICT: Fail = Fail::Status(Status::RESERVATION_CONFLICT);

fn opcodes(options: u8, opcode: u8, action: u8) -> [u8; 12] {
    [0xA3, 0x0C, options, opcode, 0, action, 0, 0, 0xFF, 0xFF, 0, 0]
}

/// A PERSISTENT RESERVE OUT with the basic parameter list.
fn pr_out(action: u8, kind: u8, key: u64, new: u64, flags: u8) -> ([u8; 10], [u8; 24]) {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new.to_be_bytes());
    list[20] = flags;
    ([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], list)
}

fn pr(
    fixture: &mut Fixture,
    nexus: &Arc<Nexus>,
    action: u8,
    kind: u8,
    key: u64,
    new: u64,
) -> Result<Vec<u8>, Fail> {
    let (cdb, list) = pr_out(action, kind, key, new, 0);
    fixture.call_from(nexus, &cdb, &list)
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vscsi-spc-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn all_opcodes_are_listed_with_and_without_timeouts() {
    let mut fixture = Fixture::new();
    for (options, size) in [(0x00, 8), (0x80, 20)] {
        let data = fixture.call(&opcodes(options, 0, 0), &[]).unwrap();
        let len = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
        assert_eq!((len, data.len()), (TABLE.len() * size, 4 + TABLE.len() * size));
        for (row, descriptor) in TABLE.iter().zip(data[4..].chunks(size)) {
            assert_eq!(descriptor[0], row.opcode);
            assert_eq!(descriptor[2..4], row.service_action.unwrap_or(0).to_be_bytes());
            assert_eq!(descriptor[5] & 1 != 0, row.service_action.is_some());
            assert_eq!(descriptor[5] & 2 != 0, size == 20);
            assert_eq!(usize::from(descriptor[7]), row.usage.len());
            if size == 20 {
                assert_eq!(descriptor[8..], [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
    }
}

#[test]
fn every_listed_opcode_can_be_asked_for() {
    let mut fixture = Fixture::new();
    for row in TABLE {
        let action = row.service_action.unwrap_or(0) as u8;
        let (right, wrong) = if row.service_action.is_some() { (2, 1) } else { (1, 2) };
        for options in [right, 3] {
            let data = fixture.call(&opcodes(options, row.opcode, action), &[]).unwrap();
            assert_eq!(data[..4], [0, 3, 0, row.usage.len() as u8]);
            assert_eq!(&data[4..], row.usage);
        }
        let result = fixture.call(&opcodes(wrong, row.opcode, action), &[]);
        assert_eq!(sense(result), Sense::cdb_bit(2, 2));
    }
}

#[test]
fn one_opcode_with_rctd_has_a_timeouts_descriptor() {
    let data = Fixture::new().call(&opcodes(0x81, 0x00, 0), &[]).unwrap();
    assert_eq!(data[..10], [0, 0x83, 0, 6, 0, 0, 0, 0, 0, 4]);
    assert_eq!(data[10..], [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn unknown_opcode_and_service_action_are_reported_as_not_supported() {
    let mut fixture = Fixture::new();
    for cdb in [opcodes(1, 0xFF, 0), opcodes(2, 0x5E, 0x1F), opcodes(3, 0x00, 1)] {
        assert_eq!(fixture.call(&cdb, &[]), Ok(vec![0, 1, 0, 0]));
    }
}

#[test]
fn reserved_reporting_option_is_an_invalid_field() {
    let result = Fixture::new().call(&opcodes(4, 0, 0), &[]);
    assert_eq!(sense(result), Sense::cdb_bit(2, 2));
}

#[test]
fn task_management_functions_are_listed_in_both_lengths() {
    let mut fixture = Fixture::new();
    let basic = fixture.call(&[0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]);
    assert_eq!(basic, Ok(vec![0xFC, 0x07, 0, 0]));
    let extended = fixture.call(&[0xA3, 0x0D, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]).unwrap();
    assert_eq!(extended[..4], [0xFC, 0x07, 0, 12]);
    assert_eq!(extended.len(), 16);
}

#[test]
fn usage_maps_evaluate_naca_and_nothing_else_of_the_control_byte() {
    for row in TABLE.iter().filter(|row| row.opcode != 0x7F) {
        assert_eq!(row.usage.last(), Some(&0x04), "{}", row.name);
    }
}

#[test]
fn a_reserve_of_one_nexus_keeps_the_other_out_until_released() {
    let mut fixture = Fixture::new();
    let other = fixture.another("iqn.2026-11.test:b");
    for (reserve, release) in
        [(&[0x16, 0, 0, 0, 0, 0][..], &[0x17, 0, 0, 0, 0, 0][..]), (&[0x56; 1], &[0x57; 1])]
    {
        let pad = |cdb: &[u8]| {
            let mut cdb = cdb.to_vec();
            cdb.resize(10, 0);
            cdb
        };
        fixture.call(&pad(reserve), &[]).unwrap();
        assert_eq!(fixture.call_from(&other, &pad(reserve), &[]), Err(CONFLICT));
        assert_ne!(other.table().at(0).unwrap().attention() & !1, 0);
        assert_eq!(fixture.call_from(&other, &pad(release), &[]), Ok(Vec::new()));
        fixture.call(&pad(release), &[]).unwrap();
        assert_eq!(other.table().at(0).unwrap().attention() & !1, 0);
    }
}

#[test]
fn registered_keys_are_read_back() {
    let mut fixture = Fixture::new();
    let nexus = fixture.nexus.clone();
    pr(&mut fixture, &nexus, 0x00, 0, 0, 0xABCD).unwrap();
    let keys = fixture.call(&[0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[]).unwrap();
    assert_eq!(keys, [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0xAB, 0xCD]);
}

#[test]
fn preempt_and_abort_tells_the_victim_and_names_its_nexus() {
    let mut fixture = Fixture::new();
    let (own, other) = (fixture.nexus.clone(), fixture.another("iqn.2026-11.test:b"));
    pr(&mut fixture, &own, 0x00, 0, 0, 1).unwrap();
    pr(&mut fixture, &other, 0x00, 0, 0, 2).unwrap();
    pr(&mut fixture, &other, 0x01, 3, 2, 0).unwrap();
    let victim = other.table().at(0).unwrap().clone();
    victim.take_attention();
    fixture.lu.update(|state| state.preventers = vec![other.info.id, own.info.id]);
    pr(&mut fixture, &own, 0x05, 3, 1, 2).unwrap();
    assert_eq!(fixture.aborted.iter().collect::<Vec<_>>(), [&other.info.identity]);
    assert_eq!(victim.peek_attention().0, Some(Attention::REGISTRATIONS_PREEMPTED));
    assert_eq!(fixture.lu.state().preventers, [own.info.id]);
    assert_ne!(victim.attention() & !1, 0);
}

#[test]
fn wrong_key_is_a_conflict_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let nexus = fixture.nexus.clone();
    pr(&mut fixture, &nexus, 0x00, 0, 0, 1).unwrap();
    let before = fixture.lu.state().reservations.clone();
    assert_eq!(pr(&mut fixture, &nexus, 0x01, 3, 9, 0), Err(CONFLICT));
    assert_eq!(fixture.lu.state().reservations, before);
}

#[test]
fn aptpl_is_stored_before_it_is_acknowledged() {
    let directory = Directory::new();
    let mut fixture = Fixture::saving_in(&directory.0);
    let (cdb, list) = pr_out(0x00, 0, 0, 7, 1);
    fixture.call(&cdb, &list).unwrap();
    let store = super::reserve::store(&fixture.lu.config).unwrap();
    let saved = store.load(Default::default()).unwrap().unwrap();
    let keys: Vec<(&NexusId, u64)> = saved.registrations().collect();
    assert_eq!(keys, [(&fixture.nexus.info.identity, 7)]);
}

#[test]
fn registrations_and_modes_come_back_after_a_restart() {
    let directory = Directory::new();
    let mut first = Fixture::saving_in(&directory.0);
    let (cdb, list) = pr_out(0x00, 0, 0, 7, 1);
    first.call(&cdb, &list).unwrap();
    let swp = [0, 0, 0, 0, 0x0A, 0x0A, 0x02, 0x10, 0x08, 0, 0, 0, 0, 0, 0, 0];
    first.call(&[0x15, 0x11, 0, 0, 16, 0], &swp).unwrap();

    let second = Fixture::saving_in(&directory.0);
    let keys: Vec<u64> =
        second.lu.state().reservations.registrations().map(|(_, key)| key).collect();
    assert_eq!(keys, [7]);
    assert_ne!(second.lu.flags() & lu::flag::WRITE_PROTECTED, 0);
}

#[test]
fn registration_that_cannot_be_stored_is_not_made() {
    let directory = Directory::new();
    let mut fixture = Fixture::saving_in(&directory.0.join("missing"));
    let (cdb, list) = pr_out(0x00, 0, 0, 7, 1);
    assert_eq!(sense(fixture.call(&cdb, &list)), Sense::INTERNAL_FAILURE);
    assert_eq!(fixture.lu.state().reservations.registrations().count(), 0);
}

#[test]
fn concurrent_registrations_are_all_made_and_stored() {
    let directory = Directory::new();
    let fixture = Fixture::saving_in(&directory.0);
    let nexuses: Vec<_> =
        (0..4).map(|n| fixture.another(&format!("iqn.2026-11.test:{n}"))).collect();
    std::thread::scope(|scope| {
        for nexus in &nexuses {
            let (model, target) = (fixture.model.clone(), fixture.target.clone());
            let mut view = Fixture {
                model,
                target,
                lu: fixture.lu.clone(),
                nexus: nexus.clone(),
                aborted: Vec::new(),
            };
            scope.spawn(move || {
                let (cdb, list) = pr_out(0x00, 0, 0, 7, 1);
                view.call(&cdb, &list).unwrap();
            });
        }
    });
    let store = super::reserve::store(&fixture.lu.config).unwrap();
    let saved = store.load(Default::default()).unwrap().unwrap();
    assert_eq!(saved.registrations().count(), 4);
    assert_eq!(fixture.lu.state().reservations.registrations().count(), 4);
}

#[test]
fn echo_buffer_gives_back_what_was_written() {
    let mut fixture = Fixture::new();
    let read = [0x3C, 0x0A, 0, 0, 0, 0, 0, 0, 4, 0];
    assert_eq!(sense(fixture.call(&read, &[])), Sense::COMMAND_SEQUENCE);
    fixture.call(&[0x3B, 0x0A, 0, 0, 0, 0, 0, 0, 4, 0], b"echo").unwrap();
    assert_eq!(fixture.call(&read, &[]).unwrap(), b"echo");
    let descriptor = fixture.call(&[0x3C, 0x0B, 0, 0, 0, 0, 0, 0, 4, 0], &[]);
    assert_eq!(descriptor, Ok(vec![0, 0, 0x10, 0]));
}

#[test]
fn data_buffer_keeps_bytes_at_their_offset() {
    let mut fixture = Fixture::new();
    fixture.call(&[0x3B, 0x02, 0, 0, 1, 0, 0, 0, 2, 0], b"ab").unwrap();
    let data = fixture.call(&[0x3C, 0x02, 0, 0, 0, 0xFF, 0, 0, 4, 0], &[]);
    assert_eq!(data.unwrap(), b"\0ab\0");
    let descriptor = fixture.call(&[0x3C, 0x03, 0, 0, 0, 0, 0, 0, 4, 0], &[]);
    assert_eq!(descriptor.unwrap(), limits::DATA_BUFFER.to_be_bytes());
}

#[test]
fn data_outside_the_buffers_is_an_invalid_field() {
    let mut fixture = Fixture::new();
    let last = [0x3B, 0x02, 0, 0, 0xFF, 0xFF, 0, 0, 2, 0];
    assert_eq!(sense(fixture.call(&last, &[0; 2])), Sense::cdb_byte(6));
    let beyond = [0x3C, 0x02, 0, 1, 0, 1, 0, 0, 2, 0];
    assert_eq!(sense(fixture.call(&beyond, &[])), Sense::cdb_byte(3));
    let echo = [0x3B, 0x0A, 0, 0, 0, 0, 0, 0x10, 1, 0];
    assert_eq!(sense(fixture.call(&echo, &[0; 4097])), Sense::cdb_byte(6));
}

#[test]
fn microcode_download_is_refused() {
    for mode in [0x04, 0x05, 0x06, 0x07, 0x0D, 0x0E, 0x0F] {
        let result = Fixture::new().call(&[0x3B, mode, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
        assert_eq!(sense(result), Sense::cdb_bit(1, 4));
    }
}

#[test]
fn self_tests_in_the_foreground_pass() {
    for byte in [0x04, 0xA0, 0xC0, 0x10, 0x00] {
        assert_eq!(Fixture::new().call(&[0x1D, byte, 0, 0, 0, 0], &[]), Ok(Vec::new()));
    }
}

#[test]
fn background_self_test_is_an_invalid_field() {
    let result = Fixture::new().call(&[0x1D, 0x20, 0, 0, 0, 0], &[]);
    assert_eq!(sense(result), Sense::cdb_bit(1, 7));
}

#[test]
fn diagnostic_pages_are_the_list_of_them() {
    let mut fixture = Fixture::new();
    fixture.call(&[0x1D, 0x10, 0, 0, 4, 0], &[0; 4]).unwrap();
    let page = fixture.call(&[0x1C, 1, 0, 0, 255, 0], &[]);
    assert_eq!(page, Ok(vec![0, 0, 0, 1, 0]));
    let other = fixture.call(&[0x1D, 0x10, 0, 0, 4, 0], &[0x40, 0, 0, 0]);
    assert_eq!(sense(other), Sense::parameter_byte(0));
}

#[test]
fn every_listed_log_page_can_be_read() {
    let mut fixture = Fixture::new();
    let list = fixture.call(&[0x4D, 0, 0x40, 0xFF, 0, 0, 0, 1, 0, 0], &[]).unwrap();
    assert_eq!(list[..4], [0x40, 0xFF, 0, 12]);
    for page in list[4..].chunks(2) {
        let cdb = [0x4D, 0, 0x40 | page[0], page[1], 0, 0, 0, 1, 0, 0];
        let data = fixture.call(&cdb, &[]).unwrap();
        assert_eq!((data[0] & 0x3F, data[1]), (page[0], page[1]));
        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
    }
}

#[test]
fn log_counts_commands_and_bytes() {
    let mut fixture = Fixture::new();
    fixture.lu.counters[0].reads.store(3, Ordering::Relaxed);
    fixture.lu.counters[0].read_bytes.store(1536, Ordering::Relaxed);
    let data = fixture.call(&[0x4D, 0, 0x59, 0, 0, 0, 0, 1, 0, 0], &[]).unwrap();
    assert_eq!(data[..8], [0x19, 0, 0, 92, 0, 1, 0x23, 64]);
    assert_eq!((data[15], data[39]), (3, 3));
    let errors = fixture.call(&[0x4D, 0, 0x43, 0, 0, 0, 5, 1, 0, 0], &[]).unwrap();
    assert_eq!(errors, [3, 0, 0, 12, 0, 5, 0x20, 8, 0, 0, 0, 0, 0, 0, 6, 0]);
}

#[test]
fn unknown_log_page_subpage_pointer_and_thresholds_are_invalid_fields() {
    let mut fixture = Fixture::new();
    let mut wrong = |page, subpage, pointer| {
        sense(fixture.call(&[0x4D, 0, page, subpage, 0, 0, pointer, 1, 0, 0], &[]))
    };
    assert_eq!(wrong(0x4D, 0, 0), Sense::cdb_bit(2, 5));
    assert_eq!(wrong(0x43, 1, 0), Sense::cdb_byte(3));
    assert_eq!(wrong(0x43, 0, 6), Sense::cdb_byte(5));
    assert_eq!(wrong(0x03, 0, 0), Sense::cdb_bit(2, 7));
}

proptest! {
    /// Whatever bits of a CDB are set and however little data comes, a handler answers.
    #[test]
    fn random_fields_are_answered(
        noise in prop::array::uniform32(any::<u8>()),
        data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut fixture = Fixture::new();
        for row in TABLE.iter().filter(|row| row.spec.starts_with("SPC")) {
            let mut cdb: Vec<u8> =
                row.usage.iter().zip(noise).map(|(used, byte)| used & byte).collect();
            cdb[0] = row.opcode;
            if row.service_action.is_some() {
                cdb[1] = row.usage[1] & 0x1F | cdb[1] & 0xE0;
                prop_assert_eq!(Some(service_action(&cdb)), row.service_action);
            }
            let _ = fixture.call(&cdb, &data);
        }
    }
}
