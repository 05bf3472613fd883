//! What the threads that use a controller share, and how they follow it through resets.

use crate::{
    admin::Admin,
    device::Device,
    event::Event,
    prp::Limits,
    space::{Dma, Space},
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// In what state a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It takes commands.
    Live,
    /// It is stopped and reaches no memory; pairs take their operations back.
    Down,
    /// It will not work again.
    Gone,
}

impl Phase {
    /// The phase of an epoch: each epoch follows the one before by a change of phase.
    pub(crate) fn of(epoch: u32) -> Self {
        match epoch {
            u32::MAX => Self::Gone,
            epoch if epoch.is_multiple_of(2) => Self::Live,
            _ => Self::Down,
        }
    }
}

/// What the supervisor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// To reset the controller.
    Reset = 1,
    /// To shut it down and end.
    Stop = 2,
}

/// What is shared.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Which controller; never the same twice in a process.
    pub(crate) number: u64,
    /// Its address, for people.
    pub(crate) name: String,
    pub(crate) space: Arc<Space>,
    /// `None` once it is gone.
    pub(crate) device: Mutex<Option<Arc<Device>>>,
    pub(crate) admin: Mutex<Admin>,
    epoch: AtomicU32,
    pub(crate) queues: Box<[Queue]>,
    /// Entries of each queue.
    pub(crate) depth: usize,
    /// Bytes between doorbells.
    pub(crate) stride: usize,
    /// What a command can carry; the block size is a namespace's.
    pub(crate) limits: Limits,
    /// The most blocks that one command zeroes.
    pub(crate) zero_limit: u32,
    wants: AtomicU32,
    pub(crate) wake: Event,
    pub(crate) resets: AtomicU64,
}

/// The memory of a queue pair, and how its owner follows the controller.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Submission queue, completion queue, lists of pages.
    pub(crate) memory: Dma,
    /// Where the completion queue begins.
    pub(crate) completions: usize,
    /// Where the lists begin.
    pub(crate) lists: usize,
    pub(crate) event: Event,
    pub(crate) interrupts: bool,
    /// The epoch that its owner knows of.
    pub(crate) follows: AtomicU32,
}

impl Shared {
    /// A queue without an owner follows every epoch.
    pub(crate) const NOBODY: u32 = u32::MAX - 1;

    #[expect(clippy::too_many_arguments, reason = "made in one place")]
    pub(crate) fn new(
        name: String,
        device: Arc<Device>,
        admin: Admin,
        queues: Box<[Queue]>,
        depth: usize,
        stride: usize,
        limits: Limits,
        zero_limit: u32,
        wake: Event,
    ) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            name,
            space: Arc::clone(device.space()),
            device: Mutex::new(Some(device)),
            admin: Mutex::new(admin),
            epoch: AtomicU32::new(0),
            queues,
            depth,
            stride,
            limits,
            zero_limit,
            wants: AtomicU32::new(0),
            wake,
            resets: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.epoch())
    }

    /// Begins another epoch and tells every owner.
    pub(crate) fn begin(&self, phase: Phase) -> u32 {
        let epoch = match phase {
            Phase::Gone => u32::MAX,
            // Far from the numbers with a meaning of their own.
            _ => (self.epoch() + 1) & 0x3FFF_FFFF,
        };
        debug_assert_eq!(Phase::of(epoch), phase);
        self.epoch.store(epoch, Ordering::Release);
        self.wake_owners();
        epoch
    }

    pub(crate) fn wake_owners(&self) {
        for queue in &self.queues {
            queue.event.raise();
        }
    }

    /// Asks the supervisor for something.
    pub(crate) fn ask(&self, want: Want, why: &str) {
        let before = self.wants.fetch_or(want as u32, Ordering::AcqRel);
        if before & want as u32 == 0 {
            if want == Want::Reset {
                tracing::warn!(controller = self.name, why, "an NVMe controller has to be reset");
            }
            self.wake.raise();
        }
    }

    /// What was asked for, as a sum of [`Want`]s.
    pub(crate) fn wants(&self) -> u32 {
        self.wants.load(Ordering::Acquire)
    }

    /// What was asked for is done.
    pub(crate) fn granted(&self, want: Want) {
        self.wants.fetch_and(!(want as u32), Ordering::AcqRel);
    }

    /// Every owner knows of this epoch.
    pub(crate) fn all_follow(&self, epoch: u32) -> bool {
        self.queues.iter().all(|queue| {
            let follows = queue.follows.load(Ordering::Acquire);
            follows == epoch || follows == Self::NOBODY
        })
    }

    pub(crate) fn device(&self) -> Option<Arc<Device>> {
        self.lock_device().clone()
    }

    pub(crate) fn lock_device(&self) -> MutexGuard<'_, Option<Arc<Device>>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the controller on this thread: when this returns it reaches no memory any more.
    pub(crate) fn stop_at_once(&self) {
        if let Some(device) = self.device()
            && self.lock_admin().disable(&device).is_err()
        {
            device.set_master(false);
        }
    }
}
