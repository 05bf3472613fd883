//! Messages between reactors, and from worker threads to them. Slow paths only.

use crate::engine::task::{TaskKey, Worked};
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A message for a reactor's engine.
#[derive(Debug)]
pub enum Mail {
    /// A gate let this task through, counted in this epoch.
    Granted {
        /// The task.
        task: TaskKey,
        /// Which of the gate's counters it is in.
        epoch: u8,
    },
    /// A worker finished.
    Worked(Box<Worked>),
    /// Part of a task management function that reaches every reactor.
    Manage(Arc<crate::engine::manage::Sweep>),
    /// This reactor's share of a sweep it had sent is done everywhere.
    Swept(Arc<crate::engine::manage::Sweep>),
}

/// One postbox a reactor.
#[derive(Debug)]
pub struct Postboxes {
    boxes: Box<[Postbox]>,
}

#[derive(Debug)]
struct Postbox {
    mail: Mutex<Vec<Mail>>,
    wake: EventFd,
    /// The reactor was woken and has not looked yet: no need to wake it again, and a reactor that
    /// polls sees it without a system call.
    woken: AtomicBool,
    /// The reactor has nothing of its own left.
    retired: AtomicBool,
}

impl Postboxes {
    /// Postboxes for `reactors` reactors.
    pub fn new(reactors: usize) -> io::Result<Arc<Self>> {
        let boxes = (0..reactors.max(1))
            .map(|_| {
                let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                Ok(Postbox {
                    mail: Mutex::default(),
                    wake,
                    woken: AtomicBool::new(false),
                    retired: AtomicBool::new(false),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { boxes }))
    }

    /// How many reactors there are.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// Sends a message to a reactor and wakes it.
    pub fn post(&self, reactor: u16, mail: Mail) {
        if let Some(postbox) = self.boxes.get(usize::from(reactor)) {
            postbox.mail.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
            self.wake(reactor);
        }
    }

    /// Wakes a reactor without mail.
    pub fn wake(&self, reactor: u16) {
        if let Some(postbox) = self.boxes.get(usize::from(reactor))
            && !postbox.woken.swap(true, Ordering::AcqRel)
        {
            // A full counter is awake already.
            let _ = postbox.wake.write(1);
        }
    }

    /// Takes everything that waits for a reactor, if it was woken since the last time, and says
    /// whether it was. `into` must be empty and is swapped in.
    pub fn take(&self, reactor: u16, into: &mut Vec<Mail>) -> bool {
        let Some(postbox) = self.boxes.get(usize::from(reactor)) else { return false };
        if !postbox.woken.load(Ordering::Acquire) {
            return false;
        }
        // In this order: whoever posts after the flag is down raises the descriptor anew, and what
        // was posted before it is in the box by now.
        let _ = postbox.wake.read();
        postbox.woken.swap(false, Ordering::AcqRel);
        let mut mail = postbox.mail.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *mail, into);
        true
    }

    /// Takes a wake descriptor down that was found readable. A reactor that polls may see the flag
    /// before the descriptor is raised; left alone, it would then be ready without end.
    pub(super) fn lower(&self, reactor: u16) {
        if let Some(postbox) = self.boxes.get(usize::from(reactor)) {
            let _ = postbox.wake.read();
        }
    }

    /// The second half of `wake`, after the reactor saw the first.
    #[cfg(test)]
    pub(super) fn raise(&self, reactor: u16) {
        self.boxes[usize::from(reactor)].wake.write(1).unwrap();
    }

    /// Notes that a reactor has nothing of its own left; the last one wakes all.
    pub fn retire(&self, reactor: u16) {
        if let Some(postbox) = self.boxes.get(usize::from(reactor)) {
            postbox.retired.store(true, Ordering::Release);
        }
        if self.all_retired() {
            (0u16..).zip(&self.boxes).for_each(|(other, _)| self.wake(other));
        }
    }

    /// Whether no reactor has anything left: until then each answers the others' sweeps.
    pub fn all_retired(&self) -> bool {
        self.boxes.iter().all(|postbox| postbox.retired.load(Ordering::Acquire))
    }

    /// What a reactor's event manager watches.
    pub fn wake_fd(&self, reactor: u16) -> Option<RawFd> {
        self.boxes.get(usize::from(reactor)).map(|postbox| postbox.wake.as_raw_fd())
    }
}
