use super::*;
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
        signal::{Signal, kill},
    },
    unistd::{Pid, ftruncate},
};
use std::{
    num::NonZeroUsize,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::Command,
    ptr::NonNull,
    thread,
};

const PAGE: usize = 4096;

/// A file of `len` bytes that is mapped whole.
struct Shared {
    file: OwnedFd,
    base: NonNull<c_void>,
    len: usize,
}

// SAFETY: an address range, only reached by raw copies.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(len: usize) -> Self {
        Self::with(len, MFdFlags::empty()).unwrap()
    }

    fn with(len: usize, flags: MFdFlags) -> nix::Result<Self> {
        let file = memfd_create("guard", flags)?;
        ftruncate(&file, len as i64)?;
        let size = NonZeroUsize::new(len).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping.
        let base = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { file, base, len })
    }

    fn at(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        self.base.as_ptr().cast::<u8>().wrapping_add(at)
    }

    fn read(&self, at: usize) -> u8 {
        // SAFETY: inside the mapping.
        unsafe { self.at(at).read_volatile() }
    }

    fn write(&self, at: usize, byte: u8) {
        // SAFETY: inside the mapping.
        unsafe { self.at(at).write_volatile(byte) }
    }

    fn guard(&self, page: usize) -> Guarded {
        // SAFETY: all of it; the tests expect anything in it.
        unsafe { Guarded::register(self.at(0), self.len, page) }.unwrap()
    }

    fn cut(&self, len: usize) {
        ftruncate(&self.file, len as i64).unwrap();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { munmap(self.base, self.len) }.unwrap();
    }
}

#[test]
fn truncated_memory_reads_as_zeroes_takes_writes_and_is_marked_alone() {
    let (gone, kept) = (Shared::new(8 * PAGE), Shared::new(8 * PAGE));
    let (gone_guard, kept_guard) = (gone.guard(PAGE), kept.guard(PAGE));
    for at in 0..8 * PAGE {
        gone.write(at, 7);
        kept.write(at, 7);
    }
    gone.cut(PAGE);
    assert!(!gone_guard.is_lost());
    let before = losses();
    assert_eq!((gone.read(5 * PAGE + 9), gone.read(PAGE - 1)), (0, 7));
    gone.write(5 * PAGE, 1);
    gone.write(PAGE, 2);
    assert_eq!((gone.read(5 * PAGE), gone.read(PAGE), gone.read(8 * PAGE - 1)), (1, 2, 0));
    assert!(gone_guard.is_lost() && !kept_guard.is_lost());
    assert!(losses() > before);
    assert!((0..8 * PAGE).all(|at| kept.read(at) == 7));
    // The rest of the file is still the one that is shared.
    nix::sys::uio::pwrite(&gone.file, &[5], 3).unwrap();
    assert_eq!(gone.read(3), 5);
}

#[test]
fn a_copy_goes_on_while_the_memory_is_truncated_under_it() {
    let shared = Shared::new(256 * PAGE);
    let guard = shared.guard(PAGE);
    thread::scope(|scope| {
        for writes in [false, true] {
            let (shared, guard) = (&shared, &guard);
            scope.spawn(move || {
                let mut bytes = vec![3u8; shared.len];
                // Once more after the loss.
                let mut rounds = 0;
                while rounds < 2 {
                    rounds += i32::from(guard.is_lost());
                    // SAFETY: both are as long; the mapping is only copied from and to.
                    unsafe {
                        match writes {
                            true => ptr::copy(bytes.as_ptr(), shared.at(0), shared.len),
                            false => ptr::copy(shared.at(0), bytes.as_mut_ptr(), shared.len),
                        }
                    }
                }
            });
        }
        thread::sleep(std::time::Duration::from_millis(20));
        shared.cut(100 * PAGE);
    });
    assert!(guard.is_lost());
}

#[test]
fn a_mapping_that_is_gone_as_a_whole_costs_few_faults() {
    for backwards in [false, true] {
        let shared = Shared::new(4096 * PAGE);
        let guard = shared.guard(PAGE);
        shared.cut(0);
        for page in 0..4096 {
            let page = if backwards { 4095 - page } else { page };
            assert_eq!(shared.read(page * PAGE), 0);
        }
        let faults = guard.entry.faults.load(Relaxed);
        if !backwards {
            assert_eq!(faults, 13);
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let end = shared.base.as_ptr() as usize + shared.len;
        let inside = |line: &&str| {
            let start = line.split('-').next().unwrap();
            (shared.base.as_ptr() as usize..end)
                .contains(&usize::from_str_radix(start, 16).unwrap())
        };
        assert!(maps.lines().filter(inside).count() <= 16, "{maps}");
    }
}

#[test]
fn mappings_come_and_go_while_others_are_lost() {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let shared: Vec<_> = (0..70).map(|_| Shared::new(PAGE)).collect();
                let guards: Vec<_> = shared.iter().map(|shared| shared.guard(PAGE)).collect();
                assert!(guards.iter().all(|guard| !guard.is_lost()));
            }
        });
        for _ in 0..500 {
            let shared = Shared::new(2 * PAGE);
            let guard = shared.guard(PAGE);
            shared.cut(PAGE);
            assert_eq!(shared.read(PAGE), 0);
            assert!(guard.is_lost());
        }
        done.store(true, Relaxed);
    });
    // At most what was in use at one time, in this and the other tests.
    assert!(entries().count() <= 256);
}

#[test]
fn huge_pages_are_replaced_whole() {
    const HUGE: usize = 2 << 20;
    let Ok(shared) = Shared::with(2 * HUGE, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB) else {
        eprintln!("skipped: this machine has no huge pages");
        return;
    };
    let guard = shared.guard(HUGE);
    shared.write(0, 1);
    shared.cut(HUGE);
    shared.write(HUGE + 5000, 2);
    assert_eq!((shared.read(HUGE), shared.read(HUGE + 5000), shared.read(0)), (0, 2, 1));
    assert!(guard.is_lost());
}

/// The signal that ended this test run anew in a process of its own, as `role`.
fn child(role: &str) -> std::process::ExitStatus {
    let test = "memory::guard::tests::in_a_child";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role);
    let output = command.output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output.status
}

#[test]
fn a_bus_error_elsewhere_still_ends_the_process() {
    assert_eq!(child("elsewhere").signal(), Some(libc::SIGBUS));
    assert_eq!(child("formerly").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_handler_that_was_there_before_gets_what_is_not_ours() {
    assert_eq!(child("handler").code(), Some(HANDLED));
    assert_eq!(child("guarded").code(), Some(0));
}

#[test]
fn a_signal_that_was_sent_leaves_the_guard_in_place() {
    assert_eq!(child("sent").code(), Some(0));
}

/// Does nothing unless a test above has started it.
#[test]
fn in_a_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // No image of the memory of each.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    extern "C" fn handled(_: c_int) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(HANDLED) }
    }
    if role == "handler" || role == "guarded" {
        let handler: extern "C" fn(c_int) = handled;
        // SAFETY: a valid handler.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    }
    let (shared, other) = (Shared::new(PAGE), Shared::new(PAGE));
    let guard = shared.guard(PAGE);
    shared.cut(0);
    other.cut(0);
    match &*role {
        "sent" => {
            // The handler of Rust's runtime, which was there before, lets the first one pass.
            kill(Pid::this(), Signal::SIGBUS).unwrap();
            shared.read(0);
            return;
        }
        "formerly" => {
            drop(guard);
            shared.read(0);
        }
        "guarded" => {
            shared.read(0);
            return;
        }
        _ => {
            other.read(0);
        }
    }
    panic!("still here");
}

const ROLE: &str = "VSCSI_GUARD_TEST";
const HANDLED: i32 = 42;
