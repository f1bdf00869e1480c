//! Functions whose names are made to be expensive, on the stack of a profiled process.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use profiler_daemon::model::SegmentReport;
use profiler_tests::{LocalServer, build_c, needs_root};

use crate::DEADLINE;
use crate::recording::{Recording, count};

/// Functions and call sites on the stack.
const SITES: usize = 60;
/// Most characters of a function's name, and of the object's behind it.
const SHOWN_MAX: usize = 240 + " (server)".len();

/// A short symbol with an endless name: `f(a, b<a, a>, c<b<a, a>, b<a, a> >, ...)`.
fn endless(levels: u32, fan: usize) -> String {
    let mut symbol = "_Z1f1a".to_owned();
    for level in 0..levels {
        let argument = match level {
            0 => "S_".to_owned(),
            _ => format!("S{}_", base_36(2 * level - 1)),
        };
        // Each with a name of its own.
        let name = format!("b{level}");
        write!(symbol, "{}{name}I{}E", name.len(), argument.repeat(fan)).unwrap();
    }
    symbol
}

fn base_36(number: u32) -> String {
    let digit = |digit| char::from_digit(digit, 36).unwrap().to_ascii_uppercase();
    match number {
        0..36 => digit(number).to_string(),
        _ => base_36(number / 36) + &digit(number % 36).to_string(),
    }
}

/// A symbol whose innermost part is wrong, for parsers that try what may be read in several ways.
fn ambiguous(level: &str, levels: usize, before: &str) -> String {
    format!("_Z{before}{}", level.repeat(levels))
}

fn hostile_names() -> Vec<String> {
    let endless = (12..24).flat_map(|levels| [2, 4, 8].map(|fan| endless(levels, fan)));
    let ambiguous = (8..24).flat_map(|levels| {
        [
            ambiguous("T_I", levels, "cv"),
            ambiguous("L1aI", levels, "1fI"),
            ambiguous("S_I", levels, "1f1aI"),
            ambiguous("cv", levels, ""),
        ]
    });
    let names: BTreeSet<String> = endless.chain(ambiguous).collect();
    names.into_iter().collect()
}

/// A server whose functions have these names: each calls the next, and the last calls itself at many places.
fn source(names: &[String]) -> String {
    let (recursive, chain) = names.split_last().unwrap();
    let mut functions = format!(
        "__attribute__((noinline)) void chain{}(int n) __asm__(\"{recursive}\");\n\
         void chain{}(int n) {{ switch (n) {{\n",
        chain.len(),
        chain.len()
    );
    for site in 1..SITES {
        let (own, next) = (chain.len(), site - 1);
        writeln!(
            functions,
            "case {site}: chain{own}({next}); calls += {site}; break;"
        )
        .unwrap();
    }
    functions.push_str("default: doze(); } }\n");
    for (number, name) in chain.iter().enumerate().rev() {
        let next = number + 1;
        writeln!(
            functions,
            "__attribute__((noinline)) void chain{number}(int n) __asm__(\"{name}\");\n\
             void chain{number}(int n) {{ chain{next}(n); calls++; }}"
        )
        .unwrap();
    }
    include_str!("names_server.c")
        .replace("/* FUNCTIONS */", &functions)
        .replace("SITES", &(SITES - 1).to_string())
}

fn has(segment: &SegmentReport, name: &str) -> usize {
    let stacks = segment.snapshots.iter().map(|snapshot| &snapshot.stack);
    stacks
        .filter(|stack| stack.iter().any(|frame| frame.starts_with(name)))
        .count()
}

/// Check that a process with hostile names on its stack is shown with names of bounded length, and that it costs neither
/// itself nor the process beside it a sample.
#[test]
fn hostile_names_cost_nothing() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("server.c"), folder.path().join("server"));
    let names = hostile_names();
    fs::write(&file, source(&names)).unwrap();
    build_c(&mut Command::new("cc"), &file, &program).unwrap();
    let mut server = LocalServer::start("the server", &mut Command::new(&program)).unwrap();
    let beside: u16 = server.line().unwrap().parse().unwrap();
    let recording = Recording::start("*", server.id(), &["--max-requests", "2"]);
    let mut clients = [server.address().port(), beside].map(|port| {
        let address = (std::net::Ipv4Addr::LOCALHOST, port).into();
        let mut client = profiler_tests::HttpClient::connect(address, DEADLINE).unwrap();
        client.send_raw(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
        client
    });
    for client in &mut clients {
        client.read_until(b"ok").unwrap();
    }
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 2);
    for counter in ["samples_too_dear", "samples_queue_full", "samples_orphaned"] {
        assert_eq!(count(&report, counter), 0, "{counter}");
    }
    let frames = report
        .segments
        .iter()
        .flat_map(|segment| &segment.snapshots);
    let frames = frames.flat_map(|snapshot| &snapshot.stack);
    let longest = frames.map(|frame| frame.chars().count()).max();
    assert!(
        longest.is_some_and(|longest| longest <= SHOWN_MAX),
        "{longest:?}"
    );
    let (plain, hostile): (Vec<_>, Vec<_>) = report
        .segments
        .iter()
        .partition(|segment| has(segment, "plain") > 0);
    assert_eq!((plain.len(), hostile.len()), (1, 1));
    for segment in [plain[0], hostile[0]] {
        assert!(has(segment, "doze") > 10, "{}", has(segment, "doze"));
    }
    let deepest = hostile[0]
        .snapshots
        .iter()
        .map(|snapshot| snapshot.stack.len())
        .max();
    assert!(deepest >= Some(names.len() + SITES - 1), "{deepest:?}");
}
