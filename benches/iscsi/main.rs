//! iSCSI over loopback, the target on one core and the client on another, against Debian's tgtd in
//! alternating runs: `cargo bench --bench iscsi`. Absolute figures depend on the machine; the
//! ratios are what to look at. Options after `--`: `--seconds N`, `--rounds N`, `--only TEXT`.

#![allow(missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A benchmark may just stop.

mod load;

use load::{Job, Session};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const JOBS: &[Job] = &[
    Job { name: "4 KiB read, depth 1", write: false, bytes: 4096, depth: 1 },
    Job { name: "4 KiB write, depth 1", write: true, bytes: 4096, depth: 1 },
    Job { name: "4 KiB read, depth 32", write: false, bytes: 4096, depth: 32 },
    Job { name: "4 KiB write, depth 32", write: true, bytes: 4096, depth: 32 },
    Job { name: "128 KiB read, depth 32", write: false, bytes: 131_072, depth: 32 },
    Job { name: "128 KiB write, depth 32", write: true, bytes: 131_072, depth: 32 },
];

const IQN: &str = "iqn.2026-11.example:bench";

/// A running target, stopped when dropped.
struct Target {
    child: Child,
    address: String,
    scratch: Option<PathBuf>,
}

impl Target {
    fn vscsi() -> Self {
        let address = "127.0.0.1:33261".to_owned();
        let child = pinned(
            Command::new(env!("CARGO_BIN_EXE_vscsi"))
                .args(["serve", "--ram", "256M", "--name", IQN, "--allow-any", "--reactors", "1"])
                .args(["--iscsi", &address, "--control", "none", "--quiet"])
                .stdout(Stdio::null()),
        );
        Self { child, address, scratch: None }.up()
    }

    /// tgtd with its rdwr backing store on a tmpfs file; `None` where it is not installed.
    fn tgtd() -> Option<Self> {
        let file = PathBuf::from(format!("/dev/shm/vscsi-bench-{}", std::process::id()));
        fs::File::create(&file).ok()?.set_len(256 << 20).ok()?;
        let port = "33262";
        // Its own control port, beside a tgtd that may be running.
        let control = "77";
        let child = Command::new("tgtd")
            .args(["-f", "-C", control, "--iscsi", &format!("portal=127.0.0.1:{port}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        pin(child.id(), 0);
        let target = Self { child, address: format!("127.0.0.1:{port}"), scratch: Some(file) }.up();
        let backing = target.scratch.as_ref()?.to_str()?.to_owned();
        for arguments in [
            vec!["--mode", "target", "--op", "new", "--tid", "1", "-T", IQN],
            vec![
                "--mode",
                "logicalunit",
                "--op",
                "new",
                "--tid",
                "1",
                "--lun",
                "1",
                "-b",
                &backing,
            ],
            vec!["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"],
        ] {
            let done = Command::new("tgtadm")
                .args(["-C", control, "--lld", "iscsi"])
                .args(arguments)
                .status()
                .ok()?;
            assert!(done.success(), "tgtadm failed");
        }
        Some(target)
    }

    fn up(self) -> Self {
        for _ in 0..100 {
            if TcpStream::connect(&self.address).is_ok() {
                return self;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("the target at {} does not answer", self.address);
    }

    /// User and system time of all its threads.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
        if let Some(file) = &self.scratch {
            let _ = fs::remove_file(file);
        }
    }
}

fn pinned(command: &mut Command) -> Child {
    let child = command.spawn().expect("the target starts");
    pin(child.id(), 0);
    child
}

fn pin(pid: u32, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    // One core is no reason not to run; the figures then say so themselves.
    let _ = sched_setaffinity(Pid::from_raw(pid as i32), &set);
}

fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|argument| argument == name)?;
    arguments.next()
}

fn main() {
    let seconds: u64 = option("--seconds").map_or(3, |n| n.parse().expect("a number"));
    let rounds: usize = option("--rounds").map_or(3, |n| n.parse().expect("a number"));
    let only = option("--only").unwrap_or_default();
    pin(0, 1);
    let ours = Target::vscsi();
    let peer = Target::tgtd();
    if peer.is_none() {
        println!("tgtd is not installed (apt install tgt): no ratios");
    }
    fill(&ours, 0);
    if let Some(peer) = &peer {
        fill(peer, 1);
    }
    sleep(Duration::from_secs(1));
    let (before, since) = (ours.cpu(), Instant::now());
    sleep(Duration::from_secs(3));
    let idle = (ours.cpu() - before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
    println!("idle: {idle:.2} % of a core");
    println!("| job | vscsi /s | p99 µs | CPU % | tgtd /s | ratio |\n|---|---|---|---|---|---|");
    for &job in JOBS.iter().filter(|job| job.name.contains(&only)) {
        let (mut rates, mut peers, mut cpu, mut p99) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (before, since) = (ours.cpu(), Instant::now());
            let figures = measure(&ours, IQN, 0, job, seconds);
            cpu.push((ours.cpu() - before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0);
            rates.push(figures.rate);
            p99.push(figures.p99);
            if let Some(peer) = &peer {
                peers.push(measure(peer, IQN, 1, job, seconds).rate);
            }
        }
        let (rate, theirs) = (median(&mut rates), median(&mut peers));
        println!(
            "| {} | {rate:.0} | {:.0} | {:.0} | {theirs:.0} | {:.1} |",
            job.name,
            median(&mut p99),
            median(&mut cpu),
            rate / theirs
        );
    }
}

fn fill(target: &Target, lun: u8) {
    let mut session = Session::login(&target.address, IQN, lun).expect("login");
    let capacity = session.capacity().expect("READ CAPACITY");
    session.fill(capacity).expect("the disk is filled");
}

fn measure(target: &Target, iqn: &str, lun: u8, job: Job, seconds: u64) -> load::Figures {
    let mut session = Session::login(&target.address, iqn, lun).expect("login");
    let capacity = session.capacity().expect("READ CAPACITY");
    session.run(job, Duration::from_secs(seconds), capacity).expect("the job runs")
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
