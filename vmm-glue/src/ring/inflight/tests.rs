use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::ring::{
    Chain, Popped, Ring, RingError, Setup,
    rig::{self, DATA, Driver, Guest, Piece},
};

/// What a driver and a device do, in any order.
#[derive(Clone, Debug)]
enum Step {
    Add(u32, usize),
    Pop,
    Push(Index),
    Publish,
    Used,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..9u32, 1..4usize).prop_map(|(len, pieces)| Step::Add(len, pieces)),
        4 => Just(Step::Pop),
        3 => any::<Index>().prop_map(Step::Push),
        2 => Just(Step::Publish),
        2 => Just(Step::Used),
        1 => Just(Step::Crash),
    ];
    vec(step, 1..120)
}

/// A guest, a device that crashes, and what the device has to remember.
struct World<'a> {
    guest: &'a Guest,
    size: u16,
    features: u64,
    log: Arc<InflightArea>,
    driver: Driver<'a>,
    ring: Ring,
    chain: Chain,
    /// Taken and not published, in the order in which they were taken first.
    taken: Vec<u16>,
    /// Of these, the ones that this process did not take yet.
    again: usize,
    pushed: Vec<u16>,
    /// The length that each request in flight asks for, by its id.
    asked: Vec<u32>,
    added: usize,
    completed: usize,
}

impl<'a> World<'a> {
    fn new(guest: &'a Guest, size: u16, features: u64) -> Self {
        let log = rig::log(size, features);
        Self {
            driver: guest.driver(size, features),
            ring: guest.reopen(size, features, &log),
            log,
            guest,
            size,
            features,
            chain: Chain::default(),
            taken: Vec::new(),
            again: 0,
            pushed: Vec::new(),
            asked: vec![0; size.into()],
            added: 0,
            completed: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add(len, pieces) => self.add(*len, *pieces),
            Step::Pop => {
                self.pop();
            }
            Step::Push(index) => {
                let mut out: Vec<u16> = self.taken[..self.taken.len() - self.again].to_vec();
                out.retain(|id| !self.pushed.contains(id));
                if !out.is_empty() {
                    let id = *index.get(&out);
                    self.ring.push(id, self.asked[usize::from(id)]);
                    self.pushed.push(id);
                }
            }
            Step::Publish => self.publish(),
            Step::Used => {
                self.used();
            }
            Step::Crash => {
                self.ring = self.guest.reopen(self.size, self.features, &self.log);
                self.again = self.taken.len();
                self.pushed.clear();
            }
        }
    }

    fn add(&mut self, len: u32, pieces: usize) {
        let pieces: Vec<_> = (0..pieces as u64)
            .map(|nth| Piece { addr: DATA + 0x100 * nth, len, write: nth > 0 })
            .collect();
        if let Some(id) = self.driver.add(&pieces) {
            self.asked[usize::from(id)] = len * pieces.len() as u32;
            self.added += 1;
        }
    }

    fn pop(&mut self) -> bool {
        let Some(id) = rig::pop(&mut self.ring, self.guest, &mut self.chain) else {
            assert_eq!(self.again, 0);
            return false;
        };
        assert_eq!(self.chain.again, self.again > 0);
        let asked = self.chain.readable_len + self.chain.writable_len;
        assert_eq!(asked, self.asked[usize::from(id)]);
        if self.again > 0 {
            assert_eq!(id, self.taken[self.taken.len() - self.again]);
            self.again -= 1;
        } else {
            self.taken.push(id);
        }
        true
    }

    fn publish(&mut self) {
        self.ring.publish();
        if self.features & feature::IN_ORDER == 0 {
            let pushed = std::mem::take(&mut self.pushed);
            self.taken.retain(|id| !pushed.contains(id));
        } else {
            while let Some(at) = self.pushed.iter().position(|id| self.taken.first() == Some(id)) {
                self.pushed.remove(at);
                self.taken.remove(0);
            }
        }
    }

    fn used(&mut self) -> bool {
        let Some((id, len)) = self.driver.used() else { return false };
        assert_eq!(len, self.asked[usize::from(id)]);
        assert!(!self.taken.contains(&id), "{id} was not published");
        self.completed += 1;
        true
    }

    /// Everything that was added is completed, once.
    fn finish(mut self) {
        while self.pop() {}
        for id in self.taken.clone().into_iter().rev() {
            if !self.pushed.contains(&id) {
                self.ring.push(id, self.asked[usize::from(id)]);
                self.pushed.push(id);
            }
        }
        self.publish();
        while self.used() {}
        assert_eq!(self.completed, self.added);
        assert_eq!(self.driver.room(), usize::from(self.size));
    }
}

fn survives(size: u16, features: u64, steps: &[Step]) {
    let guest = Guest::new(1);
    let mut world = World::new(&guest, size, features);
    for step in steps {
        world.step(step);
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_split_ring_loses_and_repeats_nothing_over_crashes(steps in steps(), size in 1..5u32) {
        survives(1 << size, 0, &steps);
        survives(1 << size, feature::IN_ORDER, &steps);
    }

    #[test]
    fn a_packed_ring_loses_and_repeats_nothing_over_crashes(steps in steps(), size in 2..20u16) {
        survives(size, feature::RING_PACKED, &steps);
        survives(size, feature::RING_PACKED | feature::IN_ORDER, &steps);
    }
}

#[test]
fn a_log_without_room_is_refused() {
    let guest = Guest::new(1);
    for features in [0, feature::RING_PACKED] {
        let (file, len) = InflightArea::create(2, 8, features).unwrap();
        let open = |number, size, len| {
            let area = InflightArea::map(len, 0, file.try_clone().unwrap(), 8, features).unwrap();
            let inflight = Some((area, number));
            Ring::open(Setup { inflight, ..guest.setup(size, features) }).map(|_| ())
        };
        assert_eq!(open(1, 8, len), Ok(()));
        assert_eq!(open(0, 4, len), Ok(()));
        assert_eq!(open(2, 8, len), Err(RingError::Inflight));
        assert_eq!(open(1, 8, len - 1), Err(RingError::Inflight));
        assert_eq!(open(0, 16, len), Err(RingError::Inflight));
    }
}

#[test]
fn a_log_of_another_size_starts_anew() {
    for features in [0, feature::RING_PACKED] {
        let guest = Guest::new(1);
        let log = rig::log(8, features);
        let (mut ring, mut driver) = (guest.reopen(4, features, &log), guest.driver(4, features));
        driver.add(&[Piece { addr: DATA, len: 1, write: true }]).unwrap();
        let mut chain = Chain::default();
        assert!(rig::pop(&mut ring, &guest, &mut chain).is_some());
        let mut ring = guest.reopen(2, features, &log);
        rig::pop(&mut ring, &guest, &mut chain);
        assert!(!chain.again);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_log_full_of_anything_is_refused_or_taken(
        bytes in vec(prop_oneof![3 => 0..4u8, 1 => any::<u8>()], 160),
        packed in any::<bool>(),
    ) {
        use std::os::unix::fs::FileExt;
        let features = if packed { feature::RING_PACKED } else { 0 };
        let guest = Guest::new(1);
        let (file, len) = InflightArea::create(1, 4, features).unwrap();
        let len = len.min(160) as usize;
        file.write_all_at(&bytes[..len], 0).unwrap();
        // A log of this size, so that it is looked at.
        file.write_all_at(&[1, 0, 4, 0], 8).unwrap();
        let area = InflightArea::map(len as u64, 0, file, 4, features).unwrap();
        let setup = Setup { inflight: Some((area, 0)), ..guest.setup(4, features) };
        if let Ok(mut ring) = Ring::open(setup) {
            let mut chain = Chain::default();
            let mut count = 0;
            while let Ok(Popped::Chain | Popped::Bad) = ring.pop(&guest.map, &mut chain) {
                ring.push(chain.id, 0);
                count += 1;
                prop_assert!(count <= 4);
            }
            ring.publish();
        }
    }
}
