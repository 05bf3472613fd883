//! The common configuration structure of a virtio device on PCI (VIRTIO 1.3, 4.1.4.3): a file of
//! registers that says what a write means, and does nothing.

use crate::ring::feature;

/// What a write means to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Status 0: stop everything and begin anew. Call [`Registers::reset`] when that is done.
    Reset,
    /// DRIVER_OK: the queues that are enabled start.
    Start,
    /// A queue is enabled, and the driver is ready.
    Enable(u16),
    /// A queue stops. Call [`Registers::reset_queue`] when it has.
    ResetQueue(u16),
    /// Interrupts go elsewhere.
    Vectors,
}

/// The registers of a device.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    offered: u64,
    /// MSI-X vectors there are.
    vectors: u16,
    /// Half of the features that is read, and half that is written.
    device_select: u32,
    driver_select: u32,
    /// What the driver accepted.
    pub(super) features: u64,
    /// The vector of configuration changes.
    pub(super) config_vector: u16,
    status: u8,
    select: u16,
    queues: Vec<Queue>,
}

/// A queue, as the driver describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    /// Entries.
    pub(super) size: u16,
    /// The MSI-X vector, or [`NO_VECTOR`].
    pub(super) vector: u16,
    /// The driver has described it.
    pub(super) enabled: bool,
    /// It is stopping.
    resetting: bool,
    /// Descriptor area, driver area, device area.
    pub(super) areas: [u64; 3],
}

impl Registers {
    /// Those of a device with this many queues that offers these features.
    pub(super) fn new(offered: u64, queues: u16, vectors: u16) -> Self {
        Self {
            offered,
            vectors,
            device_select: 0,
            driver_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            select: 0,
            queues: vec![Queue::NEW; usize::from(queues)],
        }
    }

    /// As after power on.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.offered, self.queues.len() as u16, self.vectors);
    }

    /// Offers other features, if the driver has not looked yet.
    pub(super) fn offer(&mut self, features: u64) {
        if self.status & status::DRIVER == 0 {
            self.offered = features;
        }
    }

    /// A queue.
    pub(super) fn queue(&self, index: u16) -> Option<&Queue> {
        self.queues.get(usize::from(index))
    }

    /// A queue has stopped.
    pub(super) fn reset_queue(&mut self, index: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            *queue = Queue::NEW;
        }
    }

    /// Whether the driver has said DRIVER_OK, and nothing is wrong.
    pub(super) fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The device cannot go on; true if the driver is to be told.
    pub(super) fn need_reset(&mut self) -> bool {
        let known = self.status & status::NEEDS_RESET != 0;
        self.status |= status::NEEDS_RESET;
        !known && self.status & status::DRIVER_OK != 0
    }

    /// Reads from `offset` on; beyond the end are zeroes.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let bytes = self.bytes();
        for (at, byte) in (offset..).zip(into) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes from `offset` on; what cannot be is passed over.
    pub(super) fn write(&mut self, offset: usize, from: &[u8]) -> Option<Action> {
        let mut bytes = self.bytes();
        let end = offset.saturating_add(from.len());
        for (at, &byte) in (offset..).zip(from) {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let mut action = None;
        for (at, len) in FIELDS {
            if at < end && offset < at + len {
                let field = bytes.get(at..at + len).unwrap_or_default();
                let value = field.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                action = self.set(at, value).or(action);
            }
        }
        action
    }

    fn set(&mut self, field: usize, value: u32) -> Option<Action> {
        match field {
            at::DEVICE_FEATURE_SELECT => self.device_select = value,
            at::DRIVER_FEATURE_SELECT => self.driver_select = value,
            at::DRIVER_FEATURE => {
                let shift = match self.driver_select {
                    0 => 0,
                    1 => 32,
                    _ => return None,
                };
                // What was agreed on stays.
                if self.status & status::FEATURES_OK == 0 {
                    let other = self.features & !(u64::from(u32::MAX) << shift);
                    self.features = other | u64::from(value) << shift;
                }
            }
            at::CONFIG_VECTOR => {
                self.config_vector = self.vector(value);
                return Some(Action::Vectors);
            }
            at::STATUS => return self.set_status(value as u8),
            at::QUEUE_SELECT => self.select = value as u16,
            at::QUEUE_VECTOR => {
                let vector = self.vector(value);
                self.selected()?.vector = vector;
                return Some(Action::Vectors);
            }
            at::QUEUE_ENABLE if value == 1 => {
                let (index, is_live) = (self.select, self.is_live());
                let queue = self.selected().filter(|queue| !queue.enabled)?;
                queue.enabled = true;
                return is_live.then_some(Action::Enable(index));
            }
            at::QUEUE_RESET if value == 1 => {
                let negotiated = self.features & feature::RING_RESET != 0;
                let index = self.select;
                let queue = self.selected().filter(|queue| negotiated && queue.enabled)?;
                queue.resetting = true;
                return Some(Action::ResetQueue(index));
            }
            at::QUEUE_SIZE => {
                let queue = self.selected().filter(|queue| !queue.enabled)?;
                queue.size = (value as u16).clamp(1, MOST_ENTRIES);
            }
            at::QUEUE_AREAS..at::QUEUE_NOTIFY_DATA => {
                let queue = self.selected().filter(|queue| !queue.enabled)?;
                let place = field - at::QUEUE_AREAS;
                let area = queue.areas.get_mut(place / 8)?;
                let shift = place % 8 * 8;
                *area = *area & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
        None
    }

    fn set_status(&mut self, value: u8) -> Option<Action> {
        if value == 0 {
            return Some(Action::Reset);
        }
        let before = self.status;
        // Only a reset clears what was set, and the driver cannot say that a reset is needed.
        self.status |= value & !status::NEEDS_RESET;
        if self.status & status::FEATURES_OK != 0 && !self.has_agreed() {
            self.status &= !status::FEATURES_OK;
        }
        let is_new = before & status::DRIVER_OK == 0 && self.is_live();
        is_new.then_some(Action::Start)
    }

    /// Whether the driver's features can be served. One that does not accept ACCESS_PLATFORM uses
    /// addresses of its own all the same, and finds out.
    fn has_agreed(&self) -> bool {
        self.features & !self.offered == 0 && self.features & feature::VERSION_1 != 0
    }

    fn vector(&self, value: u32) -> u16 {
        // A vector that is not there reads back as none (4.1.5.1.2.1).
        u16::try_from(value).ok().filter(|&vector| vector < self.vectors).unwrap_or(NO_VECTOR)
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.select))
    }

    fn bytes(&self) -> [u8; LEN] {
        let half = |word: u64, select: u32| match select {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        let mut bytes = [0; LEN];
        let mut put = |at: usize, from: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + from.len()) {
                place.copy_from_slice(from);
            }
        };
        put(at::DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(at::DEVICE_FEATURE, &half(self.offered, self.device_select).to_le_bytes());
        put(at::DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(at::DRIVER_FEATURE, &half(self.features, self.driver_select).to_le_bytes());
        put(at::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(at::QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(at::STATUS, &[self.status]);
        put(at::QUEUE_SELECT, &self.select.to_le_bytes());
        // A queue that is not there has size 0 (4.1.5.1.3).
        if let Some(queue) = self.queue(self.select) {
            put(at::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(at::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(at::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(at::QUEUE_NOTIFY_OFFSET, &self.select.to_le_bytes());
            put(at::QUEUE_AREAS, queue.areas.map(u64::to_le_bytes).as_flattened());
            put(at::QUEUE_RESET, &u16::from(queue.resetting).to_le_bytes());
        } else {
            put(at::QUEUE_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        bytes
    }
}

impl Queue {
    const NEW: Self = Self {
        size: MOST_ENTRIES,
        vector: NO_VECTOR,
        enabled: false,
        resetting: false,
        areas: [0; 3],
    };
}

/// Bits of the device status (VIRTIO 1.3, 2.1).
mod status {
    /// The driver knows how to drive the device.
    pub(super) const DRIVER: u8 = 2;
    /// The driver is ready.
    pub(super) const DRIVER_OK: u8 = 4;
    /// The features are agreed on.
    pub(super) const FEATURES_OK: u8 = 8;
    /// Only a reset helps.
    pub(super) const NEEDS_RESET: u8 = 0x40;
}

/// Where the fields are.
mod at {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0C;
    pub(super) const CONFIG_VECTOR: usize = 0x10;
    pub(super) const QUEUES: usize = 0x12;
    pub(super) const STATUS: usize = 0x14;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_VECTOR: usize = 0x1A;
    pub(super) const QUEUE_ENABLE: usize = 0x1C;
    pub(super) const QUEUE_NOTIFY_OFFSET: usize = 0x1E;
    pub(super) const QUEUE_AREAS: usize = 0x20;
    pub(super) const QUEUE_NOTIFY_DATA: usize = 0x38;
    pub(super) const QUEUE_RESET: usize = 0x3A;
}

/// The fields that can be written: where, and how many bytes. The areas are written by halves. The
/// status is last, so that who writes much at once has written all.
const FIELDS: [(usize, usize); 16] = [
    (at::DEVICE_FEATURE_SELECT, 4),
    (at::DRIVER_FEATURE_SELECT, 4),
    (at::DRIVER_FEATURE, 4),
    (at::CONFIG_VECTOR, 2),
    (at::QUEUE_SELECT, 2),
    (at::QUEUE_SIZE, 2),
    (at::QUEUE_VECTOR, 2),
    (at::QUEUE_AREAS, 4),
    (at::QUEUE_AREAS + 4, 4),
    (at::QUEUE_AREAS + 8, 4),
    (at::QUEUE_AREAS + 12, 4),
    (at::QUEUE_AREAS + 16, 4),
    (at::QUEUE_AREAS + 20, 4),
    (at::QUEUE_ENABLE, 2),
    (at::QUEUE_RESET, 2),
    (at::STATUS, 1),
];

/// Bytes of the structure.
pub(super) const LEN: usize = 0x3C;
/// No MSI-X vector (VIRTIO 1.3, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xFFFF;
/// Entries of a queue at most. SeaBIOS takes no more.
pub(super) const MOST_ENTRIES: u16 = 256;

#[cfg(test)]
mod tests;
