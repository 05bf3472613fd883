use super::*;
use crate::{
    backend::{Backend, Mem},
    model::{Attention, Nexus},
    sense::Sense,
    testing::{Fixture, sense},
};
use std::{env, process, time::Instant};

const KEY: [u8; 8] = *b"key of A";
const BOOT: &str = "boot 1";

/// A directory of the test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("vscsi-live-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A process of this boot, after it was started.
    fn start(&self, boot: &str) -> Result<Fixture, LiveError> {
        let fixture = Fixture::with(Backend::Mem(Mem::new(1 << 20, 512).unwrap()), |config| {
            config.state_dir = Some(self.0.clone());
            config.removable = true;
        });
        // Established before anything was restored, which is not how targets start.
        let Fixture { model, target, lu, nexus, aborted } = fixture;
        drop(nexus);
        lu.keep_in(self.file(&lu), boot)?;
        let mut fixture = Fixture { nexus: placeholder(), model, target, lu, aborted };
        fixture.nexus = fixture.another("iqn.2026-11.test:a");
        Ok(fixture)
    }

    fn file(&self, lu: &LogicalUnit) -> PathBuf {
        file(&lu.config).unwrap()
    }

    /// What the process leaves behind when it is killed now.
    fn kill(&self, process: Fixture) {
        let path = self.file(&process.lu);
        let left = fs::read(&path).unwrap();
        drop(process);
        thread::sleep(2 * TOGETHER);
        fs::write(path, left).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn placeholder() -> Arc<Nexus> {
    Fixture::new().nexus
}

fn register(process: &mut Fixture) {
    let register = [[0; 8], KEY, [0; 8]].concat();
    process.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register).unwrap();
}

fn registrations(process: &Fixture) -> usize {
    process.lu.state().reservations.registrations().len()
}

fn attentions(nexus: &Nexus) -> Vec<Attention> {
    nexus.table().at(0).unwrap().attentions().iter().collect()
}

/// Waits until the saver has written what changed.
fn settle(process: &Fixture) {
    let start = Instant::now();
    let live = process.lu.live.get().unwrap();
    while live.dirty.load(SeqCst) {
        assert!(start.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(1));
    }
    drop(live.alone());
}

#[test]
fn a_registration_outlives_the_process_but_not_the_boot() {
    let scratch = Scratch::new("boot");
    let mut process = scratch.start(BOOT).unwrap();
    register(&mut process);
    scratch.kill(process);
    let process = scratch.start(BOOT).unwrap();
    assert_eq!(registrations(&process), 1);
    scratch.kill(process);
    assert_eq!(registrations(&scratch.start("boot 2").unwrap()), 0);
    // The first boot's state is gone for good.
    assert_eq!(registrations(&scratch.start(BOOT).unwrap()), 0);
}

#[test]
fn what_a_command_promises_is_written_before_it_ends() {
    let scratch = Scratch::new("promise");
    let mut process = scratch.start(BOOT).unwrap();
    let text = |state: &Snapshot| serde_json::to_string(&UnitState::from(state)).unwrap();
    let kept = |process: &Fixture| {
        text(&load(&scratch.file(&process.lu), BOOT).unwrap().expect("a state is kept"))
    };
    settle(&process);
    // The saver writes nothing meanwhile.
    process.lu.live.get().unwrap().dirty.store(true, SeqCst);
    process.call(&[0x16, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(kept(&process), text(&process.lu.snapshot()), "RESERVE");
    let control = [0x0A, 0x0A, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    process.call(&[0x15, 0x10, 0, 0, 16, 0], &[&[0; 4][..], &control].concat()).unwrap();
    assert_eq!(kept(&process), text(&process.lu.snapshot()), "MODE SELECT");
    process.call(&[0x17, 0, 0, 0, 0, 0], &[]).unwrap();
    assert_eq!(kept(&process), text(&process.lu.snapshot()), "RELEASE");
    register(&mut process);
    assert_eq!(kept(&process), text(&process.lu.snapshot()), "PERSISTENT RESERVE OUT");
}

#[test]
fn an_initiator_that_comes_back_meets_no_unit_attention() {
    let scratch = Scratch::new("attention");
    let process = scratch.start(BOOT).unwrap();
    assert_eq!(attentions(&process.nexus), [Attention::POWER_ON]);
    process.nexus.table().at(0).unwrap().take_attention();
    process.lu.update(|state| state.stopped = true);
    settle(&process);
    scratch.kill(process);
    let process = scratch.start(BOOT).unwrap();
    assert_eq!(attentions(&process.nexus), []);
    assert_eq!(attentions(&process.another("iqn.2026-11.test:new")), [Attention::POWER_ON]);
}

#[test]
fn a_frozen_unit_keeps_nexuses_that_go_and_promises_nothing() {
    let scratch = Scratch::new("frozen");
    let mut process = scratch.start(BOOT).unwrap();
    process.nexus.table().at(0).unwrap().take_attention();
    process.call(&[0x16, 0, 0, 0, 0, 0], &[]).unwrap();
    process.lu.freeze().unwrap();
    assert_eq!(sense(process.call(&[0x17, 0, 0, 0, 0, 0], &[])), Sense::INTERNAL_FAILURE);
    drop(process);
    thread::sleep(2 * TOGETHER);
    let process = scratch.start(BOOT).unwrap();
    assert_eq!(attentions(&process.nexus), []);
    let other = process.another("iqn.2026-11.test:b");
    let denied = other.table().at(0).unwrap().attention() & crate::model::nexus::bit::LEGACY_DENIED;
    assert_ne!(denied, 0, "the RESERVE holds");
}

#[test]
fn what_cannot_be_written_is_not_done() {
    let scratch = Scratch::new("unwritable");
    let mut process = scratch.start(BOOT).unwrap();
    settle(&process);
    // A directory in the way of the new file.
    let way = scratch.file(&process.lu).with_extension("json.new");
    fs::create_dir(&way).unwrap();
    let refused = process.call(&[0x16, 0, 0, 0, 0, 0], &[]);
    assert_eq!(sense(refused), Sense::INTERNAL_FAILURE);
    fs::remove_dir(&way).unwrap();
    assert_eq!(process.call(&[0x16, 0, 0, 0, 0, 0], &[]), Ok(Vec::new()));
}

#[test]
fn a_unit_out_of_service_leaves_nothing() {
    let scratch = Scratch::new("gone");
    let mut process = scratch.start(BOOT).unwrap();
    register(&mut process);
    let path = scratch.file(&process.lu);
    assert!(path.exists());
    process.target.unmap(0).unwrap();
    drop(process);
    thread::sleep(2 * TOGETHER);
    assert!(!path.exists());
}

#[test]
fn the_remains_of_a_power_failure_are_ignored_and_other_damage_is_not() {
    let scratch = Scratch::new("damage");
    let process = scratch.start(BOOT).unwrap();
    let path = scratch.file(&process.lu);
    scratch.kill(process);
    let whole = fs::read(&path).unwrap();
    for remains in [&[][..], &[0; 100], &whole[..50], &[&whole[..50], &[0; 50]].concat()] {
        fs::write(&path, remains).unwrap();
        assert!(scratch.start(BOOT).is_ok(), "{remains:?}");
    }
    let text = String::from_utf8(whole).unwrap();
    for (from, to) in [("\"version\":1", "\"version\":9"), ("\"boot\"", "\"boat\"")] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = scratch.start(BOOT).unwrap_err();
        assert!(matches!(&error, LiveError::Content { path: named, .. } if *named == path));
    }
}
