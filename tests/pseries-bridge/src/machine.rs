//! The machine: it runs until it comes to a hypervisor call, which the partition answers or QEMU
//! does.

use std::{thread, time::Duration};

use vmm_glue::memory::GuestMap;

use crate::{
    firmware::Firmware,
    frame::Frame,
    gdb::{Gdb, GdbError, Stop},
    partition::Partition,
};

/// Where calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The address of the `sc 1`.
    pub at: u64,
    /// Another one with the same code behind it, which is not watched: calls that are not for us go
    /// on there. Without one they are stepped over.
    pub twin: Option<u64>,
}

/// Runs the machine until its firmware has moved to where it makes its calls, and says where.
///
/// # Errors
/// As of [`run`].
pub fn start(gdb: &mut Gdb, firmware: &Firmware, memory: &GuestMap) -> Result<Vec<Site>, GdbError> {
    gdb.go()?;
    let sites = loop {
        if let Some(sites) = firmware.sites(memory) {
            break sites;
        }
        thread::sleep(MOVING);
    };
    gdb.interrupt()?;
    tracing::info!(?sites, "the firmware has moved");
    Ok(sites)
}

/// Runs the machine until it is off.
///
/// # Errors
/// The stub did not do as it should; the machine stands then.
pub fn run(gdb: &mut Gdb, sites: &[Site], partition: &Partition) -> Result<(), GdbError> {
    for site in sites {
        gdb.set_breakpoint(site.at)?;
    }
    let addresses: Vec<u64> = sites.iter().map(|site| site.at).collect();
    gdb.go()?;
    while gdb.wait()? == Stop::Trap {
        let Some(mut frame) = Frame::at(gdb.registers()?, &addresses) else {
            gdb.go()?;
            continue;
        };
        let at = frame.site();
        let twin = sites.iter().find(|site| site.at == at).and_then(|site| site.twin);
        match (partition.call(&frame), twin) {
            (Some(status), _) => frame.returned(status),
            (None, Some(twin)) => frame.jump(twin),
            (None, None) => {
                gdb.clear_breakpoint(at)?;
                if gdb.step()? == Stop::Exited {
                    return Ok(());
                }
                gdb.set_breakpoint(at)?;
                gdb.go()?;
                continue;
            }
        }
        gdb.go_with(frame.bytes())?;
    }
    Ok(())
}

/// How often to look whether the firmware has moved: it works for a second before it needs a disk.
const MOVING: Duration = Duration::from_millis(2);
