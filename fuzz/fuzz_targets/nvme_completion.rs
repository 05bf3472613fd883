//! Runs [`vscsi_fuzz::nvme::completion`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::nvme::completion(data));
