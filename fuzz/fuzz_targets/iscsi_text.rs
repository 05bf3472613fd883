//! Runs [`vscsi_fuzz::iscsi::text`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::iscsi::text(data));
