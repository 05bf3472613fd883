//! Operations on the whole medium that take long: FORMAT UNIT and SANITIZE.
//!
//! While one runs, [`LuState::busy`] makes the engine refuse everything that needs the medium and
//! says how far it is. It runs on a thread of its own, which holds the logical unit and stops early
//! when that is taken out of service. Without IMMED the command waits for it; when the command is
//! aborted the operation goes on, as SBC-4 4.11 wants it of SANITIZE.

use crate::{
    model::{LogicalUnit, LuState, lu::flag},
    opcode::Fail,
    sense::{Sense, key},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// What is to be done.
pub(super) struct Long<W> {
    /// The logical unit.
    pub lu: Arc<LogicalUnit>,
    /// Answer before it is done.
    pub immediate: bool,
    /// How it is reported while it runs.
    pub shown: Sense,
    /// The work itself.
    pub work: W,
    /// What its end changes, given whether it succeeded.
    pub finish: fn(&mut LuState, bool),
}

impl<W> Long<W>
where
    W: FnOnce(&LogicalUnit, &mut Progress<'_>) -> Result<(), Sense> + Send + 'static,
{
    /// Starts it, and without IMMED waits for its end or until `cancelled`. Refused while another
    /// one runs.
    pub(super) fn run(self, cancelled: &AtomicBool) -> Result<(), Fail> {
        let Self { lu, immediate, shown, work, finish } = self;
        lu.update(|state| match running(state) {
            Some(busy) => Err(busy),
            None => {
                state.busy = Some(shown.with_progress(0));
                Ok(())
            }
        })?;
        let unit = Arc::clone(&lu);
        let (tell, told) = mpsc::sync_channel(1);
        let spawned = thread::Builder::new().name("vscsi-long".to_owned()).spawn(move || {
            let mut progress = Progress { lu: &unit, shown, last: 0 };
            let result = work(&unit, &mut progress);
            if let Err(sense) = &result {
                tracing::error!(lu = unit.id, ?sense, "an operation on the whole medium failed");
            }
            unit.update(|state| {
                state.busy = None;
                finish(state, result.is_ok());
            });
            // Nobody waits after IMMED or an abort.
            let _ = tell.send(result);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for a long operation");
            lu.update(|state| state.busy = None);
            return Err(Sense::INTERNAL_FAILURE.into());
        }
        while !immediate && !cancelled.load(Ordering::Acquire) {
            match told.recv_timeout(PATIENCE) {
                Ok(result) => return result.map_err(Fail::from),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Sense::INTERNAL_FAILURE.into()),
            }
        }
        Ok(())
    }
}

/// A long operation in progress, as opposed to one that failed and left its mark.
pub(super) fn running(state: &LuState) -> Option<Sense> {
    state.busy.filter(|busy| busy.key != key::MEDIUM_ERROR)
}

/// Tells initiators how far a long operation is.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    lu: &'a LogicalUnit,
    shown: Sense,
    last: u16,
}

impl Progress<'_> {
    /// `done` of `total` is done. INTERNAL TARGET FAILURE when the logical unit was taken out of
    /// service or away, and there is no point in going on.
    pub(super) fn at(&mut self, done: u64, total: u64) -> Result<(), Sense> {
        if self.lu.flags() & (flag::GONE | flag::AWAY) != 0 {
            return Err(Sense::INTERNAL_FAILURE);
        }
        let part = u128::from(done) * 65535 / u128::from(total.max(1));
        let part = u16::try_from(part).unwrap_or(u16::MAX);
        if part.abs_diff(self.last) > STEP {
            self.last = part;
            self.lu.state().busy = Some(self.shown.with_progress(part));
        }
        Ok(())
    }
}

/// Holds an operation back to the logical unit's erase rate.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    written: u64,
}

impl Pace {
    /// Nothing is written yet.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), written: 0 }
    }

    /// So many more bytes were written: waits until more may be, or the logical unit is taken out
    /// of service.
    pub(super) fn wrote(&mut self, lu: &LogicalUnit, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
        let Some(millis) = self.written.saturating_mul(1000).checked_div(lu.erase_rate()) else {
            return;
        };
        while lu.flags() & (flag::GONE | flag::AWAY) == 0
            && let Some(left) = Duration::from_millis(millis).checked_sub(self.start.elapsed())
            && !left.is_zero()
        {
            thread::sleep(left.min(NAP));
        }
    }
}

/// Does something to the medium in parts of `step` blocks, from first to last; `pass` of `passes`.
pub(super) fn sweep(
    lu: &LogicalUnit,
    progress: &mut Progress<'_>,
    (pass, passes): (u64, u64),
    step: u64,
    mut part: impl FnMut(u64, u64) -> Result<(), Sense>,
) -> Result<(), Sense> {
    let capacity = lu.blocks();
    let mut lba = 0;
    while lba < capacity {
        let done = pass.saturating_mul(capacity).saturating_add(lba);
        progress.at(done, passes.saturating_mul(capacity))?;
        let blocks = step.clamp(1, capacity - lba);
        part(lba, blocks)?;
        lba += blocks;
    }
    Ok(())
}

/// Progress is published in steps of about half a percent.
const STEP: u16 = 300;

/// How soon a held back operation notices that its logical unit is taken out of service.
const NAP: Duration = Duration::from_millis(100);

/// How soon an abort is noticed.
const PATIENCE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn an_erase_rate_holds_writing_back() {
        let fixture = Fixture::new();
        let mut pace = Pace::new();
        pace.wrote(&fixture.lu, u64::MAX);
        fixture.lu.set_erase_rate(10 << 20);
        let (start, mut pace) = (Instant::now(), Pace::new());
        pace.wrote(&fixture.lu, 1 << 20);
        pace.wrote(&fixture.lu, 1 << 20);
        assert!(start.elapsed() >= Duration::from_millis(200));
    }

    #[test]
    fn an_aborted_command_leaves_the_operation_running() {
        let fixture = Fixture::new();
        let (go, wait) = mpsc::channel::<()>();
        let long = Long {
            lu: Arc::clone(&fixture.lu),
            immediate: false,
            shown: Sense::SANITIZING,
            work: move |_: &LogicalUnit, _: &mut Progress<'_>| {
                let _ = wait.recv();
                Ok(())
            },
            finish: |state, ok| state.sanitize_failed = !ok,
        };
        assert_eq!(long.run(&AtomicBool::new(true)), Ok(()));
        assert_eq!(fixture.lu.readiness(), Err(Sense::SANITIZING.with_progress(0)));
        go.send(()).unwrap();
        while fixture.lu.readiness().is_err() {
            thread::yield_now();
        }
    }
}
