use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::descriptor::{Descriptor, Descriptors, Immediate, ImmediateRules, Indirect};
use crate::testing::round_trip;

const TAG: Tag = Tag([0, 0, 0, 0, 0, 3, 0, 7]);
const LUN: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);

/// READ(10) of one block into a direct buffer of 512 bytes, as Linux sends it.
#[rustfmt::skip]
const READ_10: [u8; 64] = [
    0x02, 0, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 0, 0, 3, 0, 7,
    0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0x80, 0, 0x10, 0, 0, 0, 0x12, 0x34, 0, 0, 2, 0,
];

const DIRECT: Descriptor = Descriptor { address: 0x8000_1000, key: 0x1234, len: 512 };

fn read_10() -> Cmd<'static> {
    Cmd {
        tag: TAG,
        notify: SolicitedNotification::default(),
        lun: LUN,
        attribute: TaskAttribute::Simple,
        cdb: &READ_10[32..48],
        data: DataBuffers { data_out: DataBuffer::None, data_in: DataBuffer::Direct(DIRECT) },
    }
}

fn parse(iu: &[u8]) -> Result<Cmd<'_>, CmdError> {
    Cmd::parse(iu, &DataRules::SRP)
}

#[test]
fn linux_read_round_trips() {
    round_trip!(READ_10, read_10(), parse, Cmd::emit);
}

#[test]
fn linux_read_becomes_a_command() {
    let command = parse(&READ_10).unwrap().command();
    assert_eq!(command.cdb[..10], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!((command.data_in, command.data_out, command.priority), (512, 0, 0));
    assert_eq!((command.tag, command.lun.number()), (TAG, Some(1)));
}

#[test]
fn slof_read_with_count_one_is_the_same_command() {
    let mut bytes = READ_10;
    bytes[7] = 1;
    assert_eq!(Cmd::parse(&bytes, &DataRules::VSCSI), Ok(read_10()));
}

/// A 32-byte CDB, direct Data-Out and an indirect Data-In list of two.
fn long_cdb_both_ways(in_count: u8) -> Vec<u8> {
    let mut bytes = READ_10[..48].to_vec();
    bytes[5] = 0x12;
    bytes[7] = in_count;
    bytes[31] = 0x10;
    bytes[32] = 0x7F;
    bytes.extend(0x10..0x20);
    bytes.extend(DIRECT.to_bytes());
    bytes.extend(Descriptor { address: 0x9000, key: 5, len: 32 }.to_bytes());
    bytes.extend(8192_u32.to_be_bytes());
    bytes.extend(Descriptor { address: 0xA000, key: 5, len: 4096 }.to_bytes());
    bytes.extend(Descriptor { address: 0xC000, key: 5, len: 4096 }.to_bytes());
    bytes
}

#[test]
fn long_cdb_with_direct_out_and_indirect_in_round_trips() {
    let bytes = long_cdb_both_ways(2);
    let list = Descriptors::from_table(&bytes[100..]).unwrap();
    let table = Descriptor { address: 0x9000, key: 5, len: 32 };
    let cmd = Cmd {
        cdb: &bytes[32..64],
        data: DataBuffers {
            data_out: DataBuffer::Direct(DIRECT),
            data_in: DataBuffer::Indirect(Indirect::new(table, 8192, list)),
        },
        ..read_10()
    };
    round_trip!(bytes, cmd, parse, Cmd::emit);
    assert_eq!(cmd.command().cdb.len(), 32);
    assert_eq!((cmd.command().data_out, cmd.command().data_in), (512, 8192));
}

#[test]
fn long_cdb_with_other_counts_takes_them_by_their_rules() {
    let external = long_cdb_both_ways(0);
    let cmd = parse(&external).unwrap();
    assert_eq!(cmd.data.data_in.capacity(), 8192);
    let DataBuffer::Indirect(list) = cmd.data.data_in else { panic!("{cmd:?}") };
    assert!(list.external_table().is_some());

    let beyond = long_cdb_both_ways(255);
    let fault = DataError::Truncated { needed: 100 + 255 * 16, got: 132 };
    assert_eq!(parse(&beyond), Err(CmdError::Data { tag: TAG, lun: LUN, fault }));
    let lenient = Cmd::parse(&beyond, &DataRules::VSCSI).unwrap();
    assert_eq!(lenient.data.data_in.capacity(), 8192);
}

#[test]
fn reserved_bits_of_the_additional_length_are_masked() {
    let mut bytes = long_cdb_both_ways(2);
    bytes[31] = 0x13;
    assert_eq!(parse(&bytes).unwrap().cdb.len(), 32);
}

#[test]
fn longest_additional_cdb_is_252_bytes() {
    let mut bytes = READ_10[..48].to_vec();
    bytes[5] = 0;
    bytes[31] = 0xFF;
    bytes.resize(48 + 252, 0x77);
    assert_eq!(parse(&bytes).unwrap().cdb.len(), 268);
    bytes.pop();
    let error = WireError::Truncated { needed: 300, got: 299 };
    assert_eq!(parse(&bytes), Err(CmdError::Wire(error)));
}

#[test]
fn header_short_by_one_byte_cannot_be_answered() {
    let error = WireError::Truncated { needed: 48, got: 47 };
    assert_eq!(parse(&READ_10[..47]), Err(CmdError::Wire(error)));
}

#[test]
fn unusable_descriptors_name_the_command_to_answer() {
    let mut bytes = READ_10;
    bytes[5] = 0x0F;
    let fault = DataError::InFormat(15);
    assert_eq!(parse(&bytes), Err(CmdError::Data { tag: TAG, lun: LUN, fault }));
}

#[test]
fn junk_in_reserved_bytes_is_ignored() {
    let mut bytes = READ_10;
    for index in [2, 3, 4, 16, 19, 28, 30] {
        bytes[index] = 0xFF;
    }
    bytes[1] = 0xF9;
    bytes[29] = 0xF8;
    assert_eq!(parse(&bytes), Ok(read_10()));
}

#[test]
fn every_attribute_of_three_bits_is_kept() {
    for code in 0..8 {
        let mut bytes = READ_10;
        bytes[29] = code;
        let cmd = parse(&bytes).unwrap();
        assert_eq!(cmd.attribute, TaskAttribute::from_code(code));
        let mut out = [0xA5; 64];
        cmd.emit(&mut out).unwrap();
        assert_eq!(out, bytes);
    }
    assert_eq!(TaskAttribute::from_code(3), TaskAttribute::Unknown(3));
}

#[test]
fn immediate_write_round_trips_with_zero_padding() {
    let mut bytes = READ_10[..48].to_vec();
    bytes[5] = 0x30;
    bytes.extend([0, 0, 0, 5]);
    bytes.resize(68, 0);
    bytes.extend(b"hello");
    let rules = DataRules {
        immediate: Some(ImmediateRules { offset: 68, max_len: 8192 }),
        ..DataRules::SRP
    };
    let data_out = DataBuffer::Immediate(Immediate { offset: 68, data: b"hello" });
    let cmd = Cmd { data: DataBuffers { data_out, data_in: DataBuffer::None }, ..read_10() };
    round_trip!(bytes, cmd, |iu| Cmd::parse(iu, &rules), Cmd::emit);
    assert_eq!(cmd.command().data_out, 5);
}

#[test]
fn cdbs_srp_cannot_carry_are_not_emitted() {
    for len in [0, 15, 17, 269, 272] {
        let cdb = vec![0; len];
        let cmd = Cmd { cdb: &cdb, ..read_10() };
        assert_eq!(cmd.emit(&mut [0; 512]), Err(CmdEmitError::CdbLength(len)));
    }
}

#[test]
fn lists_longer_than_the_count_are_not_emitted() {
    let table = vec![0; 256 * 16];
    let list = Descriptors::from_table(&table).unwrap();
    let data_in = DataBuffer::Indirect(Indirect::new(Descriptor::default(), 0, list));
    let cmd = Cmd { data: DataBuffers { data_out: DataBuffer::None, data_in }, ..read_10() };
    assert_eq!(cmd.emit(&mut [0; 8192]), Err(CmdEmitError::ListLength(256)));
}

#[test]
fn immediate_data_is_not_emitted_where_it_cannot_lie() {
    let immediate = DataBuffer::Immediate(Immediate { offset: 51, data: &[] });
    let data = DataBuffers { data_out: immediate, data_in: DataBuffer::None };
    let error = CmdEmitError::ImmediateOffset { offset: 51, end: 52 };
    assert_eq!(Cmd { data, ..read_10() }.emit(&mut [0; 512]), Err(error));
    let data = DataBuffers { data_out: DataBuffer::None, data_in: immediate };
    let result = Cmd { data, ..read_10() }.emit(&mut [0; 512]);
    assert_eq!(result, Err(CmdEmitError::ImmediateDataIn));
}

proptest! {
    #[test]
    fn what_was_parsed_emits_to_the_same_value(
        mut bytes in prop::collection::vec(any::<u8>(), 48..400),
        formats in prop::sample::select(std::vec![0, 1, 2, 0x10, 0x20, 0x30, 0x11, 0x12, 0x21, 0x22]),
        words in 0..8_u8, count in 0..4_u8, entries in 0..6_u32,
    ) {
        bytes[0] = 2;
        bytes[5] = formats;
        bytes[6] = count;
        bytes[7] = count;
        bytes[31] = words << 2;
        // Makes the first table's length plausible.
        let table = 48 + usize::from(words) * 4 + 12;
        if let Some(field) = bytes.get_mut(table..table + 4) {
            field.copy_from_slice(&(entries * 16).to_be_bytes());
        }
        let rules = DataRules {
            immediate: Some(ImmediateRules { offset: 100, max_len: u32::MAX }),
            ..DataRules::VSCSI
        };
        if let Ok(cmd) = Cmd::parse(&bytes, &rules) {
            let mut out = [0xA5; 512];
            let len = cmd.emit(&mut out).unwrap();
            prop_assert_eq!(Cmd::parse(&out[..len], &rules), Ok(cmd));
        }
    }
}
