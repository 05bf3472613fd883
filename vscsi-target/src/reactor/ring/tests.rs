use super::*;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::atomic::{AtomicU32, Ordering},
};

/// An open file without a name.
fn file(content: &[u8]) -> File {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("vscsi-ring-{}-{n}", std::process::id()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all(content).unwrap();
    file
}

/// A ring, unless this machine forbids it.
fn ring(entries: u32) -> Option<Ring> {
    let ring = Ring::new(entries);
    if !ring.is_enabled() {
        eprintln!("skipped: io_uring is not allowed here");
        return None;
    }
    Some(ring)
}

fn finish(ring: &mut Ring) -> BTreeMap<u64, io::Result<()>> {
    let mut results = BTreeMap::new();
    ring.submit();
    while ring.in_flight() > 0 {
        ring.reap(|key, result| assert!(results.insert(key, result).is_none(), "{key} twice"));
        std::thread::yield_now();
    }
    results
}

#[test]
fn disabled_ring_takes_nothing() {
    let mut ring = Ring::disabled();
    assert!(!ring.is_enabled() && ring.fd().is_none());
    assert!(!ring.read(1, 0, 0, &[]) && !ring.write(1, 0, 0, &[], false) && !ring.flush(1, 0));
    ring.submit();
    ring.reap(|_, _| panic!("nothing was queued"));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn many_more_operations_than_entries_each_complete_once() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[]);
    let mut blocks: Vec<[u8; 512]> = (0..1000u32).map(|i| [i as u8; 512]).collect();
    for (i, block) in blocks.iter_mut().enumerate() {
        assert!(ring.write(
            i as u64,
            file.as_raw_fd(),
            i as u64 * 512,
            &[Segment::of(block)],
            false
        ));
    }
    let results = finish(&mut ring);
    assert_eq!(results.len(), 1000);
    assert!(results.values().all(Result::is_ok));
    let mut back = vec![[0u8; 512]; 1000];
    for (i, block) in back.iter_mut().enumerate() {
        ring.read(i as u64, file.as_raw_fd(), i as u64 * 512, &[Segment::of(block)]);
    }
    assert!(finish(&mut ring).values().all(Result::is_ok));
    assert!(back == blocks);
}

#[test]
fn scattered_read_and_gathered_write_keep_the_order() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[]);
    let (mut a, mut b) = ([1u8; 700], [2u8; 300]);
    let segments = [Segment::of(&mut a), Segment::of(&mut []), Segment::of(&mut b)];
    ring.write(1, file.as_raw_fd(), 24, &segments, true);
    assert!(finish(&mut ring).values().all(Result::is_ok));
    let (mut c, mut d) = ([0u8; 724], [0u8; 300]);
    ring.read(2, file.as_raw_fd(), 0, &[Segment::of(&mut c), Segment::of(&mut d)]);
    assert!(finish(&mut ring).values().all(Result::is_ok));
    assert!(c[..24] == [0; 24] && c[24..] == [1; 700] && d == [2; 300]);
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_all_read() {
    let Some(mut ring) = ring(8) else { return };
    let content: Vec<u8> = (0..3000u32 * 2).map(|i| (i / 2) as u8).collect();
    let file = file(&content);
    let mut back = vec![0u8; content.len()];
    let segments: Vec<_> = back.chunks_mut(2).map(Segment::of).collect();
    ring.read(1, file.as_raw_fd(), 0, &segments);
    assert!(finish(&mut ring).values().all(Result::is_ok));
    assert!(back == content);
}

#[test]
fn read_past_the_end_is_an_unexpected_end() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[9; 1000]);
    let (mut a, mut b) = ([0u8; 600], [0u8; 600]);
    ring.read(7, file.as_raw_fd(), 0, &[Segment::of(&mut a), Segment::of(&mut b)]);
    let results = finish(&mut ring);
    assert_eq!(results[&7].as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!((a, &b[..400]), ([9; 600], &[9; 400][..]));
}

#[test]
fn short_transfer_goes_on_where_it_stopped() {
    let mut memory = [0u8; 100];
    let base = memory.as_mut_ptr();
    let parts = [Segment { base, len: 40 }, Segment { base: base.wrapping_add(40), len: 60 }];
    let mut slot = Slot { kind: Kind::Read, offset: 1000, memory: parts.to_vec(), ..Slot::EMPTY };
    assert!(slot.progress(50).is_none());
    assert_eq!((slot.offset, slot.first, slot.memory[1].len), (1050, 1, 50));
    assert_eq!(slot.memory[1].base, base.wrapping_add(50));
    assert!(slot.progress(-libc::EINTR).is_none());
    assert!(slot.progress(50).unwrap().is_ok());
}

#[test]
fn refusals_are_retried_but_not_for_ever() {
    let mut slot = Slot::EMPTY;
    for _ in 0..MOST_RETRIES {
        assert!(slot.progress(-libc::EAGAIN).is_none());
    }
    assert_eq!(
        slot.progress(-libc::EAGAIN).unwrap().unwrap_err().raw_os_error(),
        Some(libc::EAGAIN)
    );
    let mut slot = Slot::EMPTY;
    let full = slot.progress(-libc::EDQUOT).unwrap().unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn write_to_a_read_only_descriptor_fails_with_its_error() {
    let Some(mut ring) = ring(8) else { return };
    let file = File::open("/dev/null").unwrap();
    ring.write(3, file.as_raw_fd(), 0, &[Segment::of(&mut [1; 8])], false);
    assert_eq!(finish(&mut ring)[&3].as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn flush_of_a_file_completes() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[1; 4096]);
    ring.flush(u64::MAX, file.as_raw_fd());
    assert!(finish(&mut ring)[&u64::MAX].is_ok());
}

#[test]
fn ring_descriptor_is_readable_when_something_finished() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[1; 4096]);
    ring.flush(1, file.as_raw_fd());
    ring.submit();
    let mut poll = libc::pollfd { fd: ring.fd().unwrap(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let mut ready = unsafe { libc::poll(&mut poll, 1, 5000) };
    if ready < 0 {
        // The completion itself interrupted the wait: it is there now.
        // SAFETY: as above.
        ready = unsafe { libc::poll(&mut poll, 1, 5000) };
    }
    assert_eq!(ready, 1);
}

#[test]
fn dropping_the_ring_waits_for_what_is_in_flight() {
    let Some(mut ring) = ring(64) else { return };
    let file = file(&[]);
    let mut data = vec![3u8; 1 << 20];
    for i in 0..32 {
        ring.write(i, file.as_raw_fd(), i << 20, &[Segment::of(&mut data)], true);
    }
    ring.submit();
    drop(ring);
    // Nothing of the kernel's reads it any more: what is written is only the old content. Writes
    // that were cancelled before the last one leave holes.
    data.fill(4);
    for i in 0..32 {
        let mut back = [0; 512];
        file.read_at(&mut back, i << 20).unwrap();
        assert!(back == [3; 512] || back == [0; 512], "at {i} MiB");
    }
}

/// A pipe into which nothing is written: reads of the first end wait.
fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe().unwrap()
}

fn ended(ring: &mut Ring) -> BTreeMap<u64, io::Result<()>> {
    let mut results = BTreeMap::new();
    ring.reap(|key, result| assert!(results.insert(key, result).is_none(), "{key} twice"));
    results
}

#[test]
fn operation_that_waits_in_the_kernel_is_taken_back() {
    let Some(mut ring) = ring(8) else { return };
    let (reader, _writer) = pipe();
    let (mut a, mut b) = ([0; 8], [0; 8]);
    ring.read(1, reader.as_raw_fd(), 0, &[Segment::of(&mut a)]);
    ring.read(2, reader.as_raw_fd(), 0, &[Segment::of(&mut b)]);
    ring.submit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(ended(&mut ring).is_empty());
    ring.cancel(1);
    ring.submit();
    let mut results = BTreeMap::new();
    while results.is_empty() {
        results = ended(&mut ring);
    }
    assert!(results.len() == 1 && is_cancelled(results[&1].as_ref().unwrap_err()));
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn operation_the_kernel_does_not_have_yet_is_taken_back_at_once() {
    let Some(mut ring) = ring(8) else { return };
    let (reader, _writer) = pipe();
    let file = file(&[7; 8]);
    let mut blocked = vec![[0; 8]; 64];
    for (key, buffer) in (0..).zip(&mut blocked) {
        ring.read(key, reader.as_raw_fd(), 0, &[Segment::of(buffer)]);
    }
    let mut buffer = [0; 8];
    ring.read(100, file.as_raw_fd(), 0, &[Segment::of(&mut buffer)]);
    ring.submit();
    assert!(ended(&mut ring).is_empty(), "there was room for all");
    ring.cancel(100);
    let results = ended(&mut ring);
    assert!(results.len() == 1 && is_cancelled(results[&100].as_ref().unwrap_err()));
    assert_eq!((ring.in_flight(), buffer), (64, [0; 8]));
    // All of them, more than there is room for cancellations at a time.
    (0..64).for_each(|key| ring.cancel(key));
    let results = finish(&mut ring);
    assert_eq!(results.len(), 64);
    assert!(results.values().all(|result| is_cancelled(result.as_ref().unwrap_err())));
}

#[test]
fn cancellation_that_comes_too_late_changes_nothing_and_hits_no_successor() {
    let Some(mut ring) = ring(8) else { return };
    let file = file(&[7; 8]);
    let (mut a, mut b) = ([0; 8], [0; 8]);
    ring.read(1, file.as_raw_fd(), 0, &[Segment::of(&mut a)]);
    ring.submit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    ring.cancel(1);
    assert!(ended(&mut ring)[&1].is_ok());
    // The slot is used again before the cancellation of its former use reaches the kernel.
    ring.read(2, file.as_raw_fd(), 0, &[Segment::of(&mut b)]);
    assert!(finish(&mut ring)[&2].is_ok());
    assert_eq!((a, b), ([7; 8], [7; 8]));
}

#[test]
fn operation_taken_back_is_not_continued() {
    let mut memory = [0u8; 100];
    let list = vec![Segment::of(&mut memory)];
    let mut slot = Slot { kind: Kind::Read, memory: list, cancelled: true, ..Slot::EMPTY };
    assert!(is_cancelled(&slot.progress(50).unwrap().unwrap_err()));
    assert!(is_cancelled(&slot.progress(-libc::EINTR).unwrap().unwrap_err()));
    assert!(slot.progress(50).unwrap().is_ok());
}
