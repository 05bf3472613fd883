//! The configuration space of the PCI function (PCI Local Bus 3.0 clause 6, VIRTIO 1.3 clause 4.1):
//! registers, what can be written of them, and the capabilities.

/// What a write means to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The pin or MSI-X was switched.
    Interrupts,
    /// A function level reset.
    Reset,
}

/// An access to a BAR through the configuration space (VIRTIO 1.3, 4.1.4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The number of the BAR.
    pub(super) bar: u8,
    /// Where in it.
    pub(super) offset: u32,
    /// 1, 2 or 4 bytes.
    pub(super) len: usize,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub(super) struct Config {
    bytes: [u8; LEN],
    /// The bits that can be written.
    writable: [u8; LEN],
}

impl Config {
    /// That of a function with this many queues and MSI-X vectors.
    pub(super) fn new(vectors: u16) -> Self {
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN] };
        config.put(0x00, &VENDOR.to_le_bytes());
        config.put(0x02, &DEVICE.to_le_bytes());
        config.put(0x06, &HAS_CAPABILITIES.to_le_bytes());
        // Revision 1 is a device of VIRTIO 1; class 01 00 00 is a SCSI controller.
        config.put(0x08, &[1, 0, 0, 1]);
        config.put(0x2C, &VENDOR.to_le_bytes());
        config.put(0x2E, &SUBSYSTEM.to_le_bytes());
        config.put(0x34, &[MSIX_AT as u8]);
        // INTA.
        config.put(0x3D, &[1]);
        config.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
        // Cache line size, latency timer, interrupt line.
        config.allow(0x0C, &[0xFF, 0xFF]);
        config.allow(0x3C, &[0xFF]);
        for bar in [0x10, 0x14] {
            config.allow(bar, &(!(BAR_LEN - 1)).to_le_bytes());
        }
        config.add_capabilities(vectors);
        config
    }

    /// As after power on.
    pub(super) fn reset(&mut self) {
        let vectors = u16::from_le_bytes([self.byte(MSIX_AT + 2), self.byte(MSIX_AT + 3)]) & 0x7FF;
        *self = Self::new(vectors + 1);
    }

    fn add_capabilities(&mut self, vectors: u16) {
        // MSI-X: control with the size of the table, and where it and the pending bits are.
        self.put(MSIX_AT, &[0x11, COMMON_AT as u8]);
        self.put(MSIX_AT + 2, &(vectors.max(1) - 1).to_le_bytes());
        self.put(MSIX_AT + 4, &(TABLE | MSIX_BAR).to_le_bytes());
        self.put(MSIX_AT + 8, &(PENDING | MSIX_BAR).to_le_bytes());
        self.allow(MSIX_AT + 2, &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        self.virtio(COMMON_AT, NOTIFY_AT, 16, 1, COMMON, super::virtio::LEN as u32);
        self.virtio(NOTIFY_AT, ISR_AT, 20, 2, NOTIFY, PART);
        self.put(NOTIFY_AT + 16, &NOTIFY_STEP.to_le_bytes());
        self.virtio(ISR_AT, DEVICE_AT, 16, 3, ISR, 1);
        self.virtio(DEVICE_AT, ACCESS_AT, 16, 4, SPECIFIC, crate::scsi::config::LEN as u32);
        self.virtio(ACCESS_AT, RESET_AT, 20, 5, 0, 0);
        self.allow(ACCESS_AT + 4, &[0xFF]);
        self.allow(ACCESS_AT + 8, &[0xFF; 12]);
        // Advanced Features: function level reset, and pending transactions, of which there are none.
        self.put(RESET_AT, &[0x13, 0, 6, 3, 0, 0]);
    }

    /// A vendor capability (VIRTIO 1.3, 4.1.4): structure `kind` at an offset of BAR 0.
    fn virtio(&mut self, at: usize, next: usize, len: u8, kind: u8, offset: u32, bytes: u32) {
        self.put(at, &[0x09, next as u8, len, kind]);
        self.put(at + 8, &offset.to_le_bytes());
        self.put(at + 12, &bytes.to_le_bytes());
    }

    /// Reads from `offset` on; beyond the end are zeroes.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            *byte = self.byte(at);
        }
    }

    /// Writes from `offset` on, where that is possible.
    pub(super) fn write(&mut self, offset: usize, from: &[u8]) -> Option<Action> {
        let before = (self.is_pin_off(), self.msix());
        let mut action = None;
        for (at, &byte) in (offset..).zip(from) {
            if let (Some(place), Some(&bits)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *place = *place & !bits | byte & bits;
            }
            // Reads as zero, and does it all at once.
            if at == RESET_AT + 4 && byte & 1 != 0 {
                action = Some(Action::Reset);
            }
        }
        let changed = before != (self.is_pin_off(), self.msix());
        action.or_else(|| changed.then_some(Action::Interrupts))
    }

    /// INTx is disabled.
    pub(super) fn is_pin_off(&self) -> bool {
        self.byte(COMMAND + 1) & 4 != 0
    }

    /// Whether MSI-X is enabled, and whether all of it is masked.
    pub(super) fn msix(&self) -> (bool, bool) {
        let control = self.byte(MSIX_AT + 3);
        (control & 0x80 != 0, control & 0x40 != 0)
    }

    /// The pin's state in the status register.
    pub(super) fn show_pin(&mut self, asserted: bool) {
        let bit = if asserted { 8 } else { 0 };
        self.bytes[0x06] = self.bytes[0x06] & !8 | bit;
    }

    /// The access that the driver has described, if `len` bytes at `offset` are its data.
    pub(super) fn window(&self, offset: usize, len: usize) -> Option<Window> {
        if !(offset < ACCESS_AT + 20 && offset.saturating_add(len) > ACCESS_AT + 16) {
            return None;
        }
        let word =
            |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte: usize| self.byte(at + byte)));
        let len = word(ACCESS_AT + 12) as usize;
        let (bar, offset) = (self.byte(ACCESS_AT + 4), word(ACCESS_AT + 8));
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u32);
        fits.then_some(Window { bar, offset, len })
    }

    /// The data of that access.
    pub(super) fn window_data(&mut self) -> &mut [u8] {
        self.bytes.get_mut(ACCESS_AT + 16..ACCESS_AT + 20).unwrap_or_default()
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn put(&mut self, at: usize, from: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + from.len()) {
            place.copy_from_slice(from);
        }
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        if let Some(place) = self.writable.get_mut(at..at + bits.len()) {
            place.copy_from_slice(bits);
        }
    }
}

/// Bytes of the configuration space.
pub(super) const LEN: usize = 256;
/// Bytes of each BAR.
pub(super) const BAR_LEN: u32 = 0x4000;
/// In BAR 0: the common configuration structure.
pub(super) const COMMON: u32 = 0x0000;
/// In BAR 0: the interrupt status.
pub(super) const ISR: u32 = 0x1000;
/// In BAR 0: the configuration of the SCSI device.
pub(super) const SPECIFIC: u32 = 0x2000;
/// In BAR 0: the doorbells of the queues, [`NOTIFY_STEP`] bytes apart.
pub(super) const NOTIFY: u32 = 0x3000;
/// Bytes from a doorbell to the next.
pub(super) const NOTIFY_STEP: u32 = 4;
/// Bytes of each part of BAR 0.
pub(super) const PART: u32 = 0x1000;
/// In BAR 1: the MSI-X table.
pub(super) const TABLE: u32 = 0x0000;
/// In BAR 1: the pending bits.
pub(super) const PENDING: u32 = 0x2000;

const VENDOR: u16 = 0x1AF4;
/// 0x1040 and the virtio device number 8 (VIRTIO 1.3, 4.1.2).
const DEVICE: u16 = 0x1048;
/// At least 0x40 (4.1.2.1).
const SUBSYSTEM: u16 = 0x0040;
const HAS_CAPABILITIES: u16 = 0x0010;
const COMMAND: usize = 0x04;
/// Memory space, bus master, parity, SERR#, interrupt disable.
const COMMAND_BITS: u16 = 0x0546;
const MSIX_BAR: u32 = 1;
const MSIX_ENABLE: u16 = 0x8000;
const MSIX_MASK: u16 = 0x4000;
/// Where the capabilities are.
const MSIX_AT: usize = 0x40;
const COMMON_AT: usize = 0x50;
const NOTIFY_AT: usize = 0x60;
const ISR_AT: usize = 0x74;
const DEVICE_AT: usize = 0x84;
const ACCESS_AT: usize = 0x94;
const RESET_AT: usize = 0xA8;

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(config: &Config, offset: usize) -> [u8; N] {
        let mut bytes = [0xA5; N];
        config.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn it_is_a_modern_virtio_scsi_function() {
        let config = Config::new(7);
        assert_eq!(read(&config, 0), [0xF4, 0x1A, 0x48, 0x10, 0, 0, 0x10, 0, 1, 0, 0, 1]);
        assert_eq!(read(&config, 0x2C), [0xF4, 0x1A, 0x40, 0]);
        assert_eq!(read(&config, 0x3C), [0, 1, 0, 0]);
    }

    #[test]
    fn its_capabilities_follow_each_other() {
        let config = Config::new(7);
        let (mut at, mut found) = (usize::from(config.byte(0x34)), Vec::new());
        while at != 0 {
            let [id, next, len, kind] = read(&config, at);
            found.push((id, len, kind));
            assert!(next == 0 || usize::from(next) >= at + 6, "{at:#x}");
            at = next.into();
        }
        let virtio = [(9, 16, 1), (9, 20, 2), (9, 16, 3), (9, 16, 4), (9, 20, 5)];
        assert_eq!((found[0], &found[1..6], found[6]), ((0x11, 6, 0), &virtio[..], (0x13, 6, 3)));
        assert_eq!(read(&config, 0x60 + 8), [0, 0x30, 0, 0, 0, 0x10, 0, 0, 4, 0, 0, 0]);
        assert_eq!(read(&config, 0x44), [1, 0, 0, 0, 1, 0x20, 0, 0]);
    }

    #[test]
    fn bars_say_their_size() {
        let mut config = Config::new(7);
        config.write(0x10, &[0xFF; 8]);
        assert_eq!(read(&config, 0x10), [0, 0xC0, 0xFF, 0xFF, 0, 0xC0, 0xFF, 0xFF]);
        config.write(0x18, &[0xFF; 24]);
        assert_eq!(read::<16>(&config, 0x18), [0; 16]);
        assert_eq!(read(&config, 0x30), [0; 4]);
    }

    #[test]
    fn only_what_can_be_written_is() {
        let mut config = Config::new(7);
        config.write(0, &[0xFF; 0x10]);
        let first = [0xF4, 0x1A, 0x48, 0x10, 0x46, 5, 0x10, 0, 1, 0, 0, 1, 0xFF, 0xFF, 0, 0];
        assert_eq!(read(&config, 0), first);
        config.reset();
        assert_eq!(read(&config, 4), [0, 0]);
        assert_eq!(read(&config, 0x42), [6, 0]);
    }

    #[test]
    fn switches_of_interrupts_are_told() {
        let mut config = Config::new(7);
        assert_eq!(config.write(4, &[6, 0]), None);
        assert_eq!(config.write(5, &[4]), Some(Action::Interrupts));
        assert_eq!(config.write(0x42, &[0, 0xC0]), Some(Action::Interrupts));
        assert_eq!((config.is_pin_off(), config.msix()), (true, (true, true)));
        assert_eq!(config.write(0x42, &[0, 0xC0]), None);
        assert_eq!(config.write(0xAC, &[1]), Some(Action::Reset));
        assert_eq!(read(&config, 0xAC), [0]);
    }

    #[test]
    fn the_window_is_what_the_driver_describes() {
        let mut config = Config::new(7);
        config.write(0x98, &[0]);
        config.write(0x9C, &[0x14, 0, 0, 0, 1, 0, 0, 0]);
        let window = Window { bar: 0, offset: 0x14, len: 1 };
        assert_eq!(config.window(0xA4, 1), Some(window));
        assert_eq!(config.window(0xA0, 8), Some(window));
        assert_eq!((config.window(0xA0, 4), config.window(0xA8, 4)), (None, None));
        config.write(0xA0, &[3, 0, 0, 0]);
        assert_eq!(config.window(0xA4, 4), None);
        config.write(0x9C, &[0x15, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(config.window(0xA4, 2), None);
    }

    #[test]
    fn accesses_at_any_place_and_of_any_length_are_harmless() {
        let mut config = Config::new(1);
        for offset in 0..300 {
            config.write(offset, &[0xFF; 40]);
            assert!(config.window(offset, 40).is_none_or(|window| window.len <= 4));
        }
        assert_eq!(read(&config, 254), [0; 8]);
    }
}
