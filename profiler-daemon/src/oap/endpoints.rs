//! Tells the OAP which endpoints services have, so that a UI offers them before a first request is profiled.
//!
//! In:  [`EndpointNews`] of endpoints that were seen
//! Out: one log record for each, with service, instance and endpoint
//! Lost: news while too many wait; an OAP that takes no logs is told nothing, which the log says once per connection
//!
//! # Why logs
//!
//! An OAP learns endpoints from segments, from logs and from metrics of meshes. Segments and metrics count as requests, and
//! profilerd sees only some of the requests: a log record adds the endpoint to the list and no number to any metric
//! (`TrafficSinkListener` of its log analyzer). Every delivered configuration since 8.4 takes logs. The record is
//! kept like any other log of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use profiler_proto::skywalking as pb;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::Status;

use super::link::{Connection, Failure, Link, explain};
use super::name::{ENDPOINT_MAX, cut};
use super::presence::{Reporting, cut_service};
use crate::model::Service;
use crate::model::clock::unix_ms_now;

/// Endpoints remembered for an OAP that comes back and knows nothing.
const REMEMBERED_MAX: usize = 20_000;
/// Records sent in one call.
const BATCH: usize = 256;
/// Batches of news that may wait for the task.
pub(super) const WAITING_MAX: usize = 64;
/// Pause after an OAP was too busy.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// An endpoint that an OAP is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointNews {
    /// Service and one of its instances.
    pub service: Service,
    /// SkyWalking layer; empty means `GENERAL`.
    pub layer: String,
    /// Name of the endpoint.
    pub endpoint: String,
    /// What was seen, for people who look at the logs of the service.
    pub text: String,
}

/// Service and endpoint.
type Key = (String, String);

/// The task that tells.
#[derive(Debug)]
pub(super) struct Introducer {
    pub(super) link: Link,
    pub(super) services: watch::Receiver<Arc<Vec<Reporting>>>,
    pub(super) news: mpsc::Receiver<Vec<EndpointNews>>,
}

/// What the OAP is told, or was.
#[derive(Debug, Default)]
struct Told {
    known: BTreeMap<Key, EndpointNews>,
    due: BTreeSet<Key>,
    over_limit: u64,
}

impl Told {
    fn add(&mut self, news: Vec<EndpointNews>) {
        for news in news {
            let key = (news.service.name.clone(), news.endpoint.clone());
            if self.known.len() >= REMEMBERED_MAX && !self.known.contains_key(&key) {
                self.over_limit += 1;
                continue;
            }
            self.due.insert(key.clone());
            self.known.insert(key, news);
        }
    }

    /// Another OAP, or one that was restarted, knows nothing. Services that are gone are not brought back.
    fn start_over(&mut self, services: &[Reporting]) {
        let live: BTreeSet<&str> = services.iter().map(|it| it.service.name.as_str()).collect();
        self.known
            .retain(|_, news| live.contains(cut_service(&news.service).name.as_str()));
        self.due = self.known.keys().cloned().collect();
    }

    /// Records of one service: OAP 10.1.0 takes all records of a stream for those of the first one's service.
    fn batch(&self) -> Vec<(Key, pb::LogData)> {
        let service = self.due.first().map(|(service, _)| service);
        let of_service = self.due.iter().take_while(|key| Some(&key.0) == service);
        let due = of_service.take(BATCH);
        let news = due.filter_map(|key| Some((key.clone(), record(self.known.get(key)?))));
        news.collect()
    }
}

fn record(news: &EndpointNews) -> pb::LogData {
    let service = cut_service(&news.service);
    pb::LogData {
        timestamp: unix_ms_now(),
        service: service.name,
        service_instance: service.instance,
        endpoint: cut(&news.endpoint, ENDPOINT_MAX).to_owned(),
        body: Some(pb::LogDataBody {
            r#type: "text".to_owned(),
            text: Some(pb::TextLog {
                text: news.text.clone(),
            }),
        }),
        layer: news.layer.clone(),
    }
}

impl Introducer {
    /// Runs until the link is gone.
    pub(super) async fn run(mut self) {
        let mut told = Told::default();
        // The connection that was told everything, one that is at fault, and one that takes no logs.
        let (mut generation, mut avoided, mut deaf) = (0, 0, 0);
        loop {
            let wanted = if told.due.is_empty() {
                generation
            } else {
                avoided
            };
            let connection = tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => {
                        told.add(news);
                        continue;
                    }
                    None => return,
                },
                connection = self.link.connection_after(wanted) => match connection {
                    Some(connection) => connection,
                    None => return,
                },
            };
            if connection.generation != generation {
                generation = connection.generation;
                told.start_over(&self.services.borrow());
            }
            if deaf == generation {
                told.due.clear();
            }
            let batch = told.batch();
            if batch.is_empty() {
                continue;
            }
            let (keys, records): (Vec<Key>, Vec<pb::LogData>) = batch.into_iter().unzip();
            let Err(status) = self.tell(&connection, records).await else {
                for key in keys {
                    told.due.remove(&key);
                }
                continue;
            };
            match Failure::of(&status) {
                Failure::Link => avoided = generation,
                Failure::Busy => sleep(BUSY_PAUSE).await,
                Failure::Unimplemented => {
                    deaf = generation;
                    tracing::warn!(
                        "the OAP takes no logs (its receiver-log is off), so its UI does not offer endpoints of services \
                         without an agent: create tasks with swctl or profilerd task"
                    );
                }
                Failure::Refused => {
                    for key in keys {
                        told.due.remove(&key);
                    }
                    tracing::warn!("the OAP refuses to be told endpoints: {}", explain(&status));
                }
            }
        }
    }

    async fn tell(&self, connection: &Connection, records: Vec<pb::LogData>) -> Result<(), Status> {
        let mut client = connection.logs();
        let call = client.collect(tokio_stream::iter(records));
        self.link.call(connection, call).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(service: &str, endpoint: &str) -> EndpointNews {
        EndpointNews {
            service: Service {
                name: service.to_owned(),
                instance: "one".to_owned(),
            },
            layer: String::new(),
            endpoint: endpoint.to_owned(),
            text: "seen".to_owned(),
        }
    }

    fn due(told: &Told) -> Vec<String> {
        let batch = told.batch().into_iter();
        batch.map(|(_, record)| record.endpoint).collect()
    }

    /// Check that a record has what an OAP needs, as long as it keeps it, and a body: it drops a log without one.
    #[test]
    fn a_record_has_what_an_oap_keeps() {
        let record = record(&news(&"s".repeat(80), &"/".repeat(200)));
        assert_eq!((record.service.len(), record.endpoint.len()), (70, 150));
        assert_eq!(record.service_instance, "one");
        assert!(record.body.and_then(|body| body.text).is_some());
    }

    /// Check that each endpoint is told once, and all of live services again to another OAP.
    #[test]
    fn another_oap_is_told_again() {
        let mut told = Told::default();
        told.add(vec![news("a", "/1"), news("b", "/2"), news("a", "/1")]);
        assert_eq!(due(&told), ["/1"], "of one service in a stream");
        told.due.pop_first();
        assert_eq!(due(&told), ["/2"]);
        told.due.clear();
        let live = Reporting::new(news("b", "").service, Arc::default(), String::new());
        told.start_over(&[live]);
        assert_eq!(due(&told), ["/2"]);
    }

    /// Check that what is remembered is bounded.
    #[test]
    fn endpoints_are_bounded() {
        let mut told = Told::default();
        told.add(
            (0..REMEMBERED_MAX + 2)
                .map(|index| news("a", &index.to_string()))
                .collect(),
        );
        assert_eq!((told.known.len(), told.over_limit), (REMEMBERED_MAX, 2));
        assert_eq!(told.batch().len(), BATCH);
    }
}
