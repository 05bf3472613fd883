use super::*;
use crate::memory::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;

const START: u64 = 0x4000_0000;

/// A window of eight pages over memory at 0x1000 to 0x5000.
fn window() -> Arc<Window> {
    let file = File::from(memfd_create("guest", MFdFlags::empty()).unwrap());
    file.set_len(0x4000).unwrap();
    let region = Region::map(0x1000, 0x4000, 0, 0, file).unwrap();
    Window::new(Arc::new(GuestMap::new(vec![region]).unwrap()), 7, START, 8)
}

fn lengths(window: &Window, ioba: u64, len: u32, access: Access) -> Result<Vec<usize>, Fault> {
    let (map, _) = window.map();
    let mut into = Vec::new();
    let result = window.resolve(&map, &mut 0, ioba, len, access, &mut into);
    assert!(result.is_ok() || into.is_empty());
    result.map(|()| into.iter().map(|segment| segment.len).collect())
}

#[test]
fn entries_are_written_one_by_one_and_in_runs() {
    let window = window();
    assert_eq!(window.liobn(), 7);
    assert_eq!(window.put_tce(START + 0x1FFF, 0x2003), Hcall::Success);
    assert_eq!(window.get_tce(START + 0x1000), Some(0x2003));
    assert_eq!(window.stuff_tce(START + 0x2000, 0x3001, 6), Hcall::Success);
    assert_eq!(window.get_tce(START + 0x7000), Some(0x3001));
    assert_eq!(window.put_tce_list(START, &[1, 2]), Hcall::Success);
    assert_eq!((window.get_tce(START), window.get_tce(START + 0x1000)), (Some(1), Some(2)));
    window.clear();
    assert_eq!(window.get_tce(START + 0x7000), Some(0));
}

#[test]
fn entries_outside_of_the_window_are_refused_whole() {
    let window = window();
    assert_eq!(window.put_tce(START - 1, 3), Hcall::Parameter);
    assert_eq!(window.put_tce(START + 0x8000, 3), Hcall::Parameter);
    assert_eq!(window.stuff_tce(START + 0x7000, 3, 2), Hcall::Parameter);
    assert_eq!(window.stuff_tce(START, 3, u64::MAX), Hcall::Parameter);
    assert_eq!(window.put_tce_list(u64::MAX, &[3]), Hcall::Parameter);
    assert_eq!(window.get_tce(START + 0x7000), Some(0));
    assert_eq!(window.get_tce(START + 0x8000), None);
}

#[test]
fn neighbours_in_memory_are_one_segment_and_others_are_not() {
    let window = window();
    let _ = window.put_tce_list(START, &[0x1003, 0x2003, 0x4003, 0x3003]);
    assert_eq!(lengths(&window, START + 0x10, 0x1FF0, Access::Both), Ok(vec![0x1FF0]));
    let all = lengths(&window, START, 0x4000, Access::Both);
    assert_eq!(all, Ok(vec![0x2000, 0x1000, 0x1000]));
    assert_eq!(lengths(&window, START, 0, Access::Both), Ok(vec![]));
}

#[test]
fn each_fault_has_its_name() {
    let window = window();
    let _ = window.put_tce_list(START, &[0x1001, 0x2002, 0x9003]);
    let (read, write, both) = (Access::Read, Access::Write, Access::Both);
    assert_eq!(lengths(&window, START, 8, read), Ok(vec![8]));
    assert_eq!(lengths(&window, START, 8, write), Err(Fault::Permission(START)));
    assert_eq!(lengths(&window, START, 8, both), Err(Fault::Permission(START)));
    assert_eq!(lengths(&window, START + 0x1000, 8, write), Ok(vec![8]));
    let second = START + 0x1000;
    assert_eq!(lengths(&window, second, 8, read), Err(Fault::Permission(second)));
    assert_eq!(lengths(&window, START, 0x1001, read), Err(Fault::Permission(second)));
    let none = START + 0x2008;
    assert_eq!(lengths(&window, none, 8, both), Err(Fault::NoMemory(none)));
    let unmapped = START + 0x3000;
    assert_eq!(lengths(&window, unmapped, 8, read), Err(Fault::Unmapped(unmapped)));
    assert_eq!(lengths(&window, START - 8, 8, read), Err(Fault::Outside(START - 8)));
    let end = START + 0x8000;
    assert_eq!(lengths(&window, end, 8, read), Err(Fault::Outside(end)));
    let last = u64::MAX - 3;
    assert_eq!(lengths(&window, last, 8, read), Err(Fault::Outside(last)));
}

#[test]
fn a_fault_in_a_later_part_leaves_the_list_as_it_was() {
    let window = window();
    let _ = window.put_tce_list(START, &[0x1003, 0x2003]);
    let (map, _) = window.map();
    let mut into = Vec::new();
    window.resolve(&map, &mut 0, START, 0x1000, Access::Both, &mut into).unwrap();
    let fault = window.resolve(&map, &mut 0, START + 0x1000, 0x1001, Access::Both, &mut into);
    assert_eq!(fault, Err(Fault::Unmapped(START + 0x2000)));
    assert_eq!((into.len(), into[0].len), (1, 0x1000));
}

#[test]
fn a_bypassed_window_needs_no_entries() {
    let window = window();
    window.set_bypass(true);
    assert_eq!(lengths(&window, 0x1FF0, 0x20, Access::Both), Ok(vec![0x20]));
    assert_eq!(lengths(&window, START, 8, Access::Read), Err(Fault::NoMemory(START)));
    window.clear();
    assert_eq!(lengths(&window, 0x1FF0, 8, Access::Read), Err(Fault::Outside(0x1FF0)));
}
