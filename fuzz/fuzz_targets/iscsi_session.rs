//! Runs [`vscsi_fuzz::session::session`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::session::session(data));
