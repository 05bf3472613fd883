//! Tasks that meet at the gate or abort each other.

use super::*;

/// Turns for a while, gathering completions.
fn turn_for_a_while(rig: &mut Rig) {
    for _ in 0..50 {
        rig.engine.model.postboxes.take(0, &mut rig.mail);
        rig.engine.turn(&mut rig.mail);
        let mut fresh = Vec::new();
        rig.engine.completions(&mut fresh);
        rig.done.append(&mut fresh);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn ended(rig: &Rig, cookie: u64) -> bool {
    rig.done.iter().any(|done| done.owner.cookie == cookie)
}

fn reserve_out(action: u8, kind: u8) -> [u8; 10] {
    [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

fn keys(key: u64, action_key: u64) -> Vec<u8> {
    [&key.to_be_bytes()[..], &action_key.to_be_bytes(), &[0; 8]].concat()
}

#[test]
fn an_ordered_read_waits_for_the_lent_read_before_it() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let lent = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    let how = How { attribute: TaskAttribute::Ordered, ..room(512) };
    let ordered = rig.submit(&mut nexus, &read_10(0, 1), &how);
    assert_eq!(rig.engine.tasks_in_progress(), 1);
    rig.wait(lent);
    assert_eq!(rig.wait(ordered).1.status, Status::GOOD);
}

#[test]
fn a_write_same_waits_for_the_atomic_command_before_it() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let lent = rig.submit(&mut nexus, &read_10(4, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    let swap = rig.submit(&mut nexus, &compare_and_write(4), &out(&[0; 2 * BLOCK]));
    let write_same = [0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0];
    let filled = rig.submit(&mut nexus, &write_same, &out(&[9; BLOCK]));
    turn_for_a_while(&mut rig);
    assert!(!ended(&rig, swap) && !ended(&rig, filled));
    rig.wait(lent);
    assert_eq!(rig.wait(swap).1.status, Status::GOOD);
    assert_eq!(rig.wait(filled).1.status, Status::GOOD);
}

#[test]
fn commands_that_preempt_each_other_all_end() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    for (cdb, list) in [(reserve_out(0, 0), keys(0, 7)), (reserve_out(1, 1), keys(7, 0))] {
        assert_eq!(rig.call(&mut nexus, &cdb, &out(&list)).0.status, Status::GOOD);
    }
    // PREEMPT AND ABORT by the holder of its own key: each aborts the other.
    let list = keys(7, 7);
    let pair = [0; 2].map(|_| rig.submit(&mut nexus, &reserve_out(5, 1), &out(&list)));
    // Both are done before the engine hears of either.
    std::thread::sleep(std::time::Duration::from_millis(100));
    for cookie in pair {
        rig.wait(cookie);
    }
    assert!(!rig.engine.is_busy());
    assert!(rig.lu.gate.enter(0).is_some());
}

#[test]
fn a_preempting_command_aborted_while_a_worker_has_it_ends_and_still_aborts() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.nexus("iqn.a"), rig.nexus("iqn.b"));
    for nexus in [&mut a, &mut b] {
        let list = keys(0, nexus.info().id);
        assert_eq!(rig.call(nexus, &reserve_out(0, 0), &out(&list)).0.status, Status::GOOD);
    }
    let owner = rig.owner();
    let (cdb, how) = (write_10(0, 1), out(&[0; BLOCK]));
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(data) = rig.engine.submit(&mut b, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    let list = keys(a.info().id, b.info().id);
    let preempt = rig.submit(&mut a, &reserve_out(5, 1), &out(&list));
    let abort = rig.manage(&mut a, TaskFunction::AbortTask, preempt);
    assert_eq!(rig.wait(abort).1.code, ResponseCode::FunctionComplete);
    assert!(ended(&rig, preempt) && ended(&rig, owner.cookie));
    rig.engine.abandon(data.token);
    assert!(!rig.engine.is_busy());
}
