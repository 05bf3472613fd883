//! INQUIRY: the standard data (SPC-4 6.6.2). The vital product data pages are in `vpd`.

#[cfg(test)]
mod tests;
mod vpd;

use crate::{
    engine::{Call, call::be},
    model::{Identity, Target},
    opcode::Fail,
    sense::Sense,
};

/// INQUIRY of a logical unit.
pub fn inquiry(call: &mut Call<'_>) -> Result<(), Fail> {
    match page(call.cdb)? {
        None => {
            let target = &call.itl.nexus.target;
            let config = &call.itl.lu.config;
            let port = call.itl.nexus.port;
            let mut data = standard(DIRECT_ACCESS, &config.identity, target, port);
            data[1] = if config.removable { REMOVABLE } else { 0 };
            call.put(&data);
            Ok(())
        }
        Some(page) => vpd::of_unit(call, page),
    }
}

/// INQUIRY of a LUN that names nothing: peripheral qualifier 011b (SPC-4 6.6.2). The vendor and
/// product are there because Linux and Windows skip the whole target without them.
pub fn absent(cdb: &[u8], target: &Target, port: u16, reply: &mut Vec<u8>) -> Result<(), Fail> {
    bare(ABSENT, cdb, target, port, reply)
}

/// INQUIRY of the REPORT LUNS well-known logical unit.
pub fn well_known(cdb: &[u8], target: &Target, port: u16, reply: &mut Vec<u8>) -> Result<(), Fail> {
    bare(WELL_KNOWN, cdb, target, port, reply)
}

fn bare(
    device: u8,
    cdb: &[u8],
    target: &Target,
    port: u16,
    reply: &mut Vec<u8>,
) -> Result<(), Fail> {
    match page(cdb)? {
        None => {
            let identity = Identity::derive(&target.name, None);
            reply.extend_from_slice(&standard(device, &identity, target, port));
            Ok(())
        }
        Some(page) => vpd::of_nothing(device, page, target, port, reply),
    }
}

/// The VPD page asked for, `None` for the standard data.
fn page(cdb: &[u8]) -> Result<Option<u8>, Sense> {
    let page = be(cdb, 2, 1) as u8;
    match (be(cdb, 1, 1) & 1 != 0, page) {
        (true, page) => Ok(Some(page)),
        (false, 0) => Ok(None),
        (false, _) => Err(Sense::cdb_byte(2)),
    }
}

fn standard(device: u8, identity: &Identity, target: &Target, port: u16) -> [u8; STANDARD_LEN] {
    let ports = target.ports();
    let protocol = ports.iter().find(|p| p.relative_id == port).map(|p| p.protocol);
    let mut b = [0; STANDARD_LEN];
    b[0] = device;
    b[2] = VERSION;
    b[3] = NORMACA | HISUP | RESPONSE_FORMAT;
    b[4] = (STANDARD_LEN - 5) as u8;
    b[5] = TPGS_IMPLICIT;
    b[6] = if ports.len() > 1 { MULTIP } else { 0 };
    b[7] = CMDQUE;
    b[8..16].copy_from_slice(&identity.vendor);
    b[16..32].copy_from_slice(&identity.product);
    b[32..36].copy_from_slice(&identity.revision);
    let transport = match protocol {
        Some(4) => Some(0x0940), // SRP
        Some(5) => Some(0x0960), // iSCSI
        _ => None,
    };
    // SAM-5, the transport, SPC-5 and SPC-4, and for a disk SBC-4 and SBC-3: initiators older than
    // a standard only know its predecessor.
    let disk: &[u16] = if device == DIRECT_ACCESS { &[0x0600, 0x04C0] } else { &[] };
    let claimed = [Some(0x00A0), transport, Some(0x05C0), Some(0x0460)];
    let claimed = claimed.into_iter().flatten().chain(disk.iter().copied());
    for (slot, code) in b[58..74].chunks_exact_mut(2).zip(claimed) {
        slot.copy_from_slice(&code.to_be_bytes());
    }
    b
}

const STANDARD_LEN: usize = 96;
const DIRECT_ACCESS: u8 = 0x00;
const WELL_KNOWN: u8 = 0x1E;
const ABSENT: u8 = 0x7F;

const REMOVABLE: u8 = 0x80;
/// SPC-4; its successors are claimed by version descriptors, because libiscsi's suite and older
/// initiators take a higher version for an error.
const VERSION: u8 = 0x06;
const NORMACA: u8 = 0x20;
const HISUP: u8 = 0x10;
const RESPONSE_FORMAT: u8 = 0x02;
const TPGS_IMPLICIT: u8 = 0x10;
const MULTIP: u8 = 0x10;
const CMDQUE: u8 = 0x02;
