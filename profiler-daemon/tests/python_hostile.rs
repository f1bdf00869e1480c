//! Gives the Python readers memory that a hostile process could show.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::cell::Cell;
use std::io::{Error, ErrorKind};

use profiler_daemon::model::{Coverage, Pid, ProcessKey, PythonRef, UnwindEnd};
use profiler_daemon::process::ReadMemory;
use profiler_daemon::process::python::{
    CodeNames, CodeSignature, DEBUG_OFFSETS_BYTES, Layout, PythonNamer, PythonRuntime,
    PythonVersion,
};
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;

/// Pseudo-random numbers (xorshift64), the same in every run.
struct Random(Cell<u64>);

impl Random {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x
    }
}

/// Answers each read with other bytes: small numbers, pointers, extremes; sometimes with an error.
impl ReadMemory for Random {
    fn read(&self, _: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.next().is_multiple_of(64) {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        for word in buffer.chunks_mut(8) {
            let value = match self.next() % 6 {
                0 => 0,
                1 => u64::MAX,
                2 => self.next() % 256,
                3 => 0x100_0000_0001,
                _ => self.next(),
            };
            word.copy_from_slice(&value.to_ne_bytes()[..word.len()]);
        }
        match self.next() % 16 {
            0 => Ok(buffer.len() / 2),
            _ => Ok(buffer.len()),
        }
    }
}

fn layout(minor: u8, random: &Random) -> (PythonVersion, Layout) {
    let version = PythonVersion {
        major: 3,
        minor,
        micro: 0,
    };
    let layout = Layout::from_table(version).unwrap_or_else(|_| {
        // The description comes from the process as well: any offsets that are accepted.
        loop {
            let mut bytes = [0; DEBUG_OFFSETS_BYTES];
            for word in bytes.chunks_exact_mut(8) {
                word.copy_from_slice(&(random.next() % 1024).to_ne_bytes());
            }
            bytes[..8].copy_from_slice(b"xdebugpy");
            bytes[16..24].fill(0);
            if let Ok(layout) = Layout::from_debug_offsets(version, &bytes) {
                break layout;
            }
        }
    });
    (version, layout)
}

/// Check that walking, naming and merging end without a panic whatever the memory says.
#[test]
fn random_memory_is_survived() {
    let random = Random(Cell::new(0x9e37_79b9_7f4a_7c15));
    for round in 0..2000_u32 {
        let (version, layout) = layout(11 + (round % 4) as u8, &random);
        let runtime = PythonRuntime {
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            version,
            runtime: random.next(),
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: vec![0..1 << 62, 1 << 63..u64::MAX],
        };
        // A thread with id 0 or u32::MAX is likely to turn up in such a list.
        let tid = if round % 2 == 0 { 0 } else { u32::MAX };
        let chain = walk_chain(&random, &runtime, tid);
        let native: Vec<u64> = (0..round % 8).map(|_| random.next()).collect();
        for end in [UnwindEnd::Root, UnwindEnd::StackCut] {
            let merged = merge(&native, end, &[1, 2], Some((&chain, &runtime)));
            assert!(merged.frames.len() <= native.len() + chain.frames.len() + 2);
        }
        let python = PythonRef {
            code: random.next(),
            instr: random.next(),
            identity: random.next() as u32,
        };
        let mut losses = Coverage::default();
        for form in [CodeSignature::Function, CodeSignature::Line] {
            PythonNamer::new(form).frame(&random, &runtime, python, &mut losses);
        }
        let _ = CodeNames::default().line(&random, &runtime, python);
    }
}
