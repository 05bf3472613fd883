//! What an NVMe controller says: Identify data, and completions.

use nvme::wire::{ControllerData, Cqe, IDENTIFY_BYTES, NamespaceData, active_namespaces};

use crate::Seed;

/// Identify data structures, of the controller and of a namespace, and lists of namespaces.
pub fn identify(data: &[u8]) {
    let mut page = [0; IDENTIFY_BYTES];
    let len = data.len().min(page.len());
    page[..len].copy_from_slice(&data[..len]);

    let controller = ControllerData::parse(&page);
    for text in [&controller.serial, &controller.model, &controller.firmware] {
        assert!(text.len() <= 40 && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    }
    assert!(controller.atomic_blocks >= 1);
    assert!(controller.most_bytes(4096) >= 4096 && controller.most_bytes(128 << 20) >= 4096);

    if let Ok(namespace) = NamespaceData::parse(&page) {
        assert!(matches!(namespace.block_size, 512 | 4096));
        let bytes = namespace.blocks.checked_mul(namespace.block_size.into());
        assert!(namespace.blocks > 0 && bytes.is_some_and(|bytes| bytes <= i64::MAX as u64));
        assert!(namespace.deallocation_granularity >= 1);
        assert!(namespace.atomic_blocks != Some(0));
    }
    let active = active_namespaces(&page);
    assert!(active.len() <= 1024 && !active.contains(&0));
}

/// Completion queue entries, one after the other.
pub fn completion(data: &[u8]) {
    for entry in data.chunks_exact(Cqe::BYTES) {
        let Ok(entry) = entry.try_into() else { continue };
        let cqe = Cqe::parse(entry);
        assert_eq!(Cqe::parse(&cqe.emit()), cqe);
        let error = cqe.status.as_error();
        assert_eq!(error.is_none(), cqe.status.is_success());
        assert!(!(cqe.status.may_retry() && cqe.status.is_success()));
        assert!(!cqe.status.to_string().is_empty());
    }
}

/// Identify data as controllers give it.
pub fn identify_seeds() -> Vec<Seed> {
    let mut controller = vec![0; IDENTIFY_BYTES];
    controller[..4].copy_from_slice(&[0x36, 0x1B, 0xF4, 0x1A]);
    controller[4..24].copy_from_slice(b"abc                 ");
    controller[24..64].copy_from_slice(b"QEMU NVMe Ctrl                          ");
    controller[64..72].copy_from_slice(b"7.2.0   ");
    controller[77] = 7;
    controller[516] = 0;
    controller[517] = 1;
    controller[520..522].copy_from_slice(&[0x5D, 1]);
    controller[525] = 7;

    let mut namespace = vec![0; IDENTIFY_BYTES];
    namespace[..8].copy_from_slice(&0x80000_u64.to_le_bytes());
    namespace[24] = 0x14;
    namespace[25] = 7;
    namespace[26] = 4;
    namespace[33] = 9;
    for (format, shift) in [(0, 9), (4, 12)] {
        namespace[128 + 4 * format + 2] = shift;
    }
    let mut list = vec![0; IDENTIFY_BYTES];
    list[..12].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 0xFF, 0xFF, 0, 0]);
    vec![
        Seed { name: "controller", bytes: controller },
        Seed { name: "namespace", bytes: namespace },
        Seed { name: "list", bytes: list },
        Seed { name: "short", bytes: vec![0xFF; 100] },
    ]
}

/// Completions of each kind.
pub fn completion_seeds() -> Vec<Seed> {
    let entry = |status: u16| {
        let mut bytes = vec![0; Cqe::BYTES];
        bytes[8..14].copy_from_slice(&[1, 0, 1, 0, 0x34, 0x12]);
        bytes[14..].copy_from_slice(&(status << 1 | 1).to_le_bytes());
        bytes
    };
    let statuses = [0, 0x81, 0x281 | 1 << 14, 0x20, 0x83, 0x7FFF];
    vec![
        Seed { name: "success", bytes: entry(0) },
        Seed { name: "several", bytes: statuses.into_iter().flat_map(entry).collect() },
        Seed { name: "ones", bytes: vec![0xFF; 40] },
    ]
}
