//! Tests of the reservation model, by command.

mod access;
mod persist;
mod preempt;
mod random;
mod register;
mod report;
mod reserve;

use super::*;
use ReservationType as Type;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;
const REPLACE_LOST: u8 = 8;

const SPEC_I_PT: u8 = 8;
const ALL_TG_PT: u8 = 4;
const APTPL: u8 = 1;

/// Initiator port `n` through target port 1.
fn nexus(n: u8) -> NexusId {
    NexusId::new(initiator(n), 1)
}

fn initiator(n: u8) -> TransportId {
    TransportId::iscsi(&format!("iqn.2026-01.test:h{n}"), [0, 2, 0x3D, 0, 0, n]).unwrap()
}

/// The reservation key initiator port `n` uses here.
fn key(n: u8) -> u64 {
    0xAB00 + u64::from(n)
}

fn cdb(action: u8, scope_type: u8, len: usize) -> [u8; 10] {
    let mut cdb = [0x5F, action, scope_type, 0, 0, 0, 0, 0, 0, 0];
    cdb[5..9].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = vec![0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&action_key.to_be_bytes());
    list[20] = flags;
    list
}

fn spec_list(key: u64, action_key: u64, flags: u8, ids: &[TransportId]) -> Vec<u8> {
    let mut list = list(key, action_key, SPEC_I_PT | flags);
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.as_bytes()).copied().collect();
    list.extend((ids.len() as u32).to_be_bytes());
    list.extend(ids);
    list
}

fn move_list(key: u64, action_key: u64, flags: u8, to: &NexusId) -> Vec<u8> {
    let mut list = list(key, action_key, 0);
    list[17] = flags;
    list[18..20].copy_from_slice(&to.relative_target_port.to_be_bytes());
    let id = to.transport_id.as_bytes();
    list[20..24].copy_from_slice(&(id.len() as u32).to_be_bytes());
    list.extend(id);
    list
}

fn cdb_fault(byte: u16, bit: u8) -> Fail {
    Fail::Check(Sense::cdb_bit(byte, bit))
}

fn parameter_fault(byte: u16, bit: Option<u8>) -> Fail {
    let specific = Specific::Parameter(byte, bit);
    Fail::Check(Sense { specific, ..Sense::INVALID_FIELD_IN_PARAMETERS })
}

fn bare_fault(asc: u8, ascq: u8) -> Fail {
    Fail::Check(Sense::new(5, asc, ascq))
}

/// A logical unit whose owner swaps every prepared state in.
struct Unit(Reservations);

impl Unit {
    fn new() -> Self {
        Self(Reservations::new(Capabilities {
            max_registrations: 8,
            persist_through_power_loss: true,
        }))
    }

    /// Initiator ports 1 to `n` registered, each with its key.
    fn with_registrants(n: u8) -> Self {
        let mut unit = Self::new();
        for n in 1..=n {
            unit.send(n, REGISTER, 0, list(0, key(n), 0)).unwrap();
        }
        unit
    }

    /// The same, with a reservation made by initiator port 1.
    fn reserved(kind: Type, n: u8) -> Self {
        let mut unit = Self::with_registrants(n);
        unit.send(1, RESERVE, kind.code(), list(key(1), 0, 0)).unwrap();
        unit
    }

    fn send(&mut self, from: u8, action: u8, kind: u8, list: Vec<u8>) -> Result<Effects, Fail> {
        let cdb = cdb(action, kind, list.len());
        let (state, effects) = self.0.prepare_out(&nexus(from), &cdb, &list, &[1, 2])?;
        self.0 = state;
        Ok(effects)
    }

    /// A service action that needs no more than the sender's key and one other.
    fn act(&mut self, from: u8, action: u8, kind: Type, action_key: u64) -> Result<Effects, Fail> {
        self.send(from, action, kind.code(), list(key(from), action_key, 0))
    }

    fn keys(&self) -> Vec<u64> {
        self.0.registrations().map(|(_, key)| key).collect()
    }

    fn holds(&self, n: u8) -> bool {
        self.0.is_holder(&nexus(n))
    }

    fn read(&self, action: u8, len: u16) -> Result<Vec<u8>, Fail> {
        let [high, low] = len.to_be_bytes();
        self.0.read_in(&[0x5E, action, 0, 0, 0, 0, 0, high, low, 0])
    }
}

fn told(effects: &Effects) -> Vec<(NexusId, Attention)> {
    effects.attentions.clone()
}

fn all_told(to: impl IntoIterator<Item = u8>, what: Attention) -> Vec<(NexusId, Attention)> {
    to.into_iter().map(|n| (nexus(n), what)).collect()
}
