//! A client of QEMU's gdb stub, as far as the bridge needs one.
//!
//! The stub has no QStartNoAckMode, and any byte that reaches it while the machine runs stops the
//! machine. So nothing is acknowledged here: the stub takes the start of the next packet for it.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use thiserror::Error;

/// Why the stub cannot be used.
#[derive(Debug, Error)]
pub enum GdbError {
    /// The socket.
    #[error("gdb stub: {0}")]
    Socket(#[from] io::Error),
    /// A packet that is none.
    #[error("gdb stub: a packet with a wrong checksum: {0:?}")]
    Checksum(String),
    /// An answer that means failure, or nothing.
    #[error("gdb stub: {command:?} was answered {answer:?}")]
    Answer {
        /// What was asked.
        command: String,
        /// What came.
        answer: String,
    },
    /// Registers of an impossible form.
    #[error("gdb stub: registers are {0:?}")]
    Registers(String),
}

/// How the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A breakpoint or step.
    Trap,
    /// The machine is gone.
    Exited,
}

/// A stopped machine, or one that runs until [`Gdb::wait`] returns.
#[derive(Debug)]
pub struct Gdb {
    stream: UnixStream,
    input: Vec<u8>,
    /// Answers to commands sent along with one that lets the machine run: each is "OK".
    unread: usize,
}

impl Gdb {
    /// Attaches, which stops the machine.
    pub fn connect(path: &Path) -> Result<Self, GdbError> {
        let mut gdb = Self { stream: UnixStream::connect(path)?, input: Vec::new(), unread: 0 };
        gdb.ask("qSupported:multiprocess+;xmlRegisters=powerpc")?;
        // The stub gives the registers the order of its description once that was read.
        gdb.ask("qXfer:features:read:target.xml:0,ffb")?;
        Ok(gdb)
    }

    /// Stops the machine when it comes to `address`.
    pub fn set_breakpoint(&mut self, address: u64) -> Result<(), GdbError> {
        self.command(&format!("Z1,{address:x},4"))
    }

    /// Takes that back.
    pub fn clear_breakpoint(&mut self, address: u64) -> Result<(), GdbError> {
        self.command(&format!("z1,{address:x},4"))
    }

    /// All registers, in the stub's order.
    pub fn registers(&mut self) -> Result<Vec<u8>, GdbError> {
        let answer = self.ask("g")?;
        unhex(&answer).ok_or(GdbError::Registers(answer))
    }

    /// Sets all registers and lets the machine run.
    pub fn go_with(&mut self, registers: &[u8]) -> Result<(), GdbError> {
        let mut packets = packet(&format!("G{}", hex(registers)));
        packets.extend(packet("vCont;c"));
        self.stream.write_all(&packets)?;
        self.unread = 1;
        Ok(())
    }

    /// Lets the machine run.
    pub fn go(&mut self) -> Result<(), GdbError> {
        Ok(self.stream.write_all(&packet("vCont;c"))?)
    }

    /// Stops the machine, which runs.
    pub fn interrupt(&mut self) -> Result<Stop, GdbError> {
        self.stream.write_all(&[INTERRUPT])?;
        self.wait()
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> Result<Stop, GdbError> {
        self.stream.write_all(&packet("vCont;s:p1.1"))?;
        self.wait()
    }

    /// Waits until the machine stops.
    pub fn wait(&mut self) -> Result<Stop, GdbError> {
        loop {
            let answer = match self.receive() {
                Err(GdbError::Socket(error)) if is_gone(&error) => return Ok(Stop::Exited),
                answer => answer?,
            };
            match answer.as_bytes().first() {
                Some(b'T' | b'S') => return Ok(Stop::Trap),
                Some(b'W' | b'X') => return Ok(Stop::Exited),
                _ if self.unread > 0 && answer == "OK" => self.unread -= 1,
                _ => return Err(GdbError::Answer { command: "vCont".into(), answer }),
            }
        }
    }

    fn command(&mut self, command: &str) -> Result<(), GdbError> {
        let answer = self.ask(command)?;
        if answer == "OK" {
            return Ok(());
        }
        Err(GdbError::Answer { command: command.into(), answer })
    }

    fn ask(&mut self, command: &str) -> Result<String, GdbError> {
        self.stream.write_all(&packet(command))?;
        self.receive()
    }

    /// The next packet.
    fn receive(&mut self) -> Result<String, GdbError> {
        loop {
            if let Some((text, used)) = take(&self.input)? {
                self.input.drain(..used);
                return Ok(text);
            }
            let mut part = [0; 16384];
            let count = self.stream.read(&mut part)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.input.extend(part.iter().take(count));
        }
    }
}

/// What stops a machine that runs.
const INTERRUPT: u8 = 3;

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// The first whole packet of `input` and how many bytes it ends after; what is before it are
/// acknowledgements.
fn take(input: &[u8]) -> Result<Option<(String, usize)>, GdbError> {
    let find = |byte| move |&at: &u8| at == byte;
    let Some(start) = input.iter().position(find(b'$')) else { return Ok(None) };
    let Some(body) = input.get(start + 1..) else { return Ok(None) };
    let Some(len) = body.iter().position(find(b'#')) else { return Ok(None) };
    let (Some(text), Some(sum)) = (body.get(..len), body.get(len + 1..len + 3)) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(text).into_owned();
    if sum != format!("{:02x}", checksum(text.as_bytes())).as_bytes() {
        return Err(GdbError::Checksum(text));
    }
    Ok(Some((text, start + len + 4)))
}

fn packet(text: &str) -> Vec<u8> {
    format!("${text}#{:02x}", checksum(text.as_bytes())).into_bytes()
}

fn checksum(text: &[u8]) -> u8 {
    text.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or('0');
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]).collect()
}

/// Bytes of hexadecimal digits; a register that is not available is "xx…" and reads as zero.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'x' => Some(0),
        _ => char::from(byte).to_digit(16),
    };
    let pair = |pair: &[u8]| match pair {
        &[high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_ends_with_its_checksum() {
        assert_eq!(packet("vCont;c"), b"$vCont;c#a8");
        assert_eq!(packet("OK"), b"$OK#9a");
    }

    #[test]
    fn acknowledgements_before_a_packet_are_skipped() {
        let input = b"++$OK#9a$T05thread:01;#07";
        assert_eq!(take(input).unwrap(), Some(("OK".into(), 8)));
        let text = take(&input[8..]).unwrap();
        assert_eq!(text, Some(("T05thread:01;".into(), 17)));
    }

    #[test]
    fn half_a_packet_is_none_yet() {
        for input in [&b""[..], b"+", b"$", b"$OK", b"$OK#", b"$OK#9"] {
            assert_eq!(take(input).unwrap(), None);
        }
    }

    #[test]
    fn a_wrong_checksum_is_an_error() {
        assert!(take(b"$OK#9b").is_err());
    }

    #[test]
    fn registers_are_hexadecimal_and_some_are_not_there() {
        assert_eq!(unhex("00ff1axx"), Some(vec![0, 255, 0x1A, 0]));
        assert_eq!(hex(&[0, 255, 0x1A]), "00ff1a");
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("E0G1"), None);
    }
}
