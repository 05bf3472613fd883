//! What holds for rings of both kinds: nobody sleeps while there is something for them.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use proptest::{collection::vec, prelude::*};

use super::*;
use rig::{DATA, Driver, Guest, Piece};

#[test]
fn an_event_is_crossed_once_also_over_the_end_of_the_index() {
    assert!(crossed(5, 6, 5) && !crossed(6, 6, 5) && !crossed(4, 6, 5));
    assert!(crossed(u16::MAX, 0, u16::MAX) && !crossed(0, 0, u16::MAX));
}

const ALL: [u64; 4] =
    [0, feature::EVENT_IDX, feature::RING_PACKED, feature::RING_PACKED | feature::EVENT_IDX];
const PIECES: [Piece; 3] = [
    Piece { addr: DATA, len: 1, write: false },
    Piece { addr: DATA + 0x1000, len: 2, write: false },
    Piece { addr: DATA + 0x2000, len: 3, write: true },
];

/// What a driver and a device do, a step each, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds a buffer of so many pieces.
    Add(usize),
    /// It notifies, if the device wants that.
    Notify,
    /// It takes a buffer back.
    Take,
    /// It asks for an interrupt and sleeps, unless there is something.
    Sleep,
    /// The device takes a buffer.
    Pop,
    /// It gives one back.
    Push,
    Publish,
    /// It asks for a notification and sleeps, unless there is something.
    Rest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..4usize).prop_map(Step::Add),
        Just(Step::Notify),
        Just(Step::Take),
        Just(Step::Sleep),
        Just(Step::Pop),
        Just(Step::Push),
        Just(Step::Publish),
        Just(Step::Rest),
    ];
    vec(step, 1..300)
}

/// Whether each side is awake, and what it is doing.
struct Pair<'a> {
    guest: &'a Guest,
    driver: Driver<'a>,
    ring: Ring,
    chain: Chain,
    taken: Vec<u16>,
    driver_sleeps: bool,
    device_sleeps: bool,
    /// Added, and not asked yet whether to notify.
    fresh: bool,
}

impl Pair<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Add(_) | Step::Notify | Step::Take | Step::Sleep if self.driver_sleeps => {}
            Step::Pop | Step::Push | Step::Publish | Step::Rest if self.device_sleeps => {}
            Step::Add(pieces) => self.fresh |= self.driver.add(&PIECES[..pieces]).is_some(),
            Step::Notify => {
                self.fresh = false;
                if self.driver.must_notify() && self.device_sleeps {
                    self.device_sleeps = false;
                    self.ring.suppress();
                }
            }
            Step::Take => {
                self.driver.used();
            }
            Step::Sleep if self.fresh => {}
            Step::Sleep => self.driver_sleeps = !self.driver.arm(0),
            Step::Pop => {
                if let Some(id) = rig::pop(&mut self.ring, self.guest, &mut self.chain) {
                    self.taken.push(id);
                }
            }
            Step::Push => {
                if !self.taken.is_empty() {
                    let id = self.taken.swap_remove(0);
                    self.ring.push(id, 0);
                }
            }
            Step::Publish => self.publish(),
            Step::Rest => {
                self.publish();
                self.device_sleeps = !self.ring.rearm();
            }
        }
    }

    fn publish(&mut self) {
        if self.ring.publish() && self.driver_sleeps {
            self.driver_sleeps = false;
            self.driver.disarm();
        }
    }

    /// Who sleeps has nothing to do.
    fn check(&mut self) {
        if self.device_sleeps && !self.fresh {
            let popped = rig::pop(&mut self.ring, self.guest, &mut self.chain);
            assert_eq!(popped, None, "the device sleeps");
        }
        if self.driver_sleeps {
            assert_eq!(self.driver.used(), None, "the driver sleeps");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nobody_sleeps_while_there_is_something_to_do(steps in steps(), size in 1..5u32) {
        for features in ALL {
            let guest = Guest::new(1);
            let mut pair = Pair {
                driver: guest.driver(1 << size, features),
                ring: guest.open(1 << size, features),
                guest: &guest,
                chain: Chain::default(),
                taken: Vec::new(),
                driver_sleeps: false,
                device_sleeps: false,
                fresh: false,
            };
            for step in &steps {
                pair.step(*step);
                pair.check();
            }
        }
    }
}

/// Two threads, each of which sleeps when it finds nothing to do.
#[test]
fn no_wakeup_is_lost_between_two_processors() {
    const REQUESTS: usize = 20_000;
    for features in ALL {
        let guest = Guest::new(1);
        let (kick, kicked) = mpsc::sync_channel(1);
        let (call, called) = mpsc::sync_channel(1);
        let (mut driver, mut ring) = (guest.driver(8, features), guest.open(8, features));
        thread::scope(|scope| {
            let guest = &guest;
            let device = scope.spawn(move || {
                let mut chain = Chain::default();
                let mut count = 0;
                while count < REQUESTS {
                    while let Some(id) = rig::pop(&mut ring, guest, &mut chain) {
                        ring.push(id, 0);
                        count += 1;
                    }
                    if ring.publish() {
                        let _ = call.try_send(());
                    }
                    if count < REQUESTS && !ring.rearm() {
                        wait(&kicked);
                        ring.suppress();
                    }
                }
            });
            let (mut added, mut done) = (0, 0);
            while done < REQUESTS {
                while added < REQUESTS && driver.add(&PIECES[..1 + added % 2]).is_some() {
                    added += 1;
                }
                if driver.must_notify() {
                    let _ = kick.try_send(());
                }
                while driver.used().is_some() {
                    done += 1;
                }
                if done < added && !driver.arm(0) {
                    wait(&called);
                    driver.disarm();
                }
            }
            device.join().unwrap();
        });
    }
}

fn wait(bell: &mpsc::Receiver<()>) {
    let rung = bell.recv_timeout(Duration::from_secs(20));
    assert_ne!(rung, Err(RecvTimeoutError::Timeout), "nobody woke this side");
}
