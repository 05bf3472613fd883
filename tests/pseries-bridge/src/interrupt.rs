//! The virtual interrupt of the adapter.
//!
//! A guest in XIVE mode takes an interrupt when its source's trigger page is written. QEMU's qtest
//! socket writes memory, devices' too, while the machine runs, so nothing has to stop for it. (A
//! client that is not in XIVE mode, as firmware, polls its queue.)

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// Pulses the interrupt from any thread, without waiting.
#[derive(Clone, Debug)]
pub struct Interrupt {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// None is pulsed while it is set; one is when it ends, if it was asked for.
    held: AtomicBool,
    asked: AtomicBool,
    pulses: AtomicU64,
}

impl Interrupt {
    /// The interrupt of a unit, through QEMU's qtest socket.
    pub fn connect(path: &Path, unit: u64) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let thread = Arc::clone(&shared);
        thread::Builder::new().name("interrupt".into()).spawn(move || {
            // The other end is gone when the machine is off.
            if let Err(error) = pulse(&stream, trigger(unit), &thread, &woken) {
                tracing::info!(%error, "no interrupts any more");
            }
        })?;
        Ok(Self { shared, wake })
    }

    /// Pulses it soon.
    pub fn pulse(&self) {
        self.shared.asked.store(true, Ordering::Release);
        // A message that waits already will do.
        let _ = self.wake.try_send(());
    }

    /// Holds it back, or no longer.
    pub fn hold(&self, hold: bool) {
        self.shared.held.store(hold, Ordering::Release);
        let _ = self.wake.try_send(());
    }

    /// How often it was pulsed.
    pub fn pulses(&self) -> u64 {
        self.shared.pulses.load(Ordering::Relaxed)
    }
}

fn pulse(stream: &UnixStream, at: u64, shared: &Shared, woken: &Receiver<()>) -> io::Result<()> {
    let mut answers = BufReader::new(stream);
    while let Ok(()) = woken.recv() {
        if shared.held.load(Ordering::Acquire) || !shared.asked.swap(false, Ordering::AcqRel) {
            continue;
        }
        writeln!(&*stream, "writeq {at:#x} 0x0")?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        if !answer.starts_with("OK") {
            return Err(io::Error::other(format!("qtest answered {answer:?}")));
        }
        shared.pulses.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The trigger page of a unit's interrupt: QEMU numbers the sources of virtual I/O devices by the
/// lowest byte of the unit, and gives each source two pages of 64 KiB.
fn trigger(unit: u64) -> u64 {
    XIVE + ((FIRST_SOURCE | (unit & 0xFF)) << 17)
}

/// Where QEMU's pseries machine has the sources' pages.
const XIVE: u64 = 0x0006_0100_0000_0000;
/// The first source of virtual I/O devices.
const FIRST_SOURCE: u64 = 0x1100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_held_back_is_pulsed_once_afterwards() {
        let folder = std::env::temp_dir().join(format!("pseries-bridge-{}", std::process::id()));
        let server = std::os::unix::net::UnixListener::bind(&folder).unwrap();
        let interrupt = Interrupt::connect(&folder, 0x7100_0002).unwrap();
        std::fs::remove_file(&folder).unwrap();
        let (mut stream, _) = server.accept().unwrap();
        interrupt.hold(true);
        interrupt.pulse();
        interrupt.pulse();
        interrupt.hold(false);
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "writeq 0x6010022040000 0x0\n");
        stream.write_all(b"OK\n").unwrap();
        interrupt.pulse();
        line.clear();
        lines.read_line(&mut line).unwrap();
        assert_eq!(interrupt.pulses(), 1);
    }
}
