//! Tells the OAP which service instances live: properties and heartbeat.
//!
//! In:  the service instances of the host, from process discovery
//! Out: `reportInstanceProperties` for each new instance and every tenth heartbeat, `keepAlive`
//! Lost: a heartbeat that fails; the next one follows, and a new connection starts from the top
//!
//! A service exists for an OAP, and can be given a task, only once it has been heard of.

use std::collections::HashMap;
use std::sync::Arc;

use profiler_proto::skywalking::{InstancePingPkg, InstanceProperties, KeyStringValuePair};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tracing::debug;

use super::OapConfig;
use super::link::{Connection, Failure, Link, explain};
use super::name::{SERVICE_MAX, cut};
use crate::model::Service;

/// A service instance and what is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporting {
    /// Names, at most 70 characters each.
    pub service: Service,
    /// Properties in the order they are sent.
    pub properties: Vec<(String, String)>,
    /// SkyWalking layer; empty means `GENERAL`.
    pub layer: String,
}

impl Reporting {
    /// Cuts the names as OAP does.
    #[must_use]
    pub fn new(service: Service, properties: Vec<(String, String)>, layer: String) -> Self {
        Self {
            service: cut_service(&service),
            properties,
            layer,
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

/// What an instance was told to whom.
#[derive(Debug)]
struct Told {
    generation: u64,
    properties: Vec<(String, String)>,
    beats: u32,
    next_beat: Instant,
}

/// The heartbeat task.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) config: Arc<OapConfig>,
    pub(super) link: Link,
    pub(super) services: watch::Receiver<Arc<Vec<Reporting>>>,
}

impl Presence {
    /// Runs until the link is gone.
    pub(super) async fn run(mut self) {
        let mut told: HashMap<Service, Told> = HashMap::new();
        loop {
            let Some(connection) = self.link.connection().await else {
                return;
            };
            let services = Arc::clone(&self.services.borrow_and_update());
            told.retain(|service, _| services.iter().any(|r| r.service == *service));
            for reporting in services.iter() {
                if let Err(status) = self.tell(&connection, reporting, &mut told).await {
                    debug!("heartbeat: {}", explain(&status));
                    if Failure::of(&status) == Failure::Link {
                        break;
                    }
                }
            }
            let latest = Instant::now() + self.config.heartbeat_interval;
            let next = told.values().map(|told| told.next_beat).min();
            tokio::select! {
                () = sleep_until(next.map_or(latest, |next| next.min(latest))) => {}
                changed = self.services.changed() => if changed.is_err() { return },
                other = self.link.connection_after(connection.generation) => {
                    if other.is_none() { return }
                }
            }
        }
    }

    /// Sends what is due for one instance.
    async fn tell(
        &self,
        connection: &Connection,
        reporting: &Reporting,
        told: &mut HashMap<Service, Told>,
    ) -> Result<(), Status> {
        let now = Instant::now();
        let before = told
            .get(&reporting.service)
            .filter(|told| told.generation == connection.generation);
        let is_beat_due = before.is_none_or(|told| told.next_beat <= now);
        let beats = before.map_or(0, |told| told.beats);
        let are_properties_due = before.is_none_or(|told| {
            told.properties != reporting.properties
                || (is_beat_due && beats.is_multiple_of(self.config.properties_every.max(1)))
        });
        if !is_beat_due && !are_properties_due {
            return Ok(());
        }
        // A failure is not repeated before the next beat: the OAP may have a reason.
        told.insert(
            reporting.service.clone(),
            Told {
                generation: connection.generation,
                properties: reporting.properties.clone(),
                beats: beats.wrapping_add(1),
                next_beat: now + self.config.heartbeat_interval,
            },
        );
        let mut client = connection.management();
        if are_properties_due {
            let call = client.report_instance_properties(properties_message(reporting));
            self.link.call(connection, call).await?;
        }
        let call = client.keep_alive(InstancePingPkg {
            service: reporting.service.name.clone(),
            service_instance: reporting.service.instance.clone(),
            layer: reporting.layer.clone(),
        });
        self.link.call(connection, call).await?;
        Ok(())
    }
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
        let properties = properties.map(own).to_vec();
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
