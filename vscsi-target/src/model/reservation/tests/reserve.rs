use super::*;

const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];

#[test]
fn reserve_takes_every_type_and_leaves_the_generation() {
    for kind in Type::ALL {
        let unit = Unit::reserved(kind, 1);
        assert_eq!(unit.0.reservation_type(), Some(kind));
        assert!(unit.holds(1));
        assert_eq!(unit.0.generation(), 1);
    }
}

#[test]
fn reserve_of_an_unknown_type_or_scope_is_refused() {
    for code in [0, 2, 4, 9, 10, 15] {
        let result = Unit::with_registrants(1).send(1, RESERVE, code, list(key(1), 0, 0));
        assert_eq!(result, Err(cdb_fault(2, 3)), "type {code}");
    }
    for scope in 1..16 {
        let result = Unit::with_registrants(1).send(1, RESERVE, scope << 4 | 1, list(key(1), 0, 0));
        assert_eq!(result, Err(cdb_fault(2, 7)), "scope {scope}");
    }
}

#[test]
fn reserve_again_by_a_holder_succeeds_for_the_same_type_only() {
    for held in Type::ALL {
        for asked in Type::ALL {
            let mut unit = Unit::reserved(held, 1);
            let result = unit.act(1, RESERVE, asked, 0);
            assert_eq!(result.is_ok(), held == asked, "{held:?}, then {asked:?}");
            assert_eq!(unit.0.reservation_type(), Some(held));
        }
    }
}

#[test]
fn reserve_by_another_registrant_conflicts_unless_all_hold_it() {
    for kind in Type::ALL {
        let mut unit = Unit::reserved(kind, 2);
        assert_eq!(unit.act(2, RESERVE, kind, 0).is_ok(), kind.is_all_registrants(), "{kind:?}");
    }
}

#[test]
fn release_by_the_holder_tells_the_registrants_of_shared_types() {
    for kind in Type::ALL {
        let mut unit = Unit::reserved(kind, 3);
        let effects = unit.act(1, RELEASE, kind, 0).unwrap();
        assert_eq!(unit.0.reservation_type(), None);
        assert_eq!(unit.keys(), [key(1), key(2), key(3)]);
        let others = if kind.frees_registrants() { vec![2, 3] } else { vec![] };
        assert_eq!(told(&effects), all_told(others, Attention::RESERVATIONS_RELEASED));
        assert_eq!(unit.0.generation(), 3);
    }
}

#[test]
fn release_by_the_holder_of_another_type_or_scope_is_an_invalid_release() {
    for code in (0..=255).filter(|&code| code != Type::ExclusiveAccess.code()) {
        let mut unit = Unit::reserved(Type::ExclusiveAccess, 1);
        let result = unit.send(1, RELEASE, code, list(key(1), 0, 0));
        assert_eq!(result, Err(bare_fault(0x26, 0x04)), "scope and type {code:#x}");
        assert!(unit.holds(1));
    }
}

#[test]
fn release_by_a_registrant_that_is_no_holder_does_nothing() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 2);
    assert_eq!(unit.act(2, RELEASE, Type::WriteExclusive, 0), Ok(Effects::default()));
    assert!(unit.holds(1));
}

#[test]
fn release_without_a_reservation_does_nothing() {
    let mut unit = Unit::with_registrants(1);
    assert_eq!(unit.act(1, RELEASE, Type::WriteExclusive, 0), Ok(Effects::default()));
}

#[test]
fn move_hands_the_reservation_to_a_new_registrant() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 1);
    let to = nexus(2).through(2);
    let effects = unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 0, &to)).unwrap();
    assert_eq!(told(&effects), []);
    assert!(unit.0.is_holder(&to) && !unit.holds(1));
    assert_eq!(unit.keys(), [key(1), 5]);
    assert_eq!(unit.0.reservation_type(), Some(Type::WriteExclusive));
    assert_eq!(unit.0.generation(), 2);
}

#[test]
fn move_to_a_registrant_replaces_its_key() {
    let mut unit = Unit::reserved(Type::WriteExclusiveRegistrantsOnly, 2);
    unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 0, &nexus(2))).unwrap();
    assert_eq!(unit.keys(), [key(1), 5]);
    assert!(unit.holds(2));
}

#[test]
fn move_with_unreg_unregisters_the_sender_and_keeps_the_reservation() {
    let mut unit = Unit::reserved(Type::ExclusiveAccessRegistrantsOnly, 8);
    let to = nexus(9);
    let effects = unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 2, &to)).unwrap();
    assert_eq!(told(&effects), []);
    assert!(unit.0.is_holder(&to));
    assert_eq!(unit.0.denied(&nexus(1)), Denied { read: true, write: true, legacy: false });
}

#[test]
fn move_into_a_full_table_is_refused() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 8);
    let result = unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 0, &nexus(9)));
    assert_eq!(result, Err(bare_fault(0x55, 0x04)));
    assert!(unit.holds(1));
}

#[test]
fn move_without_a_reservation_is_an_invalid_field() {
    let mut unit = Unit::with_registrants(1);
    let result = unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 0, &nexus(2)));
    assert_eq!(result, Err(cdb_fault(1, 4)));
}

#[test]
fn move_by_a_non_holder_or_of_an_all_registrants_type_conflicts() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 2);
    let result = unit.send(2, REGISTER_AND_MOVE, 0, move_list(key(2), 5, 0, &nexus(3)));
    assert_eq!(result, Err(CONFLICT));
    for kind in [Type::WriteExclusiveAllRegistrants, Type::ExclusiveAccessAllRegistrants] {
        let mut unit = Unit::reserved(kind, 2);
        let result = unit.send(1, REGISTER_AND_MOVE, 0, move_list(key(1), 5, 0, &nexus(3)));
        assert_eq!(result, Err(CONFLICT));
    }
}

#[test]
fn move_with_a_bad_parameter_points_at_it() {
    let good = || move_list(key(1), 5, 0, &nexus(2));
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut list = good();
        change(&mut list);
        list
    };
    for (list, fault) in [
        (move_list(key(1), 0, 0, &nexus(2)), parameter_fault(8, None)),
        (move_list(key(1), 5, 0, &nexus(1)), parameter_fault(24, None)),
        (move_list(key(1), 5, 0, &nexus(2).through(3)), parameter_fault(18, None)),
        (
            move_list(key(1), 5, 0, &NexusId::new(TransportId::sas([1; 8]), 1)),
            parameter_fault(24, None),
        ),
        (changed(|list| list[23] = 20), parameter_fault(20, None)),
        (changed(|list| list[23] -= 1), parameter_fault(20, None)),
        (changed(|list| list[24] = 0x4F), parameter_fault(24, None)),
        (changed(|list| list[27] -= 4), parameter_fault(20, None)),
        (changed(|list| list.truncate(30)), bare_fault(0x1A, 0)),
        (changed(|list| list[20] = 1), bare_fault(0x1A, 0)),
    ] {
        let mut unit = Unit::reserved(Type::WriteExclusive, 1);
        assert_eq!(unit.send(1, REGISTER_AND_MOVE, 0, list), Err(fault));
        assert!(unit.holds(1));
    }
}

#[test]
fn legacy_reserve_is_held_by_one_and_released_by_it_only() {
    let mut unit = Unit::new().0;
    assert_eq!(unit.reserve(&nexus(1), &RESERVE_6), Ok(true));
    assert_eq!(unit.reserve(&nexus(1), &RESERVE_6), Ok(false));
    assert_eq!(unit.reserve(&nexus(2), &RESERVE_6), Err(CONFLICT));
    assert_eq!(unit.release(&nexus(2), &RELEASE_6), Ok(false));
    assert!(unit.denied(&nexus(2)).legacy);
    assert_eq!(unit.release(&nexus(1), &RELEASE_6), Ok(true));
    assert_eq!(unit.reserve(&nexus(2), &RESERVE_6), Ok(true));
}

#[test]
fn legacy_reserve_ends_with_its_nexus_or_a_reset() {
    let mut unit = Unit::new().0;
    unit.reserve(&nexus(1), &RESERVE_6).unwrap();
    assert!(!unit.nexus_loss(&nexus(2)));
    assert!(unit.nexus_loss(&nexus(1)));
    unit.reserve(&nexus(1), &RESERVE_6).unwrap();
    assert!(unit.logical_unit_reset());
    assert_eq!(unit.denied(&nexus(2)), Denied::default());
}

#[test]
fn persistent_reservations_survive_nexus_loss_and_reset() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 1);
    assert!(!unit.0.nexus_loss(&nexus(1)) && !unit.0.logical_unit_reset());
    assert!(unit.holds(1));
}

#[test]
fn legacy_third_party_and_extent_requests_are_refused() {
    for (flags, bit) in [(0x10, 4), (0x1E, 4), (0x01, 0)] {
        let mut unit = Unit::new().0;
        let cdb = [0x56, flags, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(unit.reserve(&nexus(1), &cdb), Err(cdb_fault(1, bit)));
        assert_eq!(unit.release(&nexus(1), &cdb), Err(cdb_fault(1, bit)));
    }
}

#[test]
fn legacy_reserve_makes_every_persistent_command_conflict() {
    let mut unit = Unit::new();
    unit.0.reserve(&nexus(1), &RESERVE_6).unwrap();
    for n in [1, 2] {
        assert_eq!(unit.send(n, REGISTER, 0, list(0, 5, 0)), Err(CONFLICT));
    }
    assert_eq!(unit.read(0, 255), Err(CONFLICT));
}

#[test]
fn legacy_commands_do_nothing_for_who_has_access_and_conflict_for_others() {
    for kind in Type::ALL {
        let unit = Unit::reserved(kind, 2);
        for (n, fine) in [(1, true), (2, kind.frees_registrants()), (3, false)] {
            let expected = if fine { Ok(false) } else { Err(CONFLICT) };
            let mut state = unit.0.clone();
            assert_eq!(state.reserve(&nexus(n), &RESERVE_6), expected, "{kind:?}, nexus {n}");
            assert_eq!(state.release(&nexus(n), &RELEASE_6), expected, "{kind:?}, nexus {n}");
            assert_eq!(state, unit.0);
        }
    }
}

#[test]
fn legacy_commands_conflict_with_bare_registrations() {
    let mut unit = Unit::with_registrants(1).0;
    for n in [1, 2] {
        assert_eq!(unit.reserve(&nexus(n), &RESERVE_6), Err(CONFLICT));
        assert_eq!(unit.release(&nexus(n), &RELEASE_6), Err(CONFLICT));
    }
}
