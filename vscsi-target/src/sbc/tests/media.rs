//! Capacity, LBA status, cache, defects.

use super::*;
use libsrp::Status;

#[test]
fn read_capacity_10_gives_the_last_block_and_the_block_size() {
    let mut fixture = filled(4096);
    let data = fixture.call(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(data, [0, 0, 0, 63, 0, 0, 0x10, 0]);
}

#[test]
fn read_capacity_10_of_a_large_medium_gives_all_ones() {
    let null = crate::backend::Null::new(3 << 40, 512);
    let mut fixture = Fixture::over(Backend::Null(null));
    let data = fixture.call(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(data[..4], [0xFF; 4]);
    let data = fixture.call(&cdb16(0x9E, 0x10, 0, 32), &[]).unwrap();
    assert_eq!(data[..8], ((3u64 << 31) - 1).to_be_bytes());
}

#[test]
fn read_capacity_with_an_address_but_no_pmi_is_an_invalid_field() {
    let mut fixture = filled(512);
    let address = fixture.call(&[0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[]);
    assert_eq!(codes(address), INVALID_FIELD);
    let pmi = fixture.call(&[0x25, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[]).unwrap();
    assert_eq!(pmi[..4], [0, 0, 1, 0xFF]);
}

#[test]
fn read_capacity_16_tells_provisioning_and_physical_blocks() {
    let mut fixture = filled(512);
    let data = fixture.call(&cdb16(0x9E, 0x10, 0, 32), &[]).unwrap();
    assert_eq!(data.len(), 32);
    assert_eq!(data[..12], [0, 0, 0, 0, 0, 0, 1, 0xFF, 0, 0, 2, 0]);
    let physical = fixture.lu.backend.properties().physical_block_size;
    assert_eq!(512 << data[13], physical);
    assert_eq!(data[14..16], [0xC0, 0], "LBPME and LBPRZ, lowest aligned LBA 0");
}

#[test]
fn lba_status_tells_mapped_from_deallocated_in_merged_runs() {
    let mut fixture = filled(4096);
    fixture.lu.backend.unmap(4 * 4096, 2 * 4096).unwrap();
    fixture.lu.backend.unmap(6 * 4096, 4096).unwrap();
    let data = fixture.call(&cdb16(0x9E, 0x12, 2, 4096), &[]).unwrap();
    let mut expected = vec![0, 0, 0, 4 + 3 * 16, 0, 0, 0, 0];
    for (lba, blocks, status) in [(2u64, 2u32, 0u8), (4, 3, 1), (7, 57, 0)] {
        expected.extend(lba.to_be_bytes());
        expected.extend(blocks.to_be_bytes());
        expected.extend([status, 0, 0, 0]);
    }
    assert_eq!(data, expected);
}

#[test]
fn lba_status_gives_one_descriptor_to_an_initiator_with_room_for_none() {
    let mut fixture = filled(4096);
    fixture.lu.backend.unmap(0, 4096).unwrap();
    for room in [0, 8, 24, 39] {
        let data = fixture.call(&cdb16(0x9E, 0x12, 0, room), &[]).unwrap();
        assert_eq!(data.len(), 24, "{room}");
        assert_eq!(data[8..21], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}

#[test]
fn lba_status_of_more_blocks_than_a_descriptor_counts_is_split() {
    let null = crate::backend::Null::new(3 << 41, 512);
    let mut fixture = Fixture::over(Backend::Null(null));
    let data = fixture.call(&cdb16(0x9E, 0x12, 0, 4096), &[]).unwrap();
    let blocks: u64 = data[8..].chunks(16).map(|at| crate::engine::call::be(at, 8, 4)).sum();
    assert_eq!(blocks, 3 << 32);
    assert_eq!(data[24..32], u64::from(u32::MAX).to_be_bytes());
}

#[test]
fn lba_status_behind_the_last_block_is_out_of_range() {
    let mut fixture = filled(512);
    assert!(fixture.call(&cdb16(0x9E, 0x12, 511, 24), &[]).is_ok());
    assert_eq!(codes(fixture.call(&cdb16(0x9E, 0x12, 512, 24), &[])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&cdb16(0x9E, 0x12, u64::MAX, 24), &[])), OUT_OF_RANGE);
}

#[test]
fn synchronize_cache_takes_any_range_inside_the_medium() {
    let mut fixture = filled(512);
    for flags in [0, 2, 4, 6] {
        assert!(fixture.call(&cdb10(0x35, flags, 0, 0), &[]).is_ok());
        assert!(fixture.call(&cdb16(0x91, flags, 511, 1), &[]).is_ok());
        assert_eq!(codes(fixture.call(&cdb10(0x35, flags, 512, 1), &[])), OUT_OF_RANGE);
        assert_eq!(codes(fixture.call(&cdb16(0x91, flags, 513, 0), &[])), OUT_OF_RANGE);
    }
}

#[test]
fn prefetch_meets_its_condition_and_checks_the_range() {
    let mut fixture = filled(512);
    let met = Err(Fail::Status(Status::CONDITION_MET));
    assert_eq!(fixture.call(&cdb10(0x34, 0, 0, 0), &[]), met);
    assert_eq!(fixture.call(&cdb16(0x90, 2, 500, 12), &[]), met);
    assert_eq!(codes(fixture.call(&cdb10(0x34, 0, 500, 13), &[])), OUT_OF_RANGE);
    assert_eq!(codes(fixture.call(&cdb16(0x90, 0, u64::MAX, 1), &[])), OUT_OF_RANGE);
}

#[test]
fn prefetch_of_more_than_is_worth_fetching_is_only_good() {
    let null = crate::backend::Null::new(1 << 40, 512);
    let mut fixture = Fixture::over(Backend::Null(null));
    assert_eq!(fixture.call(&cdb16(0x90, 0, 0, 0), &[]), Ok(Vec::new()));
}

#[test]
fn defect_lists_are_empty_in_the_format_asked_for() {
    let mut fixture = filled(512);
    let ten = fixture.call(&[0x37, 0, 0x1D, 0, 0, 0, 0, 0, 32, 0], &[]).unwrap();
    assert_eq!(ten, [0, 0x1D, 0, 0]);
    let twelve = fixture.call(&[0xB7, 0x08, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]).unwrap();
    assert_eq!(twelve, [0, 0x08, 0, 0, 0, 0, 0, 0]);
    let vendor = fixture.call(&[0x37, 0, 0x1E, 0, 0, 0, 0, 0, 32, 0], &[]);
    assert_eq!(codes(vendor), INVALID_FIELD);
}
