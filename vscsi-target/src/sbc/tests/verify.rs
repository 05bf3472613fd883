//! VERIFY and WRITE AND VERIFY.

use super::*;
use crate::testing::sense;

#[test]
fn verify_without_bytchk_reads_and_takes_no_data() {
    let mut fixture = filled(512);
    for cdb in [&cdb10(0x2F, 0x10, 0, 512)[..], &cdb16(0x8F, 0, 500, 12)] {
        assert_eq!(fixture.call(cdb, &[]), Ok(Vec::new()));
    }
    assert_eq!(super::super::verify::data_out(&cdb10(0x2F, 0, 0, 512), 512), 0);
}

#[test]
fn verify_compares_each_block_and_names_the_first_byte_that_differs() {
    for size in [512, 4096] {
        let mut fixture = filled(size);
        let mut data = block(&fixture, 3);
        data.extend(block(&fixture, 4));
        let cdb = [0xAF, 0x02, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0];
        assert_eq!(super::super::verify::data_out(&cdb, size), data.len() as u64);
        assert_eq!(fixture.call(&cdb, &data), Ok(Vec::new()));
        let at = data.len() - 27;
        data[at] ^= 1;
        let miscompare = sense(fixture.call(&cdb, &data));
        assert_eq!(miscompare, Sense::MISCOMPARE.with_information(at as u64));
    }
}

#[test]
fn verify_compares_every_block_with_one() {
    let mut fixture = filled(512);
    fixture.lu.backend.write_at(0, &[9; 3 * 512]).unwrap();
    let cdb = cdb10(0x2F, 0x06, 0, 3);
    assert_eq!(super::super::verify::data_out(&cdb, 512), 512);
    assert_eq!(fixture.call(&cdb, &[9; 512]), Ok(Vec::new()));
    let fourth = fixture.call(&cdb10(0x2F, 0x06, 0, 4), &[9; 512]);
    assert_eq!(sense(fourth), Sense::MISCOMPARE.with_information(0));
}

#[test]
fn verify_with_reserved_bytchk_is_an_invalid_field() {
    let mut fixture = filled(512);
    assert_eq!(codes(fixture.call(&cdb10(0x2F, 0x04, 0, 1), &[0; 512])), INVALID_FIELD);
}

#[test]
fn verify_with_short_data_compares_nothing() {
    let mut fixture = filled(512);
    assert_eq!(codes(fixture.call(&cdb10(0x2F, 0x02, 0, 2), &[1; 512])), SHORT);
    assert_eq!(codes(fixture.call(&cdb10(0x2F, 0x06, 0, 2), &[1; 200])), SHORT);
}

#[test]
fn verify_beyond_the_end_is_out_of_range_whatever_the_length() {
    let mut fixture = filled(512);
    assert_eq!(fixture.call(&cdb10(0x2F, 0x02, 512, 0), &[]), Ok(Vec::new()));
    assert_eq!(codes(fixture.call(&cdb10(0x2F, 0x02, 513, 0), &[])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&cdb10(0x2F, 0x00, 511, 2), &[])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&cdb16(0x8F, 0x02, u64::MAX, 1), &[0; 512])), OUT_OF_RANGE);
}

#[test]
fn write_and_verify_writes_exactly_the_blocks_named() {
    for flags in [0x00, 0x02] {
        let mut fixture = filled(512);
        let data = [0xB6; 2 * 512];
        assert_eq!(fixture.call(&cdb10(0x2E, flags, 510, 2), &data), Ok(Vec::new()));
        assert_eq!(block(&fixture, 509), [pattern(509); 512]);
        assert_eq!(block(&fixture, 510), [0xB6; 512]);
        assert_eq!(block(&fixture, 511), [0xB6; 512]);
    }
}

#[test]
fn write_and_verify_of_short_data_does_whole_blocks_or_nothing() {
    let mut fixture = filled(512);
    let cdb = cdb16(0x8E, 0x02, 0, 2);
    assert_eq!(fixture.call(&cdb, &[]), Ok(Vec::new()));
    assert_eq!(codes(fixture.call(&cdb, &[0xB6; 200])), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
    assert_eq!(fixture.call(&cdb, &[0xB6; 512]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 0), [0xB6; 512]);
    assert_eq!(block(&fixture, 1), [pattern(1); 512]);
}

#[test]
fn write_and_verify_beyond_the_end_writes_nothing() {
    let mut fixture = filled(512);
    let refused = fixture.call(&cdb10(0x2E, 0x02, 511, 2), &[0; 1024]);
    assert_eq!(codes(refused), OUT_OF_RANGE);
    assert_eq!(block(&fixture, 511), [pattern(511); 512]);
}
