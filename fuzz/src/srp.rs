//! libsrp: information units, descriptors, queue elements and datagrams.

use libsrp::cmd::{Cmd, SolicitedNotification};
use libsrp::descriptor::{
    BufferFields, DataBuffer, DataBuffers, DataRules, Descriptor, Descriptors, Immediate,
    ImmediateRules, Indirect,
};
use libsrp::iu::{InitiatorIu, TargetIu};
use libsrp::login::{BufferFormats, LoginReq, MultiChannelAction, PortId};
use libsrp::rsp::{ResidualFlavour, Rsp};
use libsrp::tsk_mgmt::{FunctionCode, TskMgmt};
use libsrp::viosrp::adapter_info::{AdapterInfo, OsType};
use libsrp::viosrp::capabilities::Capabilities;
use libsrp::viosrp::crq::{Element, ElementStatus, Format, Init, Message, TransportEvent};
use libsrp::viosrp::error_log::ErrorLog;
use libsrp::viosrp::lun::Address;
use libsrp::viosrp::mad::{Mad, MadBody, MadStatus};
use libsrp::viosrp::padded;
use libsrp::viosrp::physical_adapter::PhysicalAdapterInfo;
use libsrp::{Lun, Residual, Response, SenseData, Status, Tag, TaskAttribute};

use crate::Seed;

/// Any unit, in both directions and under both sets of rules.
pub fn iu(data: &[u8]) {
    let mut out = vec![0xA5; data.len() + ROOM];
    for rules in [DataRules::VSCSI, IMMEDIATE] {
        let Ok(unit) = InitiatorIu::parse(data, &rules) else { continue };
        let len = unit.emit(&mut out).expect("what parses can be emitted");
        assert_eq!(InitiatorIu::parse(&out[..len], &rules), Ok(unit));
        if let InitiatorIu::Cmd(cmd) = unit {
            let command = cmd.command();
            assert!((16..=268).contains(&command.cdb.len()));
            check_buffers(&cmd.data, &rules);
        }
    }
    if let Ok(unit) = TargetIu::parse(data) {
        let len = unit.emit(&mut out).expect("what parses can be emitted");
        assert!(len <= data.len());
        assert_eq!(TargetIu::parse(&out[..len]), Ok(unit));
    }
    if let Ok(login) = LoginReq::parse_compact(data) {
        let len = login.emit_compact(&mut out).expect("what parses can be emitted");
        assert_eq!(LoginReq::parse_compact(&out[..len]), Ok(login));
    }
}

/// The descriptor areas of a CMD. The first five bytes are the fields, the start of the areas and
/// which rules hold; the others are the unit.
pub fn descriptors(data: &[u8]) {
    let &[formats, out_count, in_count, start, rules, ref unit @ ..] = data else { return };
    let fields = BufferFields { formats, out_count, in_count };
    let rules = if rules & 1 == 0 { DataRules::VSCSI } else { IMMEDIATE };
    if let Ok(buffers) = DataBuffers::parse(unit, start.into(), fields, &rules) {
        check_buffers(&buffers, &rules);
    }
    if let Some(table) = Descriptors::from_table(unit) {
        assert_eq!(table.len() * Descriptor::LEN, unit.len());
        for descriptor in table.iter() {
            let part = descriptor.part(u32::from(start), u32::from(formats));
            if let Some(part) = part {
                assert!(part.len <= descriptor.len && part.address >= descriptor.address);
            }
        }
    }
}

/// Queue elements, datagrams and every payload, all read from the same bytes.
pub fn viosrp(data: &[u8]) {
    let mut out = vec![0xA5; data.len() + ROOM];
    if let Some(bytes) = data.first_chunk() {
        let element = Element::parse(bytes);
        assert_eq!(Element::parse(&element.to_bytes()), element);
        if let Element::Message(message) = element {
            assert_eq!(message.tag().0, message.address().to_be_bytes());
            if let Some(pong) = message.pong() {
                assert_eq!(pong.pong(), None);
            }
        }
    }
    if let Some(bytes) = data.first_chunk()
        && let Some(Address::LogicalUnit(unit)) = Address::parse(Lun(*bytes))
    {
        assert_eq!(unit.to_lun(), Lun(*bytes));
    }
    if let Ok(mad) = Mad::parse(data) {
        let len = mad.emit(&mut out).expect("what parses can be emitted");
        assert_eq!(out[..len], data[..len]);
    }
    if let Ok(info) = AdapterInfo::parse(data) {
        let len = info.emit(&mut out).expect("what parses can be emitted");
        assert_eq!(out[..len], data[..len]);
    }
    if let Ok(capabilities) = Capabilities::parse(data) {
        let len = capabilities.emit(&mut out, |entry| entry.support);
        assert_eq!(len, Ok(data.len()));
        assert_eq!(out[..data.len()], *data);
    }
    if let Ok(log) = ErrorLog::parse(data) {
        let len = log.emit(&mut out).expect("what parses can be emitted");
        assert_eq!(ErrorLog::parse(&out[..len]), Ok(log));
    }
    if let Ok(info) = PhysicalAdapterInfo::parse(data) {
        let len = info.emit(&mut out).expect("what parses can be emitted");
        assert_eq!(PhysicalAdapterInfo::parse(&out[..len]), Ok(info));
    }
}

/// Units as Linux's initiators, SLOF and FreeBSD send them, and answers to them.
pub fn iu_seeds() -> Vec<Seed> {
    let mut login = [0; 64];
    let mut compact = [0; 56];
    let request = LoginReq {
        tag: TAG,
        max_initiator_iu: 8260,
        formats: BufferFormats::ALL,
        action: MultiChannelAction::Single,
        solicit_logout: false,
        solicit_credit: false,
        solicit_aer: false,
        immediate: Some(68),
        initiator_port: PortId::new(0, 1),
        target_port: PortId::new(2, 2),
    };
    request.emit(&mut login).expect("room");
    request.emit_compact(&mut compact).expect("room");

    let mut abort = [0; 48];
    let task = TskMgmt {
        tag: TAG,
        notify: SolicitedNotification::default(),
        lun: LUN,
        function: FunctionCode::AbortTask,
        managed: TAG,
    };
    task.emit(&mut abort).expect("room");

    let check = Response {
        status: Status::CHECK_CONDITION,
        data_in: Residual::Under(3584),
        sense: SenseData::new(&[0x72, 5, 0x24, 0, 0, 0, 0, 0]),
        ..Response::good(TAG)
    };
    let mut rsp = [0; 44];
    Rsp::new(&check, 1, ResidualFlavour::Srp, 256).emit(&mut rsp).expect("room");

    let mut seeds = vec![
        seed("login_req", login),
        seed("login_req_compact", compact),
        seed("tsk_mgmt_abort", abort),
        seed("rsp_check_condition", rsp),
    ];
    seeds.extend(command_seeds());
    let short = [
        ("i_logout", 0x03, 16),
        ("cred_rsp", 0x41, 16),
        ("aer_rsp", 0x42, 16),
        ("t_logout", 0x80, 16),
        ("cred_req", 0x81, 16),
        ("aer_req", 0x82, 36),
        ("login_rsp", 0xC0, 52),
        ("login_rej", 0xC2, 32),
    ];
    seeds.extend(short.map(|(name, opcode, len)| {
        let mut bytes = vec![0; len];
        bytes[0] = opcode;
        Seed { name, bytes }
    }));
    seeds
}

/// One of each format, and lists whose table lies elsewhere.
pub fn descriptor_seeds() -> Vec<Seed> {
    let fields = |formats, count, rules| vec![formats, count, count, 0, rules];
    let command = |name, mut head: Vec<u8>, from: &str, skip: usize| {
        let found = command_seeds().into_iter().find(|seed| seed.name == from);
        head.extend(found.into_iter().flat_map(|seed| seed.bytes).skip(skip));
        Seed { name, bytes: head }
    };
    let mut immediate = fields(0x30, 0, 1);
    immediate[3] = 48;
    vec![
        command("direct_in", fields(0x01, 0, 0), "cmd_read_direct", 48),
        command("direct_in_count_one", fields(0x01, 1, 0), "cmd_read_direct", 48),
        command("indirect_in", fields(0x02, 2, 1), "cmd_read_indirect", 48),
        command("indirect_external", fields(0x02, 0, 0), "cmd_read_external", 48),
        command("immediate_out", immediate, "cmd_write_immediate", 0),
    ]
}

/// The elements and datagrams of a Linux client's start.
pub fn viosrp_seeds() -> Vec<Seed> {
    let message = |format, status| {
        let message = Message { format, status, timeout: 60, len: 256, pointer: TAG.0 };
        Element::Message(message).to_bytes()
    };
    let mad = |body| {
        let mut out = vec![0; 64];
        let mad = Mad { tag: TAG, status: MadStatus::Success, len: 148, body };
        let len = mad.emit(&mut out).expect("room");
        out.truncate(len);
        out
    };
    let mut info = [0; AdapterInfo::LEN];
    AdapterInfo {
        srp_version: AdapterInfo::SRP_VERSION,
        partition_name: padded("partition"),
        partition_number: 7,
        mad_version: AdapterInfo::MAD_VERSION,
        os_type: OsType::Linux,
        max_transfer: [0x10_0000, 0, 0, 0, 0, 0, 0, 0],
    }
    .emit(&mut info)
    .expect("room");
    let mut capabilities = [0; 92];
    capabilities[3] = 4;
    capabilities[68..80].copy_from_slice(&[0, 0, 0, 1, 0, 12, 0, 1, 0, 0, 0, 1]);
    capabilities[80..92].copy_from_slice(&[0, 0, 0, 2, 0, 12, 0, 1, 0, 0, 0, 1]);
    let buffer = 0x1_0000;
    let tape = MadBody::TapePassthrough { lun: LUN, version: 1, passthrough: 2 };
    vec![
        seed("crq_srp", message(Format::Srp, ElementStatus::Ok)),
        seed("crq_ping", message(Format::Six, ElementStatus::Ping)),
        seed("crq_init", Element::Init(Init::Init).to_bytes()),
        seed("crq_event", Element::Event(TransportEvent::Migrated).to_bytes()),
        seed("lun", [0x81, 0x22, 0, 0, 0, 0, 0, 0]),
        seed("mad_empty_iu", mad(MadBody::EmptyIu { buffer, port: 1 })),
        seed("mad_adapter_info", mad(MadBody::AdapterInfo { buffer })),
        seed("mad_tape", mad(tape)),
        seed("mad_fast_fail", mad(MadBody::EnableFastFail)),
        seed("mad_unknown", mad(MadBody::Unknown(0x55))),
        seed("adapter_info", info),
        seed("capabilities", capabilities),
        seed("error_log", [0; 107]),
        seed("physical_adapter_info", [0; PhysicalAdapterInfo::LEN]),
    ]
}

fn command_seeds() -> Vec<Seed> {
    let segment = Descriptor { address: 0x8000_1000, key: 0x1234, len: 4096 };
    let table = |len| Descriptor { address: 0x9000, key: 0x1234, len };
    let bytes = [segment.to_bytes(), segment.to_bytes()].concat();
    let list = Descriptors::from_table(&bytes).expect("whole descriptors");
    let external = Descriptors::default();
    let read = |data_in| DataBuffers { data_out: DataBuffer::None, data_in };
    let immediate = DataBuffer::Immediate(Immediate { offset: 68, data: &[0xDA; 32] });
    let long_cdb = [0x7F; 32];
    let cases = [
        ("cmd_read_direct", &long_cdb[..16], read(DataBuffer::Direct(segment))),
        (
            "cmd_read_indirect",
            &long_cdb[..16],
            read(DataBuffer::Indirect(Indirect::new(table(32), 8192, list))),
        ),
        (
            "cmd_read_external",
            &long_cdb[..16],
            read(DataBuffer::Indirect(Indirect::new(table(176), 45056, external))),
        ),
        (
            "cmd_write_immediate",
            &long_cdb[..16],
            DataBuffers { data_out: immediate, data_in: DataBuffer::None },
        ),
        (
            "cmd_long_cdb_both_ways",
            &long_cdb[..],
            DataBuffers {
                data_out: DataBuffer::Direct(segment),
                data_in: DataBuffer::Indirect(Indirect::new(table(32), 8192, list)),
            },
        ),
    ];
    let command = |(name, cdb, data)| {
        let cmd = Cmd {
            tag: TAG,
            notify: SolicitedNotification::default(),
            lun: LUN,
            attribute: TaskAttribute::Simple,
            cdb,
            data,
        };
        let mut bytes = vec![0; 512];
        let len = cmd.emit(&mut bytes).expect("room");
        bytes.truncate(len);
        Seed { name, bytes }
    };
    cases.map(command).into()
}

fn check_buffers(buffers: &DataBuffers<'_>, rules: &DataRules) {
    for buffer in [buffers.data_out, buffers.data_in] {
        match buffer {
            DataBuffer::Indirect(indirect) => {
                assert!(indirect.count() <= rules.max_descriptors);
                assert!(indirect.list().len() <= indirect.count() as usize);
                assert!(indirect.capacity() <= indirect.total_len());
                assert_eq!(indirect.is_complete(), indirect.external_table().is_none());
                assert_eq!(indirect.list().iter().count(), indirect.list().len());
            }
            DataBuffer::Immediate(immediate) => {
                let allowed = rules.immediate.expect("granted");
                assert_eq!(immediate.offset, allowed.offset);
                assert!(immediate.data.len() <= allowed.max_len as usize);
            }
            DataBuffer::None => assert_eq!(buffer.capacity(), 0),
            DataBuffer::Direct(descriptor) => assert_eq!(buffer.capacity(), descriptor.len),
        }
    }
}

fn seed(name: &'static str, bytes: impl Into<Vec<u8>>) -> Seed {
    Seed { name, bytes: bytes.into() }
}

const TAG: Tag = Tag([0, 0, 0, 0, 0, 3, 0, 7]);
const LUN: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
const IMMEDIATE: DataRules =
    DataRules { immediate: Some(ImmediateRules { offset: 68, max_len: 8192 }), ..DataRules::SRP };
/// Emitting may add padding in front of immediate data, and no more.
const ROOM: usize = 128;
