use super::*;
use crate::backend::{Backend, Lanes};
use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// A file of its own, removed at the end.
struct Image(PathBuf);

impl Image {
    fn new(len: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vscsi-file-{}-{n}", std::process::id()));
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        Self(path)
    }

    fn options(&self) -> FileOptions {
        FileOptions { path: self.0.clone(), block_size: 512, read_only: false, direct: false }
    }

    fn open(&self) -> File {
        File::open(&self.options()).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn refusal(options: &FileOptions) -> OpenError {
    let error = File::open(options).unwrap_err();
    assert!(!error.fix().is_empty());
    error
}

fn at(path: &Path) -> FileOptions {
    FileOptions { path: path.into(), block_size: 512, read_only: false, direct: false }
}

const MIB: u64 = 1 << 20;

#[test]
fn missing_file_is_refused() {
    assert!(matches!(refusal(&at(Path::new("/nowhere/disk"))), OpenError::Missing { .. }));
}

#[test]
fn directory_and_character_device_are_refused() {
    assert!(matches!(refusal(&at(&std::env::temp_dir())), OpenError::Directory { .. }));
    assert!(matches!(refusal(&at(Path::new("/dev/null"))), OpenError::NotADisk { .. }));
}

#[test]
fn ragged_and_empty_files_are_refused_with_their_size() {
    let ragged = Image::new(1000);
    let error = refusal(&ragged.options());
    assert!(matches!(error, OpenError::Ragged { len: 1000, block_size: 512, .. }), "{error}");
    assert!(matches!(refusal(&Image::new(0).options()), OpenError::Empty { .. }));
    let odd = FileOptions { block_size: 520, ..ragged.options() };
    assert!(matches!(refusal(&odd), OpenError::BlockSize { block_size: 520, .. }));
}

#[test]
fn second_writer_is_refused_with_the_holder() {
    let image = Image::new(MIB);
    let first = image.open();
    let error = refusal(&image.options());
    let OpenError::Locked { holder: Some(holder), .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, std::process::id());
    assert!(error.to_string().contains(&format!("process {} (", holder.pid)), "{error}");
    drop(first);
    image.open();
}

#[test]
fn readers_share_and_keep_a_writer_out() {
    let image = Image::new(MIB);
    let reader = FileOptions { read_only: true, ..image.options() };
    let (_a, _b) = (File::open(&reader).unwrap(), File::open(&reader).unwrap());
    assert!(matches!(refusal(&image.options()), OpenError::Locked { .. }));
}

#[test]
fn read_only_file_refuses_writes_and_flushes_without_harm() {
    let image = Image::new(MIB);
    let file = File::open(&FileOptions { read_only: true, ..image.options() }).unwrap();
    assert!(file.properties().read_only && !file.properties().thin);
    assert!(file.write_at(0, &[0; 512]).is_err());
    let started = file.start(&mut Ring::disabled(), 1, Op::Write { fua: false }, 0, &[]);
    assert!(matches!(started, Started::Done(Err(_))));
    file.flush().unwrap();
}

#[test]
fn written_bytes_read_back() {
    let image = Image::new(MIB);
    let file = image.open();
    file.write_at(1024, &[7; 3072]).unwrap();
    file.flush().unwrap();
    let mut back = [0; 4096];
    file.read_at(512, &mut back).unwrap();
    assert_eq!(back[..512], [0; 512]);
    assert_eq!(back[512..3584], [7; 3072]);
}

#[test]
fn read_of_a_file_shortened_by_somebody_else_fails() {
    let image = Image::new(MIB);
    let file = image.open();
    fs::OpenOptions::new().write(true).open(&image.0).unwrap().set_len(4096).unwrap();
    let error = file.read_at(2048, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.resize(None).unwrap(), 4096);
}

#[test]
fn unmap_leaves_a_hole_and_zeroes_the_edges() {
    let image = Image::new(MIB);
    let file = image.open();
    file.write_at(0, &[0xff; 65536]).unwrap();
    file.flush().unwrap();
    let before = fs::metadata(&image.0).unwrap().blocks();
    assert!(file.properties().thin);
    file.unmap(512, 32768).unwrap();
    let mut back = vec![0; 65536];
    file.read_at(0, &mut back).unwrap();
    assert_eq!(back[..512], [0xff; 512]);
    assert_eq!(back[512..33280], [0; 32768]);
    assert_eq!(back[33280..], [0xff; 65536 - 33280]);
    assert!(fs::metadata(&image.0).unwrap().blocks() < before);
}

#[test]
fn extents_are_the_holes_of_the_file() {
    let image = Image::new(MIB);
    let file = image.open();
    file.write_at(65536, &[1; 65536]).unwrap();
    assert_eq!(file.extent(0).unwrap(), Extent { mapped: false, len: 65536 });
    assert_eq!(file.extent(66048).unwrap(), Extent { mapped: true, len: 65024 });
    assert_eq!(file.extent(131_072).unwrap(), Extent { mapped: false, len: MIB - 131_072 });
}

#[test]
fn write_zeroes_reads_back_as_zeroes_either_way() {
    let image = Image::new(MIB);
    let file = image.open();
    for may_unmap in [false, true] {
        file.write_at(0, &[0xff; 16384]).unwrap();
        file.write_zeroes(512, 8192, may_unmap).unwrap();
        let mut back = [0; 16384];
        file.read_at(0, &mut back).unwrap();
        assert_eq!(back[..512], [0xff; 512]);
        assert_eq!(back[512..8704], [0; 8192]);
        assert_eq!(back[8704..], [0xff; 7680]);
    }
}

#[test]
fn resize_grows_and_shrinks_the_file() {
    let image = Image::new(MIB);
    let file = image.open();
    assert_eq!(file.resize(Some(2 * MIB)).unwrap(), 2 * MIB);
    assert_eq!(fs::metadata(&image.0).unwrap().len(), 2 * MIB);
    assert_eq!(file.resize(Some(MIB)).unwrap(), file.len());
    assert!(file.resize(Some(1000)).is_err());
    assert_eq!(file.len(), MIB);
}

#[test]
fn failed_flush_stays_failed_for_flushes_and_forced_writes_only() {
    let image = Image::new(MIB);
    let backend = Backend::File(image.open());
    backend.failed(Op::Flush, &Errno::ENOSPC.into());
    backend.failed(Op::Flush, &Errno::EIO.into());
    assert_eq!(backend.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    let mut lanes = Lanes::new(0, Ring::disabled());
    let flushed = backend.start(&mut lanes, 1, Op::Flush, 0, &[]);
    assert!(matches!(flushed, Started::Done(Err(e)) if e.raw_os_error() == Some(28)));
    let forced = backend.start(&mut lanes, 1, Op::Write { fua: true }, 0, &[]);
    assert!(matches!(forced, Started::Done(Err(_))));
    assert!(matches!(backend.start(&mut lanes, 1, Op::Read, 0, &[]), Started::WouldBlock));
    backend.write_at(0, &[1; 512]).unwrap();
}

#[test]
fn direct_file_bounces_only_what_is_not_aligned() {
    let image = Image::new(4 * MIB);
    let options = FileOptions { block_size: 4096, direct: true, ..image.options() };
    let file = match File::open(&options) {
        Err(OpenError::NoDirect { .. }) => {
            return eprintln!("skipped: no O_DIRECT in the temp dir");
        }
        opened => opened.unwrap(),
    };
    let mut pages = Pages::zeroed(NonZeroUsize::new(3 << 20).unwrap()).unwrap();
    pages.bytes_mut().fill(5);
    file.write_at(4096, &pages.bytes()[..8192]).unwrap();
    assert_eq!(file.bounces(), 0);
    // More than one bounce buffer, from an odd address.
    let len = (2 << 20) + 4096;
    file.write_at(8192, &pages.bytes()[1..=len]).unwrap();
    file.read_at(4096, &mut pages.bytes_mut()[3..len + 3]).unwrap();
    assert_eq!(file.bounces(), 2);
    assert!(pages.bytes()[3..len + 3].iter().all(|b| *b == 5));
    let odd = Segment { base: pages.base().wrapping_add(1), len: 4096 };
    assert!(!file.takes(&[odd]));
}

#[test]
fn failed_forced_write_is_remembered_unless_the_disk_was_full() {
    let image = Image::new(MIB);
    let file = image.open();
    file.failed(Op::Read, &Errno::EIO.into());
    file.failed(Op::Write { fua: false }, &Errno::EIO.into());
    file.failed(Op::Write { fua: true }, &Errno::ENOSPC.into());
    file.failed(Op::Write { fua: true }, &Errno::EFAULT.into());
    file.flush().unwrap();
    file.failed(Op::Write { fua: true }, &Errno::EIO.into());
    assert_eq!(file.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
}

/// A loop device over an image, detached at the end.
struct Loop(PathBuf);

impl Loop {
    fn over(image: &Image) -> Option<Self> {
        let out = Command::new("losetup").args(["-f", "--show"]).arg(&image.0).output().ok()?;
        let path = String::from_utf8(out.stdout).ok()?;
        out.status.success().then(|| Self(path.trim_end().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn block_device_has_its_size_reads_back_and_unmaps_to_zeroes() {
    let image = Image::new(4 * MIB);
    let Some(device) = Loop::over(&image) else {
        return eprintln!("skipped: no loop device (needs root and losetup)");
    };
    let options = at(&device.0);
    let file = File::open(&options).unwrap();
    assert_eq!(file.len(), 4 * MIB);
    let second = refusal(&options);
    assert!(matches!(second, OpenError::Locked { holder: Some(_), .. }), "{second}");
    assert!(file.properties().thin, "{:?}", file.properties());
    file.write_at(0, &[0xff; 65536]).unwrap();
    file.flush().unwrap();
    file.unmap(4096, 32768).unwrap();
    let mut back = vec![0; 65536];
    file.read_at(0, &mut back).unwrap();
    assert_eq!(back[..4096], [0xff; 4096]);
    assert_eq!(back[4096..36864], [0; 32768]);
    assert_eq!(back[36864..], [0xff; 65536 - 36864]);
    assert!(fs::metadata(&image.0).unwrap().blocks() * 512 < 65536);
    assert!(file.resize(Some(8 * MIB)).is_err());
    assert_eq!(file.resize(None).unwrap(), 4 * MIB);
}
