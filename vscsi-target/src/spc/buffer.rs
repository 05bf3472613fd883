//! READ BUFFER and WRITE BUFFER (SPC-4 6.18, 6.49): a data buffer and an echo buffer, for initiators
//! that try the path to the logical unit. There is no microcode to download.

use crate::{engine::Call, limits, opcode::Fail, sense::Sense};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The buffers of a logical unit, allocated when they are first written.
#[derive(Debug, Default)]
pub struct Buffers {
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    data: Vec<u8>,
    /// What was echoed last; empty before anything was.
    echo: Vec<u8>,
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// READ BUFFER(10).
pub fn read_buffer(call: &mut Call<'_>) -> Result<(), Fail> {
    match call.field(1, 1) as u8 {
        DATA => {
            let offset = data_offset(call, 0)?;
            let content = call.itl.lu.buffers.lock();
            let wanted = call.field(6, 3) as usize;
            let end = (limits::DATA_BUFFER as usize).min(offset + wanted);
            // What was never written reads as zeroes.
            let written = content.data.get(offset..content.data.len().min(end)).unwrap_or_default();
            let start = call.reply.len();
            call.reply.extend_from_slice(written);
            call.reply.resize(start + end - offset, 0);
        }
        DESCRIPTOR => {
            let ours = call.field(2, 1) == 0;
            let capacity = if ours { limits::DATA_BUFFER } else { 0 };
            // The high byte is the offset boundary, one byte.
            call.put(&capacity.to_be_bytes());
        }
        ECHO => {
            let echo = call.lu().buffers.lock().echo.clone();
            if echo.is_empty() {
                return Err(Sense::COMMAND_SEQUENCE.into());
            }
            call.put(&echo);
        }
        ECHO_DESCRIPTOR => {
            let [high, low] = limits::ECHO_BUFFER.to_be_bytes();
            call.put(&[0, 0, high, low]);
        }
        _ => return Err(Sense::cdb_bit(1, 4).into()),
    }
    Ok(())
}

/// WRITE BUFFER.
pub fn write_buffer(call: &mut Call<'_>) -> Result<(), Fail> {
    let len = call.field(6, 3) as usize;
    let data = call.data.get(..len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    match call.field(1, 1) as u8 {
        DATA => {
            let offset = data_offset(call, len)?;
            let mut content = call.lu().buffers.lock();
            let end = offset + len;
            if content.data.len() < end {
                content.data.resize(end, 0);
            }
            content.data[offset..end].copy_from_slice(data);
        }
        ECHO => {
            if len > usize::from(limits::ECHO_BUFFER) {
                return Err(Sense::cdb_byte(6).into());
            }
            call.lu().buffers.lock().echo = data.to_vec();
        }
        _ => return Err(Sense::cdb_bit(1, 4).into()),
    }
    Ok(())
}

/// The BUFFER OFFSET of the data buffer, which `len` bytes from there have to be in.
fn data_offset(call: &Call<'_>, len: usize) -> Result<usize, Sense> {
    if call.field(2, 1) != 0 {
        return Err(Sense::cdb_byte(2));
    }
    let offset = call.field(3, 3) as usize;
    let capacity = limits::DATA_BUFFER as usize;
    if offset > capacity {
        return Err(Sense::cdb_byte(3));
    }
    if len > capacity - offset {
        return Err(Sense::cdb_byte(6));
    }
    Ok(offset)
}

const DATA: u8 = 0x02;
const DESCRIPTOR: u8 = 0x03;
const ECHO: u8 = 0x0A;
const ECHO_DESCRIPTOR: u8 = 0x0B;
