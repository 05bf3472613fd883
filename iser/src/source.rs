//! Where Data-Out is in the initiator's memory (RFC 7145 6.8 and 7.3.5).
//!
//! The RFC lets the memory of a write cover all of its data, unless the initiator says otherwise by
//! TaggedBufferForSolicitedDataOnly. Linux and libiscsi let it begin behind what they send
//! unsolicited, and do not say so.

use crate::header::Tag;
use rdma::Remote;

/// What the memory that comes with a write covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Covers {
    /// What is not sent unsolicited.
    #[default]
    Solicited,
    /// All data of the command.
    All,
}

impl Covers {
    /// By what the initiator declared, and where it did not, by whether the portal is `strict` about
    /// the RFC.
    pub const fn of(declared: Option<bool>, strict: bool) -> Self {
        match (declared, strict) {
            (Some(true), _) | (None, false) => Self::Solicited,
            (Some(false), _) | (None, true) => Self::All,
        }
    }

    /// Where bytes `offset..offset + len` of the Data-Out are, when the first `unsolicited` bytes
    /// were sent unsolicited. `None` when that is no address.
    pub fn source(self, tag: Tag, unsolicited: u64, offset: u64, len: u32) -> Option<Remote> {
        let skipped = match self {
            Self::Solicited => unsolicited,
            Self::All => 0,
        };
        let addr = tag.base.checked_add(offset.checked_sub(skipped)?)?;
        addr.checked_add(u64::from(len))?;
        Some(Remote { addr, key: tag.key, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x7F00_0000_0200;
    const FIRST_BURST: u32 = 65_536;
    const TAG: Tag = Tag { key: 9, base: BASE };

    #[test]
    fn declared_coverage_wins_over_the_portals() {
        for strict in [false, true] {
            assert_eq!(Covers::of(Some(true), strict), Covers::Solicited);
            assert_eq!(Covers::of(Some(false), strict), Covers::All);
        }
        assert_eq!(Covers::of(None, false), Covers::Solicited);
        assert_eq!(Covers::of(None, true), Covers::All);
    }

    #[test]
    fn reads_begin_where_unsolicited_data_ends() {
        for initial_r2t in [true, false] {
            for immediate in [0, 8192_u32] {
                for edtl in [512, FIRST_BURST, FIRST_BURST + 512, 1 << 20] {
                    let unsolicited =
                        if initial_r2t { immediate.min(edtl) } else { FIRST_BURST.min(edtl) };
                    let len = edtl - unsolicited;
                    let at = |covers: Covers| {
                        covers.source(TAG, unsolicited.into(), unsolicited.into(), len).unwrap()
                    };
                    let linux = Remote { addr: BASE, key: 9, len };
                    assert_eq!(at(Covers::Solicited), linux);
                    let strict = Remote { addr: BASE + u64::from(unsolicited), ..linux };
                    assert_eq!(at(Covers::All), strict);
                }
            }
        }
    }

    #[test]
    fn memory_past_the_end_of_addresses_is_none() {
        let tag = Tag { key: 9, base: u64::MAX - 100 };
        assert_eq!(Covers::All.source(tag, 0, 200, 1), None);
        assert_eq!(Covers::All.source(tag, 0, 0, 101), None);
        assert_eq!(Covers::Solicited.source(tag, 8, 4, 1), None);
        assert!(Covers::All.source(tag, 0, 0, 100).is_some());
    }
}
