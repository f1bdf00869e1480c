//! Counts and measures requests by service and endpoint.
//!
//! # Bounds
//!
//! Clients choose paths, so they can make up any number of names. A service has at most [`OF_SERVICE_MAX`] endpoints of
//! its own, and of those at most [`NOT_FOUND_MAX`] that were answered with nothing but 404 and 405: whoever looks for
//! holes in a server does not push out what it serves. All others count under [`OTHERS`].

use std::collections::{BTreeMap, HashMap};

use hdrhistogram::Histogram;

use crate::model::{EndpointFigures, SeenRequest};

/// The name under which requests count that have none of their own.
pub const OTHERS: &str = "other endpoints";

/// Endpoints told apart per service.
const OF_SERVICE_MAX: usize = 500;
/// Of them, those that no request has found.
const NOT_FOUND_MAX: usize = 100;
/// Endpoints told apart over all services: each takes up to 13 KiB for its durations.
const ENDPOINTS_MAX: usize = 4_000;
/// Services told apart.
const SERVICES_MAX: usize = 1_000;
/// Significant digits of durations: one in a hundred is nothing that people see.
const DIGITS: u8 = 2;
/// Durations are counted in microseconds; longer ones than an hour as an hour.
const UNIT_NS: u64 = 1_000;
const LONGEST_US: u64 = 3_600_000_000;

/// One endpoint.
#[derive(Debug)]
struct Endpoint {
    requests: u64,
    client_errors: u64,
    server_errors: u64,
    unanswered: u64,
    /// Some request had another status than 404 and 405.
    is_found: bool,
    durations: Histogram<u32>,
    longest_ns: u64,
}

impl Endpoint {
    fn new() -> Self {
        Self {
            requests: 0,
            client_errors: 0,
            server_errors: 0,
            unanswered: 0,
            is_found: false,
            durations: Histogram::new(DIGITS).expect("the number of digits is accepted"),
            longest_ns: 0,
        }
    }

    fn add(&mut self, seen: &SeenRequest) {
        self.requests += 1;
        self.client_errors += u64::from(matches!(seen.status, Some(400..=499)));
        self.server_errors += u64::from(seen.status.is_some_and(|status| status >= 500));
        self.is_found |= is_found(seen);
        match seen.duration_ns {
            Some(duration_ns) => {
                // It grows by itself, up to the longest.
                let _fits = self
                    .durations
                    .record((duration_ns / UNIT_NS).min(LONGEST_US));
                self.longest_ns = self.longest_ns.max(duration_ns);
            }
            None => self.unanswered += 1,
        }
    }

    fn figures(&self, service: &str, endpoint: &str, has_name: bool) -> EndpointFigures {
        let ms = |quantile| self.durations.value_at_quantile(quantile) as f64 / 1_000.0;
        let longest_ms = self.longest_ns as f64 / 1_000_000.0;
        EndpointFigures {
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
            has_name,
            requests: self.requests,
            client_errors: self.client_errors,
            server_errors: self.server_errors,
            unanswered: self.unanswered,
            // The histogram rounds up.
            p50_ms: ms(0.5).min(longest_ms),
            p95_ms: ms(0.95).min(longest_ms),
            p99_ms: ms(0.99).min(longest_ms),
            longest_ms,
        }
    }
}

fn is_found(seen: &SeenRequest) -> bool {
    seen.status
        .is_some_and(|status| !matches!(status, 404 | 405))
}

/// One service.
#[derive(Debug, Default)]
struct Service {
    endpoints: HashMap<String, Endpoint>,
    others: Option<Endpoint>,
}

impl Service {
    /// The place for a request's name, if there is one.
    fn place(&mut self, name: &str, seen: &SeenRequest, room: &mut usize) -> Option<&mut Endpoint> {
        if !self.endpoints.contains_key(name) {
            let unfound = self.endpoints.values().filter(|it| !it.is_found).count();
            if !is_found(seen) && unfound >= NOT_FOUND_MAX {
                return None;
            }
            if (self.endpoints.len() >= OF_SERVICE_MAX || *room == 0) && !self.make_room(room, seen)
            {
                return None;
            }
            *room -= 1;
            self.endpoints.insert(name.to_owned(), Endpoint::new());
        }
        self.endpoints.get_mut(name)
    }

    /// Moves an endpoint that no request has found to the others, for a request that finds its own.
    fn make_room(&mut self, room: &mut usize, seen: &SeenRequest) -> bool {
        let unfound = self.endpoints.iter().find(|(_, it)| !it.is_found);
        let Some(name) = unfound
            .map(|(name, _)| name.clone())
            .filter(|_| is_found(seen))
        else {
            return false;
        };
        if let Some(gone) = self.endpoints.remove(&name) {
            *room += 1;
            let others = self.others.get_or_insert_with(Endpoint::new);
            others.requests += gone.requests;
            others.client_errors += gone.client_errors;
            others.server_errors += gone.server_errors;
            others.unanswered += gone.unanswered;
            others.longest_ns = others.longest_ns.max(gone.longest_ns);
            // Both resize by themselves.
            let _fits = others.durations.add(&gone.durations);
        }
        true
    }
}

/// The requests of one look.
#[derive(Debug)]
pub struct Traffic {
    services: BTreeMap<String, Service>,
    /// Endpoints that may still be added.
    room: usize,
    requests: u64,
    over_limit: u64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            room: ENDPOINTS_MAX,
            requests: 0,
            over_limit: 0,
        }
    }
}

impl Traffic {
    /// Counts and measures a request.
    pub fn add(&mut self, seen: &SeenRequest) {
        self.requests += 1;
        let name = &seen.service.name;
        if !self.services.contains_key(name) {
            if self.services.len() >= SERVICES_MAX {
                self.over_limit += 1;
                return;
            }
            self.services.insert(name.clone(), Service::default());
        }
        let service = self.services.get_mut(name).expect("it is there by now");
        let own = seen.endpoint.as_deref();
        match own.and_then(|own| service.place(own, seen, &mut self.room)) {
            Some(endpoint) => endpoint.add(seen),
            None => {
                self.over_limit += u64::from(own.is_some());
                service.others.get_or_insert_with(Endpoint::new).add(seen);
            }
        }
    }

    /// Requests seen.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Requests that do not count under the name of their endpoint, because there are too many names.
    #[must_use]
    pub fn over_limit(&self) -> u64 {
        self.over_limit
    }

    /// Figures of each endpoint, by service, the most frequent first.
    #[must_use]
    pub fn figures(&self) -> Vec<EndpointFigures> {
        let mut all = Vec::new();
        for (service, of) in &self.services {
            let named = of.endpoints.iter();
            let mut rows: Vec<EndpointFigures> = named
                .map(|(name, endpoint)| endpoint.figures(service, name, true))
                .collect();
            rows.sort_by(|a, b| {
                let by_count = b.requests.cmp(&a.requests);
                by_count.then_with(|| a.endpoint.cmp(&b.endpoint))
            });
            let others = of.others.as_ref();
            rows.extend(others.map(|others| others.figures(service, OTHERS, false)));
            all.append(&mut rows);
        }
        all
    }

    /// Service and name of each endpoint that exists, as far as its answers tell.
    pub fn found(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().flat_map(|(service, of)| {
            let endpoints = of.endpoints.iter().filter(|(_, it)| it.is_found);
            endpoints.map(move |(name, _)| (service.as_str(), name.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn seen(endpoint: &str, status: u16, duration_ms: u64) -> SeenRequest {
        SeenRequest {
            service: Arc::new(crate::model::Service {
                name: "shop".to_owned(),
                instance: "one".to_owned(),
            }),
            endpoint: (!endpoint.is_empty()).then(|| endpoint.to_owned()),
            status: (status > 0).then_some(status),
            duration_ns: (status > 0).then_some(duration_ms * 1_000_000),
        }
    }

    /// Check counts, shares and percentiles of an endpoint.
    #[test]
    fn requests_are_counted_and_measured() {
        let mut traffic = Traffic::default();
        for ms in 1..=100 {
            traffic.add(&seen("GET:/a", 200, ms));
        }
        for status in [404, 500, 503, 0] {
            traffic.add(&seen("GET:/a", status, 10));
        }
        traffic.add(&seen("GET:/b", 200, 1));
        let figures = traffic.figures();
        let a = &figures[0];
        assert_eq!((a.endpoint.as_str(), a.requests), ("GET:/a", 104));
        assert_eq!((a.client_errors, a.server_errors, a.unanswered), (1, 2, 1));
        assert!((a.error_share() - 3.0 / 104.0).abs() < 1e-9);
        let near = |value: f64, expected: f64| (value - expected).abs() <= expected / 50.0;
        assert!(
            near(a.p50_ms, 49.0) && near(a.p95_ms, 95.0) && near(a.p99_ms, 99.0),
            "{a:?}"
        );
        assert_eq!(a.longest_ms, 100.0);
        assert_eq!(figures[1].endpoint, "GET:/b");
        assert_eq!(traffic.requests(), 105);
    }

    /// Check that made-up names without end take a bounded number of places, and none of what is served.
    #[test]
    fn names_without_end_are_one() {
        let mut traffic = Traffic::default();
        for index in 0..2_000 {
            traffic.add(&seen(&format!("GET:/hole{index}x"), 404, 1));
        }
        assert_eq!(traffic.figures().len(), NOT_FOUND_MAX + 1);
        for index in 0..OF_SERVICE_MAX + 7 {
            traffic.add(&seen(&format!("GET:/page{index}x"), 200, 1));
        }
        let figures = traffic.figures();
        assert_eq!(figures.len(), OF_SERVICE_MAX + 1);
        assert_eq!(traffic.found().count(), OF_SERVICE_MAX);
        let last = &figures[OF_SERVICE_MAX];
        assert_eq!((last.endpoint.as_str(), last.has_name), (OTHERS, false));
        assert_eq!(last.requests, 2_000 + 7);
        assert_eq!(traffic.over_limit(), 2_000 - NOT_FOUND_MAX as u64 + 7);
        let all: u64 = figures.iter().map(|row| row.requests).sum();
        assert_eq!(all, traffic.requests());
    }

    /// Check that what no endpoint can name counts, and is not offered.
    #[test]
    fn what_has_no_name_is_counted() {
        let mut traffic = Traffic::default();
        traffic.add(&seen("", 200, 1));
        traffic.add(&seen("GET:/gone", 404, 1));
        assert_eq!(traffic.found().count(), 0);
        assert_eq!((traffic.figures().len(), traffic.over_limit()), (2, 0));
    }
}
