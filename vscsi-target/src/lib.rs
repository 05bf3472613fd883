//! The SCSI command core.
