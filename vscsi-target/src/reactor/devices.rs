//! The queue pairs of a reactor, one for each NVMe controller that it has used.
//!
//! A pair is taken from its controller with the first command and kept until the controller is gone.
//! The reactor watches its descriptor, on which it sleeps.

use nvme::{Controller, Pair};
use std::{io, os::fd::RawFd};

/// The queue pairs of a reactor.
#[derive(Debug)]
pub struct Devices {
    reactor: u16,
    pairs: Vec<Pair>,
    /// Descriptors that are not watched yet.
    fresh: Vec<RawFd>,
    /// Pairs that are not used any more, but still watched.
    over: Vec<Pair>,
}

impl Devices {
    /// None yet.
    pub fn new(reactor: u16) -> Self {
        Self { reactor, pairs: Vec::new(), fresh: Vec::new(), over: Vec::new() }
    }

    /// The pair of a controller; `None` if it has none for this reactor.
    pub fn pair(&mut self, controller: &Controller) -> Option<&mut Pair> {
        let number = controller.number();
        let known = self.pairs.iter().position(|pair| pair.controller() == number);
        let at = match known {
            Some(at) => at,
            None => {
                let pair = controller.take(self.reactor)?;
                self.fresh.push(pair.fd());
                self.pairs.push(pair);
                self.pairs.len() - 1
            }
        };
        self.pairs.get_mut(at)
    }

    /// Calls `done` for each finished operation, with the key it was started under.
    pub fn reap(&mut self, mut done: impl FnMut(u64, io::Result<()>)) {
        let mut is_over = false;
        for pair in &mut self.pairs {
            pair.reap(&mut done);
            is_over |= pair.is_over();
        }
        if is_over {
            self.over.extend(self.pairs.extract_if(.., |pair| pair.is_over()));
        }
    }

    /// Issues what was started: once a turn.
    pub fn submit(&mut self) {
        self.pairs.iter_mut().for_each(Pair::submit);
    }

    /// Asks an operation back, as [`Ring::cancel`](super::ring::Ring::cancel) does.
    pub fn cancel(&mut self, key: u64) {
        self.pairs.iter_mut().for_each(|pair| pair.cancel(key));
    }

    /// Looks whether controllers with operations in flight still work: about once a second.
    pub fn tick(&mut self) {
        self.pairs.iter_mut().for_each(Pair::tick);
    }

    /// Whether operations are in flight.
    pub fn is_busy(&self) -> bool {
        self.pairs.iter().any(|pair| pair.in_flight() > 0)
    }

    /// Whether there are operations of which nothing but a look will tell: then the reactor does not
    /// sleep.
    pub(super) fn must_be_polled(&self) -> bool {
        self.pairs.iter().any(Pair::must_be_polled)
    }

    /// Takes a descriptor down that was found readable.
    pub(super) fn lower(&self, fd: RawFd) {
        self.pairs.iter().filter(|pair| pair.fd() == fd).for_each(Pair::lower);
    }

    /// Descriptors to watch from now on, and pairs whose descriptors are not watched any more before
    /// they are dropped; `None` if nothing has changed.
    pub(super) fn changes(&mut self) -> Option<(Vec<RawFd>, Vec<Pair>)> {
        if self.fresh.is_empty() && self.over.is_empty() {
            return None;
        }
        Some((std::mem::take(&mut self.fresh), std::mem::take(&mut self.over)))
    }
}
