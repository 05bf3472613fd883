use super::*;

/// Type; whether a registrant that does not hold it may read and write; whether an unregistered
/// nexus may read and write.
const TABLE: [(Type, [bool; 4]); 6] = [
    (Type::WriteExclusive, [true, false, true, false]),
    (Type::ExclusiveAccess, [false, false, false, false]),
    (Type::WriteExclusiveRegistrantsOnly, [true, true, true, false]),
    (Type::ExclusiveAccessRegistrantsOnly, [true, true, false, false]),
    (Type::WriteExclusiveAllRegistrants, [true, true, true, false]),
    (Type::ExclusiveAccessAllRegistrants, [true, true, false, false]),
];

#[test]
fn each_type_gives_each_nexus_the_access_of_the_standard() {
    for (kind, [r_read, r_write, o_read, o_write]) in TABLE {
        let unit = Unit::reserved(kind, 2);
        for (n, (read, write)) in
            [(1, (true, true)), (2, (r_read, r_write)), (3, (o_read, o_write))]
        {
            let denied = unit.0.denied(&nexus(n));
            assert_eq!((!denied.read, !denied.write), (read, write), "{kind:?}, nexus {n}");
            assert_eq!(unit.0.permits(&nexus(n), Access::Read), read);
            assert_eq!(unit.0.permits(&nexus(n), Access::Write), write);
            for always in [Access::Always, Access::Own, Access::NotLegacy] {
                assert!(unit.0.permits(&nexus(n), always), "{kind:?}, nexus {n}, {always:?}");
            }
        }
    }
}

#[test]
fn the_same_initiator_through_another_port_is_another_nexus() {
    let unit = Unit::reserved(Type::ExclusiveAccess, 1);
    assert!(unit.0.denied(&nexus(1).through(2)).read);
}

#[test]
fn registrations_without_a_reservation_deny_nothing() {
    let unit = Unit::with_registrants(1);
    assert_eq!(unit.0.denied(&nexus(2)), Denied::default());
}

#[test]
fn legacy_reserve_denies_all_but_the_always_allowed() {
    let mut unit = Unit::new();
    unit.0.reserve(&nexus(1), &[0x16, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(unit.0.denied(&nexus(1)), Denied::default());
    for (access, permitted) in [
        (Access::Always, true),
        (Access::Own, true),
        (Access::NotLegacy, false),
        (Access::Read, false),
        (Access::Write, false),
    ] {
        assert_eq!(unit.0.permits(&nexus(2), access), permitted, "{access:?}");
    }
}
