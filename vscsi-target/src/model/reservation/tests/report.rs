use super::*;

#[test]
fn read_keys_lists_one_key_a_nexus() {
    let data = Unit::with_registrants(2).read(0, 0xFFFF).unwrap();
    let expected =
        [[0, 0, 0, 2, 0, 0, 0, 16], [0, 0, 0, 0, 0, 0, 0xAB, 1], [0, 0, 0, 0, 0, 0, 0xAB, 2]];
    assert_eq!(data, expected.concat());
}

#[test]
fn truncated_answers_tell_their_full_length() {
    let unit = Unit::reserved(Type::WriteExclusive, 2);
    for action in 0..4 {
        let full = unit.read(action, 0xFFFF).unwrap();
        for len in 0..full.len() {
            assert_eq!(unit.read(action, len as u16).unwrap(), full[..len]);
        }
    }
}

#[test]
fn read_reservation_without_one_is_a_bare_header() {
    assert_eq!(Unit::with_registrants(1).read(1, 255).unwrap(), [0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn read_reservation_tells_key_and_type_of_each_type() {
    for kind in Type::ALL {
        let data = Unit::reserved(kind, 1).read(1, 255).unwrap();
        let key: [u8; 2] = if kind.is_all_registrants() { [0, 0] } else { [0xAB, 1] };
        assert_eq!(data.len(), 24);
        assert_eq!(data[..8], [0, 0, 0, 1, 0, 0, 0, 16]);
        assert_eq!(data[8..], [0, 0, 0, 0, 0, 0, key[0], key[1], 0, 0, 0, 0, 0, kind.code(), 0, 0]);
    }
}

#[test]
fn report_capabilities_tells_what_there_is() {
    let mut unit = Unit::new();
    assert_eq!(unit.read(2, 255).unwrap(), [0, 8, 0x1D, 0xC0, 0xEA, 0x01, 0, 0]);
    unit.send(1, REGISTER, 0, list(0, 5, APTPL)).unwrap();
    assert_eq!(unit.read(2, 255).unwrap()[3], 0xC1);
    let volatile = Unit(Reservations::default());
    assert_eq!(volatile.read(2, 255).unwrap()[2], 0x1C);
}

#[test]
fn read_full_status_marks_the_holder_and_names_each_port() {
    let unit = Unit::reserved(Type::ExclusiveAccess, 2);
    let data = unit.read(3, 0xFFFF).unwrap();
    let ids = [initiator(1), initiator(2)];
    let additional = u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize;
    assert_eq!(additional, data.len() - 8);
    let mut rest = &data[8..];
    for (n, (id, holder)) in [1, 2].into_iter().zip(ids.iter().zip([[1, 3], [0, 0]])) {
        let len = id.as_bytes().len();
        assert_eq!(rest[..8], key(n).to_be_bytes());
        assert_eq!(rest[8..12], [0; 4]);
        assert_eq!(rest[12..14], holder);
        assert_eq!(rest[14..20], [0, 0, 0, 0, 0, 1]);
        assert_eq!(rest[20..24], (len as u32).to_be_bytes());
        assert_eq!(&rest[24..24 + len], id.as_bytes());
        rest = &rest[24 + len..];
    }
    assert!(rest.is_empty());
}

#[test]
fn read_full_status_marks_every_registrant_of_an_all_registrants_type() {
    let data = Unit::reserved(Type::WriteExclusiveAllRegistrants, 2).read(3, 0xFFFF).unwrap();
    let second = 8 + 24 + initiator(1).as_bytes().len();
    for at in [8, second] {
        assert_eq!(data[at + 12..at + 14], [1, 7]);
    }
}

#[test]
fn unknown_service_actions_are_refused() {
    for action in 4..32 {
        assert_eq!(Unit::new().read(action, 255), Err(cdb_fault(1, 4)));
    }
}
