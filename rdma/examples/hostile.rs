//! What initiators must not do, done to a target over RDMA: it may refuse or close that connection,
//! and has to go on serving.
//!
//! `hostile ADDRESS ISER_PORT IQN SRP_PORT ID_EXT IOC_GUID` (the two last in hexadecimal) prints
//! `ok NAME` or `failed NAME: why` for each attack, and exits with 1 if one failed. The target has
//! to admit any initiator, without CHAP. LUN 0 is read, and written with what is there already.
#![allow(unsafe_code)] // Owners of memory that is never registered.
#![allow(clippy::unwrap_used, clippy::expect_used)] // It is a test.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rdma::{Connection, DialError, Done, Event, Local, Registered, SendFlags, Setup, dial};

/// This side never moves data by itself.
#[derive(Debug)]
struct Nothing;

// SAFETY: it has no memory, and is never given to a connection.
unsafe impl Registered for Nothing {
    fn local(&self) -> Local {
        Local { addr: 0, len: 0, key: 0 }
    }
}

type Conn = Connection<Nothing>;

const SETUP: Setup = Setup {
    receives: 256,
    receive_size: 9216,
    sends: 512,
    send_slots: 300,
    send_size: 9216,
    vector: 0,
    shared_receives: None,
};

const LIMIT: Duration = Duration::from_secs(10);

fn connect(address: SocketAddr, private: &[u8]) -> Result<(Conn, Vec<u8>), DialError> {
    dial(address, private, &SETUP, LIMIT).map(|dialed| (dialed.connection, dialed.private))
}

fn send(connection: &mut Conn, parts: &[&[u8]]) -> Result<(), String> {
    connection.send(parts, SendFlags::default()).map_err(|error| error.to_string())
}

/// Waits for a message.
fn receive(connection: &mut Conn) -> Result<Vec<u8>, String> {
    let until = Instant::now() + LIMIT;
    let mut done = Vec::new();
    while Instant::now() < until {
        connection.flush().map_err(|error| error.to_string())?;
        connection.poll(&mut done);
        for one in done.drain(..) {
            match one {
                Done::Received { buffer, len } => {
                    let message = connection.received(&buffer, len, <[u8]>::to_vec);
                    connection.repost(buffer);
                    return Ok(message);
                }
                Done::Broken(error) => return Err(error.to_string()),
                Done::Read { .. } => {}
            }
        }
        match connection.event() {
            None | Some(Event::Established) => {}
            Some(event) => return Err(format!("{event:?}")),
        }
    }
    Err("no answer".to_owned())
}

/// The target has to close the connection, whatever it says before.
fn closed(connection: &mut Conn) -> Result<(), String> {
    let until = Instant::now() + LIMIT;
    let mut done = Vec::new();
    while Instant::now() < until {
        let _ = connection.flush();
        connection.poll(&mut done);
        for one in done.drain(..) {
            if let Done::Received { buffer, .. } = one {
                connection.repost(buffer);
            }
        }
        if let Some(Event::Disconnected | Event::Failed(_)) = connection.event() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("the target keeps the connection".to_owned())
}

// ---- iSER

struct Iser {
    address: SocketAddr,
    target: String,
}

/// iSER's header with the write STag and the read STag, each with its base offset.
fn iser_header(first: u8, write: (u32, u64), read: (u32, u64)) -> [u8; 28] {
    let mut header = [0; 28];
    header[0] = first;
    header[4..8].copy_from_slice(&write.0.to_be_bytes());
    header[8..16].copy_from_slice(&write.1.to_be_bytes());
    header[16..20].copy_from_slice(&read.0.to_be_bytes());
    header[20..28].copy_from_slice(&read.1.to_be_bytes());
    header
}

const PLAIN: [u8; 28] = {
    let mut header = [0; 28];
    header[0] = 0x10;
    header
};

/// Number of the first command of an attack.
const FIRST: u32 = 2;

impl Iser {
    fn open(&self) -> Result<Conn, String> {
        connect(self.address, &[0xC0, 0, 0, 0]).map(|(conn, _)| conn).map_err(|e| e.to_string())
    }

    fn login_request(&self) -> (Vec<u8>, Vec<u8>) {
        let text = format!(
            "InitiatorName=iqn.2026-11.net.example:hostile\0TargetName={}\0SessionType=Normal\0\
             HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0\
             TargetRecvDataSegmentLength=8192\0InitiatorRecvDataSegmentLength=8192\0\
             RDMAExtensions=Yes\0",
            self.target
        );
        let mut header = vec![0; 48];
        (header[0], header[1]) = (0x43, 0x87);
        header[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
        header[8..14].copy_from_slice(&[0x80, 0, 0, 1, 2, 3]);
        header[19] = 1;
        let mut data = text.into_bytes();
        data.resize(data.len().next_multiple_of(4), 0);
        (header, data)
    }

    /// A session in full feature phase whose unit attentions are taken, so that the next command does
    /// what it says.
    fn login(&self) -> Result<Conn, String> {
        let mut conn = self.open()?;
        let (header, data) = self.login_request();
        send(&mut conn, &[&PLAIN, &header, &data])?;
        let answer = receive(&mut conn)?;
        match (answer.get(28), answer.get(29), answer.get(64)) {
            (Some(0x23), Some(0x87), Some(0)) => {}
            other => return Err(format!("login answered {other:?}")),
        }
        for sn in 0..FIRST {
            send(&mut conn, &[&PLAIN, &command(sn, 0x80, 0, [0; 16])])?;
            receive(&mut conn)?;
        }
        Ok(conn)
    }

    /// Full service: a login and TEST UNIT READY.
    fn serves(&self) -> Result<(), String> {
        let mut conn = self.login()?;
        for sn in FIRST..FIRST + 3 {
            send(&mut conn, &[&PLAIN, &command(sn, 0x80, 0, [0; 16])])?;
            let answer = receive(&mut conn)?;
            if answer.get(28) != Some(&0x21) {
                return Err(format!("command answered {:?}", answer.get(28)));
            }
        }
        Ok(())
    }

    fn attacks(&self, check: &mut impl FnMut(&str, Result<(), String>)) {
        check("iser-private-data-of-every-length", private_lengths(self.address, |_| true));
        check(
            "iser-short-messages",
            (0..76).step_by(5).try_for_each(|len| {
                let mut conn = self.open()?;
                send(&mut conn, &[&[0x10; 76][..len]])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-wrong-opcodes",
            [0x00, 0x20, 0x30, 0x40, 0xF0].iter().try_for_each(|&first| {
                let mut conn = self.open()?;
                let (header, data) = self.login_request();
                send(&mut conn, &[&iser_header(first, (0, 0), (0, 0)), &header, &data])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-lengths-that-lie",
            [0, 1, 0x2000, 0xFF_FFFF].iter().try_for_each(|&len: &u32| {
                let mut conn = self.open()?;
                let (mut header, data) = self.login_request();
                header[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
                send(&mut conn, &[&PLAIN, &header, &data])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-target-opcodes-in-session",
            [0x25, 0x31, 0x21].iter().try_for_each(|&opcode| {
                let mut conn = self.login()?;
                let mut header = [0; 48];
                header[0] = opcode;
                send(&mut conn, &[&PLAIN, &header])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-garbage-in-session",
            (0..8).try_for_each(|seed| {
                let mut conn = self.login()?;
                let mut noise = [0; 300];
                fill(&mut noise, seed);
                send(&mut conn, &[&noise])?;
                closed(&mut conn)
            }),
        );
        let mut read = [0; 16];
        (read[0], read[8]) = (0x28, 8);
        let mut write = read;
        write[0] = 0x2A;
        check(
            "iser-read-to-nowhere",
            self.login().and_then(|mut conn| {
                let header = iser_header(0x14, (0, 0), (0xDEAD_BEEF, 0x1000));
                send(&mut conn, &[&header, &command(FIRST, 0xC0, 4096, read)])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-write-from-nowhere",
            self.login().and_then(|mut conn| {
                let header = iser_header(0x18, (0xDEAD_BEEF, 0x1000), (0, 0));
                send(&mut conn, &[&header, &command(FIRST, 0xA0, 4096, write)])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-data-without-a-place",
            self.login().and_then(|mut conn| {
                send(&mut conn, &[&PLAIN, &command(FIRST, 0xA0, 4096, write)])?;
                closed(&mut conn)
            }),
        );
        check(
            "iser-beyond-the-window",
            self.login().and_then(|mut conn| {
                for sn in FIRST..FIRST + 280 {
                    send(&mut conn, &[&PLAIN, &command(sn, 0x80, 0, [0; 16])])?;
                }
                // Whatever happens to this connection, it ends when we do.
                let _ = conn.flush();
                std::thread::sleep(Duration::from_millis(300));
                Ok(())
            }),
        );
        check("iser-still-serves", self.serves());
    }
}

/// A SCSI Command PDU's header.
fn command(sn: u32, flags: u8, expected: u32, cdb: [u8; 16]) -> [u8; 48] {
    let mut header = [0; 48];
    (header[0], header[1]) = (0x01, flags | 1);
    header[16..20].copy_from_slice(&(sn + 10).to_be_bytes());
    header[20..24].copy_from_slice(&expected.to_be_bytes());
    header[24..28].copy_from_slice(&sn.to_be_bytes());
    header[32..48].copy_from_slice(&cdb);
    header
}

// ---- SRP

struct Srp {
    address: SocketAddr,
    target: [u8; 16],
}

impl Srp {
    /// LOGIN_REQ in the compact form of RDMA/CM.
    fn login_request(&self) -> [u8; 56] {
        let mut request = [0; 56];
        request[7] = 7;
        request[9] = 6;
        request[12..16].copy_from_slice(&8260_u32.to_be_bytes());
        request[16..32].copy_from_slice(b"hostile initiat.");
        request[32..48].copy_from_slice(&self.target);
        request[49] = 68;
        request[10] = 0x81;
        request
    }

    fn login(&self) -> Result<Conn, String> {
        let (conn, answer) =
            connect(self.address, &self.login_request()).map_err(|error| error.to_string())?;
        if answer.first() == Some(&0xC0) { Ok(conn) } else { Err(format!("{answer:02x?}")) }
    }

    fn refused(&self, change: impl FnOnce(&mut [u8; 56])) -> Result<(), String> {
        let mut request = self.login_request();
        change(&mut request);
        match connect(self.address, &request) {
            Err(DialError::Rejected { private, .. }) if private.first() == Some(&0xC2) => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("accepted".to_owned()),
        }
    }

    fn serves(&self) -> Result<(), String> {
        let mut conn = self.login()?;
        for tag in 0..3 {
            send(&mut conn, &[&srp_command(tag, 0, [0; 16])])?;
            let answer = receive(&mut conn)?;
            if answer.first() != Some(&0xC1) || answer.get(8..16) != Some(&[tag; 8]) {
                return Err(format!("{answer:02x?}"));
            }
        }
        Ok(())
    }

    /// Sends units and expects the channel to be closed.
    fn fatal(&self, units: &[Vec<u8>]) -> Result<(), String> {
        let mut conn = self.login()?;
        for unit in units {
            send(&mut conn, &[unit])?;
        }
        closed(&mut conn)
    }

    /// Sends a command that is to fail with CHECK CONDITION, on a channel that stays.
    fn fails(&self, unit: &[u8]) -> Result<(), String> {
        let mut conn = self.login()?;
        // The unit attention of a new nexus goes first.
        send(&mut conn, &[&srp_command(1, 0, [0; 16])])?;
        receive(&mut conn)?;
        send(&mut conn, &[unit])?;
        let answer = receive(&mut conn)?;
        if answer.get(19) != Some(&2) {
            return Err(format!("answered {answer:02x?}"));
        }
        send(&mut conn, &[&srp_command(3, 0, [0; 16])])?;
        receive(&mut conn).map(|_| ())
    }

    fn attacks(&self, check: &mut impl FnMut(&str, Result<(), String>)) {
        check("srp-private-data-of-every-length", private_lengths(self.address, |_| true));
        check("srp-login-no-request", self.refused(|request| request[11] = 2));
        check("srp-login-other-target", self.refused(|request| request[40] ^= 0xFF));
        check("srp-login-no-format", self.refused(|request| request[9] = 0));
        check("srp-login-unknown-format", self.refused(|request| request[9] = 0x0F));
        check("srp-login-too-short-units", self.refused(|request| request[12..16].fill(0)));
        check(
            "srp-login-garbage",
            (0..16).try_for_each(|seed| {
                let mut noise = [0; 56];
                fill(&mut noise, seed);
                match connect(self.address, &noise) {
                    Ok(_) => Err(format!("seed {seed} was accepted")),
                    Err(DialError::Rejected { .. }) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            }),
        );
        check(
            "srp-short-units",
            [0, 1, 15, 16, 47].iter().try_for_each(|&len| {
                let unit = srp_command(1, 0, [0; 16]);
                self.fatal(&[unit[..len].to_vec()])
            }),
        );
        check(
            "srp-unknown-opcodes",
            [0x00, 0x04, 0x80, 0xC1, 0xFF].iter().try_for_each(|&opcode| {
                let mut unit = srp_command(1, 0, [0; 16]);
                unit[0] = opcode;
                self.fatal(&[unit])
            }),
        );
        check("srp-beyond-the-credit", {
            let units: Vec<_> = (0..250).map(|tag| srp_command(tag, 0, [0; 16])).collect();
            // The target may be fast enough to keep pace, but never breaks.
            let result = self.login().and_then(|mut conn| {
                units.iter().try_for_each(|unit| send(&mut conn, &[unit]))?;
                let _ = conn.flush();
                std::thread::sleep(Duration::from_millis(300));
                Ok(())
            });
            result.and_then(|()| self.serves())
        });
        let mut read = [0; 16];
        (read[0], read[8]) = (0x28, 8);
        let mut write = read;
        write[0] = 0x2A;
        check(
            "srp-read-to-nowhere",
            self.fatal(&[
                attention(),
                with(srp_command(2, 0x01, read), &[&descriptor(0x1000, 4096)]),
            ]),
        );
        check(
            "srp-write-from-nowhere",
            self.fatal(&[
                attention(),
                with(srp_command(2, 0x10, write), &[&descriptor(0x1000, 4096)]),
            ]),
        );
        check("srp-table-from-nowhere", {
            let mut unit = srp_command(2, 0x02, read);
            unit[7] = 1;
            let table =
                [&descriptor(0x1000, 64)[..], &4096_u32.to_be_bytes(), &descriptor(0, 1024)];
            self.fatal(&[attention(), with(unit, &table)])
        });
        check(
            "srp-table-lengths-that-lie",
            [1_u32, 15, 17, 0xFFFF_FFF0, 0xFFFF_FFFF].iter().try_for_each(|&len| {
                let mut unit = srp_command(2, 0x02, read);
                unit[7] = 1;
                let total = u32::MAX.to_be_bytes();
                self.fails(&with(unit, &[&descriptor(0x1000, len), &total, &descriptor(0, 1024)]))
            }),
        );
        check(
            "srp-descriptors-cut-off",
            (0..16).step_by(5).try_for_each(|len| {
                let unit = srp_command(2, 0x01, read);
                self.fails(&with(unit, &[&descriptor(0x1000, 4096)[..len]]))
            }),
        );
        check("srp-immediate-data-cut-off", {
            let unit = srp_command(2, 0x30, write);
            self.fails(&with(unit, &[&8192_u32.to_be_bytes(), &[0; 100]]))
        });
        check("srp-both-directions", {
            let unit = srp_command(2, 0x11, read);
            self.fails(&with(unit, &[&descriptor(0, 512), &descriptor(0, 512)]))
        });
        check("srp-still-serves", self.serves());
    }
}

/// A CMD without descriptors, of LUN 0.
fn srp_command(tag: u8, formats: u8, cdb: [u8; 16]) -> Vec<u8> {
    let mut unit = vec![0; 48];
    (unit[0], unit[5]) = (0x02, formats);
    unit[8..16].fill(tag);
    unit[32..48].copy_from_slice(&cdb);
    unit
}

/// A command that takes the unit attention of a new nexus with it.
fn attention() -> Vec<u8> {
    srp_command(1, 0, [0; 16])
}

fn with(mut unit: Vec<u8>, parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().for_each(|part| unit.extend_from_slice(part));
    unit
}

fn descriptor(address: u64, len: u32) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&address.to_be_bytes());
    descriptor[8..12].copy_from_slice(&0xDEAD_BEEF_u32.to_be_bytes());
    descriptor[12..].copy_from_slice(&len.to_be_bytes());
    descriptor
}

// ---- both

/// Connects with private data of every length; the target accepts or rejects.
fn private_lengths(address: SocketAddr, fine: impl Fn(&DialError) -> bool) -> Result<(), String> {
    (0..=56).try_for_each(|len| {
        let data = [0x5A; 56];
        match connect(address, &data[..len]) {
            Ok(_) => Ok(()),
            Err(error @ DialError::Rejected { .. }) if fine(&error) => Ok(()),
            Err(error) => Err(format!("{len} bytes: {error}")),
        }
    })
}

/// Noise, the same for the same seed.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, iser_port, target, srp_port, id_ext, guid] = arguments.as_slice() else {
        eprintln!("usage: hostile ADDRESS ISER_PORT IQN SRP_PORT ID_EXT IOC_GUID");
        std::process::exit(2);
    };
    let at = |port: &str| format!("{address}:{port}").parse().expect("an address and a port");
    let number = |text: &str| {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal").to_be_bytes()
    };
    let mut port = [0; 16];
    port[..8].copy_from_slice(&number(id_ext));
    port[8..].copy_from_slice(&number(guid));
    let mut failed = false;
    let mut check = |name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("ok {name}"),
        Err(why) => {
            failed = true;
            println!("failed {name}: {why}");
        }
    };
    Iser { address: at(iser_port), target: target.clone() }.attacks(&mut check);
    Srp { address: at(srp_port), target: port }.attacks(&mut check);
    std::process::exit(i32::from(failed));
}
