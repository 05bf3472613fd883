//! The tasks of a session: a slab that is reused, so that a command allocates nothing.

use libsrp::Lun;
use vscsi_target::{engine::TaskToken, reactor::pool::PoolBuf};

use crate::pdu::{RESERVED_TAG, TaskFunctionCode};

/// The most R2Ts outstanding for one command.
pub const MAX_R2TS: usize = 8;

/// A task in progress.
#[derive(Debug)]
pub struct Task<R> {
    /// Initiator task tag.
    pub itt: u32,
    /// The connection it came by, which its answers take.
    pub conn: u32,
    /// What it is.
    pub kind: Kind,
    /// The logical unit addressed.
    pub lun: Lun,
    /// CmdSN.
    pub cmd_sn: u32,
    /// Delivered immediately: not counted in the window.
    pub immediate: bool,
    /// Expected data transfer length in bytes.
    pub edtl: u32,
    /// Nobody wants the answer any more.
    pub orphan: bool,
    /// Memory that came with the command.
    pub remote: R,
    /// It failed while its data was on the way.
    pub fetching: bool,
    /// R2Ts sent, for ExpDataSN.
    pub r2ts_sent: u32,
    /// Data-Out being gathered.
    pub out: Option<Gather>,
    generation: u32,
}

/// What a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A free slot.
    Free,
    /// A SCSI command.
    Command,
    /// A task management function.
    Management(TaskFunctionCode),
}

/// Data-Out of a command on its way in.
#[derive(Debug)]
pub struct Gather {
    /// The engine's task.
    pub token: TaskToken,
    /// Where the data goes; a datamover that fetches it has the buffer meanwhile.
    pub buffer: Option<PoolBuf>,
    /// Bytes the command needs.
    pub len: usize,
    /// Bytes that are there or on their way within the PDU being received.
    pub received: usize,
    /// Unsolicited Data-Out PDUs are still to come.
    pub unsolicited: bool,
    /// Unsolicited bytes so far, immediate data with them.
    pub unsolicited_len: usize,
    /// Next DataSN of the unsolicited sequence.
    pub data_sn: u32,
    /// Next byte to ask for.
    pub asked: usize,
    /// R2TSN of the next R2T.
    pub r2t_sn: u32,
    /// R2Ts outstanding.
    pub r2ts: [R2tState; MAX_R2TS],
}

/// An R2T that was sent.
#[derive(Clone, Copy, Debug)]
pub struct R2tState {
    /// Target transfer tag; the reserved tag in a free entry.
    pub ttt: u32,
    /// Offset of the next byte.
    pub next: usize,
    /// Where the burst ends.
    pub end: usize,
    /// Next DataSN.
    pub data_sn: u32,
}

impl R2tState {
    /// A free entry.
    pub const FREE: Self = Self { ttt: RESERVED_TAG, next: 0, end: 0, data_sn: 0 };
}

impl Gather {
    /// How many R2Ts are outstanding.
    pub fn outstanding(&self) -> usize {
        self.r2ts.iter().filter(|r2t| r2t.ttt != RESERVED_TAG).count()
    }

    /// Whether all data is there and nothing more will come.
    pub fn is_complete(&self) -> bool {
        !self.unsolicited && self.received >= self.len && self.outstanding() == 0
    }
}

/// The slab.
#[derive(Debug)]
pub struct Tasks<R> {
    slots: Vec<Task<R>>,
    free: Vec<u32>,
    /// Open addressing from initiator task tag to slot + 1; a power of two in size.
    index: Vec<u32>,
    used: usize,
}

impl<R> Default for Tasks<R> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: Vec::new(), used: 0 }
    }
}

impl<R: Default> Tasks<R> {
    /// Tasks in progress.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds a task. The caller bounds their number.
    pub fn insert(&mut self, itt: u32, conn: u32, kind: Kind) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Task {
                itt: 0,
                conn: 0,
                kind: Kind::Free,
                lun: Lun::default(),
                cmd_sn: 0,
                immediate: false,
                edtl: 0,
                orphan: false,
                remote: R::default(),
                fetching: false,
                r2ts_sent: 0,
                out: None,
                generation: 0,
            });
            self.slots.len() as u32 - 1
        });
        self.used += 1;
        if self.used * 4 > self.index.len() * 3 {
            self.grow();
        }
        if let Some(task) = self.slots.get_mut(slot as usize) {
            task.itt = itt;
            task.conn = conn;
            task.kind = kind;
            task.orphan = false;
            task.remote = R::default();
            task.fetching = false;
            task.r2ts_sent = 0;
            task.immediate = false;
            task.edtl = 0;
            task.out = None;
        }
        self.link(itt, slot);
        slot
    }

    /// A task by slot.
    pub fn at(&mut self, slot: u32) -> Option<&mut Task<R>> {
        self.slots.get_mut(slot as usize).filter(|task| task.kind != Kind::Free)
    }

    /// The slot of an initiator task tag.
    pub fn find(&self, itt: u32) -> Option<u32> {
        let mask = self.index.len().checked_sub(1)?;
        let mut at = hash(itt) & mask;
        loop {
            let slot = self.index[at].checked_sub(1)?;
            let task = &self.slots[slot as usize];
            if task.itt == itt && !task.orphan {
                return Some(slot);
            }
            at = (at + 1) & mask;
        }
    }

    /// The name of a task for the engine; stale ones find nothing.
    pub fn cookie(&self, slot: u32) -> u64 {
        let generation = self.slots.get(slot as usize).map_or(0, |task| task.generation);
        u64::from(generation) << 32 | u64::from(slot)
    }

    /// The slot of a cookie.
    pub fn of_cookie(&self, cookie: u64) -> Option<u32> {
        let slot = cookie as u32;
        let task = self.slots.get(slot as usize)?;
        (task.kind != Kind::Free && u64::from(task.generation) == cookie >> 32).then_some(slot)
    }

    /// The Data-Out being gathered for the task of a cookie.
    pub fn gather(&mut self, cookie: u64) -> Option<&mut Gather> {
        let slot = self.of_cookie(cookie)?;
        self.slots[slot as usize].out.as_mut()
    }

    /// Ends a task. Its token, if any, has to be taken out before.
    pub fn remove(&mut self, slot: u32) {
        let Some(task) = self.slots.get_mut(slot as usize) else { return };
        if task.kind == Kind::Free {
            return;
        }
        let itt = task.itt;
        task.kind = Kind::Free;
        task.generation = (task.generation + 1) & 0x7FFF_FFFF;
        self.unlink(itt, slot);
        self.free.push(slot);
        self.used -= 1;
    }

    /// Slots in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Task<R>)> {
        (0u32..).zip(&self.slots).filter(|(_, task)| task.kind != Kind::Free)
    }

    /// How many slots there are, used or not.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    fn link(&mut self, itt: u32, slot: u32) {
        let mask = self.index.len() - 1;
        let mut at = hash(itt) & mask;
        while self.index[at] != 0 {
            at = (at + 1) & mask;
        }
        self.index[at] = slot + 1;
    }

    /// Removes an entry and moves those behind it up, so that searches never meet a gap.
    fn unlink(&mut self, itt: u32, slot: u32) {
        let mask = self.index.len() - 1;
        let mut at = hash(itt) & mask;
        while self.index[at] != slot + 1 {
            if self.index[at] == 0 {
                return;
            }
            at = (at + 1) & mask;
        }
        self.index[at] = 0;
        let mut next = (at + 1) & mask;
        while let Some(moved) = self.index[next].checked_sub(1) {
            let home = hash(self.slots[moved as usize].itt) & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(at) & mask) {
                self.index[at] = self.index[next];
                self.index[next] = 0;
                at = next;
            }
            next = (next + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let size = (self.index.len() * 2).max(64);
        self.index.clear();
        self.index.resize(size, 0);
        for slot in 0..self.slots.len() as u32 {
            let task = &self.slots[slot as usize];
            if task.kind != Kind::Free {
                self.link(task.itt, slot);
            }
        }
    }
}

fn hash(itt: u32) -> usize {
    (itt.wrapping_mul(0x9E37_79B1) >> 7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_after_any_order_of_removal() {
        let mut tasks = Tasks::<()>::default();
        let tags: Vec<u32> = (0..500u32).map(|n| n.wrapping_mul(0x0101_0101)).collect();
        let slots: Vec<u32> = tags.iter().map(|&itt| tasks.insert(itt, 0, Kind::Command)).collect();
        for (at, &slot) in slots.iter().enumerate() {
            if at % 3 != 0 {
                tasks.remove(slot);
            }
        }
        for (at, (&itt, &slot)) in tags.iter().zip(&slots).enumerate() {
            let expected = (at % 3 == 0).then_some(slot);
            assert_eq!(tasks.find(itt), expected, "tag {itt:#x}");
        }
    }

    #[test]
    fn a_cookie_of_an_ended_task_finds_nothing() {
        let mut tasks = Tasks::<()>::default();
        let slot = tasks.insert(7, 0, Kind::Command);
        let cookie = tasks.cookie(slot);
        assert_eq!(tasks.of_cookie(cookie), Some(slot));
        tasks.remove(slot);
        let again = tasks.insert(8, 0, Kind::Command);
        assert_eq!(again, slot);
        assert_eq!(tasks.of_cookie(cookie), None);
    }
}
