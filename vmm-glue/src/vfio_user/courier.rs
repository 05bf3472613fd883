//! A ring in memory that the client shares no descriptor of.
//!
//! The device's queue works on a copy of that memory. The thread of the connection carries to the copy
//! what the driver makes available, before the queue is told, and back what the queue has used, before
//! the driver is: descriptors and data by DMA_READ, data and used entries by DMA_WRITE. The queue never
//! waits for a message, and a guest that changes its memory meanwhile changes nothing in the copy.
//!
//! Values only: who has the socket and the copy is `carry`.

use vmm_sys_util::eventfd::EventFd;

/// What is remembered of one ring.
#[derive(Debug)]
pub(super) struct Courier {
    /// Entries.
    pub(super) size: u16,
    /// Descriptor area, driver area, device area.
    pub(super) areas: [u64; 3],
    /// The queue is told by it.
    pub(super) kick: EventFd,
    /// The available index up to which the copy has all.
    pub(super) available: u16,
    /// The used index up to which the driver has all.
    pub(super) used: u16,
    /// What each chain in flight lets the device write, by its head.
    pub(super) chains: Vec<Vec<Buffer>>,
}

/// A piece of the driver's memory: address and bytes.
pub(super) type Buffer = (u64, u32);

/// A descriptor (VIRTIO 1.3, 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    pub(super) fn is_table(&self) -> bool {
        self.flags & 4 != 0
    }

    pub(super) fn is_written(&self) -> bool {
        self.flags & 2 != 0
    }
}

impl Courier {
    pub(super) fn new(size: u16, areas: [u64; 3], kick: EventFd) -> Self {
        let chains = vec![Vec::new(); size.into()];
        Self { size, areas, kick, available: 0, used: 0, chains }
    }

    /// The heads that became available: the driver area says so. `None` if it cannot be.
    pub(super) fn heads(&self, driver: &[u8]) -> Option<Vec<u16>> {
        let index = half(driver, 2)?;
        let count = index.wrapping_sub(self.available);
        if count > self.size {
            return None;
        }
        let entry = |n: u16| {
            let at = usize::from(self.available.wrapping_add(n)) % usize::from(self.size);
            half(driver, 4 + 2 * at)
        };
        (0..count).map(entry).collect()
    }
}

/// A chain from `head` on through a table of descriptors, as long as that makes sense: the queue finds
/// out itself what does not.
pub(super) fn chain(table: &[u8], head: u16) -> Vec<Descriptor> {
    let (entries, _) = table.as_chunks::<16>();
    let mut found = Vec::new();
    let mut at = head;
    while found.len() < entries.len() {
        let Some(entry) = entries.get(usize::from(at)) else { break };
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *entry;
        let descriptor = Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        };
        found.push(descriptor);
        if descriptor.flags & 1 == 0 {
            break;
        }
        at = descriptor.next;
    }
    found
}

/// 16 bits, little-endian.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let [low, high] = bytes.get(at..at + 2)? else { return None };
    Some(u16::from_le_bytes([*low, *high]))
}

/// Data of one request at most; more is no request of a disk.
pub(super) const MOST_CARRIED: u64 = 64 << 20;
/// Bytes of an indirect table at most.
pub(super) const MOST_TABLE: u32 = 4096 * 16;

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn a_chain_ends_where_it_ends() {
        let mut table = vec![0xA5; 48];
        table[..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0]);
        table[32..].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 9, 9]);
        let found = chain(&table, 0);
        assert_eq!(found.iter().map(|d| (d.address, d.len)).collect::<Vec<_>>(), [(1, 2), (3, 4)]);
        assert!(!found[0].is_written() && found[1].is_written() && !found[1].is_table());
        assert_eq!(chain(&table, 3), []);
        // A loop.
        table[46..48].copy_from_slice(&[0, 0]);
        table[44] = 3;
        assert_eq!(chain(&table, 0).len(), 3);
    }

    #[test]
    fn what_became_available_is_what_the_index_says() {
        let mut courier = Courier::new(4, [0; 3], EventFd::new(EFD_NONBLOCK).unwrap());
        courier.available = 0xFFFE;
        let driver = [0, 0, 1, 0, 10, 0, 11, 0, 12, 0, 13, 0];
        assert_eq!(courier.heads(&driver), Some(vec![12, 13, 10]));
        courier.available = 1;
        assert_eq!(courier.heads(&driver), Some(vec![]));
        courier.available = 0xFFF0;
        assert_eq!(courier.heads(&driver), None);
        courier.available = 0;
        assert_eq!(courier.heads(&driver[..4]), None);
    }
}
