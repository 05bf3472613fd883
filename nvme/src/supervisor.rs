//! The thread that watches over a controller: resets, removal, shutdown.
//!
//! A reset stops the controller first; only then do the owners of pairs take their operations back,
//! each on its own thread, and only when all have is the controller started again.

use crate::{
    controller::{Lanes, make_queues},
    device::Device,
    error::Fault,
    event::Event,
    pair::Pair,
    shared::{Phase, Shared, Want},
};
use nix::poll::PollTimeout;
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

/// How many supervisors there are.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Waits until every controller that nobody uses any more is shut down; false if that takes longer.
pub fn settle(limit: Duration) -> bool {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = ENDED.wait_timeout_while(running, limit, |running| *running > 0);
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}

struct Supervisor {
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
    request: Event,
    error: Event,
    /// When it was reset lately.
    resets: VecDeque<Instant>,
}

/// Starts a controller's supervisor.
pub(crate) fn start(shared: &Arc<Shared>, lanes: &Arc<Lanes>, request: Event, error: Event) {
    let supervisor = Supervisor {
        shared: Arc::clone(shared),
        lanes: Arc::clone(lanes),
        request,
        error,
        resets: VecDeque::new(),
    };
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let ended = || {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_all();
    };
    let spawned = thread::Builder::new().name("vscsi-nvme".into()).spawn(move || {
        supervisor.run();
        ended();
    });
    if let Err(error) = spawned {
        ended();
        tracing::error!(%error, "nobody can reset an NVMe controller");
    }
}

impl Supervisor {
    fn run(mut self) {
        loop {
            self.sleep();
            self.shared.wake.lower();
            let wants = self.shared.wants();
            if self.request.lower() {
                self.end("the kernel wants it back: it is being removed", true);
                return;
            }
            if wants & Want::Stop as u32 != 0 {
                if let Some(device) = self.shared.device() {
                    self.shared.lock_admin().shut_down(&device);
                }
                self.end("it is not used any more", false);
                return;
            }
            let bus_error = self.error.lower();
            if bus_error {
                tracing::error!(controller = self.shared.name, "the bus reports an error");
            }
            if wants & Want::Reset as u32 != 0 || bus_error {
                let result = self.reset();
                self.shared.granted(Want::Reset);
                if let Err(fault) = result {
                    tracing::error!(controller = self.shared.name, %fault, "it cannot be reset");
                    self.end("it cannot be reset", fault == Fault::Gone);
                    return;
                }
            }
        }
    }

    fn sleep(&self) {
        let Self { shared, request, error, .. } = self;
        Event::wait_for([&shared.wake, request, error], PollTimeout::NONE);
    }

    fn reset(&mut self) -> Result<(), Fault> {
        let device = self.shared.device().ok_or(Fault::Gone)?;
        let now = Instant::now();
        self.resets.retain(|at| now.duration_since(*at) < RESET_WINDOW);
        self.resets.push_back(now);
        if self.resets.len() > MOST_RESETS {
            return Err(Fault::Fatal);
        }
        self.stop(&device)?;
        let epoch = self.shared.begin(Phase::Down);
        self.wait_for_owners(epoch);
        // Whoever does not follow may still ring doorbells of queues that are about to be new.
        if !self.shared.all_follow(epoch) {
            return Err(Fault::Silent("its users"));
        }
        let mut result = self.make(&device);
        if result.is_err_and(|fault| fault != Fault::Gone) {
            device.reset();
            result = self.make(&device);
        }
        result?;
        self.shared.begin(Phase::Live);
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        tracing::info!(controller = self.shared.name, "the NVMe controller was reset");
        Ok(())
    }

    /// Stops it, if need be by a reset of the function.
    fn stop(&self, device: &Device) -> Result<(), Fault> {
        let admin = self.shared.lock_admin();
        match admin.disable(device) {
            Ok(()) => Ok(()),
            Err(Fault::Gone) => Err(Fault::Gone),
            Err(fault) => {
                tracing::warn!(controller = self.shared.name, %fault, "resetting its PCI function");
                device.reset();
                admin.disable(device)
            }
        }
    }

    fn make(&self, device: &Device) -> Result<(), Fault> {
        let mut admin = self.shared.lock_admin();
        admin.disable(device)?;
        admin.enable(device, self.shared.limits.page)?;
        let count = u16::try_from(self.shared.queues.len()).unwrap_or(u16::MAX);
        let set = crate::wire::admin::set_queues(count);
        admin.run(device, "Set Features (queues)", set)?;
        drop(admin);
        make_queues(&self.shared, device)
    }

    /// Stops it for good and gives it back to the kernel.
    fn end(self, why: &str, is_removed: bool) {
        tracing::info!(controller = self.shared.name, why, "the NVMe controller is given up");
        if let Some(device) = self.shared.device() {
            if is_removed {
                device.unplug();
            }
            if self.shared.lock_admin().disable(&device).is_err() {
                device.set_master(false);
            }
        }
        let epoch = self.shared.begin(Phase::Gone);
        self.wait_for_owners(epoch);
        // Closed with the last owner that has it.
        *self.shared.lock_device() = None;
    }

    /// Waits until all owners of pairs know the epoch; stands in for the pairs nobody has.
    fn wait_for_owners(&self, epoch: u32) {
        let start = Instant::now();
        while !self.shared.all_follow(epoch) && start.elapsed() < PATIENCE {
            // Nothing ends here: these pairs have no operations.
            let follow = |pair: &mut Pair| pair.reap(|_, _| {});
            if let Ok(mut pairs) = self.lanes.pairs.try_lock() {
                pairs.iter_mut().flatten().for_each(follow);
            }
            if let Ok(mut calls) = self.lanes.calls.try_lock() {
                follow(&mut calls);
            }
            self.shared.wake_owners();
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How long owners may take to take their operations back.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many resets in [`RESET_WINDOW`] are too many.
const MOST_RESETS: usize = 8;
const RESET_WINDOW: Duration = Duration::from_secs(120);
