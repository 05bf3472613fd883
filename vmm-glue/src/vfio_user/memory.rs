//! The memory that a client maps for the device, piece by piece.
//!
//! Under an emulated IOMMU the pieces are pages, thousands of them, that come and go with every
//! request of the guest. The file behind them is mapped as a whole, once, so that pieces that adjoin
//! in it are one region, and a piece costs no system call.

use std::{collections::BTreeMap, fs::File, os::fd::OwnedFd, os::unix::fs::MetadataExt, sync::Arc};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::memfd::{MFdFlags, memfd_create},
};
use vscsi_target::reactor::sg;

use crate::memory::{GuestMap, MAX_REGIONS, MemoryError, Region};

use super::message::{DmaMap, DmaUnmap, MOST_MAPS};

/// What a client has mapped.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pieces: BTreeMap<u64, Piece>,
    files: Vec<Whole>,
    /// The file of all copies, mapped as a whole.
    copies: Option<(File, Region)>,
    map: Arc<GuestMap>,
    /// That, and the copies of what has no descriptor.
    all: Arc<GuestMap>,
    /// The pieces are not those of `map`.
    is_changed: bool,
    /// What was in `map` and is no piece any more.
    gone: Vec<Region>,
}

/// One DMA_MAP.
#[derive(Debug)]
struct Piece {
    size: u64,
    /// Where it is, or its copy.
    region: Option<Region>,
    /// It came without a descriptor.
    is_copied: bool,
}

/// A file, mapped as a whole.
#[derive(Debug)]
struct Whole {
    device: u64,
    inode: u64,
    region: Region,
    /// Pieces that are in it.
    pieces: usize,
}

impl Memory {
    /// Adds a piece: the errno if that cannot be.
    pub(super) fn add(&mut self, map: &DmaMap, descriptor: Option<OwnedFd>) -> Result<(), i32> {
        let &DmaMap { offset, address, size, .. } = map;
        let end = address.checked_add(size).filter(|_| size > 0).ok_or(libc::EINVAL)?;
        let before = self.pieces.range(..end).next_back();
        if before.is_some_and(|(&start, piece)| start + piece.size > address) {
            return Err(libc::EEXIST);
        }
        if self.pieces.len() >= MOST_MAPS {
            return Err(libc::ENOSPC);
        }
        let is_copied = descriptor.is_none();
        let region = match descriptor {
            None => self.copy(map),
            Some(file) => Some(self.place(map, offset, file.into()).map_err(|error| {
                tracing::warn!("the VMM shares memory that cannot be used: {error}");
                errno(&error)
            })?),
        };
        self.pieces.insert(address, Piece { size, region, is_copied });
        self.is_changed = true;
        Ok(())
    }

    /// Removes all pieces in a range: the errno if one is only partly in it. None is no fault, as
    /// IOMMUs invalidate more than they ever mapped.
    pub(super) fn remove(&mut self, unmap: &DmaUnmap) -> Result<(), i32> {
        let (start, end) = match unmap.all {
            true => (0, u64::MAX),
            false => {
                let end = unmap.address.checked_add(unmap.size).filter(|_| unmap.size > 0);
                (unmap.address, end.ok_or(libc::EINVAL)?)
            }
        };
        let is_cut = |(&at, piece): (&u64, &Piece)| {
            at < end && at + piece.size > start && (at < start || at + piece.size > end)
        };
        // Only the first and the last can be.
        let mut edges = self.pieces.range(..end);
        if edges.next_back().is_some_and(is_cut)
            || self.pieces.range(..start).next_back().is_some_and(is_cut)
        {
            return Err(libc::EINVAL);
        }
        let mut rest = self.pieces.split_off(&start);
        let mut after = rest.split_off(&end);
        self.pieces.append(&mut after);
        self.is_changed |= !rest.is_empty();
        for region in rest.into_values().filter_map(|piece| piece.region) {
            if let Some(whole) = self.files.iter_mut().find(|whole| whole.has(&region)) {
                whole.pieces -= 1;
            }
            self.gone.push(region);
        }
        Ok(())
    }

    /// The map, of all pieces with a descriptor.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// The map of all pieces, copies among them.
    pub(super) fn all(&self) -> &Arc<GuestMap> {
        &self.all
    }

    /// Makes new maps if anything changed: what is gone since the last ones.
    pub(super) fn commit(&mut self) -> Option<Arc<[Region]>> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let shared = join(self.pieces.values().filter(|piece| !piece.is_copied));
        let all = join(self.pieces.values());
        // Not before: what goes and comes again with other borders stays where it is.
        self.files.retain(|whole| whole.pieces > 0);
        // Pieces do not overlap.
        self.map = Arc::new(GuestMap::sorted(shared).unwrap_or_default());
        self.all = Arc::new(GuestMap::sorted(all).unwrap_or_default());
        let gone = std::mem::take(&mut self.gone).into_iter();
        Some(gone.filter(|region| !self.all.has(region)).collect())
    }

    /// Whether the device can reach less of what it may write than it has to ask for.
    pub(super) fn is_mostly_copied(&self) -> bool {
        let writable = self.pieces.values().filter(|piece| piece.region.is_some());
        let (mut shared, mut copied) = (0u64, 0u64);
        for piece in writable {
            let sum = if piece.is_copied { &mut copied } else { &mut shared };
            *sum = sum.saturating_add(piece.size);
        }
        copied > shared
    }

    /// The parts of a range that are copies.
    pub(super) fn copied(&self, address: u64, len: u64) -> Vec<(u64, usize)> {
        let Some(end) = address.checked_add(len) else { return Vec::new() };
        let mut parts = Vec::new();
        let pieces = self.pieces.range(..end).rev();
        for (&start, piece) in pieces.take_while(|&(&start, piece)| start + piece.size > address) {
            let (from, to) = (start.max(address), (start + piece.size).min(end));
            if piece.is_copied && to > from {
                parts.push((from, (to - from) as usize));
            }
        }
        parts.reverse();
        parts
    }

    /// Writes to memory, copies or not; what is none is passed over.
    pub(super) fn put(&self, address: u64, bytes: &[u8]) {
        let mut segments = Vec::new();
        if self.all.translate_for(&mut 0, address, bytes.len() as u32, false, &mut segments) {
            sg::scatter(bytes, &segments);
        }
    }

    /// Reads memory, copies or not; what is none stays as it is.
    pub(super) fn get(&self, address: u64, into: &mut [u8]) {
        let mut segments = Vec::new();
        if self.all.translate_for(&mut 0, address, into.len() as u32, false, &mut segments) {
            sg::gather(&segments, into);
        }
    }

    /// The copy of a piece without a descriptor. All copies are in one file, at the offsets of their
    /// addresses, so that what goes and comes again is what it was. What is only read has none: it is
    /// the VMM's firmware.
    fn copy(&mut self, map: &DmaMap) -> Option<Region> {
        if !map.writable {
            return None;
        }
        if self.copies.is_none() {
            let file = File::from(memfd_create(c"vscsi-copy", MFdFlags::MFD_CLOEXEC).ok()?);
            file.set_len(COPIES).ok()?;
            let region = Region::of_holes(COPIES, file.try_clone().ok()?).ok()?;
            self.copies = Some((file, region));
        }
        let (_, whole) = self.copies.as_ref()?;
        whole.part(map.address, map.address, map.size, true)
    }

    /// Gives back what the copies take; nothing uses them.
    pub(super) fn forget_copies(&self) {
        if let Some((file, _)) = &self.copies {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Otherwise they stay until the client is gone.
            let _ = fallocate(file, hole, 0, COPIES as i64);
        }
    }

    /// A piece of a file.
    fn place(&mut self, map: &DmaMap, offset: u64, file: File) -> Result<Region, MemoryError> {
        let &DmaMap { writable, address, size, .. } = map;
        let fault = |source| MemoryError::Map { gpa: address, size, source };
        let data = file.metadata().map_err(fault)?;
        let (device, inode) = (data.dev(), data.ino());
        let known = self.files.iter_mut().find_map(|whole| {
            let same = whole.device == device && whole.inode == inode;
            let region = same.then(|| whole.region.part(address, offset, size, writable)).flatten();
            // One that was mapped to be read only does not serve to write.
            let region = region.filter(|region| region.writable == writable)?;
            whole.pieces += 1;
            Some(region)
        });
        if let Some(region) = known {
            return Ok(region);
        }
        if self.files.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        // Devices have no size, and files of only one piece need none.
        let len = match data.len() {
            0 => return Region::map_for(address, size, address, offset, file, writable),
            len => len,
        };
        let copy = file.try_clone().map_err(fault)?;
        let region = match Region::map(0, len, 0, 0, copy) {
            Err(_) if !writable => Region::map_for(0, len, 0, 0, file, false)?,
            region => region?,
        };
        let short = MemoryError::Short { gpa: address, len, end: offset.saturating_add(size) };
        let piece = region.part(address, offset, size, writable).ok_or(short)?;
        self.files.push(Whole { device, inode, region, pieces: 1 });
        Ok(piece)
    }
}

/// Pieces as regions, those that adjoin as one.
fn join<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for region in pieces.filter_map(|piece| piece.region.as_ref()) {
        if !regions.last_mut().is_some_and(|last| last.join(region)) {
            regions.push(region.clone());
        }
    }
    regions
}

impl Whole {
    fn has(&self, region: &Region) -> bool {
        self.region.is_same(region)
    }
}

/// Addresses up to here can have a copy: 1 TiB, of which only what is carried takes memory.
const COPIES: u64 = 1 << 40;

fn errno(error: &MemoryError) -> i32 {
    match error {
        MemoryError::Map { source, .. } => source.raw_os_error().unwrap_or(libc::ENOMEM),
        MemoryError::TooMany => libc::ENOSPC,
        _ => libc::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn file(len: u64) -> OwnedFd {
        let file = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(file.as_fd(), len as i64).unwrap();
        file
    }

    fn copy(file: &OwnedFd) -> Option<OwnedFd> {
        Some(file.try_clone().unwrap())
    }

    fn piece(address: u64, size: u64, offset: u64) -> DmaMap {
        DmaMap { writable: true, offset, address, size }
    }

    fn range(address: u64, size: u64) -> DmaUnmap {
        DmaUnmap { all: false, address, size }
    }

    #[test]
    fn pages_that_adjoin_in_the_file_are_one_region() {
        let (mut memory, file) = (Memory::default(), file(0x10000));
        for page in [2u64, 0, 1, 4] {
            let map = piece(0x8000_0000 + page * 0x1000, 0x1000, 0x3000 + page * 0x1000);
            memory.add(&map, copy(&file)).unwrap();
        }
        let gone = memory.commit().unwrap();
        let map = Arc::clone(memory.map());
        assert_eq!((map.regions().len(), gone.len()), (2, 0));
        assert!(map.at(0x8000_0ff0, 0x1020).is_some() && map.at(0x8000_2ff0, 0x20).is_none());
        assert!(memory.commit().is_none());
        // The middle goes.
        memory.remove(&range(0x8000_1000, 0x1000)).unwrap();
        let gone = memory.commit().unwrap();
        let map = Arc::clone(memory.map());
        assert_eq!((map.regions().len(), gone.len()), (3, 1));
        assert_eq!((gone[0].gpa, gone[0].size), (0x8000_1000, 0x1000));
    }

    #[test]
    fn a_range_takes_whole_pieces_only() {
        let (mut memory, file) = (Memory::default(), file(0x10000));
        for page in 0..4 {
            memory.add(&piece(page * 0x2000, 0x2000, page * 0x2000), copy(&file)).unwrap();
        }
        for (address, size) in
            [(0, 0x1000), (0x1000, 0x3000), (0x2000, 0x3000), (1, u64::MAX), (0, 0)]
        {
            assert_eq!(memory.remove(&range(address, size)), Err(libc::EINVAL), "{address:#x}");
        }
        memory.remove(&range(0x2000, 0x4000)).unwrap();
        memory.remove(&range(0x2000, 0x4000)).unwrap();
        assert_eq!(memory.pieces.keys().copied().collect::<Vec<_>>(), [0, 0x6000]);
        memory.remove(&DmaUnmap { all: true, address: 0, size: 0 }).unwrap();
        memory.commit().unwrap();
        assert!(memory.pieces.is_empty() && memory.files.is_empty());
    }

    #[test]
    fn memory_with_other_borders_stays_where_it_is() {
        let (mut memory, file) = (Memory::default(), file(0x10000));
        memory.add(&piece(0, 0x10000, 0), copy(&file)).unwrap();
        memory.commit().unwrap();
        let host = memory.map().at(0x9000, 8);
        memory.remove(&range(0, 0x10000)).unwrap();
        memory.add(&piece(0, 0x8000, 0), copy(&file)).unwrap();
        memory.add(&piece(0x9000, 0x7000, 0x9000), copy(&file)).unwrap();
        let gone = memory.commit().unwrap();
        let map = Arc::clone(memory.map());
        assert_eq!((map.at(0x9000, 8), gone.len()), (host, 1));
        memory.remove(&range(0x9000, 0x7000)).unwrap();
        memory.add(&piece(0x9000, 0x7000, 0x9000), copy(&file)).unwrap();
        assert_eq!(memory.commit().unwrap().len(), 0);
    }

    #[test]
    fn pieces_do_not_overlap() {
        let (mut memory, file) = (Memory::default(), file(0x10000));
        memory.add(&piece(0x2000, 0x2000, 0), copy(&file)).unwrap();
        for (address, size) in [(0x1000, 0x1001), (0x3fff, 1), (0x2000, 0x2000), (0, 0x9000)] {
            let again = memory.add(&piece(address, size, 0), copy(&file));
            assert_eq!(again, Err(libc::EEXIST), "{address:#x}");
        }
        assert_eq!(memory.add(&piece(u64::MAX, 2, 0), None), Err(libc::EINVAL));
        assert_eq!(memory.add(&piece(0, 0, 0), None), Err(libc::EINVAL));
    }

    #[test]
    fn memory_beyond_the_end_of_its_file_is_refused() {
        let (mut memory, file) = (Memory::default(), file(0x4000));
        for (size, offset) in [(0x5000, 0), (0x1000, 0x4000), (0x1000, u64::MAX)] {
            assert_eq!(memory.add(&piece(0, size, offset), copy(&file)), Err(libc::EINVAL));
        }
        let pipe = nix::unistd::pipe().unwrap();
        assert!(memory.add(&piece(0, 0x1000, 0), Some(pipe.0)).is_err());
        assert!(memory.pieces.is_empty());
    }

    #[test]
    fn memory_that_is_only_read_is_not_written() {
        let (mut memory, file) = (Memory::default(), file(0x4000));
        let map = DmaMap { writable: false, ..piece(0, 0x1000, 0) };
        memory.add(&map, copy(&file)).unwrap();
        memory.add(&piece(0x1000, 0x1000, 0x1000), copy(&file)).unwrap();
        memory.commit().unwrap();
        let map = Arc::clone(memory.map());
        assert_eq!(map.regions().len(), 2);
        let mut segments = Vec::new();
        assert!(map.translate_for(&mut 0, 0xff0, 0x20, false, &mut segments));
        assert!(!map.translate_for(&mut 0, 0xff0, 0x20, true, &mut segments));
        assert!(map.is_writable(0x1000, 16) && !map.is_writable(0xff0, 16));
    }

    #[test]
    fn memory_without_a_descriptor_has_a_copy() {
        let (mut memory, file) = (Memory::default(), file(0x4000));
        memory.add(&piece(0, 0x1000, 0), copy(&file)).unwrap();
        memory.add(&piece(0x1000, 0x3000, 0), None).unwrap();
        memory.add(&DmaMap { writable: false, ..piece(0x8000, 0x1000, 0) }, None).unwrap();
        memory.commit().unwrap();
        assert_eq!((memory.map().regions().len(), memory.all().regions().len()), (1, 2));
        assert!(memory.is_mostly_copied());
        assert_eq!(memory.copied(0xff0, 0x20), [(0x1000, 0x10)]);
        assert_eq!(memory.copied(0x3ff0, 0x20), [(0x3ff0, 0x10)]);
        assert_eq!((memory.copied(0, 16), memory.copied(u64::MAX, 16)), (vec![], vec![]));
        memory.put(0x2000, &[1, 2, 3]);
        let mut bytes = [0xA5; 4];
        memory.get(0x2000, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 0]);
    }
}
