//! What a hypervisor call gives back (LoPAR, "Hypervisor Call Functions", return codes).

/// The result of a hypervisor call, for the guest's register r3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Hcall {
    /// H_Success.
    Success,
    /// H_Busy: call again.
    Busy,
    /// H_Closed: the partner has no queue. From H_REG_CRQ it says that the queue is registered all the
    /// same.
    Closed,
    /// H_LongBusyOrder1mSec: call again in a millisecond or so.
    LongBusy,
    /// H_Parameter: an argument is wrong.
    Parameter,
    /// H_Dropped: there is no room in the partner's queue.
    Dropped,
    /// H_Resource: the queue is registered already, or not free yet.
    Resource,
}

impl Hcall {
    /// The value for the guest.
    pub const fn code(self) -> i64 {
        match self {
            Self::Success => 0,
            Self::Busy => 1,
            Self::Closed => 2,
            Self::LongBusy => 9900,
            Self::Parameter => -4,
            Self::Dropped => -12,
            Self::Resource => -16,
        }
    }
}
