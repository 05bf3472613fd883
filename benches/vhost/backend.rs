//! The back ends that are measured, each a process on core 0.

use crate::driver::pattern;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The option for a PCI function.
pub const VFIO_USER: &str = "--vfio-user";

/// Which program to start.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A `vscsi`, behind the door that its option opens.
    Vscsi { program: PathBuf, ram: u64, door: &'static str },
    /// `vhost-device-scsi` on a file: reads only, and it ends with its connection.
    Device { program: PathBuf, image: PathBuf },
    /// One that runs already: its disk is overwritten.
    Running { socket: PathBuf },
}

/// A back end, stopped when dropped.
#[derive(Debug)]
pub struct Backend {
    kind: Kind,
    child: Option<Child>,
    socket: PathBuf,
}

impl Backend {
    pub fn start(kind: &Kind, folder: &Path) -> Self {
        let (command, socket) = match kind {
            Kind::Vscsi { program, ram, door } => {
                let socket = folder.join(format!("vscsi{door}.sock"));
                let mut command = Command::new(program);
                command
                    .args(["serve", "--ram", &ram.to_string(), "--reactors", "1"])
                    .args(["--control", "none", "--state-dir", "none", "--quiet"])
                    .arg(door)
                    .arg(&socket);
                (Some(command), socket)
            }
            Kind::Device { program, image } => {
                let socket = folder.join("peer.sock");
                let mut command = Command::new(program);
                command.arg("-r").arg("--socket-path").arg(&socket).arg(image);
                command.stderr(Stdio::null());
                (Some(command), socket)
            }
            Kind::Running { socket } => (None, socket.clone()),
        };
        let child = command.map(|mut command| {
            let _ = fs::remove_file(&socket);
            // The child inherits the core, and so does every thread that it starts.
            pin(0);
            let child = command.stdout(Stdio::null()).spawn();
            pin(1);
            child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
        });
        Self { kind: kind.clone(), child, socket }
    }

    /// Makes one that ended with its last connection ready for the next.
    pub fn again(&mut self, folder: &Path) {
        if let Kind::Device { .. } = self.kind {
            let kind = self.kind.clone();
            *self = Self::start(&kind, folder);
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether its disk is filled by other means than WRITE.
    pub fn is_filled(&self) -> bool {
        matches!(self.kind, Kind::Device { .. })
    }

    pub fn can_write(&self) -> bool {
        !matches!(self.kind, Kind::Device { .. })
    }

    /// Descriptors in its queues, at most.
    pub fn queue_size(&self) -> u16 {
        match self.kind {
            Kind::Device { .. } => 128,
            _ if self.is_function() => 256,
            _ => 1024,
        }
    }

    /// Whether it speaks vfio-user.
    pub fn is_function(&self) -> bool {
        matches!(self.kind, Kind::Vscsi { door: VFIO_USER, .. })
    }

    /// User and system time of all its threads; none for a back end of somebody else.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// Where `vhost-device-scsi` is: `VHOST_DEVICE_SCSI`, or in the path.
pub fn find_device() -> Option<PathBuf> {
    if let Some(named) = env::var_os("VHOST_DEVICE_SCSI") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join("vhost-device-scsi")).find(|it| it.exists())
}

/// A file in memory, filled with the pattern; removed when dropped.
#[derive(Debug)]
pub struct Image(pub PathBuf);

impl Image {
    pub fn new(bytes: u64) -> std::io::Result<Self> {
        let image = Self(format!("/dev/shm/vscsi-bench-{}", std::process::id()).into());
        let mut file = fs::File::create(&image.0)?;
        let mut data = vec![0; 1 << 20];
        for at in (0..bytes).step_by(data.len()) {
            pattern(at, &mut data);
            file.write_all(&data)?;
        }
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A folder for sockets, removed when dropped.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> std::io::Result<Self> {
        let folder = Self(env::temp_dir().join(format!("vscsi-bench-{}", std::process::id())));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Keeps this thread, and what it starts, on one core.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    // One core is no reason not to run; the figures then say so themselves.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}
