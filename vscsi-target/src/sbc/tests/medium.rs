//! START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL.

use super::*;
use crate::model::Attention;

fn removable() -> Fixture {
    Fixture::with(Backend::Mem(Mem::new(LEN, 512).unwrap()), |config| config.removable = true)
}

fn start_stop(fixture: &mut Fixture, byte1: u8, byte4: u8) -> Result<Vec<u8>, Fail> {
    fixture.call(&[0x1B, byte1, 0, 0, byte4, 0], &[])
}

const EJECT: u8 = 0x02;
const LOAD: u8 = 0x03;
const STOP: u8 = 0x00;
const START: u8 = 0x01;
const PREVENTED: (u8, u8, u8) = (5, 0x53, 2);

#[test]
fn an_ejected_medium_is_absent_until_loaded() {
    let mut fixture = removable();
    assert!(start_stop(&mut fixture, 0, EJECT).is_ok());
    assert_eq!(fixture.lu.readiness(), Err(Sense::NO_MEDIUM));
    assert_eq!(codes(start_stop(&mut fixture, 0, START)), (2, 0x3A, 0));
    assert!(start_stop(&mut fixture, 0, EJECT).is_ok(), "ejecting twice changes nothing");
    assert!(start_stop(&mut fixture, 1, LOAD).is_ok());
    assert_eq!(fixture.lu.readiness(), Ok(()));
}

#[test]
fn loading_tells_other_nexuses_that_the_medium_may_have_changed() {
    let mut fixture = removable();
    let other = fixture.another("iqn.2026-11.test:b");
    let (mine, others) = (fixture.nexus.table(), other.table());
    let (mine, others) = (mine.at(0).unwrap(), others.at(0).unwrap());
    for itl in [mine, others] {
        while itl.take_attention().is_some() {}
    }
    start_stop(&mut fixture, 0, EJECT).unwrap();
    start_stop(&mut fixture, 0, LOAD).unwrap();
    assert_eq!(others.take_attention(), Some(Attention::MEDIUM_CHANGED));
    assert_eq!(mine.take_attention(), None);
}

#[test]
fn prevention_by_any_nexus_keeps_the_medium_where_it_is() {
    let mut fixture = removable();
    let other = fixture.another("iqn.2026-11.test:b");
    fixture.call_from(&other, &[0x1E, 0, 0, 0, 1, 0], &[]).unwrap();
    fixture.call_from(&other, &[0x1E, 0, 0, 0, 1, 0], &[]).unwrap();
    assert_eq!(codes(start_stop(&mut fixture, 0, EJECT)), PREVENTED);
    // Only the nexus that prevented it can allow it.
    fixture.call(&[0x1E, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(codes(start_stop(&mut fixture, 0, EJECT)), PREVENTED);
    fixture.call_from(&other, &[0x1E, 0, 0, 0, 0, 0], &[]).unwrap();
    assert!(start_stop(&mut fixture, 0, EJECT).is_ok());
    fixture.call(&[0x1E, 0, 0, 0, 1, 0], &[]).unwrap();
    assert_eq!(codes(start_stop(&mut fixture, 0, LOAD)), PREVENTED);
}

#[test]
fn a_stopped_fixed_unit_needs_a_start() {
    let mut fixture = filled(512);
    assert!(start_stop(&mut fixture, 0, STOP).is_ok());
    assert_eq!(fixture.lu.readiness(), Err(Sense::STOPPED));
    assert!(start_stop(&mut fixture, 0, START).is_ok());
    assert_eq!(fixture.lu.readiness(), Ok(()));
}

#[test]
fn a_stopped_removable_unit_stays_ready() {
    let mut fixture = removable();
    for (byte1, byte4) in [(0, STOP), (1, STOP), (1, STOP | 0x04), (0, START)] {
        assert!(start_stop(&mut fixture, byte1, byte4).is_ok());
        assert_eq!(fixture.lu.readiness(), Ok(()));
    }
}

#[test]
fn a_fixed_medium_cannot_be_ejected() {
    let mut fixture = filled(512);
    assert_eq!(codes(start_stop(&mut fixture, 0, EJECT)), INVALID_FIELD);
    assert_eq!(codes(start_stop(&mut fixture, 0, LOAD)), INVALID_FIELD);
}

#[test]
fn a_power_condition_makes_loej_and_start_ignored() {
    let mut fixture = removable();
    for power in 1..16 {
        assert!(start_stop(&mut fixture, 1, power << 4 | EJECT).is_ok());
        assert_eq!(fixture.lu.readiness(), Ok(()));
    }
}

#[test]
fn a_running_sanitize_is_reported_instead_of_starting_or_stopping() {
    let mut fixture = removable();
    fixture.lu.update(|state| state.busy = Some(Sense::SANITIZING.with_progress(1)));
    assert_eq!(codes(start_stop(&mut fixture, 1, 0x12)), (2, 4, 0x1B));
    assert_eq!(codes(fixture.call(&[0x1E, 0, 0, 0, 1, 0], &[])), (2, 4, 0x1B));
}
