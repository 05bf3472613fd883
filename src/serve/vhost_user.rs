//! The controllers for VMMs of this process: their sockets, their devices, and the front door that
//! joins the two.

use std::{
    fmt::Write,
    io,
    os::{fd::RawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thiserror::Error;
use vmm_glue::{controller, door::Server, queue::Note, vfio_user, vhost};

use super::{fabric::Reactors, inherited};
use crate::{
    config::vhost_user::{Controller, Door, Protocol},
    control::api::{ControllerInfo, Session, TargetEntry},
    export::{ExportError, Exporter},
    report::{Exit, Report},
    socket::{Listening, SocketError},
};

/// Why a controller has no door.
#[derive(Debug, Error)]
pub enum DoorError {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its descriptor.
    #[error("descriptor {number} is no connected vhost-user socket: {source}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<DoorError> for Report {
    fn from(error: DoorError) -> Self {
        match &error {
            DoorError::Socket(socket) => {
                let report = socket.report("socket-in-use", "vhost-user-socket");
                match socket {
                    SocketError::InUse(path) => report
                        .why("a controller has a socket of its own")
                        .fix(format!("fuser {} names the process", path.display())),
                    SocketError::NoDirectory(path) => {
                        let parent = path.parent().unwrap_or_else(|| Path::new("/"));
                        report.fix(format!("mkdir -p {}", parent.display()))
                    }
                    SocketError::NotASocket(_) => report.fix("choose another path, or remove it"),
                    SocketError::Create { .. } => {
                        report.fix("choose a directory that this user may write to")
                    }
                }
            }
            DoorError::Descriptor { .. } => {
                Self::new(Exit::NoInput, "vhost-user-descriptor", error.to_string())
                    .fix("pass a connected Unix stream socket, or use --socket-path=PATH")
            }
        }
    }
}

/// A controller whose door is open, and which nobody serves yet.
#[derive(Debug)]
pub struct Opened {
    config: Controller,
    way: Way,
}

/// How the VMM comes.
#[derive(Debug)]
enum Way {
    Listening(Listening),
    Connected(UnixStream),
}

/// Opens the door of each. VMMs that connect wait until they are served.
pub fn open(controllers: &[Controller]) -> Result<Vec<Opened>, DoorError> {
    let opened = controllers.iter().map(|config| {
        let way = match &config.door {
            Door::Socket(place) => Way::Listening(Listening::bind(place.path(), place.mode)?),
            &Door::Descriptor(number) => Way::Connected(
                inherited::stream(number)
                    .map_err(|source| DoorError::Descriptor { number, source })?,
            ),
        };
        Ok(Opened { config: config.clone(), way })
    });
    opened.collect()
}

/// A controller with its device.
#[derive(Debug)]
pub struct Device {
    opened: Opened,
    device: Arc<controller::Controller>,
}

/// Makes the device of each, with ports of its own in its targets, which are there.
pub fn devices(
    doors: Vec<Opened>,
    exporter: &Exporter,
    router: &Arc<Reactors>,
) -> Result<Vec<Device>, ExportError> {
    let devices = doors.into_iter().map(|opened| {
        let exports = exporter.controller(&opened.config)?;
        let name = opened.config.name.to_string();
        let router = Arc::clone(router);
        let device = controller::Controller::new(name, opened.config.queues, exports, router);
        Ok(Device { opened, device })
    });
    devices.collect()
}

/// A controller that is served.
#[derive(Debug)]
pub struct Front {
    config: Controller,
    server: Arc<Server>,
}

/// Serves each; the reactors run. Where a VMM came with a descriptor, `gone` is called when it is
/// gone. The files of the sockets are removed with what is returned besides.
pub fn serve(devices: Vec<Device>, gone: fn()) -> io::Result<(Vec<Front>, Vec<Listening>)> {
    let (mut fronts, mut sockets) = (Vec::new(), Vec::new());
    for Device { opened, device } in devices {
        let server = match opened.way {
            Way::Listening(socket) => {
                let listener = socket.listener.try_clone()?;
                let server = match opened.config.protocol {
                    Protocol::VhostUser => vhost::listen(listener, device)?,
                    Protocol::VfioUser => vfio_user::listen(listener, device)?,
                };
                sockets.push(socket);
                Arc::new(server)
            }
            Way::Connected(stream) => {
                let server = Arc::new(match opened.config.protocol {
                    Protocol::VhostUser => vhost::connected(stream, device)?,
                    Protocol::VfioUser => vfio_user::connected(stream, device)?,
                });
                let waited = Arc::clone(&server);
                thread::Builder::new().name("vmm-gone".to_owned()).spawn(move || {
                    waited.wait();
                    gone();
                })?;
                server
            }
        };
        fronts.push(Front { config: opened.config, server });
    }
    Ok((fronts, sockets))
}

/// Ends every connection once what is in flight is done; the reactors run still. After `grace` those
/// that are not done are left to them.
pub fn stop(fronts: &[Front], grace: Duration) {
    let (done, wait) = mpsc::channel();
    for front in fronts {
        let (server, done) = (Arc::clone(&front.server), done.clone());
        let stopper = move || {
            server.stop();
            let _ = done.send(());
        };
        if thread::Builder::new().name("vmm-stop".to_owned()).spawn(stopper).is_err() {
            front.server.stop();
        }
    }
    drop(done);
    let until = Instant::now() + grace;
    for left in (1..=fronts.len()).rev() {
        match wait.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("{left} controllers for VMMs still have requests in progress");
                return;
            }
        }
    }
}

impl Front {
    /// Where a VMM finds it.
    pub fn socket(&self) -> Option<PathBuf> {
        let Door::Socket(place) = &self.config.door else { return None };
        Some(std::path::absolute(place.path()).unwrap_or_else(|_| place.path().to_owned()))
    }

    /// The same for people.
    pub fn place(&self) -> String {
        match self.socket() {
            Some(path) => path.display().to_string(),
            None => "an inherited socket".to_owned(),
        }
    }

    /// How the VMM speaks with it.
    pub fn protocol(&self) -> Protocol {
        self.config.protocol
    }

    /// Its request queues.
    pub fn queues(&self) -> u16 {
        self.config.queues
    }

    /// What it is, for people.
    pub fn about(&self) -> String {
        let kind = match self.config.protocol {
            Protocol::VhostUser => "vhost-user-scsi",
            Protocol::VfioUser => "vfio-user",
        };
        let mut text = format!(
            "\n{} controller {} on {}, {} request queues\n",
            kind,
            self.config.name,
            self.place(),
            self.config.queues
        );
        for (id, target) in &self.config.targets {
            let _ = writeln!(text, "  target {id}: {target}");
        }
        text
    }

    /// What it is, for programs.
    pub fn facts(&self) -> Value {
        json!({
            "name": self.config.name.as_str(),
            "socket": self.socket(),
            "queues": self.config.queues,
            "targets": self.targets(),
        })
    }

    /// What it is and does now.
    pub fn session(&self) -> Session {
        let status = self.server.status();
        let info = ControllerInfo {
            name: self.config.name.to_string(),
            socket: self.socket(),
            connected: status.connected,
            queues: self.config.queues,
            queues_running: status.queues,
            targets: self.targets(),
        };
        match self.config.protocol {
            Protocol::VhostUser => Session::VhostUser(info),
            Protocol::VfioUser => Session::VfioUser(info),
        }
    }

    /// Makes its queues look at the LUN map.
    pub fn refresh(&self) {
        let device = self.server.controller();
        for place in device.places() {
            device.router().note(place, Note::Refresh);
        }
    }

    fn targets(&self) -> Vec<TargetEntry> {
        let targets = self.config.targets.iter();
        targets.map(|(&id, target)| TargetEntry { id, target: target.to_string() }).collect()
    }
}
