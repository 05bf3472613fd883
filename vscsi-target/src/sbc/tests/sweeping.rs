//! FORMAT UNIT and SANITIZE.

use super::*;
use crate::{model::lu, opcode::Row};
use std::time::{Duration, Instant};

fn sanitize(flags: u8, length: u16) -> [u8; 10] {
    let mut cdb = cdb10(0x48, flags, 0, length);
    cdb[0] = 0x48;
    cdb
}

/// An overwrite parameter list.
fn list(flags: u8, pattern: &[u8]) -> Vec<u8> {
    let mut list = vec![flags, 0];
    list.extend((pattern.len() as u16).to_be_bytes());
    list.extend(pattern);
    list
}

fn overwrite(fixture: &mut Fixture, flags: u8, pattern: &[u8]) -> Result<Vec<u8>, Fail> {
    let list = list(flags, pattern);
    fixture.call(&sanitize(1, list.len() as u16), &list)
}

fn wait_until_ready(fixture: &Fixture) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.lu.readiness().is_err() {
        assert!(Instant::now() < deadline, "still {:?}", fixture.lu.readiness());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn overwrite_fills_every_block_with_the_pattern() {
    for size in [512usize, 4096] {
        let mut fixture = filled(size as u32);
        assert!(overwrite(&mut fixture, 1, &vec![0xAA; size]).is_ok());
        assert!(content(&fixture).iter().all(|&byte| byte == 0xAA));
        assert_eq!(fixture.lu.readiness(), Ok(()));
    }
}

#[test]
fn overwrite_starts_a_short_pattern_anew_in_each_block() {
    let mut fixture = filled(512);
    assert!(overwrite(&mut fixture, 1, &[1, 2, 3]).is_ok());
    for lba in [0, 1, 511] {
        let block = block(&fixture, lba);
        assert_eq!((&block[..4], &block[510..]), (&[1, 2, 3, 1][..], &[1, 2][..]));
    }
}

#[test]
fn overwrite_with_invert_inverts_every_second_pass() {
    let mut fixture = filled(512);
    assert!(overwrite(&mut fixture, 0x80 | 2, &[0xF0]).is_ok());
    assert!(content(&fixture).iter().all(|&byte| byte == 0x0F));
    assert!(overwrite(&mut fixture, 0x80 | 3, &[0xF0]).is_ok());
    assert!(content(&fixture).iter().all(|&byte| byte == 0xF0));
}

#[test]
fn overwrite_refuses_lists_that_say_nothing_or_too_much() {
    let mut fixture = filled(512);
    for length in [0, 1, 4, 512 + 5] {
        let refused = fixture.call(&sanitize(1, length), &[0x01; 600]);
        assert_eq!(codes(refused), INVALID_FIELD, "{length}");
    }
    assert_eq!(codes(overwrite(&mut fixture, 0, &[0; 512])), INVALID_PARAMETER, "no pass");
    assert_eq!(codes(overwrite(&mut fixture, 0x21, &[0; 512])), INVALID_PARAMETER, "TEST");
    let mut longer = list(1, &[0; 512]);
    longer[2..4].copy_from_slice(&516u16.to_be_bytes());
    assert_eq!(codes(fixture.call(&sanitize(1, 516), &longer)), INVALID_PARAMETER);
    assert_eq!(codes(fixture.call(&sanitize(1, 516), &longer[..100])), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn block_erase_leaves_a_thin_medium_deallocated() {
    let mut fixture = filled(4096);
    assert!(fixture.call(&sanitize(2, 0), &[]).is_ok());
    let data = fixture.call(&cdb16(0x9E, 0x12, 0, 4096), &[]).unwrap();
    assert_eq!(data.len(), 24, "one descriptor");
    assert_eq!(data[16..21], [0, 0, 0, 64, 1]);
    assert_eq!(codes(fixture.call(&sanitize(2, 8), &[0; 8])), INVALID_FIELD);
}

#[test]
fn crypto_erase_and_reserved_actions_are_invalid_fields() {
    let mut fixture = filled(512);
    for action in (0..0x1F).filter(|action| !matches!(action, 1 | 2)) {
        assert_eq!(codes(fixture.call(&sanitize(action, 0), &[])), INVALID_FIELD);
    }
    assert_eq!(codes(fixture.call(&sanitize(0x42, 0), &[])), INVALID_FIELD, "ZNR");
}

#[test]
fn immediate_sanitize_answers_first_and_then_erases() {
    let mut fixture = filled(512);
    assert!(fixture.call(&sanitize(0x82, 0), &[]).is_ok());
    wait_until_ready(&fixture);
    assert!(content(&fixture).iter().all(|&byte| byte == 0));
}

#[test]
fn sanitize_is_refused_while_stopped_ejected_or_busy() {
    let mut fixture = filled(512);
    fixture.lu.update(|state| state.stopped = true);
    assert_eq!(codes(fixture.call(&sanitize(2, 0), &[])), (2, 4, 2));
    fixture.lu.update(|state| state.busy = Some(Sense::FORMATTING));
    assert_eq!(codes(fixture.call(&sanitize(2, 0), &[])), (2, 4, 4));
    fixture.lu.update(|state| {
        state.busy = None;
        state.ejected = true;
    });
    assert_eq!(codes(fixture.call(&sanitize(2, 0), &[])), (2, 0x3A, 0));
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn sanitize_of_a_unit_taken_out_of_service_fails_and_marks_it() {
    let mut fixture = filled(512);
    fixture.lu.set_flags(lu::flag::GONE);
    assert_eq!(codes(fixture.call(&sanitize(2, 0), &[])), (4, 0x44, 0));
    assert_eq!(fixture.lu.readiness(), Err(Sense::SANITIZE_FAILED));
}

#[test]
fn failure_mode_is_left_only_after_an_unrestricted_sanitize() {
    for (ause, leaves) in [(0, false), (0x20, true)] {
        let mut fixture = filled(512);
        fixture.lu.set_flags(lu::flag::GONE);
        assert!(fixture.call(&sanitize(ause | 2, 0), &[]).is_err());
        let left = fixture.call(&sanitize(0x1F, 0), &[]);
        assert_eq!(left.is_ok(), leaves);
        assert_eq!(fixture.lu.readiness().is_ok(), leaves);
    }
    let mut fixture = filled(512);
    assert_eq!(codes(fixture.call(&sanitize(0x1F, 8), &[0; 8])), INVALID_FIELD);
    assert!(fixture.call(&sanitize(0x1F, 0), &[]).is_ok());
}

#[test]
fn format_without_a_list_zeroes_the_medium() {
    let mut fixture = filled(512);
    assert!(fixture.call(&[0x04, 0, 0, 0, 0, 0], &[]).is_ok());
    assert!(content(&fixture).iter().all(|&byte| byte == 0));
    assert_eq!(fixture.lu.readiness(), Ok(()));
}

#[test]
fn immediate_format_answers_first_and_then_zeroes() {
    let mut fixture = filled(512);
    let long = [0, 0x82, 0, 0, 0, 0, 0, 0];
    assert!(fixture.call(&[0x04, 0x30, 0, 0, 0, 0], &long).is_ok());
    wait_until_ready(&fixture);
    assert!(content(&fixture).iter().all(|&byte| byte == 0));
}

#[test]
fn format_refuses_protection_patterns_and_defects() {
    let mut fixture = filled(512);
    let lists: [[u8; 4]; 4] = [[1, 0, 0, 0], [0, 0x08, 0, 0], [0, 0x40, 0, 0], [0, 0, 0, 8]];
    for list in lists {
        let refused = fixture.call(&[0x04, 0x10, 0, 0, 0, 0], &list);
        assert_eq!(codes(refused), INVALID_PARAMETER, "{list:?}");
    }
    assert_eq!(codes(fixture.call(&[0x04, 0x90, 0, 0, 0, 0], &[0; 4])), INVALID_FIELD);
    assert_eq!(codes(fixture.call(&[0x04, 0x20, 0, 0, 0, 0], &[])), INVALID_FIELD);
    assert_eq!(codes(fixture.call(&[0x04, 0x30, 0, 0, 0, 0], &[0; 4])), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn a_failed_format_is_reported_until_one_succeeds() {
    let mut fixture = filled(512);
    fixture.lu.set_flags(lu::flag::GONE);
    assert!(fixture.call(&[0x04, 0, 0, 0, 0, 0], &[]).is_err());
    let failed = fixture.lu.readiness().unwrap_err();
    assert_eq!((failed.key, failed.asc, failed.ascq), (3, 0x31, 1));
    let again = fixture.call(&[0x04, 0, 0, 0, 0, 0], &[]);
    assert_eq!(codes(again), (4, 0x44, 0), "it was not refused as one in progress");
}

#[test]
fn long_operations_never_run_on_a_reactor() {
    for (opcode, action) in [(0x04, None), (0x48, Some(1)), (0x48, Some(2))] {
        assert!(Row::of(opcode, action).unwrap().has(flag::PERSISTS));
    }
}
