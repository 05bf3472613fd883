//! The kernel's side of a device, for tests.

use std::{fs::File, os::unix::fs::FileExt};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    layout::{Header, Operation, entry, flag, mailbox},
    ring::{Ring, RingError},
};
use crate::memory::Region;

/// The kernel's side of a device: what is in its memory.
pub(super) struct Kernel {
    memory: File,
    pub(super) head: u32,
    /// Where it looks for responses.
    pub(super) cleaned: u32,
    size: u32,
}

/// Where the data area begins, for rings that end before it.
pub(super) const DATA: u64 = 8192;
/// Bytes of the mapping.
pub(super) const LEN: u64 = 64 << 10;

impl Kernel {
    pub(super) fn new(ring: u32) -> Self {
        let memory = File::from(memfd_create("tcmu", MFdFlags::empty()).unwrap());
        memory.set_len(LEN).unwrap();
        let kernel = Self { memory, head: 0, cleaned: 0, size: ring };
        kernel.put(0, &[2, 0, 7, 0]);
        kernel.put(4, &mailbox::LEN.to_le_bytes());
        kernel.put(8, &ring.to_le_bytes());
        kernel
    }

    pub(super) fn open(&self) -> Result<Ring, RingError> {
        Ring::open(Region::map(0, LEN, 0, 0, self.memory.try_clone().unwrap()).unwrap())
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    pub(super) fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub(super) fn place(at: u32) -> u64 {
        u64::from(mailbox::LEN + at)
    }

    pub(super) fn tail(&self) -> u32 {
        u32::from_le_bytes(self.bytes(64))
    }

    pub(super) fn move_head(&mut self, len: u32) {
        self.head = (self.head + len) % self.size;
        self.put(12, &self.head.to_le_bytes());
    }

    /// A command with these iovecs; the bytes around what is set are 0xA5 before. Where it is.
    pub(super) fn command(&mut self, id: u16, cdb: &[u8], iovecs: &[(u64, u64)]) -> u32 {
        let base = (entry::LIST + 16 * iovecs.len() as u32).max(entry::LEN);
        let len = base + (cdb.len() as u32).next_multiple_of(8);
        if self.size - self.head < len {
            let pad = self.size - self.head;
            self.put(Self::place(self.head), &pad.to_le_bytes());
            self.move_head(pad);
        }
        let at = Self::place(self.head);
        self.put(at, &vec![0; len as usize]);
        let header = Header { len, operation: Operation::Command, id, kernel: 0, flags: 0 };
        self.put(at, &header.emit().to_le_bytes());
        self.put(at + 8, &(iovecs.len() as u32).to_le_bytes());
        self.put(at + 24, &(at + u64::from(base)).to_le_bytes());
        for (n, (from, len)) in iovecs.iter().enumerate() {
            self.put(at + 48 + 16 * n as u64, &from.to_le_bytes());
            self.put(at + 56 + 16 * n as u64, &len.to_le_bytes());
        }
        self.put(at + u64::from(base), cdb);
        let place = self.head;
        self.move_head(len);
        place
    }

    /// The responses: id, status, bytes read if told, first bytes of the sense data.
    pub(super) fn responses(&mut self) -> Vec<(u16, u8, Option<u32>, [u8; 4])> {
        let mut found = Vec::new();
        while self.cleaned != self.tail() {
            let at = Self::place(self.cleaned);
            let header = Header::parse(u64::from_le_bytes(self.bytes(at)));
            if header.operation == Operation::Command {
                let [status, ..] = self.bytes::<1>(at + 8);
                let read = u32::from_le_bytes(self.bytes(at + 12));
                let read = (header.flags & flag::READ_LEN != 0).then_some(read);
                found.push((header.id, status, read, self.bytes(at + 16)));
            }
            self.cleaned = (self.cleaned + header.len) % self.size;
        }
        found
    }
}
