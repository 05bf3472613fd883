//! I/O virtual addresses: which are free, and which memory they stand for.
//!
//! Addresses are given out low first, from the ranges that the IOMMU takes, so that they also fit
//! where an IOMMU has no more than 39 bits.

use std::collections::BTreeMap;

/// The smallest unit that is mapped, in bytes.
pub const PAGE: u64 = 4096;
/// What is at least so large gets an address at a multiple of it, for large pages of the IOMMU.
const LARGE: u64 = 2 << 20;
/// Address 0 is a mistake of somebody more often than an address.
const LOWEST: u64 = 1 << 20;

/// What an IOMMU takes when the kernel does not say: below 39 bits, without the window for
/// interrupts of x86.
pub const USUAL: [(u64, u64); 2] = [(0, 0xFEDF_FFFF), (1 << 32, (1 << 39) - 1)];

/// The free addresses.
#[derive(Debug)]
pub struct Allocator {
    /// Start and end (exclusive) of each free range; none adjoin.
    free: BTreeMap<u64, u64>,
}

impl Allocator {
    /// All of these ranges, each from its first to its last address.
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        let mut free = Self { free: BTreeMap::new() };
        for &(first, last) in ranges {
            let start = first.max(LOWEST).checked_next_multiple_of(PAGE);
            let end = last.saturating_add(1) / PAGE * PAGE;
            if let Some(start) = start.filter(|start| *start < end) {
                free.put(start, end);
            }
        }
        free
    }

    /// Takes `len` bytes, whole pages.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let align = if len >= LARGE { LARGE } else { PAGE };
        let len = len.max(1).checked_next_multiple_of(PAGE)?;
        let (start, end, at) = self.free.iter().find_map(|(&start, &end)| {
            let at = start.checked_next_multiple_of(align)?;
            (end.checked_sub(at)? >= len).then_some((start, end, at))
        })?;
        self.free.remove(&start);
        if start < at {
            self.free.insert(start, at);
        }
        if at + len < end {
            self.free.insert(at + len, end);
        }
        Some(at)
    }

    /// Gives back what [`Allocator::take`] gave.
    pub fn give_back(&mut self, at: u64, len: u64) {
        if let Some(len) = len.max(1).checked_next_multiple_of(PAGE)
            && let Some(end) = at.checked_add(len)
        {
            self.put(at, end);
        }
    }

    fn put(&mut self, mut start: u64, mut end: u64) {
        // What overlaps or adjoins becomes one.
        while let Some((&low, &high)) = self.free.range(..=end).next_back() {
            if high < start {
                break;
            }
            self.free.remove(&low);
            (start, end) = (start.min(low), end.max(high));
        }
        self.free.insert(start, end);
    }
}

/// One piece of memory that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its address in this process.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// What the device calls its first byte.
    pub iova: u64,
}

/// Which memory is mapped where, by address.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// This table and one more entry; `None` if it overlaps one.
    pub fn with(&self, entry: Entry) -> Option<Self> {
        let end = entry.start.checked_add(entry.len)?;
        let at = self.entries.partition_point(|other| other.start < entry.start);
        let before = at.checked_sub(1).and_then(|at| self.entries.get(at));
        if before.is_some_and(|other| other.start + other.len > entry.start)
            || self.entries.get(at).is_some_and(|other| other.start < end)
        {
            return None;
        }
        let mut entries = Vec::with_capacity(self.entries.len() + 1);
        entries.extend_from_slice(&self.entries);
        entries.insert(at, entry);
        Some(Self { entries })
    }

    /// This table without the entry that starts there.
    pub fn without(&self, start: usize) -> Self {
        let entries = self.entries.iter().copied().filter(|entry| entry.start != start).collect();
        Self { entries }
    }

    /// The entries by address.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the device calls the byte at `address`, and how many bytes follow on in the same entry.
    /// `hint` is where the last search ended.
    #[inline]
    pub fn find(&self, hint: &mut usize, address: usize) -> Option<(u64, usize)> {
        let at = |entry: &Entry| {
            let offset = address.wrapping_sub(entry.start);
            (offset < entry.len).then(|| (entry.iova + offset as u64, entry.len - offset))
        };
        if let Some(found) = self.entries.get(*hint).and_then(at) {
            return Some(found);
        }
        let after = self.entries.partition_point(|entry| entry.start <= address);
        *hint = after.checked_sub(1)?;
        self.entries.get(*hint).and_then(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_pieces_are_aligned_and_small_ones_fill_the_gaps() {
        let mut allocator = Allocator::new(&[(0, (8 << 20) - 1)]);
        assert_eq!(allocator.take(4096), Some(1 << 20));
        assert_eq!(allocator.take(2 << 20), Some(2 << 20));
        assert_eq!(allocator.take(100), Some((1 << 20) + 4096));
        assert_eq!(allocator.take(4 << 20), Some(4 << 20));
        assert_eq!(allocator.take(2 << 20), None);
        allocator.give_back(2 << 20, 2 << 20);
        assert_eq!(allocator.take(2 << 20), Some(2 << 20));
    }

    #[test]
    fn addresses_stay_inside_odd_ranges() {
        let mut allocator = Allocator::new(&[(0x10_0001, 0x10_2FFE), (u64::MAX - 4095, u64::MAX)]);
        assert_eq!(allocator.take(4096), Some(0x10_1000));
        assert_eq!(allocator.take(4096), None);
        assert_eq!(Allocator::new(&[]).take(1), None);
    }

    #[test]
    fn the_usual_ranges_leave_the_interrupt_window_out() {
        let mut allocator = Allocator::new(&USUAL);
        assert_eq!(allocator.take(8 << 30), Some(1 << 32));
        assert_eq!(allocator.take(1 << 39), None);
        let low = allocator.take(2 << 30).unwrap();
        assert!(low + (2 << 30) <= 0xFEE0_0000);
    }

    #[test]
    fn table_finds_addresses_and_how_far_they_go() {
        let entry = |start, len, iova| Entry { start, len, iova };
        let table = Table::default().with(entry(0x5000, 0x2000, 0x10_0000)).unwrap();
        let table = table.with(entry(0x1000, 0x1000, 0x20_0000)).unwrap();
        assert!(table.with(entry(0x6FFF, 2, 0)).is_none());
        assert!(table.with(entry(0xFFF, 2, 0)).is_none());
        assert!(table.with(entry(usize::MAX, 2, 0)).is_none());
        let mut hint = 0;
        assert_eq!(table.find(&mut hint, 0x5010), Some((0x10_0010, 0x1FF0)));
        assert_eq!(table.find(&mut hint, 0x1FFF), Some((0x20_0FFF, 1)));
        assert_eq!(table.find(&mut hint, 0x2000), None);
        assert_eq!(table.find(&mut hint, 0), None);
        let table = table.without(0x1000);
        assert_eq!((table.len(), table.find(&mut hint, 0x1000)), (1, None));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_comes_back(
            lens in proptest::collection::vec(1u64..5 << 20, 1..40),
        ) {
            let mut allocator = Allocator::new(&[(0, (1 << 30) - 1)]);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                let Some(at) = allocator.take(*len) else { continue };
                prop_assert!(taken.iter().all(|(low, len2)| at + len <= *low || low + len2 <= at));
                taken.push((at, *len));
                if i % 3 == 0 {
                    let (at, len) = taken.swap_remove(i % taken.len());
                    allocator.give_back(at, len);
                }
            }
            for (at, len) in taken {
                allocator.give_back(at, len);
            }
            prop_assert_eq!(allocator.free, BTreeMap::from([(LOWEST, 1 << 30)]));
        }
    }
}
