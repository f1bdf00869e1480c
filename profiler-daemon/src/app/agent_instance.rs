//! Finds the names that SkyWalking agents have made up for their instances, so that a process does not stand in the OAP
//! as an instance of its agent and another one of profilerd.
//!
//! In:  processes with an agent whose instance nobody named; the OAP's list of instances
//! Out: the agent's instance, or that it is not known, for each of these processes
//! Lost: names of agents that report to another OAP, or later than [`PATIENCE`]
//!
//! An agent tells the OAP its process id and its host's name (`Process No.`, `hostname`). An instance is taken for a
//! process if both are its own and no other instance of the service has them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::oap_query::OapQuery;
use crate::model::clock::unix_ms_now;
use crate::model::{ProcessKey, Tid};
use crate::oap::graphql::ListedInstance;
use crate::process::python::innermost_tid;
use crate::process::table::Process;
use crate::process::{Processes, VERSION_PROPERTY};

/// How long an agent is waited for: it reports some seconds after its start, and the OAP shows that up to half a
/// minute later.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause between two questions.
const INTERVAL: Duration = Duration::from_secs(5);
/// An instance that lives is heard of at least so often.
const HEARD_MS: i64 = 3 * 60_000;
/// Services asked about at a time; the others have their turn next.
const SERVICES_MAX: usize = 20;

/// The names that were found, by process.
pub(super) type Found = HashMap<ProcessKey, Option<String>>;

/// A process that waits for the name.
#[derive(Clone, Debug)]
struct Waiting {
    process: ProcessKey,
    /// What the agent may call its host.
    host_names: Vec<String>,
    since: Instant,
}

/// Who asks.
#[derive(Debug)]
pub(super) struct AgentInstances {
    /// Not there if no OAP can be asked.
    query: Option<OapQuery>,
    /// What this host is called in names of instances.
    host: String,
    /// When a process was first asked for.
    since: HashMap<ProcessKey, Instant>,
    asked: Option<Instant>,
    answers: JoinSet<Found>,
}

impl AgentInstances {
    /// Asks the OAP of `oap.query`; nobody if that is not set.
    pub(super) fn new(query: Option<OapQuery>, host: &str) -> Self {
        Self {
            query,
            host: host.to_owned(),
            since: HashMap::new(),
            asked: None,
            answers: JoinSet::new(),
        }
    }

    /// Asks for the processes that wait, if it is time to.
    pub(super) fn mind(&mut self, processes: &Processes) {
        let Some(query) = &self.query else {
            return;
        };
        let now = Instant::now();
        let waiting: Vec<&Process> = processes.await_agent_instance().collect();
        let live: HashSet<ProcessKey> = waiting.iter().map(|it| it.key).collect();
        self.since.retain(|process, _| live.contains(process));
        let is_due = self.asked.is_none_or(|asked| now - asked >= INTERVAL);
        if waiting.is_empty() || !is_due || !self.answers.is_empty() {
            return;
        }
        let mut by_service: BTreeMap<&str, Vec<&Process>> = BTreeMap::new();
        for process in waiting {
            by_service
                .entry(process.agent_service())
                .or_default()
                .push(process);
        }
        // Those that were asked about before have their turn until they are known or given up.
        let mut services: Vec<_> = by_service.into_iter().collect();
        services.sort_by_key(|(_, of_service)| {
            let since = of_service.iter().filter_map(|it| self.since.get(&it.key));
            let first = since.min();
            (first.is_none(), first.copied())
        });
        services.truncate(SERVICES_MAX);
        let questions = services.into_iter().map(|(service, of_service)| {
            let waiting = of_service.into_iter().map(|process| Waiting {
                process: process.key,
                host_names: process.host_names(&self.host),
                since: *self.since.entry(process.key).or_insert(now),
            });
            (service.to_owned(), waiting.collect())
        });
        let questions = questions.collect();
        self.asked = Some(now);
        self.answers.spawn(ask(query.clone(), questions));
    }

    /// The next answer. Waits for ever if nothing was asked.
    pub(super) async fn next(&mut self) -> Found {
        match self.answers.join_next().await {
            Some(Ok(found)) => found,
            Some(Err(_)) => Found::new(),
            None => std::future::pending().await,
        }
    }
}

/// Asks about services; what is not found yet and not given up is left out.
async fn ask(query: OapQuery, questions: Vec<(String, Vec<Waiting>)>) -> Found {
    let mut found = Found::new();
    for (service, waiting) in questions {
        let listed = list(&query, &service).await.unwrap_or_else(|error| {
            tracing::debug!(
                service,
                error = format!("{error:#}"),
                "the OAP cannot be asked for an agent's instance"
            );
            Vec::new()
        });
        for it in waiting {
            // In a container it is not the id that we see.
            let pid = innermost_tid(it.process.pid, Tid(it.process.pid.0));
            let name = pid
                .ok()
                .and_then(|pid| name_of(&listed, pid, &it.host_names));
            if name.is_some() || it.since.elapsed() >= PATIENCE {
                found.insert(it.process, name);
            }
        }
    }
    found
}

async fn list(query: &OapQuery, service: &str) -> Result<Vec<ListedInstance>> {
    let client = query.client()?;
    let dialect = client.dialect().await?;
    let now_ms = unix_ms_now();
    let times = (now_ms - HEARD_MS, now_ms + HEARD_MS);
    client.instances(service, times, dialect).await
}

/// The only instance of a process that an agent has reported.
fn name_of(listed: &[ListedInstance], pid: u32, host_names: &[String]) -> Option<String> {
    let pid = pid.to_string();
    let is_its = |it: &&ListedInstance| {
        it.attribute("Process No.") == Some(&pid)
            && it.attribute(VERSION_PROPERTY).is_none()
            && it
                .attribute("hostname")
                .is_some_and(|name| host_names.iter().any(|known| known == name))
    };
    let mut its = listed.iter().filter(is_its);
    let first = its.next()?;
    its.next().is_none().then(|| first.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, attributes: &[(&str, &str)]) -> ListedInstance {
        let attributes: Vec<_> = attributes
            .iter()
            .map(|(name, value)| serde_json::json!({ "name": name, "value": value }))
            .collect();
        let row = serde_json::json!({ "name": name, "attributes": attributes });
        serde_json::from_value(row).unwrap()
    }

    /// Check that a process has the instance with its id and its host, if there is one alone, and never one of profilerd.
    #[test]
    fn an_instance_is_known_by_process_and_host() {
        let of = |pid, host| [("Process No.", pid), ("hostname", host)];
        let mut all = vec![
            listed("a", &of("7", "vm")),
            listed("b", &of("8", "vm")),
            listed("c", &of("7", "other")),
            listed(
                "vm:80",
                &[
                    ("Process No.", "7"),
                    ("hostname", "vm"),
                    (VERSION_PROPERTY, "1"),
                ],
            ),
            listed("d", &[("Process No.", "9")]),
            listed("e", &[]),
        ];
        let name = |all: &[_], pid| name_of(all, pid, &["pod".to_owned(), "vm".to_owned()]);
        assert_eq!(name(&all, 7).as_deref(), Some("a"));
        assert_eq!(name(&all, 8).as_deref(), Some("b"));
        assert_eq!(name(&all, 9), None);
        all.push(listed("a of before a restart", &of("7", "vm")));
        assert_eq!(name(&all, 7), None);
    }
}
