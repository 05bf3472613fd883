//! Persistence through power loss: the saved form of a logical unit's reservations, and the file
//! that holds it (SPC-4 5.13.5.1).
//!
//! A save is a new file, synced, renamed over the old one, and the directory synced: whatever
//! happens, either the old or the new state is there whole. A file that cannot be understood is an
//! error for whoever starts the target to act upon. It is never taken for "no reservations".
//!
//! These calls block; they belong on the slow path.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::replace::{replace, sync_directory};

use super::{
    Capabilities, NexusId, Persist, Persistent, Registration, ReservationType, Reservations,
    TransportId, TransportIdError,
};

/// The file one logical unit's reservations are saved in.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// A store in this file, whose directory has to exist. `PATH.new` is used while saving.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Does what [`super::Effects::persist`] asks for. Returns once it is durable.
    pub fn apply(&self, persist: Persist, state: &Reservations) -> Result<(), StoreError> {
        match persist {
            Persist::Unchanged => Ok(()),
            Persist::Save => self.save(state),
            Persist::Remove => self.remove(),
        }
    }

    /// What was saved, or `None` when nothing is. After a power on, call
    /// [`Reservations::power_on`] on it.
    pub fn load(&self, capabilities: Capabilities) -> Result<Option<Reservations>, StoreError> {
        let mut text = Vec::new();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.io("open", e)),
        };
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| self.io("read", e))?;
        if text.len() as u64 > MAX_FILE {
            return Err(StoreError::TooLarge { path: self.path.clone() });
        }
        let state = Reservations::from_json(&text, capabilities)
            .map_err(|source| StoreError::Content { path: self.path.clone(), source })?;
        Ok(Some(state))
    }

    /// Replaces what is saved.
    pub fn save(&self, state: &Reservations) -> Result<(), StoreError> {
        let text = state.to_json().map_err(|source| StoreError::Content {
            path: self.path.clone(),
            source: SavedError::Json(source),
        })?;
        replace(&self.path, &text, true).map_err(|(what, source)| self.io(what, source))
    }

    /// Removes what is saved, if anything is.
    pub fn remove(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(self.io("remove", e)),
        }
        sync_directory(&self.path).map_err(|(what, source)| self.io(what, source))
    }

    fn io(&self, what: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { what, path: self.path.clone(), source }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {what} the reservations in {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is larger than any saved state.
    #[error("{path} is larger than any saved reservations ({MAX_FILE} bytes)")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold a valid state.
    #[error("{path} holds no valid reservations: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SavedError,
    },
}

/// What is wrong with a saved state.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Not JSON of the right shape: cut off, a key missing, unknown or of another type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Written by a version with another format.
    #[error("format version {0} is not supported (this is {VERSION})")]
    Version(u32),
    /// A reservation key is not `0x` and 16 hexadecimal digits, or is zero.
    #[error("{0:?} is no reservation key")]
    Key(String),
    /// A TransportID is not pairs of hexadecimal digits.
    #[error("{0:?} is not hexadecimal")]
    Hex(String),
    /// A TransportID is malformed.
    #[error("TransportID {id}: {source}")]
    TransportId {
        /// Its digits.
        id: String,
        /// Its fault.
        source: TransportIdError,
    },
    /// Bytes follow a TransportID.
    #[error("TransportID {0} is longer than it says")]
    TrailingBytes(String),
    /// The readable name tells another port than the TransportID.
    #[error("{name:?} is not the name of TransportID {id}")]
    Name {
        /// The name.
        name: String,
        /// The TransportID's digits.
        id: String,
    },
    /// A nexus is registered twice.
    #[error("{0:?} is registered twice")]
    Duplicate(NexusId),
    /// More registrations than the logical unit takes.
    #[error("{count} registrations, but at most {max} are allowed")]
    TooMany {
        /// How many are saved.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// The holder is not registered, or an all registrants reservation has no registration.
    #[error("the reservation's holder is not registered")]
    HolderNotRegistered,
    /// A RESERVE reservation beside registrations, which exclude each other.
    #[error("a RESERVE reservation is saved beside registrations")]
    Mixed,
    /// A holder is named for an all registrants reservation, or none for another type.
    #[error("a reservation of type {0:?} is saved with the wrong kind of holder")]
    Holder(ReservationType),
}

impl Reservations {
    /// The saved form: everything but a RESERVE reservation, which no power loss survives.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let saved = Saved {
            version: VERSION,
            generation: self.generation,
            reservation: self.persistent.as_ref().map(SavedReservation::from),
            registrations: self.registrations.iter().map(SavedRegistration::from).collect(),
        };
        let mut text = serde_json::to_vec_pretty(&saved)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the saved form, and checks every invariant of the state.
    ///
    /// Only a state with APTPL set is ever saved, so that is what this gives.
    pub fn from_json(text: &[u8], capabilities: Capabilities) -> Result<Self, SavedError> {
        let SavedVersion { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(SavedError::Version(version));
        }
        let saved: Saved = serde_json::from_slice(text)?;
        let state = Self { generation: saved.generation, aptpl: true, ..Self::new(capabilities) };
        state.filled(saved.registrations, saved.reservation)
    }

    /// All of the state, for [`crate::model::snapshot`].
    pub(in crate::model) fn to_live(&self) -> LiveReservations {
        LiveReservations {
            aptpl: self.aptpl,
            generation: self.generation,
            reservation: self.persistent.as_ref().map(SavedReservation::from),
            registrations: self.registrations.iter().map(SavedRegistration::from).collect(),
            reserve: self.legacy.as_ref().map(SavedNexus::from),
        }
    }

    /// Checks every invariant of what [`Reservations::to_live`] gave, here or on another host.
    pub(in crate::model) fn from_live(live: LiveReservations) -> Result<Self, SavedError> {
        let state = Self { generation: live.generation, aptpl: live.aptpl, ..Self::default() };
        let mut state = state.filled(live.registrations, live.reservation)?;
        state.legacy = live.reserve.map(SavedNexus::parse).transpose()?;
        if state.legacy.is_some() && !state.registrations.is_empty() {
            return Err(SavedError::Mixed);
        }
        Ok(state)
    }

    /// The same state on a logical unit with these capabilities.
    pub(in crate::model) fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.aptpl &= capabilities.persist_through_power_loss;
        Self { capabilities, ..self }
    }

    /// Calls a nexus by another name, unless somebody has that already.
    pub(in crate::model) fn rename(&mut self, from: &NexusId, to: &NexusId) {
        if self.key_of(to).is_some() || self.legacy.as_ref() == Some(to) {
            return;
        }
        let registered = self.registrations.iter_mut().map(|registration| &mut registration.nexus);
        let holder = self.persistent.iter_mut().filter_map(|held| held.holder.as_mut());
        for nexus in registered.chain(holder).chain(self.legacy.as_mut()) {
            if nexus == from {
                *nexus = to.clone();
            }
        }
    }

    fn filled(
        mut self,
        registrations: Vec<SavedRegistration>,
        reservation: Option<SavedReservation>,
    ) -> Result<Self, SavedError> {
        let (count, max) = (registrations.len(), self.capabilities.max_registrations);
        if count > max {
            return Err(SavedError::TooMany { count, max });
        }
        for saved in registrations {
            let key = parse_key(&saved.key).ok_or(SavedError::Key(saved.key))?;
            let nexus = saved.nexus.parse()?;
            if self.key_of(&nexus).is_some() {
                return Err(SavedError::Duplicate(nexus));
            }
            self.registrations.push(Registration { nexus, key });
        }
        if let Some(SavedReservation { kind, holder }) = reservation {
            if holder.is_some() == kind.is_all_registrants() {
                return Err(SavedError::Holder(kind));
            }
            let holder = holder.map(SavedNexus::parse).transpose()?;
            let registered = match &holder {
                Some(holder) => self.key_of(holder).is_some(),
                None => !self.registrations.is_empty(),
            };
            if !registered {
                return Err(SavedError::HolderNotRegistered);
            }
            self.persistent = Some(Persistent { kind, holder });
        }
        Ok(self)
    }
}

/// Read first, so that another version is named as such whatever else it holds.
#[derive(Deserialize)]
struct SavedVersion {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    generation: u32,
    #[serde(deserialize_with = "Option::deserialize")]
    reservation: Option<SavedReservation>,
    registrations: Vec<SavedRegistration>,
}

/// All of a [`Reservations`], also what no power loss survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::model) struct LiveReservations {
    aptpl: bool,
    generation: u32,
    #[serde(deserialize_with = "Option::deserialize")]
    reservation: Option<SavedReservation>,
    registrations: Vec<SavedRegistration>,
    /// Who holds the logical unit by RESERVE.
    #[serde(deserialize_with = "Option::deserialize")]
    reserve: Option<SavedNexus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedReservation {
    #[serde(rename = "type")]
    kind: ReservationType,
    #[serde(deserialize_with = "Option::deserialize")]
    holder: Option<SavedNexus>,
}

impl From<&Persistent> for SavedReservation {
    fn from(held: &Persistent) -> Self {
        Self { kind: held.kind, holder: held.holder.as_ref().map(SavedNexus::from) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRegistration {
    key: String,
    nexus: SavedNexus,
}

impl From<&Registration> for SavedRegistration {
    fn from(registration: &Registration) -> Self {
        Self {
            key: format!("{:#018x}", registration.key),
            nexus: SavedNexus::from(&registration.nexus),
        }
    }
}

/// A [`NexusId`], readable and exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::model) struct SavedNexus {
    name: String,
    transport_id: String,
    relative_target_port: u16,
}

impl From<&NexusId> for SavedNexus {
    fn from(nexus: &NexusId) -> Self {
        let bytes = nexus.transport_id.as_bytes().iter();
        Self {
            name: nexus.transport_id.to_string(),
            transport_id: bytes.map(|b| format!("{b:02x}")).collect(),
            relative_target_port: nexus.relative_target_port,
        }
    }
}

impl SavedNexus {
    /// Checks that it is exact, and that the readable name is the same port's.
    pub(in crate::model) fn parse(self) -> Result<NexusId, SavedError> {
        let Self { name, transport_id: id, relative_target_port } = self;
        let Some(bytes) = parse_hex(&id) else { return Err(SavedError::Hex(id)) };
        let (transport_id, used) = match TransportId::parse(&bytes) {
            Ok(parsed) => parsed,
            Err(source) => return Err(SavedError::TransportId { id, source }),
        };
        if used != bytes.len() {
            return Err(SavedError::TrailingBytes(id));
        }
        if transport_id.to_string() != name {
            return Err(SavedError::Name { name, id });
        }
        Ok(NexusId::new(transport_id, relative_target_port))
    }
}

fn parse_key(text: &str) -> Option<NonZeroU64> {
    let bytes = parse_hex(text.strip_prefix("0x")?)?;
    NonZeroU64::new(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    if rest.is_empty() { pairs.collect() } else { None }
}

const VERSION: u32 = 1;
const MAX_FILE: u64 = 16 << 20;
