//! `vscsi doctor`: whether this machine has what RDMA, TCMU and NVMe controllers need, and what to do
//! about what is missing.

use std::{fmt::Write, process::ExitCode};

use serde::Serialize;
use vmm_glue::tcmu::watch::Watcher;
use vscsi_target::backend::nvme::controllers;

use crate::report::{Exit, Report};

/// What there is of what RDMA needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// Nothing is missing.
    pub usable: bool,
    /// This program can do it at all.
    pub built: bool,
    /// The devices that were found.
    pub devices: Vec<Device>,
    /// What is missing, in the order in which it is to be mended.
    pub problems: Vec<Problem>,
}

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name, as `rdma link` has it.
    pub name: String,
    /// "InfiniBand" (which RoCE is too), "iWARP" or "unknown".
    pub transport: &'static str,
    /// Its ports, from 1 on.
    pub ports: Vec<Port>,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Connections can be made through it.
    pub active: bool,
    /// "InfiniBand" or "Ethernet".
    pub link_layer: &'static str,
}

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// An NVMe controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nvme {
    /// Its PCI address.
    pub address: String,
    /// How it would be opened: "container" or "iommufd"; none if it cannot be.
    pub interface: Option<&'static str>,
    /// What keeps it from being opened.
    pub problem: Option<Problem>,
}

/// Looks at this machine and says what it finds: 0 if RDMA is usable, otherwise 69.
pub fn run(json: bool) -> ExitCode {
    let (rdma, tcmu, nvme) = (rdma(), tcmu(), nvme());
    match json {
        true => {
            let tcmu = serde_json::json!({ "usable": tcmu.is_none(), "problem": tcmu });
            println!("{}", serde_json::json!({ "rdma": rdma, "tcmu": tcmu, "nvme": nvme }));
        }
        false => {
            match tcmu {
                None => println!("{}TCMU: usable", rdma.text()),
                Some(Problem { what, fix }) => {
                    println!("{}TCMU: not usable\n  {what}\n    fix: {fix}", rdma.text());
                }
            }
            print!("{}", nvme_text(&nvme));
        }
    }
    match rdma.usable {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Exit::Unavailable as u8),
    }
}

/// What keeps the kernel's backstores from being served here.
fn tcmu() -> Option<Problem> {
    let report = Report::from(Watcher::listen().err()?);
    Some(Problem { what: report.what, fix: report.fix.unwrap_or_default() })
}

/// The NVMe controllers here, and whether they could be disks.
fn nvme() -> Vec<Nvme> {
    let controllers = controllers().into_iter();
    let found = controllers.map(|(bdf, found)| {
        let address = bdf.to_string();
        match found {
            Ok(interface) => Nvme { address, interface: Some(interface.name()), problem: None },
            Err(error) => {
                let problem = Problem { what: error.to_string(), fix: error.fix() };
                Nvme { address, interface: None, problem: Some(problem) }
            }
        }
    });
    found.collect()
}

fn nvme_text(controllers: &[Nvme]) -> String {
    let mut text = match controllers {
        [] => return "NVMe: no controller\n".to_owned(),
        _ => "NVMe:\n".to_owned(),
    };
    for Nvme { address, interface, problem } in controllers {
        // Writing to a string does not fail.
        let _ = match problem {
            Some(Problem { what, fix }) => writeln!(text, "  {what}\n    fix: {fix}"),
            None => {
                let interface = interface.unwrap_or("nothing");
                writeln!(text, "  nvme:{address} can be a disk, by {interface}")
            }
        };
    }
    text
}

/// Looks at this machine.
#[cfg(feature = "rdma")]
pub fn rdma() -> Rdma {
    let found = ::rdma::usability();
    let problem = |problem: ::rdma::Problem| Problem { what: problem.what, fix: problem.fix };
    let port = |port: ::rdma::PortFacts| Port { active: port.active, link_layer: port.link_layer };
    let device = |device: &::rdma::DeviceFacts| Device {
        name: device.name.clone(),
        transport: device.transport,
        ports: device.ports.iter().copied().map(port).collect(),
    };
    let problems: Vec<Problem> = found.problems().into_iter().map(problem).collect();
    let devices = found.devices.iter().flatten().map(device).collect();
    Rdma { usable: problems.is_empty(), built: true, devices, problems }
}

/// Says that this program has no part in RDMA.
#[cfg(not(feature = "rdma"))]
pub fn rdma() -> Rdma {
    let problem = Problem { what: BUILT_WITHOUT.to_owned(), fix: HOW_TO_BUILD.to_owned() };
    Rdma { usable: false, built: false, devices: Vec::new(), problems: vec![problem] }
}

/// Refuses what needs RDMA where it cannot be had: in a build without it, or without its libraries.
/// What else is missing is said by what then fails.
pub fn require_rdma() -> Result<(), Report> {
    #[cfg(feature = "rdma")]
    return ::rdma::libraries().map_err(|missing| {
        Report::new(Exit::Unavailable, "no-rdma", missing.to_string()).fix(missing.fix())
    });
    #[cfg(not(feature = "rdma"))]
    Err(Report::new(Exit::Unavailable, "no-rdma", BUILT_WITHOUT)
        .why("iSER and SRP were asked for")
        .fix(HOW_TO_BUILD))
}

impl Rdma {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = match self.usable {
            true => "RDMA (iSER, SRP): usable\n".to_owned(),
            false => "RDMA (iSER, SRP): not usable\n".to_owned(),
        };
        for device in &self.devices {
            let _ = writeln!(text, "  {}: {}, {}", device.name, device.transport, device.ports());
        }
        for problem in &self.problems {
            let _ = write!(text, "  {}\n    fix: {}\n", problem.what, problem.fix);
        }
        text
    }

    /// In one line.
    pub fn summary(&self) -> String {
        match self.problems.first() {
            None => "needs RDMA, which is usable here".to_owned(),
            Some(problem) => format!(
                "needs RDMA, which is not usable here: {} (vscsi doctor says what to do)",
                problem.what
            ),
        }
    }
}

impl Device {
    fn ports(&self) -> String {
        if self.ports.is_empty() {
            return "cannot be opened".to_owned();
        }
        let ports = (1..).zip(&self.ports).map(|(number, port)| {
            let state = if port.active { "active" } else { "down" };
            format!("port {number} {state} ({})", port.link_layer)
        });
        ports.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(not(feature = "rdma"))]
const BUILT_WITHOUT: &str = "this vscsi was built without RDMA";
#[cfg(not(feature = "rdma"))]
const HOW_TO_BUILD: &str = "apt install librdmacm-dev libibverbs-dev libclang-dev pkg-config, then \
                            cargo build --release --features rdma";

#[cfg(test)]
mod tests {
    use super::*;

    fn port(active: bool) -> Port {
        Port { active, link_layer: "Ethernet" }
    }

    #[test]
    fn controllers_are_shown_with_how_they_open_or_what_to_do() {
        assert_eq!(nvme_text(&[]), "NVMe: no controller\n");
        let problem =
            Problem { what: "0000:02:00.0 is elsewhere".to_owned(), fix: "bind it".to_owned() };
        let text = nvme_text(&[
            Nvme { address: "0000:01:00.0".to_owned(), interface: Some("iommufd"), problem: None },
            Nvme { address: "0000:02:00.0".to_owned(), interface: None, problem: Some(problem) },
        ]);
        assert_eq!(
            text,
            "NVMe:\n  nvme:0000:01:00.0 can be a disk, by iommufd\n  0000:02:00.0 is elsewhere\n    \
             fix: bind it\n"
        );
    }

    #[test]
    fn devices_are_shown_with_their_ports_and_problems_with_their_fix() {
        let device = |name: &str, ports: Vec<Port>| Device {
            name: name.to_owned(),
            transport: "InfiniBand",
            ports,
        };
        let devices =
            vec![device("rxe0", vec![port(true), port(false)]), device("mlx5_0", Vec::new())];
        let problem = Problem { what: "something".to_owned(), fix: "do it".to_owned() };
        let rdma = Rdma { usable: false, built: true, devices, problems: vec![problem] };
        let expected = "RDMA (iSER, SRP): not usable\n  \
                        rxe0: InfiniBand, port 1 active (Ethernet), port 2 down (Ethernet)\n  \
                        mlx5_0: InfiniBand, cannot be opened\n  \
                        something\n    fix: do it\n";
        assert_eq!(rdma.text(), expected);
    }

    #[test]
    fn what_is_found_is_usable_or_has_a_problem() {
        let rdma = rdma();
        assert_eq!(rdma.usable, rdma.problems.is_empty(), "{rdma:?}");
        assert_eq!(rdma.built, cfg!(feature = "rdma"));
        assert_eq!(rdma.summary().contains("not usable"), !rdma.usable);
    }
}
