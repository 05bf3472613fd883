//! What waits to be sent on one connection, and the one `sendmsg` that takes many PDUs.
//!
//! Headers, digests, padding and sense data are copied into an arena that is reused; command data
//! stays where it is and is only pointed at, with its owner kept in the queue until the last byte
//! of it has gone. So a READ leaves without a copy in user space.
#![allow(unsafe_code)] // `sendmsg` gathers memory that only its owner in the queue keeps alive.

use crate::{digest::Crc32c, pdu::Bhs};
use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd},
};
use vscsi_target::{
    engine::DataIn,
    reactor::{
        pool::{Pool, PoolBuf},
        sg::Segment,
    },
};

/// The most pieces one `sendmsg` takes (Linux: UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

/// Arena bytes already sent before the arena is moved down while the queue is not empty.
const COMPACT_AT: usize = 256 * 1024;

/// The output queue of one connection.
#[derive(Default)]
pub struct Output {
    arena: Vec<u8>,
    /// Position in the stream of small bytes that `arena[0]` has.
    arena_base: u64,
    parts: VecDeque<Part>,
    /// Bytes of the front part that have gone already.
    front_sent: usize,
    queued: usize,
    pieces: Vec<libc::iovec>,
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything went.
    All,
    /// The socket takes no more now.
    Blocked,
}

enum Part {
    /// Bytes of the arena, by position.
    Small { at: u64, len: usize },
    /// Memory whose owner follows in a `Release`.
    Memory(Segment),
    /// Everything that pointed into it has gone when this comes to the front.
    Release(Owned),
}

/// What keeps data alive while it is being sent.
#[derive(Debug)]
pub enum Owned {
    /// As the engine gave it.
    Lent(DataIn),
    /// A copy in a pool buffer.
    Pooled(PoolBuf),
    /// A copy made when the pool was exhausted.
    Heap(Box<[u8]>),
    /// Copies of what was left when the lender wanted its memory back.
    Copies(Vec<Owned>),
}

/// Data ready to be sent piece by piece: its address, and what keeps it.
#[derive(Debug)]
pub struct Payload {
    segment: Segment,
    owner: Owned,
}

impl Payload {
    /// The data of a completed command, at most `max` bytes of it. `None` without data. `stable`
    /// asks for memory that nobody writes to any more, as a digest needs.
    pub fn of(data: DataIn, max: usize, stable: bool, pool: &Pool) -> Option<Self> {
        match data {
            DataIn::None | DataIn::Placed(_) => None,
            DataIn::Buffer(mut buffer, len) => {
                let segment = buffer.segment(len.min(max));
                Some(Self { segment, owner: Owned::Pooled(buffer) })
            }
            DataIn::Lent(mut segment, hold) => {
                segment.len = segment.len.min(max);
                if stable {
                    return Some(Self::copy(segment, pool));
                }
                Some(Self { segment, owner: Owned::Lent(DataIn::Lent(segment, hold)) })
            }
        }
    }

    /// The data, and what keeps it where it is.
    pub fn into_parts(self) -> (Segment, Owned) {
        (self.segment, self.owner)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.segment.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.segment.len == 0
    }

    fn copy(from: Segment, pool: &Pool) -> Self {
        let copy_to = |to: &mut [u8]| {
            // SAFETY: the caller holds what the engine lent, so `from` is readable for its length;
            // `to` is a fresh buffer of at least that length that nobody else points at.
            unsafe { std::ptr::copy_nonoverlapping(from.base, to.as_mut_ptr(), from.len) };
        };
        if let Some(mut buffer) = pool.take(from.len) {
            copy_to(&mut buffer.bytes_mut()[..from.len]);
            let segment = buffer.segment(from.len);
            return Self { segment, owner: Owned::Pooled(buffer) };
        }
        let mut heap = vec![0; from.len].into_boxed_slice();
        copy_to(&mut heap);
        Self { segment: Segment::of(&mut heap), owner: Owned::Heap(heap) }
    }
}

impl Output {
    /// Bytes that wait.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Appends small bytes, copied.
    pub fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.arena_base + self.arena.len() as u64;
        self.arena.extend_from_slice(bytes);
        self.queued += bytes.len();
        if let Some(Part::Small { at: start, len }) = self.parts.back_mut()
            && *start + *len as u64 == at
        {
            *len += bytes.len();
            return;
        }
        self.parts.push_back(Part::Small { at, len: bytes.len() });
    }

    /// Appends a header and, where asked for, its digest.
    pub fn put_header(&mut self, header: &Bhs, digest: bool) {
        self.put(header);
        if digest {
            self.put(&crate::digest::crc32c(header));
        }
    }

    /// Appends a data segment that is copied, with padding and digest.
    pub fn put_data(&mut self, data: &[u8], digest: bool) {
        if data.is_empty() {
            return;
        }
        self.put(data);
        self.put(&[0; 3][..data.len().wrapping_neg() & 3]);
        if digest {
            let mut crc = Crc32c::new();
            crc.update(data);
            crc.pad(data.len());
            self.put(&crc.finish());
        }
    }

    /// Appends bytes `offset..offset + len` of `payload` as a data segment, with padding and
    /// digest. [`Output::release`] has to follow before anything is flushed.
    pub fn put_payload(&mut self, payload: &Payload, offset: usize, len: usize, digest: bool) {
        let offset = offset.min(payload.segment.len);
        let len = len.min(payload.segment.len - offset);
        if len == 0 {
            return;
        }
        let piece = Segment { base: payload.segment.base.wrapping_add(offset), len };
        self.parts.push_back(Part::Memory(piece));
        self.queued += len;
        self.put(&[0; 3][..len.wrapping_neg() & 3]);
        if digest {
            // SAFETY: the piece lies inside the payload's memory, which its owner keeps; a digest
            // is asked for only with memory that nobody writes to (`Payload::of` with `stable`).
            let bytes = unsafe { std::slice::from_raw_parts(piece.base, piece.len) };
            let mut crc = Crc32c::new();
            crc.update(bytes);
            crc.pad(len);
            self.put(&crc.finish());
        }
    }

    /// Keeps the owner of a payload until everything put before has gone.
    pub fn release(&mut self, payload: Payload) {
        self.parts.push_back(Part::Release(payload.owner));
    }

    /// Copies what still points into lent memory where `wanted` says so, and lets the lender go.
    pub fn take_over(&mut self, pool: &Pool, mut wanted: impl FnMut(&DataIn) -> bool) {
        let mut start = 0;
        for at in 0..self.parts.len() {
            let Part::Release(owner) = &self.parts[at] else { continue };
            let pieces = start..at;
            start = at + 1;
            if matches!(owner, Owned::Lent(data) if wanted(data)) {
                let copies: Vec<Owned> = self
                    .parts
                    .range_mut(pieces)
                    .filter_map(|part| {
                        let Part::Memory(segment) = part else { return None };
                        let copy = Payload::copy(*segment, pool);
                        *segment = copy.segment;
                        Some(copy.owner)
                    })
                    .collect();
                self.parts[at] = Part::Release(Owned::Copies(copies));
            }
        }
    }

    /// What is still to be sent, where only small bytes were put in.
    pub fn into_small(self) -> Vec<u8> {
        let first = self.parts.iter().find_map(|part| match part {
            Part::Small { at, .. } => Some((at - self.arena_base) as usize + self.front_sent),
            _ => None,
        });
        let mut bytes = self.arena;
        bytes.drain(..first.unwrap_or(bytes.len()).min(bytes.len()));
        bytes
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// What `sendmsg` says, other than that it would block.
    pub fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<Flushed> {
        loop {
            self.drop_finished();
            if self.parts.is_empty() {
                self.arena.clear();
                self.arena_base = 0;
                return Ok(Flushed::All);
            }
            match self.send(fd) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.compact();
                    return Ok(Flushed::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.pieces.clear();
        let mut skip = self.front_sent;
        for part in &self.parts {
            let (base, len) = match part {
                Part::Small { at, len } => {
                    let start = (at - self.arena_base) as usize;
                    (self.arena[start..start + len].as_ptr().cast_mut(), *len)
                }
                Part::Memory(segment) => (segment.base, segment.len),
                Part::Release(_) => continue,
            };
            self.pieces.push(libc::iovec {
                iov_base: base.wrapping_add(skip).cast(),
                iov_len: len - skip,
            });
            skip = 0;
            if self.pieces.len() == MAX_PIECES {
                break;
            }
        }
        // SAFETY: an all-zero msghdr is a valid empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len() as _;
        // SAFETY: every piece is inside the arena, which is not touched during the call, or inside
        // memory whose owner is in `parts` behind it; the kernel only reads.
        let sent = unsafe {
            libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn advance(&mut self, mut sent: usize) {
        self.queued = self.queued.saturating_sub(sent);
        while sent > 0 {
            let len = match self.parts.front() {
                Some(Part::Small { len, .. }) => *len,
                Some(Part::Memory(segment)) => segment.len,
                Some(Part::Release(_)) => 0,
                None => return,
            };
            let left = len - self.front_sent;
            if sent < left {
                self.front_sent += sent;
                return;
            }
            sent -= left;
            self.front_sent = 0;
            self.parts.pop_front();
        }
    }

    fn drop_finished(&mut self) {
        while let Some(Part::Release(_)) = self.parts.front() {
            self.parts.pop_front();
        }
    }

    fn compact(&mut self) {
        let first = self.parts.iter().find_map(|part| match part {
            Part::Small { at, .. } => Some(*at),
            _ => None,
        });
        let end = self.arena_base + self.arena.len() as u64;
        let sent = (first.unwrap_or(end) - self.arena_base) as usize;
        if sent >= COMPACT_AT {
            self.arena.drain(..sent);
            self.arena_base += sent as u64;
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("queued", &self.queued)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}
