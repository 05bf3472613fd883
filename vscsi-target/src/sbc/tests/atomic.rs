//! COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.

use super::*;
use crate::{limits, testing::sense};

fn compare_and_write(lba: u64, blocks: u8) -> [u8; 16] {
    let mut cdb = cdb16(0x89, 0, lba, 0);
    cdb[13] = blocks;
    cdb
}

fn write_atomic(lba: u64, blocks: u16) -> [u8; 16] {
    cdb16(0x9C, 0, lba, u32::from(blocks))
}

#[test]
fn compare_and_write_writes_when_all_blocks_match() {
    for size in [512usize, 4096] {
        let mut fixture = filled(size as u32);
        let mut data = block(&fixture, 5);
        data.extend(block(&fixture, 6));
        data.extend(vec![0xCA; 2 * size]);
        assert_eq!(fixture.call(&compare_and_write(5, 2), &data), Ok(Vec::new()));
        assert_eq!(block(&fixture, 4), vec![pattern(4); size]);
        assert_eq!(block(&fixture, 5), vec![0xCA; size]);
        assert_eq!(block(&fixture, 6), vec![0xCA; size]);
        assert_eq!(block(&fixture, 7), vec![pattern(7); size]);
    }
}

#[test]
fn compare_and_write_names_the_first_byte_that_differs_and_writes_nothing() {
    let mut fixture = filled(512);
    for at in [0, 1, 511, 512, 1023] {
        let mut data = block(&fixture, 5);
        data.extend(block(&fixture, 6));
        data[at] ^= 0x80;
        data.extend([0xCA; 1024]);
        let refused = sense(fixture.call(&compare_and_write(5, 2), &data));
        assert_eq!(refused, Sense::MISCOMPARE.with_information(at as u64));
        assert_eq!(block(&fixture, 5), [pattern(5); 512]);
    }
}

#[test]
fn compare_and_write_of_no_blocks_is_good_inside_the_medium() {
    let mut fixture = filled(512);
    assert_eq!(fixture.call(&compare_and_write(512, 0), &[]), Ok(Vec::new()));
    assert_eq!(codes(fixture.call(&compare_and_write(513, 0), &[])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&compare_and_write(511, 2), &[0; 2048])), OUT_OF_RANGE);
}

#[test]
fn compare_and_write_with_short_data_touches_nothing() {
    let mut fixture = filled(512);
    let short = fixture.call(&compare_and_write(0, 2), &[pattern(0); 1024]);
    assert_eq!(codes(short), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn orwrite_sets_bits_and_clears_none() {
    let mut fixture = filled(512);
    assert_eq!(fixture.call(&cdb16(0x8B, 0, 2, 1), &[0xF0; 512]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 2), [pattern(2) | 0xF0; 512]);
    assert_eq!(block(&fixture, 3), [pattern(3); 512]);
}

#[test]
fn orwrite_refuses_short_data_and_blocks_beyond_the_end() {
    let mut fixture = filled(512);
    assert_eq!(codes(fixture.call(&cdb16(0x8B, 0, 0, 2), &[0xF0; 512])), SHORT);
    assert_eq!(codes(fixture.call(&cdb16(0x8B, 0, 513, 0), &[])), OUT_OF_RANGE);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn write_atomic_writes_all_or_refuses() {
    let mut fixture = filled(512);
    assert_eq!(fixture.call(&write_atomic(510, 2), &[0xA7; 1024]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 511), [0xA7; 512]);
    assert_eq!(codes(fixture.call(&write_atomic(511, 2), &[0; 1024])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&write_atomic(0, 2), &[0; 512])), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn write_atomic_beyond_the_limit_is_an_invalid_field() {
    let mut fixture = Fixture::over(Backend::Mem(Mem::new(4 << 20, 512).unwrap()));
    let limit = (limits::MAX_ATOMIC / 512) as u16;
    let data = vec![1; limits::MAX_ATOMIC as usize + 512];
    assert_eq!(fixture.call(&write_atomic(0, limit), &data), Ok(Vec::new()));
    assert_eq!(codes(fixture.call(&write_atomic(0, limit + 1), &data)), INVALID_FIELD);
}

#[test]
fn write_atomic_with_a_boundary_is_an_invalid_field() {
    let mut fixture = filled(512);
    let mut cdb = write_atomic(0, 2);
    cdb[11] = 1;
    assert_eq!(codes(fixture.call(&cdb, &[0; 1024])), INVALID_FIELD);
}
