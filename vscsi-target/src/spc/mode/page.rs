//! Mode pages (SPC-4 7.5, SBC-4 6.5): each is a row of fixed bytes, and the places of the bits that
//! can be changed.

use super::Settings;

/// A mode page or subpage.
#[derive(Debug)]
pub struct Page {
    /// PAGE CODE.
    pub code: u8,
    /// SUBPAGE CODE, 0 for a page.
    pub subpage: u8,
    /// All of it, with every changeable bit clear.
    fixed: &'static [u8],
    /// The changeable bits.
    bits: &'static [Bit],
}

/// A changeable bit: its byte, its mask, and the setting it is.
#[derive(Debug)]
struct Bit {
    byte: usize,
    mask: u8,
    setting: fn(&mut Settings) -> &mut bool,
}

impl Page {
    /// The page with these values.
    pub fn with(&self, settings: Settings) -> Vec<u8> {
        self.fill(self.fixed.to_vec(), settings)
    }

    /// The mask of its changeable bits, headed as the page is.
    pub fn mask(&self, changeable: Settings) -> Vec<u8> {
        let header = self.header_len();
        let mut bytes = vec![0; self.fixed.len()];
        bytes[..header].copy_from_slice(&self.fixed[..header]);
        self.fill(bytes, changeable)
    }

    /// Its length in bytes, with the header.
    pub fn size(&self) -> usize {
        self.fixed.len()
    }

    /// The length of its header: page code and page length, and for a subpage its code.
    pub fn header_len(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }

    /// Whether a setting is in it.
    pub fn is_changeable(&self) -> bool {
        !self.bits.is_empty()
    }

    /// Takes the values of a page as long as this one over.
    pub fn apply(&self, page: &[u8], settings: &mut Settings) {
        for bit in self.bits {
            *(bit.setting)(settings) = page.get(bit.byte).is_some_and(|b| b & bit.mask != 0);
        }
    }

    fn fill(&self, mut bytes: Vec<u8>, mut settings: Settings) -> Vec<u8> {
        for bit in self.bits {
            if *(bit.setting)(&mut settings) {
                bytes[bit.byte] |= bit.mask;
            }
        }
        bytes
    }
}

/// Every page, in the order they are returned.
pub const PAGES: &[Page] = &[
    // Read-Write Error Recovery: nothing is retried or reallocated here.
    Page { code: 0x01, subpage: 0, fixed: &headed::<12>(&[0x01, 0x0A]), bits: &[] },
    // Disconnect-Reconnect: no limits.
    Page { code: 0x02, subpage: 0, fixed: &headed::<16>(&[0x02, 0x0E]), bits: &[] },
    // Caching.
    Page {
        code: 0x08,
        subpage: 0,
        fixed: &headed::<20>(&[0x08, 0x12]),
        bits: &[Bit { byte: 2, mask: 0x04, setting: |s| &mut s.write_cache }],
    },
    // Control: GLTSD (log parameters are not saved), unrestricted reordering of SIMPLE commands.
    Page {
        code: 0x0A,
        subpage: 0,
        fixed: &[0x0A, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0],
        bits: &[
            Bit { byte: 2, mask: 0x04, setting: |s| &mut s.descriptor_sense },
            Bit { byte: 4, mask: 0x08, setting: |s| &mut s.write_protect },
            Bit { byte: 5, mask: 0x40, setting: |s| &mut s.task_aborted },
        ],
    },
    // Control Extension.
    Page { code: 0x0A, subpage: 0x01, fixed: &headed::<32>(&[0x4A, 0x01, 0, 0x1C]), bits: &[] },
    // Power Condition: no timers.
    Page { code: 0x1A, subpage: 0, fixed: &headed::<40>(&[0x1A, 0x26]), bits: &[] },
    // Informational Exceptions Control: DEXCPT, as none are ever generated.
    Page { code: 0x1C, subpage: 0, fixed: &headed::<12>(&[0x1C, 0x0A, 0x08]), bits: &[] },
];

/// These bytes and zeroes up to `LEN`.
const fn headed<const LEN: usize>(start: &[u8]) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut at = 0;
    while at < start.len() {
        bytes[at] = start[at];
        at += 1;
    }
    bytes
}
