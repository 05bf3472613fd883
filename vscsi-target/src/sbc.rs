//! Commands of SBC: block devices.
