//! Runs [`vscsi_fuzz::channel::channel`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::channel::channel(data));
