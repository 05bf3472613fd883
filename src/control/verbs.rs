//! What the methods of the control socket do.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use iscsi::{negotiate::Transport, registry::SessionFacts};
use serde_json::{Value, json};
use vscsi_target::{
    backend::nvme::Address,
    model::{LogicalUnit, Target, lu::Counters},
};

use super::{
    api::{
        ConnectionInfo, LunAdd, LunInfo, LunResize, LunRm, LunStats, Numbers, ReactorStats,
        Session, SessionInfo, SessionKick, Stats, Version,
    },
    rpc::{Failure, Outcome, parameters, result},
};
use crate::{
    config::srp::nexus_name,
    disk::{Disk, Source},
    report::{Exit, Report},
    serve::{Daemon, request_stop, tcmu},
    size,
};

/// Runs a method.
pub fn call(daemon: &Daemon, method: &str, params: Value) -> Outcome {
    match method {
        "lun.add" => lun_add(daemon, parameters(params)?),
        "lun.rm" => lun_rm(daemon, &parameters(params)?),
        "lun.resize" => lun_resize(daemon, &parameters(params)?),
        "lun.list" => result(luns(daemon)),
        "session.list" => result(who(daemon)),
        "session.kick" => session_kick(daemon, &parameters(params)?),
        "stats" => result(stats(daemon)),
        "version" => result(version()),
        "shutdown" => {
            request_stop();
            Ok(json!({}))
        }
        unknown => Err(Failure::UnknownMethod(unknown.to_owned())),
    }
}

fn lun_add(daemon: &Daemon, params: LunAdd) -> Outcome {
    let target = target(daemon, params.target.as_deref())?;
    let source = match (params.file, params.nvme, params.ram, params.null) {
        (None, Some(address), None, None) => {
            let address = Address::parse(&address);
            let address = address.map_err(|error| Failure::Parameters(error.to_string()))?;
            Source::Nvme(Address { polled: params.poll, ..address })
        }
        (Some(path), None, None, None) if path.starts_with('/') => Source::File(path.into()),
        (Some(_), None, None, None) => {
            return Err(Failure::Parameters("file is not an absolute path".to_owned()));
        }
        (None, None, Some(size), None) => Source::Ram(size),
        (None, None, None, Some(size)) => Source::Null(size),
        _ => {
            let fault = "exactly one of file, nvme, ram and null is given";
            return Err(Failure::Parameters(fault.into()));
        }
    };
    if matches!(source, Source::Ram(0) | Source::Null(0)) {
        return Err(Failure::Parameters(size::SizeError::Zero.to_string()));
    }
    let visible_to = params
        .visible_to
        .map(|names| names.iter().map(|name| nexus_name(name)).collect::<Result<Vec<_>, _>>());
    let disk = Disk {
        source,
        number: params.lun,
        block_size: params.block_size,
        physical_block_size: params.physical_block_size,
        erase_rate: params.erase_rate,
        read_only: params.read_only,
        removable: params.removable,
        direct: params.direct,
        handover: params.handover,
        serial: params.serial,
        visible_to: visible_to
            .transpose()
            .map_err(|error| Failure::Parameters(error.to_string()))?,
    };
    let disk = disk.checked().map_err(|error| Failure::Parameters(error.to_string()))?;
    let (number, lu) =
        daemon.exporter.disk(&target, &disk, &BTreeSet::new()).map_err(Report::from)?;
    tracing::info!(target = %target.name, lun = number, backend = %lu.backend.properties().description, "LUN added");
    result(lun_info(&target, number, &lu))
}

fn lun_rm(daemon: &Daemon, params: &LunRm) -> Outcome {
    let target = target(daemon, params.target.as_deref())?;
    let lu = target.unmap(params.lun).map_err(|error| no_lun(&target, error))?;
    // Sessions that are idle still know it: they look at the map when they are told to.
    daemon.refresh_sessions();
    let until = Instant::now() + REMOVAL;
    while Arc::strong_count(&lu) > 1 {
        if Instant::now() >= until {
            let report = Report::new(
                Exit::Retry,
                "lun-busy",
                format!("LUN {} is out of service, but its image is still open", params.lun),
            )
            .why(format!(
                "commands are in progress on it since more than {} seconds",
                REMOVAL.as_secs()
            ))
            .fix("the image is closed when they end; vscsi session kick ends them");
            return Err(report.into());
        }
        thread::sleep(POLL);
    }
    let description = lu.backend.properties().description.clone();
    let read_only = lu.config.read_only || lu.backend.properties().read_only;
    let flushed = if read_only { Ok(()) } else { lu.backend.flush() };
    // Closes the image, which gives up the lock on it.
    drop(lu);
    tracing::info!(target = %target.name, lun = params.lun, backend = %description, "LUN removed");
    flushed.map_err(|error| {
        Report::new(Exit::Io, "flush", format!("{description} is closed, but flushing it failed"))
            .why(error)
            .fix("check the image before it is used again")
    })?;
    Ok(json!({}))
}

fn lun_resize(daemon: &Daemon, params: &LunResize) -> Outcome {
    let target = target(daemon, params.target.as_deref())?;
    let lu = find(&target, params.lun)?;
    if lu.is_away() {
        let what = format!("LUN {} cannot be resized: its image is not in use here", params.lun);
        let report = Report::new(Exit::Retry, "lun-away", what)
            .why("with handover it belongs to the process whose guest runs")
            .fix("resize it there");
        return Err(report.into());
    }
    let (old, block) = (lu.backend.len(), u64::from(lu.block_size()));
    if let Some(size) = params.size {
        if size == 0 || !size.is_multiple_of(block) {
            let fault = format!("{size} bytes are not whole blocks of {block}");
            return Err(Report::new(Exit::Failed, "size", fault).into());
        }
        if size < old && !params.shrink {
            let what =
                format!("{} is less than the {} there are", size::show(size), size::show(old));
            let report = Report::new(Exit::Failed, "shrink", what)
                .why("what lies behind the new end would be lost")
                .fix("vscsi lun resize --shrink, if that is meant");
            return Err(report.into());
        }
    }
    let new = lu.backend.resize(params.size).map_err(|error| {
        let what = format!("LUN {} cannot be resized: {error}", params.lun);
        Report::new(Exit::of(&error), "resize", what)
    })?;
    if new != old {
        lu.resized();
    }
    tracing::info!(target = %target.name, lun = params.lun, old, new, "LUN resized");
    result(lun_info(&target, params.lun, &lu))
}

fn session_kick(daemon: &Daemon, params: &SessionKick) -> Outcome {
    let (found, name) = match params.transport {
        Numbers::Iscsi => {
            let found = u16::try_from(params.id).is_ok_and(|tsih| daemon.shared.kick(tsih));
            (found, params.id.to_string())
        }
        Numbers::Srp => (daemon.over_rdma.kick(params.id), format!("srp{}", params.id)),
    };
    if found {
        tracing::info!(session = name, "session kicked");
        return Ok(json!({}));
    }
    let report = Report::new(Exit::Failed, "no-session", format!("there is no session {name}"))
        .fix("vscsi session list shows the numbers");
    Err(report.into())
}

fn luns(daemon: &Daemon) -> Vec<LunInfo> {
    each_lun(daemon, lun_info)
}

fn each_lun<T>(daemon: &Daemon, show: impl Fn(&Target, u16, &LogicalUnit) -> T) -> Vec<T> {
    let mut shown = Vec::new();
    for target in daemon.exporter.model.targets() {
        shown.extend(target.luns().iter().map(|(number, lu)| show(&target, *number, lu)));
    }
    shown
}

fn lun_info(target: &Target, number: u16, lu: &LogicalUnit) -> LunInfo {
    let properties = lu.backend.properties();
    LunInfo {
        target: target.name.clone(),
        lun: number,
        backend: properties.description.clone(),
        size: lu.backend.len(),
        block_size: properties.block_size,
        read_only: lu.config.read_only || properties.read_only,
        removable: lu.config.removable,
        thin: properties.thin,
        serial: lu.config.identity.serial.clone(),
        naa: format!("naa.{:016x}", lu.config.identity.naa),
        nexuses: lu.itls().len(),
    }
}

fn who(daemon: &Daemon) -> Vec<Session> {
    let controllers = daemon.fronts.iter().map(|front| front.session());
    let devices = daemon.tcmu.iter().flat_map(tcmu::sessions).map(Session::Tcmu);
    sessions(daemon).into_iter().chain(controllers).chain(devices).collect()
}

fn sessions(daemon: &Daemon) -> Vec<Session> {
    let iscsi = daemon.shared.sessions();
    let srp = daemon.over_rdma.srp_sessions().into_iter().map(Session::Srp);
    iscsi.iter().map(|facts| session(facts)).chain(srp).collect()
}

fn session(facts: &SessionFacts) -> Session {
    let connections = facts.connections().into_iter();
    let info = SessionInfo {
        id: facts.tsih,
        initiator: facts.initiator.to_string(),
        isid: facts.isid.to_string(),
        target: facts.target.as_ref().map(ToString::to_string),
        portal_group: facts.portal_group_tag,
        reactor: facts.place().reactor,
        age_seconds: facts.since.elapsed().map_or(0, |age| age.as_secs()),
        connections: connections.map(|c| ConnectionInfo { cid: c.cid, peer: c.peer }).collect(),
        commands: facts.counters.commands(),
        read_bytes: facts.counters.read_bytes(),
        written_bytes: facts.counters.written_bytes(),
        rejects: facts.counters.rejected(),
    };
    match facts.transport {
        Transport::Tcp => Session::Iscsi(info),
        Transport::Rdma => Session::Iser(info),
    }
}

fn stats(daemon: &Daemon) -> Stats {
    let sessions = sessions(daemon);
    let luns = each_lun(daemon, |target, lun, lu| {
        let sum = |counter: fn(&Counters) -> u64| lu.counters.iter().map(counter).sum();
        LunStats {
            target: target.name.clone(),
            lun,
            reads: sum(|c| c.reads.load(Relaxed)),
            read_bytes: sum(|c| c.read_bytes.load(Relaxed)),
            writes: sum(|c| c.writes.load(Relaxed)),
            write_bytes: sum(|c| c.write_bytes.load(Relaxed)),
            failures: sum(|c| c.failures.load(Relaxed)),
            backend_errors: sum(|c| c.backend_errors.load(Relaxed)),
            timeouts: sum(|c| c.timeouts.load(Relaxed)),
            bounces: lu.backend.bounces(),
            resets: lu.backend.resets(),
        }
    });
    let reactors = (0u16..).zip(&daemon.threads).map(|(reactor, thread)| {
        let cell = |counter: fn(&Counters) -> u64| -> u64 {
            each_lun(daemon, |_, _, lu| lu.counters.get(usize::from(reactor)).map_or(0, counter))
                .iter()
                .sum()
        };
        ReactorStats {
            reactor,
            sessions: sessions.iter().filter(|session| session.runs_on(reactor)).count(),
            reads: cell(|c| c.reads.load(Relaxed)),
            writes: cell(|c| c.writes.load(Relaxed)),
            cpu_milliseconds: thread.cpu().as_millis() as u64,
        }
    });
    let reactors = reactors.collect();
    Stats {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: daemon.started.elapsed().as_secs(),
        pid: std::process::id(),
        luns,
        sessions,
        reactors,
    }
}

fn version() -> Version {
    Version { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() }
}

/// The target of that name, or the only one.
fn target(daemon: &Daemon, name: Option<&str>) -> Result<Arc<Target>, Failure> {
    let model = &daemon.exporter.model;
    let names = || {
        let names: Vec<String> = model.targets().iter().map(|t| t.name.clone()).collect();
        format!("the targets are {}", names.join(", "))
    };
    let report = match name {
        Some(name) => match model.target(name) {
            Ok(target) => return Ok(target),
            Err(error) => Report::new(Exit::Failed, "no-target", error.to_string()).fix(names()),
        },
        None => match &model.targets()[..] {
            [target] => return Ok(Arc::clone(target)),
            targets => {
                let what = format!("there are {} targets, and none was named", targets.len());
                Report::new(Exit::Usage, "which-target", what).why(names()).fix("add --target IQN")
            }
        },
    };
    Err(report.into())
}

fn find(target: &Target, number: u16) -> Result<Arc<LogicalUnit>, Failure> {
    let found = target.luns().into_iter().find(|(at, _)| *at == number);
    found.map(|(_, lu)| lu).ok_or_else(|| {
        let error = vscsi_target::model::ModelError::NoLun { target: target.name.clone(), number };
        no_lun(target, error)
    })
}

fn no_lun(target: &Target, error: vscsi_target::model::ModelError) -> Failure {
    let numbers: Vec<String> = target.luns().iter().map(|(n, _)| n.to_string()).collect();
    let report = Report::new(Exit::Failed, "no-lun", error.to_string());
    match numbers.is_empty() {
        true => report.into(),
        false => report.fix(format!("its LUNs are {}", numbers.join(", "))).into(),
    }
}

/// How long `lun.rm` waits for commands in progress.
const REMOVAL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
