//! Reads the pods of this node from the Kubernetes API server.
//!
//! In:  `GET /api/v1/pods` with `spec.nodeName`, listed once and then watched
//! Out: [`Pods`], the latest always, to [`crate::process::table`]
//! Lost: pods over [`PODS_MAX`], more than a node can run; after a failure the others are listed anew
//!
//! ```text
//!  settings.rs        where the API server is, which node this is
//!       v
//!  api.rs             one call: TLS, token, deadline       pod.rs   JSON -> Pod
//!       v                                                    v
//!  list --> watch --event--> Pods --event--> Pods --end--> watch ...
//!    ^        |
//!    +-pause--+ an error, or the version is too old (410)
//! ```
//!
//! # Why not the `kube` crate
//!
//! It was tried with a client and a watcher and nothing else: 266 s of cold build on two shared cores,
//! five minutes of CPU, 137 crates with types for all of Kubernetes. Two calls and a dozen fields are
//! needed, and what speaks HTTP and TLS is here already for the OAP.

mod api;
mod pod;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::KubernetesSettings;
use crate::model::backoff::Backoff;
use crate::process::{Pod, Pods};
use api::{Api, Lines};
use pod::{Event, List};
use settings::Target;

#[cfg(feature = "fuzzing")]
pub(crate) use pod::read_as_anything;

/// A node runs 110 pods if nobody changes that, and 500 at most.
const PODS_MAX: usize = 4096;
/// Pods asked for at once.
const PAGE: usize = 250;
/// A list of a node's pods takes the API server some milliseconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The server ends a watch after so long; a connection that has died unseen is noticed by then too.
const WATCH_SECONDS: u64 = 240;
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS + 30);
/// How long a command waits for the pods; without them its names are poorer, not wrong.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// Pauses after failures, the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The pods as they are known.
#[derive(Clone, Debug)]
pub struct PodWatch {
    /// The latest; none until the first list is there.
    pub pods: watch::Receiver<Arc<Pods>>,
    problem: watch::Receiver<Option<Arc<str>>>,
}

impl PodWatch {
    /// Why pods are not known, or not up to date, if that is so.
    #[must_use]
    pub fn problem(&self) -> Option<Arc<str>> {
        self.problem.borrow().clone()
    }
}

/// Whether the settings ask for pods.
///
/// # Errors
///
/// They do, and something that it needs is not given.
pub fn reads_pods(settings: &KubernetesSettings) -> Result<bool> {
    Ok(target(settings)?.is_some())
}

/// Starts to learn pods if the settings say so.
///
/// # Errors
///
/// As [`reads_pods`].
pub fn watch_pods(settings: &KubernetesSettings) -> Result<Option<PodWatch>> {
    let target = target(settings)?;
    Ok(target.map(|target| start(target, Backoff::new(PAUSES))))
}

fn target(settings: &KubernetesSettings) -> Result<Option<Target>> {
    Target::from(settings, |name| std::env::var(name).ok())
}

fn start(target: Target, backoff: Backoff) -> PodWatch {
    let (sender, pods) = watch::channel(Arc::default());
    let first = "pods have not been read from Kubernetes yet";
    let (problem_sender, problem) = watch::channel(Some(first.into()));
    tokio::spawn(run(Api::new(target), sender, problem_sender, backoff));
    PodWatch { pods, problem }
}

/// The pods as they are now, for a command that ends; `None` if the settings do not ask for them.
///
/// # Errors
///
/// They cannot be had within `deadline`.
pub async fn pods_now(settings: &KubernetesSettings, deadline: Duration) -> Result<Option<Pods>> {
    let Some(target) = target(settings)? else {
        return Ok(None);
    };
    let api = Api::new(target);
    let listed = timeout(deadline, list(&api)).await;
    let known = listed.unwrap_or_else(|_| bail!("no answer within {deadline:?}"))?;
    Ok(Some(known.pods()))
}

/// Runs until the pods are no longer needed.
async fn run(
    api: Api,
    pods: watch::Sender<Arc<Pods>>,
    problem: watch::Sender<Option<Arc<str>>>,
    mut backoff: Backoff,
) {
    let mut is_told = false;
    loop {
        let ended = tokio::select! {
            ended = follow(&api, &pods, &problem, &mut backoff, &mut is_told) => ended,
            () = pods.closed() => return,
        };
        if let Err(error) = ended {
            let text = format!("pods cannot be read from Kubernetes: {error:#}");
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(known = pods.borrow().len(), "{text}; trying again");
            }
            problem.send_replace(Some(text.into()));
        }
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            () = pods.closed() => return,
        }
    }
}

/// Lists and then watches, until the list is too old to go on from.
async fn follow(
    api: &Api,
    pods: &watch::Sender<Arc<Pods>>,
    problem: &watch::Sender<Option<Arc<str>>>,
    backoff: &mut Backoff,
    is_told: &mut bool,
) -> Result<()> {
    let listed = timeout(LIST_TIMEOUT, list(api)).await;
    let mut known = listed.unwrap_or_else(|_| bail!("no list within {LIST_TIMEOUT:?}"))?;
    publish(pods, &known);
    problem.send_replace(None);
    if std::mem::take(is_told) {
        tracing::info!(
            known = known.by_uid.len(),
            "pods are read from Kubernetes again"
        );
    }
    loop {
        let query = format!(
            "&watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
            api::encode(&known.version)
        );
        let mut lines = timeout(LIST_TIMEOUT, api.lines(&query))
            .await
            .unwrap_or_else(|_| bail!("no watch within {LIST_TIMEOUT:?}"))?;
        let events = apply_all(&mut lines, &mut known, pods);
        let events = timeout(WATCH_TIMEOUT, events)
            .await
            .unwrap_or_else(|_| bail!("the watch did not end within {WATCH_TIMEOUT:?}"))?;
        match events {
            None => {
                tracing::debug!("the version of the watch has expired; pods are listed anew");
                return Ok(());
            }
            Some(0) => sleep(backoff.pause()).await, // a server that ends every watch at once
            Some(_) => backoff.reset(),
        }
    }
}

/// Takes events until the watch ends; returns how many, `None` if it cannot go on from here.
async fn apply_all(
    lines: &mut Lines,
    known: &mut Known,
    pods: &watch::Sender<Arc<Pods>>,
) -> Result<Option<u64>> {
    let mut events = 0;
    while let Some(line) = lines.next().await? {
        match known.apply(Event::parse(&line)?)? {
            Applied::Changed => publish(pods, known),
            Applied::Same => {}
            Applied::Expired => return Ok(None),
        }
        events += 1;
    }
    Ok(Some(events))
}

fn publish(pods: &watch::Sender<Arc<Pods>>, known: &Known) {
    let now = known.pods();
    pods.send_if_modified(|current| {
        let is_new = **current != now;
        if is_new {
            *current = Arc::new(now);
        }
        is_new
    });
}

/// What an event has done.
enum Applied {
    Changed,
    Same,
    /// The version is too old to go on from.
    Expired,
}

impl Applied {
    fn from_change(has_changed: bool) -> Self {
        if has_changed {
            Self::Changed
        } else {
            Self::Same
        }
    }
}

/// Pods and the version from which a watch goes on.
#[derive(Debug, Default)]
struct Known {
    by_uid: HashMap<String, Pod>,
    version: String,
}

impl Known {
    fn apply(&mut self, event: Event) -> Result<Applied> {
        match event {
            Event::Is { uid, pod, version } => {
                self.version = version;
                let known = self.by_uid.get(&uid);
                let is_new = known != Some(&*pod);
                if known.is_some() || self.by_uid.len() < PODS_MAX {
                    self.by_uid.insert(uid, *pod);
                }
                Ok(Applied::from_change(is_new))
            }
            Event::Gone { uid, version } => {
                self.version = version;
                Ok(Applied::from_change(self.by_uid.remove(&uid).is_some()))
            }
            Event::Bookmark { version } => {
                self.version = version;
                Ok(Applied::Same)
            }
            Event::Expired => Ok(Applied::Expired),
            Event::Failed(reason) => Err(anyhow!("the watch failed: {reason}")),
        }
    }

    fn pods(&self) -> Pods {
        let mut pods = Pods::default();
        for (uid, pod) in &self.by_uid {
            pods.insert(uid.clone(), pod.clone());
        }
        pods
    }
}

async fn list(api: &Api) -> Result<Known> {
    let mut known = Known::default();
    let mut next = String::new();
    // The server may give less than a page at a time, but not for ever.
    for _ in 0..PODS_MAX / PAGE * 2 {
        let page = api.page(&format!("&limit={PAGE}{next}")).await?;
        let page = List::parse(&page)?;
        known
            .by_uid
            .extend(page.pods.into_iter().take(PODS_MAX - known.by_uid.len()));
        known.version = page.version;
        if page.next.is_empty() || known.by_uid.len() >= PODS_MAX {
            return Ok(known);
        }
        next = format!("&continue={}", api::encode(&page.next));
    }
    bail!("the list of pods has no end")
}

#[cfg(test)]
mod tests;
