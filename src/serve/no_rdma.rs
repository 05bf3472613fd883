//! What takes the place of iSER and SRP in a build without RDMA. A configuration that needs them is
//! refused before it gets here (see [`crate::doctor::require_rdma`]), so that nothing is served.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use iscsi::shared::Shared;
use vscsi_target::{model::Model, reactor::Inbox};

use super::{
    Portal, StartError,
    fabric::{AnyEndpoint, Reactors},
};
use crate::{config::Config, control::api::SrpSession};

/// No addresses.
#[derive(Debug)]
pub struct Opened;

/// Binds nothing.
pub fn open(config: &Config) -> Result<Opened, StartError> {
    debug_assert!(!config.needs_rdma());
    Ok(Opened)
}

impl Opened {
    /// Serves nothing.
    pub fn serve(
        self,
        _config: &Config,
        _model: &Arc<Model>,
        _shared: &Arc<Shared>,
        _router: &Arc<Reactors>,
        _inboxes: &[Arc<Inbox<AnyEndpoint>>],
    ) -> OverRdma {
        OverRdma { portals: Vec::new(), listen: Vec::new() }
    }
}

/// Nothing is served over RDMA.
#[derive(Debug)]
pub struct OverRdma {
    /// Portals of iSER: none.
    pub portals: Vec<Portal>,
    /// Where SRP listens: nowhere.
    pub listen: Vec<SocketAddr>,
}

impl OverRdma {
    /// SRP's sessions: none.
    pub fn srp_sessions(&self) -> Vec<SrpSession> {
        Vec::new()
    }

    /// There is no SRP session to end.
    pub fn kick(&self, _id: u32) -> bool {
        false
    }

    /// Nobody looks at the LUN map.
    pub fn refresh(&self) {}

    /// Nobody is logged in.
    pub fn stop(&self, _grace: Duration) {}
}
