use super::*;
use proptest::{collection::vec, prelude::*};

const PORTS: [u16; 2] = [1, 2];

#[derive(Clone, Debug)]
struct Step {
    from: NexusId,
    action: u8,
    scope_type: u8,
    list: Vec<u8>,
}

fn any_nexus() -> impl Strategy<Value = NexusId> {
    (1u8..5, 1u16..3).prop_map(|(n, port)| nexus(n).through(port))
}

/// Few keys, so that they often match.
fn any_key() -> impl Strategy<Value = u64> {
    0u64..4
}

fn step() -> impl Strategy<Value = Step> {
    let sensible = (any_key(), any_key(), any::<u8>(), any_nexus(), 0..3u8).prop_map(
        |(key, action_key, flags, to, form)| match form {
            0 => list(key, action_key, flags & !SPEC_I_PT),
            1 => move_list(key, action_key, flags & 3, &to),
            _ => spec_list(key, action_key, flags, &[to.transport_id]),
        },
    );
    (any_nexus(), 0..9u8, 0..10u8, sensible).prop_map(|(from, action, scope_type, list)| Step {
        from,
        action,
        scope_type,
        list,
    })
}

fn check(state: &Reservations) {
    let mut seen: Vec<_> = state.registrations().map(|(nexus, _)| nexus).collect();
    let count = seen.len();
    seen.sort_by_key(|n| (n.transport_id.as_bytes().to_vec(), n.relative_target_port));
    seen.dedup();
    assert_eq!(seen.len(), count, "a nexus is registered twice");
    assert!(count <= state.capabilities.max_registrations);
    if let Some(Persistent { kind, holder }) = &state.persistent {
        assert_eq!(holder.is_none(), kind.is_all_registrants());
        assert!(count > 0, "nobody is registered, yet the unit is reserved");
        assert!(holder.as_ref().is_none_or(|holder| state.key_of(holder).is_some()));
    }
    assert!(state.legacy.is_none() || count == 0);
}

proptest! {
    #[test]
    fn any_sequence_of_commands_keeps_the_invariants(steps in vec(step(), 1..60)) {
        let mut state = Unit::new().0;
        for step in steps {
            let cdb = cdb(step.action, step.scope_type, step.list.len());
            let Ok((next, effects)) = state.prepare_out(&step.from, &cdb, &step.list, &PORTS)
            else {
                continue;
            };
            check(&next);
            let counts = !matches!(step.action, RESERVE | RELEASE);
            let counted = next.generation().wrapping_sub(state.generation());
            prop_assert!(counted == u32::from(counts) || (counted == 0 && next == state));
            prop_assert!(effects.attentions.iter().all(|(to, _)| *to != step.from));
            let persist = match (state.persists(), next.persists()) {
                (_, true) if next != state => Persist::Save,
                (true, false) => Persist::Remove,
                _ => Persist::Unchanged,
            };
            prop_assert_eq!(effects.persist, persist);
            if next.persists() {
                let text = next.to_json().unwrap();
                let loaded = Reservations::from_json(&text, next.capabilities).unwrap();
                prop_assert_eq!(&loaded, &next);
            }
            state = next;
        }
    }

    #[test]
    fn any_bytes_give_a_defined_answer(
        cdb in vec(any::<u8>(), 0..17),
        params in vec(any::<u8>(), 0..120),
        from in any_nexus(),
    ) {
        let mut state = Unit::reserved(Type::WriteExclusiveRegistrantsOnly, 2).0;
        if let Ok((next, _)) = state.prepare_out(&from, &cdb, &params, &PORTS) {
            check(&next);
        }
        let _ = state.read_in(&cdb);
        let _ = state.reserve(&from, &cdb);
        let _ = state.release(&from, &cdb);
        check(&state);
    }

    #[test]
    fn any_list_tail_gives_a_defined_answer(
        tail in vec(any::<u8>(), 0..120),
        length in 0u32..140,
        moves: bool,
    ) {
        let state = Unit::reserved(Type::WriteExclusive, 1).0;
        let (from, action, mut params) = if moves {
            (nexus(1), REGISTER_AND_MOVE, list(key(1), 5, 0))
        } else {
            (nexus(2), REGISTER, list(0, 5, SPEC_I_PT))
        };
        if moves {
            params[20..24].copy_from_slice(&length.to_be_bytes());
        } else {
            params.extend(length.to_be_bytes());
        }
        params.extend(tail);
        let cdb = cdb(action, 0, params.len());
        if let Ok((next, _)) = state.prepare_out(&from, &cdb, &params, &PORTS) {
            check(&next);
        }
    }

    #[test]
    fn any_text_is_no_state_or_a_valid_one(text in vec(any::<u8>(), 0..200)) {
        if let Ok(state) = Reservations::from_json(&text, Unit::new().0.capabilities) {
            check(&state);
        }
    }

    #[test]
    fn any_transport_id_accepted_is_canonical(bytes in vec(any::<u8>(), 0..80), iscsi: bool) {
        let mut bytes = bytes;
        if iscsi && bytes.len() >= 44 {
            bytes[..4].copy_from_slice(&[0x45, 0, 0, 40]);
            bytes[12..17].copy_from_slice(b",i,0x");
            bytes[17] = b'7';
            bytes[18] = 0;
        }
        if let Ok((id, used)) = TransportId::parse(&bytes) {
            prop_assert!(used <= bytes.len());
            prop_assert_eq!(TransportId::parse(id.as_bytes()), Ok((id.clone(), id.as_bytes().len())));
        }
    }
}
