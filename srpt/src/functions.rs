//! Task management functions of a nexus, for commands that the core does not know yet.
//!
//! A function may come by another channel than the commands that it ends. The core finds those
//! wherever they are, but for a command whose descriptor table is still being read; its channel
//! looks here before it starts it.

use crate::channel::is_same_unit;
use libsrp::{Lun, Tag, TaskFunction, TaskManagement};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The latest functions of a nexus that end commands.
#[derive(Debug, Default)]
pub struct Functions {
    count: AtomicU64,
    latest: Mutex<VecDeque<Function>>,
}

#[derive(Debug)]
struct Function {
    number: u64,
    lun: Lun,
    /// The command it ends; `None` for all of the logical unit.
    managed: Option<Tag>,
}

impl Functions {
    /// How many there were: what [`Functions::ended`] is asked with later.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Notes a function, before the core gets it.
    pub fn note(&self, request: &TaskManagement) {
        let managed = match request.function {
            TaskFunction::AbortTask => Some(request.managed),
            TaskFunction::AbortTaskSet
            | TaskFunction::ClearTaskSet
            | TaskFunction::LogicalUnitReset => None,
            _ => return,
        };
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == MOST {
            latest.pop_front();
        }
        let number = self.count.load(Ordering::Acquire);
        latest.push_back(Function { number, lun: request.lun, managed });
        self.count.store(number + 1, Ordering::Release);
    }

    /// Whether a command that came when there were `since` functions was ended by a later one.
    pub fn ended(&self, since: u64, tag: Tag, lun: Lun) -> bool {
        if self.count() == since {
            return false;
        }
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().any(|function| {
            function.number >= since
                && is_same_unit(function.lun, lun)
                && function.managed.is_none_or(|managed| managed == tag)
        })
    }
}

/// Functions kept: more than come while a table is being read.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn function(function: TaskFunction, lun: u8, managed: u8) -> TaskManagement {
        TaskManagement {
            tag: Tag::default(),
            lun: Lun([0, lun, 0, 0, 0, 0, 0, 0]),
            function,
            managed: Tag([managed; 8]),
        }
    }

    #[test]
    fn functions_end_what_came_before_them_only() {
        let functions = Functions::default();
        let ended = |since, tag, lun: u8| {
            functions.ended(since, Tag([tag; 8]), Lun([0x40, lun, 0, 0, 0, 0, 0, 0]))
        };
        assert!(!ended(0, 1, 0));
        functions.note(&function(TaskFunction::AbortTask, 0, 1));
        assert!(ended(0, 1, 0) && !ended(0, 2, 0) && !ended(0, 1, 3) && !ended(1, 1, 0));
        functions.note(&function(TaskFunction::LogicalUnitReset, 3, 0xFF));
        assert!(ended(1, 9, 3) && !ended(1, 9, 0) && !ended(2, 9, 3));
        functions.note(&function(TaskFunction::ClearAca, 5, 0));
        assert_eq!(functions.count(), 2);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let functions = Functions::default();
        for lun in 0..=MOST as u8 {
            functions.note(&function(TaskFunction::AbortTaskSet, lun, 0));
        }
        let ended = |lun| functions.ended(0, Tag::default(), Lun([0, lun, 0, 0, 0, 0, 0, 0]));
        assert!(!ended(0) && ended(1) && ended(MOST as u8));
    }
}
