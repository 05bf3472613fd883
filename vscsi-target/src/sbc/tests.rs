//! Tests of the handlers, through the opcode table and on a RAM medium.

mod atomic;
mod media;
mod medium;
mod provisioning;
mod sweeping;
mod verify;

use super::{Doing, sense_of};
use crate::{
    backend::{Backend, Mem},
    opcode::{Access, Fail, Lane, Row, flag},
    sense::{Sense, key},
    testing::Fixture,
};
use proptest::prelude::*;
use std::io;

/// A medium of 256 KiB where every byte of block `n` is `n + 1` (mod 256).
fn filled(block_size: u32) -> Fixture {
    let fixture = Fixture::over(Backend::Mem(Mem::new(LEN, block_size).unwrap()));
    let mut all = vec![0; LEN as usize];
    for (n, block) in all.chunks_mut(block_size as usize).enumerate() {
        block.fill(pattern(n as u64));
    }
    fixture.lu.backend.write_at(0, &all).unwrap();
    fixture
}

/// What every byte of a block of [`filled`] is.
fn pattern(lba: u64) -> u8 {
    lba.wrapping_add(1) as u8
}

fn content(fixture: &Fixture) -> Vec<u8> {
    let mut all = vec![0; LEN as usize];
    fixture.lu.backend.read_at(0, &mut all).unwrap();
    all
}

/// The content of one block.
fn block(fixture: &Fixture, lba: u64) -> Vec<u8> {
    let size = fixture.lu.block_size();
    let mut block = vec![0; size as usize];
    fixture.lu.backend.read_at(lba * u64::from(size), &mut block).unwrap();
    block
}

/// A ten-byte CDB with address and length where READ(10) has them.
fn cdb10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// A sixteen-byte CDB with address and length where READ(16) has them.
fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// Sense key, additional sense code and qualifier of a refusal.
fn codes(result: Result<Vec<u8>, Fail>) -> (u8, u8, u8) {
    let sense = crate::testing::sense(result);
    (sense.key, sense.asc, sense.ascq)
}

const LEN: u64 = 256 << 10;

const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);
const INVALID_FIELD: (u8, u8, u8) = (5, 0x24, 0);
const INVALID_PARAMETER: (u8, u8, u8) = (5, 0x26, 0);
const SHORT: (u8, u8, u8) = (5, 0x0E, 3);

#[test]
fn backend_errors_become_the_sense_that_says_what_to_do() {
    let of = |kind: io::ErrorKind, doing| sense_of(&kind.into(), doing);
    let full = of(io::ErrorKind::StorageFull, Doing::Writing(7));
    assert_eq!(full, Sense::SPACE_EXHAUSTED);
    let read_only = of(io::ErrorKind::ReadOnlyFilesystem, Doing::Writing(7));
    assert_eq!(read_only, Sense::WRITE_PROTECTED);
    let read = of(io::ErrorKind::Other, Doing::Reading(7));
    assert_eq!(read, Sense::READ_ERROR.with_information(7));
    let write = of(io::ErrorKind::Other, Doing::Writing(7));
    assert_eq!(write, Sense::WRITE_ERROR.with_information(7));
    assert_eq!(of(io::ErrorKind::Other, Doing::Flushing), Sense::WRITE_ERROR);
    // A file that cannot be read is not a write-protected one.
    let denied = of(io::ErrorKind::PermissionDenied, Doing::Reading(7));
    assert_eq!(denied.key, key::MEDIUM_ERROR);
}

#[test]
fn what_changes_the_medium_is_refused_on_a_write_protected_unit() {
    let changing =
        [0x04, 0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x89, 0x8A, 0x8B, 0x8E, 0x93, 0x9C, 0xAA, 0xAE];
    for opcode in changing {
        let row = Row::of(opcode, None).unwrap();
        assert!(row.has(flag::WRITES), "{}", row.name);
        assert_eq!(row.access, Access::Write, "{}", row.name);
    }
    for opcode in [0x08, 0x28, 0x2F, 0x34, 0x35, 0x88, 0x8F, 0x90, 0x91, 0xA8, 0xAF] {
        let row = Row::of(opcode, None).unwrap();
        assert!(!row.has(flag::WRITES), "{}", row.name);
    }
    for action in [1, 2] {
        assert!(Row::of(0x48, Some(action)).unwrap().has(flag::WRITES));
    }
}

#[test]
fn every_opcode_refuses_bits_that_are_not_evaluated() {
    for row in crate::opcode::TABLE.iter().filter(|row| row.spec.starts_with("SBC")) {
        for (at, used) in row.usage.iter().enumerate().skip(1) {
            for bit in (0..8).filter(|bit| used & 1 << bit == 0) {
                let mut cdb = row.usage.to_vec();
                cdb[at] |= 1 << bit;
                let lun_bits = at == 1 && cdb.len() == 6 && bit >= 5;
                let action = at == 1 && row.service_action.is_some() && bit < 5;
                if !lun_bits && !action {
                    let refused = Row::find(&cdb).unwrap_err();
                    assert_eq!((refused.asc, refused.ascq), (0x24, 0), "{} {at} {bit}", row.name);
                }
            }
        }
    }
}

/// A CDB of one of our rows, with only evaluated bits set, addresses often near the medium's edges.
fn cdb() -> impl Strategy<Value = Vec<u8>> {
    let rows: Vec<&'static Row> = crate::opcode::TABLE
        .iter()
        .filter(|row| row.spec.starts_with("SBC"))
        // They work on the whole medium, whatever the CDB.
        .filter(|row| !matches!(row.opcode, 0x04 | 0x48))
        .collect();
    (prop::sample::select(rows), prop::collection::vec(any::<u8>(), 32), any::<bool>(), 0..520u64)
        .prop_map(|(row, noise, near, lba)| {
            let mut cdb: Vec<u8> =
                row.usage.iter().zip(noise).map(|(used, noise)| used & noise).collect();
            cdb[0] = row.opcode;
            if let Some(action) = row.service_action {
                cdb[1] = cdb[1] & 0xE0 | action as u8;
            }
            if near {
                let width = match cdb.len() {
                    16 => 8,
                    10 | 12 => 4,
                    _ => 0,
                };
                let used: Vec<u8> = row.usage[2..2 + width].to_vec();
                for (i, byte) in lba.to_be_bytes()[8 - width..].iter().enumerate() {
                    cdb[2 + i] = byte & used[i];
                }
                // Short lengths: only their last two bytes, and those small.
                let length = match cdb.len() {
                    16 if row.opcode == 0x89 => 13..14,
                    16 if row.opcode == 0x9C => 12..14,
                    16 => 10..14,
                    12 => 6..10,
                    _ => 7..9,
                };
                if width > 0 {
                    let last = length.end - 1;
                    cdb[length.start..last].fill(0);
                    cdb[last] &= 0x0F;
                }
            }
            cdb
        })
}

/// The blocks that a command which changes the medium may change.
fn may_change(cdb: &[u8], data: &[u8]) -> Vec<(u64, u64)> {
    let row = Row::find(cdb).unwrap();
    if !row.has(flag::WRITES) {
        return Vec::new();
    }
    match row.lane {
        Lane::Exclusive(range) => vec![range(cdb)],
        _ if row.opcode == 0x42 => data
            .get(8..)
            .unwrap_or_default()
            .chunks_exact(16)
            .map(|at| {
                let lba = crate::engine::call::be(at, 0, 8);
                (lba, crate::engine::call::be(at, 8, 4))
            })
            .collect(),
        _ => vec![super::rw::range(cdb)],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_cdbs_never_panic_and_never_touch_other_blocks(
        cdb in cdb(),
        data in prop::collection::vec(any::<u8>(), 0..20_000),
        list in any::<bool>(),
        whole in any::<bool>(),
        big in any::<bool>(),
    ) {
        let block_size = if big { 4096 } else { 512 };
        let mut fixture = filled(block_size);
        let mut data = data;
        if whole {
            data.resize(64 << 10, 0x5A);
        }
        if list {
            // A plausible UNMAP list: two descriptors of small ranges.
            data.resize(data.len().max(40), 0);
            data[2..4].copy_from_slice(&32u16.to_be_bytes());
            for at in [8, 24] {
                data[at..at + 6].fill(0);
                data[at + 6] &= 1;
                data[at + 8..at + 11].fill(0);
            }
        }
        let before = content(&fixture);
        let _ = fixture.call(&cdb, &data);
        let after = content(&fixture);
        let size = block_size as usize;
        let allowed = may_change(&cdb, &data);
        for (lba, (old, new)) in before.chunks(size).zip(after.chunks(size)).enumerate() {
            let lba = lba as u64;
            let named = allowed
                .iter()
                .any(|&(first, blocks)| lba >= first && lba - first < blocks);
            prop_assert!(named || old == new, "{:02x?} changed block {}", cdb, lba);
        }
    }
}
