//! What a session or a channel of a transport did so far, for who asks about it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters with one writer, the reactor they belong to, and any number of readers.
#[derive(Debug, Default)]
pub struct Traffic {
    commands: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    rejected: AtomicU64,
}

impl Traffic {
    /// SCSI commands taken.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Bytes of Data-In.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of Data-Out.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Requests that the transport rejected by itself.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Counts a command.
    pub fn count_command(&self) {
        add(&self.commands, 1);
    }

    /// Counts Data-In.
    pub fn count_read(&self, bytes: u64) {
        add(&self.read_bytes, bytes);
    }

    /// Counts Data-Out.
    pub fn count_written(&self, bytes: u64) {
        add(&self.written_bytes, bytes);
    }

    /// Counts a rejection.
    pub fn count_rejected(&self) {
        add(&self.rejected, 1);
    }
}

/// One writer: a load and a store are enough.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}
