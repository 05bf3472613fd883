//! Runs [`vscsi_fuzz::vhost::vhost`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::vhost::vhost(data));
