//! `fusebox::proxy::fuzz::json`, over whatever bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fusebox::proxy::fuzz::json(data));
