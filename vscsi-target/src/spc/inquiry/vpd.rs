//! Vital product data pages (SPC-4 7.8, SBC-3 6.6).

use super::DIRECT_ACCESS;
use crate::{
    backend::Properties,
    engine::Call,
    limits,
    model::{Identity, LogicalUnit, Target, TargetPort},
    opcode::Fail,
    sense::Sense,
};
use libsrp::SENSE_MAX;

/// A page of a logical unit.
pub fn of_unit(call: &mut Call<'_>, page: u8) -> Result<(), Fail> {
    let itl = call.itl;
    let lu = &itl.lu;
    let start = begin(call.reply, DIRECT_ACCESS, page);
    match page {
        SUPPORTED => call.put(&[0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0xB0, 0xB1, 0xB2]),
        SERIAL => call.put(lu.config.identity.serial.as_bytes()),
        IDENTIFICATION => {
            unit_names(call.reply, &lu.config.identity);
            port_names(call.reply, &itl.nexus.target, itl.nexus.port);
        }
        EXTENDED => call.put(&extended(lu)),
        // Every mode page is shared by all nexuses.
        MODE_POLICY => call.put(&[0x3F, 0xFF, 0, 0]),
        PORTS => ports(call.reply, &itl.nexus.target),
        LIMITS => call.put(&block_limits(lu.backend.properties())),
        CHARACTERISTICS => call.put(&characteristics(lu.backend.properties())),
        PROVISIONING => call.put(&provisioning(lu.backend.properties())),
        _ => return Err(Sense::cdb_byte(2).into()),
    }
    end(call.reply, start);
    Ok(())
}

/// A page of a LUN that names no logical unit, or a well-known one.
pub fn of_nothing(
    device: u8,
    page: u8,
    target: &Target,
    port: u16,
    reply: &mut Vec<u8>,
) -> Result<(), Fail> {
    let start = begin(reply, device, page);
    match page {
        SUPPORTED => reply.extend_from_slice(&[SUPPORTED, IDENTIFICATION]),
        IDENTIFICATION => port_names(reply, target, port),
        _ => return Err(Sense::cdb_byte(2).into()),
    }
    end(reply, start);
    Ok(())
}

fn begin(reply: &mut Vec<u8>, device: u8, page: u8) -> usize {
    let start = reply.len();
    reply.extend_from_slice(&[device, page, 0, 0]);
    start
}

fn end(reply: &mut [u8], start: usize) {
    let len = (reply.len() - start - 4) as u16;
    reply[start + 2..start + 4].copy_from_slice(&len.to_be_bytes());
}

fn designator(reply: &mut Vec<u8>, kind: [u8; 2], name: &[u8]) {
    let name = &name[..name.len().min(252)];
    reply.extend_from_slice(&[kind[0], kind[1], 0, name.len() as u8]);
    reply.extend_from_slice(name);
}

/// Null-terminated and padded to four bytes, as SCSI name strings are.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(248);
    bytes.resize((bytes.len() + 4) & !3, 0);
    bytes
}

fn unit_names(reply: &mut Vec<u8>, identity: &Identity) {
    designator(reply, [BINARY, NAA], &identity.naa.to_be_bytes());
    designator(reply, [BINARY, EUI64], &identity.eui.to_be_bytes());
    designator(reply, [UTF8, NAME_STRING], &padded(&format!("naa.{:016X}", identity.naa)));
    let mut t10 = identity.vendor.to_vec();
    t10.extend_from_slice(&identity.product);
    t10.extend_from_slice(identity.serial.as_bytes());
    designator(reply, [ASCII, T10_VENDOR], &t10);
}

fn port_names(reply: &mut Vec<u8>, target: &Target, port: u16) {
    let Some(port) = target.ports().into_iter().find(|p| p.relative_id == port) else { return };
    let protocol = port.protocol << 4;
    let [high, low] = port.relative_id.to_be_bytes();
    designator(reply, [protocol | BINARY, OF_PORT | RELATIVE_PORT], &[0, 0, high, low]);
    let [high, low] = port.group.to_be_bytes();
    designator(reply, [protocol | BINARY, OF_PORT | PORT_GROUP], &[0, 0, high, low]);
    port_name(reply, &port);
    if port.protocol == ISCSI {
        designator(reply, [protocol | UTF8, OF_TARGET | NAME_STRING], &padded(&target.name));
    }
}

/// The name of a port, in the form of its protocol: iSCSI's is a SCSI name string, SRP's the target
/// port identifier as an EUI-64 with identifier extension. Other ports have none.
fn port_name(reply: &mut Vec<u8>, port: &TargetPort) {
    let protocol = port.protocol << 4;
    match port.protocol {
        ISCSI => designator(reply, [protocol | UTF8, OF_PORT | NAME_STRING], &padded(&port.name)),
        SRP => {
            if let Some(identifier) = port.identifier() {
                designator(reply, [protocol | BINARY, OF_PORT | EUI64], &identifier);
            }
        }
        _ => {}
    }
}

fn ports(reply: &mut Vec<u8>, target: &Target) {
    for port in target.ports() {
        let [high, low] = port.relative_id.to_be_bytes();
        reply.extend_from_slice(&[0, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0]);
        let start = reply.len();
        port_name(reply, &port);
        let len = (reply.len() - start) as u16;
        reply[start - 2..start].copy_from_slice(&len.to_be_bytes());
    }
}

fn extended(lu: &LogicalUnit) -> [u8; 60] {
    let mut b = [0; 60];
    b[1] = HEADSUP | ORDSUP | SIMPSUP;
    b[2] = if lu.backend.properties().volatile_cache { V_SUP } else { 0 };
    b[3] = LUICLR;
    b[9] = SENSE_MAX as u8;
    b
}

fn block_limits(properties: &Properties) -> [u8; 60] {
    let block = properties.block_size.max(1);
    let blocks = |bytes: u32| (bytes / block).to_be_bytes();
    let mut b = [0; 60];
    b[0] = WSNZ;
    b[1] = limits::MAX_COMPARE_AND_WRITE;
    let granularity = u16::try_from(properties.physical_block_size / block).unwrap_or(0).max(1);
    b[2..4].copy_from_slice(&granularity.to_be_bytes());
    b[4..8].copy_from_slice(&blocks(limits::MAX_TRANSFER));
    b[8..12].copy_from_slice(&blocks(properties.optimal_transfer.min(limits::MAX_TRANSFER)));
    if properties.thin {
        b[16..20].copy_from_slice(&limits::MAX_UNMAP_BLOCKS.to_be_bytes());
        b[20..24].copy_from_slice(&limits::MAX_UNMAP_DESCRIPTORS.to_be_bytes());
        b[24..28].copy_from_slice(&blocks(properties.unmap_granularity.max(block)));
        b[28] = UGAVALID;
    }
    b[32..40].copy_from_slice(&limits::MAX_WRITE_SAME.to_be_bytes());
    // WRITE ATOMIC takes any alignment and length, and no boundaries inside. Where a power failure
    // may tear it, it is not advertised: initiators take it as a promise that covers that.
    if properties.untorn_writes {
        b[40..44].copy_from_slice(&blocks(limits::MAX_ATOMIC));
        b[44..48].copy_from_slice(&1u32.to_be_bytes());
        b[48..52].copy_from_slice(&1u32.to_be_bytes());
    }
    b
}

fn characteristics(properties: &Properties) -> [u8; 60] {
    let mut b = [0; 60];
    // 1: no rotation; 0: a rate that is not reported.
    b[1] = u8::from(!properties.rotational);
    b[3] = WABEREQ_READABLE;
    b
}

fn provisioning(properties: &Properties) -> [u8; 4] {
    if properties.thin { [0, LBPU | LBPWS | LBPWS10 | LBPRZ, THIN, 0] } else { [0; 4] }
}

const SUPPORTED: u8 = 0x00;
const SERIAL: u8 = 0x80;
const IDENTIFICATION: u8 = 0x83;
const EXTENDED: u8 = 0x86;
const MODE_POLICY: u8 = 0x87;
const PORTS: u8 = 0x88;
const LIMITS: u8 = 0xB0;
const CHARACTERISTICS: u8 = 0xB1;
const PROVISIONING: u8 = 0xB2;

// Code sets and designator types; the protocol identifier stands in the
// high half of the first byte.
const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF8: u8 = 3;
const T10_VENDOR: u8 = 1;
const EUI64: u8 = 2;
const NAA: u8 = 3;
const RELATIVE_PORT: u8 = 4;
const PORT_GROUP: u8 = 5;
const NAME_STRING: u8 = 8;
/// PIV and association 01b.
const OF_PORT: u8 = 0x90;
/// PIV and association 10b.
const OF_TARGET: u8 = 0xA0;
const ISCSI: u8 = 5;
const SRP: u8 = 4;

const HEADSUP: u8 = 0x04;
const ORDSUP: u8 = 0x02;
const SIMPSUP: u8 = 0x01;
const V_SUP: u8 = 0x01;
const LUICLR: u8 = 0x01;
const WSNZ: u8 = 0x01;
const UGAVALID: u8 = 0x80;
/// Blocks can be read after SANITIZE with BLOCK ERASE (SBC-4 6.6.2).
const WABEREQ_READABLE: u8 = 0x40;
const LBPU: u8 = 0x80;
const LBPWS: u8 = 0x40;
const LBPWS10: u8 = 0x20;
const LBPRZ: u8 = 0x04;
const THIN: u8 = 0x02;
