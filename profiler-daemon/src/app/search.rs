//! Finds out what the processes of a recording are asked for, if it is not the endpoint that is recorded.
//!
//! In:  the number of requests that match, the processes that are watched
//! Out: a sentence with the endpoints that are near
//! Lost: requests before the search begins, which it does only when none has matched for a while

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::discovery::{Looker, Order};
use crate::config::Config;
use crate::model::{ProcessKey, ProfileTask, Service, Watched};
use crate::request::{Templates, unasked_endpoint};

/// How long a recording goes without a matching request before it is asked which others there are. A look costs time,
/// most of it for loading its programs.
const PATIENCE: Duration = Duration::from_secs(2);
/// A look lasts as long as the recording, which ends it.
const WITHOUT_END: Duration = Duration::from_hours(24);

/// The search of one recording.
pub(super) struct Search {
    templates: Arc<Templates>,
    request_ring_bytes: u32,
    began: Instant,
    looker: Option<Looker>,
    has_matched: bool,
}

impl Search {
    /// Nothing is looked at yet.
    ///
    /// # Errors
    ///
    /// A template is no path.
    pub(super) fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            templates: Arc::new(config.templates()?),
            request_ring_bytes: config.limits.requests_ring_bytes,
            began: Instant::now(),
            looker: None,
            has_matched: false,
        })
    }

    /// Begins to look if no request has matched for a while, and gives up when one has.
    pub(super) fn mind(&mut self, matched: u64, watched: &HashSet<ProcessKey>, service: &Service) {
        if matched > 0 {
            self.has_matched = true;
            self.looker = None;
        }
        if self.has_matched || self.looker.is_some() || self.began.elapsed() < PATIENCE {
            return;
        }
        let Ok(looker) = Looker::spawn(Arc::clone(&self.templates), self.request_ring_bytes) else {
            return; // a hint is not worth the recording
        };
        let service = Arc::new(service.clone());
        let watched = watched.iter().map(|&process| Watched {
            process,
            service: Arc::clone(&service),
        });
        looker.send(Order::Look(watched.collect(), WITHOUT_END));
        self.looker = Some(looker);
    }

    /// What was asked for instead, near endpoints first.
    pub(super) async fn hint(self, task: &ProfileTask) -> Option<String> {
        let looked = self.looker?.finish().await?.ok()?;
        let figures = looked.traffic.figures();
        let named = figures.into_iter().filter(|row| row.has_name);
        let known: Vec<String> = named.map(|row| row.endpoint).collect();
        unasked_endpoint(&task.endpoint, &known)
    }
}
