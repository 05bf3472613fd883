//! WRITE SAME and UNMAP.

use super::*;
use crate::limits;

/// An UNMAP parameter list.
fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let described = descriptors.len() * 16;
    let mut list = vec![0; 8];
    list[..2].copy_from_slice(&(described as u16 + 6).to_be_bytes());
    list[2..4].copy_from_slice(&(described as u16).to_be_bytes());
    for (lba, blocks) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(fixture: &mut Fixture, list: &[u8]) -> Result<Vec<u8>, Fail> {
    fixture.call(&cdb10(0x42, 0, 0, list.len() as u16), list)
}

fn mapped(fixture: &Fixture, lba: u64) -> bool {
    fixture.lu.backend.extent(lba * u64::from(fixture.lu.block_size())).unwrap().mapped
}

#[test]
fn write_same_repeats_one_block() {
    for size in [512usize, 4096] {
        let mut fixture = filled(size as u32);
        let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
        assert_eq!(fixture.call(&cdb10(0x41, 0, 1, 9), &data), Ok(Vec::new()));
        assert_eq!(block(&fixture, 0), vec![pattern(0); size]);
        for lba in 1..10 {
            assert_eq!(block(&fixture, lba), data);
        }
        assert_eq!(block(&fixture, 10), vec![pattern(10); size]);
    }
}

#[test]
fn write_same_larger_than_the_scratch_buffer_fills_to_the_last_block() {
    let mut fixture = Fixture::over(Backend::Mem(Mem::new(4 << 20, 512).unwrap()));
    assert_eq!(fixture.call(&cdb16(0x93, 0, 0, 8191), &[7; 512]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 8190), [7; 512]);
    assert_eq!(block(&fixture, 8191), [0; 512]);
}

#[test]
fn write_same_of_zeroes_deallocates_only_with_unmap() {
    let mut fixture = filled(4096);
    assert_eq!(fixture.call(&cdb16(0x93, 0, 0, 2), &[0; 4096]), Ok(Vec::new()));
    assert!(mapped(&fixture, 0));
    assert_eq!(block(&fixture, 0), [0; 4096]);
    assert_eq!(fixture.call(&cdb16(0x93, 0x08, 4, 2), &[0; 4096]), Ok(Vec::new()));
    assert!(!mapped(&fixture, 4) && !mapped(&fixture, 5) && mapped(&fixture, 6));
}

#[test]
fn write_same_with_unmap_still_writes_a_block_that_is_not_zero() {
    let mut fixture = filled(4096);
    assert_eq!(fixture.call(&cdb10(0x41, 0x08, 4, 2), &[0xA6; 4096]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 5), [0xA6; 4096]);
}

#[test]
fn write_same_with_ndob_takes_no_data_and_zeroes() {
    let mut fixture = filled(512);
    let cdb = cdb16(0x93, 0x01, 3, 1);
    assert_eq!(super::super::provisioning::write_same_data(&cdb, 512), 0);
    assert_eq!(fixture.call(&cdb, &[]), Ok(Vec::new()));
    assert_eq!(block(&fixture, 3), [0; 512]);
    assert_eq!(block(&fixture, 4), [pattern(4); 512]);
    // WRITE SAME(10) has no NDOB.
    assert_eq!(codes(fixture.call(&cdb10(0x41, 0x01, 3, 1), &[0; 512])), INVALID_FIELD);
}

#[test]
fn write_same_refuses_no_blocks_anchor_short_data_and_the_end() {
    let mut fixture = filled(512);
    let data = [1; 512];
    assert_eq!(codes(fixture.call(&cdb10(0x41, 0, 0, 0), &data)), INVALID_FIELD);
    assert_eq!(codes(fixture.call(&cdb16(0x93, 0x18, 0, 1), &data)), INVALID_FIELD);
    assert_eq!(codes(fixture.call(&cdb10(0x41, 0, 0, 1), &data[..256])), SHORT);
    assert_eq!(codes(fixture.call(&cdb10(0x41, 0, 511, 2), &data)), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&cdb16(0x93, 0, u64::MAX, 1), &data)), OUT_OF_RANGE);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn write_same_beyond_the_limit_is_an_invalid_field() {
    let null = crate::backend::Null::new(1 << 40, 512);
    let mut fixture = Fixture::over(Backend::Null(null));
    let limit = limits::MAX_WRITE_SAME as u32;
    assert_eq!(fixture.call(&cdb16(0x93, 0, 0, limit), &[1; 512]), Ok(Vec::new()));
    let above = fixture.call(&cdb16(0x93, 0, 0, limit + 1), &[1; 512]);
    assert_eq!(codes(above), INVALID_FIELD);
}

#[test]
fn unmap_deallocates_every_range_even_if_they_overlap() {
    let mut fixture = filled(4096);
    let list = list(&[(2, 2), (3, 2), (10, 0), (63, 1)]);
    assert_eq!(unmap(&mut fixture, &list), Ok(Vec::new()));
    for lba in 0..64 {
        assert_eq!(mapped(&fixture, lba), !matches!(lba, 2..=4 | 63), "{lba}");
    }
    assert_eq!(block(&fixture, 3), [0; 4096]);
}

#[test]
fn unmap_with_one_range_out_of_range_does_none_of_them() {
    let mut fixture = filled(4096);
    let refused = unmap(&mut fixture, &list(&[(0, 1), (63, 2)]));
    assert_eq!(codes(refused), OUT_OF_RANGE);
    assert_eq!(block(&fixture, 0), [pattern(0); 4096]);
    assert_eq!(unmap(&mut fixture, &list(&[(64, 0)])), Ok(Vec::new()));
}

#[test]
fn unmap_without_descriptors_does_nothing() {
    let mut fixture = filled(512);
    assert_eq!(unmap(&mut fixture, &[]), Ok(Vec::new()));
    assert_eq!(unmap(&mut fixture, &list(&[])), Ok(Vec::new()));
}

#[test]
fn unmap_lists_of_wrong_length_are_refused() {
    let mut fixture = filled(512);
    assert_eq!(codes(unmap(&mut fixture, &[0; 7])), (5, 0x1A, 0));
    let whole = list(&[(0, 1)]);
    assert_eq!(codes(unmap(&mut fixture, &whole[..20])), (5, 0x1A, 0));
    let short = fixture.call(&cdb10(0x42, 0, 0, 24), &whole[..16]);
    assert_eq!(codes(short), SHORT);
    assert_eq!(block(&fixture, 0), [pattern(0); 512]);
}

#[test]
fn unmap_of_too_many_descriptors_is_an_invalid_parameter() {
    let mut fixture = filled(512);
    let most = vec![(0, 1); limits::MAX_UNMAP_DESCRIPTORS as usize + 1];
    assert_eq!(unmap(&mut fixture, &list(&most[1..])), Ok(Vec::new()));
    assert_eq!(codes(unmap(&mut fixture, &list(&most))), INVALID_PARAMETER);
}

#[test]
fn unmap_with_anchor_is_an_invalid_field() {
    let mut fixture = filled(512);
    assert_eq!(codes(fixture.call(&cdb10(0x42, 1, 0, 0), &[])), INVALID_FIELD);
}
