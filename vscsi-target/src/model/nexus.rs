//! I_T nexuses and their I_T_L nexuses.

use super::{
    Attention, LogicalUnit, Target,
    attention::Attentions,
    reservation::{Denied, NexusId},
};
use libsrp::Lun;
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// What a command of one I_T_L nexus has to be checked for, as bits of [`Itl::attention`].
pub mod bit {
    /// A unit attention is pending.
    pub const UNIT_ATTENTION: u32 = 1;
    /// Another nexus's reservation denies reads.
    pub const READ_DENIED: u32 = 2;
    /// Another nexus's reservation denies writes.
    pub const WRITE_DENIED: u32 = 4;
    /// Another nexus's RESERVE denies nearly everything.
    pub const LEGACY_DENIED: u32 = 8;
}

/// Told of what changes for a nexus, by transports that can tell their initiator without being
/// asked. Called on any thread, sometimes with locks of the model held: it only takes note.
pub trait Observer: Send + Sync + fmt::Debug {
    /// Something changed at a logical unit number.
    fn changed(&self, number: u16, change: Change);
}

/// What an [`Observer`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A logical unit appeared.
    Added,
    /// The logical unit is gone.
    Removed,
    /// A unit attention was established.
    Attention(Attention),
}

/// The fixed facts about an I_T nexus.
#[derive(Debug)]
pub struct NexusInfo {
    /// Unique in this process.
    pub id: u64,
    /// What reservations know it by: TransportID and relative target port.
    pub identity: NexusId,
    /// The initiator port's name as a person writes it (iSCSI: the initiator's name).
    pub initiator: String,
    /// The target it reaches.
    pub target: Arc<Target>,
    /// Relative target port identifier.
    pub port: u16,
    /// Who is told of changes.
    pub observer: Option<Arc<dyn Observer>>,
}

impl NexusInfo {
    /// A digest of the numbers and names of the logical units it sees now; never 0.
    pub(super) fn inventory(&self) -> u64 {
        let mut digest = FNV_OFFSET;
        for (number, lu) in self.target.luns_for(&self.initiator) {
            for byte in number.to_be_bytes().into_iter().chain(lu.config.identity.naa.to_be_bytes())
            {
                digest = (digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
            }
        }
        digest.max(1)
    }

    fn tell(&self, number: u16, change: Change) {
        if let Some(observer) = &self.observer {
            observer.changed(number, change);
        }
    }
}

/// An I_T nexus. Dropping it is an I_T nexus loss: the transport must have its tasks aborted first.
pub struct Nexus {
    /// The fixed facts.
    pub info: Arc<NexusInfo>,
    table: Mutex<Arc<LunTable>>,
    generation: AtomicU64,
}

/// The logical units of one nexus by number.
#[derive(Debug, Default)]
pub struct LunTable {
    by_number: Vec<Option<Arc<Itl>>>,
}

impl LunTable {
    /// No logical units.
    pub const EMPTY: Self = Self { by_number: Vec::new() };

    /// The I_T_L nexus at a logical unit number.
    pub fn at(&self, number: u16) -> Option<&Arc<Itl>> {
        self.by_number.get(usize::from(number))?.as_ref()
    }

    /// All of them with their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Arc<Itl>)> {
        (0u16..).zip(&self.by_number).filter_map(|(number, itl)| Some((number, itl.as_ref()?)))
    }
}

impl Nexus {
    /// Establishes a nexus between an initiator port and a port of `target`; its logical units
    /// each start with a power-on unit attention.
    pub fn establish(
        target: Arc<Target>,
        port: u16,
        identity: NexusId,
        initiator: String,
    ) -> Arc<Self> {
        Self::establish_observed(target, port, identity, initiator, None)
    }

    /// Establishes a nexus whose changes an observer is told of, from now on.
    pub fn establish_observed(
        target: Arc<Target>,
        port: u16,
        identity: NexusId,
        initiator: String,
        observer: Option<Arc<dyn Observer>>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let nexus = Arc::new(Self {
            info: Arc::new(NexusInfo {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                identity,
                initiator,
                target,
                port,
                observer,
            }),
            table: Mutex::default(),
            generation: AtomicU64::new(1),
        });
        nexus.info.target.attach(&nexus);
        nexus.remap(None);
        for (_, itl) in nexus.table().iter() {
            itl.compare_inventory();
        }
        nexus
    }

    /// Takes over the target's LUN map: logical units that stay keep their I_T_L nexus and its
    /// unit attentions, new ones get one. `condition` is established on those that stayed.
    pub(super) fn remap(&self, condition: Option<Attention>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = LunTable::default();
        for (number, lu) in self.info.target.luns_for(&self.info.initiator) {
            let itl = match table.at(number) {
                Some(old) if old.lu.id == lu.id => {
                    if let Some(condition) = condition {
                        old.establish(condition);
                    }
                    Arc::clone(old)
                }
                old => {
                    // What is there from the start is no change.
                    if condition.is_some() {
                        if old.is_some() {
                            self.info.tell(number, Change::Removed);
                        }
                        self.info.tell(number, Change::Added);
                    }
                    Itl::new(Arc::clone(&self.info), number, lu)
                }
            };
            let at = usize::from(number);
            if fresh.by_number.len() <= at {
                fresh.by_number.resize_with(at + 1, || None);
            }
            fresh.by_number[at] = Some(itl);
        }
        for (number, _) in table.iter().filter(|(number, _)| fresh.at(*number).is_none()) {
            self.info.tell(number, Change::Removed);
        }
        *table = Arc::new(fresh);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The table now.
    pub fn table(&self) -> Arc<LunTable> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The initiator port was reset (a guest's reboot): what belonged to the nexus on its logical
    /// units ends, and each reports POWER ON. Its tasks must be gone already.
    pub fn reset(&self) {
        self.lose();
        for (_, itl) in self.table().iter() {
            itl.establish(Attention::POWER_ON);
        }
    }

    /// An I_T nexus loss releases a legacy reservation and lifts removal prevention and ACA.
    fn lose(&self) {
        for (_, itl) in self.table().iter() {
            itl.lu.update(|state| {
                state.reservations.nexus_loss(&self.info.identity);
                state.preventers.retain(|&id| id != self.info.id);
                if state.aca == Some(self.info.id) {
                    state.aca = None;
                }
            });
        }
    }
}

impl fmt::Debug for Nexus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nexus {} of {}", self.info.id, self.info.initiator)
    }
}

impl Drop for Nexus {
    fn drop(&mut self) {
        self.lose();
    }
}

/// A transport's view of a nexus, kept on one reactor: looking a LUN up costs one relaxed load
/// while the map does not change.
#[derive(Debug)]
pub struct NexusView {
    nexus: Arc<Nexus>,
    table: Arc<LunTable>,
    seen: u64,
}

impl NexusView {
    /// A view of `nexus`.
    pub fn new(nexus: Arc<Nexus>) -> Self {
        let seen = nexus.generation.load(Ordering::Acquire);
        Self { table: nexus.table(), nexus, seen }
    }

    /// The nexus.
    pub fn nexus(&self) -> &Arc<Nexus> {
        &self.nexus
    }

    /// The fixed facts.
    pub fn info(&self) -> &Arc<NexusInfo> {
        &self.nexus.info
    }

    /// The LUN table, brought up to date.
    pub fn table(&mut self) -> &Arc<LunTable> {
        let now = self.nexus.generation.load(Ordering::Acquire);
        if now != self.seen {
            self.table = self.nexus.table();
            self.seen = now;
        }
        &self.table
    }

    /// The I_T_L nexus a LUN field addresses.
    pub fn find(&mut self, lun: Lun) -> Option<&Arc<Itl>> {
        let number = lun.number()?;
        self.table().at(number)
    }
}

/// An I_T_L nexus: one logical unit as one I_T nexus sees it.
#[derive(Debug)]
pub struct Itl {
    /// The I_T nexus.
    pub nexus: Arc<NexusInfo>,
    /// Its logical unit number.
    pub number: u16,
    /// The logical unit.
    pub lu: Arc<LogicalUnit>,
    attention: AtomicU32,
    /// The logical units that this nexus saw elsewhere, until they are compared; 0 for none.
    inventory: AtomicU64,
    pending: Mutex<Attentions>,
}

impl Itl {
    fn new(nexus: Arc<NexusInfo>, number: u16, lu: Arc<LogicalUnit>) -> Arc<Self> {
        let itl = Arc::new(Self {
            nexus,
            number,
            lu,
            attention: AtomicU32::new(bit::UNIT_ATTENTION),
            inventory: AtomicU64::new(0),
            pending: Mutex::new(Attentions::power_on()),
        });
        itl.lu.attach(&itl);
        itl
    }

    /// What to check, of [`bit`]; 0 nearly always.
    pub fn attention(&self) -> u32 {
        self.attention.load(Ordering::Acquire)
    }

    /// Establishes a unit attention.
    pub fn establish(&self, condition: Attention) {
        self.with_pending(|pending| pending.establish(condition));
        self.nexus.tell(self.number, Change::Attention(condition));
    }

    /// Takes the next unit attention to report.
    pub fn take_attention(&self) -> Option<Attention> {
        self.with_pending(Attentions::take)
    }

    /// Drops a condition the initiator has learnt of by other means.
    pub fn clear_attention(&self, condition: Attention) {
        self.with_pending(|pending| pending.clear(condition));
    }

    /// The next unit attention and how many are pending, left in place.
    pub fn peek_attention(&self) -> (Option<Attention>, usize) {
        self.with_pending(|pending| (pending.peek(), pending.len()))
    }

    /// Every pending unit attention, left in place.
    pub(super) fn attentions(&self) -> Attentions {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the unit attentions that the nexus had elsewhere, where it saw these logical units.
    pub(super) fn resume(&self, attentions: Attentions, inventory: u64) {
        self.inventory.store(inventory, Ordering::Release);
        self.with_pending(|pending| *pending = attentions);
    }

    /// Tells a nexus that took over where it was whether it sees other logical units now.
    pub(super) fn compare_inventory(&self) {
        let seen = self.inventory.swap(0, Ordering::AcqRel);
        if seen != 0 && seen != self.nexus.inventory() {
            self.establish(Attention::LUNS_CHANGED);
        }
    }

    fn with_pending<R>(&self, with: impl FnOnce(&mut Attentions) -> R) -> R {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = pending.is_empty();
        let result = with(&mut pending);
        let is_empty = pending.is_empty();
        if is_empty {
            self.attention.fetch_and(!bit::UNIT_ATTENTION, Ordering::AcqRel);
        } else {
            self.attention.fetch_or(bit::UNIT_ATTENTION, Ordering::AcqRel);
        }
        drop(pending);
        if !(was_empty && is_empty) {
            self.lu.changed();
        }
        result
    }

    pub(super) fn set_reservation_bits(&self, denied: Denied) {
        let all = bit::READ_DENIED | bit::WRITE_DENIED | bit::LEGACY_DENIED;
        let mut bits = 0;
        if denied.read {
            bits |= bit::READ_DENIED;
        }
        if denied.write {
            bits |= bit::WRITE_DENIED;
        }
        if denied.legacy {
            bits |= bit::LEGACY_DENIED;
        }
        let _ = self
            .attention
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(old & !all | bits));
    }
}

// FNV-1a: nobody gains anything by a collision.
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01B3;
