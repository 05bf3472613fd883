use super::*;

const OTHER_TYPE: Type = Type::WriteExclusiveRegistrantsOnly;

#[test]
fn preempt_without_reservation_removes_registrations_and_ignores_the_type() {
    let mut unit = Unit::with_registrants(3);
    let effects = unit.send(1, PREEMPT, 0xFF, list(key(1), key(2), 0)).unwrap();
    assert_eq!(unit.keys(), [key(1), key(3)]);
    assert_eq!(told(&effects), all_told([2], Attention::REGISTRATIONS_PREEMPTED));
    assert_eq!(effects.abort, []);
    assert_eq!((unit.0.generation(), unit.0.reservation_type()), (4, None));
}

#[test]
fn preempt_of_an_unknown_key_conflicts() {
    for action_key in [0, 5] {
        let mut unit = Unit::with_registrants(2);
        assert_eq!(unit.act(1, PREEMPT, OTHER_TYPE, action_key), Err(CONFLICT));
    }
    for kind in Type::ALL {
        let mut unit = Unit::reserved(kind, 2);
        assert_eq!(unit.act(2, PREEMPT, OTHER_TYPE, 5), Err(CONFLICT), "{kind:?}");
    }
}

#[test]
fn preempt_of_zero_is_invalid_unless_all_registrants_hold() {
    for kind in Type::ALL {
        let mut unit = Unit::reserved(kind, 2);
        let result = unit.act(2, PREEMPT, OTHER_TYPE, 0);
        if kind.is_all_registrants() {
            result.unwrap();
        } else {
            assert_eq!(result, Err(parameter_fault(8, None)), "{kind:?}");
        }
    }
}

#[test]
fn preempt_of_the_holder_takes_the_reservation_over() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 3);
    let effects = unit.act(2, PREEMPT, Type::ExclusiveAccess, key(1)).unwrap();
    assert!(unit.holds(2));
    assert_eq!(unit.keys(), [key(2), key(3)]);
    // Type and scope as before: only who lost a registration learns of it.
    assert_eq!(told(&effects), all_told([1], Attention::REGISTRATIONS_PREEMPTED));
}

#[test]
fn preempt_of_the_holder_with_another_type_tells_those_who_stay() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 4);
    let effects = unit.act(2, PREEMPT, OTHER_TYPE, key(1)).unwrap();
    let mut expected = all_told([1], Attention::REGISTRATIONS_PREEMPTED);
    expected.extend(all_told([3, 4], Attention::RESERVATIONS_RELEASED));
    assert_eq!(told(&effects), expected);
    assert_eq!(unit.0.reservation_type(), Some(OTHER_TYPE));
}

#[test]
fn preempt_of_the_holder_with_a_bad_type_or_scope_changes_nothing() {
    for (code, fault) in [(2, cdb_fault(2, 3)), (0x11, cdb_fault(2, 7))] {
        let mut unit = Unit::reserved(Type::ExclusiveAccess, 2);
        let before = unit.0.clone();
        assert_eq!(unit.send(2, PREEMPT, code, list(key(2), key(1), 0)), Err(fault));
        assert_eq!(unit.0, before);
    }
}

#[test]
fn preempt_of_another_registrant_leaves_the_reservation() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 3);
    let effects = unit.act(2, PREEMPT, OTHER_TYPE, key(3)).unwrap();
    assert!(unit.holds(1));
    assert_eq!(unit.0.reservation_type(), Some(Type::WriteExclusive));
    assert_eq!(unit.keys(), [key(1), key(2)]);
    assert_eq!(told(&effects), all_told([3], Attention::REGISTRATIONS_PREEMPTED));
}

#[test]
fn preempt_removes_every_registration_with_the_key() {
    let mut unit = Unit::with_registrants(2);
    for n in [3, 4] {
        unit.send(n, REGISTER, 0, list(0, 5, 0)).unwrap();
    }
    let effects = unit.act(1, PREEMPT, OTHER_TYPE, 5).unwrap();
    assert_eq!(unit.keys(), [key(1), key(2)]);
    assert_eq!(told(&effects), all_told([3, 4], Attention::REGISTRATIONS_PREEMPTED));
}

#[test]
fn preempt_of_its_own_key_removes_its_registration_without_telling_it() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 2);
    let effects = unit.act(2, PREEMPT, OTHER_TYPE, key(2)).unwrap();
    assert_eq!((unit.keys(), told(&effects)), (vec![key(1)], vec![]));
}

#[test]
fn preempt_of_itself_by_the_holder_changes_the_type() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 2);
    let effects = unit.act(1, PREEMPT, OTHER_TYPE, key(1)).unwrap();
    assert!(unit.holds(1));
    assert_eq!(unit.0.reservation_type(), Some(OTHER_TYPE));
    assert_eq!(unit.keys(), [key(1), key(2)]);
    assert_eq!(told(&effects), all_told([2], Attention::RESERVATIONS_RELEASED));
}

#[test]
fn preempt_of_zero_under_all_registrants_leaves_only_the_sender() {
    let mut unit = Unit::reserved(Type::WriteExclusiveAllRegistrants, 3);
    let effects = unit.act(2, PREEMPT, Type::ExclusiveAccess, 0).unwrap();
    assert_eq!(unit.keys(), [key(2)]);
    assert!(unit.holds(2));
    assert_eq!(unit.0.reservation_type(), Some(Type::ExclusiveAccess));
    assert_eq!(told(&effects), all_told([1, 3], Attention::REGISTRATIONS_PREEMPTED));
}

#[test]
fn preempt_of_a_key_under_all_registrants_removes_registrations_only() {
    let mut unit = Unit::reserved(Type::ExclusiveAccessAllRegistrants, 3);
    unit.act(2, PREEMPT, Type::WriteExclusive, key(1)).unwrap();
    assert_eq!(unit.0.reservation_type(), Some(Type::ExclusiveAccessAllRegistrants));
    assert_eq!(unit.keys(), [key(2), key(3)]);
}

#[test]
fn preempt_of_the_last_key_under_all_registrants_releases() {
    let mut unit = Unit::reserved(Type::ExclusiveAccessAllRegistrants, 1);
    unit.act(1, PREEMPT, Type::WriteExclusive, key(1)).unwrap();
    assert_eq!((unit.keys(), unit.0.reservation_type()), (vec![], None));
}

#[test]
fn preempt_and_abort_names_whose_tasks_to_abort() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 3);
    let effects = unit.act(2, PREEMPT_AND_ABORT, Type::ExclusiveAccess, key(1)).unwrap();
    assert_eq!(effects.abort, [nexus(1)]);
    assert_eq!(told(&effects), all_told([1], Attention::REGISTRATIONS_PREEMPTED));
}

#[test]
fn preempt_and_abort_of_zero_names_every_registrant() {
    let mut unit = Unit::reserved(Type::ExclusiveAccessAllRegistrants, 3);
    let effects = unit.act(2, PREEMPT_AND_ABORT, Type::ExclusiveAccess, 0).unwrap();
    assert_eq!(effects.abort, [nexus(1), nexus(2), nexus(3)]);
}
