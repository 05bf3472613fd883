//! The client's side of the control socket: what `vscsi lun`, `session` and `stats` do.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use vscsi_target::backend::nvme::Address;

use super::{
    api::{Fault, LunAdd, LunInfo, LunResize, LunRm, Numbers, Session, SessionKick, Stats},
    socket, table,
};
use crate::{
    cli::{self, Common},
    config::Place,
    disk::{Disk, Kind, Source},
    report::{Exit, Report},
    size,
};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no usual place for this user.
    #[error("the control socket of vscsi is not known")]
    NoPlace,
    /// Nobody listens.
    #[error("no vscsi answers on {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It went away.
    #[error("the connection to {} broke: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no vscsi, or another version.
    #[error("the answer from {} is not understood: {fault}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The path of a disk cannot be told.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<ClientError> for Report {
    fn from(error: ClientError) -> Self {
        let what = error.to_string();
        match error {
            ClientError::NoPlace => Self::new(Exit::Unavailable, "no-control-socket", what)
                .why("XDG_RUNTIME_DIR is not set")
                .fix("--control SOCKET, as vscsi serve printed it"),
            ClientError::Connect { source, .. } => {
                let exit = match source.kind() {
                    io::ErrorKind::PermissionDenied => Exit::Permission,
                    _ => Exit::Unavailable,
                };
                Self::new(exit, "no-answer", what)
                    .fix("start vscsi serve, or --control SOCKET as it printed it")
            }
            ClientError::Broken { .. } => Self::new(Exit::Unavailable, "no-answer", what)
                .why("it ended, or does not take commands from this user"),
            ClientError::Answer { .. } => Self::new(Exit::Failed, "bad-answer", what)
                .fix("use the vscsi of the version that runs"),
            ClientError::Disk { source, .. } => Self::new(Exit::of(&source), "image", what),
        }
    }
}

/// `vscsi lun …`.
pub fn lun(command: &cli::Lun, common: &Common) -> Result<(), Report> {
    match command {
        cli::Lun::Add(add) => {
            let params = lun_add(add)?;
            let added: LunInfo = ask(common, "lun.add", params)?;
            show(common, &added, || format!("{} has LUN {}\n", added.target, added.lun))
        }
        cli::Lun::Rm { lun, of } => {
            let params = LunRm { target: of.target.clone(), lun: *lun };
            let done: Value = ask(common, "lun.rm", params)?;
            show(common, &done, || format!("LUN {lun} is removed\n"))
        }
        cli::Lun::Resize { lun, size, shrink, of } => {
            let params =
                LunResize { target: of.target.clone(), lun: *lun, size: *size, shrink: *shrink };
            let resized: LunInfo = ask(common, "lun.resize", params)?;
            show(common, &resized, || format!("LUN {lun} has {}\n", size::show(resized.size)))
        }
        cli::Lun::List => {
            let luns: Vec<LunInfo> = ask(common, "lun.list", json!({}))?;
            show(common, &luns, || table::luns(&luns))
        }
    }
}

/// `vscsi session …`.
pub fn session(command: &cli::Session, common: &Common) -> Result<(), Report> {
    match command {
        cli::Session::List => {
            let sessions: Vec<Session> = ask(common, "session.list", json!({}))?;
            show(common, &sessions, || table::who(&sessions))
        }
        cli::Session::Kick { id } => {
            let (transport, number) = match id.strip_prefix("srp") {
                Some(number) => (Numbers::Srp, number),
                None => (Numbers::Iscsi, id.as_str()),
            };
            let number = number.parse().map_err(|_| {
                let what = format!("{id:?} is not the number of a session");
                Report::new(Exit::Usage, "no-session", what)
                    .why("only sessions can be ended here; a controller is its VMM's")
                    .fix("vscsi session list shows the numbers; unplug a controller in its VMM")
            })?;
            let kick = SessionKick { id: number, transport };
            let done: Value = ask(common, "session.kick", kick)?;
            show(common, &done, || format!("session {id} is dropped\n"))
        }
    }
}

/// `vscsi stats`.
pub fn stats(common: &Common) -> Result<(), Report> {
    let stats: Stats = ask(common, "stats", json!({}))?;
    show(common, &stats, || table::stats(&stats))
}

/// `vscsi shutdown`.
pub fn shutdown(common: &Common) -> Result<(), Report> {
    let done: Value = ask(common, "shutdown", json!({}))?;
    show(common, &done, || "vscsi stops\n".to_owned())
}

fn lun_add(add: &cli::LunAdd) -> Result<LunAdd, Report> {
    let (text, kind) = match (&add.disk, &add.ram, &add.null) {
        (Some(disk), ..) => (disk, Kind::File),
        (_, Some(size), _) => (size, Kind::Ram),
        (.., Some(size)) => (size, Kind::Null),
        (None, None, None) => return Err(Report::new(Exit::Usage, "disk", "no disk is named")),
    };
    let disk = Disk::parse(text, kind, add.options.defaults())
        .map_err(|error| Report::new(Exit::Usage, "disk", error.to_string()))?;
    let (mut file, mut nvme, mut ram, mut null) = (None, None, None, None);
    let mut poll = false;
    match disk.source {
        Source::File(path) => {
            // The server has another working directory.
            let absolute = std::path::absolute(&path)
                .map_err(|source| ClientError::Disk { path: path.clone(), source })?;
            let name = absolute.into_os_string().into_string().map_err(|name| {
                let what = format!("the path {} is not UTF-8", Path::new(&name).display());
                Report::new(Exit::Usage, "disk", what)
            })?;
            file = Some(name);
        }
        Source::Nvme(address) => {
            poll = address.polled;
            let name = address.to_string();
            nvme = Some(name.trim_start_matches(Address::PREFIX).to_owned());
        }
        Source::Ram(size) => ram = Some(size),
        Source::Null(size) => null = Some(size),
    }
    Ok(LunAdd {
        target: add.of.target.clone(),
        file,
        nvme,
        poll,
        ram,
        null,
        lun: add.lun.or(disk.number),
        block_size: disk.block_size,
        physical_block_size: disk.physical_block_size,
        erase_rate: disk.erase_rate,
        read_only: disk.read_only,
        removable: disk.removable,
        direct: disk.direct,
        handover: disk.handover,
        serial: add.options.serial.clone().or(disk.serial),
        visible_to: None,
    })
}

fn ask<T: DeserializeOwned>(
    common: &Common,
    method: &str,
    params: impl Serialize,
) -> Result<T, Report> {
    let place = common.control.clone().map_or(Place::Usual, Place::At);
    let path = socket(&place).ok_or(ClientError::NoPlace)?;
    let answer = exchange(
        &path,
        &json!({
            "jsonrpc": "2.0", "id": 1, "method": method, "params": json!(params),
        }),
    )?;
    let bad = |fault: String| ClientError::Answer { path: path.clone(), fault };
    let mut answer: Value =
        serde_json::from_str(&answer).map_err(|error| bad(error.to_string()))?;
    if let Some(error) = answer.get_mut("error") {
        let what = error.get("message").and_then(Value::as_str).unwrap_or("it failed").to_owned();
        let data = error.get_mut("data").map(Value::take);
        let fault: Option<Fault> = data.and_then(|data| serde_json::from_value(data).ok());
        return Err(match fault {
            Some(fault) => fault.report(what),
            None => Report::new(Exit::Failed, "control", what),
        });
    }
    let result = answer.get_mut("result").map(Value::take).unwrap_or_default();
    serde_json::from_value(result).map_err(|error| bad(error.to_string()).into())
}

fn exchange(path: &Path, request: &Value) -> Result<String, ClientError> {
    let broken = |source| ClientError::Broken { path: path.to_owned(), source };
    let stream = UnixStream::connect(path)
        .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    (&stream).write_all(format!("{request}\n").as_bytes()).map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(&stream).take(MAX_ANSWER).read_line(&mut answer).map_err(broken)?;
    if answer.is_empty() {
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(answer)
}

fn show<T: Serialize>(
    common: &Common,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Report> {
    let text = match common.json {
        true => serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default(),
        false => text(),
    };
    // A reader that went away, as `head` does, wants no more.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Longer than the server waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER: u64 = 64 << 20;
