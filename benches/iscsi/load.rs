//! A raw iSCSI initiator that loads one connection: many commands a send, many PDUs a receive.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// What to load a target with.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub name: &'static str,
    pub write: bool,
    pub bytes: usize,
    pub depth: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Commands a second.
    pub rate: f64,
    /// 99th percentile of the latency, in microseconds.
    pub p99: f64,
}

const HEADER: usize = 48;
const NO_TAG: [u8; 4] = [0xFF; 4];

pub struct Session {
    stream: TcpStream,
    lun: u8,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    max_send: usize,
    first_burst: usize,
    out: Vec<u8>,
    input: Vec<u8>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn data_len(header: &[u8]) -> usize {
    be32(header, 4) as usize & 0xFF_FFFF
}

impl Session {
    pub fn login(address: &str, target: &str, lun: u8) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut session = Self {
            stream,
            lun,
            cmd_sn: 1,
            max_cmd_sn: 1,
            exp_stat_sn: 0,
            max_send: 8192,
            first_burst: 65536,
            out: Vec::with_capacity(8 << 20),
            input: Vec::new(),
        };
        let security = format!(
            "InitiatorName=iqn.2026-11.example:load\0SessionType=Normal\0TargetName={target}\0\
             AuthMethod=None\0"
        );
        let operational = "HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0\
             MaxRecvDataSegmentLength=262144\0MaxBurstLength=1048576\0FirstBurstLength=262144\0\
             MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0DefaultTime2Retain=0\0";
        let mut stage = 0u8;
        let mut text = security.as_str();
        for _ in 0..12 {
            let next = if stage == 0 { 1 } else { 3 };
            let mut header = [0; HEADER];
            header[0] = 0x43;
            header[1] = 0x80 | stage << 2 | next;
            header[4..8].copy_from_slice(&(text.len() as u32).to_be_bytes());
            header[8] = 0x80;
            header[9..14].copy_from_slice(&[0x12, 0x34, 0, 0, 7]);
            header[19] = 1;
            header[24..28].copy_from_slice(&session.cmd_sn.to_be_bytes());
            header[28..32].copy_from_slice(&session.exp_stat_sn.to_be_bytes());
            session.out.extend(header);
            session.out.extend(text.as_bytes());
            session.out.resize(session.out.len().next_multiple_of(4), 0);
            session.flush()?;
            let (answer, keys) = session.pdu()?;
            if answer[0] & 0x3F != 0x23 || answer[36] != 0 {
                return Err(invalid(format!("login: status {:02x?}", &answer[36..38])));
            }
            session.exp_stat_sn = be32(&answer, 24).wrapping_add(1);
            session.max_cmd_sn = be32(&answer, 32);
            for key in String::from_utf8_lossy(&keys).split('\0') {
                match key.split_once('=') {
                    Some(("MaxRecvDataSegmentLength", n)) => {
                        session.max_send = n.parse().map_err(io::Error::other)?;
                    }
                    Some(("FirstBurstLength", n)) => {
                        session.first_burst = n.parse().map_err(io::Error::other)?;
                    }
                    _ => {}
                }
            }
            text = "";
            if answer[1] & 0x80 != 0 {
                if answer[1] & 3 == 3 {
                    return Ok(session);
                }
                stage = 1;
                text = operational;
            }
        }
        Err(invalid("login does not end"))
    }

    /// Number of blocks and their size, after clearing unit attentions.
    pub fn capacity(&mut self) -> io::Result<(u64, usize)> {
        for _ in 0..4 {
            self.simple(&[0; 6], 0)?;
        }
        let data = self.simple(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)?;
        if data.len() < 8 {
            return Err(invalid("READ CAPACITY failed"));
        }
        Ok((u64::from(be32(&data, 0)) + 1, be32(&data, 4) as usize))
    }

    /// Writes every block once, so that what is read is in memory.
    pub fn fill(&mut self, capacity: (u64, usize)) -> io::Result<()> {
        let payload = vec![0xA5; 1 << 17];
        let count = payload.len() / capacity.1;
        for slot in 0..capacity.0 / count as u64 {
            if (self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32) < 0 {
                return Err(invalid("the window is closed"));
            }
            self.queue(1, true, slot as u32 * count as u32, count as u16, &payload);
            self.drain(1, 0, &[], &payload)?;
        }
        Ok(())
    }

    /// Runs a job for `time` after a warm-up of a fifth of it.
    pub fn run(&mut self, job: Job, time: Duration, capacity: (u64, usize)) -> io::Result<Figures> {
        let (blocks, block) = capacity;
        let count = job.bytes / block;
        let slots = blocks / count as u64;
        let payload: Vec<u8> = (0..job.bytes).map(|i| (i * 7) as u8).collect();
        let mut free: Vec<u32> = (0..job.depth as u32).collect();
        let mut started = vec![Instant::now(); job.depth];
        let mut latencies: Vec<u32> = Vec::with_capacity(4 << 20);
        let mut random = 0x4D59_5DF4_D0F3_3173u64;
        let (mut buffer, mut have) = (vec![0u8; 1 << 20], 0);
        let mut skip = 0;
        let begin = Instant::now();
        let mut measuring: Option<Instant> = None;
        loop {
            let now = Instant::now();
            match measuring {
                None if now - begin > time / 5 => {
                    measuring = Some(now);
                    latencies.clear();
                }
                Some(since) if now - since >= time => {
                    let seconds = (now - since).as_secs_f64();
                    latencies.sort_unstable();
                    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(0);
                    let rate = latencies.len() as f64 / seconds;
                    self.drain(job.depth - free.len(), skip, &buffer[..have], &payload)?;
                    return Ok(Figures { rate, p99: f64::from(p99) / 1000.0 });
                }
                _ => {}
            }
            while let Some(&tag) = free.last() {
                if self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32 <= -1 {
                    break;
                }
                free.pop();
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let lba = (random % slots) as u32 * count as u32;
                started[tag as usize] = now;
                self.queue(tag, job.write, lba, count as u16, &payload);
            }
            self.flush()?;
            let got = patiently(|| self.stream.read(&mut buffer[have..]))?;
            if got == 0 {
                return Err(invalid("the target closed the connection"));
            }
            have += got;
            let mut at = 0;
            loop {
                let skipped = skip.min(have - at);
                at += skipped;
                skip -= skipped;
                if skip > 0 || have - at < HEADER {
                    break;
                }
                let header: [u8; HEADER] =
                    buffer[at..at + HEADER].try_into().map_err(io::Error::other)?;
                at += HEADER;
                skip = data_len(&header).next_multiple_of(4);
                if let Some(tag) = self.answer(&header, &payload)? {
                    let time = started[tag as usize].elapsed().as_nanos();
                    latencies.push(u32::try_from(time).unwrap_or(u32::MAX));
                    free.push(tag);
                }
            }
            buffer.copy_within(at..have, 0);
            have -= at;
        }
    }

    /// Waits for the commands still out, so that the session can be used again.
    fn drain(
        &mut self,
        mut left: usize,
        skip: usize,
        rest: &[u8],
        payload: &[u8],
    ) -> io::Result<()> {
        self.input = rest.to_vec();
        self.flush()?;
        let mut skipped = vec![0; skip];
        self.take(&mut skipped)?;
        while left > 0 {
            let (header, _) = self.pdu()?;
            if self.answer(&header, payload)?.is_some() {
                left -= 1;
            }
            self.flush()?;
        }
        Ok(())
    }

    fn queue(&mut self, tag: u32, write: bool, lba: u32, blocks: u16, payload: &[u8]) {
        let mut header = [0; HEADER];
        header[0] = 0x01;
        header[9] = self.lun;
        header[1] = 0x81 | if write { 0x20 } else { 0x40 };
        header[16..20].copy_from_slice(&tag.to_be_bytes());
        header[20..24].copy_from_slice(&(payload.len() as u32).to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        header[32] = if write { 0x2A } else { 0x28 };
        header[34..38].copy_from_slice(&lba.to_be_bytes());
        header[39..41].copy_from_slice(&blocks.to_be_bytes());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let immediate =
            if write { payload.len().min(self.first_burst).min(self.max_send) } else { 0 };
        header[4..8].copy_from_slice(&(immediate as u32).to_be_bytes());
        self.out.extend(header);
        self.out.extend(&payload[..immediate]);
    }

    /// Takes in a PDU of the target; gives the tag of a command that ended.
    fn answer(&mut self, header: &[u8; HEADER], payload: &[u8]) -> io::Result<Option<u32>> {
        let tag = be32(header, 16);
        let ended = match header[0] & 0x3F {
            0x25 => header[1] & 1 != 0,
            0x21 => true,
            0x31 => {
                let (mut offset, mut left) = (be32(header, 40) as usize, be32(header, 44) as usize);
                let mut sn = 0u32;
                while left > 0 {
                    let part = left.min(self.max_send);
                    let mut out = [0; HEADER];
                    out[0] = 0x05;
                    out[1] = if part == left { 0x80 } else { 0 };
                    out[4..8].copy_from_slice(&(part as u32).to_be_bytes());
                    out[8..16].copy_from_slice(&header[8..16]);
                    out[16..24].copy_from_slice(&header[16..24]);
                    out[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
                    out[36..40].copy_from_slice(&sn.to_be_bytes());
                    out[40..44].copy_from_slice(&(offset as u32).to_be_bytes());
                    self.out.extend(out);
                    self.out.extend(&payload[offset..offset + part]);
                    offset += part;
                    left -= part;
                    sn += 1;
                }
                return Ok(None);
            }
            0x20 => {
                if header[20..24] != NO_TAG {
                    let mut out = [0; HEADER];
                    out[0] = 0x40;
                    out[1] = 0x80;
                    out[8..16].copy_from_slice(&header[8..16]);
                    out[16..20].copy_from_slice(&NO_TAG);
                    out[20..24].copy_from_slice(&header[20..24]);
                    out[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
                    out[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
                    self.out.extend(out);
                }
                self.max_cmd_sn = be32(header, 32);
                return Ok(None);
            }
            opcode => return Err(invalid(format!("unexpected PDU {opcode:#04x}"))),
        };
        self.max_cmd_sn = be32(header, 32);
        if !ended {
            return Ok(None);
        }
        self.exp_stat_sn = be32(header, 24).wrapping_add(1);
        if header[3] != 0 {
            return Err(invalid(format!("status {:#04x}", header[3])));
        }
        Ok(Some(tag))
    }

    fn simple(&mut self, cdb: &[u8], expected: u32) -> io::Result<Vec<u8>> {
        let mut header = [0; HEADER];
        header[0] = 0x01;
        header[9] = self.lun;
        header[1] = if expected > 0 { 0xC1 } else { 0x81 };
        header[16..20].copy_from_slice(&0x1000u32.to_be_bytes());
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.out.extend(header);
        self.flush()?;
        let mut data = Vec::new();
        loop {
            let (header, segment) = self.pdu()?;
            let is_data = header[0] & 0x3F == 0x25;
            if is_data {
                data = segment;
            }
            if !is_data || header[1] & 1 != 0 {
                self.exp_stat_sn = be32(&header, 24).wrapping_add(1);
                self.max_cmd_sn = be32(&header, 32);
                return Ok(data);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            sent += patiently(|| self.stream.write(&self.out[sent..]))?;
        }
        self.out.clear();
        Ok(())
    }

    fn pdu(&mut self) -> io::Result<([u8; HEADER], Vec<u8>)> {
        let mut header = [0; HEADER];
        self.take(&mut header)?;
        let len = data_len(&header);
        let mut data = vec![0; len.next_multiple_of(4)];
        self.take(&mut data)?;
        data.truncate(len);
        Ok((header, data))
    }

    /// Reads what was received already, then the socket.
    fn take(&mut self, into: &mut [u8]) -> io::Result<()> {
        let kept = self.input.len().min(into.len());
        into[..kept].copy_from_slice(&self.input[..kept]);
        self.input.drain(..kept);
        let mut at = kept;
        while at < into.len() {
            match patiently(|| self.stream.read(&mut into[at..]))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => at += got,
            }
        }
        Ok(())
    }
}

/// Polls, so that waking the client up is no part of what is measured. Gives up after ten seconds.
fn patiently(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let mut since = None;
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(10) {
                    return Err(error);
                }
                std::hint::spin_loop();
            }
            result => return result,
        }
    }
}
