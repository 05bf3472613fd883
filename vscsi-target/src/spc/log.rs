//! LOG SENSE (SPC-4 6.8, 7.3): counters since the logical unit was set up. None are saved, and none
//! can be set.

use crate::{
    engine::Call,
    model::{LogicalUnit, lu::Counters},
    opcode::Fail,
    sense::Sense,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// LOG SENSE.
pub fn log_sense(call: &mut Call<'_>) -> Result<(), Fail> {
    let (control, code) = (call.field(2, 1) >> 6, call.field(2, 1) as u8 & 0x3F);
    let (subpage, first) = (call.field(3, 1) as u8, call.field(5, 2) as u16);
    let body = match (code, subpage) {
        (SUPPORTED, 0) => {
            PAGES.iter().filter(|(_, subpage)| *subpage == 0).map(|&(code, _)| code).collect()
        }
        (SUPPORTED, ALL) => PAGES.iter().flat_map(|&(code, subpage)| [code, subpage]).collect(),
        _ if !PAGES.iter().any(|&(known, _)| known == code) => {
            return Err(Sense::cdb_bit(2, 5).into());
        }
        (_, 1..) => return Err(Sense::cdb_byte(3).into()),
        // There are no thresholds.
        _ if control & 1 == 0 => return Err(Sense::cdb_bit(2, 7).into()),
        _ => parameters(call.lu(), code, first, control == DEFAULT)?,
    };
    let flags = if subpage == 0 { 0 } else { SPF };
    let [high, low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    call.put(&[flags | code, subpage, high, low]);
    call.put(&body);
    Ok(())
}

/// The parameters of a page from code `first` on; default values are zero.
fn parameters(lu: &LogicalUnit, code: u8, first: u16, default: bool) -> Result<Vec<u8>, Sense> {
    let sum = |counter: fn(&Counters) -> &AtomicU64| {
        let cells = lu.counters.iter().map(|cell| counter(cell).load(Ordering::Relaxed));
        if default { 0 } else { cells.fold(0, u64::wrapping_add) }
    };
    let (read, written) = (sum(|c| &c.read_bytes), sum(|c| &c.write_bytes));
    let list = match code {
        // Total errors corrected, total bytes processed.
        WRITE_ERRORS => vec![(3, COUNTER, words(&[0])), (5, COUNTER, words(&[written]))],
        READ_ERRORS => vec![(3, COUNTER, words(&[0])), (5, COUNTER, words(&[read]))],
        STATISTICS => {
            let size = u64::from(lu.block_size().max(1));
            let commands = (sum(|c| &c.reads), sum(|c| &c.writes));
            // Processing and idle times are not measured: they, and the unit they would be in, are
            // zero. Readers expect the parameters all the same.
            let values = [commands.0, commands.1, written / size, read / size, 0, 0, 0, 0];
            vec![(1, LIST, words(&values)), (2, LIST, words(&[0])), (3, LIST, words(&[0]))]
        }
        // No informational exception; neither a temperature nor a threshold for it.
        _ => vec![(0, LIST, vec![0, 0, 0xFF, 0xFF])],
    };
    if list.iter().all(|(code, ..)| *code < first) {
        return Err(Sense::cdb_byte(5));
    }
    let mut bytes = Vec::new();
    for (code, format, value) in list.into_iter().filter(|(code, ..)| *code >= first) {
        bytes.extend(code.to_be_bytes());
        bytes.extend([format, value.len() as u8]);
        bytes.extend(value);
    }
    Ok(bytes)
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

const SUPPORTED: u8 = 0x00;
const WRITE_ERRORS: u8 = 0x02;
const READ_ERRORS: u8 = 0x03;
const STATISTICS: u8 = 0x19;
const EXCEPTIONS: u8 = 0x2F;
const ALL: u8 = 0xFF;

/// Pages and subpages, in order.
const PAGES: &[(u8, u8)] = &[
    (SUPPORTED, 0),
    (SUPPORTED, ALL),
    (WRITE_ERRORS, 0),
    (READ_ERRORS, 0),
    (STATISTICS, 0),
    (EXCEPTIONS, 0),
];

/// PC of the default cumulative values.
const DEFAULT: u64 = 3;
const SPF: u8 = 0x40;
/// TSD, bounded data counter.
const COUNTER: u8 = 0x20;
/// TSD, binary format list.
const LIST: u8 = 0x23;
