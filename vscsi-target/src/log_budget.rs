//! A bound on log lines that peers can cause.

use std::{mem, time::Instant};

/// At most ten lines a second.
#[derive(Debug, Default)]
pub struct LogBudget {
    second: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogBudget {
    /// How many were suppressed before, if a line may be written now.
    pub fn spend(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.second.is_none_or(|second| now.duration_since(second).as_secs() >= 1) {
            self.second = Some(now);
            self.lines = 0;
        }
        if self.lines >= MOST_LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(mem::take(&mut self.suppressed))
    }
}

/// Lines in a second.
const MOST_LINES: u32 = 10;
