//! Completions in the order of requests, as VIRTIO_F_IN_ORDER wants them (VIRTIO 1.3, 2.7.9).

/// Which chains are out, and which of them are done.
#[derive(Debug)]
pub(super) struct Order {
    /// Chains by the order in which they were taken, from `first`.
    taken: Box<[u16]>,
    first: usize,
    count: usize,
    /// Bytes written, by chain, once it is done.
    done: Box<[Option<u32>]>,
}

impl Order {
    pub(super) fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self { taken: vec![0; size].into(), first: 0, count: 0, done: vec![None; size].into() }
    }

    /// A chain was taken. Never more than the ring has entries are out.
    pub(super) fn take(&mut self, id: u16) {
        let at = (self.first + self.count) % self.taken.len();
        if let Some(place) = self.taken.get_mut(at) {
            *place = id;
            self.count += 1;
        }
    }

    /// A chain is done.
    pub(super) fn done(&mut self, id: u16, len: u32) {
        if let Some(done) = self.done.get_mut(usize::from(id)) {
            *done = Some(len);
        }
    }

    /// Whether something is done that waits for what was taken before it.
    pub(super) fn holds_back(&self) -> bool {
        self.done.iter().any(Option::is_some)
    }

    /// The next chain to give back, if it is done.
    pub(super) fn next(&mut self) -> Option<(u16, u32)> {
        let id = *self.taken.get(self.first).filter(|_| self.count > 0)?;
        let len = self.done.get_mut(usize::from(id))?.take()?;
        self.first = (self.first + 1) % self.taken.len();
        self.count -= 1;
        Some((id, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_early_waits_for_what_was_taken_before() {
        let mut order = Order::new(4);
        [3, 1, 2].into_iter().for_each(|id| order.take(id));
        order.done(1, 10);
        assert_eq!(order.next(), None);
        assert!(order.holds_back());
        order.done(3, 30);
        assert_eq!(
            [order.next(), order.next(), order.next()],
            [Some((3, 30)), Some((1, 10)), None]
        );
        assert!(!order.holds_back());
        order.take(3);
        order.done(3, 0);
        order.done(2, 5);
        assert_eq!([order.next(), order.next(), order.next()], [Some((2, 5)), Some((3, 0)), None]);
    }
}
