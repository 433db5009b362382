//! `fusebox::proxy::fuzz::upload`, over whatever bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fusebox::proxy::fuzz::upload(data));
