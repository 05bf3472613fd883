//! Writes and reads a disk through buffers all over guest memory, and compares: what a device that is
//! told of guest memory writes there itself.
//!
//! `guest_memory SOCKET aligned` uses buffers as a guest's page cache has them; `guest_memory SOCKET
//! odd` such as no device can reach, so that they are copied. Prints how many bytes went each way.

use std::{env, error::Error, process::ExitCode};
use vhost_frontend::{Buffer, Device, Memory, Setup, Window, scsi};

/// Bytes of each buffer of a request: together whole blocks.
const ALIGNED: [&[u64]; 6] = [
    &[4096],
    &[512],
    &[128 << 10],
    &[64 << 10, 64 << 10],
    // Larger than many controllers take at once, and with gaps at block boundaries.
    &[1 << 20],
    &[512, 3584, 4096, 1024, 512],
];
/// With gaps inside blocks.
const ODD: [&[u64]; 2] = [&[100, 412], &[4094, 2, 4096]];
/// Where buffers of the first kind begin in their pages, in turn.
const OFFSETS: [u64; 3] = [0, 512, 3584];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let [_, socket, how] = &arguments[..] else {
        eprintln!("usage: guest_memory SOCKET aligned|odd");
        return ExitCode::FAILURE;
    };
    match run(socket, how == "odd") {
        Ok(bytes) => {
            println!("{bytes} bytes written, read and compared");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(socket: &str, is_odd: bool) -> Result<u64, Box<dyn Error>> {
    let setup = Setup { regions: 3, region: 32 << 20, ..Setup::default() };
    let mut device = Device::connect(socket, &setup)?;
    let lun = scsi::lun(0, 0);
    device.settle(lun)?;
    let (blocks, size) = device.capacity(lun)?;
    let kinds: &[&[u64]] = if is_odd { &ODD } else { &ALIGNED };
    let mut moved = 0;
    for (round, sizes) in kinds.iter().cycle().take(kinds.len() * 2).enumerate() {
        let len: u64 = sizes.iter().sum();
        let count = u16::try_from(len / u64::from(size))?;
        let lba = u32::try_from((blocks / 2 + round as u64 * 4096) % (blocks - 4096))?;
        let from = buffers(&device.memory, sizes, round, is_odd)?;
        let to = buffers(&device.memory, sizes, round + 1, is_odd)?;
        for (at, window) in from.iter().enumerate() {
            let bytes: Vec<u8> = (0..window.len())
                .map(|i| (i as u64).wrapping_mul(167).wrapping_add((round * 31 + at) as u64) as u8)
                .collect();
            window.write(0, &bytes);
        }
        to.iter().for_each(|window| window.fill(0xEE));
        command(&mut device, &scsi::write(lba, count), &from, true)?;
        command(&mut device, &scsi::read(lba, count), &to, false)?;
        let gather = |windows: &[Window]| -> Vec<u8> {
            windows.iter().flat_map(|window| window.bytes(0, window.len())).collect()
        };
        if gather(&from) != gather(&to) {
            return Err(format!("round {round}: {sizes:?} at block {lba} reads otherwise").into());
        }
        moved += len;
    }
    Ok(moved)
}

/// Buffers of these sizes, each in another region than the one before.
fn buffers(
    memory: &std::sync::Arc<Memory>,
    sizes: &[u64],
    round: usize,
    is_odd: bool,
) -> Result<Vec<Window>, Box<dyn Error>> {
    let mut all = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        // Only the first may begin inside a page, and the others continue at page boundaries, or at
        // block boundaries, where another command begins.
        let offset = match (is_odd, i) {
            (true, _) => 2,
            (false, 0) => OFFSETS[round % OFFSETS.len()],
            (false, _) => 0,
        };
        let whole = memory.window_in((round + i) % memory.regions(), size + offset, 4096)?;
        all.push(whole.part(usize::try_from(offset)?, usize::try_from(size)?));
    }
    Ok(all)
}

fn command(
    device: &mut Device,
    cdb: &[u8],
    data: &[Window],
    is_write: bool,
) -> Result<(), Box<dyn Error>> {
    let header = device.memory.window(scsi::REQUEST as u64, 8)?;
    let response = device.memory.window(scsi::RESPONSE as u64, 8)?;
    header.write(0, &scsi::request(scsi::lun(0, 0), 1, cdb));
    response.fill(0xEE);
    let mut chain = vec![Buffer::out(&header)];
    if is_write {
        chain.extend(data.iter().map(Buffer::out));
        chain.push(Buffer::into(&response));
    } else {
        chain.push(Buffer::into(&response));
        chain.extend(data.iter().map(Buffer::into));
    }
    let queue = device.queues.get_mut(2).ok_or("no request queue")?;
    queue.round_trip(&chain)?;
    let head = response.bytes(0, 12);
    if (head[10], head[11]) != (0, 0) {
        let sense = response.bytes(12, 32);
        return Err(
            format!("status {:#04x}, response {}, sense {sense:02x?}", head[10], head[11]).into()
        );
    }
    Ok(())
}
