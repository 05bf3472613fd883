//! Connects to itself over an RDMA device of this machine, and tries everything that a target does.
//!
//! `selftest ADDRESS` prints a line for each check, `ok NAME` or `failed NAME: why`, and exits with 1
//! if one failed. ADDRESS is one of an RDMA device (soft-RoCE will do; not loopback).
#![allow(unsafe_code)] // Registers memory of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)] // It is a test.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rdma::{
    Connection, DialError, Done, Event, Listener, Local, Registered, Registration, Remote,
    SendFlags, Setup, dial,
};

/// Memory of ours, registered.
struct Memory {
    _registration: Registration,
    key: u32,
    remote_key: u32,
    bytes: Box<[u8]>,
}

// SAFETY: the box is the value's own, stays where it is, and is registered for as long.
unsafe impl Registered for Memory {
    fn local(&self) -> Local {
        Local { addr: self.bytes.as_ptr() as u64, len: self.bytes.len(), key: self.key }
    }
}

impl Memory {
    fn new(connection: &Connection<Self>, len: usize, fill: u8) -> Self {
        let mut bytes = vec![fill; len].into_boxed_slice();
        // SAFETY: the memory is the box's, which is dropped after the registration.
        let registration = unsafe {
            connection.device().register_for_peer(bytes.as_mut_ptr(), len).expect("registers")
        };
        let (key, remote_key) = (registration.key(), registration.remote_key());
        Self { _registration: registration, key, remote_key, bytes }
    }

    fn remote(&self, at: usize, len: usize) -> Remote {
        Remote {
            addr: self.bytes.as_ptr() as u64 + at as u64,
            key: self.remote_key,
            len: len as u32,
        }
    }
}

const SETUP: Setup = Setup {
    receives: 16,
    receive_size: 256,
    sends: 32,
    send_slots: 8,
    send_size: 256,
    vector: 0,
    shared_receives: None,
};

const LIMIT: Duration = Duration::from_secs(5);

type Ends = (Connection<Memory>, Connection<Memory>);

/// Waits for the next event of the connection manager.
fn event(connection: &mut Connection<Memory>) -> Option<Event> {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        if let Some(event) = connection.event() {
            return Some(event);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Flushes and polls until `count` things have come or ended.
fn gather(connection: &mut Connection<Memory>, count: usize) -> Vec<Done<Memory>> {
    let until = Instant::now() + LIMIT;
    let mut done = Vec::new();
    while done.len() < count && Instant::now() < until {
        let _ = connection.flush();
        connection.poll(&mut done);
    }
    done
}

/// Both ends of a connection.
fn connect(listener: &mut Listener, setup: &Setup) -> Result<Ends, String> {
    let address = listener.address();
    let setup_there = *setup;
    std::thread::scope(|scope| {
        let there = scope.spawn(move || {
            let mut hello = [0; 56];
            hello[..5].copy_from_slice(b"hello");
            // The thread makes the connection and gives it away; nobody shares it.
            dial::<Memory>(address, &hello, &setup_there, LIMIT)
                .map(|dialed| Sent(dialed.connection, dialed.private))
        });
        let until = Instant::now() + LIMIT;
        let request = loop {
            match listener.accept().map_err(|error| error.to_string())? {
                Some(request) => break request,
                None if Instant::now() > until => return Err("no request came".to_owned()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if !request.private_data().starts_with(b"hello") {
            return Err(format!("private data {:?}", request.private_data()));
        }
        let mut here = Connection::open(request, setup).map_err(|(error, _)| error.to_string())?;
        here.accept(b"welcome").map_err(|error| error.to_string())?;
        let Sent(there, private) = there.join().unwrap().map_err(|error| error.to_string())?;
        if !private.starts_with(b"welcome") {
            return Err(format!("private data of the answer {private:?}"));
        }
        match event(&mut here) {
            Some(Event::Established) => Ok((here, there)),
            other => Err(format!("{other:?} instead of Established")),
        }
    })
}

/// A connection on its way from the thread that made it.
struct Sent(Connection<Memory>, Vec<u8>);

// SAFETY: these connections have no shared receive buffers, which alone belong to a thread.
unsafe impl Send for Sent {}

fn messages((mut here, mut there): Ends) -> Result<(), String> {
    for round in 0..100_u8 {
        there.send(&[b"ping", &[round]], SendFlags::default()).unwrap();
        there.flush().map_err(|error| error.to_string())?;
        let mut done = gather(&mut here, 1);
        // The sender's slots come free.
        there.poll(&mut Vec::new());
        let Some(Done::Received { buffer, len: 5 }) = done.pop() else {
            return Err(format!("round {round}: {}", done.len()));
        };
        let same =
            here.received(&buffer, 5, |bytes| bytes == [b"ping".as_slice(), &[round]].concat());
        here.repost(buffer);
        if !same {
            return Err(format!("round {round}: other bytes"));
        }
    }
    // One completion event after arming, and none lost.
    let mut done = Vec::new();
    while here.poll(&mut done) {}
    if here.arm() {
        return Err("something came from nowhere".to_owned());
    }
    there.send(&[b"wake"], SendFlags::default()).unwrap();
    there.flush().map_err(|error| error.to_string())?;
    if !readable(here.completion_fd()) {
        return Err("no completion event".to_owned());
    }
    here.notified();
    if gather(&mut here, 1).len() == 1 { Ok(()) } else { Err("nothing came".to_owned()) }
}

fn readable(fd: i32) -> bool {
    let mut set = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    // SAFETY: one entry, as is said.
    unsafe { libc::poll(set.as_mut_ptr(), 1, 5000) == 1 }
}

fn data((mut here, mut there): Ends) -> Result<(), String> {
    const LEN: usize = 3 << 20;
    let remote = Memory::new(&there, LEN, 0);
    let mut source = Memory::new(&here, LEN, 0);
    for (at, byte) in source.bytes.iter_mut().enumerate() {
        *byte = (at * 7 + at / 4096) as u8;
    }
    let expected = source.bytes.clone();
    // Three pieces, the middle one tiny, in an order of their own.
    let pieces = [remote.remote(8192, LEN - 8192), remote.remote(4096, 13), remote.remote(0, 4096)];
    here.write(source, 0, LEN - 4083, &pieces);
    here.send(&[b"written"], SendFlags::default()).unwrap();
    here.flush().map_err(|error| error.to_string())?;
    let Some(Done::Received { buffer, .. }) = gather(&mut there, 1).pop() else {
        return Err("no message behind the write".to_owned());
    };
    there.repost(buffer);
    if remote.bytes[8192..] != expected[..LEN - 8192]
        || remote.bytes[4096..4109] != expected[LEN - 8192..LEN - 8179]
        || remote.bytes[..4096] != expected[LEN - 8179..LEN - 4083]
    {
        return Err("written bytes differ".to_owned());
    }
    let counters = here.counters();
    if (counters.writes, counters.sends, counters.doorbells) != (5, 1, 1) {
        return Err(format!("{counters:?}"));
    }
    let sink = Memory::new(&here, LEN, 0xFF);
    if here.read(sink, 0, LEN, &[remote.remote(0, LEN)], 9).is_some() {
        return Err("a read that was none".to_owned());
    }
    let found = gather(&mut here, 1).into_iter().find_map(|done| match done {
        Done::Read { cookie: 9, owner } => Some(owner.bytes == remote.bytes),
        _ => None,
    });
    match found {
        Some(true) => Ok(()),
        Some(false) => Err("bytes read differ".to_owned()),
        None => Err("the read did not end".to_owned()),
    }
}

fn bad_key((mut here, there): Ends) -> Result<(), String> {
    let sink = Memory::new(&here, 4096, 0);
    let nowhere = Remote { addr: 0x1000, key: 0xDEAD_BEEF, len: 4096 };
    if here.read(sink, 0, 4096, &[nowhere], 1).is_some() {
        return Err("a read that was none".to_owned());
    }
    let done = gather(&mut here, 1);
    drop(there);
    match done.as_slice() {
        // RoCE says what it was; iWARP that the peer ended the connection.
        [Done::Broken(_)] => Ok(()),
        other => Err(format!("{} things ended", other.len())),
    }
}

fn disconnect((mut here, there): Ends) -> Result<(), String> {
    drop(there);
    match event(&mut here) {
        Some(Event::Disconnected) => Ok(()),
        other => Err(format!("{other:?} instead of Disconnected")),
    }
}

fn rejects(listener: &mut Listener) -> Result<(), String> {
    let address = listener.address();
    for round in 0..50 {
        let told = std::thread::scope(|scope| {
            let there = scope.spawn(|| match dial::<Memory>(address, b"hello", &SETUP, LIMIT) {
                Err(DialError::Rejected { private, .. }) => Ok(private),
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("accepted".to_owned()),
            });
            let until = Instant::now() + LIMIT;
            while Instant::now() < until {
                if let Ok(Some(request)) = listener.accept() {
                    request.reject(b"go away");
                    break;
                }
            }
            there.join().unwrap()
        })?;
        if !told.starts_with(b"go away") {
            return Err(format!("round {round}: {told:?}"));
        }
    }
    Ok(())
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn main() {
    let address = std::env::args().nth(1).expect("an address of an RDMA device");
    let address: SocketAddr = format!("{address}:0").parse().expect("an IP address");
    let mut listener = Listener::bind(address, 16).expect("listens");
    let mut failed = false;
    let mut check = |name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("ok {name}"),
        Err(why) => {
            failed = true;
            println!("failed {name}: {why}");
        }
    };
    let shared = Setup { shared_receives: Some(64), ..SETUP };
    check("messages", connect(&mut listener, &SETUP).and_then(messages));
    check("data", connect(&mut listener, &SETUP).and_then(data));
    check("bad-key", connect(&mut listener, &SETUP).and_then(bad_key));
    check("disconnect", connect(&mut listener, &SETUP).and_then(disconnect));
    check("shared-receives", connect_shared(&mut listener, &shared));
    check("rejects", rejects(&mut listener));
    let before = descriptors();
    let churn = (0..50).try_for_each(|_| connect(&mut listener, &SETUP).map(drop));
    check("connections-come-and-go", churn);
    let after = descriptors();
    let leak = if after > before { Err(format!("{before}, then {after}")) } else { Ok(()) };
    check("descriptors", leak);
    std::process::exit(i32::from(failed));
}

/// Messages where this side's receive buffers are shared; the other side's are its own.
fn connect_shared(listener: &mut Listener, shared: &Setup) -> Result<(), String> {
    let address = listener.address();
    let dialer = std::thread::spawn(move || {
        dial::<Memory>(address, b"hello", &SETUP, LIMIT)
            .map(|dialed| Sent(dialed.connection, dialed.private))
    });
    let until = Instant::now() + LIMIT;
    let request = loop {
        match listener.accept() {
            Ok(Some(request)) => break request,
            _ if Instant::now() > until => return Err("no request came".to_owned()),
            _ => {}
        }
    };
    let mut here = Connection::open(request, shared).map_err(|(error, _)| error.to_string())?;
    here.accept(b"welcome").map_err(|error| error.to_string())?;
    let Sent(there, _) = dialer.join().unwrap().map_err(|error| error.to_string())?;
    event(&mut here);
    messages((here, there))
}
