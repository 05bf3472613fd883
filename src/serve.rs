//! `vscsi serve`: joins exports, reactors, fabrics, control socket and signals, and ends them in
//! order.

mod banner;
mod fabric;
mod inherited;
mod notify;
#[cfg_attr(feature = "rdma", path = "serve/over_rdma.rs")]
#[cfg_attr(not(feature = "rdma"), path = "serve/no_rdma.rs")]
mod over_rdma;
mod process;
pub mod tcmu;
mod vhost_user;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use iscsi::{
    endpoint::Note,
    negotiate::Transport,
    portal::{BindError, Bound},
    shared::{Access, Limits, Shared},
};
use nix::sys::signal::kill;
use vmm_glue::tcmu::watch::Watcher;
use vscsi_target::{
    backend::{Backend, nvme},
    model::Model,
    reactor::{Inbox, Postboxes},
};

use crate::{
    cli::serve::Plan,
    config::{self, Allow, ChapConfig, IscsiConfig, MAX_DEFAULT_REACTORS, Place, file},
    control::{self, server::ControlSocket, verbs},
    doctor,
    export::{ExportError, Exporter},
    report::{Exit, Report},
    secrets::{self, SecretError},
};
use fabric::{AnySeed, Reactors};
use over_rdma::OverRdma;
use process::ReactorThread;
use vhost_user::Front;

/// A running target.
#[derive(Debug)]
pub struct Daemon {
    /// The model, and how it grows.
    pub exporter: Exporter,
    /// What iSCSI's endpoints share.
    pub shared: Arc<Shared>,
    /// The controllers for VMMs.
    pub fronts: Vec<Front>,
    /// What serves the kernel's TCMU devices.
    pub tcmu: Option<Watcher>,
    /// iSER and SRP.
    pub over_rdma: OverRdma,
    /// The reactors' threads by number.
    pub threads: Vec<ReactorThread>,
    /// When it started.
    pub started: Instant,
}

impl Daemon {
    /// Makes every session and queue look at the LUN map, also those that are idle.
    pub fn refresh_sessions(&self) {
        for facts in self.shared.sessions() {
            self.shared.router.note(facts.place(), Note::Refresh);
        }
        for front in &self.fronts {
            front.refresh();
        }
        if let Some(tcmu) = &self.tcmu {
            tcmu.refresh();
        }
        self.over_rdma.refresh();
    }
}

/// Where iSCSI initiators are listened for.
#[derive(Clone, Copy, Debug)]
pub struct Portal {
    /// The address.
    pub address: SocketAddr,
    /// Tag of its portal group.
    pub tag: u16,
    /// What it is reached over.
    pub transport: Transport,
}

/// Why the target does not start, besides a disk's or a file's faults.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A portal.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// An address for RDMA.
    #[cfg(feature = "rdma")]
    #[error(transparent)]
    Listen(#[from] rdma::ListenError),
    /// A disk or target.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file of secrets.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Mutual authentication without the target's credential.
    #[error("{} has no \"mutual USER SECRET\" line", .0.display())]
    NoMutual(std::path::PathBuf),
    /// A thread, an event or a random source.
    #[error("cannot start {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl From<StartError> for Report {
    fn from(error: StartError) -> Self {
        let what = error.to_string();
        match error {
            StartError::Bind(error) => {
                let exit = match error.reason.kind() {
                    std::io::ErrorKind::AddrInUse => Exit::Retry,
                    std::io::ErrorKind::PermissionDenied => Exit::Permission,
                    _ => Exit::Unavailable,
                };
                Self::new(exit, "portal", what).fix(error.fix())
            }
            #[cfg(feature = "rdma")]
            StartError::Listen(error) => over_rdma::report(&error),
            StartError::Export(error) => error.into(),
            StartError::Secret(error) => error.into(),
            StartError::NoMutual(_) => Self::new(Exit::Config, "secrets", what)
                .why("\"mutual\": true makes the target authenticate itself too")
                .fix("add such a line, with a secret that no initiator has"),
            StartError::System { .. } => Self::new(Exit::Unavailable, "start", what)
                .fix("check the limits of this user (ulimit -a)"),
        }
    }
}

/// Checks a configuration file with everything it refers to, except that disks are not opened.
pub fn check(path: &Path, json: bool) -> Result<(), Report> {
    let config = file::read(path)?;
    for target in &config.targets {
        chap(target.chap.as_ref())?;
    }
    chap(config.discovery_chap.as_ref())?;
    let luns: usize = config.targets.iter().map(|target| target.luns.len()).sum();
    let (targets, controllers) = (config.targets.len(), config.controllers.len());
    let rdma = config.needs_rdma().then(doctor::rdma);
    if json {
        let counts = serde_json::json!({
            "targets": targets, "luns": luns, "controllers": controllers, "rdma": rdma,
        });
        println!("{counts}");
    } else {
        let path = path.display();
        println!("{path}: {targets} targets, {luns} LUNs, {controllers} controllers for VMMs");
        if let Some(rdma) = rdma {
            println!("{path}: {}", rdma.summary());
        }
    }
    Ok(())
}

/// Serves until a signal ends it.
pub fn run(plan: Plan, json: bool) -> Result<(), Report> {
    let started = Instant::now();
    let config = plan.config;
    if config.needs_rdma() {
        doctor::require_rdma()?;
    }
    // Before anything is opened: it takes over inherited descriptors by their numbers. And early, for
    // guests whose VMM waits to connect again.
    let doors = vhost_user::open(&config.controllers)?;
    process::raise_descriptor_limit();
    // Before any thread: they inherit the mask, so that only the waiting thread gets signals.
    let signals = process::block_signals().map_err(|source| system("signals", source))?;

    let count = config.reactors.unwrap_or_else(default_reactors);
    let postboxes =
        Postboxes::new(count.into()).map_err(|source| system("the reactors", source))?;
    let model = Model::new(Arc::clone(&postboxes));
    let exported = Arc::clone(&model);
    let exporter = Exporter::new(Arc::clone(&model), config.state_dir.clone());
    let inboxes: Vec<_> =
        (0..count).map(|reactor| Inbox::new(reactor, Arc::clone(&postboxes))).collect();
    let router = Arc::new(Reactors::new(inboxes.clone()));
    let shared = Shared::new(
        model,
        Arc::clone(&router) as _,
        config.iscsi.preferences,
        limits(&config.iscsi),
    )
    .map_err(|source| system("the random source", source))?;

    let mut bound = Vec::new();
    for group in &config.portal_groups {
        for &address in &group.listen {
            bound.push(Bound::new(address, group.tag).map_err(|error| in_use(error, plan.demo))?);
        }
    }
    let opened = over_rdma::open(&config)?;
    for target in &config.targets {
        let access = access(target)?;
        exporter.target(target, &config.portal_groups).map_err(StartError::from)?;
        shared.set_access(target.name.as_str(), access);
    }
    let devices = vhost_user::devices(doors, &exporter, &router)?;
    // Last: port identifiers count up, and those before keep theirs.
    for port in &config.srp.ports {
        exporter.srp_port(port).map_err(StartError::from)?;
    }
    let tcmu = config.tcmu.then(|| tcmu::Opened::new(&exporter)).transpose()?;
    shared.set_discovery(chap(config.discovery_chap.as_ref())?);
    let socket = control_socket(&config.control)?;

    let stop = Arc::new(AtomicBool::new(false));
    let threads = process::start_reactors(&shared.model, &inboxes, config.io_timeout, &stop)?;
    let portal = |bound: &Bound| Portal {
        address: bound.portal.address,
        tag: bound.portal.tag,
        transport: bound.portal.transport,
    };
    let mut portals: Vec<Portal> = bound.iter().map(portal).collect();
    for (bound, inbox) in bound.into_iter().zip(inboxes.iter().cycle()) {
        inbox.open(AnySeed::Iscsi(bound.seed(Arc::clone(&shared))));
    }
    let over_rdma = opened.serve(&config, &exporter.model, &shared, &router, &inboxes);
    portals.extend(&over_rdma.portals);
    let (handles, threads): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
    let (fronts, sockets) = vhost_user::serve(devices, request_stop)
        .map_err(|source| system("a controller for a VMM", source))?;
    let tcmu = tcmu
        .map(|opened| opened.serve(&router))
        .transpose()
        .map_err(|source| system("TCMU", source))?;
    let daemon = Arc::new(Daemon {
        exporter,
        shared: Arc::clone(&shared),
        fronts,
        tcmu,
        over_rdma,
        threads,
        started,
    });
    if let Some(socket) = &socket {
        let daemon = Arc::clone(&daemon);
        socket
            .serve(move |method, params| verbs::call(&daemon, method, params))
            .map_err(|source| system("the control socket", source))?;
    }
    let control = socket.as_ref().map(ControlSocket::path);
    banner::print(&daemon, &config, &portals, control, plan.demo, json);
    notify::notify(&format!("READY=1\nSTATUS={}", banner::status(&daemon, &portals)));

    signals.wait();
    notify::notify("STOPPING=1\nSTATUS=finishing what is acknowledged");
    tracing::info!("stopping; a second signal ends the process at once");
    signals.exit_on_next();
    vhost_user::stop(&daemon.fronts, GRACE);
    shared.stop(GRACE);
    if let Some(tcmu) = &daemon.tcmu {
        tcmu.stop();
    }
    daemon.over_rdma.stop(GRACE);
    freeze(&daemon);
    stop.store(true, Ordering::Release);
    for reactor in 0..count {
        postboxes.wake(reactor);
    }
    for handle in handles {
        // A panic ends the whole process, so that joining does not fail.
        let _ = handle.join();
    }
    drop((socket, sockets));
    let flushed = flush(&daemon);
    close_devices(daemon, exported);
    flushed
}

/// Shuts NVMe controllers down, so that they save what they cache.
fn close_devices(daemon: Arc<Daemon>, model: Arc<Model>) {
    drop(daemon);
    for target in model.targets() {
        for (number, lu) in target.luns() {
            if matches!(lu.backend, Backend::Nvme(_)) {
                let _ = target.unmap(number);
            }
        }
    }
    if !nvme::settle(GRACE) {
        tracing::warn!("an NVMe controller is still busy");
    }
}

/// Keeps the live state of all logical units as it is now: what ends from here on ends with the
/// process, and comes back with it.
fn freeze(daemon: &Daemon) {
    for target in daemon.exporter.model.targets() {
        for (number, lu) in target.luns() {
            if let Err(error) = lu.freeze() {
                tracing::error!(target = %target.name, lun = number, %error, "state is not kept");
            }
        }
    }
}

/// Ends the process as SIGTERM does.
pub fn request_stop() {
    // To this process itself, which may always do that.
    let _ = kill(nix::unistd::Pid::this(), process::OWN_REQUEST);
}

/// Everything acknowledged to the medium.
fn flush(daemon: &Daemon) -> Result<(), Report> {
    let mut failed = Vec::new();
    for target in daemon.exporter.model.targets() {
        for (number, lu) in target.luns() {
            let read_only = lu.config.read_only || lu.backend.properties().read_only;
            if !read_only && let Err(error) = lu.backend.flush() {
                let description = &lu.backend.properties().description;
                failed.push(format!("LUN {number} of {} ({description}): {error}", target.name));
            }
        }
    }
    if failed.is_empty() {
        tracing::info!("stopped");
        return Ok(());
    }
    Err(Report::new(Exit::Io, "flush", "not everything written could be flushed")
        .why(failed.join("; "))
        .fix("check these images before they are used again"))
}

fn default_reactors() -> u16 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(u16::MAX).min(MAX_DEFAULT_REACTORS)
}

fn limits(iscsi: &IscsiConfig) -> Limits {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Limits {
        window: iscsi.window,
        sessions_per_initiator: iscsi.sessions_per_initiator as usize,
        half_open: iscsi.half_open as usize,
        login: seconds(iscsi.login_timeout),
        ping_after: seconds(iscsi.ping_after),
        ping_answer: seconds(iscsi.ping_answer),
        stop: GRACE,
    }
}

fn access(target: &config::TargetConfig) -> Result<Access, StartError> {
    Ok(Access {
        allow: match &target.allow {
            Allow::Any => iscsi::shared::Allow::Any,
            Allow::Names(names) => iscsi::shared::Allow::Only(names.clone()),
        },
        chap: chap(target.chap.as_ref())?,
        alias: target.alias.clone(),
        redirect: target.redirect.as_ref().map(|redirect| match redirect.permanent {
            true => iscsi::shared::Redirect::Permanent(redirect.to.clone()),
            false => iscsi::shared::Redirect::Temporary(redirect.to.clone()),
        }),
        portal_groups: target.portal_groups.clone(),
    })
}

fn chap(config: Option<&ChapConfig>) -> Result<Option<iscsi::chap::Chap>, StartError> {
    let Some(config) = config else { return Ok(None) };
    let chap = secrets::read(&config.file, config.algorithms)?;
    if config.mutual && chap.target.is_none() {
        return Err(StartError::NoMutual(config.file.path.clone()));
    }
    Ok(Some(chap))
}

/// The socket; without one at the usual place the target runs all the same.
fn control_socket(place: &Place) -> Result<Option<ControlSocket>, Report> {
    let Some(path) = control::socket(place) else { return Ok(None) };
    match ControlSocket::bind(&path) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if *place == Place::Usual => {
            tracing::warn!("{error}; this target has none: give it one with --control SOCKET");
            Ok(None)
        }
        Err(error) => Err(error
            .report("control-in-use", "control-socket")
            .fix("--control SOCKET for another place, or --control none")),
    }
}

fn in_use(error: BindError, demo: bool) -> Report {
    let taken = error.reason.kind() == std::io::ErrorKind::AddrInUse;
    let report = Report::from(StartError::from(error));
    if taken && demo {
        return report.fix("vscsi serve --ram 1G --iscsi 127.0.0.1:3261 --allow-any");
    }
    report
}

fn system(what: &'static str, source: std::io::Error) -> Report {
    StartError::System { what, source }.into()
}

/// How long initiators have to log out before their sessions are dropped.
const GRACE: Duration = Duration::from_secs(2);
