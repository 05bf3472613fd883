use super::{exchange::Note, *};
use crate::tcmu::rig::{DATA, Kernel, LEN};

fn take(ring: &mut Ring) -> (Taken, Request) {
    let mut request = Request::default();
    let taken = ring.take(&mut request, NOW).unwrap();
    (taken, request)
}

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0];
const NOW: u64 = 77_000;
const GOOD: Answer<'_> = Answer { status: 0, sense: &[], read: None };

#[test]
fn a_command_is_read_and_its_response_written_in_its_place() {
    let mut kernel = Kernel::new(4096);
    let at = kernel.command(0x1234, &READ, &[(DATA, 300), (DATA + 4096, 212)]);
    assert_eq!(at, 0);
    let mut ring = kernel.open().unwrap();
    let (taken, request) = take(&mut ring);
    assert_eq!((taken, request.id, request.cdb()), (Taken::Command, 0x1234, &READ[..]));
    assert_eq!((request.data_len, request.data_in_len), (512, 0));
    assert_eq!(request.data.iter().map(|part| part.len).collect::<Vec<_>>(), [300, 212]);
    assert!(!request.again && !request.torn);
    assert_eq!(take(&mut ring).0, Taken::Empty);
    assert!(!ring.publish());
    let sense = [0x70, 0, 5, 0];
    assert!(ring.answer(0x1234, &Answer { status: 2, sense: &sense, read: None }));
    assert!(!ring.answer(0x1234, &GOOD));
    assert!(ring.publish() && ring.is_idle());
    assert_eq!(kernel.responses(), [(0x1234, 2, None, sense)]);
    // All 96 bytes of sense data.
    assert_eq!(kernel.bytes::<92>(Kernel::place(20)), [0; 92]);
    assert!(!ring.publish());
}

#[test]
fn literal_bytes_of_a_read_are_its_request() {
    let kernel = Kernel::new(4096);
    kernel.put(128, &[0xA5; 4096]);
    #[rustfmt::skip]
    kernel.put(128, &[
        0x81, 0, 0, 0, 0x07, 0, 0, 0, // 129: 128 bytes and the code of a command; id 7
        1, 0, 0, 0, 0, 0, 0, 0, // one iovec
        0, 0, 0, 0, 0, 0, 0, 0,
        0xF0, 0, 0, 0, 0, 0, 0, 0, // the CDB is at 240
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0, // 8192
        0, 0x02, 0, 0, 0, 0, 0, 0, // 512
    ]);
    kernel.put(240, &READ);
    kernel.put(12, &128u32.to_le_bytes());
    let mut ring = kernel.open().unwrap();
    let (taken, request) = take(&mut ring);
    assert_eq!((taken, request.id, request.cdb()), (Taken::Command, 7, &READ[..]));
    assert_eq!((request.data_len, request.data.len()), (512, 1));
    ring.answer(7, &Answer { status: 0, sense: &[], read: Some(0x0102) });
    ring.publish();
    assert_eq!(kernel.bytes(128), [0x81, 0, 0, 0, 7, 0, 0, 0xA2, 0, 0, 0, 0, 2, 1, 0, 0]);
    assert_eq!(kernel.tail(), 128);
}

#[test]
fn the_ring_goes_round_over_padding() {
    let mut kernel = Kernel::new(400);
    let mut ring = kernel.open().unwrap();
    for round in 1..20u16 {
        kernel.command(round, &READ, &[(DATA, 512)]);
        assert_eq!(take(&mut ring).1.id, round);
        ring.answer(round, &GOOD);
        assert!(ring.publish());
        assert_eq!(kernel.responses(), [(round, 0, None, [0; 4])], "round {round}");
    }
}

#[test]
fn an_answer_overtakes_what_came_earlier() {
    let mut kernel = Kernel::new(4096);
    for id in 1..=3 {
        kernel.command(id, &READ, &[(DATA + u64::from(id) * 512, 512)]);
    }
    let mut ring = kernel.open().unwrap();
    for id in 1..=3 {
        assert_eq!(take(&mut ring).1.id, id);
    }
    ring.answer(3, &Answer { read: Some(9), ..GOOD });
    assert!(ring.publish());
    assert_eq!(kernel.responses().iter().map(|r| (r.0, r.2)).collect::<Vec<_>>(), [(3, Some(9))]);
    ring.answer(2, &GOOD);
    assert!(ring.publish());
    assert_eq!(kernel.responses()[0].0, 2);
    // The first is where the third was, and its request is what it was.
    let mut next = kernel.open().unwrap();
    let (_, request) = take(&mut next);
    assert_eq!((request.id, request.cdb(), request.again), (1, &READ[..], true));
    let expected = next.area.segment(DATA + 512, 512).unwrap().base;
    assert_eq!((request.data_len, request.data[0].base), (512, expected));
    ring.answer(1, &GOOD);
    assert!(ring.publish() && ring.is_idle());
    assert_eq!(kernel.responses()[0].0, 1);
}

#[test]
fn what_does_not_fit_in_front_or_has_sense_data_waits() {
    let mut kernel = Kernel::new(4096);
    let many: Vec<_> = (0..8).map(|n| (DATA + n * 512, 512)).collect();
    kernel.command(1, &READ, &many);
    kernel.command(2, &READ, &[(DATA, 512)]);
    kernel.command(3, &READ, &many);
    let mut ring = kernel.open().unwrap();
    (0..3).for_each(|_| assert_eq!(take(&mut ring).0, Taken::Command));
    ring.answer(2, &GOOD);
    assert!(!ring.publish());
    ring.answer(3, &Answer { status: 2, sense: &[0x70], read: None });
    assert!(!ring.publish());
    ring.answer(1, &GOOD);
    assert!(ring.publish());
    let order: Vec<u16> = kernel.responses().iter().map(|response| response.0).collect();
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn without_the_capability_answers_keep_their_order() {
    let mut kernel = Kernel::new(4096);
    kernel.put(2, &[0, 0]);
    kernel.command(1, &READ, &[(DATA, 512)]);
    kernel.command(2, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    (0..2).for_each(|_| assert_eq!(take(&mut ring).0, Taken::Command));
    ring.answer(2, &GOOD);
    assert!(!ring.publish() && !ring.tells_read_len());
    ring.answer(1, &GOOD);
    assert!(ring.publish());
}

/// Two commands in progress, the second answered: what `with` does to the memory then is what a
/// process was killed in. What the next process finds: ids to do again, then responses.
fn killed(with: impl FnOnce(&Kernel, &Ring, Slot, Slot)) -> (Vec<(u16, bool)>, Vec<u16>) {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 512)]);
    kernel.command(2, &READ, &[(DATA + 512, 512)]);
    let mut ring = kernel.open().unwrap();
    (0..2).for_each(|_| assert_eq!(take(&mut ring).0, Taken::Command));
    for slot in ring.slots.clone() {
        ring.area.store64(ring.at(slot.at, entry::SINCE), NOW);
    }
    ring.answer(2, &GOOD);
    with(&kernel, &ring, ring.slots[0], ring.slots[1]);
    drop(ring);
    let mut ring = kernel.open().unwrap();
    let mut again = Vec::new();
    loop {
        let (taken, request) = take(&mut ring);
        if taken == Taken::Empty {
            break;
        }
        assert!(request.again && (request.torn || request.since == NOW));
        if !request.torn {
            assert_eq!(request.cdb(), READ);
            let data = DATA + 512 * u64::from(request.id - 1);
            assert_eq!(request.data[0].base, ring.area.segment(data, 1).unwrap().base);
        }
        again.push((request.id, request.torn));
    }
    for (id, _) in &again {
        assert!(ring.answer(*id, &GOOD));
    }
    ring.publish();
    assert!(ring.is_idle());
    (again, kernel.responses().iter().map(|response| response.0).collect())
}

#[test]
fn a_process_killed_before_it_told_leaves_the_answer_in_the_ring() {
    let (again, told) = killed(|_, _, _, _| {});
    assert_eq!((again, told), (vec![(1, false)], vec![1, 2]));
}

#[test]
fn an_exchange_is_finished_wherever_the_process_was_killed() {
    let note = |slot: Slot| Note { other: slot.at, id: 2, read_len: false, is_copied: false };
    let begin = move |ring: &Ring, front: Slot, other: Slot| {
        ring.area.store64(ring.at(other.at, entry::SINCE), NOW);
        ring.area.store64(ring.at(front.at, entry::SINCE), response_word(0, 0));
        ring.area.store64(ring.at(front.at, entry::NOTE), note(other).emit());
    };
    let finished = (vec![(1, false)], vec![2, 1]);
    // After the note.
    assert_eq!(killed(|_, ring, front, other| begin(ring, front, other)), finished);
    // While the request was copied.
    let torn = killed(|kernel, ring, front, other| {
        begin(ring, front, other);
        kernel.put(Kernel::place(other.at) + 8, &[0xA5; 24]);
        kernel.put(Kernel::place(other.at) + 40, &[0xA5; 80]);
    });
    assert_eq!(torn, finished);
    // After the copy was noted, and after half of the response.
    for half in [false, true] {
        let copied = killed(|_, ring, front, other| {
            begin(ring, front, other);
            ring.copy_request(front, other);
            let note = Note { is_copied: true, ..note(other) };
            ring.area.store64(ring.at(front.at, entry::NOTE), note.emit());
            if half {
                ring.area.store64(ring.at(front.at, entry::IOVECS), u64::MAX);
            }
        });
        assert_eq!(copied, finished);
    }
}

#[test]
fn a_response_that_was_being_written_is_torn() {
    let (again, told) = killed(|kernel, _, _, other| {
        kernel.put(Kernel::place(other.at) + 7, &[flag::TAKEN | flag::ANSWERING]);
        kernel.put(Kernel::place(other.at) + 8, &[0xFF; 40]);
    });
    assert_eq!((again, told), (vec![(1, false), (2, true)], vec![1, 2]));
}

#[test]
fn a_command_is_as_old_as_it_is_known_for() {
    let mut kernel = Kernel::new(4096);
    let mut request = Request::default();
    let mut ring = kernel.open().unwrap();
    assert_eq!(ring.take(&mut request, 1000), Ok(Taken::Empty));
    kernel.command(1, &READ, &[(DATA, 512)]);
    ring.take(&mut request, 2000).unwrap();
    assert_eq!((request.id, request.since), (1, 2000));
    assert_eq!(ring.take(&mut request, 3000), Ok(Taken::Empty));
    drop(ring);
    kernel.command(2, &READ, &[(DATA, 512)]);
    // The next process: the first is as old as it was, the second came after all were known.
    let mut ring = kernel.open().unwrap();
    for (id, since) in [(1, 2000), (2, 3000)] {
        ring.take(&mut request, 90_000).unwrap();
        assert_eq!((request.id, request.since), (id, since));
    }
    assert_eq!(ring.take(&mut request, 90_000), Ok(Taken::Empty));
    kernel.command(3, &READ, &[(DATA, 512)]);
    ring.take(&mut request, 91_000).unwrap();
    assert_eq!((request.id, request.since), (3, 91_000));
}

#[test]
fn commands_that_came_meanwhile_are_new() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    take(&mut ring);
    drop(ring);
    kernel.command(2, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    assert!(take(&mut ring).1.again);
    assert!(!take(&mut ring).1.again);
}

#[test]
fn a_ring_that_the_kernel_emptied_is_begun_anew() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    take(&mut ring);
    ring.answer(1, &GOOD);
    ring.publish();
    kernel.command(2, &READ, &[(DATA, 512)]);
    take(&mut ring);
    // action/reset_ring: tail and head are 0, and the next command comes.
    (kernel.head, kernel.cleaned) = (0, 0);
    kernel.put(64, &[0; 4]);
    kernel.command(3, &READ, &[(DATA, 512)]);
    ring.answer(2, &GOOD);
    assert!(!ring.publish(), "a tail that is not ours is left alone");
    assert_eq!(kernel.tail(), 0);
    assert!(ring.has_more());
    assert_eq!(take(&mut ring).0, Taken::Reset);
    assert!(!ring.answer(2, &GOOD));
    assert_eq!(take(&mut ring).1.id, 3);
    ring.answer(3, &GOOD);
    assert!(ring.publish());
    assert_eq!(kernel.responses()[0].0, 3);
    // At its very beginning, the tail says nothing.
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    take(&mut ring);
    kernel.put(12, &[0; 4]);
    assert_eq!(take(&mut ring).0, Taken::Reset);
    kernel.head = 0;
    kernel.command(4, &READ, &[(DATA, 512)]);
    take(&mut ring);
    kernel.head = 0;
    kernel.command(5, &READ, &[(DATA, 512)]);
    assert!(!ring.answer(4, &GOOD), "another command is there now");
}

#[test]
fn task_management_names_its_commands_once() {
    let mut kernel = Kernel::new(4096);
    let mut entry = vec![0; 40];
    entry[..8].copy_from_slice(&[40 | 2, 0, 0, 0, 0, 0, 0, 0]);
    entry[8] = 5;
    // It says 9, and has room for 4.
    entry[12] = 9;
    entry[32..40].copy_from_slice(&[1, 0, 2, 0, 3, 0, 4, 0]);
    kernel.put(128, &entry);
    kernel.move_head(40);
    let mut ring = kernel.open().unwrap();
    let (taken, request) = take(&mut ring);
    assert_eq!((taken, request.function, request.ids), (Taken::Manage, 5, vec![1, 2, 3, 4]));
    let mut next = kernel.open().unwrap();
    assert_eq!(take(&mut next).0, Taken::Empty);
    assert!(ring.publish());
    assert_eq!(kernel.tail(), 40);
}

#[test]
fn an_operation_nobody_knows_is_flagged_and_given_back() {
    let mut kernel = Kernel::new(4096);
    kernel.put(128, &[24 | 5, 0, 0, 0, 9, 0, 0, 0]);
    kernel.move_head(24);
    kernel.command(1, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    assert_eq!(take(&mut ring).1.id, 1);
    assert!(ring.publish());
    assert_eq!(kernel.bytes::<8>(128)[7] & 3, flag::UNKNOWN_OPERATION);
    assert_eq!(kernel.tail(), 24);
}

#[test]
fn data_both_ways_has_two_lists() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 100), (DATA + 512, 200), (DATA + 1024, 300)]);
    kernel.put(128 + 8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    let mut ring = kernel.open().unwrap();
    let request = take(&mut ring).1;
    assert_eq!((request.data_len, request.data_in_len), (100, 500));
    assert_eq!((request.data.len(), request.data_in.len()), (1, 2));
}

#[test]
fn data_is_cleared_from_where_it_was_not_read() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 4), (DATA + 4096, 8000)]);
    kernel.put(DATA, &[0xA5; 16384]);
    let mut ring = kernel.open().unwrap();
    take(&mut ring);
    ring.clear_data(1, 6);
    assert_eq!(kernel.bytes::<5>(DATA), [0xA5; 5]);
    assert_eq!(kernel.bytes::<3>(DATA + 4096), [0xA5, 0xA5, 0]);
    assert_eq!(kernel.bytes::<2>(DATA + 4096 + 7999), [0, 0xA5]);
}

#[test]
fn mailboxes_that_cannot_be_are_refused() {
    let open = |at: u64, bytes: &[u8]| {
        let kernel = Kernel::new(4096);
        kernel.put(at, bytes);
        kernel.open().map(drop)
    };
    assert_eq!(open(0, &[1]), Err(RingError::Version(1)));
    let bad: [(u64, u32); 7] =
        [(4, 64), (4, 132), (4, !7), (8, 0), (8, 112), (8, LEN as u32 - 120), (8, 4097)];
    for (at, value) in bad {
        let result = open(at, &value.to_le_bytes());
        assert!(matches!(result, Err(RingError::Extent { .. })), "{at} {value} {result:?}");
    }
    for value in [4096u32, 4, u32::MAX] {
        assert_eq!(open(64, &value.to_le_bytes()), Err(RingError::Position(value)));
        assert_eq!(open(12, &value.to_le_bytes()), Err(RingError::Position(value)));
    }
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let taken = |change: &dyn Fn(&Kernel)| {
        let mut kernel = Kernel::new(4096);
        let mut ring = kernel.open().unwrap();
        kernel.command(1, &READ, &[(DATA, 512)]);
        change(&kernel);
        ring.take(&mut Request::default(), NOW).map(|_| ())
    };
    assert_eq!(taken(&|_| {}), Ok(()));
    for len in [0u32, 104, 136, 4096] {
        let result = taken(&|kernel| kernel.put(128, &(len | 1).to_le_bytes()));
        assert_eq!(result, Err(RingError::Length { at: 0, len }));
    }
    assert_eq!(taken(&|kernel| kernel.put(132, &[0, 0])), Err(RingError::Id(0)));
    assert_eq!(taken(&|kernel| kernel.put(12, &[3])), Err(RingError::Position(3)));
    for (at, value) in [(8, 9u32), (8, u32::MAX), (12, 9), (12, u32::MAX)] {
        let result = taken(&|kernel| kernel.put(128 + at, &value.to_le_bytes()));
        assert_eq!(result, Err(RingError::Request(0)), "{at} {value}");
    }
    for cdb in [0u64, 128 + 40, 128 + 113, 256, u64::MAX, u64::MAX - 7] {
        let result = taken(&|kernel| kernel.put(128 + 24, &cdb.to_le_bytes()));
        assert_eq!(result, Err(RingError::Request(0)), "{cdb}");
    }
    // A CDB that would be longer than the entry.
    let long = taken(&|kernel| kernel.put(240, &[0x7F, 0, 0, 0, 0, 0, 0, 9]));
    assert_eq!(long, Err(RingError::Request(0)));
    for (from, len) in [
        (0u64, 512u64),
        (128 + 4096 - 1, 1),
        (LEN, 1),
        (LEN - 511, 512),
        (u64::MAX, 2),
        (DATA, u64::MAX),
        (DATA, LEN),
    ] {
        let result = taken(&|kernel| {
            kernel.put(128 + 48, &from.to_le_bytes());
            kernel.put(128 + 56, &len.to_le_bytes());
        });
        assert_eq!(result, Err(RingError::Data(0)), "{from} {len}");
    }
}

#[test]
fn an_id_that_is_in_progress_cannot_come_again() {
    let mut kernel = Kernel::new(4096);
    kernel.command(1, &READ, &[(DATA, 512)]);
    kernel.command(1, &READ, &[(DATA, 512)]);
    let mut ring = kernel.open().unwrap();
    take(&mut ring);
    assert_eq!(ring.take(&mut Request::default(), NOW), Err(RingError::Id(1)));
}
