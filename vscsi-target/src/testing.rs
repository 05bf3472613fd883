//! What unit tests of command handlers share: a target with one logical unit and one I_T nexus.

use crate::{
    backend::{Backend, Mem},
    engine::Call,
    model::{
        Identity, LogicalUnit, LuConfig, Model, Nexus, Target,
        reservation::{NexusId, TransportId},
    },
    opcode::{Fail, Row},
    reactor::Postboxes,
    sense::Sense,
    spc::saved::restore,
};
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// A target `iqn.2026-11.test:t` with port 1 in group 1 and a logical unit at LUN 0.
#[derive(Debug)]
pub struct Fixture {
    pub model: Arc<Model>,
    pub target: Arc<Target>,
    pub lu: Arc<LogicalUnit>,
    /// The nexus of the initiator `iqn.2026-11.test:a`.
    pub nexus: Arc<Nexus>,
    /// What the last call wants aborted.
    pub aborted: Vec<NexusId>,
}

impl Fixture {
    /// One MiB of memory in 512-byte blocks.
    pub fn new() -> Self {
        Self::over(Backend::Mem(Mem::new(1 << 20, 512).unwrap()))
    }

    /// Over a backend of the test's own.
    pub fn over(backend: Backend) -> Self {
        Self::with(backend, |_| ())
    }

    /// The same with a configuration of the test's own.
    pub fn with(backend: Backend, configure: impl FnOnce(&mut LuConfig)) -> Self {
        let mut config = LuConfig {
            identity: Identity::derive("seed", Some("SN0001")),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        configure(&mut config);
        let postboxes = Postboxes::new(1).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.test:t").unwrap();
        target.add_port(1, 5, "iqn.2026-11.test:t,t,0x0001".into());
        let (reservations, modes) = restore(&config, backend.properties()).unwrap();
        let lu = LogicalUnit::new(config, backend, reservations, modes, postboxes);
        target.map(0, Arc::clone(&lu), None).unwrap();
        let nexus = establish(&target, "iqn.2026-11.test:a");
        Self { model, target, lu, nexus, aborted: Vec::new() }
    }

    /// Over one MiB of memory, with a directory for what is to survive.
    pub fn saving_in(directory: &Path) -> Self {
        let backend = Backend::Mem(Mem::new(1 << 20, 512).unwrap());
        Self::with(backend, |config| config.state_dir = Some(directory.to_owned()))
    }

    /// Another nexus to the same port.
    pub fn another(&self, initiator: &str) -> Arc<Nexus> {
        establish(&self.target, initiator)
    }

    /// Executes a command as the engine would, without the checks that come before and without
    /// truncating the answer.
    pub fn call(&mut self, cdb: &[u8], data: &[u8]) -> Result<Vec<u8>, Fail> {
        let nexus = Arc::clone(&self.nexus);
        self.call_from(&nexus, cdb, data)
    }

    /// The same from another nexus.
    pub fn call_from(&mut self, nexus: &Nexus, cdb: &[u8], data: &[u8]) -> Result<Vec<u8>, Fail> {
        let row = Row::find(cdb)?;
        let table = nexus.table();
        let itl = table.at(0).ok_or(Sense::LUN_NOT_SUPPORTED)?;
        let mut reply = Vec::new();
        self.aborted.clear();
        let mut call = Call {
            model: &self.model,
            itl,
            table: &table,
            cdb,
            data,
            reply: &mut reply,
            abort: &mut self.aborted,
            cancelled: &AtomicBool::new(false),
        };
        (row.handler)(&mut call)?;
        Ok(reply)
    }
}

/// The sense a command failed with.
pub fn sense(result: Result<Vec<u8>, Fail>) -> Sense {
    match result {
        Err(Fail::Check(sense)) => sense,
        other => panic!("expected CHECK CONDITION, got {other:?}"),
    }
}

fn establish(target: &Arc<Target>, initiator: &str) -> Arc<Nexus> {
    let id = TransportId::iscsi(initiator, [0, 2, 0x3D, 0, 0, 1]).unwrap();
    Nexus::establish(Arc::clone(target), 1, NexusId::new(id, 1), initiator.into())
}
