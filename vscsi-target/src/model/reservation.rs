//! The reservations of one logical unit (SPC-4 5.13, SPC-2 5.5), as a plain value.
//!
//! Nothing here locks, performs I/O or reads a clock, and no byte a peer sends makes it panic.
//! [`Reservations::prepare_out`] returns the next state together with its [`Effects`]; the owner
//! persists that state if asked to, swaps it in, establishes the unit attentions, aborts the tasks,
//! and only then answers GOOD. When persisting fails it keeps the old state, so that nothing was
//! acknowledged that a power loss would undo. Between preparing and swapping in, the state must not
//! change: the owner lets one reservation command of a logical unit in at a time.
//!
//! An owner caches [`Reservations::denied`] for each nexus and refreshes it after every change.

mod in_;
mod legacy;
mod nexus;
mod out;
pub mod persist;
#[cfg(test)]
mod tests;

use crate::{
    model::Attention,
    opcode::{Access, Fail},
    sense::{Sense, Specific},
};
use libsrp::Status;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

pub use self::nexus::{NexusId, TransportId, TransportIdError};

/// Registrations, the persistent reservation and the RESERVE/RELEASE reservation of a logical unit.
///
/// Invariants: a holder is registered; no nexus is registered twice; an all registrants reservation
/// has at least one registration; a RESERVE reservation and registrations exclude each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservations {
    capabilities: Capabilities,
    /// PRGENERATION.
    generation: u32,
    /// The last valid APTPL bit.
    aptpl: bool,
    registrations: Vec<Registration>,
    persistent: Option<Persistent>,
    /// Who holds the logical unit by RESERVE(6) or RESERVE(10).
    legacy: Option<NexusId>,
}

/// What a logical unit offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How many I_T nexuses can be registered at once.
    pub max_registrations: usize,
    /// Whether there is a store to persist to (PTPL_C). Without one an APTPL bit is refused.
    pub persist_through_power_loss: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { max_registrations: 1024, persist_through_power_loss: false }
    }
}

impl Default for Reservations {
    fn default() -> Self {
        Self::new(Capabilities::default())
    }
}

impl Reservations {
    /// A logical unit nobody registered with or reserved.
    pub fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            generation: 0,
            aptpl: false,
            registrations: Vec::new(),
            persistent: None,
            legacy: None,
        }
    }

    /// What the logical unit offers.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The PRGENERATION counter.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether registrations survive a power loss (PTPL_A).
    pub fn persists(&self) -> bool {
        self.aptpl
    }

    /// The registered I_T nexuses with their reservation keys, oldest first.
    pub fn registrations(&self) -> impl ExactSizeIterator<Item = (&NexusId, u64)> {
        self.registrations.iter().map(|r| (&r.nexus, r.key.get()))
    }

    /// The type of the persistent reservation, if one is held.
    pub fn reservation_type(&self) -> Option<ReservationType> {
        self.persistent.as_ref().map(|p| p.kind)
    }

    /// Whether this nexus is a persistent reservation holder (SPC-4 5.13.10).
    pub fn is_holder(&self, nexus: &NexusId) -> bool {
        match &self.persistent {
            None => false,
            Some(Persistent { holder: Some(holder), .. }) => holder == nexus,
            Some(Persistent { holder: None, .. }) => self.key_of(nexus).is_some(),
        }
    }

    /// Which commands of this nexus conflict with the reservations held now.
    pub fn denied(&self, nexus: &NexusId) -> Denied {
        if self.legacy.as_ref().is_some_and(|holder| holder != nexus) {
            return Denied { read: true, write: true, legacy: true };
        }
        let Some(Persistent { kind, .. }) = &self.persistent else {
            return Denied::default();
        };
        let free = if kind.frees_registrants() {
            self.key_of(nexus).is_some()
        } else {
            self.is_holder(nexus)
        };
        Denied { read: !free && kind.excludes_reads(), write: !free, legacy: false }
    }

    /// Whether a command of this class may be processed; if not it ends with RESERVATION CONFLICT.
    pub fn permits(&self, nexus: &NexusId, access: Access) -> bool {
        self.denied(nexus).permits(access)
    }

    /// A power on (SPC-4 5.13.5.1, 6.15.2): PRGENERATION starts over, and unless APTPL was set
    /// last, registrations and reservation are gone.
    pub fn power_on(&mut self) {
        self.legacy = None;
        self.generation = 0;
        if !self.aptpl {
            self.registrations.clear();
            self.persistent = None;
        }
    }

    fn key_of(&self, nexus: &NexusId) -> Option<NonZeroU64> {
        self.registrations.iter().find(|r| r.nexus == *nexus).map(|r| r.key)
    }
}

/// The type of a persistent reservation (SPC-4 6.15.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReservationType {
    /// 1: others may read.
    WriteExclusive,
    /// 3: others may neither read nor write.
    ExclusiveAccess,
    /// 5: the unregistered may read.
    WriteExclusiveRegistrantsOnly,
    /// 6: the unregistered may neither read nor write.
    ExclusiveAccessRegistrantsOnly,
    /// 7: like 5, and every registrant holds it.
    WriteExclusiveAllRegistrants,
    /// 8: like 6, and every registrant holds it.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// Every type, in the order of the codes.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The value of the TYPE field.
    pub const fn code(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 3,
            Self::WriteExclusiveRegistrantsOnly => 5,
            Self::ExclusiveAccessRegistrantsOnly => 6,
            Self::WriteExclusiveAllRegistrants => 7,
            Self::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// The type with this code; `None` for obsolete and reserved codes.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Whether every registered nexus is a holder.
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Whether registration alone frees a nexus of the reservation: the registrants only and the
    /// all registrants types.
    pub const fn frees_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether others may not read either.
    pub const fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// Which commands of one nexus end with RESERVATION CONFLICT, for the caller to cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Denied {
    /// Those of [`Access::Read`].
    pub read: bool,
    /// Those of [`Access::Write`].
    pub write: bool,
    /// Those of [`Access::NotLegacy`]: another nexus holds the unit by RESERVE.
    pub legacy: bool,
}

impl Denied {
    /// Whether a command of this class may be processed.
    pub const fn permits(self, access: Access) -> bool {
        match access {
            Access::Always | Access::Own => true,
            Access::Read => !self.read,
            Access::Write => !self.write,
            Access::NotLegacy => !self.legacy,
        }
    }
}

/// What has to happen besides swapping the new state in.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Effects {
    /// Unit attentions to establish for the initiator ports of these nexuses.
    pub attentions: Vec<(NexusId, Attention)>,
    /// PREEMPT AND ABORT: nexuses whose tasks are to be aborted, except the PERSISTENT RESERVE OUT
    /// task itself, whose ACA conditions are to be cleared and whose prevention of medium removal
    /// is to be lifted (SPC-4 5.13.11.2.6). May name the requesting nexus.
    pub abort: Vec<NexusId>,
    /// What the store has to hold before the command is acknowledged.
    pub persist: Persist,
}

/// What to do with the store before acknowledging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Persist {
    /// Nothing that must survive changed.
    #[default]
    Unchanged,
    /// Save the new state.
    Save,
    /// Persistence through power loss was switched off: remove what is saved.
    Remove,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Registration {
    nexus: NexusId,
    key: NonZeroU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Persistent {
    kind: ReservationType,
    /// `None` exactly for the all registrants types.
    holder: Option<NexusId>,
}

impl Persistent {
    fn new(kind: ReservationType, nexus: &NexusId) -> Self {
        Self { kind, holder: (!kind.is_all_registrants()).then(|| nexus.clone()) }
    }
}

const CONFLICT: Fail = Fail::Status(Status::RESERVATION_CONFLICT);

/// INVALID FIELD IN CDB at a bit.
fn bad_cdb(byte: u16, bit: u8) -> Fail {
    Sense::cdb_bit(byte, bit).into()
}

/// INVALID FIELD IN PARAMETER LIST.
fn bad_parameter(byte: usize, bit: Option<u8>) -> Fail {
    let specific = u16::try_from(byte).map_or(Specific::None, |at| Specific::Parameter(at, bit));
    Sense { specific, ..Sense::INVALID_FIELD_IN_PARAMETERS }.into()
}

/// A CDB byte; zero when the CDB is shorter, as the opcode table has already checked its length.
fn byte(cdb: &[u8], at: usize) -> u8 {
    cdb.get(at).copied().unwrap_or(0)
}
