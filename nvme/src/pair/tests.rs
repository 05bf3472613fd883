use super::*;
use crate::{
    Controller, Fault, Mapping, OpenError,
    model::{BLOCK, BLOCKS, Behaviour, MOST, Model},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    thread,
    time::{Duration, Instant},
};

/// Memory that the model reaches, page-aligned.
struct Area {
    base: *mut u8,
    len: usize,
    _mapping: Mapping,
}

impl Area {
    #[allow(unsafe_code)]
    fn new(controller: &Controller, len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: the layout has bytes.
        let base = unsafe { alloc_zeroed(layout) };
        // SAFETY: it is freed after the mapping is dropped, by the order in `drop`.
        let mapping = unsafe { controller.space().map(base, len) }.unwrap();
        Self { base, len, _mapping: mapping }
    }

    #[allow(unsafe_code)]
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own memory; the model has no command on it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    fn at(&self, offset: usize, len: usize) -> (usize, usize) {
        (self.base as usize + offset, len)
    }
}

impl Drop for Area {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.len, 4096).unwrap();
        // SAFETY: as it was allocated. The model is asked for nothing any more.
        unsafe { dealloc(self.base, layout) };
    }
}

struct Rig {
    pair: Pair,
    area: Area,
    controller: Controller,
    model: Model,
    done: Vec<(u64, Option<i32>, bool)>,
}

impl Rig {
    fn new(behaviour: Behaviour) -> Self {
        let model = Model::new(behaviour);
        let controller = model.open(1).unwrap();
        let pair = controller.take(0).unwrap();
        let area = Area::new(&controller, 1 << 20);
        Self { pair, area, controller, model, done: Vec::new() }
    }

    fn start(&mut self, key: u64, kind: Kind, lba: u64, memory: &[(usize, usize)]) {
        let started = self.pair.start(key, kind, blocks(lba, 0), memory.iter().copied());
        assert_eq!(started, Started::Queued);
    }

    fn turn(&mut self) {
        let done = &mut self.done;
        self.pair.reap(|key, result| {
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            done.push((key, errno, result.is_ok()));
        });
        self.pair.submit();
    }

    /// Runs until so many operations have ended, and gives how: each key, with whether it went well.
    fn run(&mut self, count: usize) -> Vec<(u64, bool)> {
        self.errors(count).into_iter().map(|(key, _, ok)| (key, ok)).collect()
    }

    fn errors(&mut self, count: usize) -> Vec<(u64, Option<i32>, bool)> {
        let start = Instant::now();
        let mut ticked = start;
        while self.done.len() < count {
            self.turn();
            if ticked.elapsed() > Duration::from_millis(50) {
                ticked = Instant::now();
                self.pair.tick();
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", self.pair);
            thread::yield_now();
        }
        std::mem::take(&mut self.done)
    }
}

fn blocks(lba: u64, count: u64) -> Blocks {
    Blocks { nsid: 1, lba, count, size: BLOCK as u32 }
}

const WRITE: Kind = Kind::Write { fua: false };

#[test]
fn scattered_write_and_read_are_cut_and_land_where_they_belong() {
    let mut rig = Rig::new(Behaviour::default());
    let len = MOST + 3 * 4096;
    for (i, byte) in rig.area.bytes()[..len].iter_mut().enumerate() {
        *byte = (i / 7) as u8;
    }
    // A first piece inside a page, and the rest elsewhere.
    let pieces = [rig.area.at(512, 3584), rig.area.at(4096, len - 4096)];
    rig.start(7, WRITE, 16, &pieces);
    assert_eq!(rig.run(1), [(7, true)]);
    let commands = rig.model.commands();
    assert_eq!(commands.len(), 2, "{commands:?}");
    let expected = rig.area.bytes()[512..len].to_vec();
    assert_eq!(rig.model.medium()[16 * BLOCK..][..expected.len()], expected[..]);

    let pieces = [rig.area.at(1 << 19, 8192), rig.area.at((1 << 19) + 8192, len - 512 - 8192)];
    rig.start(8, Kind::Read, 16, &pieces);
    assert_eq!(rig.run(1), [(8, true)]);
    assert_eq!(rig.area.bytes()[1 << 19..][..expected.len()], expected[..]);
}

#[test]
fn more_operations_than_the_queue_has_entries_all_end() {
    let mut rig = Rig::new(Behaviour::default());
    let piece = [rig.area.at(0, 4096)];
    for key in 0..500 {
        rig.start(key, WRITE, key * 8 % 4096, &piece);
    }
    let mut ended: Vec<u64> = rig.run(500).into_iter().map(|(key, _)| key).collect();
    ended.sort_unstable();
    assert_eq!(ended, (0..500).collect::<Vec<_>>());
    assert_eq!(rig.pair.in_flight(), 0);
}

#[test]
fn memory_that_is_not_mapped_or_not_aligned_is_unreachable() {
    let mut rig = Rig::new(Behaviour::default());
    let inside = rig.area.at(2, 512);
    let over = rig.area.at((1 << 20) - 512, 1024);
    for place in [(0x1000, 512), inside, over] {
        let started = rig.pair.start(1, Kind::Read, blocks(0, 0), [place]);
        assert_eq!(started, Started::Unreachable, "{place:x?}");
    }
    assert_eq!(rig.pair.in_flight(), 0);
}

#[test]
fn status_without_do_not_retry_is_tried_again_three_times() {
    let mut rig = Rig::new(Behaviour::default());
    let piece = [rig.area.at(0, 512)];
    rig.model.behaviour().failures.extend([Status(0x06); 3]);
    rig.start(1, WRITE, 0, &piece);
    assert_eq!(rig.run(1), [(1, true)]);
    rig.model.behaviour().failures.extend([Status(0x06); 4]);
    rig.start(2, WRITE, 0, &piece);
    assert_eq!(rig.run(1), [(2, false)]);
    rig.model.behaviour().failures.push_back(Status(0x281 | 1 << 14));
    rig.start(3, Kind::Read, 0, &piece);
    assert_eq!(rig.run(1), [(3, false)]);
    assert_eq!(rig.model.commands().len(), 4 + 4 + 1);
}

#[test]
fn one_failed_command_of_several_fails_the_operation_once() {
    let mut rig = Rig::new(Behaviour::default());
    rig.model.behaviour().failures.extend([Status(0), Status(0x280 | 1 << 14)]);
    let piece = [rig.area.at(0, 8 * MOST)];
    rig.start(9, Kind::Read, 0, &piece);
    assert_eq!(rig.run(1), [(9, false)]);
    let piece = [rig.area.at(0, 512)];
    rig.start(10, Kind::Read, 0, &piece);
    assert_eq!(rig.run(1), [(10, true)]);
}

#[test]
fn fatal_status_leads_to_a_reset_after_which_commands_are_done_again() {
    let mut rig = Rig::new(Behaviour { lost: 3, ..Behaviour::default() });
    rig.area.bytes().fill(0x5A);
    let piece = [rig.area.at(0, 4096)];
    for key in 0..6 {
        rig.start(key, WRITE, key * 8, &piece);
    }
    rig.turn();
    while rig.done.len() < 3 {
        rig.turn();
    }
    rig.model.behaviour().fatal = true;
    assert!(rig.errors(6).iter().all(|(_, _, ok)| *ok));
    assert_eq!(rig.controller.resets(), 1);
    assert!(rig.model.medium()[..6 * 4096].iter().all(|byte| *byte == 0x5A));
}

#[test]
fn completion_of_what_was_not_given_leads_to_a_reset() {
    for (queue, cid) in [(2, 60), (2, u16::MAX), (9, 0)] {
        let mut rig = Rig::new(Behaviour::default());
        let piece = [rig.area.at(0, 512)];
        let stray = Cqe { result: 0, head: 0, queue, cid, phase: false, status: Status(0) };
        rig.model.behaviour().stray = Some(stray);
        rig.start(1, WRITE, 0, &piece);
        assert_eq!(rig.run(1), [(1, true)]);
        let start = Instant::now();
        while rig.controller.resets() == 0 {
            rig.turn();
            assert!(start.elapsed() < Duration::from_secs(20), "{queue} {cid}");
        }
        rig.start(2, Kind::Read, 0, &piece);
        assert_eq!(rig.run(1), [(2, true)]);
    }
}

#[test]
fn cancelled_command_that_is_lost_ends_with_a_reset_and_others_go_on() {
    let mut rig = Rig::new(Behaviour { lost: 2, ..Behaviour::default() });
    let piece = [rig.area.at(0, 512)];
    rig.start(1, WRITE, 0, &piece);
    rig.start(2, WRITE, 1, &piece);
    rig.turn();
    while rig.model.behaviour().lost > 0 {
        thread::yield_now();
    }
    rig.pair.cancel(1);
    let mut ended = rig.errors(2);
    ended.sort_unstable_by_key(|(key, ..)| *key);
    assert_eq!(ended, [(1, Some(libc::ECANCELED), false), (2, None, true)]);
    // One that was not issued is taken back at once.
    rig.start(3, WRITE, 0, &piece);
    rig.pair.cancel(3);
    assert_eq!(rig.errors(1), [(3, Some(libc::ECANCELED), false)]);
    assert_eq!(rig.controller.resets(), 1);
}

#[test]
fn removed_controller_fails_everything_and_is_over() {
    let mut rig = Rig::new(Behaviour { lost: 1, ..Behaviour::default() });
    let piece = [rig.area.at(0, 512)];
    rig.start(1, WRITE, 0, &piece);
    rig.turn();
    rig.model.behaviour().gone = true;
    assert_eq!(rig.errors(1), [(1, Some(libc::ENODEV), false)]);
    assert!(rig.pair.is_over() && rig.controller.is_gone());
    assert_eq!(rig.pair.start(2, WRITE, blocks(0, 0), piece), Started::Gone);
    let call = rig.controller.call(Kind::Flush, blocks(0, 0), None).unwrap();
    assert_eq!(call.unwrap_err().raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn controller_that_does_not_become_ready_is_refused_and_given_up() {
    let stuck = Model::new(Behaviour { stuck: true, ..Behaviour::default() });
    let refused = stuck.open(1).unwrap_err();
    let slow = matches!(
        refused,
        OpenError::Controller { fault: Fault::Slow { ready: true, millis: 2000 }, .. }
    );
    assert!(slow, "{refused}");
    let mut rig = Rig::new(Behaviour { lost: 1, ..Behaviour::default() });
    let piece = [rig.area.at(0, 512)];
    rig.start(1, WRITE, 0, &piece);
    rig.turn();
    {
        let mut behaviour = rig.model.behaviour();
        (behaviour.stuck, behaviour.fatal) = (true, true);
    }
    assert_eq!(rig.errors(1), [(1, Some(libc::ENODEV), false)]);
}

#[test]
fn calls_zero_deallocate_and_flush() {
    let rig = Rig::new(Behaviour::default());
    rig.model.medium().fill(1);
    let call = |kind, lba, count| rig.controller.call(kind, blocks(lba, count), None);
    call(Kind::Zero { deallocate: true }, 8, 300).unwrap().unwrap();
    call(Kind::Deallocate, 4096, 16).unwrap().unwrap();
    call(Kind::Flush, 0, 0).unwrap().unwrap();
    let medium = rig.model.medium();
    let is = |lba: usize, value| medium[lba * BLOCK..][..BLOCK].iter().all(|byte| *byte == value);
    assert!(is(7, 1) && is(8, 0) && is(307, 0) && is(308, 1));
    assert!(is(4095, 1) && is(4096, 0) && is(4111, 0) && is(4112, 1));
    drop(medium);
    // Zeroing is cut as transfers are.
    let opcodes: Vec<u8> = rig.model.commands().iter().map(|sqe| sqe.opcode).collect();
    assert_eq!(opcodes.iter().filter(|opcode| **opcode == 8).count(), 300usize.div_ceil(16));
    assert_eq!(opcodes[opcodes.len() - 2..], [9, 0]);
}

#[test]
fn namespaces_and_their_data_are_found() {
    let rig = Rig::new(Behaviour::default());
    assert_eq!(rig.controller.namespaces().unwrap(), [1]);
    let data = rig.controller.namespace(1).unwrap();
    assert_eq!((data.blocks, data.block_size), (BLOCKS as u64, 512));
    assert!(matches!(rig.controller.namespace(2), Err(OpenError::Namespace { nsid: 2, .. })));
    assert!(rig.controller.caches_writes());
    // It gave four pairs of which one is for calls, and was asked for one.
    assert!(rig.controller.take(1).is_none());
}
