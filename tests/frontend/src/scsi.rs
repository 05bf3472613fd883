//! What is in the buffers: virtio-scsi requests (VIRTIO 1.3 clause 5.6.6) and a few commands.

/// Bytes of a request before its data; the CDB is 32 bytes.
pub const REQUEST: usize = 51;
/// Bytes of a response before its data; the sense data is 96 bytes.
pub const RESPONSE: usize = 108;
/// Bytes of a task management request, without its one byte of response.
pub const TASK_MANAGEMENT: usize = 24;
/// Bytes of an event.
pub const EVENT: usize = 16;

/// Subtypes of task management: clause 5.6.6.2.
pub mod tmf {
    /// Ends one task.
    pub const ABORT_TASK: u32 = 0;
    /// Ends the tasks of this initiator.
    pub const ABORT_TASK_SET: u32 = 1;
    /// Ends an auto contingent allegiance.
    pub const CLEAR_ACA: u32 = 2;
    /// Ends the tasks of all initiators.
    pub const CLEAR_TASK_SET: u32 = 3;
    /// Resets the nexus.
    pub const I_T_NEXUS_RESET: u32 = 4;
    /// Resets the logical unit.
    pub const LOGICAL_UNIT_RESET: u32 = 5;
    /// Asks for one task.
    pub const QUERY_TASK: u32 = 6;
    /// Asks for any task.
    pub const QUERY_TASK_SET: u32 = 7;
}

/// The address of a logical unit as Linux writes it: flat space.
pub fn lun(target: u8, lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    [1, target, 0x40 | high, low, 0, 0, 0, 0]
}

/// A request header with a simple task attribute.
#[inline]
pub fn request(lun: [u8; 8], id: u64, cdb: &[u8]) -> [u8; REQUEST] {
    let mut header = [0; REQUEST];
    header[..8].copy_from_slice(&lun);
    header[8..16].copy_from_slice(&id.to_le_bytes());
    let len = cdb.len().min(32);
    header[19..19 + len].copy_from_slice(&cdb[..len]);
    header
}

/// A task management request.
pub fn task_management(subtype: u32, lun: [u8; 8], id: u64) -> [u8; TASK_MANAGEMENT] {
    let mut header = [0; TASK_MANAGEMENT];
    header[4..8].copy_from_slice(&subtype.to_le_bytes());
    header[8..16].copy_from_slice(&lun);
    header[16..24].copy_from_slice(&id.to_le_bytes());
    header
}

/// INQUIRY.
pub fn inquiry(bytes: u16) -> [u8; 6] {
    let [high, low] = bytes.to_be_bytes();
    [0x12, 0, 0, high, low, 0]
}

/// TEST UNIT READY.
pub fn test_unit_ready() -> [u8; 6] {
    [0; 6]
}

/// READ CAPACITY (10).
pub fn read_capacity() -> [u8; 10] {
    [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// REPORT LUNS.
pub fn report_luns(bytes: u32) -> [u8; 12] {
    let b = bytes.to_be_bytes();
    [0xA0, 0, 0, 0, 0, 0, b[0], b[1], b[2], b[3], 0, 0]
}

/// READ (10).
#[inline]
pub fn read(lba: u32, blocks: u16) -> [u8; 10] {
    transfer(0x28, lba, blocks)
}

/// WRITE (10).
#[inline]
pub fn write(lba: u32, blocks: u16) -> [u8; 10] {
    transfer(0x2A, lba, blocks)
}

#[inline]
fn transfer(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let (a, [high, low]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, a[0], a[1], a[2], a[3], 0, high, low, 0]
}
