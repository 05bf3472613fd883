use super::*;

const MIB: u64 = 1 << 20;

fn read(mem: &Mem, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xa5; len];
    mem.read_at(offset, &mut buffer).unwrap();
    buffer
}

/// What the kernel holds for the medium.
fn resident(mem: &Mem) -> u64 {
    const STEP: usize = 1 << 30;
    let len = mem.len() as usize;
    let mut pages = vec![0u8; STEP / 4096];
    let mut count = 0;
    for at in (0..len).step_by(STEP) {
        let part = STEP.min(len - at);
        // SAFETY: inside the mapping, and a byte for each of its pages.
        let done = unsafe { libc::mincore(mem.memory.at(at).cast(), part, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        count += pages[..part.div_ceil(4096)].iter().filter(|page| **page & 1 == 1).count();
    }
    count as u64 * 4096
}

#[test]
fn written_bytes_read_back_across_granules() {
    let mem = Mem::new(MIB, 512).unwrap();
    let data: Vec<u8> = (0..10_240u32).map(|i| i as u8 ^ 0x5a).collect();
    mem.write_at(3584, &data).unwrap();
    assert_eq!(read(&mem, 3584, data.len()), data);
    assert_eq!(read(&mem, 0, 3584), vec![0; 3584]);
}

#[test]
fn segments_are_written_and_read_in_order() {
    let mem = Mem::new(MIB, 512).unwrap();
    let (mut a, mut b) = ([1u8; 512], [2u8; 1024]);
    let mut ring = Ring::disabled();
    let segments = [Segment::of(&mut a), Segment::of(&mut b)];
    let op = Op::Write { fua: true };
    assert!(matches!(mem.start(&mut ring, 1, op, 512, &segments), Started::Done(Ok(()))));
    let mut back = [0u8; 2048];
    let segments = [Segment::of(&mut back)];
    assert!(matches!(mem.start(&mut ring, 1, Op::Read, 0, &segments), Started::Done(Ok(()))));
    assert_eq!(back[..512], [0; 512]);
    assert_eq!(back[512..1024], [1; 512]);
    assert_eq!(back[1024..], [2; 1024]);
}

#[test]
fn range_past_the_end_is_refused() {
    let mem = Mem::new(MIB, 512).unwrap();
    assert!(mem.read_at(MIB - 512, &mut [0; 1024]).is_err());
    assert!(mem.write_at(u64::MAX - 511, &[0; 512]).is_err());
    assert!(mem.unmap(MIB, 512).is_err());
    assert!(mem.lend(MIB, 512).is_none());
    assert!(mem.extent(MIB + 512).is_err());
}

#[test]
fn reading_and_lending_holes_uses_no_memory() {
    let mem = Mem::new(64 * MIB, 4096).unwrap();
    assert_eq!(read(&mem, 0, 8 << 20), vec![0; 8 << 20]);
    let zeroes = mem.lend(0, 4 << 20).unwrap();
    // SAFETY: lent, and `mem` is alive.
    assert!(unsafe { std::slice::from_raw_parts(zeroes.base, zeroes.len) }.iter().all(|b| *b == 0));
    assert_eq!((mem.allocated(), resident(&mem)), (0, 0));
}

#[test]
fn lend_of_written_range_is_the_medium_itself_and_of_a_mixture_none() {
    let mem = Mem::new(MIB, 4096).unwrap();
    mem.write_at(4096, &[7; 8192]).unwrap();
    let lent = mem.lend(4096, 8192).unwrap();
    mem.write_at(4096, &[8; 1]).unwrap();
    // SAFETY: lent, and `mem` is alive.
    assert_eq!(unsafe { *lent.base }, 8);
    assert!(mem.lend(0, 8192).is_none());
    assert!(mem.lend(8192, 8192).is_none());
}

#[test]
fn unmap_gives_pages_back_and_zeroes_the_edges() {
    let mem = Mem::new(MIB, 512).unwrap();
    mem.write_at(0, &[0xff; 32768]).unwrap();
    mem.unmap(512, 16384).unwrap();
    let back = read(&mem, 0, 32768);
    assert_eq!(back[..512], [0xff; 512]);
    assert_eq!(back[512..16896], [0; 16384]);
    assert_eq!(back[16896..], [0xff; 32768 - 16896]);
    assert_eq!(mem.allocated(), 32768 - 3 * 4096);
    assert_eq!(resident(&mem), mem.allocated());
}

#[test]
fn unmap_inside_one_granule_only_zeroes() {
    let mem = Mem::new(MIB, 512).unwrap();
    mem.write_at(0, &[0xff; 4096]).unwrap();
    mem.unmap(1024, 512).unwrap();
    let back = read(&mem, 0, 4096);
    assert_eq!(back[1024..1536], [0; 512]);
    assert_eq!(back[1536..], [0xff; 2560]);
    assert_eq!(mem.allocated(), 4096);
}

#[test]
fn write_zeroes_stays_mapped_unless_it_may_unmap() {
    let mem = Mem::new(MIB, 4096).unwrap();
    mem.write_zeroes(0, 8192, false).unwrap();
    assert_eq!(mem.extent(0).unwrap(), Extent { mapped: true, len: 8192 });
    mem.write_zeroes(0, 4096, true).unwrap();
    assert_eq!(mem.extent(0).unwrap(), Extent { mapped: false, len: 4096 });
}

#[test]
fn extents_alternate_and_end_with_the_medium() {
    // Long enough for runs over several words of the map.
    let mem = Mem::new(4 * MIB, 512).unwrap();
    mem.write_at(4096, &vec![1; 600 * 4096]).unwrap();
    assert_eq!(mem.extent(0).unwrap(), Extent { mapped: false, len: 4096 });
    assert_eq!(mem.extent(512).unwrap(), Extent { mapped: false, len: 3584 });
    assert_eq!(mem.extent(4608).unwrap(), Extent { mapped: true, len: 600 * 4096 - 512 });
    let rest = 4 * MIB - 601 * 4096;
    assert_eq!(mem.extent(601 * 4096).unwrap(), Extent { mapped: false, len: rest });
}

#[test]
fn growth_keeps_lent_segments_and_content() {
    let mem = Mem::new(MIB, 512).unwrap();
    mem.write_at(0, &[9; 4096]).unwrap();
    let lent = mem.lend(0, 4096).unwrap();
    assert_eq!(mem.resize(Some(8 * MIB)).unwrap(), 8 * MIB);
    assert_eq!(mem.lend(0, 4096).unwrap().base, lent.base);
    mem.write_at(8 * MIB - 512, &[3; 512]).unwrap();
    assert_eq!(read(&mem, 8 * MIB - 512, 512), [3; 512]);
}

#[test]
fn shrunk_medium_refuses_the_lost_blocks_and_lent_memory_still_reads() {
    let mem = Mem::new(MIB, 512).unwrap();
    mem.write_at(MIB - 4096, &[9; 4096]).unwrap();
    let lent = mem.lend(MIB - 4096, 4096).unwrap();
    assert_eq!(mem.resize(Some(MIB / 2)).unwrap(), MIB / 2);
    assert!(mem.read_at(MIB / 2, &mut [0; 512]).is_err());
    // SAFETY: lent, and `mem` is alive.
    assert_eq!(unsafe { *lent.base }, 0);
    mem.resize(Some(MIB)).unwrap();
    assert_eq!(read(&mem, MIB - 4096, 4096), vec![0; 4096]);
}

#[test]
fn sizes_that_are_not_blocks_or_too_large_are_refused() {
    assert!(Mem::new(1000, 512).is_err());
    assert!(Mem::new(0, 512).is_err());
    assert!(Mem::new(4096, 1024).is_err());
    let mem = Mem::new(MIB, 4096).unwrap();
    assert!(mem.resize(Some(512)).is_err());
    assert!(mem.resize(Some(1 << 60)).is_err());
    assert_eq!(mem.resize(None).unwrap(), MIB);
}

#[test]
fn a_large_sparse_medium_costs_only_what_is_written() {
    let mem = Mem::new(1 << 40, 4096).unwrap();
    mem.write_at((1 << 40) - 4096, &[1; 4096]).unwrap();
    assert_eq!(resident(&mem), 4096);
}

#[test]
fn what_is_unmapped_in_a_disk_with_huge_pages_is_given_back() {
    let mem = Mem::new(16 * MIB, 512).unwrap();
    mem.write_at(0, &vec![7; 16 << 20]).unwrap();
    assert_eq!(resident(&mem), 16 * MIB);
    mem.unmap(4 * MIB + 4096, 4 * MIB).unwrap();
    assert_eq!(resident(&mem), 12 * MIB);
    assert_eq!(read(&mem, 4 * MIB, 4096), vec![7; 4096]);
    assert_eq!(read(&mem, 4 * MIB + 4096, 4 << 20), vec![0; 4 << 20]);
}
