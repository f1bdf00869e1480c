//! Says why a result has no profiled request, and what to do about it.

use std::borrow::Cow;

use crate::model::{Counter, CoverageReport, ProfileReport};

use super::text::clean;

/// Why requests are missing: a counter, the sentence that follows its number, and what to do about it.
struct Cause(Counter, &'static str, &'static str);

/// Why a matched request is not in the report.
const FATES: &[Cause] = &[
    Cause(
        Counter::RequestsBelowThreshold,
        "ended before the minimum duration",
        "ask for a shorter minimum duration (--min-duration)",
    ),
    Cause(
        Counter::RequestsTooShort,
        "ended before a sample was due",
        "ask for a shorter dump period (--period: from 1 ms with `record`, from 10 ms for a task)",
    ),
    Cause(
        Counter::RequestsUnfinished,
        "were still open when the task ended",
        "ask for a longer duration (--duration)",
    ),
    Cause(
        Counter::RequestsHandedOff,
        "were answered by a thread other than the one that read them",
        "this version profiles servers in which one thread serves a request from its head to its response",
    ),
    Cause(
        Counter::RequestsInterleaved,
        "shared their thread with another request (an event loop)",
        "this version profiles servers in which one thread serves one request at a time",
    ),
    Cause(
        Counter::RequestsOnLoop,
        "were served by an event loop, or by a proxy",
        "this version profiles servers in which one thread serves one request at a time; the notes of the \
         coverage name the process",
    ),
    Cause(
        Counter::RequestsByOtherProgram,
        "were answered by a child process or another program (CGI)",
        "this version profiles the thread that reads a request, not a program that it starts",
    ),
    Cause(
        Counter::RequestsUnanswered,
        "ended without a response: the connection was closed",
        "look for clients that abort requests or time out",
    ),
    Cause(
        Counter::RequestsUnreadable,
        "were of processes that did not let themselves be read",
        "the notes of the coverage name them; look for a file system that does not answer",
    ),
    Cause(
        Counter::RequestsDenied,
        "were of processes that are not to be profiled any more",
        "`profilerd ps` says who refuses",
    ),
    Cause(
        Counter::RequestsProcessGone,
        "were of processes that had ended before their stacks could be read",
        "look for crashes, or for a server that ends its workers after each request",
    ),
    Cause(
        Counter::RequestsSamplesLost,
        "lost all their samples",
        "the lines with `!` below `samples` in the coverage report say why; try again with less load",
    ),
    Cause(
        Counter::RequestsWithoutStack,
        "left no readable stack",
        "run `profilerd doctor`: reading memory needs CAP_SYS_PTRACE",
    ),
    Cause(
        Counter::RequestsOverOpenLimit,
        "were not sampled because too many were open at once",
        "raise limits.max_open_requests in the configuration",
    ),
    Cause(
        Counter::RequestsOverLimit,
        "arrived after the maximum number of requests was reached",
        "raise the maximum (--max-requests)",
    ),
];

/// Why a request head was not compared with the endpoint.
const HEADS: &[Cause] = &[
    Cause(
        Counter::HeadsMalformed,
        "had no readable request line",
        "this version reads HTTP/1 request lines",
    ),
    Cause(
        Counter::RequestsUnknownProcess,
        "went to processes that profilerd does not know",
        "events were lost: try again with less load, or raise limits.requests_ring",
    ),
    Cause(
        Counter::RequestsOfOtherTask,
        "were profiled by another task",
        "`profilerd task list` names it; wait for its end",
    ),
    Cause(
        Counter::PipelinedHeads,
        "arrived before the previous request of their connection was answered (pipelining)",
        "have the client wait for each response",
    ),
    Cause(
        Counter::HeadsAfterShutdown,
        "arrived after the server had shut down its side of the connection",
        "look for connections that are aborted",
    ),
    Cause(
        Counter::HeadsUnreadable,
        "were in memory that could not be read",
        "try again: a server that frees or reuses its buffers at once is not always read in time",
    ),
    Cause(
        Counter::PartialHeadsDropped,
        "arrived in pieces that could not be joined",
        "have the client send the request line in one piece",
    ),
    Cause(
        Counter::NotServerSocket,
        "were read from something other than a server's connection, such as a file",
        "look for the process that accepts the connections (`profilerd ps`)",
    ),
];

/// Why processes of the service are not profiled.
const PROCESSES: &[Cause] = &[
    Cause(
        Counter::ProcessesLeftToAgent,
        "is left to its own SkyWalking agent, because snapshots of both would collide",
        "restart it with SW_AGENT_PROFILE_ACTIVE=false to have it profiled from outside, or see \
         oap.agent_profiler",
    ),
    Cause(
        Counter::ProcessesUnreadable,
        "does not let itself be read, and is left out",
        "the notes of the coverage name it; look for a file system that does not answer",
    ),
    Cause(
        Counter::ProcessesDenied,
        "is not to be profiled any more",
        "`profilerd ps` says who refuses",
    ),
    Cause(
        Counter::ProcessesUnsupported,
        "cannot be profiled by this version",
        "`profilerd ps` says why",
    ),
];

/// Why a report has no request in it and what to do about it; `None` if it has one.
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
    let endpoint = clean(endpoint);
    // An OAP need not name the service of a task.
    let of_service = match service {
        "" => String::new(),
        service => format!(" of {}", clean(service)),
    };
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
    let heads = occurred(HEADS, count);
    let processes = occurred(PROCESSES, count);
    let compared = count(Counter::RequestsOtherEndpoint);
    let met: u64 = HEADS.iter().map(|&Cause(counter, ..)| count(counter)).sum();
    let mut sentences = Vec::new();
    // Heads that the prefilter in the kernel turns away are counted in `requests_seen` only.
    if compared.max(seen.saturating_sub(met)) > 0 {
        let seen = match seen.max(compared) {
            1 => "1 request was seen, and it was not".to_owned(),
            n => format!("{n} requests were seen, none of them"),
        };
        sentences.push(format!(
            "{seen} to {endpoint}. The method and the path must be those on the wire: {endpoint} is compared with \
             the request line as the server reads it. Leave the method out to match any method (/path), write \
             {{name}} for a path segment that varies (GET:/orders/{{id}}), or `*` to profile every request."
        ));
    }
    for (n, what, advice) in heads {
        let heads = if n == 1 { "request" } else { "requests" };
        let what = in_number(n, what);
        sentences.push(format!("{n} {heads} {what}; {advice}."));
    }
    for (n, what, advice) in processes {
        let process = match n {
            1 => format!("The process{of_service}"),
            n => format!("Each of {n} processes{of_service}"),
        };
        sentences.push(format!("{process} {what}; {advice}."));
    }
    if sentences.is_empty() {
        return format!(
            "No process{of_service} has read an HTTP/1 request. Is there traffic, and does it reach this process \
             (see `profilerd ps`)? This version does not see requests inside TLS, nor HTTP/2."
        );
    }
    sentences.join(" ")
}

/// The causes that have occurred, the most frequent first.
fn occurred(
    causes: &'static [Cause],
    count: impl Fn(Counter) -> u64,
) -> Vec<(u64, &'static str, &'static str)> {
    let counted = causes
        .iter()
        .map(|&Cause(counter, what, advice)| (count(counter), what, advice));
    let mut occurred: Vec<_> = counted.filter(|&(n, ..)| n > 0).collect();
    occurred.sort_by_key(|&(n, ..)| std::cmp::Reverse(n));
    occurred
}

/// The sentence's verb in the singular for one.
fn in_number(n: u64, what: &str) -> Cow<'_, str> {
    match what.strip_prefix("were ") {
        Some(what) if n == 1 => format!("was {what}").into(),
        _ => what.into(),
    }
}

fn explain_matched(matched: u64, endpoint: &str, count: impl Fn(Counter) -> u64) -> String {
    let fates = occurred(FATES, count);
    let head = match matched {
        1 => format!("1 request to {endpoint} was seen, and is not in the result"),
        n => format!("{n} requests to {endpoint} were seen, and none is in the result"),
    };
    if fates.is_empty() {
        return format!("{head}; the coverage report says what was lost.");
    }
    let parts: Vec<String> = fates
        .iter()
        .map(|&(n, what, advice)| format!("{n} {}; {advice}", in_number(n, what)))
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
            let is_process = matches!(
                counter,
                C::ProcessesLeftToAgent
                    | C::ProcessesUnsupported
                    | C::ProcessesUnreadable
                    | C::ProcessesDenied
            );
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
                "coverage report says what",
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
            text.contains("2 requests had no readable request line"),
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
             duration; ask for a shorter minimum duration (--min-duration). 1 was still open when the \
             task ended; ask for a longer duration (--duration)."
        );
    }

    /// Check that a service whose name is not known leaves no gap in the sentence.
    #[test]
    fn a_service_without_a_name_is_not_named() {
        let coverage = CoverageReport::default();
        let text = explain_nothing("", "GET:/a", &coverage);
        assert!(
            text.starts_with("No process has read an HTTP/1 request."),
            "{text}"
        );
    }

    /// Check that a report with a request needs no explanation.
    #[test]
    fn data_needs_no_explanation() {
        assert_eq!(explain(&sample::report()), None);
    }
}
