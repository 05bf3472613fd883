//! The live state of a logical unit: everything volatile that an initiator could notice, as a value
//! that goes to a file or to another host.
//!
//! That is the mode parameters, registrations and reservations whether or not they survive a power
//! loss, whether the medium is stopped or ejected, and for each I_T nexus its pending unit
//! attentions, its prevention of medium removal and its ACA condition. Buffers of WRITE BUFFER and
//! counters are not kept.
//!
//! I_T nexuses are named by TransportID and relative target port. Those that a restored state names
//! wait in [`LuState::waiting`]: the nexus that is established under such a name takes its entry over
//! instead of starting with a POWER ON condition; if it sees other logical units than it saw before, it
//! is told. Until then an entry collects unit attentions as the
//! nexus itself would, and still prevents medium removal.
//!
//! What is restored may come from another host or a damaged file. Everything is checked while it is
//! parsed, and nothing in it makes this panic or use more memory than a few times its own size.

use std::collections::HashSet;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Attention, Itl, LogicalUnit, Nexus,
    attention::Attentions,
    lu::LuState,
    reservation::{
        NexusId, Persist, Reservations,
        persist::{LiveReservations, SavedError, SavedNexus, StoreError},
    },
};
use crate::{
    sbc::format,
    sense::Sense,
    spc::{
        mode::{self, SaveError, Settings},
        reserve,
    },
};

/// The state of every logical unit that a nexus sees, to be restored by [`restore`] after the guest
/// has moved. Blocks for no longer than taking some locks.
pub fn save(nexus: &Nexus) -> Vec<u8> {
    let table = nexus.table();
    let units = table
        .iter()
        .map(|(lun, itl)| DeviceUnit { lun, state: UnitState::from(&itl.lu.snapshot()) });
    let device = Device {
        version: VERSION,
        nexus: SavedNexus::from(&nexus.info.identity),
        units: units.collect(),
    };
    // Plain values under string keys: there is nothing that JSON could not hold.
    serde_json::to_vec(&device).unwrap_or_default()
}

/// Gives the logical units that a nexus sees the state that [`save`] took of them, here or on
/// another host. What the saving nexus was called there, this one is called here.
///
/// A logical unit that other nexuses use here keeps its own state, except what concerns this nexus.
/// What has to survive a power loss is stored before this returns, so it blocks.
///
/// # Errors
/// When the bytes are damaged, too new, or about other logical units than these. Then nothing has
/// changed. When the state cannot be stored.
pub fn restore(nexus: &Nexus, bytes: &[u8]) -> Result<(), SnapshotError> {
    let device: Device = parse(bytes)?;
    let (was, is) = (device.nexus.parse()?, &nexus.info.identity);
    let table = nexus.table();
    let mut units = Vec::new();
    for DeviceUnit { lun, state } in device.units {
        let itl = table.at(lun).ok_or(SnapshotError::NoUnit { lun })?;
        let mut snapshot = Snapshot::try_from(state)?;
        snapshot.check_unit(&itl.lu)?;
        snapshot.rename(&was, is);
        units.push((itl, snapshot));
    }
    for (itl, snapshot) in units {
        let is_shared = || itl.lu.itls().iter().any(|other| other.nexus.identity != *is);
        if itl.lu.is_away() {
            // Nobody can have changed it here, and it is stored when the image is taken over. The
            // size may have changed since the image was opened.
            let _ = itl.lu.backend.resize(None);
            itl.lu.restore(snapshot)?;
            itl.lu.state_came();
        } else if is_shared() {
            itl.lu.resume_one(itl, snapshot);
        } else {
            itl.lu.restore(snapshot)?;
            itl.lu.store()?;
        }
    }
    Ok(())
}

/// Why a state cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// More than any state.
    #[error("{len} bytes are more than any saved state ({MAX_LEN})")]
    TooLarge {
        /// How many bytes.
        len: usize,
    },
    /// Not JSON of the right shape: cut off, a key missing, unknown or of another type.
    #[error("the saved state is damaged: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a version with another format.
    #[error("the saved state has format version {0}, which is not supported (this is {VERSION})")]
    Version(u32),
    /// Reservations or the name of a nexus.
    #[error("the saved state is damaged: {0}")]
    Reservations(#[from] SavedError),
    /// More unit attentions than can be pending.
    #[error("the saved state is damaged: {count} unit attentions are pending for one I_T nexus")]
    Attentions {
        /// How many.
        count: usize,
    },
    /// More nexuses than are ever saved.
    #[error("the saved state is damaged: it names {count} I_T nexuses ({MAX_NEXUSES} at most)")]
    Nexuses {
        /// How many.
        count: usize,
    },
    /// A nexus is there twice.
    #[error("the saved state is damaged: it names {0:?} twice")]
    Duplicate(NexusId),
    /// It belongs to another logical unit.
    #[error(
        "the saved state is of the logical unit naa.{found:016x}, but this one is \
         naa.{expected:016x}"
    )]
    Unit {
        /// This one's NAA name.
        expected: u64,
        /// The saved one's.
        found: u64,
    },
    /// There is no such logical unit here.
    #[error("the saved state is of LUN {lun} too, which does not exist here")]
    NoUnit {
        /// Its number.
        lun: u16,
    },
    /// Reservations that must survive a power loss cannot be stored here.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Saved mode parameters cannot be stored here.
    #[error(transparent)]
    Modes(#[from] SaveError),
}

/// The live state of one logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    naa: u64,
    blocks: u64,
    modes: (Settings, Option<Settings>),
    reservations: Reservations,
    stopped: bool,
    ejected: bool,
    format_failed: bool,
    sanitize_failed: bool,
    sanitize_may_exit: bool,
    waiting: Vec<Waiting>,
}

impl Snapshot {
    /// Replaces the reservations by those that are about to hold.
    pub fn set_reservations(&mut self, reservations: Reservations) {
        self.reservations = reservations;
    }

    /// Replaces the mode parameters (current and saved) by those that are about to hold.
    pub fn set_modes(&mut self, current: Settings, saved: Option<Settings>) {
        self.modes = (current, saved);
    }

    /// Whether it is the state of this logical unit, wherever it was taken.
    pub(super) fn check_unit(&self, lu: &LogicalUnit) -> Result<(), SnapshotError> {
        let (expected, found) = (lu.config.identity.naa, self.naa);
        if expected == found { Ok(()) } else { Err(SnapshotError::Unit { expected, found }) }
    }

    fn rename(&mut self, from: &NexusId, to: &NexusId) {
        if from == to || self.waiting.iter().any(|waiting| waiting.nexus == *to) {
            return;
        }
        self.reservations.rename(from, to);
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.nexus == *from) {
            waiting.nexus = to.clone();
        }
    }
}

/// What waits for an I_T nexus to be established again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its name.
    pub nexus: NexusId,
    /// Its unit attentions.
    pub attentions: Attentions,
    /// It prevents medium removal.
    pub prevents: bool,
    /// An ACA condition is established for it.
    pub aca: bool,
    /// A digest of the logical units that it saw.
    pub inventory: u64,
}

impl LogicalUnit {
    /// Its live state now.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let mut seen = HashSet::new();
        let mut waiting = Vec::new();
        // Of two sessions under one name the later counts; entries that have waited longest are the
        // first to be dropped when there are too many.
        for itl in self.itls().iter().rev() {
            if seen.insert(itl.nexus.identity.clone()) {
                waiting.push(Waiting {
                    nexus: itl.nexus.identity.clone(),
                    attentions: itl.attentions(),
                    prevents: state.preventers.contains(&itl.nexus.id),
                    aca: state.aca == Some(itl.nexus.id),
                    inventory: itl.nexus.inventory(),
                });
            }
        }
        let rest = state.waiting.iter().rev().filter(|entry| !seen.contains(&entry.nexus));
        waiting.extend(rest.cloned());
        waiting.truncate(MAX_NEXUSES);
        waiting.reverse();
        // The end of the process ends what runs on the medium too, half done.
        let is = |what: Sense| {
            state.busy.is_some_and(|b| (b.key, b.asc, b.ascq) == (what.key, what.asc, what.ascq))
        };
        Snapshot {
            naa: self.config.identity.naa,
            blocks: self.blocks(),
            modes: state.modes.settings(),
            reservations: state.reservations.clone(),
            stopped: state.stopped,
            ejected: state.ejected,
            format_failed: is(Sense::FORMATTING) || is(format::FAILED),
            sanitize_failed: state.sanitize_failed || is(Sense::SANITIZING),
            sanitize_may_exit: state.sanitize_may_exit,
            waiting,
        }
    }

    /// Takes a state over that was taken of this logical unit earlier or elsewhere. Nexuses that
    /// exist already take their entries at once; those without an entry learn that the medium may
    /// have changed.
    ///
    /// # Errors
    /// [`SnapshotError::Unit`] when it is another logical unit's; nothing has changed then.
    pub fn restore(&self, snapshot: Snapshot) -> Result<(), SnapshotError> {
        snapshot.check_unit(self)?;
        let resized = snapshot.blocks != self.blocks();
        let removable = self.config.removable;
        let (known, strangers) = self.update(|state| {
            let capabilities = state.reservations.capabilities();
            state.reservations = snapshot.reservations.with_capabilities(capabilities);
            state.modes.resume(snapshot.modes.0, snapshot.modes.1);
            state.stopped = snapshot.stopped && !removable;
            state.ejected = snapshot.ejected && removable;
            state.busy = snapshot.format_failed.then_some(format::FAILED);
            state.sanitize_failed = snapshot.sanitize_failed;
            state.sanitize_may_exit = snapshot.sanitize_may_exit;
            (state.preventers, state.aca) = (Vec::new(), None);
            state.waiting = snapshot.waiting;
            if resized {
                for waiting in &mut state.waiting {
                    waiting.attentions.establish(Attention::CAPACITY_CHANGED);
                }
            }
            self.itls().into_iter().partition::<Vec<_>, _>(|itl| state.claim(itl))
        });
        for itl in known {
            itl.compare_inventory();
        }
        for itl in strangers {
            itl.establish(Attention::MEDIUM_CHANGED);
        }
        Ok(())
    }

    /// Takes over only what a state says about one nexus.
    fn resume_one(&self, itl: &Itl, snapshot: Snapshot) {
        let theirs = |waiting: &Waiting| waiting.nexus == itl.nexus.identity;
        if let Some(entry) = snapshot.waiting.into_iter().find(theirs) {
            self.update(|state| {
                state.waiting.retain(|waiting| !theirs(waiting));
                state.waiting.push(entry);
                state.claim(itl)
            });
            itl.compare_inventory();
        }
    }

    /// Stores what has to survive a power loss. Blocks.
    pub(super) fn store(&self) -> Result<(), SnapshotError> {
        let _turn = self.take_turn();
        let (reservations, (_, saved)) = {
            let state = self.state();
            (state.reservations.clone(), state.modes.settings())
        };
        if let Some(store) = reserve::store(&self.config) {
            let persist = if reservations.persists() { Persist::Save } else { Persist::Remove };
            store.apply(persist, &reservations)?;
        }
        if let (Some(path), Some(saved)) = (mode::file(&self.config), saved) {
            mode::save(&path, saved)?;
        }
        Ok(())
    }
}

impl LuState {
    /// Whether a nexus, there or still awaited, prevents medium removal.
    pub fn is_removal_prevented(&self) -> bool {
        !self.preventers.is_empty() || self.waiting.iter().any(|waiting| waiting.prevents)
    }

    /// Gives a nexus the entry that waits for it; false when there is none.
    pub(super) fn claim(&mut self, itl: &Itl) -> bool {
        let is_its = |waiting: &Waiting| waiting.nexus == itl.nexus.identity;
        let Some(at) = self.waiting.iter().position(is_its) else { return false };
        let Waiting { attentions, prevents, aca, inventory, .. } = self.waiting.remove(at);
        itl.resume(attentions, inventory);
        if prevents && !self.preventers.contains(&itl.nexus.id) {
            self.preventers.push(itl.nexus.id);
        }
        if aca {
            self.aca.get_or_insert(itl.nexus.id);
        }
        true
    }
}

/// What [`save`] gives.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    version: u32,
    nexus: SavedNexus,
    units: Vec<DeviceUnit>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceUnit {
    lun: u16,
    state: UnitState,
}

/// A [`Snapshot`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitState {
    naa: String,
    blocks: u64,
    mode: Settings,
    #[serde(deserialize_with = "Option::deserialize")]
    saved_mode: Option<Settings>,
    reservations: LiveReservations,
    stopped: bool,
    ejected: bool,
    format_failed: bool,
    sanitize_failed: bool,
    sanitize_may_exit: bool,
    nexuses: Vec<NexusState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NexusState {
    nexus: SavedNexus,
    /// Additional sense code and qualifier of each.
    attentions: Vec<(u8, u8)>,
    prevents_removal: bool,
    aca: bool,
    inventory: u64,
}

impl From<&Snapshot> for UnitState {
    fn from(snapshot: &Snapshot) -> Self {
        let nexuses = snapshot.waiting.iter().map(|waiting| NexusState {
            nexus: SavedNexus::from(&waiting.nexus),
            attentions: waiting.attentions.iter().map(|Attention(asc, ascq)| (asc, ascq)).collect(),
            prevents_removal: waiting.prevents,
            aca: waiting.aca,
            inventory: waiting.inventory,
        });
        Self {
            naa: format!("{:016x}", snapshot.naa),
            blocks: snapshot.blocks,
            mode: snapshot.modes.0,
            saved_mode: snapshot.modes.1,
            reservations: snapshot.reservations.to_live(),
            stopped: snapshot.stopped,
            ejected: snapshot.ejected,
            format_failed: snapshot.format_failed,
            sanitize_failed: snapshot.sanitize_failed,
            sanitize_may_exit: snapshot.sanitize_may_exit,
            nexuses: nexuses.collect(),
        }
    }
}

impl TryFrom<UnitState> for Snapshot {
    type Error = SnapshotError;

    fn try_from(saved: UnitState) -> Result<Self, SnapshotError> {
        let count = saved.nexuses.len();
        if count > MAX_NEXUSES {
            return Err(SnapshotError::Nexuses { count });
        }
        let mut seen = HashSet::new();
        let mut waiting = Vec::with_capacity(count);
        for saved in saved.nexuses {
            let NexusState { nexus, attentions, prevents_removal: prevents, aca, inventory } =
                saved;
            let nexus = nexus.parse()?;
            if !seen.insert(nexus.clone()) {
                return Err(SnapshotError::Duplicate(nexus));
            }
            let count = attentions.len();
            let attentions = attentions.into_iter().map(|(asc, ascq)| Attention(asc, ascq));
            let attentions =
                Attentions::resumed(attentions).ok_or(SnapshotError::Attentions { count })?;
            waiting.push(Waiting { nexus, attentions, prevents, aca, inventory });
        }
        Ok(Self {
            // What is no number is no logical unit's name either.
            naa: u64::from_str_radix(&saved.naa, 16).unwrap_or(0),
            blocks: saved.blocks,
            modes: (saved.mode, saved.saved_mode),
            reservations: Reservations::from_live(saved.reservations)?,
            stopped: saved.stopped,
            ejected: saved.ejected,
            format_failed: saved.format_failed,
            sanitize_failed: saved.sanitize_failed,
            sanitize_may_exit: saved.sanitize_may_exit,
            waiting,
        })
    }
}

/// Parses a versioned form; another version is named as such whatever else it holds.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, SnapshotError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    if text.len() > MAX_LEN {
        return Err(SnapshotError::TooLarge { len: text.len() });
    }
    let Version { version } = serde_json::from_slice(text)?;
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    Ok(serde_json::from_slice(text)?)
}

/// The format version.
pub(super) const VERSION: u32 = 1;
/// The longest saved state in bytes.
pub(super) const MAX_LEN: usize = 64 << 20;
/// How many nexuses of a logical unit are saved.
const MAX_NEXUSES: usize = 4096;

#[cfg(test)]
mod tests;
