//! Mode pages, MODE SENSE and MODE SELECT.

/// The mode parameters of a logical unit.
#[derive(Clone, Debug, Default)]
pub struct Modes {}

impl Modes {
    /// SWP of the Control page.
    pub fn software_write_protect(&self) -> bool {
        false
    }
    /// WCE of the Caching page.
    pub fn write_cache_enabled(&self) -> bool {
        true
    }
    /// D_SENSE of the Control page.
    pub fn descriptor_sense(&self) -> bool {
        false
    }
    /// TAS of the Control page: aborted commands of other nexuses end in TASK ABORTED.
    pub fn task_aborted_status(&self) -> bool {
        false
    }
}
