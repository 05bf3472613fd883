//! Deadlines: what a medium does not answer in time is taken back where that can be done.
//!
//! Some initiators wait for ever: Linux's virtio_scsi driver has no timeout of its own. So the
//! target ends what waits at a gate, what the kernel has not started, and what a worker has not
//! begun, with LOGICAL UNIT COMMUNICATION TIME-OUT. **What cannot be taken back is not answered
//! early**: a late read would change memory that the initiator uses for something else by then, and
//! a late write could destroy newer data. It is counted, logged once a logical unit, and answered
//! when it comes back.
//!
//! Time is counted in seconds, by a tick of the reactor: no command reads a clock.

use super::{
    Engine,
    task::{Stage, Task, TaskKey},
};
use crate::{
    opcode::{Fail, flag},
    sense::Sense,
};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

impl Engine {
    /// Gives tasks at most this many seconds from the moment their Data-Out is complete; 0, which
    /// is how an engine starts, for ever. FORMAT UNIT and SANITIZE, and what saves something, take
    /// as long as they take.
    pub fn set_io_timeout(&mut self, seconds: u32) {
        self.io_timeout = seconds;
    }

    /// Whether time matters, so that the reactor must not sleep through a tick.
    pub fn has_deadlines(&self) -> bool {
        self.io_timeout > 0 && self.tasks.len() > 0 || self.lanes.devices.is_busy()
    }

    /// Tells the time, in seconds of any clock that only goes forward; about once a second while
    /// there is something to do, and before it after a sleep. Ends what is past its deadline.
    pub fn tick(&mut self, seconds: u32) {
        self.seconds = seconds;
        if !self.has_deadlines() {
            return;
        }
        self.lanes.devices.tick();
        let most = match self.io_timeout {
            0 => return,
            most => most,
        };
        for key in self.tasks.matching(|task| task.is_late(seconds, most)) {
            self.late(key);
        }
    }

    fn late(&mut self, key: TaskKey) {
        let (reactor, seconds) = (self.reactor, self.seconds);
        let Some(task) = self.tasks.at(key) else { return };
        task.overdue = true;
        let itl = &task.itl;
        if let Some(counters) = itl.lu.counters.get(usize::from(reactor)) {
            counters.timeouts.fetch_add(1, Relaxed);
        }
        if task.stage == Stage::AwaitsGate {
            // Otherwise it was let through at this moment, and ends when that is told.
            if itl.lu.gate.cancel(reactor, key) {
                self.end(key, Err(Fail::Check(Sense::TIMED_OUT)));
            }
            return;
        }
        itl.lu.fell_behind(seconds.saturating_sub(task.since));
        match &task.cancelled {
            Some(cancelled) => cancelled.store(true, SeqCst),
            None => {
                self.lanes.ring.cancel(key.0);
                self.lanes.devices.cancel(key.0);
            }
        }
    }
}

impl Task {
    fn is_late(&self, now: u32, most: u32) -> bool {
        // More than `most`, since it began up to a second after the tick it has.
        let counts = match self.stage {
            Stage::AwaitsGate => true,
            Stage::Running => !self.row.has(flag::PERSISTS),
            _ => false,
        };
        counts && !self.overdue && now.saturating_sub(self.since) > most
    }
}
