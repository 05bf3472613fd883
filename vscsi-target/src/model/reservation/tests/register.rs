use super::*;

#[test]
fn register_from_a_new_nexus_registers_its_key() {
    let unit = Unit::with_registrants(1);
    assert_eq!(unit.keys(), [key(1)]);
    assert_eq!(unit.0.generation(), 1);
}

#[test]
fn register_with_a_key_from_a_new_nexus_conflicts() {
    let mut unit = Unit::new();
    assert_eq!(unit.send(1, REGISTER, 0, list(7, 8, 0)), Err(CONFLICT));
}

#[test]
fn register_of_zero_from_a_new_nexus_does_nothing() {
    for action in [REGISTER, REGISTER_AND_IGNORE] {
        let mut unit = Unit::new();
        assert_eq!(unit.send(1, action, 0, list(0, 0, 0)), Ok(Effects::default()));
        assert_eq!(unit.0, Unit::new().0);
    }
}

#[test]
fn register_with_a_wrong_key_conflicts_and_counts_nothing() {
    let mut unit = Unit::with_registrants(1);
    assert_eq!(unit.send(1, REGISTER, 0, list(key(1) + 1, 5, 0)), Err(CONFLICT));
    assert_eq!((unit.keys(), unit.0.generation()), (vec![key(1)], 1));
}

#[test]
fn register_changes_the_key_and_keeps_the_reservation() {
    let mut unit = Unit::reserved(Type::WriteExclusive, 1);
    unit.act(1, REGISTER, Type::WriteExclusive, 5).unwrap();
    assert_eq!(unit.keys(), [5]);
    assert!(unit.holds(1));
}

#[test]
fn register_and_ignore_needs_no_key() {
    let mut unit = Unit::with_registrants(1);
    unit.send(1, REGISTER_AND_IGNORE, 0, list(99, 5, 0)).unwrap();
    unit.send(2, REGISTER_AND_IGNORE, 0, list(99, 6, 0)).unwrap();
    assert_eq!(unit.keys(), [5, 6]);
    assert_eq!(unit.0.generation(), 3);
}

#[test]
fn register_and_ignore_of_zero_unregisters() {
    let mut unit = Unit::with_registrants(2);
    unit.send(1, REGISTER_AND_IGNORE, 0, list(0, 0, 0)).unwrap();
    assert_eq!(unit.keys(), [key(2)]);
}

#[test]
fn unregistering_the_holder_releases_and_tells_registrants_only_types() {
    for (kind, released, told_others) in [
        (Type::WriteExclusive, true, false),
        (Type::ExclusiveAccess, true, false),
        (Type::WriteExclusiveRegistrantsOnly, true, true),
        (Type::ExclusiveAccessRegistrantsOnly, true, true),
        (Type::WriteExclusiveAllRegistrants, false, false),
        (Type::ExclusiveAccessAllRegistrants, false, false),
    ] {
        let mut unit = Unit::reserved(kind, 3);
        let effects = unit.act(1, REGISTER, kind, 0).unwrap();
        assert_eq!(unit.0.reservation_type().is_none(), released, "{kind:?}");
        let expected = if told_others { vec![2, 3] } else { vec![] };
        assert_eq!(told(&effects), all_told(expected, Attention::RESERVATIONS_RELEASED));
    }
}

#[test]
fn unregistering_the_last_registrant_releases_an_all_registrants_type() {
    let mut unit = Unit::reserved(Type::WriteExclusiveAllRegistrants, 2);
    unit.act(1, REGISTER, Type::WriteExclusive, 0).unwrap();
    assert!(unit.holds(2));
    unit.act(2, REGISTER, Type::WriteExclusive, 0).unwrap();
    assert_eq!(unit.0.reservation_type(), None);
}

#[test]
fn all_target_ports_registers_changes_and_unregisters_through_each_port() {
    let mut unit = Unit::new();
    unit.send(1, REGISTER, 0, list(0, 5, ALL_TG_PT)).unwrap();
    let ports = |unit: &Unit| {
        unit.0.registrations().map(|(n, key)| (n.relative_target_port, key)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&unit), [(1, 5), (2, 5)]);
    assert_eq!(unit.0.generation(), 1);
    unit.send(1, REGISTER, 0, list(5, 6, ALL_TG_PT)).unwrap();
    assert_eq!(ports(&unit), [(1, 6), (2, 6)]);
    unit.send(1, REGISTER, 0, list(6, 0, ALL_TG_PT)).unwrap();
    assert_eq!(ports(&unit), []);
}

#[test]
fn all_target_ports_leaves_a_port_with_another_key_alone() {
    let mut unit = Unit::new();
    unit.send(1, REGISTER, 0, list(0, 5, ALL_TG_PT)).unwrap();
    unit.send(1, REGISTER, 0, list(5, 6, 0)).unwrap();
    unit.send(1, REGISTER, 0, list(6, 7, ALL_TG_PT)).unwrap();
    assert_eq!(unit.keys(), [7, 5]);
    unit.send(1, REGISTER_AND_IGNORE, 0, list(0, 8, ALL_TG_PT)).unwrap();
    assert_eq!(unit.keys(), [8, 8]);
}

#[test]
fn specified_initiator_ports_are_registered_with_the_sender() {
    let mut unit = Unit::new();
    let ids = [initiator(2), initiator(1), initiator(3)];
    unit.send(1, REGISTER, 0, spec_list(0, 5, ALL_TG_PT, &ids)).unwrap();
    assert_eq!(unit.keys(), [5; 6]);
    assert!(unit.0.registrations().any(|(n, _)| *n == nexus(3).through(2)));
}

#[test]
fn specifying_the_sender_itself_is_no_fault_though_another_port_knows_it() {
    let mut unit = Unit::new();
    unit.send(1, REGISTER, 0, list(0, 5, ALL_TG_PT)).unwrap();
    unit.send(1, REGISTER, 0, list(5, 0, 0)).unwrap();
    unit.send(1, REGISTER, 0, spec_list(0, 6, ALL_TG_PT, &[initiator(1)])).unwrap();
    assert_eq!(unit.keys(), [5, 6]);
}

#[test]
fn specified_initiator_ports_that_cannot_be_registered_register_nobody() {
    let registered = || {
        let mut unit = Unit::new();
        unit.send(2, REGISTER, 0, list(0, 9, 0)).unwrap();
        unit
    };
    let mut unit = registered();
    let ids = [initiator(3), initiator(2)];
    let result = unit.send(1, REGISTER, 0, spec_list(0, 5, 0, &ids));
    assert_eq!(result, Err(parameter_fault(28, None)));
    let other_protocol = [TransportId::sas([1; 8])];
    let result = unit.send(1, REGISTER, 0, spec_list(0, 5, 0, &other_protocol));
    assert_eq!(result, Err(parameter_fault(28, None)));
    let many: Vec<_> = (3..20).map(initiator).collect();
    let result = unit.send(1, REGISTER, 0, spec_list(0, 5, 0, &many));
    assert_eq!(result, Err(bare_fault(0x55, 0x04)));
    assert_eq!(unit.0, registered().0);
}

#[test]
fn specified_initiator_ports_from_a_registered_nexus_are_refused() {
    let mut unit = Unit::with_registrants(1);
    let result = unit.send(1, REGISTER, 0, spec_list(key(1), 5, 0, &[initiator(2)]));
    assert_eq!(result, Err(parameter_fault(20, Some(3))));
}

#[test]
fn specified_initiator_ports_with_any_other_action_are_refused() {
    for action in 1..=8 {
        if action != REGISTER_AND_MOVE {
            let mut unit = Unit::reserved(Type::WriteExclusive, 1);
            let result = unit.send(1, action, 1, spec_list(key(1), 5, 0, &[initiator(2)]));
            assert_eq!(result, Err(parameter_fault(20, Some(3))), "action {action}");
        }
    }
}

#[test]
fn specified_initiator_port_lists_of_wrong_length_are_refused() {
    let good = spec_list(0, 5, 0, &[initiator(2)]);
    for len in 24..good.len() {
        let result = Unit::new().send(1, REGISTER, 0, good[..len].to_vec());
        assert_eq!(result, Err(bare_fault(0x1A, 0)), "{len} bytes");
    }
    let mut truncated_id = good;
    truncated_id[27] -= 4;
    let result = Unit::new().send(1, REGISTER, 0, truncated_id);
    assert_eq!(result, Err(parameter_fault(28, None)));
}

#[test]
fn a_full_table_refuses_another_registration_only() {
    let mut unit = Unit::with_registrants(8);
    let result = unit.send(9, REGISTER, 0, list(0, 5, 0));
    assert_eq!(result, Err(bare_fault(0x55, 0x04)));
    unit.send(8, REGISTER, 0, list(key(8), 5, 0)).unwrap();
}

#[test]
fn clear_removes_everything_and_tells_the_others() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 3);
    let effects = unit.act(2, CLEAR, Type::WriteExclusive, 0).unwrap();
    assert_eq!((unit.keys(), unit.0.reservation_type()), (vec![], None));
    assert_eq!(told(&effects), all_told([1, 3], Attention::RESERVATIONS_PREEMPTED));
    assert_eq!(unit.0.generation(), 4);
}

#[test]
fn every_action_from_an_unregistered_nexus_but_registering_conflicts() {
    for action in [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT] {
        let mut unit = Unit::reserved(Type::WriteExclusive, 2);
        assert_eq!(unit.act(3, action, Type::WriteExclusive, key(1)), Err(CONFLICT), "{action}");
    }
    let mut unit = Unit::reserved(Type::WriteExclusive, 2);
    let to = nexus(4);
    assert_eq!(unit.send(3, REGISTER_AND_MOVE, 0, move_list(0, 5, 0, &to)), Err(CONFLICT));
}

#[test]
fn every_action_with_a_wrong_key_conflicts() {
    for action in [REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT] {
        let mut unit = Unit::reserved(Type::WriteExclusive, 2);
        assert_eq!(unit.send(1, action, 1, list(1, key(2), 0)), Err(CONFLICT), "{action}");
    }
}

#[test]
fn lists_of_any_length_but_24_are_refused() {
    for len in (0..40).filter(|&len| len != 24) {
        for action in [REGISTER, RESERVE, CLEAR, PREEMPT, REGISTER_AND_IGNORE] {
            let mut bytes = list(key(1), 5, 0);
            bytes.resize(len, 0);
            let result = Unit::with_registrants(1).send(1, action, 1, bytes);
            assert_eq!(result, Err(bare_fault(0x1A, 0)), "{action}, {len} bytes");
        }
    }
}

#[test]
fn a_list_longer_than_the_data_received_is_refused() {
    let unit = Unit::new();
    for len in [25, u32::MAX as usize] {
        let result = unit.0.prepare_out(&nexus(1), &cdb(REGISTER, 0, len), &list(0, 5, 0), &[1]);
        assert_eq!(result, Err(bare_fault(0x1A, 0)));
    }
}

#[test]
fn unknown_service_actions_are_refused() {
    for action in 9..32 {
        let result = Unit::new().send(1, action, 0, list(0, 5, 0));
        assert_eq!(result, Err(cdb_fault(1, 4)));
    }
}

#[test]
fn replace_lost_reservation_is_an_invalid_release_when_none_is_lost() {
    let result = Unit::new().send(1, REPLACE_LOST, 1, list(0, 5, 0));
    assert_eq!(result, Err(bare_fault(0x26, 0x04)));
}

#[test]
fn transport_ids_of_every_spelling_of_an_iscsi_port_are_equal() {
    let canonical = TransportId::iscsi("iqn.2026-01.test:a", [0, 2, 0x3D, 0, 0, 1]).unwrap();
    for text in ["iqn.2026-01.test:a,i,0x00023d000001", "IQN.2026-01.TEST:A,i,0x23D000001"] {
        let mut bytes = vec![0x45, 0xFF, 0, 60];
        bytes.extend(text.as_bytes());
        bytes.resize(64, 0);
        assert_eq!(TransportId::parse(&bytes), Ok((canonical.clone(), 64)), "{text}");
    }
    assert_eq!(canonical.to_string(), "iqn.2026-01.test:a,i,0x00023d000001");
}

#[test]
fn transport_ids_survive_emit_and_parse() {
    for id in [
        initiator(1),
        TransportId::iscsi("i", [0; 6]).unwrap(),
        TransportId::iscsi(&"n".repeat(223), [0xFF; 6]).unwrap(),
        TransportId::srp([7; 16]),
        TransportId::sas([7; 8]),
        TransportId::fibre_channel([7; 8]),
    ] {
        let bytes = id.as_bytes();
        assert!(bytes.len() >= 24 && bytes.len() % 4 == 0 && bytes.len() <= TransportId::MAX_LEN);
        assert_eq!(TransportId::parse(bytes), Ok((id.clone(), bytes.len())));
        assert!(TransportId::parse(&bytes[..bytes.len() - 1]).is_err());
    }
}

#[test]
fn an_iscsi_transport_id_without_isid_is_refused() {
    let mut bytes = initiator(1).as_bytes().to_vec();
    bytes[0] = 0x05;
    assert_eq!(
        TransportId::parse(&bytes),
        Err(TransportIdError::Format { protocol: 5, format: 0 })
    );
}
