//! The endpoints that services have shown so far, and which of them an OAP is to hear of again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Endpoints kept per service: as many as one look tells apart.
const OF_SERVICE_MAX: usize = 500;
/// Endpoints kept over all services, of 150 characters at most.
const ENDPOINTS_MAX: usize = 20_000;
/// An endpoint that was not seen for so long is forgotten. An OAP keeps an endpoint for 7 days unless told otherwise.
const KEPT: Duration = Duration::from_hours(7 * 24);
/// An OAP hears again of an endpoint that is still seen: since 10.2 a UI offers those of its time range, which is half an
/// hour unless a user chooses another.
const RENEWED: Duration = Duration::from_secs(15 * 60);

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownEndpoint {
    /// Name of the service.
    pub service: String,
    /// Name of the endpoint.
    pub endpoint: String,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    seen: Instant,
    /// When an OAP was told last.
    told: Option<Instant>,
}

/// All endpoints that are known.
#[derive(Debug, Default)]
pub struct Catalogue {
    endpoints: BTreeMap<KnownEndpoint, Times>,
    /// Endpoints that were not kept.
    over_limit: u64,
}

impl Catalogue {
    /// Takes note of an endpoint that was seen.
    pub fn see(&mut self, service: &str, endpoint: &str, now: Instant) {
        let known = KnownEndpoint {
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
        };
        if let Some(times) = self.endpoints.get_mut(&known) {
            times.seen = now;
            return;
        }
        if self.endpoints.len() >= ENDPOINTS_MAX || self.of(service).count() >= OF_SERVICE_MAX {
            self.over_limit += 1;
            return;
        }
        let times = Times {
            seen: now,
            told: None,
        };
        self.endpoints.insert(known, times);
    }

    /// Those that an OAP is to be told now; they count as told. Endpoints of services that cannot be told of yet stay
    /// due.
    pub fn take_due(
        &mut self,
        now: Instant,
        can_be_told: impl Fn(&str) -> bool,
    ) -> Vec<KnownEndpoint> {
        self.endpoints
            .retain(|_, times| now.saturating_duration_since(times.seen) < KEPT);
        let due = self.endpoints.iter_mut().filter(|(known, times)| {
            let is_due = times.told.is_none_or(|told| {
                times.seen > told && now.saturating_duration_since(told) >= RENEWED
            });
            is_due && can_be_told(&known.service)
        });
        due.map(|(known, times)| {
            times.told = Some(now);
            known.clone()
        })
        .collect()
    }

    /// Endpoints of a service, by name.
    pub fn of(&self, service: &str) -> impl Iterator<Item = &str> {
        let first = KnownEndpoint {
            service: service.to_owned(),
            endpoint: String::new(),
        };
        let of = self.endpoints.range(first..).map(|(known, _)| known);
        of.take_while(move |known| known.service == service)
            .map(|known| known.endpoint.as_str())
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// None is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many were not kept, because there are too many.
    #[must_use]
    pub fn over_limit(&self) -> u64 {
        self.over_limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(due: Vec<KnownEndpoint>) -> Vec<String> {
        due.into_iter().map(|known| known.endpoint).collect()
    }

    /// Check that an OAP hears of an endpoint at once, and again while it is still seen, but not more often.
    #[test]
    fn an_endpoint_is_told_and_renewed() {
        let mut catalogue = Catalogue::default();
        let start = Instant::now();
        catalogue.see("shop", "GET:/a", start);
        catalogue.see("shop", "GET:/b", start);
        assert_eq!(
            names(catalogue.take_due(start, |_| true)),
            ["GET:/a", "GET:/b"]
        );
        catalogue.see("new", "GET:/c", start);
        assert!(
            catalogue
                .take_due(start, |service| service != "new")
                .is_empty()
        );
        assert_eq!(names(catalogue.take_due(start, |_| true)), ["GET:/c"]);
        let later = start + Duration::from_secs(300);
        catalogue.see("shop", "GET:/a", later);
        assert!(catalogue.take_due(later, |_| true).is_empty());
        let due = start + RENEWED;
        assert_eq!(names(catalogue.take_due(due, |_| true)), ["GET:/a"]);
        assert!(catalogue.take_due(start + KEPT, |_| true).is_empty());
        assert_eq!(names(catalogue.take_due(later + KEPT, |_| true)), [""; 0]);
        assert!(catalogue.is_empty());
    }

    /// Check that a service keeps a bounded number, and the names of another stay its own.
    #[test]
    fn names_are_bounded() {
        let mut catalogue = Catalogue::default();
        let now = Instant::now();
        for index in 0..OF_SERVICE_MAX + 3 {
            catalogue.see("shop", &format!("GET:/{index}x"), now);
        }
        catalogue.see("shop2", "GET:/a", now);
        assert_eq!(catalogue.of("shop").count(), OF_SERVICE_MAX);
        assert_eq!(catalogue.of("shop2").collect::<Vec<_>>(), ["GET:/a"]);
        assert_eq!(
            (catalogue.len(), catalogue.over_limit()),
            (OF_SERVICE_MAX + 1, 3)
        );
    }
}
