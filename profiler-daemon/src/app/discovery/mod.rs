//! Looks for endpoints: by itself in the daemon, and for `profilerd endpoints`.
//!
//! In:  the processes of the host, the time
//! Out: the endpoints of services without an agent, to the OAP
//! Lost: what [`Traffic`](crate::discovery::Traffic) and [`Catalogue`] do not keep, counted there and logged

mod look;
mod show;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::config::{Config, DiscoveryMode};
use crate::discovery::{Catalogue, KnownEndpoint, Pace, Wanted};
use crate::model::{
    DiscoveryObservation, EndpointFigures, FinishedRequest, ProcessKey, ProfileTask, Watched,
};
use crate::oap::EndpointNews;
use crate::process::Processes;
use crate::request::{Templates, unasked_endpoint};
use look::Looked;
pub(super) use worker::{Looker, Order};

pub use show::{EndpointsRequest, EndpointsShown, endpoints};

/// Looks of the daemon, and what they have found.
#[derive(Debug)]
pub(super) struct Discovery {
    looker: Option<Looker>,
    templates: Arc<Templates>,
    pace: Pace,
    catalogue: Catalogue,
    /// Processes that the look under way has been told of.
    watched: HashSet<ProcessKey>,
    observed: DiscoveryObservation,
}

impl Discovery {
    /// Starts the thread, unless looks are switched off.
    ///
    /// # Errors
    ///
    /// The system has no thread left, or a template is no path.
    pub(super) fn spawn(config: &Config) -> Result<Self> {
        let settings = &config.discovery;
        let interval = match settings.mode {
            DiscoveryMode::Off | DiscoveryMode::Windows => Some(settings.interval),
            DiscoveryMode::Always => None,
        };
        let templates = Arc::new(config.templates()?);
        let looker = match settings.mode {
            DiscoveryMode::Off => None,
            DiscoveryMode::Windows | DiscoveryMode::Always => Some(Looker::spawn(
                Arc::clone(&templates),
                config.limits.requests_ring_bytes,
            )?),
        };
        Ok(Self {
            looker,
            templates,
            pace: Pace::new(settings.window, interval, config.limits.max_cpu_percent),
            catalogue: Catalogue::default(),
            watched: HashSet::new(),
            observed: DiscoveryObservation::default(),
        })
    }

    /// Begins a look if one is due, and adds new processes to one that is under way.
    pub(super) fn mind(&mut self, processes: &Processes, guard_acts: bool) {
        let Some(looker) = &self.looker else {
            return;
        };
        // An agent tells its OAP what it is asked for.
        let served = processes
            .iter()
            .filter(|it| it.may_serve() && it.agent.is_none());
        let watched: Vec<Watched> = served
            .map(|process| Watched {
                process: process.key,
                service: Arc::new(process.identity.service.clone()),
            })
            .collect();
        if self.observed.is_looking {
            let mut new = watched;
            new.retain(|it| self.watched.insert(it.process));
            if !new.is_empty() {
                looker.send(Order::Add(new));
            }
            return;
        }
        let services = watched.iter().map(|it| it.service.name.as_str());
        if let Wanted::Look(lasts) = self.pace.decide(services, guard_acts, Instant::now()) {
            self.watched = watched.iter().map(|it| it.process).collect();
            self.observed.is_looking = true;
            looker.send(Order::Look(watched, lasts));
        }
    }

    /// Takes at most this much of one core from now on.
    pub(super) fn set_budget(&mut self, percent: u32) {
        self.pace.set_budget(percent);
    }

    /// Ends a look at processes that are not to be looked at any more.
    pub(super) fn leave_out(&mut self, denied: impl IntoIterator<Item = ProcessKey>) {
        let mut denied = denied.into_iter();
        if denied.any(|process| self.watched.contains(&process))
            && let Some(looker) = &self.looker
        {
            looker.send(Order::End);
        }
    }

    /// The result of the next look that ends; never, if there is none.
    pub(super) async fn next(&mut self) -> Option<Result<Looked>> {
        match &mut self.looker {
            Some(looker) => looker.next().await,
            None => std::future::pending().await,
        }
    }

    /// Takes the result of a look. Yields what the OAP is to be told.
    pub(super) fn on_looked(
        &mut self,
        looked: Option<Result<Looked>>,
        processes: &Processes,
    ) -> Vec<EndpointNews> {
        self.observed.is_looking = false;
        self.watched.clear();
        let looked = match looked {
            Some(Ok(looked)) => looked,
            Some(Err(error)) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "endpoints cannot be looked for"
                );
                self.observed.failed += 1;
                self.pace.on_end(Duration::ZERO);
                return Vec::new();
            }
            None => {
                tracing::error!(
                    "the thread that looks for endpoints has ended: no endpoint is found any more"
                );
                self.looker = None;
                return Vec::new();
            }
        };
        self.pace.on_end(looked.cpu);
        let now = Instant::now();
        for (service, endpoint) in looked.traffic.found() {
            self.catalogue.see(service, endpoint, now);
        }
        tracing::debug!(
            lasted_ms = looked.lasted.as_millis(),
            cpu_ms = looked.cpu.as_millis(),
            processes = looked.processes,
            requests = looked.traffic.requests(),
            unseen = looked.unseen.total(),
            endpoints = self.catalogue.len(),
            "endpoints were looked for"
        );
        self.observed.windows += 1;
        self.observed.requests += looked.traffic.requests();
        self.observed.unseen += looked.unseen.total();
        self.observed.requests_over_limit += looked.traffic.over_limit();
        let figures = looked.traffic.figures();
        self.news(processes, |known| {
            let is_it = |row: &&EndpointFigures| {
                row.service == known.service && row.endpoint == known.endpoint
            };
            let row = figures.iter().find(is_it)?;
            Some(format!(
                "{} requests in {:.0} s, {} of them failed; half took {:.1} ms at most, the longest {:.1} ms",
                row.requests,
                looked.lasted.as_secs_f64(),
                row.server_errors + row.unanswered,
                row.p50_ms,
                row.longest_ms
            ))
        })
    }

    /// A request was profiled: its endpoint is known from now on, if it has one.
    pub(super) fn on_profiled(
        &mut self,
        finished: &FinishedRequest,
        processes: &Processes,
    ) -> Vec<EndpointNews> {
        if matches!(finished.status, Some(404 | 405)) {
            return Vec::new();
        }
        let request = &finished.request;
        let service = &request.service.name;
        // Its own: a task may call it otherwise.
        let own = self.templates.name(service, &request.method, &request.path);
        let Some(own) = own else {
            return Vec::new();
        };
        self.catalogue.see(service, &own, Instant::now());
        self.news(processes, |_| Some("a request was profiled".to_owned()))
    }

    /// What the OAP is to be told now that more is known of the processes.
    pub(super) fn overdue(&mut self, processes: &Processes) -> Vec<EndpointNews> {
        self.news(processes, |_| None)
    }

    /// How the looks are doing.
    pub(super) fn observe(&self) -> DiscoveryObservation {
        DiscoveryObservation {
            endpoints: self.catalogue.len() as u64,
            endpoints_over_limit: self.catalogue.over_limit(),
            ..self.observed.clone()
        }
    }

    /// Which known endpoints are near that of a task, if nobody has been seen to ask for it.
    pub(super) fn hint(&self, task: &ProfileTask) -> Option<String> {
        let known: Vec<String> = self
            .catalogue
            .of(&task.service.name)
            .map(str::to_owned)
            .collect();
        unasked_endpoint(&task.endpoint, &known)
    }

    fn news(
        &mut self,
        processes: &Processes,
        text: impl Fn(&KnownEndpoint) -> Option<String>,
    ) -> Vec<EndpointNews> {
        // An OAP is told of an endpoint with an instance, whose name must be the one it keeps.
        let told_of = |service: &str| {
            let mut of_service = processes.processes_of_name(service);
            of_service.find(|process| process.is_settled())
        };
        let due = self
            .catalogue
            .take_due(Instant::now(), |service| told_of(service).is_some());
        let news = due.into_iter().filter_map(|known| {
            let process = told_of(&known.service)?;
            let text = text(&known).unwrap_or_else(|| "it was asked for before".to_owned());
            Some(EndpointNews {
                service: process.identity.service.clone(),
                layer: process.identity.layer.clone(),
                text: format!("profilerd has seen {}: {text}", known.endpoint),
                endpoint: known.endpoint,
            })
        });
        news.collect()
    }
}
