use super::{
    super::persist::{SavedError, Store, StoreError},
    *,
};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory of its own for one test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vscsi-pr-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn store(&self) -> (Store, PathBuf) {
        let path = self.0.join("lu.json");
        (Store::new(&path), path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn capabilities() -> Capabilities {
    Unit::new().0.capabilities
}

/// Two registrants, a reservation, and APTPL.
fn persisting(kind: Type) -> Reservations {
    let mut unit = Unit::with_registrants(1);
    unit.send(2, REGISTER, 0, list(0, key(2), APTPL)).unwrap();
    unit.act(1, RESERVE, kind, 0).unwrap();
    unit.0
}

fn reason(text: &str) -> SavedError {
    Reservations::from_json(text.as_bytes(), capabilities()).unwrap_err()
}

#[test]
fn every_type_survives_a_save_and_a_load() {
    let directory = Directory::new();
    let (store, _) = directory.store();
    for kind in Type::ALL {
        let state = persisting(kind);
        store.save(&state).unwrap();
        assert_eq!(store.load(capabilities()).unwrap(), Some(state));
    }
}

#[test]
fn the_saved_form_is_stable() {
    let mut unit = Unit::new();
    unit.send(1, REGISTER, 0, list(0, 0x1F, APTPL)).unwrap();
    unit.send(1, RESERVE, 5, list(0x1F, 0, 0)).unwrap();
    let id: String = initiator(1).as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let nexus = format!(
        r#"{{"name":"iqn.2026-01.test:h1,i,0x00023d000001","transport_id":"{id}","relative_target_port":1}}"#
    );
    let expected = format!(
        r#"{{"version":1,"generation":1,"reservation":{{"type":"write-exclusive-registrants-only","holder":{nexus}}},"registrations":[{{"key":"0x000000000000001f","nexus":{nexus}}}]}}"#
    );
    let saved: serde_json::Value = serde_json::from_slice(&unit.0.to_json().unwrap()).unwrap();
    assert_eq!(saved, serde_json::from_str::<serde_json::Value>(&expected).unwrap());
}

#[test]
fn a_power_on_restores_what_was_saved_with_a_new_generation() {
    let saved = persisting(Type::ExclusiveAccess);
    let mut state = saved.clone();
    state.power_on();
    assert_eq!(state.generation(), 0);
    assert!(state.is_holder(&nexus(1)) && state.persists());
    assert!(state.registrations().eq(saved.registrations()));
}

#[test]
fn a_power_on_without_aptpl_forgets_everything() {
    let mut unit = Unit::reserved(Type::ExclusiveAccess, 2);
    unit.0.power_on();
    assert_eq!(unit.0, Unit::new().0);
}

#[test]
fn nothing_saved_loads_as_nothing() {
    let directory = Directory::new();
    let (store, _) = directory.store();
    assert_eq!(store.load(capabilities()).unwrap(), None);
    store.remove().unwrap();
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let directory = Directory::new();
    let (store, path) = directory.store();
    let text = persisting(Type::WriteExclusive).to_json().unwrap();
    for len in 0..text.len() - 1 {
        fs::write(&path, &text[..len]).unwrap();
        assert!(
            matches!(
                store.load(capabilities()),
                Err(StoreError::Content { source: SavedError::Json(_), .. })
            ),
            "{len} bytes"
        );
    }
}

#[test]
fn an_unfinished_save_leaves_the_old_state() {
    let directory = Directory::new();
    let (store, path) = directory.store();
    let state = persisting(Type::WriteExclusive);
    store.save(&state).unwrap();
    fs::write(path.with_file_name("lu.json.new"), "{").unwrap();
    assert_eq!(store.load(capabilities()).unwrap(), Some(state.clone()));
    store.save(&state).unwrap();
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
}

#[test]
fn a_save_that_fails_is_an_error() {
    let store = Store::new("/nonexistent/vscsi/lu.json");
    let result = store.save(&persisting(Type::WriteExclusive));
    assert!(matches!(result, Err(StoreError::Io { what: "create", .. })));
}

#[test]
fn a_file_of_absurd_size_is_an_error() {
    let directory = Directory::new();
    let (store, path) = directory.store();
    fs::File::create(&path).unwrap().set_len(1 << 34).unwrap();
    assert!(matches!(store.load(capabilities()), Err(StoreError::TooLarge { .. })));
}

#[test]
fn each_broken_invariant_has_its_error() {
    let good = String::from_utf8(persisting(Type::WriteExclusive).to_json().unwrap()).unwrap();
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        reason(&good.replace(from, to))
    };
    assert!(matches!(swap("\"version\": 1", "\"version\": 2"), SavedError::Version(2)));
    assert!(matches!(swap("\"generation\"", "\"generations\""), SavedError::Json(_)));
    assert!(matches!(swap("0x000000000000ab01", "0x0000000000000000"), SavedError::Key(_)));
    assert!(matches!(swap("0x000000000000ab01", "ab01"), SavedError::Key(_)));
    assert!(matches!(swap("0x000000000000ab01", "0x+00000000000ab01"), SavedError::Key(_)));
    assert!(matches!(swap("\"write-exclusive\"", "\"none\""), SavedError::Json(_)));
    let holder = swap("\"write-exclusive\"", "\"write-exclusive-all-registrants\"");
    assert!(matches!(holder, SavedError::Holder(_)));
    assert!(matches!(swap("h1,i", "h3,i"), SavedError::Name { .. }));
    assert!(matches!(swap("\"45000", "\"x5000"), SavedError::Hex(_)));
    assert!(matches!(swap("\"45000", "\"4f000"), SavedError::TransportId { .. }));
    assert!(matches!(swap("00\",", "0000000000\","), SavedError::TrailingBytes(_)));
}

#[test]
fn a_holder_that_is_not_registered_is_an_error() {
    let mut state = persisting(Type::WriteExclusive);
    state.registrations.remove(0);
    let text = state.to_json().unwrap();
    let result = Reservations::from_json(&text, capabilities());
    assert!(matches!(result, Err(SavedError::HolderNotRegistered)));
}

#[test]
fn a_nexus_registered_twice_or_too_many_are_errors() {
    let mut state = persisting(Type::WriteExclusive);
    state.registrations.push(state.registrations[0].clone());
    let text = state.to_json().unwrap();
    let result = Reservations::from_json(&text, capabilities());
    assert!(matches!(result, Err(SavedError::Duplicate(_))));
    let few = Capabilities { max_registrations: 2, ..capabilities() };
    let result = Reservations::from_json(&text, few);
    assert!(matches!(result, Err(SavedError::TooMany { count: 3, max: 2 })));
}

#[test]
fn only_changes_under_aptpl_are_persisted() {
    let mut unit = Unit::new();
    let mut persist = |n, action, list| unit.send(n, action, 1, list).unwrap().persist;
    assert_eq!(persist(1, REGISTER, list(0, 5, 0)), Persist::Unchanged);
    assert_eq!(persist(2, REGISTER, list(0, 6, APTPL)), Persist::Save);
    assert_eq!(persist(1, RESERVE, list(5, 0, 0)), Persist::Save);
    assert_eq!(persist(1, RESERVE, list(5, 0, 0)), Persist::Unchanged);
    assert_eq!(persist(1, RELEASE, list(5, 0, 0)), Persist::Save);
    assert_eq!(persist(1, REGISTER, list(5, 5, 0)), Persist::Remove);
    assert_eq!(persist(1, CLEAR, list(5, 0, 0)), Persist::Unchanged);
}

#[test]
fn clear_under_aptpl_saves_the_empty_state() {
    let directory = Directory::new();
    let (store, path) = directory.store();
    let mut unit = Unit(persisting(Type::WriteExclusive));
    store.save(&unit.0).unwrap();
    let effects = unit.act(1, CLEAR, Type::WriteExclusive, 0).unwrap();
    store.apply(effects.persist, &unit.0).unwrap();
    let loaded = store.load(capabilities()).unwrap().unwrap();
    assert_eq!(loaded.registrations().len(), 0);
    store.apply(Persist::Remove, &unit.0).unwrap();
    assert!(!path.exists());
}

#[test]
fn aptpl_without_a_store_is_refused() {
    let mut unit = Unit(Reservations::default());
    let result = unit.send(1, REGISTER, 0, list(0, 5, APTPL));
    assert_eq!(result, Err(parameter_fault(20, Some(0))));
    unit.send(1, REGISTER, 0, list(0, 5, 0)).unwrap();
    unit.send(1, RESERVE, 1, list(5, 0, 0)).unwrap();
    let result = unit.send(1, REGISTER_AND_MOVE, 0, move_list(5, 6, APTPL, &nexus(2)));
    assert_eq!(result, Err(parameter_fault(17, Some(0))));
}
