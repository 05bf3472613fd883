use super::*;
use crate::testing::{Fixture, sense};

const KEY: [u8; 8] = *b"key of A";

/// The bytes of everything that can be kept, as `a` (which has it all) saves it.
fn eventful() -> (Fixture, Vec<u8>) {
    let mut fixture = removable();
    // Write exclusive, without APTPL, and D_SENSE.
    let register = [[0; 8], KEY, [0; 8]].concat();
    fixture.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register).unwrap();
    fixture.call(&[0x5F, 1, 1, 0, 0, 0, 0, 0, 24, 0], &[&KEY[..], &[0; 16]].concat()).unwrap();
    let control = [0x0A, 0x0A, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    fixture.call(&[0x15, 0x10, 0, 0, 16, 0], &[&[0; 4][..], &control].concat()).unwrap();
    fixture.call(&[0x1E, 0, 0, 0, 1, 0], &[]).unwrap();
    let table = fixture.nexus.table();
    let itl = table.at(0).unwrap();
    assert_eq!(itl.take_attention(), Some(Attention::POWER_ON));
    itl.establish(Attention::CAPACITY_CHANGED);
    let bytes = save(&fixture.nexus);
    (fixture, bytes)
}

fn removable() -> Fixture {
    let memory = crate::backend::Mem::new(1 << 20, 512).unwrap();
    Fixture::with(crate::backend::Backend::Mem(memory), |config| config.removable = true)
}

fn attentions(nexus: &Nexus) -> Vec<Attention> {
    nexus.table().at(0).unwrap().attentions().iter().collect()
}

#[test]
fn a_guest_that_moved_finds_everything_as_it_was() {
    let (_, bytes) = eventful();
    let mut there = removable();
    restore(&there.nexus, &bytes).unwrap();
    assert_eq!(attentions(&there.nexus), [Attention::CAPACITY_CHANGED]);
    assert!(there.lu.state().modes.descriptor_sense());
    let other = there.another("iqn.2026-11.test:b");
    let denied = other.table().at(0).unwrap().attention();
    assert_ne!(denied & crate::model::nexus::bit::WRITE_DENIED, 0, "the reservation holds");
    let eject = there.call(&[0x1B, 0, 0, 0, 2, 0], &[]);
    assert_eq!(sense(eject), Sense::REMOVAL_PREVENTED);
}

#[test]
fn what_is_saved_after_restoring_is_what_was_restored() {
    let (_, bytes) = eventful();
    let there = removable();
    restore(&there.nexus, &bytes).unwrap();
    assert_eq!(String::from_utf8(save(&there.nexus)), String::from_utf8(bytes));
}

#[test]
fn a_nexus_established_later_takes_its_entry_over_once() {
    let (here, _) = eventful();
    let snapshot = here.lu.snapshot();
    let mut there = removable();
    there.nexus = there.another("iqn.2026-11.test:x");
    there.lu.restore(snapshot).unwrap();
    assert!(there.lu.state().is_removal_prevented(), "an awaited nexus prevents it too");
    there.lu.establish(Attention::LOG_PARAMETERS_CHANGED, None);
    let back = there.another("iqn.2026-11.test:a");
    let expected = [Attention::CAPACITY_CHANGED, Attention::LOG_PARAMETERS_CHANGED];
    assert_eq!(attentions(&back), expected);
    drop(back);
    assert!(!there.lu.state().is_removal_prevented(), "the nexus was lost");
    let again = there.another("iqn.2026-11.test:a");
    assert_eq!(attentions(&again), [Attention::POWER_ON]);
}

#[test]
fn a_nexus_that_the_state_does_not_name_learns_of_a_new_medium() {
    let (here, _) = eventful();
    let there = removable();
    let stranger = there.another("iqn.2026-11.test:b");
    while stranger.table().at(0).unwrap().take_attention().is_some() {}
    there.lu.restore(here.lu.snapshot()).unwrap();
    assert_eq!(attentions(&stranger), [Attention::MEDIUM_CHANGED]);
    assert_eq!(attentions(&there.nexus), [Attention::CAPACITY_CHANGED]);
}

#[test]
fn a_nexus_that_finds_other_logical_units_is_told() {
    let (here, bytes) = eventful();
    let mut there = removable();
    there.nexus = there.another("iqn.2026-11.test:x");
    there.lu.restore(here.lu.snapshot()).unwrap();
    let added = Fixture::new().lu;
    there.target.map(1, added, None).unwrap();
    let back = there.another("iqn.2026-11.test:a");
    assert_eq!(attentions(&back), [Attention::CAPACITY_CHANGED, Attention::LUNS_CHANGED]);
    // The same when the state comes after the nexus.
    let there = removable();
    there.target.map(1, Fixture::new().lu, None).unwrap();
    restore(&there.nexus, &bytes).unwrap();
    assert_eq!(attentions(&there.nexus), [Attention::CAPACITY_CHANGED, Attention::LUNS_CHANGED]);
}

#[test]
fn a_guest_of_another_name_takes_its_reservation_along() {
    let (_, bytes) = eventful();
    let mut there = removable();
    there.nexus = there.another("iqn.2026-11.test:elsewhere");
    restore(&there.nexus, &bytes).unwrap();
    let state = there.lu.state();
    assert!(state.reservations.is_holder(&there.nexus.info.identity));
    assert_eq!(state.reservations.registrations().len(), 1);
}

#[test]
fn a_unit_that_others_use_keeps_its_state() {
    let (_, bytes) = eventful();
    let there = removable();
    let _other = there.another("iqn.2026-11.test:b");
    restore(&there.nexus, &bytes).unwrap();
    assert_eq!(there.lu.state().reservations.registrations().len(), 0);
    assert_eq!(attentions(&there.nexus), [Attention::CAPACITY_CHANGED]);
}

#[test]
fn an_interrupted_format_leaves_a_corrupted_medium() {
    let here = removable();
    here.lu.update(|state| state.busy = Some(Sense::FORMATTING.with_progress(7)));
    let there = removable();
    there.lu.restore(here.lu.snapshot()).unwrap();
    assert_eq!(there.lu.readiness(), Err(format::FAILED));
}

#[test]
fn damage_is_refused_and_changes_nothing() {
    let (_, bytes) = eventful();
    let there = removable();
    let before = save(&there.nexus);
    let text = String::from_utf8(bytes.clone()).unwrap();
    for end in 0..bytes.len() {
        assert!(restore(&there.nexus, &bytes[..end]).is_err(), "cut off after {end}");
    }
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    let version = restore(&there.nexus, newer.as_bytes());
    assert!(matches!(version, Err(SnapshotError::Version(2))), "{version:?}");
    let naa = format!("{:016x}", there.lu.config.identity.naa);
    let other = restore(&there.nexus, text.replace(&naa, "3000000000000001").as_bytes());
    assert!(matches!(other, Err(SnapshotError::Unit { .. })), "{other:?}");
    let lun = restore(&there.nexus, text.replace("\"lun\":0", "\"lun\":9").as_bytes());
    assert!(matches!(lun, Err(SnapshotError::NoUnit { lun: 9 })), "{lun:?}");
    let flood = text.replace("[[42,9]]", &format!("[{}[1,1]]", "[1,1],".repeat(16)));
    let flood = restore(&there.nexus, flood.as_bytes());
    assert!(matches!(flood, Err(SnapshotError::Attentions { count: 17 })), "{flood:?}");
    assert_eq!(String::from_utf8(save(&there.nexus)), String::from_utf8(before));
}
