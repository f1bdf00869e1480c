//! Every parser of foreign bytes meets mutations of its seeds, the same in each run.
//!
//! In:  `fuzz/seeds/<target>/*`, the entry points of `profiler_daemon::fuzz`
//! Out: a failure names the target and the file that holds the bytes
//!
//! The fuzzer in `fuzz/` looks further. This keeps what it found from coming back, and shows that entry
//! points and seeds still fit together.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use profiler_daemon::fuzz::{TARGETS, Target};

/// Inputs longer than this are cut: long ones find nothing more, more slowly.
const INPUT_BYTES_MAX: usize = 8192;
/// One input takes well below 100 ms; a target that is silent for this long does not end.
const HANG: Duration = Duration::from_secs(60);
/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 47,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
const DIGITS: [&[u8]; 5] = [
    b"-1",
    b"0",
    b"4294967296",
    b"9223372036854775807",
    b"99999999999999999999",
];

macro_rules! hostile {
    ($($name:ident: $rounds:literal,)*) => {
        $(
            #[doc = concat!("Check that `", stringify!($name), "` ends without a panic.")]
            #[test]
            fn $name() {
                withstands(stringify!($name), $rounds);
            }
        )*
        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

// Fewer where each round opens a process and reads its objects.
hostile! {
    request_records: 2000,
    sample_record: 2000,
    kernel_types: 2000,
    agent_reports: 2000,
    agent_log: 500,
    agent_messages: 2000,
    client_segment: 2000,
    request_head: 2000,
    endpoint_name: 4000,
    response_head: 2000,
    sw8: 2000,
    spool_file: 2000,
    task_journal: 2000,
    mappings: 2000,
    proc_texts: 2000,
    identity_files: 2000,
    perf_map: 2000,
    analysis_lines: 2000,
    task_command: 2000,
    config_file: 2000,
    graphql_query: 1000,
    graphql_answer: 2000,
    object: 200,
    debug_info: 2000,
    symbol_name: 2000,
    stack: 200,
    wait_sets: 2000,
    python_memory: 2000,
    python_methods: 2000,
}

/// Check that each entry point has a test here and seeds, and that none is left over.
#[test]
fn everything_has_an_entry_point() {
    let names: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let tested: BTreeSet<String> = TESTED.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(tested, names);
    assert_eq!(stems(&fuzz_folder().join("seeds")), names);
    for name in &names {
        assert!(!seeds(name).is_empty(), "{name}");
    }
}

/// Check that the same seed gives the same mutations.
#[test]
fn mutations_repeat() {
    let inputs = |name| -> Vec<Vec<u8>> {
        let mut mutator = Mutator::new(name, seeds("request_head"));
        (0..50).map(|_| mutator.next_input()).collect()
    };
    assert_eq!(inputs("a"), inputs("a"));
    assert_ne!(inputs("a"), inputs("b"));
}

fn withstands(name: &'static str, rounds: usize) {
    let target = *TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("listed");
    let (sender, receiver) = channel();
    let worker = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let seeds = seeds(name);
            let mut mutator = Mutator::new(name, seeds.clone());
            let as_they_are = seeds.into_iter().chain([Vec::new()]);
            let mutated = (0..rounds).map(|_| mutator.next_input());
            for input in as_they_are.chain(mutated) {
                // Kept before the run: a hang or an abort leaves nothing else.
                let _ = sender.send(input.clone());
                if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                    return Err(input);
                }
            }
            Ok(())
        })
        .unwrap();
    let mut last = Vec::new();
    loop {
        match receiver.recv_timeout(HANG) {
            Ok(input) => last = input,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => fail(target, "does not end", &last),
        }
    }
    if let Err(input) = worker.join().expect("panics are caught") {
        fail(target, "panics", &input);
    }
}

fn fail(target: Target, what: &str, input: &[u8]) -> ! {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}", target.name));
    fs::write(&path, input).unwrap();
    panic!(
        "{} {what}; the {} bytes are in {}",
        target.name,
        input.len(),
        path.display()
    );
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn stems(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let stem = entry.path().file_stem().unwrap().to_owned();
            stem.into_string().unwrap()
        })
        .collect()
}

/// The seeds of a target, by file name.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(fuzz_folder().join("seeds").join(name)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Makes inputs from seeds.
struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    fn new(name: &str, seeds: Vec<Vec<u8>>) -> Self {
        // FNV-1a; never 0, at which xorshift stands still.
        let state = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            seeds,
            state: state | 1,
        }
    }

    /// xorshift64: Marsaglia, "Xorshift RNGs", 2003, the triple 13, 7, 17.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Below `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.random() % (end.max(1) as u64)) as usize
    }

    /// A range within `len`, mostly a short one.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        let longest = if self.below(4) == 0 { len } else { 32 };
        let end = (start + 1 + self.below(longest)).min(len);
        start.min(end)..end
    }

    fn next_input(&mut self) -> Vec<u8> {
        let index = self.below(self.seeds.len());
        let mut input = self.seeds[index].clone();
        for _ in 0..=self.below(4) {
            self.mutate(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        match self.below(9) {
            0 => {
                let at = self.below(input.len());
                let bit = 1 << self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let at = self.below(input.len());
                let new = self.random() as u8;
                if let Some(byte) = input.get_mut(at) {
                    *byte = new;
                }
            }
            2 => self.overwrite_number(input),
            3 => input.truncate(self.below(input.len())),
            4 => {
                let range = self.range(input.len());
                input.drain(range);
            }
            5 => {
                let part = input[self.range(input.len())].to_vec();
                let at = self.below(input.len());
                input.splice(at..at, part);
            }
            6 => {
                let at = self.below(input.len() + 1);
                let bytes: Vec<u8> = (0..=self.below(8)).map(|_| self.random() as u8).collect();
                input.splice(at..at, bytes);
            }
            7 => {
                let index = self.below(self.seeds.len());
                let part = self.seeds[index].clone();
                let part = part[self.range(part.len())].to_vec();
                let range = self.range(input.len());
                input.splice(range, part);
            }
            _ => self.replace_digits(input),
        }
    }

    fn overwrite_number(&mut self, input: &mut [u8]) {
        let width = 1 << self.below(4);
        let number = EDGES[self.below(EDGES.len())].wrapping_sub(self.below(2) as u64);
        let mut bytes = number.to_le_bytes()[..width].to_vec();
        if self.below(2) == 0 {
            bytes.reverse();
        }
        let at = self.below(input.len());
        for (to, from) in input[at..].iter_mut().zip(bytes) {
            *to = from;
        }
    }

    /// Another number in place of the first one in decimal from somewhere on.
    fn replace_digits(&mut self, input: &mut Vec<u8>) {
        let from = self.below(input.len());
        let is_digit = u8::is_ascii_digit;
        let Some(start) = (from..input.len()).find(|&at| is_digit(&input[at])) else {
            return;
        };
        let end = (start..input.len()).find(|&at| !is_digit(&input[at]));
        let number = DIGITS[self.below(DIGITS.len())];
        input.splice(start..end.unwrap_or(input.len()), number.iter().copied());
    }
}
