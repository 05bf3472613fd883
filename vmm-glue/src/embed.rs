//! Reactors for a process that has none yet: what a VMM needs besides a device.
//!
//! ```no_run
//! use vmm_glue::{crq, embed::{Reactors, ram_disk}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reactors = Reactors::<crq::Server>::start(1)?;
//! let disk = ram_disk(reactors.postboxes(), 64 << 20, "SN0001")?;
//! let export = reactors.export(0, "eui.0000000000000001", vec![(0, disk)])?;
//! # let _ = export;
//! # Ok(())
//! # }
//! ```

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use vscsi_target::{
    backend::{Backend, Mem},
    engine::Engine,
    model::{
        Identity, LogicalUnit, LuConfig, Model, ModelError,
        reservation::{NexusId, TransportId},
    },
    reactor::{Endpoint, Inbox, Postboxes, Reactor, pool::Pool, ring::Ring, workers::Workers},
    spc::saved::restore,
};

use crate::{controller::Export, crq};

/// Reactors on threads of their own, and everything they export. Dropping it finishes what is
/// acknowledged and ends the threads.
#[derive(Debug)]
pub struct Reactors<E: Endpoint> {
    model: Arc<Model>,
    postboxes: Arc<Postboxes>,
    inboxes: Vec<Arc<Inbox<E>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<E: Endpoint> Reactors<E> {
    /// Starts `count` reactors, at least one.
    ///
    /// # Errors
    /// The system has no threads or descriptors for them.
    pub fn start(count: u16) -> io::Result<Self> {
        let postboxes = Postboxes::new(count.into())?;
        let model = Model::new(Arc::clone(&postboxes));
        let numbers = 0..postboxes.len() as u16;
        let inboxes = numbers.map(|number| Inbox::new(number, Arc::clone(&postboxes))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let mut reactors = Self { model, postboxes, inboxes, stop, threads: Vec::new() };
        let workers = Arc::new(Workers::new(WORKERS));
        for inbox in reactors.inboxes.clone() {
            let thread = reactors.run(inbox, Arc::clone(&workers))?;
            reactors.threads.push(thread);
        }
        Ok(reactors)
    }

    fn run(&self, inbox: Arc<Inbox<E>>, workers: Arc<Workers>) -> io::Result<JoinHandle<()>> {
        let number = self.threads.len() as u16;
        let (model, stop) = (Arc::clone(&self.model), Arc::clone(&self.stop));
        let (ready, outcome) = mpsc::channel();
        let body = move || {
            // Pool and ring belong to this thread.
            let engine = Engine::new(model, number, Pool::new(POOL), Ring::new(RING), workers);
            match Reactor::new(engine, inbox) {
                Ok(reactor) => {
                    let _ = ready.send(Ok(()));
                    reactor.run(&stop);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name(format!("reactor-{number}")).spawn(body)?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
        Ok(thread)
    }

    /// Everything that is exported.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What logical units are made with.
    pub fn postboxes(&self) -> &Arc<Postboxes> {
        &self.postboxes
    }

    /// The way to one reactor.
    pub fn inbox(&self, reactor: u16) -> Option<&Arc<Inbox<E>>> {
        self.inboxes.get(usize::from(reactor))
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.inboxes.len() as u16
    }

    /// Makes a target with one port and these logical units by number, and the export of it as number
    /// `id` of a device. The name has to be new here.
    ///
    /// # Errors
    /// The name is taken, or a number is.
    pub fn export(
        &self,
        id: u8,
        name: &str,
        units: Vec<(u16, Arc<LogicalUnit>)>,
    ) -> Result<Export, ModelError> {
        let target = self.model.add_target(name)?;
        let port = target.add_port(1, SRP_PROTOCOL, format!("{name},{id}"));
        for (number, unit) in units {
            target.map(number, unit, None)?;
        }
        let mut identifier = [0; 16];
        // Different initiator ports for different targets are different enough.
        identifier[15] = id;
        let initiator = NexusId::new(TransportId::srp(identifier), port);
        Ok(Export { id, target, port, initiator })
    }
}

impl<E: Endpoint> Drop for Reactors<E> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        (0..self.count()).for_each(|number| self.postboxes.wake(number));
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl crq::Router for Reactors<crq::Server> {
    fn reactors(&self) -> u16 {
        self.count()
    }

    fn open(&self, reactor: u16, seed: crq::Seed) {
        if let Some(inbox) = self.inbox(reactor) {
            inbox.open(seed);
        }
    }
}

/// A logical unit of this backend with a serial number, all of whose state ends with the process.
///
/// # Errors
/// Its reservations or modes cannot be made.
pub fn disk(
    postboxes: &Arc<Postboxes>,
    backend: Backend,
    serial: &str,
) -> io::Result<Arc<LogicalUnit>> {
    let config = LuConfig {
        identity: Identity::derive(serial, Some(serial)),
        removable: false,
        read_only: false,
        state_dir: None,
    };
    let (reservations, modes) = restore(&config, backend.properties())
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(LogicalUnit::new(config, backend, reservations, modes, Arc::clone(postboxes)))
}

/// A disk of `bytes` of memory in blocks of 512 bytes.
///
/// # Errors
/// There is not so much memory.
pub fn ram_disk(
    postboxes: &Arc<Postboxes>,
    bytes: u64,
    serial: &str,
) -> io::Result<Arc<LogicalUnit>> {
    disk(postboxes, Backend::Mem(Mem::new(bytes, 512)?), serial)
}

/// Threads for what blocks.
const WORKERS: usize = 4;
/// Bytes of buffers that one reactor lends at a time.
const POOL: usize = 64 << 20;
/// Entries of the submission queue.
const RING: u32 = 256;
/// SRP's protocol identifier (SPC-5).
const SRP_PROTOCOL: u8 = 4;
