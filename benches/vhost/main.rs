//! vhost-user-scsi without a VMM: the back end on one core, a driver on another, against
//! `vhost-device-scsi` in alternating runs: `cargo bench --bench vhost`. Absolute figures depend on
//! the machine; the ratios are what to look at.
//!
//! The peer is found by `VHOST_DEVICE_SCSI` or in the path (`cargo install vhost-device-scsi`). Its
//! disk is a file in /dev/shm, ours is RAM. Options after `--`: `--quick` short runs, and one round
//! unless said otherwise; `--seconds N`, `--rounds N`, `--ram MIB`; `--program PATH` another
//! `vscsi`; `--peer-only` none of ours; `--peer-socket PATH` a back end that runs already (SPDK's,
//! say), whose disk is overwritten; `--rings` only what the rings cost in this process. Other words:
//! only the case of that name, or those that contain them all. `--vfio-user` measures our vfio-user
//! function with our vhost-user controller as its peer.

#![allow(missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A benchmark may just stop.

mod backend;
mod driver;
mod rings;

use backend::{Backend, Folder, Image, Kind, VFIO_USER, find_device, pin};
use driver::{Case, Disk, alone, prepare, run};
use std::{cell::Cell, env, path::Path, thread::sleep, time::Duration};
use vhost_frontend::{Device, Setup, feature};

const READ: Case = Case {
    name: "",
    write: false,
    bytes: 4096,
    depth: 32,
    parts: 1,
    indirect: false,
    regions: 1,
    calls: false,
    features: 0,
};
const WRITE: Case = Case { write: true, ..READ };

const CASES: &[Case] = &[
    Case { name: "4 KiB read, depth 1", depth: 1, ..READ },
    Case { name: "4 KiB read, depth 32", ..READ },
    Case { name: "4 KiB read, depth 128, indirect", depth: 128, indirect: true, ..READ },
    Case { name: "4 KiB write, depth 1", depth: 1, ..WRITE },
    Case { name: "4 KiB write, depth 32", ..WRITE },
    Case { name: "4 KiB write, depth 128, indirect", depth: 128, indirect: true, ..WRITE },
    Case { name: "128 KiB read, depth 32", bytes: 1 << 17, ..READ },
    Case { name: "128 KiB write, depth 32", bytes: 1 << 17, ..WRITE },
    Case { name: "4 KiB read, depth 32, 4 parts", parts: 4, ..READ },
    Case { name: "4 KiB read, depth 32, indirect", indirect: true, ..READ },
    Case { name: "4 KiB read, depth 32, 4 parts, indirect", parts: 4, indirect: true, ..READ },
    Case { name: "4 KiB read, depth 32, 8 regions", regions: 8, ..READ },
    Case {
        name: "4 KiB read, depth 32, 4 parts, indirect, 8 regions",
        parts: 4,
        indirect: true,
        regions: 8,
        ..READ
    },
    Case { name: "4 KiB read, depth 32, packed ring", features: feature::RING_PACKED, ..READ },
    Case {
        name: "4 KiB read, depth 32, packed ring, indirect",
        features: feature::RING_PACKED,
        indirect: true,
        ..READ
    },
    Case { name: "4 KiB read, depth 32, in order", features: feature::IN_ORDER, ..READ },
    Case { name: "4 KiB read, depth 1, interrupts", depth: 1, calls: true, ..READ },
    Case { name: "4 KiB read, depth 32, interrupts", calls: true, ..READ },
    Case { name: "4 KiB write, depth 32, interrupts", calls: true, ..WRITE },
    Case { name: "128 KiB read, depth 32, interrupts", calls: true, bytes: 1 << 17, ..READ },
];

fn option(name: &str) -> Option<String> {
    let mut arguments = env::args();
    arguments.find(|argument| argument == name)?;
    arguments.next()
}

fn number(name: &str, usual: u64) -> u64 {
    option(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// Arguments that are neither options nor their values.
fn words() -> Vec<String> {
    let mut words = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" | "--peer-only" | "--rings" | "--bench" | VFIO_USER => {}
            option if option.starts_with("--") => drop(arguments.next()),
            _ => words.push(argument),
        }
    }
    words
}

fn main() {
    let flag = |name| env::args().any(|argument| argument == name);
    let quick = flag("--quick");
    let time = if quick {
        Duration::from_millis(300)
    } else {
        Duration::from_secs(number("--seconds", 2))
    };
    let rounds = number("--rounds", if quick { 1 } else { 5 });
    let bytes = number("--ram", 1024) << 20;
    let words = words();
    pin(1);
    rings::print();
    if flag("--rings") {
        return;
    }
    let folder = Folder::new().expect("a folder for sockets");
    let folder = folder.0.as_path();

    let program = option("--program").unwrap_or_else(|| env!("CARGO_BIN_EXE_vscsi").into());
    let vhost_user = Kind::Vscsi { program: program.into(), ram: bytes, door: "--vhost-user" };
    let kind = match (&vhost_user, flag(VFIO_USER)) {
        (Kind::Vscsi { program, .. }, true) => {
            Kind::Vscsi { program: program.clone(), ram: bytes, door: VFIO_USER }
        }
        _ => vhost_user.clone(),
    };
    let mut ours = (!flag("--peer-only")).then(|| Side::new(&kind, folder));
    let mut image = None;
    let peer = if flag(VFIO_USER) {
        Some(vhost_user)
    } else if let Some(socket) = option("--peer-socket") {
        Some(Kind::Running { socket: socket.into() })
    } else if let Some(program) = find_device() {
        let made = Image::new(bytes).expect("an image in /dev/shm");
        let kind = Kind::Device { program, image: made.0.clone() };
        image = Some(made);
        Some(kind)
    } else {
        println!("no vhost-device-scsi (cargo install vhost-device-scsi): no ratios");
        None
    };
    let mut peer = peer.map(|kind| Side::new(&kind, folder));

    println!("the driver alone: {:.0} ns a request", alone(READ).unwrap());
    if let Some(ours) = &ours {
        idle(ours);
    }
    println!(
        "| case | k/s | ns a request | CPU % | CPU ns a request | peer k/s | peer CPU % | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let named = CASES.iter().any(|case| words == [case.name]);
    let wanted = |case: &&Case| {
        if named { words == [case.name] } else { words.iter().all(|it| case.name.contains(it)) }
    };
    for &case in CASES.iter().filter(wanted) {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let turn = |side: &mut Option<Side>| side.as_mut()?.measure(case, time, folder);
            own.extend(turn(&mut ours));
            others.extend(turn(&mut peer));
        }
        print_row(case, &own, &others);
    }
    drop((ours, peer, image));
}

/// A back end with its disk, checked.
struct Side {
    backend: Backend,
    disk: Disk,
}

/// One run of one case.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    /// Of a core, 0 to 1.
    cpu: f64,
}

impl Side {
    fn new(kind: &Kind, folder: &Path) -> Self {
        let backend = Backend::start(kind, folder);
        let filled = backend.is_filled();
        let (socket, setup) = (backend.socket(), Setup::default());
        let disk = if backend.is_function() {
            prepare(&mut Device::plug(socket, &setup).expect("a function"), filled)
        } else {
            prepare(&mut Device::connect(socket, &setup).expect("a back end"), filled)
        };
        let disk = disk.expect("the disk is written and read back");
        Self { backend, disk }
    }

    /// None where the back end cannot do it.
    fn measure(&mut self, case: Case, time: Duration, folder: &Path) -> Option<Figures> {
        if case.write && !self.backend.can_write() || case.queue_size() > self.backend.queue_size()
        {
            return None;
        }
        self.backend.again(folder);
        let before = Cell::new(None);
        let (socket, setup) = (self.backend.socket(), case.setup());
        let begin = || before.set(self.backend.cpu());
        let ran = if self.backend.is_function() {
            Device::plug(socket, &setup)
                .and_then(|mut device| run(&mut device, case, self.disk, time, begin))
        } else {
            Device::connect(socket, &setup)
                .and_then(|mut device| run(&mut device, case, self.disk, time, begin))
        };
        let ran = match ran {
            Ok(ran) => ran,
            Err(vhost_frontend::Error::Missing { .. }) => return None,
            Err(error) => panic!("{}: {error}", case.name),
        };
        let spent = self.backend.cpu().zip(before.get()).map(|(now, then)| now - then);
        Some(Figures {
            rate: ran.requests as f64 / ran.time.as_secs_f64(),
            cpu: spent.map_or(f64::NAN, |spent| spent.as_secs_f64() / ran.time.as_secs_f64()),
        })
    }
}

/// The CPU that our back end takes with a device started and nothing to do.
fn idle(side: &Side) {
    let (socket, setup) = (side.backend.socket(), Setup::default());
    let look = || {
        sleep(Duration::from_millis(500));
        let before = side.backend.cpu();
        sleep(Duration::from_secs(2));
        if let Some((now, then)) = side.backend.cpu().zip(before) {
            let share = (now - then).as_secs_f64() * 50.0;
            println!("idle with a started device: {share:.2} % of a core");
        }
    };
    if side.backend.is_function() {
        let _device = Device::plug(socket, &setup).expect("a function");
        look();
    } else {
        let _device = Device::connect(socket, &setup).expect("a back end");
        look();
    }
}

fn print_row(case: Case, own: &[Figures], others: &[Figures]) {
    let rate = median(own, |figures| figures.rate);
    let cpu = median(own, |figures| figures.cpu);
    let peer = median(others, |figures| figures.rate);
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        case.name,
        shown(rate / 1e3, 1),
        shown(1e9 / rate, 0),
        shown(cpu * 100.0, 0),
        shown(cpu * 1e9 / rate, 0),
        shown(peer / 1e3, 1),
        shown(median(others, |figures| figures.cpu) * 100.0, 0),
        shown(rate / peer, 2),
    );
}

fn shown(figure: f64, digits: usize) -> String {
    if figure.is_finite() { format!("{figure:.digits$}") } else { "-".into() }
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
