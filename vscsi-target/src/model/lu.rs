//! A logical unit: a backend with an identity, state that all its I_T nexuses share, and a gate
//! that orders tasks.

use super::{
    Attention, Identity, Itl, attention::Attentions, gate::Gate, handover::Handover, live::Live,
    snapshot::Waiting,
};
use crate::{
    backend::Backend,
    model::reservation::{NexusId, Reservations},
    reactor::Postboxes,
    sense::Sense,
    spc::{buffer::Buffers, mode::Modes},
};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// Conditions of the whole logical unit that a command meets, as bits of [`LogicalUnit::flags`].
pub mod flag {
    /// Writes are refused: a read-only backend or the software write protect mode bit.
    pub const WRITE_PROTECTED: u32 = 1;
    /// Stopped, without medium, or formatting: [`super::LogicalUnit::readiness`] says which.
    pub const NOT_READY: u32 = 2;
    /// An ACA condition is established.
    pub const ACA: u32 = 4;
    /// The write cache is disabled: every write goes to the medium.
    pub const WRITE_THROUGH: u32 = 8;
    /// An atomic command was seen: reads are not lent from the backend's memory any more.
    pub const ATOMICS: u32 = 16;
    /// It was taken out of service; only tasks in flight still hold it.
    pub const GONE: u32 = 32;
    /// Another process has its image: [`super::LogicalUnit::acquire`] was not called yet.
    pub const AWAY: u32 = 64;
}

/// How a logical unit is set up.
#[derive(Clone, Debug)]
pub struct LuConfig {
    /// Its names.
    pub identity: Identity,
    /// The medium can be ejected.
    pub removable: bool,
    /// Writes are refused, whatever the backend allows.
    pub read_only: bool,
    /// Where saved mode pages and APTPL reservations live; `None` when nothing may survive.
    pub state_dir: Option<PathBuf>,
}

/// What changes about a logical unit, behind one mutex.
#[derive(Debug)]
pub struct LuState {
    /// Reservations and registrations.
    pub reservations: Reservations,
    /// Mode pages.
    pub modes: Modes,
    /// The medium was ejected.
    pub ejected: bool,
    /// START STOP UNIT stopped it.
    pub stopped: bool,
    /// I_T nexuses (by [`super::NexusInfo::id`]) that prevent medium removal.
    pub preventers: Vec<u64>,
    /// A long operation in progress (FORMAT UNIT, SANITIZE): how it is reported, with its progress.
    pub busy: Option<Sense>,
    /// A SANITIZE failed: every media access is refused until one succeeds.
    pub sanitize_failed: bool,
    /// That SANITIZE had AUSE set: EXIT FAILURE MODE may end the failed state.
    pub sanitize_may_exit: bool,
    /// The nexus that an ACA condition is established for.
    pub aca: Option<u64>,
    /// What waits for I_T nexuses that a restored state named, until they are established.
    pub waiting: Vec<Waiting>,
    /// Another process has its image.
    pub away: bool,
}

/// Counters of one logical unit, for LOG SENSE, `vscsi stats` and metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// READ commands that ended in GOOD.
    pub reads: AtomicU64,
    /// Bytes they moved.
    pub read_bytes: AtomicU64,
    /// WRITE commands that ended in GOOD.
    pub writes: AtomicU64,
    /// Bytes they moved.
    pub write_bytes: AtomicU64,
    /// Commands that ended otherwise than in GOOD or CONDITION MET.
    pub failures: AtomicU64,
    /// Errors of the backend.
    pub backend_errors: AtomicU64,
    /// Commands that were not done within the target's deadline.
    pub timeouts: AtomicU64,
}

/// A logical unit.
#[derive(Debug)]
pub struct LogicalUnit {
    /// Unique in this process.
    pub id: u64,
    /// How it was set up.
    pub config: LuConfig,
    /// Where its blocks are.
    pub backend: Backend,
    /// Orders tasks; counts those in flight.
    pub gate: Gate,
    /// Counters, one cell a reactor so that they are never shared.
    pub counters: Box<[Counters]>,
    /// What READ BUFFER and WRITE BUFFER move.
    pub buffers: Buffers,
    erase_rate: AtomicU64,
    overdue: AtomicU32,
    flags: AtomicU32,
    state: Mutex<LuState>,
    turn: Mutex<()>,
    pub(super) live: OnceLock<Live>,
    pub(super) handover: Handover,
    itls: Mutex<Vec<Weak<Itl>>>,
}

impl LogicalUnit {
    /// A logical unit over `backend`. `reservations` and `modes` are what was saved, or defaults.
    pub fn new(
        config: LuConfig,
        backend: Backend,
        reservations: Reservations,
        modes: Modes,
        postboxes: Arc<Postboxes>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let reactors = postboxes.len();
        let away = backend.is_handed_over();
        let lu = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            backend,
            gate: Gate::new(postboxes),
            counters: (0..reactors).map(|_| Counters::default()).collect(),
            buffers: Buffers::default(),
            erase_rate: AtomicU64::new(0),
            overdue: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            state: Mutex::new(LuState {
                reservations,
                modes,
                ejected: false,
                stopped: false,
                preventers: Vec::new(),
                busy: None,
                sanitize_failed: false,
                sanitize_may_exit: false,
                aca: None,
                waiting: Vec::new(),
                away,
            }),
            turn: Mutex::new(()),
            live: OnceLock::new(),
            handover: Handover::default(),
            itls: Mutex::new(Vec::new()),
        };
        lu.update(|_| ());
        Arc::new(lu)
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        self.backend.properties().block_size
    }

    /// Number of logical blocks now.
    pub fn blocks(&self) -> u64 {
        self.backend.len() / u64::from(self.block_size())
    }

    /// Bytes a second that FORMAT UNIT and SANITIZE write at most, so that they leave the disk to
    /// others; 0 for no limit.
    pub fn erase_rate(&self) -> u64 {
        self.erase_rate.load(Ordering::Relaxed)
    }

    /// Sets [`LogicalUnit::erase_rate`].
    pub fn set_erase_rate(&self, rate: u64) {
        self.erase_rate.store(rate, Ordering::Relaxed);
    }

    /// Commands past the deadline that the backend has not given back.
    pub fn overdue(&self) -> u32 {
        self.overdue.load(Ordering::Relaxed)
    }

    /// A command that the backend has is past the deadline: says so once until
    /// [`LogicalUnit::caught_up`] has been called as often.
    pub fn fell_behind(&self, seconds: u32) {
        if self.overdue.fetch_add(1, Ordering::Relaxed) == 0 {
            let backend = &self.backend.properties().description;
            tracing::warn!(lu = self.id, %backend, "the medium has not answered for {seconds} s");
        }
    }

    /// A command that was past the deadline has ended.
    pub fn caught_up(&self) {
        if self.overdue.fetch_sub(1, Ordering::Relaxed) == 1 {
            let backend = &self.backend.properties().description;
            tracing::info!(lu = self.id, %backend, "no command waits for the medium too long");
        }
    }

    /// Conditions, of [`flag`].
    pub fn flags(&self) -> u32 {
        // Ordered with the gate's counts: see `Engine::run`.
        self.flags.load(Ordering::SeqCst)
    }

    /// Sets bits of [`flag`] that no state implies.
    pub fn set_flags(&self, bits: u32) {
        self.flags.fetch_or(bits, Ordering::AcqRel);
    }

    /// Looks at the shared state. Never hold it over input or output.
    pub fn state(&self) -> MutexGuard<'_, LuState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other command prepares a change that has to be stored before it is made.
    /// Held over input and output, so only on worker threads.
    pub fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the shared state and brings the flags and every nexus's reservation bits in line.
    pub fn update<R>(&self, change: impl FnOnce(&mut LuState) -> R) -> R {
        let mut state = self.state();
        let result = change(&mut state);
        let mut bits = 0;
        if self.config.read_only
            || self.backend.properties().read_only
            || state.modes.software_write_protect()
        {
            bits |= flag::WRITE_PROTECTED;
        }
        if state.ejected || state.stopped || state.busy.is_some() || state.sanitize_failed {
            bits |= flag::NOT_READY;
        }
        if state.away {
            bits |= flag::AWAY | flag::NOT_READY;
        }
        if state.aca.is_some() {
            bits |= flag::ACA;
        }
        if !state.modes.write_cache_enabled() {
            bits |= flag::WRITE_THROUGH;
        }
        let kept = flag::ATOMICS | flag::GONE;
        let _ = self
            .flags
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(old & kept | bits));
        for itl in self.itls() {
            itl.set_reservation_bits(state.reservations.denied(&itl.nexus.identity));
        }
        drop(state);
        self.changed();
        result
    }

    /// Why media commands cannot run now, if so.
    pub fn readiness(&self) -> Result<(), Sense> {
        let state = self.state();
        if state.away {
            Err(Sense::BECOMING_READY)
        } else if state.ejected {
            Err(Sense::NO_MEDIUM)
        } else if let Some(busy) = state.busy {
            Err(busy)
        } else if state.sanitize_failed {
            Err(Sense::SANITIZE_FAILED)
        } else if state.stopped {
            Err(Sense::STOPPED)
        } else {
            Ok(())
        }
    }

    /// Every live I_T_L nexus.
    pub fn itls(&self) -> Vec<Arc<Itl>> {
        let mut itls = self.itls.lock().unwrap_or_else(PoisonError::into_inner);
        itls.retain(|itl| itl.strong_count() > 0);
        itls.iter().filter_map(Weak::upgrade).collect()
    }

    /// Adds a new I_T_L nexus, which takes over what waits for it.
    pub(super) fn attach(&self, itl: &Arc<Itl>) {
        self.itls.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(itl));
        let state = self.state();
        if !state.waiting.is_empty() {
            drop(state);
            self.update(|state| state.claim(itl));
            return;
        }
        itl.set_reservation_bits(state.reservations.denied(&itl.nexus.identity));
    }

    /// Establishes a unit attention for every I_T nexus, or for all but one (by nexus id).
    pub fn establish(&self, condition: Attention, except: Option<u64>) {
        let except = |itl: &Itl| Some(itl.nexus.id) == except;
        for waiting in &mut self.state().waiting {
            waiting.attentions.establish(condition);
        }
        for itl in self.itls() {
            if !except(&itl) {
                itl.establish(condition);
            }
        }
    }

    /// Establishes a unit attention for the nexuses of this name.
    pub fn establish_for(&self, nexus: &NexusId, condition: Attention) {
        for waiting in self.state().waiting.iter_mut().filter(|entry| entry.nexus == *nexus) {
            waiting.attentions.establish(condition);
        }
        for itl in self.itls().iter().filter(|itl| itl.nexus.identity == *nexus) {
            itl.establish(condition);
        }
    }

    /// Changes the capacity after the backend grew or shrank, and tells every nexus.
    pub fn resized(&self) {
        self.establish(Attention::CAPACITY_CHANGED, None);
    }
}

impl Attentions {
    /// The queue a new I_T nexus starts with (SAM-5 5.14.5).
    pub fn power_on() -> Self {
        let mut pending = Self::default();
        pending.establish(Attention::POWER_ON);
        pending
    }
}
