//! The gate of a logical unit's task set.
//!
//! Ordinary commands only count themselves in and out, each reactor in a cell of its own: two
//! uncontended atomic operations. A command that needs more raises the gate: an ORDERED task waits
//! until everything before it is done and holds back what comes after it; an atomic command
//! (COMPARE AND WRITE, ORWRITE, WRITE ATOMIC) does so for the blocks it names only.
//!
//! To know when everything before has ended, the cells count in two epochs. Raising flips the
//! epoch, and waits until the old one is empty; what enters meanwhile counts in the new one. One
//! raiser waits at a time, so the epoch it flips to is always empty.

use crate::{
    engine::TaskKey,
    reactor::{Mail, Postboxes},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst},
    },
};

/// What a task needs of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// An ordinary SIMPLE command on these blocks (`None`: it touches no blocks).
    Simple(Option<(u64, u64)>),
    /// A HEAD OF QUEUE or ACA task: waits for atomic commands on its blocks, not for ORDERED tasks.
    Head(Option<(u64, u64)>),
    /// These blocks alone, from an LBA on.
    Range(u64, u64),
    /// The whole task set alone.
    All,
}

impl Need {
    fn raises(self) -> bool {
        matches!(self, Self::Range(..) | Self::All)
    }

    /// Whether a task with this need has to wait for an earlier one.
    fn waits_for(self, earlier: Self) -> bool {
        let overlap = |a: (u64, u64), b: (u64, u64)| {
            a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
        };
        match (self, earlier) {
            (Self::Head(_), Self::All) => false,
            (Self::All, _) | (_, Self::All) => true,
            (Self::Range(lba, blocks), Self::Range(lba2, blocks2)) => {
                overlap((lba, blocks), (lba2, blocks2))
            }
            (Self::Simple(Some(mine)) | Self::Head(Some(mine)), Self::Range(lba, blocks)) => {
                overlap(mine, (lba, blocks))
            }
            // A raiser does not overtake an ordinary command that waits for an earlier raiser.
            (Self::Range(lba, blocks), Self::Simple(Some(theirs)) | Self::Head(Some(theirs))) => {
                overlap((lba, blocks), theirs)
            }
            _ => false,
        }
    }
}

/// Orders the tasks of one logical unit.
#[derive(Debug)]
pub struct Gate {
    postboxes: Arc<Postboxes>,
    cells: Box<[Cell]>,
    /// Somebody holds the gate or waits at it.
    raised: AtomicBool,
    epoch: AtomicU8,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    counts: [AtomicU32; 2],
}

#[derive(Debug, Default)]
struct Inner {
    held: Vec<Waiter>,
    /// The raiser that waits for the old epoch to empty.
    draining: Option<Waiter>,
    /// That raiser was cancelled: nobody waits for it, but the old epoch still has to empty before
    /// the next flip.
    cancelled: bool,
    queue: VecDeque<Waiter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    reactor: u16,
    task: TaskKey,
    need: Need,
}

/// A waiter let through, with the epoch it was counted in.
type Granted = (Waiter, u8);

impl Gate {
    /// An open gate.
    pub fn new(postboxes: Arc<Postboxes>) -> Self {
        let cells = (0..postboxes.len()).map(|_| Cell::default()).collect();
        Self {
            postboxes,
            cells,
            raised: AtomicBool::new(false),
            epoch: AtomicU8::new(0),
            inner: Mutex::default(),
        }
    }

    /// Lets an ordinary command in while nobody raised the gate; gives the epoch to leave with.
    #[inline]
    pub fn enter(&self, reactor: u16) -> Option<u8> {
        let epoch = self.epoch.load(SeqCst);
        self.count(reactor, epoch).fetch_add(1, SeqCst);
        // Read after counting: a raiser that misses the count is seen here.
        if self.raised.load(SeqCst) || self.epoch.load(SeqCst) != epoch {
            self.leave(reactor, epoch);
            return None;
        }
        Some(epoch)
    }

    /// Lets a task in, or queues it: then [`Mail::Granted`] tells its reactor when it may run.
    pub fn enter_or_wait(&self, reactor: u16, task: TaskKey, need: Need) -> Option<u8> {
        let mine = Waiter { reactor, task, need };
        let mut inner = self.lock();
        self.raised.store(true, SeqCst);
        inner.queue.push_back(mine);
        let mut granted = self.advance(&mut inner);
        drop(inner);
        let at = granted.iter().position(|(waiter, _)| *waiter == mine);
        let epoch = at.map(|at| granted.swap_remove(at).1);
        self.tell(granted);
        epoch
    }

    /// A task that [`Gate::enter`] let in is done.
    #[inline]
    pub fn leave(&self, reactor: u16, epoch: u8) {
        self.count(reactor, epoch).fetch_sub(1, SeqCst);
        if self.raised.load(SeqCst) {
            let mut inner = self.lock();
            let granted = self.advance(&mut inner);
            drop(inner);
            self.tell(granted);
        }
    }

    /// A task that raised the gate is done: gives up what it held, and leaves.
    pub fn lower(&self, reactor: u16, task: TaskKey, epoch: u8) {
        self.lock().held.retain(|held| (held.reactor, held.task) != (reactor, task));
        self.leave(reactor, epoch);
    }

    /// Takes a task that waits out of the queue. False when it was let through already: then its
    /// [`Mail::Granted`] is on its way.
    pub fn cancel(&self, reactor: u16, task: TaskKey) -> bool {
        let is_it = |waiter: &Waiter| (waiter.reactor, waiter.task) == (reactor, task);
        let mut inner = self.lock();
        let before = inner.queue.len();
        inner.queue.retain(|waiter| !is_it(waiter));
        let mut found = inner.queue.len() != before;
        if !inner.cancelled && inner.draining.as_ref().is_some_and(is_it) {
            inner.cancelled = true;
            found = true;
        }
        let granted = self.advance(&mut inner);
        drop(inner);
        self.tell(granted);
        found
    }

    /// Whether no task is inside or waits.
    pub fn is_idle(&self) -> bool {
        // The counts last: who waited is counted before it stops waiting.
        !self.raised.load(SeqCst) && self.is_drained(0) && self.is_drained(1)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, reactor: u16, epoch: u8) -> &AtomicU32 {
        // Reactors are numbered below the number of postboxes the cells were made for.
        &self.cells[usize::from(reactor)].counts[usize::from(epoch & 1)]
    }

    fn is_drained(&self, epoch: u8) -> bool {
        self.cells.iter().all(|cell| cell.counts[usize::from(epoch & 1)].load(SeqCst) == 0)
    }

    /// Lets through whoever may go now.
    fn advance(&self, inner: &mut Inner) -> Vec<Granted> {
        let mut granted = Vec::new();
        let let_in = |waiter: Waiter, granted: &mut Vec<Granted>| {
            let epoch = self.epoch.load(SeqCst);
            self.count(waiter.reactor, epoch).fetch_add(1, SeqCst);
            granted.push((waiter, epoch));
        };
        loop {
            if let Some(raiser) = inner.draining
                && self.is_drained(self.epoch.load(SeqCst) ^ 1)
            {
                inner.draining = None;
                if !std::mem::take(&mut inner.cancelled) {
                    inner.held.push(raiser);
                    let_in(raiser, &mut granted);
                }
            }
            let mut flipped = false;
            let mut at = 0;
            while let Some(&waiter) = inner.queue.get(at) {
                let draining = inner.draining.iter().filter(|_| !inner.cancelled);
                let ahead = inner.held.iter().chain(draining);
                let blocked = ahead
                    .chain(inner.queue.range(..at))
                    .any(|earlier| waiter.need.waits_for(earlier.need));
                if blocked || (waiter.need.raises() && inner.draining.is_some()) {
                    at += 1;
                    continue;
                }
                inner.queue.remove(at);
                if waiter.need.raises() {
                    self.epoch.fetch_xor(1, SeqCst);
                    inner.draining = Some(waiter);
                    flipped = true;
                } else {
                    let_in(waiter, &mut granted);
                }
            }
            // The old epoch may be empty already.
            if !flipped || !self.is_drained(self.epoch.load(SeqCst) ^ 1) {
                break;
            }
        }
        let idle = inner.held.is_empty() && inner.draining.is_none() && inner.queue.is_empty();
        self.raised.store(!idle, SeqCst);
        granted
    }

    fn tell(&self, granted: Vec<Granted>) {
        for (waiter, epoch) in granted {
            self.postboxes.post(waiter.reactor, Mail::Granted { task: waiter.task, epoch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (Gate, Arc<Postboxes>) {
        let postboxes = Postboxes::new(2).unwrap();
        (Gate::new(Arc::clone(&postboxes)), postboxes)
    }

    fn granted(postboxes: &Postboxes, reactor: u16) -> Vec<(u64, u8)> {
        let mut mail = Vec::new();
        postboxes.take(reactor, &mut mail);
        mail.into_iter()
            .map(|mail| match mail {
                Mail::Granted { task, epoch } => (task.0, epoch),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn ordinary_commands_enter_and_leave_freely() {
        let (gate, _) = gate();
        let a = gate.enter(0).unwrap();
        let b = gate.enter(1).unwrap();
        gate.leave(0, a);
        gate.leave(1, b);
        assert!(gate.is_drained(0) && gate.is_drained(1));
    }

    #[test]
    fn an_atomic_command_waits_for_what_is_in_flight_only() {
        let (gate, postboxes) = gate();
        let running = gate.enter(1).unwrap();
        assert_eq!(gate.enter_or_wait(0, TaskKey(1), Need::Range(8, 8)), None);
        // Elsewhere is free, on its blocks is not.
        assert_eq!(gate.enter(0), None);
        let elsewhere = gate.enter_or_wait(0, TaskKey(2), Need::Simple(Some((0, 8)))).unwrap();
        assert_eq!(gate.enter_or_wait(1, TaskKey(3), Need::Simple(Some((15, 1)))), None);
        gate.leave(1, running);
        let [(1, epoch)] = granted(&postboxes, 0)[..] else { panic!() };
        assert!(granted(&postboxes, 1).is_empty());
        gate.lower(0, TaskKey(1), epoch);
        let [(3, after)] = granted(&postboxes, 1)[..] else { panic!() };
        gate.leave(1, after);
        gate.leave(0, elsewhere);
        assert!(gate.enter(0).is_some());
    }

    #[test]
    fn an_ordered_task_waits_for_all_before_and_holds_back_all_after() {
        let (gate, postboxes) = gate();
        let first = gate.enter(0).unwrap();
        assert_eq!(gate.enter_or_wait(0, TaskKey(1), Need::All), None);
        assert_eq!(gate.enter_or_wait(0, TaskKey(2), Need::Simple(None)), None);
        let head = gate.enter_or_wait(0, TaskKey(3), Need::Head(None)).unwrap();
        gate.leave(0, first);
        let [(1, epoch)] = granted(&postboxes, 0)[..] else { panic!() };
        gate.lower(0, TaskKey(1), epoch);
        let [(2, _)] = granted(&postboxes, 0)[..] else { panic!() };
        gate.leave(0, head);
    }

    #[test]
    fn an_idle_gate_grants_at_once() {
        let (gate, _) = gate();
        for key in 0..4 {
            let epoch = gate.enter_or_wait(0, TaskKey(key), Need::All).unwrap();
            gate.lower(0, TaskKey(key), epoch);
        }
        assert!(gate.enter(0).is_some());
    }

    #[test]
    fn a_cancelled_raiser_lets_the_others_go() {
        let (gate, postboxes) = gate();
        let running = gate.enter(0).unwrap();
        assert_eq!(gate.enter_or_wait(0, TaskKey(1), Need::All), None);
        assert_eq!(gate.enter_or_wait(1, TaskKey(2), Need::Simple(None)), None);
        assert!(gate.cancel(0, TaskKey(1)));
        let [(2, second)] = granted(&postboxes, 1)[..] else { panic!() };
        assert!(!gate.cancel(0, TaskKey(1)));
        // What was running when the cancelled raiser came still holds up the next one.
        assert_eq!(gate.enter_or_wait(1, TaskKey(3), Need::Range(0, 1)), None);
        gate.leave(1, second);
        assert!(granted(&postboxes, 1).is_empty());
        gate.leave(0, running);
        assert_eq!(granted(&postboxes, 1).len(), 1);
    }

    #[test]
    fn two_atomic_commands_on_the_same_blocks_never_run_together() {
        use std::sync::atomic::AtomicI32;
        let (gate, postboxes) = gate();
        let inside = AtomicI32::new(0);
        std::thread::scope(|scope| {
            for reactor in 0..2u16 {
                let (gate, postboxes, inside) = (&gate, &postboxes, &inside);
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        if round % 3 != 0 {
                            let key = TaskKey(round);
                            let epoch = gate.enter(reactor).unwrap_or_else(|| {
                                let need = Need::Simple(Some((0, 1)));
                                gate.enter_or_wait(reactor, key, need)
                                    .unwrap_or_else(|| wait(postboxes, reactor))
                            });
                            assert!(inside.fetch_add(1, SeqCst) >= 0);
                            inside.fetch_sub(1, SeqCst);
                            gate.leave(reactor, epoch);
                        } else {
                            let key = TaskKey(round);
                            let epoch = gate
                                .enter_or_wait(reactor, key, Need::Range(0, 1))
                                .unwrap_or_else(|| wait(postboxes, reactor));
                            assert_eq!(inside.swap(-100, SeqCst), 0);
                            assert_eq!(inside.swap(0, SeqCst), -100);
                            gate.lower(reactor, key, epoch);
                        }
                    }
                });
            }
        });
        assert!(gate.is_drained(0) && gate.is_drained(1));
    }

    fn wait(postboxes: &Postboxes, reactor: u16) -> u8 {
        loop {
            if let Some(&(_, epoch)) = granted(postboxes, reactor).first() {
                return epoch;
            }
            std::thread::yield_now();
        }
    }
}
