#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| profiler_daemon::fuzz::agent_messages(data));
