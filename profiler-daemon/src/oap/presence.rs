//! Reports live service instances to the OAP: properties and heartbeat.
//!
//! In:  the service instances of the host, from process discovery
//! Out: `reportInstanceProperties` for each new instance and every tenth heartbeat, `keepAlive`;
//!      nothing for instances that an agent reports
//! Lost: a heartbeat that fails; the next one follows, and a new connection starts from the top
//!
//! A service exists for an OAP, and can be given a task, only once it has been heard of.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use profiler_proto::skywalking::{InstancePingPkg, InstanceProperties, KeyStringValuePair};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tracing::debug;

use super::OapConfig;
use super::link::{Connection, Failure, Link, explain};
use super::name::{SERVICE_MAX, cut};
use super::turns::{Turns, at};
use crate::model::Service;

/// Most instances reported to an OAP per second. 1,000 are registered within 10 s, and stay spread over that
/// time; more than 3,000 have longer pauses between their heartbeats.
const INSTANCES_PER_SECOND: u32 = 100;

/// A service instance and its properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporting {
    /// Names, at most 70 characters each.
    pub service: Service,
    /// Properties in the order they are sent.
    pub properties: Arc<[(String, String)]>,
    /// SkyWalking layer; empty means `GENERAL`.
    pub layer: String,
    /// An agent reports it already, under this name.
    pub is_agents: bool,
}

/// Service, properties and layer of one that no agent reports.
impl From<(Service, Arc<[(String, String)]>, String)> for Reporting {
    fn from((service, properties, layer): (Service, Arc<[(String, String)]>, String)) -> Self {
        Self::new(service, properties, layer)
    }
}

impl Reporting {
    /// Cuts the names as OAP does.
    #[must_use]
    pub fn new(service: Service, properties: Arc<[(String, String)]>, layer: String) -> Self {
        Self {
            service: cut_service(&service),
            properties,
            layer,
            is_agents: false,
        }
    }
}

/// The names of a service instance as OAP stores them.
pub(super) fn cut_service(service: &Service) -> Service {
    Service {
        name: cut(&service.name, SERVICE_MAX).to_owned(),
        instance: cut(&service.instance, SERVICE_MAX).to_owned(),
    }
}

/// What an instance was told.
#[derive(Debug)]
struct Told {
    properties: Arc<[(String, String)]>,
    beats: u32,
}

/// The heartbeat task.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) config: Arc<OapConfig>,
    pub(super) link: Link,
    pub(super) services: watch::Receiver<Arc<Vec<Reporting>>>,
}

/// What a call is to say: properties if they are due, and that the instance lives.
type Message = (Option<InstanceProperties>, InstancePingPkg);

/// The instances, what they were told on this connection, and when they are told again.
#[derive(Debug)]
struct Beats {
    interval: Duration,
    properties_every: u32,
    live: HashMap<Service, Reporting>,
    told: HashMap<Service, Told>,
    turns: Turns,
}

impl Beats {
    fn new(config: &OapConfig) -> Self {
        Self {
            interval: config.heartbeat_interval,
            properties_every: config.properties_every.max(1),
            live: HashMap::new(),
            told: HashMap::new(),
            turns: Turns::new(INSTANCES_PER_SECOND),
        }
    }

    /// Takes over the instances that live; the OAP hears now of those that are new or have changed.
    fn set_services(&mut self, services: &[Reporting], now: Instant) {
        let by_service = |reporting: &Reporting| (reporting.service.clone(), reporting.clone());
        let ours = services.iter().filter(|reporting| !reporting.is_agents);
        self.live = ours.map(by_service).collect();
        self.told.retain(|service, _| {
            let lives = self.live.contains_key(service);
            if !lives {
                self.turns.forget(service);
            }
            lives
        });
        for (service, reporting) in &self.live {
            let told = self.told.get(service);
            if told.is_none_or(|told| told.properties != reporting.properties) {
                self.turns.bring_forward(service, now);
            }
        }
    }

    /// Another OAP, or one that was restarted, knows nothing.
    fn start_over(&mut self, now: Instant) {
        self.told.clear();
        for service in self.live.keys() {
            self.turns.set(service, now);
        }
    }

    /// Those that are due, and what to say. A failure is not repeated before the next beat: the OAP may have
    /// a reason.
    fn take(&mut self, now: Instant, calls: usize) -> Vec<Message> {
        let due = self.turns.take(now, calls);
        due.into_iter()
            .filter_map(|service| self.message(&service, now))
            .collect()
    }

    fn message(&mut self, service: &Service, now: Instant) -> Option<Message> {
        let reporting = self.live.get(service)?;
        self.turns.set(service, now + self.interval);
        let told = self.told.get(service);
        let beats = told.map_or(0, |told| told.beats);
        let are_properties_due = beats.is_multiple_of(self.properties_every)
            || told.is_none_or(|told| told.properties != reporting.properties);
        let now_told = Told {
            properties: Arc::clone(&reporting.properties),
            beats: beats.wrapping_add(1),
        };
        self.told.insert(service.clone(), now_told);
        let ping = InstancePingPkg {
            service: service.name.clone(),
            service_instance: service.instance.clone(),
            layer: reporting.layer.clone(),
        };
        Some((
            are_properties_due.then(|| properties_message(reporting)),
            ping,
        ))
    }
}

impl Presence {
    /// Runs until the link is gone.
    pub(super) async fn run(mut self) {
        let mut beats = Beats::new(&self.config);
        let mut calls: JoinSet<(u64, Result<(), Status>)> = JoinSet::new();
        let (mut generation, mut avoided) = (0, 0);
        self.services.mark_changed();
        loop {
            let Some(connection) = self.link.connection_after(avoided).await else {
                return;
            };
            if self.services.has_changed().unwrap_or(false) {
                let services = Arc::clone(&self.services.borrow_and_update());
                beats.set_services(&services, Instant::now());
            }
            if connection.generation != generation {
                generation = connection.generation;
                beats.start_over(Instant::now());
            }
            for message in beats.take(Instant::now(), calls.len()) {
                let told = tell(self.link.clone(), connection.clone(), message);
                calls.spawn(async move { (generation, told.await) });
            }
            let next = beats.turns.next_at(calls.len());
            tokio::select! {
                Some(done) = calls.join_next() => {
                    let Ok((of, Err(status))) = done else { continue };
                    debug!("heartbeat: {}", explain(&status));
                    if Failure::of(&status) == Failure::Link {
                        avoided = avoided.max(of);
                    }
                }
                () = at(next) => {}
                changed = self.services.changed() => match changed {
                    Ok(()) => self.services.mark_changed(),
                    Err(_) => return,
                },
                other = self.link.connection_after(generation) => {
                    if other.is_none() { return }
                }
            }
        }
    }
}

async fn tell(link: Link, connection: Connection, message: Message) -> Result<(), Status> {
    let (properties, ping) = message;
    let mut client = connection.management();
    if let Some(properties) = properties {
        let call = client.report_instance_properties(properties);
        link.call(&connection, call).await?;
    }
    link.call(&connection, client.keep_alive(ping)).await?;
    Ok(())
}

fn properties_message(reporting: &Reporting) -> InstanceProperties {
    let pairs = reporting.properties.iter();
    InstanceProperties {
        service: reporting.service.name.clone(),
        service_instance: reporting.service.instance.clone(),
        properties: pairs
            .map(|(key, value)| KeyStringValuePair {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        layer: reporting.layer.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that names are cut, and that a key may come twice, as `ipv4` does.
    #[test]
    fn an_instance_is_sent_as_it_is_described() {
        let properties = [
            ("language", "python"),
            ("ipv4", "10.0.0.1"),
            ("ipv4", "10.0.0.2"),
        ];
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let properties = properties.map(own).into();
        let long = Service {
            name: "s".repeat(80),
            instance: "i".repeat(80),
        };
        let reporting = Reporting::new(long, properties, String::new());
        let message = properties_message(&reporting);
        assert_eq!(message.service.len(), 70);
        assert_eq!(message.service_instance.len(), 70);
        let pairs: Vec<_> = message
            .properties
            .iter()
            .map(|pair| (pair.key.as_str(), pair.value.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("language", "python"),
                ("ipv4", "10.0.0.1"),
                ("ipv4", "10.0.0.2")
            ]
        );
    }
}
