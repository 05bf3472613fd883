use super::*;
use crate::{
    model::{Attention, lu::flag},
    sense::{Sense, Specific},
    testing::{Fixture, sense},
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io::ErrorKind};

const CONTROL: [u8; 12] = [0x0A, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];

/// A MODE SELECT(6) list with one Control page.
fn control(change: impl FnOnce(&mut [u8; 12])) -> Vec<u8> {
    let mut page = CONTROL;
    change(&mut page);
    [&[0; 4], &page[..]].concat()
}

fn select(fixture: &mut Fixture, flags: u8, list: &[u8]) -> Result<Vec<u8>, crate::opcode::Fail> {
    fixture.call(&[0x15, flags, 0, 0, list.len() as u8, 0], list)
}

fn parameter(byte: u16, bit: Option<u8>) -> Sense {
    Sense { specific: Specific::Parameter(byte, bit), ..Sense::INVALID_FIELD_IN_PARAMETERS }
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vscsi-modes-{}-{n}", std::process::id()));
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
fn mode_sense_6_gives_header_descriptor_and_page() {
    let data = Fixture::new().call(&[0x1A, 0, 0x0A, 0, 255, 0], &[]).unwrap();
    let mut expected = vec![23, 0, 0x10, 8, 0, 0, 8, 0, 0, 0, 2, 0];
    expected.extend(CONTROL);
    assert_eq!(data, expected);
}

#[test]
fn mode_sense_10_gives_long_blocks_when_allowed() {
    let data = Fixture::new().call(&[0x5A, 0x10, 0x08, 0, 0, 0, 0, 1, 0, 0], &[]).unwrap();
    let mut expected = vec![0, 42, 0, 0x10, 1, 0, 0, 16];
    expected.extend([0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    expected.extend([0x08, 0x12]);
    expected.resize(44, 0);
    assert_eq!(data, expected);
}

#[test]
fn dbd_leaves_the_descriptor_out() {
    let data = Fixture::new().call(&[0x1A, 0x08, 0x0A, 0, 255, 0], &[]).unwrap();
    assert_eq!(data[..4], [15, 0, 0x10, 0]);
    assert_eq!(data.len(), 16);
}

#[test]
fn all_pages_are_in_ascending_order_and_subpages_only_on_request() {
    let codes = |subpage| {
        let data = Fixture::new().call(&[0x5A, 8, 0x3F, subpage, 0, 0, 0, 4, 0, 0], &[]).unwrap();
        assert_eq!(usize::from(u16::from_be_bytes([data[0], data[1]])), data.len() - 2);
        let (mut at, mut codes) = (8, Vec::new());
        while at < data.len() {
            codes.push(data[at]);
            at += match data[at] & 0x40 {
                0 => 2 + usize::from(data[at + 1]),
                _ => 4 + usize::from(data[at + 3]),
            };
        }
        assert_eq!(at, data.len());
        codes
    };
    assert_eq!(codes(0), [0x01, 0x02, 0x08, 0x0A, 0x1A, 0x1C]);
    assert_eq!(codes(0xFF), [0x01, 0x02, 0x08, 0x0A, 0x4A, 0x1A, 0x1C]);
}

#[test]
fn changeable_values_are_masks() {
    let data = Fixture::new().call(&[0x1A, 0x08, 0x4A, 0, 255, 0], &[]).unwrap();
    assert_eq!(data[4..], [0x0A, 0x0A, 0x04, 0, 0x08, 0x40, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn write_cache_is_changeable_only_where_there_is_one() {
    let page = |modes: &Modes| page::PAGES[2].mask(modes.changeable())[2];
    assert_eq!(page(&Modes::new(false, None)), 0);
    assert_eq!(page(&Modes::new(true, None)), 0x04);
}

#[test]
fn a_write_cache_that_is_not_there_cannot_be_turned_on() {
    let fixture = Fixture::new();
    fixture.lu.set_write_cache(false).unwrap();
    let error = fixture.lu.set_write_cache(true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn unknown_page_and_subpage_are_invalid_fields() {
    let mut fixture = Fixture::new();
    assert_eq!(sense(fixture.call(&[0x1A, 0, 0x11, 0, 255, 0], &[])), Sense::cdb_bit(2, 5));
    assert_eq!(sense(fixture.call(&[0x1A, 0, 0x0A, 7, 255, 0], &[])), Sense::cdb_byte(3));
}

#[test]
fn saved_values_need_somewhere_to_save() {
    let result = Fixture::new().call(&[0x1A, 0, 0xCA, 0, 255, 0], &[]);
    assert_eq!(sense(result), Sense::SAVING_NOT_SUPPORTED);
}

#[test]
fn select_of_swp_write_protects_and_tells_the_others() {
    let mut fixture = Fixture::new();
    let other = fixture.another("iqn.2026-11.test:b");
    let (own, theirs) = (fixture.nexus.table(), other.table());
    let (own, theirs) = (own.at(0).unwrap(), theirs.at(0).unwrap());
    own.take_attention();
    theirs.take_attention();
    select(&mut fixture, 0x10, &control(|page| page[4] = 0x08)).unwrap();
    assert_ne!(fixture.lu.flags() & flag::WRITE_PROTECTED, 0);
    assert_eq!(own.peek_attention().0, None);
    assert_eq!(theirs.peek_attention().0, Some(Attention::MODE_PARAMETERS_CHANGED));
    let data = fixture.call(&[0x1A, 0x08, 0x0A, 0, 255, 0], &[]).unwrap();
    assert_eq!((data[2], data[8]), (0x90, 0x08));
}

#[test]
fn select_of_what_is_current_raises_no_attention() {
    let mut fixture = Fixture::new();
    let other = fixture.another("iqn.2026-11.test:b").table();
    other.at(0).unwrap().take_attention();
    select(&mut fixture, 0x10, &control(|_| ())).unwrap();
    assert_eq!(other.at(0).unwrap().peek_attention().0, None);
}

#[test]
fn select_of_an_unchangeable_bit_points_at_it_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let list = control(|page| (page[4], page[3]) = (0x08, 0x14));
    assert_eq!(sense(select(&mut fixture, 0x10, &list)), parameter(7, Some(2)));
    assert_eq!(fixture.lu.flags() & flag::WRITE_PROTECTED, 0);
}

#[test]
fn select_of_an_unknown_page_or_length_is_an_invalid_field() {
    let mut fixture = Fixture::new();
    let unknown = [0, 0, 0, 0, 0x11, 2, 0, 0];
    assert_eq!(sense(select(&mut fixture, 0x10, &unknown)), parameter(4, Some(5)));
    let length = control(|page| page[1] = 9);
    assert_eq!(sense(select(&mut fixture, 0x10, &length)), parameter(5, None));
}

#[test]
fn select_cut_off_anywhere_is_a_list_length_error() {
    let list = [&[0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 2, 0], &CONTROL[..]].concat();
    for len in 1..list.len() {
        let result = select(&mut Fixture::new(), 0x10, &list[..len]);
        // Between the descriptor and the page is a place to end.
        if len == 12 {
            assert_eq!(result, Ok(Vec::new()));
        } else {
            assert_eq!(sense(result), Sense::PARAMETER_LIST_LENGTH, "{len} bytes");
        }
    }
}

#[test]
fn select_of_nothing_is_good() {
    assert_eq!(select(&mut Fixture::new(), 0, &[]), Ok(Vec::new()));
}

#[test]
fn select_of_less_data_than_the_cdb_says_is_a_list_length_error() {
    let result = Fixture::new().call(&[0x15, 0x10, 0, 0, 16, 0], &[0; 4]);
    assert_eq!(sense(result), Sense::PARAMETER_LIST_LENGTH);
}

#[test]
fn select_of_another_block_size_or_capacity_is_an_invalid_field() {
    let mut fixture = Fixture::new();
    let size = [0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 16, 0];
    assert_eq!(sense(select(&mut fixture, 0x10, &size)), parameter(9, None));
    let capacity = [0, 0, 0, 8, 0, 0, 8, 1, 0, 0, 2, 0];
    assert_eq!(sense(select(&mut fixture, 0x10, &capacity)), parameter(4, None));
}

#[test]
fn select_without_page_format_or_place_to_save_is_an_invalid_field() {
    let mut fixture = Fixture::new();
    let list = control(|_| ());
    assert_eq!(sense(select(&mut fixture, 0x00, &list)), Sense::cdb_bit(1, 4));
    assert_eq!(sense(select(&mut fixture, 0x11, &list)), Sense::cdb_bit(1, 0));
}

#[test]
fn select_10_changes_a_page() {
    let mut fixture = Fixture::new();
    let list = [&[0; 8], &control(|page| page[2] = 0x06)[4..]].concat();
    fixture.call(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0], &list).unwrap();
    assert!(fixture.lu.state().modes.descriptor_sense());
}

#[test]
fn saved_values_survive_and_come_back_with_a_reset() {
    let directory = Directory::new();
    let mut fixture = Fixture::saving_in(&directory.0);
    select(&mut fixture, 0x11, &control(|page| page[5] = 0x40)).unwrap();
    select(&mut fixture, 0x10, &control(|_| ())).unwrap();
    assert!(!fixture.lu.state().modes.task_aborted_status());
    let data = fixture.call(&[0x1A, 0x08, 0xCA, 0, 255, 0], &[]).unwrap();
    assert_eq!((data[4], data[9]), (0x8A, 0x40));
    fixture.lu.update(|state| state.modes.reset());
    assert!(fixture.lu.state().modes.task_aborted_status());

    let saved = load(&file(&fixture.lu.config).unwrap()).unwrap();
    assert!(Modes::for_backend(fixture.lu.backend.properties(), saved).task_aborted_status());
}

#[test]
fn nothing_saved_loads_as_nothing() {
    let directory = Directory::new();
    assert!(load(&directory.0.join("none")).unwrap().is_none());
}

#[test]
fn damaged_or_foreign_file_is_an_error() {
    let directory = Directory::new();
    let path = directory.0.join("modes");
    fs::write(&path, "{\"version\":").unwrap();
    assert!(matches!(load(&path), Err(SaveError::Content { .. })));
    let settings = Modes::default().current;
    let text = serde_json::to_vec(&Saved { version: 2, settings }).unwrap();
    fs::write(&path, text).unwrap();
    assert!(matches!(load(&path), Err(SaveError::Version { version: 2, .. })));
}
