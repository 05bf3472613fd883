//! The memory that a client maps for the device, piece by piece.
//!
//! Under an emulated IOMMU the pieces are pages, thousands of them, that come and go with every
//! request of the guest. The file behind them is mapped as a whole, once, so that pieces that adjoin
//! in it are one region, and a piece costs no system call.

use std::{collections::BTreeMap, fs::File, os::fd::OwnedFd, os::unix::fs::MetadataExt, sync::Arc};

use crate::memory::{GuestMap, MAX_REGIONS, MemoryError, Region};

use super::message::{DmaMap, DmaUnmap, MOST_MAPS};

/// What a client has mapped.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pieces: BTreeMap<u64, Piece>,
    files: Vec<Whole>,
    map: Arc<GuestMap>,
    /// The pieces are not those of `map`.
    is_changed: bool,
    /// What was in `map` and is no piece any more.
    gone: Vec<Region>,
}

/// One DMA_MAP.
#[derive(Debug)]
struct Piece {
    size: u64,
    /// Where it is; `None` without a descriptor.
    region: Option<Region>,
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
        let region = match descriptor {
            None => None,
            Some(file) => Some(self.place(map, offset, file.into()).map_err(|error| {
                tracing::warn!("the VMM shares memory that cannot be used: {error}");
                errno(&error)
            })?),
        };
        self.pieces.insert(address, Piece { size, region });
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

    /// The new map and what is gone since the last one, if anything changed.
    pub(super) fn commit(&mut self) -> Option<(Arc<GuestMap>, Arc<[Region]>)> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let mut regions: Vec<Region> = Vec::new();
        for region in self.pieces.values().filter_map(|piece| piece.region.as_ref()) {
            if !regions.last_mut().is_some_and(|last| last.join(region)) {
                regions.push(region.clone());
            }
        }
        // Not before: what goes and comes again with other borders stays where it is.
        self.files.retain(|whole| whole.pieces > 0);
        // Pieces do not overlap.
        let map = Arc::new(GuestMap::sorted(regions).unwrap_or_default());
        self.map = Arc::clone(&map);
        let gone = std::mem::take(&mut self.gone);
        let gone = gone.into_iter().filter(|region| !map.has(region)).collect();
        Some((map, gone))
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

impl Whole {
    fn has(&self, region: &Region) -> bool {
        self.region.is_same(region)
    }
}

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

    use nix::sys::memfd::{MFdFlags, memfd_create};

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
        let (map, gone) = memory.commit().unwrap();
        assert_eq!((map.regions().len(), gone.len()), (2, 0));
        assert!(map.at(0x8000_0ff0, 0x1020).is_some() && map.at(0x8000_2ff0, 0x20).is_none());
        assert!(memory.commit().is_none());
        // The middle goes.
        memory.remove(&range(0x8000_1000, 0x1000)).unwrap();
        let (map, gone) = memory.commit().unwrap();
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
        let host = memory.commit().unwrap().0.at(0x9000, 8);
        memory.remove(&range(0, 0x10000)).unwrap();
        memory.add(&piece(0, 0x8000, 0), copy(&file)).unwrap();
        memory.add(&piece(0x9000, 0x7000, 0x9000), copy(&file)).unwrap();
        let (map, gone) = memory.commit().unwrap();
        assert_eq!((map.at(0x9000, 8), gone.len()), (host, 1));
        memory.remove(&range(0x9000, 0x7000)).unwrap();
        memory.add(&piece(0x9000, 0x7000, 0x9000), copy(&file)).unwrap();
        assert_eq!(memory.commit().unwrap().1.len(), 0);
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
        let (map, _) = memory.commit().unwrap();
        assert_eq!(map.regions().len(), 2);
        let mut segments = Vec::new();
        assert!(map.translate_for(&mut 0, 0xff0, 0x20, false, &mut segments));
        assert!(!map.translate_for(&mut 0, 0xff0, 0x20, true, &mut segments));
        assert!(map.is_writable(0x1000, 16) && !map.is_writable(0xff0, 16));
    }

    #[test]
    fn memory_without_a_descriptor_is_not_mapped() {
        let (mut memory, file) = (Memory::default(), file(0x4000));
        memory.add(&piece(0, 0x1000, 0), copy(&file)).unwrap();
        memory.add(&piece(0x1000, 0x3000, 0), None).unwrap();
        assert_eq!(memory.commit().unwrap().0.regions().len(), 1);
    }
}
