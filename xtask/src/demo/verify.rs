//! Compares the demo's report with what the sample service is known to do.
//!
//! Durations are compared as the median over the profiled requests: one request that the machine
//! interrupted for longer than two dump periods is right to show it. The number, order and content of
//! snapshots are checked for every request.

use super::traffic::{BUSY, POST};
use crate::report::{Node, Report, Segment, names, total_ms};

/// Two dump periods of 10 ms.
const TOLERANCE_MS: i64 = 20;
/// Share of a request by which the split of `GET /busy` may be off.
const TOLERANCE_SHARE: f64 = 0.05;

/// Everything that is not as it should be, in sentences; empty when all is well.
pub(super) fn problems(report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    for segment in &report.segments {
        if segment.endpoint != POST && segment.endpoint != BUSY {
            problems.push(format!("a segment of {} was reported", segment.endpoint));
        }
        problems.extend(snapshot_problem(segment));
    }
    let of = |endpoint: &str| -> Vec<&Segment> {
        let segments = report.segments.iter();
        segments
            .filter(|segment| segment.endpoint == endpoint)
            .collect()
    };
    for (endpoint, check) in [
        (POST, post_problems as fn(&[&Segment]) -> _),
        (BUSY, busy_problems),
    ] {
        let segments = of(endpoint);
        if segments.is_empty() {
            problems.push(format!("no request to {endpoint} was profiled"));
        } else {
            problems.extend(
                check(&segments)
                    .into_iter()
                    .map(|text| format!("{endpoint}: {text}")),
            );
        }
    }
    problems
}

/// Sequences from 0 without holes, a good status, and nothing of `GET /fast`.
fn snapshot_problem(segment: &Segment) -> Option<String> {
    let name = format!("segment {} of {}", segment.segment_id, segment.endpoint);
    if segment.snapshots.is_empty() {
        return Some(format!("{name} has no snapshots"));
    }
    let sequences = segment.snapshots.iter().map(|snapshot| snapshot.sequence);
    if !sequences.eq(0..segment.snapshots.len() as i64) {
        return Some(format!(
            "the snapshots of {name} are not numbered from 0 without holes"
        ));
    }
    if segment.status != Some(200) {
        return Some(format!(
            "{name} has the status {:?}, not 200",
            segment.status
        ));
    }
    let of_fast = |frame: &String| names(frame, "answer_fast");
    if segment
        .snapshots
        .iter()
        .any(|snapshot| snapshot.stack.iter().any(of_fast))
    {
        return Some(format!("{name} has a stack of GET:/fast"));
    }
    None
}

fn post_problems(segments: &[&Segment]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |what: &str, expected_ms: i64, actual: &dyn Fn(&Segment) -> i64| {
        let actual_ms = median(segments.iter().map(|segment| actual(segment)));
        if (actual_ms - expected_ms).abs() > TOLERANCE_MS {
            problems.push(format!(
                "{what} is {actual_ms} ms, expected about {expected_ms}"
            ));
        }
    };
    expect("total of do_POST", 560, &|s| total_ms(&s.trees, "do_POST"));
    expect("self time of do_POST", 500, &|s| {
        total_ms(&s.trees, "do_POST") - total_ms(&s.trees, "method3")
    });
    expect("total of method3", 60, &|s| total_ms(&s.trees, "method3"));
    expect("total of method2", 40, &|s| total_ms(&s.trees, "method2"));
    expect("total of method1", 20, &|s| total_ms(&s.trees, "method1"));
    for segment in segments {
        problems.extend(inner_frames(segment));
        for chain in [
            &["do_POST", "method3", "method2", "method1"][..],
            // Below the language frames: the builtin by its name in Python, and what it waits for.
            &["do_POST", "method3", "sleep", "*nanosleep"],
            &["do_POST", "sleep", "*nanosleep"],
        ] {
            if !has_chain(&segment.trees, chain) {
                problems.push(format!(
                    "segment {} has no call chain {}",
                    segment.segment_id,
                    chain.join(" > ")
                ));
            }
        }
    }
    problems
}

fn busy_problems(segments: &[&Segment]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |what: &str, expected: f64, actual_ms: &dyn Fn(&Segment) -> i64| {
        // In thousandths of the request, so that the median is taken of whole numbers.
        let share = median(
            segments
                .iter()
                .map(|segment| actual_ms(segment) * 1000 / segment.duration_ms.max(1)),
        ) as f64
            / 1000.0;
        if (share - expected).abs() > TOLERANCE_SHARE {
            problems.push(format!(
                "{what} is {:.1} % of the request, expected {:.1} %",
                share * 100.0,
                expected * 100.0
            ));
        }
    };
    expect("self time of outer", 2.0 / 3.0, &|s| {
        total_ms(&s.trees, "outer") - total_ms(&s.trees, "inner")
    });
    expect("self time of inner", 1.0 / 3.0, &|s| {
        total_ms(&s.trees, "inner")
    });
    for segment in segments {
        if !has_chain(&segment.trees, &["do_GET", "outer", "inner"]) {
            problems.push(format!(
                "segment {} has no call chain do_GET > outer > inner",
                segment.segment_id
            ));
        }
    }
    problems
}

/// Frames of the interpreter, of thread start and of the kernel, which are not the application's.
fn inner_frames(segment: &Segment) -> Option<String> {
    let is_inner = |frame: &&String| {
        [
            "_PyEval_",
            "_start",
            "clone",
            "pthread",
            "do_syscall_64",
            "el0_svc",
        ]
        .iter()
        .any(|name| frame.starts_with(name))
    };
    let mut frames = segment
        .snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.stack);
    let frame = frames.find(is_inner)?;
    Some(format!("segment {} shows {frame}", segment.segment_id))
}

/// Whether the functions lie on one path in this order, others between them allowed.
fn has_chain(nodes: &[Node], chain: &[&str]) -> bool {
    let Some((first, rest)) = chain.split_first() else {
        return true;
    };
    nodes.iter().any(|node| {
        let rest = if names(&node.code_signature, first) {
            rest
        } else {
            chain
        };
        has_chain(&node.children, rest)
    })
}

/// The middle value; the upper one of two.
fn median(values: impl Iterator<Item = i64>) -> i64 {
    let mut values: Vec<i64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(
        signature: &str,
        duration_ms: i64,
        children: Vec<serde_json::Value>,
    ) -> serde_json::Value {
        json!({"code_signature": signature, "duration_ms": duration_ms, "children": children})
    }

    fn report(method3_ms: i64, inner_ms: i64) -> Report {
        let sleep = || {
            node(
                "time.sleep",
                10,
                vec![node("[system call clock_nanosleep]", 10, vec![])],
            )
        };
        let method1 = node("s.method1:5", 20, vec![sleep()]);
        let method2 = node("s.method2:4", 40, vec![method1]);
        let method3 = node("s.method3:3", method3_ms, vec![method2]);
        let post = node("s.Handler.do_POST:2", 560, vec![method3, sleep()]);
        let inner = node("s.inner:9", inner_ms, vec![]);
        let busy = node(
            "s.Handler.do_GET:7",
            300,
            vec![node("s.outer:8", 300, vec![inner])],
        );
        let segment = |endpoint: &str, duration_ms: i64, tree: serde_json::Value| {
            json!({
                "segment_id": "x", "endpoint": endpoint, "duration_ms": duration_ms, "status": 200,
                "snapshots": [
                    {"sequence": 0, "time_ms": 0, "stack": ["a"]},
                    {"sequence": 1, "time_ms": 10, "stack": ["a"]},
                ],
                "trees": [node("threading.Thread._bootstrap:1", duration_ms, vec![tree])],
            })
        };
        Report::from_json(&json!({
            "coverage": {},
            "segments": [segment(POST, 561, post), segment(BUSY, 300, busy)],
        }))
        .unwrap()
    }

    /// Check that the tree of the service as it is gives no complaint.
    #[test]
    fn the_expected_trees_pass() {
        assert_eq!(problems(&report(60, 95)), Vec::<String>::new());
    }

    /// Check that durations and shares beyond the tolerance are named with their numbers.
    #[test]
    fn wrong_durations_are_named() {
        let found = problems(&report(100, 60));
        assert_eq!(
            found,
            [
                "POST:/: self time of do_POST is 460 ms, expected about 500",
                "POST:/: total of method3 is 100 ms, expected about 60",
                "GET:/busy: self time of outer is 80.0 % of the request, expected 66.7 %",
                "GET:/busy: self time of inner is 20.0 % of the request, expected 33.3 %",
            ]
        );
    }

    /// Check that a frame of the interpreter itself is seen.
    #[test]
    fn frames_of_the_interpreter_are_named() {
        let mut report = report(60, 95);
        report.segments[0].snapshots[0].stack[0] = "_PyEval_Vector (python3.11)".to_owned();
        assert_eq!(
            problems(&report),
            ["POST:/: segment x shows _PyEval_Vector (python3.11)"]
        );
    }

    /// Check that a hole in the sequence, a frame of the fast endpoint and a missing endpoint are seen.
    #[test]
    fn holes_and_foreign_stacks_are_named() {
        let mut holey = report(60, 95);
        holey.segments[0].snapshots[1].sequence = 2;
        holey.segments[1].snapshots[1]
            .stack
            .push("s.Handler.answer_fast:6".to_owned());
        let found = problems(&holey);
        assert!(found[0].contains("without holes"), "{found:?}");
        assert!(found[1].contains("a stack of GET:/fast"), "{found:?}");
        holey.segments.truncate(1);
        assert!(problems(&holey).contains(&"no request to GET:/busy was profiled".to_owned()));
    }
}
