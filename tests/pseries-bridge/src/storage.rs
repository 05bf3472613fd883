//! Targets and logical units for the client, and the reactor that serves them.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use thiserror::Error;
use vscsi_target::{
    backend::{Backend, File, FileOptions, Mem, OpenError},
    engine::Engine,
    model::{Identity, LogicalUnit, LuConfig, Model, ModelError, Target},
    reactor::{Endpoint, Inbox, Postboxes, Reactor, pool::Pool, ring::Ring, workers::Workers},
    spc::saved::restore,
};

/// A logical unit as the command line has it: `TARGET:LUN:PATH` or `TARGET:LUN:ram=BYTES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    target: u8,
    number: u16,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Ram(u64),
}

/// Why there is no such logical unit.
#[derive(Debug, Error)]
pub enum StorageError {
    /// Its form.
    #[error("{0:?} is not TARGET:LUN:PATH or TARGET:LUN:ram=BYTES")]
    Form(String),
    /// The image.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The number.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What a file of saved state says, though there is none.
    #[error("cannot make its state: {0}")]
    State(String),
    /// Memory or threads.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl FromStr for Lun {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let parse = || {
            let mut words = text.splitn(3, ':');
            let (target, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let source = words.next()?;
            let source = match source.strip_prefix("ram=") {
                Some(bytes) => Source::Ram(bytes.parse().ok()?),
                None => Source::File(source.into()),
            };
            Some(Self { target, number, source })
        };
        parse().ok_or_else(|| StorageError::Form(text.into()))
    }
}

/// Targets by the number that the client knows them by.
#[derive(Debug)]
pub struct Storage {
    /// All of them.
    pub model: Arc<Model>,
    /// By number.
    pub targets: BTreeMap<u8, Arc<Target>>,
    workers: Arc<Workers>,
    stall: Arc<Stall>,
}

impl Storage {
    /// Opens these.
    pub fn open(luns: &[Lun]) -> Result<Self, StorageError> {
        let model = Model::new(Postboxes::new(1)?);
        let mut targets = BTreeMap::new();
        for lun in luns {
            let name = format!("iqn.2026-11.net.example:partition{}", lun.target);
            let target = match targets.get(&lun.target) {
                Some(target) => Arc::clone(target),
                None => model.add_target(&name)?,
            };
            let backend = match &lun.source {
                &Source::Ram(bytes) => Backend::Mem(Mem::new(bytes, 512)?),
                Source::File(path) => Backend::File(File::open(&FileOptions {
                    path: path.clone(),
                    block_size: 512,
                    read_only: false,
                    direct: false,
                })?),
            };
            let identity = Identity::derive(&format!("{name} {}", lun.number), None);
            let config = LuConfig { identity, removable: false, read_only: false, state_dir: None };
            let (reservations, modes) = restore(&config, backend.properties())
                .map_err(|error| StorageError::State(format!("{error:?}")))?;
            let postboxes = Arc::clone(&model.postboxes);
            let lu = LogicalUnit::new(config, backend, reservations, modes, postboxes);
            target.map(lun.number, lu, None)?;
            targets.insert(lun.target, target);
        }
        let workers = Arc::new(Workers::new(1));
        Ok(Self { model, targets, workers, stall: Arc::default() })
    }

    /// Starts the reactor, which runs until the process ends. Files are read and written by the one
    /// worker thread, so that a [`Storage::stall`] stops them all.
    pub fn start<E: Endpoint>(&self) -> io::Result<Arc<Inbox<E>>> {
        let inbox = Inbox::new(0, Arc::clone(&self.model.postboxes));
        let (model, workers) = (Arc::clone(&self.model), Arc::clone(&self.workers));
        let ours = Arc::clone(&inbox);
        thread::Builder::new().name("reactor".into()).spawn(move || {
            let engine = Engine::new(model, 0, Pool::new(POOL), Ring::disabled(), workers);
            let run = Reactor::new(engine, ours).map(|reactor| reactor.run(&Default::default()));
            tracing::error!(?run, "the reactor ended");
        })?;
        Ok(inbox)
    }

    /// Nothing is read from files or written to them, or it is again.
    pub fn stall(&self, stall: bool) {
        let was = std::mem::replace(
            &mut *self.stall.is_on.lock().unwrap_or_else(PoisonError::into_inner),
            stall,
        );
        self.stall.changed.notify_all();
        if stall && !was {
            let stall = Arc::clone(&self.stall);
            self.workers.run(Box::new(move || stall.wait()));
        }
    }
}

#[derive(Debug, Default)]
struct Stall {
    is_on: Mutex<bool>,
    changed: Condvar,
}

impl Stall {
    fn wait(&self) {
        let is_on = self.is_on.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(is_on, |is_on| *is_on));
    }
}

/// Bytes of buffers that the reactor lends at a time.
const POOL: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lun_is_a_path_or_memory() {
        let lun =
            |text: &str| text.parse::<Lun>().ok().map(|lun| (lun.target, lun.number, lun.source));
        assert_eq!(lun("1:2:/a:b"), Some((1, 2, Source::File("/a:b".into()))));
        assert_eq!(lun("0:31:ram=4096"), Some((0, 31, Source::Ram(4096))));
    }

    #[test]
    fn other_words_are_no_luns() {
        for text in ["", "1", "1:2", "x:2:/a", "256:0:/a", "1:y:/a", "1:2:ram=", "1:2:ram=-1"] {
            assert!(text.parse::<Lun>().is_err(), "{text}");
        }
    }
}
