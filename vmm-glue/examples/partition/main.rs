//! A toy partition and a virtual SCSI server in one process.
//!
//! `cargo run -p vmm-glue --example partition` shows what a VMM does: it starts reactors, makes a disk,
//! gives an adapter the partition's memory and a way to interrupt it, and passes on hypervisor calls.
//! The partition then does what a client does: it registers its queue, initializes, exchanges adapter
//! information, logs in, and writes and reads a block.

pub mod guest;

use guest::{DATA, Data, Guest, Outcome, UNITS, lun};
use libsrp::{
    Tag,
    login::LoginRsp,
    rsp::Rsp,
    viosrp::{
        adapter_info::AdapterInfo,
        crq::Format,
        mad::{Mad, MadBody, MadStatus},
        unpadded,
    },
};
use vmm_glue::{
    crq,
    embed::{Reactors, ram_disk},
};

/// The VMM's part, and the partition's.
pub fn main() -> Outcome<()> {
    // The VMM's part.
    let reactors = Reactors::<crq::Server>::start(1)?;
    let disk = ram_disk(reactors.postboxes(), 16 << 20, "TOY0001")?;
    let export = reactors.export(0, "eui.00000000000000000000000000000001", vec![(0, disk)])?;
    let mut guest = Guest::new(crq::Config::new("toy"), vec![export], &reactors)?;

    // The partition's part.
    guest.connect()?;
    println!("connected");

    let info = AdapterInfo {
        srp_version: AdapterInfo::SRP_VERSION,
        partition_name: libsrp::viosrp::padded("toy"),
        partition_number: 1,
        mad_version: AdapterInfo::MAD_VERSION,
        os_type: crq::OsType::Linux,
        max_transfer: [0; 8],
    };
    let mut payload = [0; AdapterInfo::LEN];
    info.emit(&mut payload)?;
    guest.write(DATA, &payload);
    let mut unit = [0; 256];
    let body = MadBody::AdapterInfo { buffer: DATA };
    let len = payload.len() as u16;
    Mad { tag: Tag([1; 8]), status: MadStatus::Success, len, body }.emit(&mut unit)?;
    let _ = guest.send_unit(Format::Mad, UNITS, &unit, 256);
    guest.answer(UNITS)?;
    let info = AdapterInfo::parse(&guest.read(DATA, AdapterInfo::LEN))?;
    let name = String::from_utf8_lossy(unpadded(&info.partition_name)).into_owned();
    println!("the server is {name:?}, {:?}, up to {} bytes", info.os_type, info.max_transfer[0]);

    let login = guest.log_in()?;
    println!("logged in, {} requests at a time", LoginRsp::parse(&login)?.limit_delta);

    // Each logical unit first reports that it was switched on.
    let unit = guest.command(Tag([2; 8]), lun(0, 0), &[0; 6], Data::None)?;
    println!("TEST UNIT READY: {:?}", Rsp::parse(&unit)?.status);

    let block: Vec<u8> = (0..512).map(|n| (n % 251) as u8).collect();
    guest.write(DATA, &block);
    let cdb = |opcode| [opcode, 0, 0, 0, 0, 8, 0, 0, 1, 0];
    let unit = guest.command(Tag([3; 8]), lun(0, 0), &cdb(0x2A), Data::Out(DATA, 512))?;
    println!("WRITE(10): {:?}", Rsp::parse(&unit)?.status);
    let unit = guest.command(Tag([4; 8]), lun(0, 0), &cdb(0x28), Data::In(DATA + 4096, 512))?;
    println!("READ(10): {:?}", Rsp::parse(&unit)?.status);
    if guest.read(DATA + 4096, 512) != block {
        return Err("what was read is not what was written".into());
    }
    println!("the block is the same");
    guest.free()?;
    println!("the queue is free");
    Ok(())
}
