//! Runs [`vscsi_fuzz::iser::session`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::iser::session(data));
