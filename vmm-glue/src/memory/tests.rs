use super::*;
use nix::sys::memfd::{MFdFlags, memfd_create};

fn file(len: u64) -> fs::File {
    let file = fs::File::from(memfd_create("guest", MFdFlags::empty()).unwrap());
    file.set_len(len).unwrap();
    file
}

fn region(gpa: u64, size: u64) -> Region {
    Region::map(gpa, size, gpa + 0x7000_0000, 0, file(size)).unwrap()
}

fn lengths(map: &GuestMap, gpa: u64, len: u32) -> Option<Vec<usize>> {
    let mut segments = Vec::new();
    map.translate(&mut 0, gpa, len, &mut segments)
        .then(|| segments.iter().map(|segment| segment.len).collect())
}

#[test]
fn a_range_over_adjoining_regions_has_a_segment_in_each() {
    let map = GuestMap::new(vec![region(0x2000, 0x1000), region(0x1000, 0x1000)]).unwrap();
    assert_eq!(lengths(&map, 0x1ff0, 0x20), Some(vec![0x10, 0x10]));
    assert_eq!(lengths(&map, 0x1000, 0x2000), Some(vec![0x1000, 0x1000]));
    assert_eq!(lengths(&map, 0x1000, 0), Some(vec![]));
}

#[test]
fn a_range_that_leaves_memory_is_refused() {
    let map = GuestMap::new(vec![region(0x1000, 0x1000), region(0x3000, 0x1000)]).unwrap();
    assert_eq!(lengths(&map, 0x1fff, 2), None);
    assert_eq!(lengths(&map, 0x0fff, 2), None);
    assert_eq!(lengths(&map, 0x2000, 1), None);
    assert_eq!(lengths(&map, 0x3fff, u32::MAX), None);
    assert_eq!(lengths(&map, u64::MAX, 2), None);
}

#[test]
fn addresses_are_found_both_ways() {
    let map = GuestMap::new(vec![region(0x1000, 0x1000), region(0x3000, 0x1000)]).unwrap();
    let host = map.at(0x3010, 0x10).unwrap();
    assert_eq!(map.at_user(0x7000_3010, 0xff0).unwrap(), host);
    assert_eq!(map.gpa_of(host), Some(0x3010));
    assert!(map.at(0x3ff0, 0x11).is_none() && map.at_user(0x7000_3ff0, 0x11).is_none());
    assert!(map.at_user(0x7000_4000, 0).is_none());
}

#[test]
fn overlapping_regions_are_refused() {
    let error = GuestMap::new(vec![region(0x1000, 0x2000), region(0x2000, 0x1000)]).unwrap_err();
    assert!(matches!(error, MemoryError::Overlap(0x1000, 0x2000)));
}

#[test]
fn a_region_behind_the_end_of_its_file_is_refused() {
    let error = Region::map(0, 0x2000, 0, 0x1000, file(0x2000)).unwrap_err();
    assert!(matches!(error, MemoryError::Short { len: 0x2000, end: 0x3000, .. }));
    let error = Region::map(u64::MAX, 0x1000, 0, 0, file(0x1000)).unwrap_err();
    assert!(matches!(error, MemoryError::Extent { .. }));
}

#[test]
fn a_region_may_start_inside_a_page_of_its_file() {
    use std::os::unix::fs::FileExt;
    let backing = file(0x3000);
    backing.write_all_at(b"here", 0x1800).unwrap();
    let region = Region::map(0x8000, 0x1000, 0, 0x1800, backing).unwrap();
    let map = GuestMap::new(vec![region]).unwrap();
    let mut segments = Vec::new();
    assert!(map.translate(&mut 7, 0x8000, 4, &mut segments));
    let mut bytes = [0; 4];
    assert_eq!(vscsi_target::reactor::sg::gather(&segments, &mut bytes), 4);
    assert_eq!(&bytes, b"here");
}

#[test]
fn regions_come_and_go() {
    let map = GuestMap::new(vec![region(0x1000, 0x1000)]).unwrap();
    let more = map.with(region(0x2000, 0x1000)).unwrap();
    assert_eq!(lengths(&more, 0x1000, 0x2000), Some(vec![0x1000, 0x1000]));
    let less = more.without(0x1000, 0x1000, 0x7000_1000).unwrap();
    assert_eq!(lengths(&less, 0x1000, 1), None);
    let error = less.without(0x1000, 0x1000, 0x7000_1000).unwrap_err();
    assert!(matches!(error, MemoryError::Missing { gpa: 0x1000, .. }));
}

#[test]
fn a_map_knows_that_memory_of_it_is_gone_and_another_is_not_concerned() {
    let gone = file(0x4000);
    let region = |file: &fs::File| {
        Region::map(0x1000, 0x3000, 0, 0x1000, file.try_clone().unwrap()).unwrap()
    };
    let map = GuestMap::new(vec![region(&gone)]).unwrap();
    let other = GuestMap::new(vec![region(&file(0x4000))]).unwrap();
    gone.set_len(0).unwrap();
    let mut list = Vec::new();
    assert!(map.translate(&mut 0, 0x1ff0, 0x1000, &mut list) && !map.is_lost());
    let mut bytes = [1; 0x1000];
    assert_eq!(vscsi_target::reactor::sg::gather(&list, &mut bytes), 0x1000);
    assert_eq!((bytes, map.is_lost(), other.is_lost()), ([0; 0x1000], true, false));
}
