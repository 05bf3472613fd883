//! Physical region pages (clause 4.1.1): how a scatter list becomes the pages of one command.
//!
//! A list of PRP entries describes whole pages, except that the first may begin anywhere in its page
//! (at a multiple of 4) and the last may end anywhere. A scatter list with other gaps takes several
//! commands, each of whole blocks.

/// Contiguous memory as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub iova: u64,
    /// Bytes, not 0.
    pub len: usize,
}

/// What a command can carry.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of a memory page in bytes, a power of two.
    pub page: u32,
    /// The most bytes, a multiple of the page size.
    pub most: usize,
    /// Bytes a block, a power of two.
    pub block: u32,
}

/// How far a list has been used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    run: usize,
    offset: usize,
}

impl Cursor {
    /// Whether all of it has.
    pub fn is_at_end(&self, runs: &[Run]) -> bool {
        self.run >= runs.len()
    }

    fn advance(&mut self, runs: &[Run], mut bytes: usize) {
        while let Some(run) = runs.get(self.run) {
            let rest = run.len.saturating_sub(self.offset);
            if bytes < rest {
                self.offset += bytes;
                return;
            }
            bytes -= rest;
            *self = Self { run: self.run + 1, offset: 0 };
        }
    }
}

/// Moves `cursor` over what one command can carry, appends its pages to `pages`, and gives the number
/// of bytes: whole blocks. `None` if not even one block can be reached.
pub fn next(
    runs: &[Run],
    cursor: &mut Cursor,
    limits: &Limits,
    pages: &mut Vec<u64>,
) -> Option<usize> {
    let page = u64::from(limits.page);
    let first_page = pages.len();
    let mut len = 0usize;
    let mut at = cursor.offset;
    for run in runs.get(cursor.run..)? {
        let start = run.iova.checked_add(at as u64)?;
        let rest = run.len.saturating_sub(at);
        at = 0;
        // Where this one goes on, the page before must be used up, and this one begin a page.
        let goes_on = len > 0;
        let begins = if goes_on { start.is_multiple_of(page) } else { start.is_multiple_of(4) };
        if !begins {
            break;
        }
        let take = rest.min(limits.most - len);
        let end = start.checked_add(take as u64)?;
        pages.push(start);
        let mut next = (start & !(page - 1)).checked_add(page)?;
        while next < end {
            pages.push(next);
            next = next.checked_add(page)?;
        }
        len += take;
        if len == limits.most || !end.is_multiple_of(page) {
            break;
        }
    }
    let whole = len - len % limits.block.max(1) as usize;
    if whole == 0 {
        pages.truncate(first_page);
        return None;
    }
    // Pages that only the part of a block at the end needs.
    let offset = pages.get(first_page)? & (page - 1);
    let needed = (offset + whole as u64).div_ceil(page);
    pages.truncate(first_page.saturating_add(usize::try_from(needed).ok()?));
    cursor.advance(runs, whole);
    Some(whole)
}

/// Whether all of a list can be carried by commands.
pub fn fits(runs: &[Run], limits: &Limits, pages: &mut Vec<u64>) -> bool {
    let mut cursor = Cursor::default();
    while !cursor.is_at_end(runs) {
        pages.clear();
        if next(runs, &mut cursor, limits, pages).is_none() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { page: 4096, most: 16384, block: 512 };

    fn commands(runs: &[(u64, usize)]) -> Option<Vec<(usize, Vec<u64>)>> {
        let runs: Vec<Run> = runs.iter().map(|&(iova, len)| Run { iova, len }).collect();
        let (mut cursor, mut all) = (Cursor::default(), Vec::new());
        while !cursor.is_at_end(&runs) {
            let mut pages = Vec::new();
            let len = next(&runs, &mut cursor, &LIMITS, &mut pages)?;
            all.push((len, pages));
        }
        Some(all)
    }

    #[test]
    fn contiguous_memory_is_cut_at_the_largest_transfer() {
        assert_eq!(commands(&[(0x10200, 512)]).unwrap(), [(512, vec![0x10200])]);
        assert_eq!(
            commands(&[(0x10200, 8192)]).unwrap(),
            [(8192, vec![0x10200, 0x11000, 0x12000])]
        );
        let cut = commands(&[(0x10000, 20480)]).unwrap();
        assert_eq!(cut[0], (16384, vec![0x10000, 0x11000, 0x12000, 0x13000]));
        assert_eq!(cut[1], (4096, vec![0x14000]));
    }

    #[test]
    fn whole_pages_anywhere_are_one_command() {
        let pages = commands(&[(0x10E00, 512), (0x50000, 4096), (0x3000, 1024)]).unwrap();
        assert_eq!(pages, [(5632, vec![0x10E00, 0x50000, 0x3000])]);
    }

    #[test]
    fn gaps_at_block_boundaries_take_several_commands() {
        let pages = commands(&[(0x10000, 512), (0x20000, 1024), (0x30200, 512)]).unwrap();
        assert_eq!(pages, [(512, vec![0x10000]), (1024, vec![0x20000]), (512, vec![0x30200])]);
    }

    #[test]
    fn what_no_command_can_carry_is_refused() {
        // A gap inside a block; an address that is not a multiple of 4.
        assert_eq!(commands(&[(0x10000, 100), (0x20000, 412)]), None);
        assert_eq!(commands(&[(0x10002, 512)]), None);
        assert_eq!(commands(&[(u64::MAX - 3, 512)]), None);
    }

    proptest! {
        #[test]
        fn commands_cover_the_list_in_order(
            list in proptest::collection::vec((0u64..64, 0u64..8, 1usize..24), 1..8),
        ) {
            let runs: Vec<Run> = list
                .iter()
                .map(|&(page, block, blocks)| Run {
                    iova: (page << 20) + block * 512,
                    len: blocks * 512,
                })
                .collect();
            let expected: Vec<u64> = runs
                .iter()
                .flat_map(|run| (0..run.len as u64).step_by(512).map(|at| run.iova + at))
                .collect();
            let mut found = Vec::new();
            let mut cursor = Cursor::default();
            while !cursor.is_at_end(&runs) {
                let mut pages = Vec::new();
                let len = next(&runs, &mut cursor, &LIMITS, &mut pages).unwrap();
                prop_assert!(len <= LIMITS.most);
                let mut left = len as u64;
                for (i, page) in pages.iter().enumerate() {
                    prop_assert!(i == 0 || page.is_multiple_of(4096));
                    let bytes = left.min(4096 - page % 4096);
                    found.extend((0..bytes).step_by(512).map(|at| page + at));
                    left -= bytes;
                }
                prop_assert_eq!(left, 0);
            }
            prop_assert_eq!(found, expected);
            let mut scratch = Vec::new();
            prop_assert!(fits(&runs, &LIMITS, &mut scratch));
        }
    }
}
