//! The server's queue: elements on their way from the partition's processors to the reactor.
//!
//! It is a bounded ring of words. A sender claims a place, writes the element, and publishes it with
//! the place's sequence number; the one reader takes it and gives the place to the next round. Nobody
//! waits for anybody, and a full ring says so.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// An element of the queue, and of which registration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) generation: u64,
    pub(super) bytes: [u8; 16],
}

/// Many senders, one receiver.
#[derive(Debug)]
pub(super) struct Mailbox {
    places: Box<[Place]>,
    mask: u64,
    /// Where the next sender writes.
    tail: Own<AtomicU64>,
    /// Where the receiver reads; only it writes this.
    head: Own<AtomicU64>,
}

/// On a cache line of its own, with what the neighbour prefetcher brings along.
#[derive(Debug)]
#[repr(align(128))]
struct Own<T>(T);

#[derive(Debug)]
struct Place {
    /// The position it is free for; one more once the element is there.
    sequence: AtomicU64,
    generation: AtomicU64,
    /// The two halves of the element, as they stand in memory.
    halves: [AtomicU64; 2],
}

impl Mailbox {
    /// Room for at least this many elements.
    pub(super) fn new(room: usize) -> Self {
        let room = room.max(2).next_power_of_two() as u64;
        let place = |at| Place {
            sequence: AtomicU64::new(at),
            generation: AtomicU64::new(0),
            halves: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        Self {
            places: (0..room).map(place).collect(),
            mask: room - 1,
            tail: Own(AtomicU64::new(0)),
            head: Own(AtomicU64::new(0)),
        }
    }

    /// How many elements there is room for.
    pub(super) fn room(&self) -> usize {
        self.places.len()
    }

    fn place(&self, position: u64) -> Option<&Place> {
        self.places.get((position & self.mask) as usize)
    }

    /// Sends an element; false if there is no room.
    pub(super) fn send(&self, sent: Sent) -> bool {
        let mut position = self.tail.0.load(Relaxed);
        loop {
            let Some(place) = self.place(position) else { return false };
            let sequence = place.sequence.load(Acquire);
            if sequence == position {
                match self.tail.0.compare_exchange_weak(position, position + 1, Relaxed, Relaxed) {
                    Ok(_) => {
                        let [a, b] = halves(&sent.bytes);
                        place.generation.store(sent.generation, Relaxed);
                        place.halves[0].store(a, Relaxed);
                        place.halves[1].store(b, Relaxed);
                        place.sequence.store(position + 1, Release);
                        return true;
                    }
                    Err(now) => position = now,
                }
            } else if sequence < position {
                // The receiver has not taken what was here a round ago.
                return false;
            } else {
                position = self.tail.0.load(Relaxed);
            }
        }
    }

    /// The oldest element, left in place. Only one thread at a time calls this and [`Mailbox::skip`].
    #[inline]
    pub(super) fn peek(&self) -> Option<Sent> {
        let position = self.head.0.load(Relaxed);
        let place = self.place(position)?;
        if place.sequence.load(Acquire) != position + 1 {
            return None;
        }
        let generation = place.generation.load(Relaxed);
        let [a, b] = [place.halves[0].load(Relaxed), place.halves[1].load(Relaxed)];
        Some(Sent { generation, bytes: bytes([a, b]) })
    }

    /// Takes the oldest element away, which [`Mailbox::peek`] has given.
    #[inline]
    pub(super) fn skip(&self) {
        let position = self.head.0.load(Relaxed);
        if let Some(place) = self.place(position) {
            place.sequence.store(position + self.mask + 1, Release);
            self.head.0.store(position + 1, Relaxed);
        }
    }
}

/// An element as two words of the same bytes.
pub(super) fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let word = u128::from_ne_bytes(*bytes);
    let (low, high) = (word as u64, (word >> 64) as u64);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

/// The bytes of two words.
fn bytes(halves: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&halves[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&halves[1].to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn sent(n: u64) -> Sent {
        let mut bytes = [0x5A; 16];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        bytes[8..].copy_from_slice(&(!n).to_be_bytes());
        Sent { generation: n + 7, bytes }
    }

    #[test]
    fn elements_come_out_as_they_went_in_over_several_rounds() {
        let mailbox = Mailbox::new(4);
        for n in 0..1000 {
            assert!(mailbox.send(sent(n)));
            assert_eq!(mailbox.peek(), Some(sent(n)));
            mailbox.skip();
        }
        assert_eq!(mailbox.peek(), None);
    }

    #[test]
    fn a_full_mailbox_refuses_until_one_is_taken() {
        let mailbox = Mailbox::new(3);
        assert_eq!(mailbox.room(), 4);
        assert!((0..4).all(|n| mailbox.send(sent(n))));
        assert!(!mailbox.send(sent(4)));
        mailbox.skip();
        assert!(mailbox.send(sent(4)));
        assert!(!mailbox.send(sent(5)));
        let rest: Vec<_> = std::iter::from_fn(|| {
            let sent = mailbox.peek();
            sent.inspect(|_| mailbox.skip())
        })
        .collect();
        assert_eq!(rest, (1..5).map(sent).collect::<Vec<_>>());
    }

    #[test]
    fn several_senders_lose_nothing_and_keep_their_order() {
        const EACH: u64 = 20_000;
        let mailbox = Arc::new(Mailbox::new(64));
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let mailbox = Arc::clone(&mailbox);
                std::thread::spawn(move || {
                    for n in 0..EACH {
                        while !mailbox.send(sent(sender << 32 | n)) {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; 3];
        let mut left = 3 * EACH;
        while left > 0 {
            let Some(got) = mailbox.peek() else {
                std::thread::yield_now();
                continue;
            };
            mailbox.skip();
            let n = got.generation - 7;
            assert_eq!(got, sent(n));
            let sender = (n >> 32) as usize;
            assert_eq!(n & 0xFFFF_FFFF, next[sender]);
            next[sender] += 1;
            left -= 1;
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
