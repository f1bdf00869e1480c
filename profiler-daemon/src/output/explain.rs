//! Answers "why is there no data?" before it is asked.

use crate::model::{Counter, CoverageReport, ProfileReport};

use super::text::clean;

/// Where a matched request can go other than into the report: what happened to it, and what to do.
const FATES: &[(Counter, &str, &str)] = &[
    (
        Counter::RequestsBelowThreshold,
        "ended before the minimum duration",
        "ask for a shorter minimum duration (--min-duration)",
    ),
    (
        Counter::RequestsUnfinished,
        "had no end when the time was over",
        "ask for a longer duration (--duration)",
    ),
    (
        Counter::RequestsHandedOff,
        "were answered by another thread than the one that read them",
        "this version follows servers in which one thread serves a request from head to answer",
    ),
    (
        Counter::RequestsInterleaved,
        "shared their thread with another request (an event loop)",
        "this version follows servers in which one thread serves one request at a time",
    ),
    (
        Counter::RequestsOnLoop,
        "were served by an event loop, or by a proxy",
        "this version follows servers in which one thread serves one request at a time; the notes of the \
         coverage name the process",
    ),
    (
        Counter::RequestsUnanswered,
        "ended without a response: the connection was closed",
        "look for aborted requests or time-outs of the client",
    ),
    (
        Counter::RequestsWithoutStack,
        "left no readable stack",
        "run `profilerd doctor`: reading memory needs CAP_SYS_PTRACE",
    ),
    (
        Counter::RequestsOverOpenLimit,
        "were too many at once",
        "raise limits.max_open_requests in the configuration",
    ),
    (
        Counter::RequestsOverLimit,
        "were beyond the number of requests to profile",
        "raise it (--max-requests)",
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
    if matched > 0 {
        explain_matched(matched, &endpoint, count)
    } else if count(Counter::RequestEventsLost) + count(Counter::BadRecords) > 0 {
        format!(
            "No request to {endpoint} was recognized, and {} events were lost; try again with less \
             load, or raise limits.requests_ring.",
            count(Counter::RequestEventsLost) + count(Counter::BadRecords)
        )
    } else if seen > 0 {
        let seen = match seen {
            1 => "1 request was seen, and it was not".to_owned(),
            n => format!("{n} requests were seen, none of them"),
        };
        format!(
            "{seen} to {endpoint}. The method and the path must be those on the wire: {endpoint} is \
             compared with the request line as the server reads it. Leave the method out to match \
             any (/path), write {{name}} for a segment that varies (GET:/orders/{{id}}), or `*` to \
             profile every request."
        )
    } else if count(Counter::ProcessesLeftToAgent) > 0 {
        format!(
            "{} of {service} is profiled by its own SkyWalking agent, whose snapshots ours would collide \
             with; set SW_AGENT_PROFILE_ACTIVE=false there and restart it to have it profiled from \
             outside, or see oap.agent_profiler.",
            match count(Counter::ProcessesLeftToAgent) {
                1 => "The process".to_owned(),
                n => format!("Each of {n} processes"),
            }
        )
    } else if count(Counter::ProcessesUnsupported) > 0 {
        format!(
            "{} of {service} cannot be profiled by this version; `profilerd ps` says why.",
            match count(Counter::ProcessesUnsupported) {
                1 => "The process".to_owned(),
                n => format!("{n} processes"),
            }
        )
    } else {
        let other = match count(Counter::NotServerSocket) {
            0 => String::new(),
            n => format!(
                " ({n} request lines were read from what is not a server's connection, such as files.)"
            ),
        };
        format!(
            "No process of {service} has read an HTTP/1 request.{other} Is there traffic, and does it \
             reach this process (see `profilerd ps`)? Requests inside TLS and HTTP/2 are not seen by \
             this version."
        )
    }
}

fn explain_matched(matched: u64, endpoint: &str, count: impl Fn(Counter) -> u64) -> String {
    let mut fates: Vec<_> = FATES
        .iter()
        .map(|&(counter, what, advice)| (count(counter), what, advice))
        .filter(|&(n, _, _)| n > 0)
        .collect();
    fates.sort_by_key(|&(n, _, _)| std::cmp::Reverse(n));
    let head = match matched {
        1 => format!("1 request to {endpoint} was seen, and is not in the result"),
        n => format!("{n} requests to {endpoint} were seen, and none is in the result"),
    };
    if fates.is_empty() {
        return format!("{head}; the coverage report tells what was lost.");
    }
    let parts: Vec<String> = fates
        .iter()
        .map(|(n, what, advice)| format!("{n} {what}; {advice}"))
        .collect();
    format!("{head}: {}.", parts.join(". "))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::model::Coverage;

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
        let text = explained(&[(Counter::NotServerSocket, 4)]);
        assert!(text.contains("4 request lines"), "{text}");
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
