//! The rows of SBC commands.
//!
//! Clause numbers are those of SBC-4. RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT, RARC, ANCHOR,
//! ZNR and ATOMIC BOUNDARY stand in no usage map: what they ask for is not supported, so a CDB that
//! sets them is refused with INVALID FIELD IN CDB.

use crate::{
    opcode::{Access, Lane, Length, Row, Transfer, flag},
    sbc::{
        atomic, cache, capacity, defects, format, media_lane, medium, provisioning, rw, sanitize,
        verify,
    },
};

/// In the order of their opcodes.
pub const ROWS: &[Row] = &[
    Row {
        opcode: 0x04,
        name: "FORMAT UNIT",
        usage: &[0x04, 0xFF, 0, 0, 0, CONTROL],
        transfer: Transfer::OutBy(format::data_out),
        handler: format::format_unit,
        spec: "SBC-4 5.3",
        ..LONG
    },
    Row {
        opcode: 0x08,
        name: "READ(6)",
        usage: &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.15",
        ..READ
    },
    Row {
        opcode: 0x0A,
        name: "WRITE(6)",
        usage: &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.39",
        ..WRITE
    },
    Row {
        opcode: 0x1B,
        name: "START STOP UNIT",
        usage: &[0x1B, 0x01, 0, 0x0F, 0xF7, CONTROL],
        access: Access::NotLegacy,
        flags: flag::NOT_READY_OK,
        handler: medium::start_stop,
        spec: "SBC-4 5.31",
        ..WORK
    },
    Row {
        opcode: 0x1E,
        name: "PREVENT ALLOW MEDIUM REMOVAL",
        usage: &[0x1E, 0, 0, 0, 0x01, CONTROL],
        access: Access::NotLegacy,
        lane: Lane::Inline,
        flags: flag::NOT_READY_OK,
        handler: medium::prevent_allow,
        spec: "SBC-4 5.14",
        ..WORK
    },
    Row {
        opcode: 0x25,
        name: "READ CAPACITY(10)",
        usage: &[0x25, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, CONTROL],
        access: Access::Always,
        transfer: Transfer::In(Length::Fixed(8)),
        lane: Lane::Inline,
        handler: capacity::read_capacity_10,
        spec: "SBC-4 5.20",
        ..WORK
    },
    Row {
        opcode: 0x28,
        name: "READ(10)",
        usage: &[0x28, DPO | FUA | FUA_NV, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.16",
        ..READ
    },
    Row {
        opcode: 0x2A,
        name: "WRITE(10)",
        usage: &[0x2A, DPO | FUA | FUA_NV, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.40",
        ..WRITE
    },
    Row {
        opcode: 0x2E,
        name: "WRITE AND VERIFY(10)",
        usage: &[0x2E, DPO | 0x02, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.46",
        ..VERIFIED
    },
    Row {
        opcode: 0x2F,
        name: "VERIFY(10)",
        usage: &[0x2F, DPO | 0x06, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        spec: "SBC-4 5.34",
        ..VERIFY
    },
    Row {
        opcode: 0x34,
        name: "PRE-FETCH(10)",
        usage: &[0x34, IMMED, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        handler: cache::prefetch,
        spec: "SBC-4 5.12",
        ..WORK
    },
    Row {
        opcode: 0x35,
        name: "SYNCHRONIZE CACHE(10)",
        usage: &[0x35, IMMED | SYNC_NV, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        access: Access::Write,
        handler: cache::synchronize,
        spec: "SBC-4 5.32",
        ..WORK
    },
    Row {
        opcode: 0x37,
        name: "READ DEFECT DATA(10)",
        usage: &[0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::In(Length::U16(7)),
        lane: Lane::Inline,
        handler: defects::read_defect_data_10,
        spec: "SBC-4 5.22",
        ..WORK
    },
    Row {
        opcode: 0x41,
        name: "WRITE SAME(10)",
        usage: &[0x41, UNMAP, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::OutBy(provisioning::write_same_data),
        flags: flag::WRITES | flag::EXACT_OUT,
        handler: provisioning::write_same,
        spec: "SBC-4 5.50",
        ..CHANGE
    },
    Row {
        opcode: 0x42,
        name: "UNMAP",
        usage: &[0x42, 0, 0, 0, 0, 0, GROUP, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::Out(Length::U16(7)),
        handler: provisioning::unmap,
        spec: "SBC-4 5.35",
        ..CHANGE
    },
    Row {
        opcode: 0x48,
        service_action: Some(0x01),
        name: "SANITIZE (OVERWRITE)",
        usage: &[0x48, 0xA0 | 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::Out(Length::U16(7)),
        handler: sanitize::overwrite,
        spec: "SBC-4 5.30",
        ..LONG
    },
    Row {
        opcode: 0x48,
        service_action: Some(0x02),
        name: "SANITIZE (BLOCK ERASE)",
        usage: &[0x48, 0xA0 | 0x02, 0, 0, 0, 0, 0, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::Out(Length::U16(7)),
        handler: sanitize::block_erase,
        spec: "SBC-4 5.30",
        ..LONG
    },
    Row {
        opcode: 0x48,
        service_action: Some(0x1F),
        name: "SANITIZE (EXIT FAILURE MODE)",
        usage: &[0x48, 0xA0 | 0x1F, 0, 0, 0, 0, 0, 0xFF, 0xFF, CONTROL],
        transfer: Transfer::Out(Length::U16(7)),
        lane: Lane::Inline,
        flags: flag::NOT_READY_OK,
        handler: sanitize::exit_failure_mode,
        spec: "SBC-4 5.30",
        ..LONG
    },
    Row {
        opcode: 0x88,
        name: "READ(16)",
        usage: &[
            0x88,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.18",
        ..READ
    },
    Row {
        opcode: 0x89,
        name: "COMPARE AND WRITE",
        usage: &[
            0x89,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0,
            0,
            0,
            0xFF,
            GROUP,
            CONTROL,
        ],
        transfer: Transfer::OutBy(atomic::compare_and_write_data),
        lane: Lane::Exclusive(atomic::compare_and_write_range),
        flags: flag::WRITES | flag::EXACT_OUT | flag::ONCE,
        handler: atomic::compare_and_write,
        spec: "SBC-4 5.3",
        ..CHANGE
    },
    Row {
        opcode: 0x8A,
        name: "WRITE(16)",
        usage: &[
            0x8A,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.42",
        ..WRITE
    },
    Row {
        opcode: 0x8B,
        name: "ORWRITE(16)",
        usage: &[
            0x8B,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        transfer: Transfer::OutBy(rw::data_out),
        lane: Lane::Exclusive(rw::range),
        handler: atomic::orwrite,
        spec: "SBC-4 5.9",
        ..CHANGE
    },
    Row {
        opcode: 0x8E,
        name: "WRITE AND VERIFY(16)",
        usage: &[
            0x8E,
            DPO | 0x02,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.48",
        ..VERIFIED
    },
    Row {
        opcode: 0x8F,
        name: "VERIFY(16)",
        usage: &[
            0x8F,
            DPO | 0x06,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.36",
        ..VERIFY
    },
    Row {
        opcode: 0x90,
        name: "PRE-FETCH(16)",
        usage: &[
            0x90, IMMED, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
            GROUP, CONTROL,
        ],
        handler: cache::prefetch,
        spec: "SBC-4 5.13",
        ..WORK
    },
    Row {
        opcode: 0x91,
        name: "SYNCHRONIZE CACHE(16)",
        usage: &[
            0x91,
            IMMED | SYNC_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        access: Access::Write,
        handler: cache::synchronize,
        spec: "SBC-4 5.33",
        ..WORK
    },
    Row {
        opcode: 0x93,
        name: "WRITE SAME(16)",
        usage: &[
            0x93,
            UNMAP | NDOB,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        transfer: Transfer::OutBy(provisioning::write_same_data),
        flags: flag::WRITES | flag::EXACT_OUT,
        handler: provisioning::write_same,
        spec: "SBC-4 5.51",
        ..CHANGE
    },
    Row {
        opcode: 0x9C,
        name: "WRITE ATOMIC(16)",
        usage: &[
            0x9C,
            DPO | FUA,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0,
            0,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        transfer: Transfer::OutBy(atomic::write_atomic_data),
        lane: Lane::Exclusive(atomic::write_atomic_range),
        handler: atomic::write_atomic,
        spec: "SBC-4 5.44",
        ..CHANGE
    },
    Row {
        opcode: 0x9E,
        service_action: Some(0x10),
        name: "READ CAPACITY(16)",
        usage: &[
            0x9E, 0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
            0x01, CONTROL,
        ],
        access: Access::Always,
        transfer: Transfer::In(Length::U32(10)),
        lane: Lane::Inline,
        handler: capacity::read_capacity_16,
        spec: "SBC-4 5.21",
        ..WORK
    },
    Row {
        opcode: 0x9E,
        service_action: Some(0x12),
        name: "GET LBA STATUS(16)",
        usage: &[
            0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0,
            CONTROL,
        ],
        transfer: Transfer::In(Length::U32(10)),
        handler: capacity::get_lba_status,
        spec: "SBC-4 5.6",
        ..WORK
    },
    Row {
        opcode: 0xA8,
        name: "READ(12)",
        usage: &[
            0xA8,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.17",
        ..READ
    },
    Row {
        opcode: 0xAA,
        name: "WRITE(12)",
        usage: &[
            0xAA,
            DPO | FUA | FUA_NV,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            GROUP,
            CONTROL,
        ],
        spec: "SBC-4 5.41",
        ..WRITE
    },
    Row {
        opcode: 0xAE,
        name: "WRITE AND VERIFY(12)",
        usage: &[0xAE, DPO | 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, CONTROL],
        spec: "SBC-4 5.47",
        ..VERIFIED
    },
    Row {
        opcode: 0xAF,
        name: "VERIFY(12)",
        usage: &[0xAF, DPO | 0x06, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, GROUP, CONTROL],
        spec: "SBC-4 5.35",
        ..VERIFY
    },
    Row {
        opcode: 0xB7,
        name: "READ DEFECT DATA(12)",
        usage: &[0xB7, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, CONTROL],
        transfer: Transfer::In(Length::U32(6)),
        lane: Lane::Inline,
        handler: defects::read_defect_data_12,
        spec: "SBC-4 5.23",
        ..WORK
    },
];

/// Reads the medium or its state, may wait.
const WORK: Row = Row {
    opcode: 0,
    service_action: None,
    name: "",
    usage: &[],
    access: Access::Read,
    transfer: Transfer::None,
    lane: Lane::Worker,
    flags: 0,
    handler: media_lane,
    spec: "",
};

const READ: Row = Row { transfer: Transfer::Blocks, lane: Lane::Read, ..WORK };

const WRITE: Row = Row { lane: Lane::Write, transfer: Transfer::Blocks, ..CHANGE };

/// Changes the medium, may wait.
const CHANGE: Row = Row { access: Access::Write, flags: flag::WRITES, ..WORK };

const VERIFY: Row =
    Row { transfer: Transfer::OutBy(verify::data_out), handler: verify::verify, ..WORK };

const VERIFIED: Row =
    Row { transfer: Transfer::OutBy(rw::data_out), handler: verify::write_and_verify, ..CHANGE };

/// Works on the whole medium, long enough never to be done on a reactor. Readiness is the handler's
/// own business: the failure of one such operation is no obstacle to the next.
const LONG: Row = Row {
    lane: Lane::Exclusive(whole_medium),
    flags: flag::WRITES | flag::NOT_READY_OK | flag::PERSISTS | flag::ONCE,
    ..CHANGE
};

fn whole_medium(_cdb: &[u8]) -> (u64, u64) {
    (0, u64::MAX)
}

/// Of the CONTROL byte NACA is evaluated.
const CONTROL: u8 = 0x04;
/// GROUP NUMBER: taken, and of no effect.
const GROUP: u8 = 0x3F;
const DPO: u8 = 0x10;
const FUA: u8 = 0x08;
/// Obsolete, still set by initiators of SBC-3: FUA where there is no non-volatile cache, and there
/// is none.
const FUA_NV: u8 = 0x02;
/// Obsolete like [`FUA_NV`].
const SYNC_NV: u8 = 0x04;
const IMMED: u8 = 0x02;
const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;
