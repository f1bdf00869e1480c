//! Answers "why is there no data?" before it is asked.

use crate::model::{Counter, CoverageReport, ProfileReport};

use super::text::clean;

/// Something that requests or heads can meet with: what is said after their number, and what to do about it.
struct Cause(Counter, &'static str, &'static str);

/// Where a matched request can go other than into the report.
const FATES: &[Cause] = &[
    Cause(
        Counter::RequestsBelowThreshold,
        "ended before the minimum duration",
        "ask for a shorter minimum duration (--min-duration)",
    ),
    Cause(
        Counter::RequestsTooShort,
        "ended before a sample was due",
        "ask for a shorter dump period (--period; 10 ms is the shortest)",
    ),
    Cause(
        Counter::RequestsUnfinished,
        "had no end when the time was over",
        "ask for a longer duration (--duration)",
    ),
    Cause(
        Counter::RequestsHandedOff,
        "were answered by another thread than the one that read them",
        "this version follows servers in which one thread serves a request from head to answer",
    ),
    Cause(
        Counter::RequestsInterleaved,
        "shared their thread with another request (an event loop)",
        "this version follows servers in which one thread serves one request at a time",
    ),
    Cause(
        Counter::RequestsOnLoop,
        "were served by an event loop, or by a proxy",
        "this version follows servers in which one thread serves one request at a time; the notes of the \
         coverage name the process",
    ),
    Cause(
        Counter::RequestsByOtherProgram,
        "were left to a child process or another program to answer (CGI)",
        "this version follows the thread that reads a request, and no program behind it",
    ),
    Cause(
        Counter::RequestsUnanswered,
        "ended without a response: the connection was closed",
        "look for aborted requests or time-outs of the client",
    ),
    Cause(
        Counter::RequestsProcessGone,
        "were of processes that had ended before their stacks could be read",
        "look for crashes, or for a server that ends its workers after each request",
    ),
    Cause(
        Counter::RequestsSamplesLost,
        "lost all their samples",
        "the lines with `!` below `samples` in the coverage report tell how; try again with less load",
    ),
    Cause(
        Counter::RequestsWithoutStack,
        "left no readable stack",
        "run `profilerd doctor`: reading memory needs CAP_SYS_PTRACE",
    ),
    Cause(
        Counter::RequestsOverOpenLimit,
        "were too many at once",
        "raise limits.max_open_requests in the configuration",
    ),
    Cause(
        Counter::RequestsOverLimit,
        "were beyond the number of requests to profile",
        "raise it (--max-requests)",
    ),
];

/// Why a head that was read is not compared with the endpoint, or could not be.
const HEADS: &[Cause] = &[
    Cause(
        Counter::HeadsMalformed,
        "began with no request line that could be read",
        "HTTP/1 with a target in UTF-8 is read by this version",
    ),
    Cause(
        Counter::RequestsUnknownProcess,
        "came to processes whose start was not seen",
        "events were lost: try again with less load, or raise limits.requests_ring",
    ),
    Cause(
        Counter::RequestsOfOtherTask,
        "went to another task",
        "`profilerd task list` names it; wait for its end",
    ),
    Cause(
        Counter::PipelinedHeads,
        "came before the request in front of them was answered (pipelining)",
        "have the client wait for each answer",
    ),
    Cause(
        Counter::HeadsAfterShutdown,
        "came after the server had shut down its side of the connection",
        "look for connections that are aborted",
    ),
    Cause(
        Counter::HeadsUnreadable,
        "lay in memory that could not be read any more",
        "try again: a server that reuses its buffers at once is not always read in time",
    ),
    Cause(
        Counter::PartialHeadsDropped,
        "came in pieces that could not be joined",
        "have the client send the request line at once",
    ),
    Cause(
        Counter::NotServerSocket,
        "stood in what is not a server's connection, such as files",
        "look for the process that accepts the connections (`profilerd ps`)",
    ),
];

/// Why processes of the service are not watched.
const PROCESSES: &[Cause] = &[
    Cause(
        Counter::ProcessesLeftToAgent,
        "is left to its own SkyWalking agent, whose snapshots ours would collide with",
        "set SW_AGENT_PROFILE_ACTIVE=false there and restart it to have it profiled from outside, or see \
         oap.agent_profiler",
    ),
    Cause(
        Counter::ProcessesUnsupported,
        "cannot be profiled by this version",
        "`profilerd ps` says why",
    ),
];

/// Says why a report has no request in it and what to do about it; `None` if it has one.
#[must_use]
pub fn explain(report: &ProfileReport) -> Option<String> {
    let task = &report.task;
    let is_empty = report.segments.is_empty();
    is_empty.then(|| explain_nothing(&task.service, &task.endpoint, &report.coverage))
}

/// Why a task of a service for an endpoint has no profiled request.
#[must_use]
pub fn explain_nothing(service: &str, endpoint: &str, coverage: &CoverageReport) -> String {
    let count = |counter: Counter| {
        let count = coverage.counters.get(counter.name());
        count.copied().unwrap_or(0)
    };
    let (service, endpoint) = (clean(service), clean(endpoint));
    let seen = count(Counter::RequestsSeen);
    let matched = count(Counter::RequestsMatched);
    let lost = count(Counter::RequestEventsLost) + count(Counter::BadRecords);
    if matched > 0 {
        return explain_matched(matched, &endpoint, count);
    }
    if let Some(reason) = coverage.why_not_run().filter(|_| seen == 0) {
        return format!(
            "The task did not run: {}.",
            clean(reason).trim_end_matches('.')
        );
    }
    if lost > 0 {
        return format!(
            "No request to {endpoint} was recognized, and {lost} events were lost; try again with less load, or \
             raise limits.requests_ring."
        );
    }
    let heads = told(HEADS, count);
    let processes = told(PROCESSES, count);
    let compared = count(Counter::RequestsOtherEndpoint);
    let met: u64 = HEADS.iter().map(|&Cause(counter, ..)| count(counter)).sum();
    let mut sentences = Vec::new();
    // What the kernel side has sorted out by the first bytes of the path is in no count but that of all.
    if compared.max(seen.saturating_sub(met)) > 0 {
        let seen = match seen.max(compared) {
            1 => "1 request was seen, and it was not".to_owned(),
            n => format!("{n} requests were seen, none of them"),
        };
        sentences.push(format!(
            "{seen} to {endpoint}. The method and the path must be those on the wire: {endpoint} is compared with \
             the request line as the server reads it. Leave the method out to match any (/path), write {{name}} \
             for a segment that varies (GET:/orders/{{id}}), or `*` to profile every request."
        ));
    }
    for (n, what, advice) in heads {
        let heads = if n == 1 { "request" } else { "requests" };
        sentences.push(format!("{n} {heads} {what}; {advice}."));
    }
    for (n, what, advice) in processes {
        let process = match n {
            1 => format!("The process of {service}"),
            n => format!("Each of {n} processes of {service}"),
        };
        sentences.push(format!("{process} {what}; {advice}."));
    }
    if sentences.is_empty() {
        return format!(
            "No process of {service} has read an HTTP/1 request. Is there traffic, and does it reach this process \
             (see `profilerd ps`)? Requests inside TLS and HTTP/2 are not seen by this version."
        );
    }
    sentences.join(" ")
}

/// The causes that have occurred, the most frequent first.
fn told(
    causes: &'static [Cause],
    count: impl Fn(Counter) -> u64,
) -> Vec<(u64, &'static str, &'static str)> {
    let counted = causes
        .iter()
        .map(|&Cause(counter, what, advice)| (count(counter), what, advice));
    let mut told: Vec<_> = counted.filter(|&(n, ..)| n > 0).collect();
    told.sort_by_key(|&(n, ..)| std::cmp::Reverse(n));
    told
}

fn explain_matched(matched: u64, endpoint: &str, count: impl Fn(Counter) -> u64) -> String {
    let fates = told(FATES, count);
    let head = match matched {
        1 => format!("1 request to {endpoint} was seen, and is not in the result"),
        n => format!("{n} requests to {endpoint} were seen, and none is in the result"),
    };
    if fates.is_empty() {
        return format!("{head}; the coverage report tells what was lost.");
    }
    let parts: Vec<String> = fates
        .iter()
        .map(|&(n, what, advice)| match what.strip_prefix("were ") {
            Some(what) if n == 1 => format!("1 was {what}; {advice}"),
            _ => format!("{n} {what}; {advice}"),
        })
        .collect();
    format!("{head}: {}.", parts.join(". "))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::model::{Coverage, Subject};

    fn explained(counts: &[(Counter, u64)]) -> String {
        let mut coverage = Coverage::default();
        for &(counter, n) in counts {
            coverage.add(counter, n);
        }
        let mut report = sample::report();
        report.segments.clear();
        report.coverage = coverage.to_report();
        explain(&report).unwrap()
    }

    /// Check that each way to no data has its own sentence, with something to do.
    #[test]
    fn each_cause_has_its_sentence() {
        assert!(explained(&[]).contains("No process of shop has read an HTTP/1 request."));
        let text = explained(&[(Counter::RequestsSeen, 7)]);
        assert!(
            text.contains("7 requests were seen, none of them to GET:/a<b"),
            "{text}"
        );
        let text = explained(&[(Counter::RequestsSeen, 7), (Counter::RequestEventsLost, 2)]);
        assert!(text.contains("2 events were lost"), "{text}");
        let text = explained(&[(Counter::ProcessesUnsupported, 1)]);
        assert!(text.starts_with("The process of shop cannot"), "{text}");
    }

    /// Check that every counter of requests and of heads that can be the reason for an empty result has a sentence of
    /// its own, with something to do, and that no other one is said with it.
    #[test]
    fn every_cause_is_told_as_what_it_is() {
        use Counter as C;
        // These are no reasons: they say what was seen, what may be missing, or that something is in the result.
        const NO_CAUSES: [C; 5] = [
            C::RequestsSeen,
            C::RequestsMatched,
            C::RequestsProfiled,
            C::RequestsOtherEndpoint,
            C::HooksLeftOut,
        ];
        const LOST: [C; 2] = [C::RequestEventsLost, C::BadRecords];
        let mut texts = Vec::new();
        for counter in C::all() {
            let is_process = matches!(counter, C::ProcessesLeftToAgent | C::ProcessesUnsupported);
            let is_cause = match counter.subject() {
                Subject::Requests | Subject::Connections => !NO_CAUSES.contains(&counter),
                _ => is_process,
            };
            if !is_cause {
                continue;
            }
            let is_in = |causes: &[Cause]| causes.iter().any(|cause| cause.0 == counter);
            let is_fate = is_in(FATES);
            assert!(
                is_fate || is_in(HEADS) || is_in(PROCESSES) || LOST.contains(&counter),
                "{} has no sentence",
                counter.name()
            );
            let text = match (is_fate, is_process) {
                (true, _) => {
                    explained(&[(C::RequestsSeen, 1), (C::RequestsMatched, 1), (counter, 1)])
                }
                (_, true) => explained(&[(counter, 1)]),
                _ => explained(&[(C::RequestsSeen, 1), (counter, 1)]),
            };
            for general in [
                "it was not to",
                "No process of shop",
                "coverage report tells what",
            ] {
                assert!(!text.contains(general), "{}: {text}", counter.name());
            }
            if !LOST.contains(&counter) {
                texts.push(text);
            }
        }
        let count = texts.len();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), count);
        assert!(texts.iter().all(|text| text.contains("; ")), "{texts:#?}");
    }

    /// Check that heads that cannot be read are told beside those that are compared and are others.
    #[test]
    fn unreadable_heads_are_told_beside_others() {
        let text = explained(&[
            (Counter::RequestsSeen, 5),
            (Counter::HeadsMalformed, 2),
            (Counter::RequestsOtherEndpoint, 1),
        ]);
        assert!(
            text.starts_with("5 requests were seen, none of them to"),
            "{text}"
        );
        assert!(
            text.contains("2 requests began with no request line"),
            "{text}"
        );
    }

    /// Check that a task that was refused says why, and not that there was no traffic.
    #[test]
    fn a_refused_task_says_why() {
        let mut report = sample::report();
        report.segments.clear();
        report.coverage = Coverage::not_run("the endpoint `a` has no path").to_report();
        let text = explain(&report).unwrap();
        assert_eq!(text, "The task did not run: the endpoint `a` has no path.");
    }

    /// Check that fates of matched requests are told by frequency.
    #[test]
    fn the_most_frequent_fate_is_told_first() {
        let text = explained(&[
            (Counter::RequestsSeen, 9),
            (Counter::RequestsMatched, 9),
            (Counter::RequestsUnfinished, 1),
            (Counter::RequestsBelowThreshold, 8),
        ]);
        assert_eq!(
            text,
            "9 requests to GET:/a<b were seen, and none is in the result: 8 ended before the minimum \
             duration; ask for a shorter minimum duration (--min-duration). 1 had no end when the time \
             was over; ask for a longer duration (--duration)."
        );
    }

    /// Check that a report with a request needs no explanation.
    #[test]
    fn data_needs_no_explanation() {
        assert_eq!(explain(&sample::report()), None);
    }
}
