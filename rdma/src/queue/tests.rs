#![allow(unsafe_code)] // An owner that no device ever sees.

use super::*;

#[derive(Debug, PartialEq, Eq)]
struct Owner(u64, usize);

// SAFETY: the queue only calculates with the address.
unsafe impl Registered for Owner {
    fn local(&self) -> Local {
        Local { addr: self.0, len: self.1, key: 7 }
    }
}

#[derive(Default)]
struct Fake {
    filled: Vec<(u16, Vec<u8>)>,
}

impl Slots for Fake {
    fn at(&self, slot: u16) -> (u64, u32) {
        (0x1000 + u64::from(slot), 9)
    }

    fn fill(&mut self, slot: u16, message: &[u8]) {
        self.filled.push((slot, message.to_vec()));
    }
}

fn remote(addr: u64, len: u32) -> Remote {
    Remote { addr, key: 5, len }
}

fn chain(queue: &mut SendQueue<Owner>) -> Vec<Work> {
    let mut chain = Vec::new();
    queue.chain(&mut Fake::default(), &mut chain);
    chain
}

fn complete(queue: &mut SendQueue<Owner>, sequence: u64) -> Vec<Freed<Owner>> {
    let mut freed = Vec::new();
    queue.completed(sequence, |one| freed.push(one));
    freed
}

#[test]
fn write_and_send_are_one_chain_with_one_completion() {
    let mut queue = SendQueue::new(8, 1, 2);
    queue.write(Owner(100, 4096), 0, 4096, &[remote(900, 4096)]);
    let slot = queue.take_slot().unwrap();
    queue.send(slot, 36, SendFlags { invalidate: Some(3), ..SendFlags::default() });
    let chain = chain(&mut queue);
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0].kind, Kind::Write { addr: 900, key: 5 });
    assert_eq!((chain[0].addr, chain[0].len, chain[0].signaled), (100, 4096, false));
    assert!(matches!(chain[1].kind, Kind::Send(flags) if flags.invalidate == Some(3)));
    assert!(chain[1].signaled);
    assert_eq!(complete(&mut queue, 1), [Freed::Owner(Owner(100, 4096))]);
    assert_eq!(queue.free_slots(), 2);
    assert!(queue.is_idle());
}

#[test]
fn pieces_follow_the_remote_list_and_the_chunk() {
    let mut queue = SendQueue::new(64, 16, 1);
    let pieces = [remote(10, 3), remote(20, 0), remote(30, 100)];
    queue.write(Owner(100, 8), 1, 6, &pieces);
    let found: Vec<_> = chain(&mut queue).iter().map(|work| (work.addr, work.len)).collect();
    assert_eq!(found, [(101, 3), (104, 3)]);
    let long = 2 * READ_CHUNK + 1;
    assert_eq!(queue.read(Owner(0, long), 0, long, &[remote(5000, u32::MAX)], 1), None);
    let found: Vec<_> = chain(&mut queue).iter().map(|work| (work.addr, work.len)).collect();
    let chunk = READ_CHUNK as u32;
    assert_eq!(found, [(0, chunk), (chunk.into(), chunk), (2 * u64::from(chunk), 1)]);
}

#[test]
fn reads_beyond_what_the_peer_serves_wait_and_hold_nobody_up() {
    let mut queue = SendQueue::new(64, 2, 4);
    for cookie in 0..3 {
        assert_eq!(queue.read(Owner(cookie, 8), 0, 8, &[remote(0, 8)], cookie), None);
    }
    let slot = queue.take_slot().unwrap();
    queue.send(slot, 8, SendFlags::default());
    let first = chain(&mut queue);
    assert_eq!(first.len(), 3);
    assert!(matches!(first[2].kind, Kind::Send(_)));
    assert!(chain(&mut queue).is_empty());
    let freed = complete(&mut queue, 0);
    assert_eq!(freed, [Freed::Read { cookie: 0, owner: Owner(0, 8) }]);
    assert_eq!(chain(&mut queue).len(), 1);
}

#[test]
fn nothing_is_posted_beyond_the_depth() {
    let mut queue = SendQueue::new(2, 8, 8);
    for _ in 0..5 {
        let slot = queue.take_slot().unwrap();
        queue.send(slot, 8, SendFlags::default());
    }
    let first = chain(&mut queue);
    assert_eq!(first.len(), 2);
    assert!(first[1].signaled && !first[0].signaled);
    assert!(chain(&mut queue).is_empty());
    complete(&mut queue, 1);
    assert_eq!(chain(&mut queue).len(), 2);
    complete(&mut queue, 3);
    assert_eq!(chain(&mut queue).len(), 1);
    complete(&mut queue, 4);
    assert!(queue.is_idle());
}

#[test]
fn messages_without_a_slot_keep_their_order() {
    let mut queue: SendQueue<Owner> = SendQueue::new(8, 1, 1);
    let slot = queue.take_slot().unwrap();
    queue.send(slot, 1, SendFlags::default());
    queue.send_later(Box::new(*b"second"), SendFlags::default());
    queue.send_later(Box::new(*b"third"), SendFlags::default());
    let mut slots = Fake::default();
    let mut posted = Vec::new();
    queue.chain(&mut slots, &mut posted);
    assert_eq!(posted.len(), 1);
    for (sequence, message) in [(0, &b"second"[..]), (1, b"third")] {
        complete(&mut queue, sequence);
        posted.clear();
        queue.chain(&mut slots, &mut posted);
        assert_eq!(posted.len(), 1);
        assert_eq!(slots.filled.last(), Some(&(0, message.to_vec())));
    }
}

#[test]
fn cancelled_read_that_was_not_posted_is_given_back() {
    let mut queue = SendQueue::new(8, 1, 1);
    assert_eq!(queue.read(Owner(1, 8), 0, 8, &[remote(0, 8)], 1), None);
    assert_eq!(queue.cancel(1), Some(Owner(1, 8)));
    assert!(chain(&mut queue).is_empty());
    assert!(queue.is_idle());
}

#[test]
fn cancelled_read_that_was_posted_in_part_ends_with_what_was_posted() {
    let mut queue = SendQueue::new(8, 1, 1);
    let two = [remote(0, 8), remote(100, 8)];
    assert_eq!(queue.read(Owner(1, 16), 0, 16, &two, 1), None);
    assert_eq!(chain(&mut queue).len(), 1);
    assert_eq!(queue.cancel(1), None);
    assert!(chain(&mut queue).is_empty());
    let freed = complete(&mut queue, 0);
    assert_eq!(freed, [Freed::Read { cookie: 1, owner: Owner(1, 16) }]);
    assert!(queue.is_idle());
}

#[test]
fn cancelling_what_is_not_there_changes_nothing() {
    let mut queue = SendQueue::new(8, 1, 1);
    assert_eq!(queue.read(Owner(1, 8), 0, 8, &[remote(0, 8)], 1), None);
    assert_eq!(queue.cancel(2), None);
    assert_eq!(chain(&mut queue).len(), 1);
    assert_eq!(queue.cancel(1), None);
    assert_eq!(complete(&mut queue, 0).len(), 1);
}

#[test]
fn empty_read_gives_its_owner_back_at_once() {
    let mut queue = SendQueue::new(8, 1, 1);
    assert_eq!(queue.read(Owner(1, 8), 0, 0, &[remote(0, 8)], 1), Some(Owner(1, 8)));
    assert_eq!(queue.read(Owner(1, 8), 8, 1, &[remote(0, 8)], 1), Some(Owner(1, 8)));
    assert_eq!(queue.read(Owner(1, 8), 0, 8, &[], 1), Some(Owner(1, 8)));
}

#[test]
fn completion_of_a_number_never_posted_frees_no_more_than_all() {
    let mut queue = SendQueue::new(8, 1, 1);
    queue.send_owned(Owner(1, 64), 80, SendFlags::default());
    let posted = chain(&mut queue);
    assert_eq!((posted.len(), posted[0].len), (1, 64));
    assert_eq!(complete(&mut queue, u64::MAX).len(), 1);
    assert_eq!(queue.in_progress(), 0);
}

#[test]
fn an_owner_without_work_goes_with_what_was_before_or_at_once() {
    let mut queue = SendQueue::new(8, 1, 1);
    queue.write(Owner(1, 8), 0, 0, &[]);
    assert!(chain(&mut queue).is_empty());
    assert!(queue.is_idle());
    let slot = queue.take_slot().unwrap();
    queue.send(slot, 1, SendFlags::default());
    queue.write(Owner(2, 8), 0, 0, &[]);
    assert_eq!(chain(&mut queue).len(), 1);
    assert_eq!(complete(&mut queue, 0), [Freed::Owner(Owner(2, 8))]);
}

#[test]
fn a_later_message_never_takes_the_slot_an_earlier_one_waits_for() {
    let mut queue: SendQueue<Owner> = SendQueue::new(8, 1, 1);
    let slot = queue.take_slot().unwrap();
    queue.send(slot, 1, SendFlags::default());
    assert_eq!(chain(&mut queue).len(), 1);
    queue.send_later(Box::new(*b"second"), SendFlags::default());
    complete(&mut queue, 0);
    assert_eq!(queue.take_slot(), None);
    assert_eq!(chain(&mut queue).len(), 1);
    complete(&mut queue, 1);
    assert_eq!(queue.take_slot(), Some(0));
}
