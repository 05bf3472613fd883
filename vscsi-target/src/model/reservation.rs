//! stub
use std::sync::Arc;
#[derive(Clone, Debug, PartialEq, Eq)]
/// id
pub struct NexusId {
    /// id
    pub transport_id: Arc<[u8]>,
    /// port
    pub relative_target_port: u16,
}
/// d
#[derive(Clone, Copy, Debug, Default)]
pub struct Denied {
    /// r
    pub read: bool,
    /// w
    pub write: bool,
    /// l
    pub legacy: bool,
}
/// r
#[derive(Clone, Debug, Default)]
pub struct Reservations {}
impl Reservations {
    /// d
    pub fn denied(&self, _n: &NexusId) -> Denied {
        Denied::default()
    }
    /// n
    pub fn nexus_loss(&mut self, _n: &NexusId) {}
}
