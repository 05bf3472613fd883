//! What changes at logical units, to be told to a client by itself.

use std::{
    fmt,
    sync::{Weak, atomic::Ordering},
};

use vscsi_target::model::{Attention, Change, Observer};

use super::{
    session::lun_of,
    shared::{Report, Shared},
};

/// Turns changes of one nexus into reports.
pub(super) struct Watch {
    pub(super) target: u8,
    pub(super) shared: Weak<Shared>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.target)
    }
}

impl Observer for Watch {
    fn changed(&self, number: u16, change: Change) {
        let condition = match change {
            Change::Added | Change::Removed => Attention::LUNS_CHANGED,
            Change::Attention(condition) if is_parameter(condition) => condition,
            Change::Attention(_) => return,
        };
        let (Some(shared), Some(lun)) = (self.shared.upgrade(), lun_of(self.target, number)) else {
            return;
        };
        let report = Report { lun, condition };
        let mut control = shared.lock();
        if control.reports.contains(&report) || control.reports.len() >= MOST_REPORTS {
            return;
        }
        control.reports.push_back(report);
        shared.news.store(true, Ordering::Release);
        drop(control);
        shared.wake();
    }
}

/// Whether a condition says that parameters changed, which a driver looks at again.
fn is_parameter(condition: Attention) -> bool {
    matches!(
        condition,
        Attention::CAPACITY_CHANGED
            | Attention::MODE_PARAMETERS_CHANGED
            | Attention::INQUIRY_CHANGED
            | Attention::MEDIUM_CHANGED
    )
}

/// Conditions kept for a client that gives no buffers for them.
const MOST_REPORTS: usize = 64;
