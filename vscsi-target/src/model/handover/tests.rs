use super::*;
use crate::{
    backend::{Backend, File, FileOptions},
    model::{Nexus, nexus::bit, snapshot},
    opcode::Fail,
    sense::Sense,
    testing::Fixture,
};
use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
};

const KEY: [u8; 8] = *b"key of A";
const MIB: u64 = 1 << 20;

/// An image and a state directory, for several processes.
struct Shared(PathBuf);

impl Shared {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Relaxed);
        let path = env::temp_dir().join(format!("vscsi-handover-{}-{n}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("state")).unwrap();
        fs::File::create(path.join("image")).unwrap().set_len(MIB).unwrap();
        Self(path)
    }

    /// What one process has: it stands for one, as locks belong to open file descriptions.
    fn process(&self) -> Fixture {
        self.process_with(Some(self.0.join("state")))
    }

    fn process_with(&self, state: Option<PathBuf>) -> Fixture {
        let options = FileOptions {
            path: self.0.join("image"),
            block_size: 512,
            read_only: false,
            direct: false,
        };
        let backend = Backend::File(File::open_for_handover(&options).unwrap());
        let fixture = Fixture::with(backend, |config| config.state_dir = state);
        fixture.lu.keep().unwrap();
        fixture
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn register(process: &mut Fixture) -> Result<Vec<u8>, Fail> {
    let register = [[0; 8], KEY, [0; 8]].concat();
    process.call(&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register)
}

fn registrations(process: &Fixture) -> usize {
    process.lu.state().reservations.registrations().len()
}

fn attentions(nexus: &Nexus) -> Vec<Attention> {
    nexus.table().at(0).unwrap().attentions().iter().collect()
}

fn drain(nexus: &Nexus) {
    while nexus.table().at(0).unwrap().take_attention().is_some() {}
}

#[test]
fn one_process_at_a_time_has_the_image() {
    let shared = Shared::new();
    let (a, b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    assert_eq!(a.lu.readiness(), Ok(()));
    let error = b.lu.acquire().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains(&format!("process {}", process::id())), "{error}");
    assert_eq!(b.lu.readiness(), Err(Sense::BECOMING_READY));
    a.lu.release().unwrap();
    assert_eq!(a.lu.readiness(), Err(Sense::BECOMING_READY));
    b.lu.acquire().unwrap();
    assert!(a.lu.acquire().is_err());
}

#[test]
fn the_last_user_gives_it_up() {
    let shared = Shared::new();
    let (a, b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    a.lu.acquire().unwrap();
    a.lu.release().unwrap();
    assert!(b.lu.acquire().is_err());
    a.lu.release().unwrap();
    b.lu.acquire().unwrap();
    // One release too many takes nothing from anybody.
    a.lu.release().unwrap();
    assert_eq!(b.lu.readiness(), Ok(()));
}

#[test]
fn state_and_size_move_with_the_guest_and_back() {
    let shared = Shared::new();
    let (mut a, mut b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    drain(&a.nexus);
    register(&mut a).unwrap();
    a.lu.backend.resize(Some(2 * MIB)).unwrap();
    a.lu.release().unwrap();
    b.lu.acquire().unwrap();
    assert_eq!((registrations(&b), b.lu.blocks()), (1, 4096));
    assert_eq!(attentions(&b.nexus), [], "the guest notices nothing");
    let clear = [&KEY[..], &[0; 16]].concat();
    b.call(&[0x5F, 3, 0, 0, 0, 0, 0, 0, 24, 0], &clear).unwrap();
    b.lu.release().unwrap();
    a.lu.acquire().unwrap();
    assert_eq!((registrations(&a), a.lu.blocks()), (0, 4096));
    assert_eq!(attentions(&a.nexus), []);
}

#[test]
fn a_killed_process_leaves_its_state_to_the_next_of_this_boot() {
    let shared = Shared::new();
    let mut a = shared.process();
    a.lu.acquire().unwrap();
    register(&mut a).unwrap();
    let path = live::file(&a.lu.config).unwrap();
    let left = fs::read(&path).unwrap();
    drop(a);
    thread::sleep(Duration::from_millis(50));
    fs::write(&path, &left).unwrap();
    let b = shared.process();
    b.lu.acquire().unwrap();
    assert_eq!(registrations(&b), 1);
    drop(b);
    thread::sleep(Duration::from_millis(50));
    let boot = live::boot_id().unwrap();
    let text = String::from_utf8(left).unwrap().replace(boot, "another");
    fs::write(&path, text).unwrap();
    let c = shared.process();
    c.lu.acquire().unwrap();
    assert_eq!(registrations(&c), 0, "there was a power loss");
}

#[test]
fn state_that_came_with_the_guest_wins_over_what_is_stored() {
    let shared = Shared::new();
    let mut stale = shared.process();
    stale.lu.acquire().unwrap();
    register(&mut stale).unwrap();
    stale.lu.release().unwrap();
    drop(stale);
    // The guest comes from a host with a directory of its own.
    let there = shared.process_with(None);
    there.lu.acquire().unwrap();
    drain(&there.nexus);
    let bytes = snapshot::save(&there.nexus);
    there.lu.release().unwrap();
    let here = shared.process();
    let stranger = here.another("iqn.2026-11.test:b");
    drain(&stranger);
    snapshot::restore(&here.nexus, &bytes).unwrap();
    assert_eq!(here.lu.readiness(), Err(Sense::BECOMING_READY));
    here.lu.acquire().unwrap();
    assert_eq!(registrations(&here), 0);
    assert_eq!(attentions(&here.nexus), []);
    assert_eq!(attentions(&stranger), [Attention::MEDIUM_CHANGED]);
}

#[test]
fn it_is_given_up_only_when_no_task_is_left() {
    let shared = Shared::new();
    let (a, b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    let epoch = a.lu.gate.enter(0).unwrap();
    let (tell, told) = mpsc::channel();
    let lu = Arc::clone(&a.lu);
    let thread = thread::spawn(move || tell.send(lu.release()).unwrap());
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "a task is in progress");
    assert!(b.lu.acquire().is_err());
    assert_eq!(a.lu.readiness(), Err(Sense::BECOMING_READY), "but no new one begins");
    a.lu.gate.leave(0, epoch);
    told.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    thread.join().unwrap();
    b.lu.acquire().unwrap();
}

#[test]
fn a_state_that_cannot_be_saved_stays_with_its_process() {
    let shared = Shared::new();
    let (a, b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    let way = live::file(&a.lu.config).unwrap().with_extension("json.new");
    while fs::create_dir(&way).is_err() {}
    assert!(a.lu.release().is_err());
    assert_eq!(a.lu.readiness(), Ok(()));
    assert!(b.lu.acquire().is_err());
    fs::remove_dir(&way).unwrap();
    a.lu.release().unwrap();
    b.lu.acquire().unwrap();
}

#[test]
fn a_reservation_of_the_guest_binds_others_at_its_new_home() {
    let shared = Shared::new();
    let (mut a, b) = (shared.process(), shared.process());
    a.lu.acquire().unwrap();
    a.call(&[0x16, 0, 0, 0, 0, 0], &[]).unwrap();
    a.lu.release().unwrap();
    let other = b.another("iqn.2026-11.test:b");
    b.lu.acquire().unwrap();
    assert_ne!(other.table().at(0).unwrap().attention() & bit::LEGACY_DENIED, 0);
    assert_eq!(b.nexus.table().at(0).unwrap().attention() & bit::LEGACY_DENIED, 0);
}
