//! Controller properties (clause 3.1.3): what they mean, not how they are reached.

/// Where the properties are in the first base address register, in bytes.
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: usize = 0x00;
    /// Version, 4 bytes.
    pub const VS: usize = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: usize = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: usize = 0x1C;
    /// Admin Queue Attributes, 4 bytes.
    pub const AQA: usize = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: usize = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: usize = 0x30;
    /// The first doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// Controller Capabilities (3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// The most entries an I/O queue may have: 2 to 65536.
    pub fn most_entries(self) -> u32 {
        (self.0 as u16 as u32 + 1).max(2)
    }

    /// How long enabling and disabling may take, in milliseconds.
    pub fn timeout(self) -> u64 {
        (self.0 >> 24 & 0xFF).max(1) * 500
    }

    /// Bytes between doorbells: 4 to 128 KiB.
    pub fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xF)
    }

    /// Whether it has the NVM command set.
    pub fn has_nvm(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// The smallest memory page size it takes, in bytes.
    pub fn smallest_page(self) -> u32 {
        4096 << (self.0 >> 48 & 0xF)
    }
}

/// The version (3.1.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xFF, self.0 & 0xFF)
    }
}

/// Controller Configuration (3.1.3.5) as this driver sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Memory page size in bytes.
    pub page: u32,
}

impl Configuration {
    /// The value that enables the controller: NVM command set, round robin, 64-byte submission and
    /// 16-byte completion entries.
    pub fn emit(self) -> u32 {
        let page = (self.page.max(4096).trailing_zeros() - 12) & 0xF;
        4 << 20 | 6 << 16 | page << 7 | 1
    }

    /// Of any value: the same, with a normal shutdown asked for.
    pub fn shutdown(value: u32) -> u32 {
        value & !(3 << 14) | 1 << 14
    }
}

/// Controller Status (3.1.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// The device does not answer: it is gone, or its bus is.
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// It takes commands.
    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// Fatal: only a reset helps.
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// A shutdown that was asked for is done.
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_an_emulated_controller() {
        // QEMU 7.2: 2048 entries, 7.5 s, stride 4, NVM, pages of 4 KiB to 64 KiB.
        let cap = Cap(0x0040_0020_0F01_07FF);
        assert_eq!((cap.most_entries(), cap.timeout(), cap.doorbell_stride()), (2048, 7500, 4));
        assert!(cap.has_nvm());
        assert_eq!(cap.smallest_page(), 4096);
    }

    #[test]
    fn extreme_capabilities_stay_in_range() {
        assert_eq!((Cap(0).most_entries(), Cap(0).timeout()), (2, 500));
        assert!(!Cap(0).has_nvm());
        let cap = Cap(u64::MAX);
        assert_eq!((cap.most_entries(), cap.timeout()), (65536, 127_500));
        assert_eq!((cap.doorbell_stride(), cap.smallest_page()), (4 << 15, 128 << 20));
    }

    #[test]
    fn configuration_has_entry_sizes_page_size_and_enable() {
        assert_eq!(Configuration { page: 4096 }.emit(), 0x0046_0001);
        assert_eq!(Configuration { page: 65536 }.emit(), 0x0046_0201);
        assert_eq!(Configuration::shutdown(0x0046_8001), 0x0046_4001);
    }

    #[test]
    fn status_of_a_removed_device_is_all_ones() {
        assert!(Csts(u32::MAX).is_gone());
        assert!(Csts(1).is_ready() && !Csts(1).is_fatal() && !Csts(1).is_gone());
        assert!(Csts(3).is_fatal() && Csts(9).is_shut_down());
        assert_eq!(Version(0x0001_0400).to_string(), "1.4.0");
    }
}
