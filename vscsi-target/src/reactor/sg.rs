//! Scatter lists: where a command's data is in memory.
#![allow(unsafe_code)] // Raw memory of transports and backends is reached here.

/// A piece of memory that somebody else owns: a pool buffer, a backend's memory, guest memory.
///
/// A segment is only an address. Whoever stores one in a task or a completion keeps the owner
/// alive with it, and nobody reads or writes through it without that.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: an address and a length; using the memory is unsafe and justified at each place.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment over a buffer. The buffer must outlive every use of the segment.
    pub fn of(buffer: &mut [u8]) -> Self {
        Self { base: buffer.as_mut_ptr(), len: buffer.len() }
    }
}

/// Takes the first `len` bytes of a scatter list into `front`, and gives how many there were.
pub fn take_front(list: &[Segment], len: usize, front: &mut Vec<Segment>) -> usize {
    front.clear();
    let mut left = len;
    for segment in list {
        if left == 0 {
            break;
        }
        let part = segment.len.min(left);
        if part > 0 {
            front.push(Segment { base: segment.base, len: part });
        }
        left -= part;
    }
    len - left
}

/// Copies memory into `bytes`, and gives how many were copied.
///
/// The memory may change meanwhile (a guest writes to it): each byte is read once.
pub fn gather(list: &[Segment], bytes: &mut [u8]) -> usize {
    let mut at = 0;
    for segment in list {
        let room = &mut bytes[at..];
        let part = segment.len.min(room.len());
        // SAFETY: the owner of the segment keeps it valid for the task (see `Segment`), and `room`
        // is our own buffer of at least `part` bytes, which no segment overlaps.
        unsafe { std::ptr::copy_nonoverlapping(segment.base, room.as_mut_ptr(), part) };
        at += part;
    }
    at
}

/// Copies `bytes` into memory, and gives how many fitted.
pub fn scatter(bytes: &[u8], list: &[Segment]) -> usize {
    let mut at = 0;
    for segment in list {
        let rest = &bytes[at..];
        let part = segment.len.min(rest.len());
        // SAFETY: as in `gather`, with source and destination exchanged.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), segment.base, part) };
        at += part;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_and_scatter_cross_segments() {
        let (mut a, mut b) = ([1u8, 2, 3], [4u8, 5, 6, 7]);
        let list = [Segment::of(&mut a), Segment::of(&mut b)];
        let mut bytes = [0; 5];
        assert_eq!(gather(&list, &mut bytes), 5);
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        assert_eq!(scatter(&[9; 4], &list), 4);
        assert_eq!((a, b), ([9; 3], [9, 5, 6, 7]));
    }

    #[test]
    fn take_front_cuts_the_last_segment() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
        let list = [Segment::of(&mut a), Segment::of(&mut b)];
        let mut front = Vec::new();
        assert_eq!(take_front(&list, 5, &mut front), 5);
        assert_eq!(front.iter().map(|s| s.len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(take_front(&list, 9, &mut front), 7);
    }
}
