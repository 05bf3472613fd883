//! One io_uring a reactor.
//!
//! An operation is accepted whole, however long or scattered, and reported once, when all of it is
//! done or has failed: short transfers are continued here, and operations that do not fit into the
//! kernel's queues wait here. Any number may be in flight; after warm-up none allocates.
//!
//! Dropping the ring waits for what the kernel has, since the kernel would write to memory that is
//! about to be freed. So whoever owns a ring and the memory of its operations drops the ring first.
#![allow(unsafe_code)] // Hands addresses to the kernel.

use super::sg::Segment;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::errno::Errno;
use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, RawFd},
};

/// The ring, or nothing where io_uring is forbidden.
#[derive(Debug)]
pub struct Ring {
    live: Option<Box<Live>>,
}

impl Ring {
    /// A ring of `entries`; a disabled one where the kernel does not allow it, or when the
    /// environment has `VSCSI_NO_IO_URING`.
    pub fn new(entries: u32) -> Self {
        if std::env::var_os(OFF_SWITCH).is_some() {
            return Self::disabled();
        }
        match Live::new(entries) {
            Ok(live) => Self { live: Some(Box::new(live)) },
            Err(error) => {
                tracing::info!(%error, "no io_uring: worker threads do file input and output");
                Self::disabled()
            }
        }
    }

    /// A ring that takes nothing.
    pub fn disabled() -> Self {
        Self { live: None }
    }

    /// Whether it works; otherwise file backends answer `Started::WouldBlock`.
    pub fn is_enabled(&self) -> bool {
        self.live.is_some()
    }

    /// Queues a read of all segments at `offset`; false when the ring is disabled. The memory stays
    /// valid until the operation is reported or the ring is gone. The end of the file before the end
    /// of the segments is [`io::ErrorKind::UnexpectedEof`].
    pub fn read(&mut self, key: u64, fd: RawFd, offset: u64, to: &[Segment]) -> bool {
        self.queue(key, fd, Kind::Read, offset, to)
    }

    /// Queues a write; `dsync` when the data has to be on the medium before it completes.
    pub fn write(
        &mut self,
        key: u64,
        fd: RawFd,
        offset: u64,
        from: &[Segment],
        dsync: bool,
    ) -> bool {
        self.queue(key, fd, Kind::Write { dsync }, offset, from)
    }

    /// Queues an fdatasync.
    pub fn flush(&mut self, key: u64, fd: RawFd) -> bool {
        self.queue(key, fd, Kind::Flush, 0, &[])
    }

    /// Asks for an operation back, by the key it was queued under. It is reported as any other: with
    /// ECANCELED ([`is_cancelled`]) if it did not happen or not all of it, with its own result if it
    /// was too late. What has reached a device cannot be taken back, and is reported when the device
    /// answers.
    pub fn cancel(&mut self, key: u64) {
        if let Some(live) = &mut self.live {
            live.cancel(key);
        }
    }

    /// Hands what was queued to the kernel: once a turn.
    pub fn submit(&mut self) {
        if let Some(live) = &mut self.live {
            live.submit();
        }
    }

    /// Calls `done` for each finished operation, with the key it was queued under.
    pub fn reap(&mut self, done: impl FnMut(u64, io::Result<()>)) {
        if let Some(live) = &mut self.live {
            live.reap(done);
        }
    }

    /// Operations not finished yet.
    pub fn in_flight(&self) -> usize {
        self.live.as_ref().map_or(0, |live| live.flying + live.backlog.len() + live.returned.len())
    }

    /// Operations that the kernel did not take at the last [`Ring::submit`], for want of memory: then
    /// the reactor must not sleep without a limit.
    pub fn is_stuck(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.stuck)
    }

    /// The descriptor that becomes readable when something finished.
    pub fn fd(&self) -> Option<RawFd> {
        self.live.as_ref().map(|live| live.uring.as_raw_fd())
    }

    fn queue(&mut self, key: u64, fd: RawFd, kind: Kind, offset: u64, memory: &[Segment]) -> bool {
        match &mut self.live {
            Some(live) => {
                live.queue(key, fd, kind, offset, memory);
                true
            }
            None => false,
        }
    }
}

/// Whether this is how an operation ends that was taken back.
pub fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { dsync: bool },
    Flush,
}

/// One operation and what is left of it.
#[derive(Debug)]
struct Slot {
    key: u64,
    fd: RawFd,
    kind: Kind,
    offset: u64,
    /// Segments not done yet start at `first`. Kept over uses, so that it rarely allocates.
    memory: Vec<Segment>,
    first: usize,
    retries: u8,
    /// In use, so that the key counts.
    live: bool,
    /// It was asked back: nothing of it is started any more.
    cancelled: bool,
}

struct Live {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots that wait for room.
    backlog: VecDeque<u32>,
    /// Slots to ask the kernel back for.
    cancels: Vec<u32>,
    /// Slots taken back before the kernel had them.
    returned: Vec<u32>,
    /// Operations in the queues shared with the kernel, at most what the completion queue holds: so
    /// it never overflows.
    flying: usize,
    most: usize,
    /// Cancellations in the queues, at most [`MOST_CANCELS`].
    cancelling: usize,
    stuck: bool,
}

impl Live {
    fn new(entries: u32) -> io::Result<Self> {
        let entries = entries.clamp(8, 4096);
        // Completions are delivered at the next system call of this thread instead of by an
        // interrupt. Kernels before 5.19 refuse the flags.
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_coop_taskrun().setup_taskrun_flag();
        let uring = match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().build(entries)
            }
            built => built,
        }?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(Errno::ENOSYS.into());
        }
        let most = (uring.params().cq_entries() as usize).saturating_sub(MOST_CANCELS).max(1);
        Ok(Self {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            cancels: Vec::new(),
            returned: Vec::new(),
            flying: 0,
            most,
            cancelling: 0,
            stuck: false,
        })
    }

    fn queue(&mut self, key: u64, fd: RawFd, kind: Kind, offset: u64, memory: &[Segment]) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::EMPTY);
            self.slots.len() as u32 - 1
        });
        if let Some(slot) = self.slots.get_mut(index as usize) {
            (slot.key, slot.fd, slot.kind, slot.offset) = (key, fd, kind, offset);
            (slot.first, slot.retries) = (0, 0);
            (slot.live, slot.cancelled) = (true, false);
            slot.memory.clear();
            slot.memory.extend(memory.iter().filter(|segment| segment.len > 0));
        }
        self.backlog.push_back(index);
    }

    fn cancel(&mut self, key: u64) {
        for (index, slot) in (0..).zip(&mut self.slots) {
            if slot.live && slot.key == key && !slot.cancelled {
                slot.cancelled = true;
                match self.backlog.iter().position(|&waiting| waiting == index) {
                    Some(at) => {
                        self.backlog.remove(at);
                        self.returned.push(index);
                    }
                    None => self.cancels.push(index),
                }
            }
        }
    }

    fn submit(&mut self) {
        self.stuck = false;
        loop {
            self.fill();
            if self.uring.submission().is_empty() {
                return;
            }
            match self.uring.submit() {
                // Again while there is more than the submission queue holds.
                Ok(_) if !self.backlog.is_empty() && self.flying < self.most => {}
                Ok(_) => {
                    self.stuck = !self.uring.submission().is_empty();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.stuck = true;
                    return;
                }
            }
        }
    }

    /// Moves the backlog to the submission queue, as far as there is room in both queues.
    fn fill(&mut self) {
        let mut queue = self.uring.submission();
        while self.cancelling < MOST_CANCELS && !queue.is_full() {
            let Some(index) = self.cancels.pop() else { break };
            // Finished meanwhile, perhaps in use again: that operation is not in the kernel yet.
            if !self.slots.get(index as usize).is_some_and(|slot| slot.cancelled) {
                continue;
            }
            let entry = opcode::AsyncCancel::new(index.into()).build().user_data(CANCEL);
            // SAFETY: the entry refers to no memory.
            if unsafe { queue.push(&entry) }.is_err() {
                self.cancels.push(index);
                break;
            }
            self.cancelling += 1;
        }
        while self.flying < self.most && !queue.is_full() {
            let Some(index) = self.backlog.pop_front() else { break };
            let Some(slot) = self.slots.get(index as usize) else { continue };
            let entry = slot.entry().user_data(u64::from(index));
            // SAFETY: the descriptor and the memory stay valid until the operation is reported: the
            // caller promised for its segments, and the list of them lies in the slot, which is not
            // reused before.
            if unsafe { queue.push(&entry) }.is_err() {
                self.backlog.push_front(index);
                break;
            }
            self.flying += 1;
        }
    }

    fn reap(&mut self, mut done: impl FnMut(u64, io::Result<()>)) {
        for index in self.returned.drain(..) {
            if let Some(slot) = self.slots.get_mut(index as usize) {
                (slot.live, slot.cancelled) = (false, false);
                self.free.push(index);
                done(slot.key, Err(Errno::ECANCELED.into()));
            }
        }
        while self.flying + self.cancelling > 0 {
            if self.uring.submission().taskrun() {
                // Any system call lets the kernel deliver; errors show at the next submission.
                let _ = self.uring.submitter().submit();
            }
            let mut any = false;
            for entry in self.uring.completion() {
                any = true;
                let index = entry.user_data();
                if index == CANCEL {
                    // What became of it shows at the operation.
                    self.cancelling = self.cancelling.saturating_sub(1);
                    continue;
                }
                self.flying = self.flying.saturating_sub(1);
                let Some(slot) = usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i))
                else {
                    continue;
                };
                match slot.progress(entry.result()) {
                    Some(result) => {
                        (slot.live, slot.cancelled) = (false, false);
                        self.free.push(index as u32);
                        done(slot.key, result);
                    }
                    None => self.backlog.push_back(index as u32),
                }
            }
            if any && !(self.backlog.is_empty() && self.cancels.is_empty()) {
                self.submit();
            }
            if !any {
                return;
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.backlog.clear();
        self.flying += self.cancelling;
        if self.flying > 0 {
            // Spares waiting for what has not started. Kernels before 6.0 do not know it.
            let all = types::CancelBuilder::any();
            let _ = self.uring.submitter().register_sync_cancel(None, all);
        }
        while self.flying > 0 {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => {}
                    _ => {
                        tracing::error!(%error, "io_uring with operations in flight is broken");
                        // Freeing their memory would be worse.
                        std::process::abort();
                    }
                },
            }
            let ended = self.uring.completion().count();
            self.flying = self.flying.saturating_sub(ended);
        }
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flying, backlog) = (&self.flying, &self.backlog.len());
        f.debug_struct("Live").field("flying", flying).field("backlog", backlog).finish()
    }
}

impl Slot {
    const EMPTY: Self = Self {
        key: 0,
        fd: -1,
        kind: Kind::Flush,
        offset: 0,
        memory: Vec::new(),
        first: 0,
        retries: 0,
        live: false,
        cancelled: false,
    };

    fn entry(&self) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let rest = self.memory.get(self.first..).unwrap_or_default();
        // More than the kernel takes at once comes back as a short transfer.
        let count = rest.len().min(MOST_SEGMENTS) as u32;
        // `Segment` is laid out as `struct iovec` is.
        let list = rest.as_ptr().cast::<libc::iovec>();
        match (self.kind, rest) {
            (Kind::Flush, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Kind::Read, [one]) => {
                opcode::Read::new(fd, one.base, one.at_once()).offset(self.offset).build()
            }
            (Kind::Read, _) => opcode::Readv::new(fd, list, count).offset(self.offset).build(),
            (Kind::Write { dsync }, [one]) => opcode::Write::new(fd, one.base, one.at_once())
                .offset(self.offset)
                .rw_flags(rw_flags(dsync))
                .build(),
            (Kind::Write { dsync }, _) => opcode::Writev::new(fd, list, count)
                .offset(self.offset)
                .rw_flags(rw_flags(dsync))
                .build(),
        }
    }

    /// Takes the kernel's answer: how the operation ended, or `None` if it has to go on.
    fn progress(&mut self, result: i32) -> Option<io::Result<()>> {
        let Ok(mut moved) = usize::try_from(result) else {
            return self.refused(Errno::from_raw(result.wrapping_neg()));
        };
        self.retries = 0;
        self.offset = self.offset.saturating_add(moved as u64);
        let stopped = moved == 0;
        while let Some(segment) = self.memory.get_mut(self.first) {
            if moved < segment.len {
                segment.base = segment.base.wrapping_add(moved);
                segment.len -= moved;
                let kind = match self.kind {
                    Kind::Read => io::ErrorKind::UnexpectedEof,
                    _ => io::ErrorKind::WriteZero,
                };
                return match self.cancelled {
                    true => Some(Err(Errno::ECANCELED.into())),
                    false => stopped.then(|| Err(kind.into())),
                };
            }
            moved -= segment.len;
            self.first += 1;
        }
        Some(Ok(()))
    }

    fn refused(&mut self, errno: Errno) -> Option<io::Result<()>> {
        match errno {
            Errno::EINTR | Errno::EAGAIN if self.cancelled => Some(Err(Errno::ECANCELED.into())),
            Errno::EINTR | Errno::EAGAIN if self.retries < MOST_RETRIES => {
                self.retries += 1;
                None
            }
            // A quota is a full disk to whoever writes.
            Errno::EDQUOT => Some(Err(Errno::ENOSPC.into())),
            _ => Some(Err(errno.into())),
        }
    }
}

impl Segment {
    /// How much of it one operation takes.
    fn at_once(&self) -> u32 {
        self.len.min(MOST_BYTES) as u32
    }
}

fn rw_flags(dsync: bool) -> i32 {
    if dsync { libc::RWF_DSYNC } else { 0 }
}

/// UIO_MAXIOV.
const MOST_SEGMENTS: usize = 1024;
/// Below what Linux moves at most at a time, and whole pages.
const MOST_BYTES: usize = 1 << 30;
/// Room in the completion queue that is kept for cancellations.
const MOST_CANCELS: usize = 4;
/// User data of a cancellation; no slot has this number.
const CANCEL: u64 = u64::MAX;
/// Refusals in a row before an operation fails.
const MOST_RETRIES: u8 = 100;
const OFF_SWITCH: &str = "VSCSI_NO_IO_URING";

#[cfg(test)]
mod tests;
