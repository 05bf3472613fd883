//! The request limit of a channel: who may send how much (SRP clause 5).

use thiserror::Error;

/// A channel's request limit, as the target counts it: how many requests the initiator may still
/// send, and what the target owes it for requests that get no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    available: u32,
    outstanding: u32,
    owed: u32,
}

impl RequestLimit {
    /// The limit that LOGIN_RSP grants.
    pub const fn new(initial: u32) -> Self {
        Self { available: initial, outstanding: 0, owed: 0 }
    }

    /// Counts a request that arrived.
    pub fn take(&mut self) -> Result<(), LimitExceeded> {
        self.available =
            self.available.checked_sub(1).ok_or(LimitExceeded { outstanding: self.outstanding })?;
        self.outstanding += 1;
        Ok(())
    }

    /// Counts a request that will never be answered, because a task management function ended it.
    /// The next delta gives it back.
    pub fn abandon(&mut self) {
        if self.outstanding > 0 {
            self.outstanding -= 1;
            self.owed += 1;
        }
    }

    /// Counts a request that will never be answered and whose credit the initiator takes back by
    /// itself, as Linux's ibmvscsi does for a command it aborted. Nothing is owed.
    pub fn forget(&mut self) {
        if self.outstanding > 0 {
            self.outstanding -= 1;
            self.available = self.available.saturating_add(1);
        }
    }

    /// The delta for the answer that goes out now: the request it answers and what is owed.
    pub fn answer(&mut self) -> i32 {
        let answered = self.outstanding.min(1);
        self.outstanding -= answered;
        self.grant(answered)
    }

    /// The delta for a CRED_REQ: what is owed with no answer to carry it; 0 when nothing is.
    pub fn settle(&mut self) -> i32 {
        self.grant(0)
    }

    /// How many requests the initiator may send.
    pub const fn available(&self) -> u32 {
        self.available
    }

    /// How many requests have not been answered or abandoned.
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// How many requests were abandoned and not yet given back.
    pub const fn owed(&self) -> u32 {
        self.owed
    }

    fn grant(&mut self, answered: u32) -> i32 {
        let due = answered.saturating_add(self.owed);
        let delta = due.min(i32::MAX as u32);
        self.owed = due - delta;
        self.available = self.available.saturating_add(delta);
        delta.cast_signed()
    }
}

/// The initiator sent a request it had no credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a request beyond the limit, {outstanding} being outstanding")]
pub struct LimitExceeded {
    /// Requests neither answered nor abandoned.
    pub outstanding: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_of_two_allows_two_requests_and_no_third() {
        let mut limit = RequestLimit::new(2);
        assert_eq!((limit.take(), limit.take()), (Ok(()), Ok(())));
        assert_eq!(limit.take(), Err(LimitExceeded { outstanding: 2 }));
        assert_eq!(limit.answer(), 1);
        assert_eq!(limit.take(), Ok(()));
    }

    #[test]
    fn a_thousand_aborts_leave_the_limit_unchanged() {
        let mut limit = RequestLimit::new(2);
        for _ in 0..1000 {
            limit.take().unwrap();
            limit.take().unwrap();
            limit.abandon();
            assert_eq!(limit.answer(), 2);
        }
        assert_eq!(limit, RequestLimit::new(2));
    }

    #[test]
    fn owed_credit_is_settled_once_without_an_answer() {
        let mut limit = RequestLimit::new(4);
        limit.take().unwrap();
        limit.abandon();
        assert_eq!((limit.available(), limit.owed(), limit.outstanding()), (3, 1, 0));
        assert_eq!(limit.settle(), 1);
        assert_eq!(limit.settle(), 0);
        assert_eq!(limit, RequestLimit::new(4));
    }

    #[test]
    fn forgotten_requests_are_credited_by_the_initiator() {
        let mut limit = RequestLimit::new(4);
        limit.take().unwrap();
        limit.take().unwrap();
        limit.forget();
        assert_eq!(limit.answer(), 1);
        assert_eq!(limit, RequestLimit::new(4));
    }

    #[test]
    fn owed_credit_beyond_a_delta_is_kept() {
        let owed = i32::MAX as u32 + 5;
        let mut limit = RequestLimit { available: 0, outstanding: 0, owed };
        assert_eq!((limit.settle(), limit.settle(), limit.settle()), (i32::MAX, 5, 0));
    }

    #[test]
    fn an_answer_to_nothing_grants_nothing() {
        let mut limit = RequestLimit::new(4);
        limit.abandon();
        assert_eq!(limit.answer(), 0);
        assert_eq!(limit, RequestLimit::new(4));
    }

    proptest! {
        #[test]
        fn credit_is_neither_made_nor_lost(
            initial in 2..8_u32,
            steps in prop::collection::vec(0..5_u8, 0..200),
        ) {
            let mut limit = RequestLimit::new(initial);
            let mut initiator = i64::from(initial);
            for step in steps {
                match step {
                    0 if limit.take().is_ok() => initiator -= 1,
                    0 => prop_assert_eq!(limit.available(), 0),
                    1 => limit.abandon(),
                    2 if limit.outstanding() > 0 => {
                        limit.forget();
                        initiator += 1;
                    }
                    2 => {}
                    3 => initiator += i64::from(limit.answer()),
                    _ => initiator += i64::from(limit.settle()),
                }
                prop_assert_eq!(i64::from(limit.available()), initiator);
                let total = limit.available() + limit.outstanding() + limit.owed();
                prop_assert_eq!(total, initial);
            }
        }
    }
}
