//! How long a reactor that ran out of work polls before it sleeps.
//!
//! Waking up costs several microseconds, so it pays to poll for work that comes within about that
//! time, and only then. The limit doubles when work came soon after the last, halves when it did not,
//! and reaches 0, so that a lightly used target sleeps at once.

/// Longest polling without work, in nanoseconds.
pub(super) const LONGEST: u64 = 100_000;

#[derive(Debug)]
pub(super) struct Spin {
    limit: u64,
    longest: u64,
    last_work: u64,
}

impl Spin {
    /// Never polls if `longest` is 0: on one core it would only keep the peer from working.
    pub(super) fn new(longest: u64) -> Self {
        Self { limit: 0, longest, last_work: 0 }
    }

    /// Work was found at `now`.
    pub(super) fn worked(&mut self, now: u64) {
        let gap = now.saturating_sub(self.last_work);
        self.last_work = now;
        // A gap measured over a sleep has the time of waking up in it.
        if gap <= 2 * self.longest {
            self.limit = (self.limit * 2).max(SHORTEST).min(self.longest);
        } else {
            self.limit = if self.limit > SHORTEST { self.limit / 2 } else { 0 };
        }
    }

    /// Whether to poll on instead of sleeping.
    pub(super) fn goes_on(&self, now: u64) -> bool {
        now.saturating_sub(self.last_work) < self.limit
    }
}

const SHORTEST: u64 = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_work_is_never_waited_for_by_polling() {
        let mut spin = Spin::new(LONGEST);
        for turn in 1..100 {
            spin.worked(turn * 1_000_000);
            assert!(!spin.goes_on(turn * 1_000_000));
        }
    }

    #[test]
    fn frequent_work_makes_polling_longer_up_to_the_limit() {
        let mut spin = Spin::new(LONGEST);
        for turn in 1..100 {
            spin.worked(turn * 20_000);
        }
        assert!(spin.goes_on(99 * 20_000 + LONGEST - 1));
        assert!(!spin.goes_on(99 * 20_000 + LONGEST));
    }

    #[test]
    fn polling_fades_when_work_gets_rare() {
        let mut spin = Spin::new(LONGEST);
        (1..100).for_each(|turn| spin.worked(turn * 1000));
        (1..8).for_each(|turn| spin.worked(turn * 1_000_000));
        assert!(!spin.goes_on(7_000_000));
    }

    #[test]
    fn one_core_never_polls() {
        let mut spin = Spin::new(0);
        (1..100).for_each(|turn| spin.worked(turn));
        assert!(!spin.goes_on(99));
    }
}
