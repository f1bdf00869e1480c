//! A look for people: `profilerd endpoints`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register;

use super::super::privilege;
use super::super::table::{logged_table, require_service, wanted_process};
use super::look::{Look, Looked};
use crate::config::Config;
use crate::model::{EndpointFigures, RecordTarget, Unseen, Watched};
use crate::process::table::Process;
use crate::process::{Family, NamedFrames, ProcessTable, RequestModel, Runtime};

/// Time between two looks at /proc.
const RESCAN: Duration = Duration::from_secs(1);

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointsRequest {
    /// A process with its descendants or a service; without one all that serve.
    pub target: Option<RecordTarget>,
    /// How long; without one until it is interrupted.
    pub duration: Option<Duration>,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct EndpointsShown {
    /// Figures of each endpoint.
    pub endpoints: Vec<EndpointFigures>,
    /// Of each service: `yes`, `frames: native only`, or `no`.
    pub profilable: BTreeMap<String, &'static str>,
    /// Time looked.
    pub elapsed: Duration,
    /// Requests beyond the names that are told apart.
    pub over_limit: u64,
    /// What was not seen; known at the end.
    pub unseen: Unseen,
}

/// Looks at requests and yields what was seen. `update` is given what is known, once a second.
///
/// # Errors
///
/// There is no such process or service, or the kernel refuses.
pub fn endpoints(
    config: &Config,
    request: &EndpointsRequest,
    update: &mut (dyn FnMut(&EndpointsShown) -> Result<()> + Send),
) -> Result<EndpointsShown> {
    privilege::restricted(|| run(config, request, update))
}

fn run(
    config: &Config,
    request: &EndpointsRequest,
    update: &mut (dyn FnMut(&EndpointsShown) -> Result<()> + Send),
) -> Result<EndpointsShown> {
    let mut table = super::super::block_on(async { Ok(logged_table(config).await) })?;
    table.scan()?;
    let mut whom = Whom::new(&table, request.target.as_ref())?;
    let is_over = Arc::new(AtomicBool::new(false));
    super::super::end_at_second_signal()?;
    for signal in [SIGINT, SIGTERM] {
        register(signal, Arc::clone(&is_over))
            .with_context(|| format!("failed to catch signal {signal}"))?;
    }
    let templates = Arc::new(config.templates()?);
    let mut look = Look::begin(templates, config.limits.requests_ring_bytes)?;
    let mut profilable = BTreeMap::new();
    add(&mut look, &mut whom, &table, &mut profilable);
    tracing::debug!("requests are counted");
    let mut scanned = Instant::now();
    while !is_over.load(Ordering::Relaxed)
        && request
            .duration
            .is_none_or(|duration| look.lasted() < duration)
    {
        look.step()?;
        if scanned.elapsed() < RESCAN {
            continue;
        }
        scanned = Instant::now();
        if table.scan().is_ok() {
            add(&mut look, &mut whom, &table, &mut profilable);
        }
        update(&EndpointsShown {
            endpoints: look.traffic().figures(),
            profilable: profilable.clone(),
            elapsed: look.lasted(),
            over_limit: look.traffic().over_limit(),
            unseen: Unseen::default(),
        })?;
    }
    let Looked {
        traffic,
        unseen,
        lasted,
        ..
    } = look.end();
    Ok(EndpointsShown {
        endpoints: traffic.figures(),
        profilable,
        elapsed: lasted,
        over_limit: traffic.over_limit(),
        unseen,
    })
}

fn add(
    look: &mut Look,
    whom: &mut Whom,
    table: &ProcessTable,
    profilable: &mut BTreeMap<String, &'static str>,
) {
    for watched in whom.find(table) {
        let name = &watched.service.name;
        if !profilable.contains_key(name) {
            profilable.insert(name.clone(), gets(table, &watched));
        }
        look.add(watched);
    }
}

/// What a task would get of the process.
fn gets(table: &ProcessTable, watched: &Watched) -> &'static str {
    let known = table.find(watched.process);
    let known = known.and_then(|process| process.runtime.clone());
    let runtime = match known {
        Some(runtime) => runtime,
        None => match Runtime::detect(watched.process.pid) {
            Ok(runtime) => runtime,
            Err(_) => return "no",
        },
    };
    match (runtime.request_model(), runtime.named_frames()) {
        (RequestModel::Unsupported(_), _) => "no",
        (_, NamedFrames::All) => "yes",
        (_, NamedFrames::NativeOnly(_)) => "frames: native only",
    }
}

/// Whose requests are counted.
enum Whom {
    All,
    Service(String),
    Family(Arc<crate::model::Service>, Family),
}

impl Whom {
    fn new(table: &ProcessTable, target: Option<&RecordTarget>) -> Result<Self> {
        Ok(match target {
            None => Self::All,
            Some(RecordTarget::Pid(pid)) => {
                let first = wanted_process(table, *pid)?;
                let service = Arc::new(first.identity.service.clone());
                Self::Family(service, Family::of(first.key))
            }
            Some(RecordTarget::Service(name)) => {
                require_service(table, name)?;
                Self::Service(name.clone())
            }
        })
    }

    fn find(&mut self, table: &ProcessTable) -> Vec<Watched> {
        let named = |process: &Process| Watched {
            process: process.key,
            service: Arc::new(process.identity.service.clone()),
        };
        match self {
            Self::All => table
                .iter()
                .filter(|it| it.may_serve())
                .map(named)
                .collect(),
            Self::Service(name) => table.processes_of_name(name).map(named).collect(),
            Self::Family(service, family) => {
                let members = family.update(table).into_iter();
                let watched = members.map(|process| Watched {
                    process,
                    service: Arc::clone(service),
                });
                watched.collect()
            }
        }
    }
}
