use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const IMMEDIATE: DataRules =
    DataRules { immediate: Some(ImmediateRules { offset: 68, max_len: 8192 }), ..DataRules::SRP };

fn segment(address: u64, len: u32) -> Descriptor {
    Descriptor { address, key: 0x1234, len }
}

fn fields(formats: u8, out_count: u8, in_count: u8) -> BufferFields {
    BufferFields { formats, out_count, in_count }
}

/// An indirect area with `table_len` and `total_len`, carrying `list`.
fn indirect(table_len: u32, total_len: u32, list: &[Descriptor]) -> Vec<u8> {
    let mut bytes = segment(0x1_0000, table_len).to_bytes().to_vec();
    bytes.extend(total_len.to_be_bytes());
    bytes.extend(list.iter().flat_map(|descriptor| descriptor.to_bytes()));
    bytes
}

fn parse_in<'a>(area: &'a [u8], count: u8, rules: &DataRules) -> Result<DataBuffer<'a>, DataError> {
    DataBuffers::parse(area, 0, fields(0x02, 0, count), rules).map(|data| data.data_in)
}

fn parsed<'a>(area: &'a [u8], count: u8, rules: &DataRules) -> Indirect<'a> {
    match parse_in(area, count, rules) {
        Ok(DataBuffer::Indirect(indirect)) => indirect,
        other => panic!("not an indirect buffer: {other:?}"),
    }
}

/// A unit with immediate data: length word at 48, data at `offset`.
fn immediate(len: u32, offset: usize, data_len: usize) -> Vec<u8> {
    let mut iu = vec![0; 48];
    iu.extend(len.to_be_bytes());
    iu.resize(offset.max(52), 0xEE);
    iu.resize(iu.len() + data_len, 0xDA);
    iu
}

fn parse_immediate(iu: &[u8], offset: u16) -> Result<DataBuffers<'_>, DataError> {
    let rules =
        DataRules { immediate: Some(ImmediateRules { offset, max_len: 8192 }), ..DataRules::SRP };
    DataBuffers::parse(iu, 48, fields(0x30, 0, 0), &rules)
}

#[test]
fn descriptor_bytes_round_trip() {
    let bytes = [0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0x12, 0x34, 0, 0, 0x10, 0];
    let descriptor = Descriptor { address: 0x1_0203_0405, key: 0x1234, len: 4096 };
    assert_eq!(Descriptor::from_bytes(&bytes), descriptor);
    assert_eq!(descriptor.to_bytes(), bytes);
}

#[test]
fn parts_stay_within_the_segment() {
    let whole = segment(0x1000, 100);
    assert_eq!(whole.part(0, 100), Some(whole));
    assert_eq!(whole.part(60, 40), Some(segment(0x103C, 40)));
    assert_eq!(whole.part(100, 0), Some(segment(0x1064, 0)));
    assert_eq!(whole.part(60, 41), None);
    assert_eq!(whole.part(u32::MAX, 2), None);
}

#[test]
fn parts_beyond_the_address_space_do_not_exist() {
    assert_eq!(segment(u64::MAX, 100).part(1, 1), None);
}

#[test]
fn format_zero_takes_no_bytes_and_ignores_counts() {
    assert_eq!(
        DataBuffers::parse(&[], 0, fields(0x00, 255, 255), &DataRules::SRP),
        Ok(DataBuffers::default())
    );
}

#[test]
fn direct_descriptor_ignores_the_count() {
    let area = segment(0x1000, 512).to_bytes();
    for count in [0, 1, 255] {
        let data = DataBuffers::parse(&area, 0, fields(0x01, 0, count), &DataRules::SRP).unwrap();
        assert_eq!(data.data_in, DataBuffer::Direct(segment(0x1000, 512)));
        assert_eq!(data.data_in.capacity(), 512);
    }
}

#[test]
fn direct_descriptor_cut_by_one_byte_is_truncated() {
    let area = segment(0x1000, 512).to_bytes();
    let error = DataError::Truncated { needed: 16, got: 15 };
    for formats in [0x01, 0x10] {
        let result = DataBuffers::parse(&area[..15], 0, fields(formats, 1, 1), &DataRules::SRP);
        assert_eq!(result, Err(error));
    }
}

#[test]
fn unknown_formats_are_refused_by_direction() {
    let area = [0; 64];
    let parse = |formats| DataBuffers::parse(&area, 0, fields(formats, 0, 0), &DataRules::SRP);
    for format in 4..16 {
        assert_eq!(parse(format << 4), Err(DataError::OutFormat(format)));
        assert_eq!(parse(format), Err(DataError::InFormat(format)));
    }
    assert_eq!(parse(0x03), Err(DataError::InFormat(3)));
}

#[test]
fn data_out_area_comes_before_data_in() {
    let mut area = segment(0x1000, 1).to_bytes().to_vec();
    area.extend(indirect(16, 2, &[segment(0x2000, 2)]));
    let data = DataBuffers::parse(&area, 0, fields(0x12, 0, 1), &DataRules::SRP).unwrap();
    assert_eq!(data.data_out, DataBuffer::Direct(segment(0x1000, 1)));
    assert_eq!(data.data_in.capacity(), 2);
}

#[test]
fn list_within_the_unit_is_complete() {
    let list = [segment(0x1000, 4096), segment(0x3000, 0), segment(0x2000, 512)];
    let area = indirect(48, 4608, &list);
    let buffer = parsed(&area, 3, &DataRules::SRP);
    assert!(buffer.is_complete());
    assert_eq!(buffer.external_table(), None);
    assert_eq!((buffer.count(), buffer.capacity(), buffer.total_len()), (3, 4608, 4608));
    assert!(buffer.list().iter().eq(list));
}

#[test]
fn eleven_descriptors_of_which_ten_are_in_the_unit_need_the_table() {
    let list: Vec<_> = (0..10).map(|n| segment(n << 12, 4096)).collect();
    let area = indirect(176, 11 * 4096, &list);
    let buffer = parsed(&area, 10, &DataRules::VSCSI);
    assert_eq!(buffer.external_table(), Some(segment(0x1_0000, 176)));
    assert_eq!((buffer.list().len(), buffer.count()), (10, 11));
    assert_eq!(buffer.capacity(), 11 * 4096);
}

#[test]
fn count_beyond_the_table_is_room_not_descriptors() {
    let area = indirect(16, 4096, &[segment(0, 4096), segment(1, 1), segment(2, 2)]);
    let mut area = area;
    area.extend(segment(0x9000, 9).to_bytes());
    let data = DataBuffers::parse(&area, 0, fields(0x21, 3, 0), &DataRules::SRP).unwrap();
    let DataBuffer::Indirect(buffer) = data.data_out else { panic!("{data:?}") };
    assert!(buffer.is_complete());
    assert!(buffer.list().iter().eq([segment(0, 4096)]));
    assert_eq!(data.data_in, DataBuffer::Direct(segment(0x9000, 9)));
}

#[test]
fn freebsd_list_with_count_zero_needs_the_table() {
    let area = indirect(32, 8192, &[]);
    let buffer = parsed(&area, 0, &DataRules::VSCSI);
    assert_eq!(buffer.external_table(), Some(segment(0x1_0000, 32)));
    assert!(buffer.list().is_empty());
}

#[test]
fn count_beyond_the_unit_is_refused_over_rdma() {
    let area = indirect(48, 3, &[segment(0, 1)]);
    let error = DataError::Truncated { needed: 68, got: 36 };
    assert_eq!(parse_in(&area, 3, &DataRules::SRP), Err(error));
}

#[test]
fn count_beyond_the_unit_has_a_partition_table_fetched() {
    let mut area = indirect(48, 3, &[segment(0, 1), segment(1, 1)]);
    area.pop();
    let buffer = parsed(&area, 3, &DataRules::VSCSI);
    assert_eq!(buffer.external_table(), Some(segment(0x1_0000, 48)));
    assert!(buffer.list().iter().eq([segment(0, 1)]));
}

#[test]
fn data_in_behind_a_list_the_unit_lacks_is_truncated() {
    let area = indirect(48, 3, &[segment(0, 1)]);
    let error = DataError::Truncated { needed: 84, got: 36 };
    let result = DataBuffers::parse(&area, 0, fields(0x21, 3, 0), &DataRules::VSCSI);
    assert_eq!(result, Err(error));
}

#[test]
fn table_that_is_no_multiple_of_sixteen_is_refused() {
    for len in [1, 15, 17, u32::MAX] {
        let area = indirect(len, 512, &[segment(0, 512)]);
        assert_eq!(parse_in(&area, 1, &DataRules::SRP), Err(DataError::TableLength(len)));
        assert_eq!(parse_in(&area, 1, &DataRules::VSCSI), Err(DataError::TableLength(len)));
    }
}

#[test]
fn table_longer_than_the_limit_is_refused() {
    let area = indirect(2048 * 16, 512, &[]);
    assert_eq!(parsed(&area, 0, &DataRules::SRP).count(), 2048);
    let area = indirect(2049 * 16, 512, &[]);
    let error = DataError::TooManyDescriptors { count: 2049, max: 2048 };
    assert_eq!(parse_in(&area, 0, &DataRules::SRP), Err(error));
}

#[test]
fn capacity_is_the_smaller_of_sum_and_total() {
    let list = [segment(0, 100), segment(0, 50)];
    let short = indirect(32, 200, &list);
    assert_eq!(parsed(&short, 2, &DataRules::SRP).capacity(), 150);
    let long = indirect(32, 120, &list);
    assert_eq!(parsed(&long, 2, &DataRules::SRP).capacity(), 120);
}

#[test]
fn capacity_of_huge_segments_does_not_wrap() {
    let area = indirect(32, u32::MAX, &[segment(0, u32::MAX), segment(0, u32::MAX)]);
    assert_eq!(parsed(&area, 2, &DataRules::SRP).capacity(), u32::MAX);
}

#[test]
fn empty_table_holds_nothing_whatever_the_total() {
    let area = indirect(0, u32::MAX, &[]);
    let buffer = parsed(&area, 0, &DataRules::SRP);
    assert!(buffer.is_complete());
    assert_eq!(buffer.capacity(), 0);
}

#[test]
fn indirect_header_cut_by_one_byte_is_truncated() {
    let area = indirect(16, 512, &[]);
    let error = DataError::Truncated { needed: 20, got: 19 };
    assert_eq!(parse_in(&area[..19], 0, &DataRules::VSCSI), Err(error));
}

#[test]
fn fetched_table_is_read_as_descriptors() {
    let list = [segment(1, 2), segment(3, 4)];
    let bytes: Vec<u8> = list.iter().flat_map(|descriptor| descriptor.to_bytes()).collect();
    let table = Descriptors::from_table(&bytes).unwrap();
    assert!(table.iter().eq(list));
    assert_eq!((table.capacity(100), table.capacity(5)), (6, 5));
    assert_eq!(Descriptors::from_table(&bytes[..31]), None);
}

#[test]
fn immediate_data_starts_at_the_agreed_offset() {
    for (offset, len) in [(52, 0), (68, 512), (69, 8192)] {
        let iu = immediate(len, offset.into(), len as usize);
        let data = parse_immediate(&iu, offset).unwrap();
        let DataBuffer::Immediate(found) = data.data_out else { panic!("{data:?}") };
        assert_eq!((found.offset, found.data.len()), (offset, len as usize));
        assert!(found.data.iter().all(|&byte| byte == 0xDA));
        assert_eq!(data.data_out.capacity(), len);
    }
}

#[test]
fn immediate_offset_within_the_length_word_is_refused() {
    for offset in [0, 48, 51] {
        let iu = immediate(4, 52, 4);
        let error = DataError::ImmediateOffset { offset, end: 52 };
        assert_eq!(parse_immediate(&iu, offset), Err(error));
    }
}

#[test]
fn immediate_data_beyond_the_limit_is_refused() {
    let iu = immediate(8193, 68, 8193);
    let error = DataError::ImmediateTooLong { len: 8193, max: 8192 };
    assert_eq!(parse_immediate(&iu, 68), Err(error));
}

#[test]
fn immediate_data_one_byte_short_is_truncated() {
    let iu = immediate(512, 68, 511);
    let error = DataError::ImmediateTruncated { needed: 580, got: 579 };
    assert_eq!(parse_immediate(&iu, 68), Err(error));
}

#[test]
fn immediate_data_without_a_length_word_is_truncated() {
    let error = DataError::Truncated { needed: 52, got: 51 };
    assert_eq!(parse_immediate(&[0; 51], 68), Err(error));
}

#[test]
fn immediate_data_without_agreement_is_refused() {
    let iu = immediate(4, 68, 4);
    let result = DataBuffers::parse(&iu, 48, fields(0x30, 0, 0), &DataRules::SRP);
    assert_eq!(result, Err(DataError::ImmediateNotGranted));
}

#[test]
fn start_beyond_the_unit_is_truncated() {
    let result = DataBuffers::parse(&[0; 8], usize::MAX, fields(0x11, 0, 0), &DataRules::SRP);
    assert_eq!(result, Err(DataError::Truncated { needed: usize::MAX, got: 8 }));
}

proptest! {
    #[test]
    fn random_areas_never_panic_nor_exceed_their_rules(
        area in prop::collection::vec(any::<u8>(), 0..512),
        start in 0..64_usize,
        formats: u8, out_count: u8, in_count: u8, lenient: bool,
    ) {
        let rules = if lenient { DataRules::VSCSI } else { IMMEDIATE };
        let fields = fields(formats, out_count, in_count);
        if let Ok(data) = DataBuffers::parse(&area, start, fields, &rules) {
            for buffer in [data.data_out, data.data_in] {
                if let DataBuffer::Indirect(indirect) = buffer {
                    prop_assert!(indirect.count() <= rules.max_descriptors);
                    prop_assert!(indirect.list().len() <= indirect.count() as usize);
                    prop_assert!(indirect.capacity() <= indirect.total_len());
                }
            }
        }
    }
}
