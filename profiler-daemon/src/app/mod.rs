//! Wires the stages: the only module that knows them all.
//!
//! ```text
//!  control (tokio)  --Command-->  capture (thread)  --Work-->  resolve (thread)
//!        ^                                                          |
//!        +------------------------- PipelineEvent ------------------+
//! ```

mod agent_instance;
mod binding;
mod budget;
mod capture;
mod control;
mod discovery;
mod fitness;
mod inspect;
mod inspection;
mod namer;
mod neighbour;
mod notify;
mod oap_query;
mod open_request;
mod overhead;
mod pipeline;
mod privilege;
mod record;
mod relay;
mod resolve;
mod search;
mod signals;
mod statistics;
mod table;
mod turns;
mod worker;

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result};
use caps::Capability;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::config::{Config, ConfigSource, Secret};
use crate::doctor;
use crate::embedded::{DataDir, EmbeddedOap};
use crate::limit;
use crate::metrics;
use crate::model::ProfileTask;
use crate::model::clock::unix_ms_now;
use crate::oap::OapConfig;
use crate::state::{SavedTask, StateFolder, TaskJournal, keep_token};
use control::Start;
use statistics::StatisticsKeeper;

pub use discovery::{EndpointsRequest, EndpointsShown, endpoints};
pub use record::record;
pub use signals::EarlyReload;
pub use table::table_now;

/// How long a clean exit may take to deliver what is left.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Where `standalone` keeps its journal, below its data: `daemon` may have one in the same folder.
const JOURNAL_DIR: &str = "journal";

/// Ports below it need `CAP_NET_BIND_SERVICE`, unless the host says otherwise.
const FIRST_ORDINARY_PORT: u16 = 1024;

/// Runs the daemon against the OAPs of the configuration until a signal ends it.
///
/// # Errors
///
/// It cannot start: privileges, configuration, kernel.
pub fn run_daemon(config: Config, source: ConfigSource, early_reload: EarlyReload) -> Result<()> {
    require_unless_it_waits(&config)?;
    let mut oap = config.oap_config();
    oap.check()?;
    let folder = config.state_dir.as_deref().map(StateFolder::open);
    let journal = match folder.transpose()? {
        Some(folder) => Some(TaskJournal::open(folder, unix_ms_now())?),
        None => None,
    };
    oap.spool = config
        .state_dir
        .as_ref()
        .map(|folder| (folder.join("spool"), u64::from(config.limits.spool_bytes)));
    oap.known_tasks = known_tasks(journal.as_ref());
    let statistics = statistics(&config);
    let metrics = config.metrics.map(metrics::listen).transpose()?;
    privilege::restrict(&[]);
    // After the keeper of statistics, which is one of us as well.
    let mark = neighbour::announce(&oap.backends);
    block_on(control::run(Start {
        early_reload,
        config,
        source,
        oap,
        journal,
        mark,
        statistics,
        metrics,
    }))
}

fn require_unless_it_waits(config: &Config) -> Result<()> {
    match fitness::waits(config) {
        true => Ok(()),
        false => doctor::require(),
    }
}

/// Runs the daemon together with an OAP of its own.
///
/// # Errors
///
/// As [`run_daemon`]; or an address cannot be listened on, or data or token not used.
pub fn run_standalone(
    config: Config,
    source: ConfigSource,
    early_reload: EarlyReload,
    listen: SocketAddr,
    http_listen: Option<SocketAddr>,
) -> Result<()> {
    require_unless_it_waits(&config)?;
    let mut ports = [Some(listen), http_listen].into_iter().flatten();
    let is_low_port = ports.any(|it| (1..FIRST_ORDINARY_PORT).contains(&it.port()));
    let also: &[Capability] = if is_low_port {
        &[Capability::CAP_NET_BIND_SERVICE]
    } else {
        &[]
    };
    let token = standalone_token(&config)?;
    let statistics = statistics(&config);
    let metrics = config.metrics.map(metrics::listen).transpose()?;
    privilege::restrict(also);
    block_on(async move {
        let embedded = config.embedded_config(listen, http_listen, token.clone());
        let data = embedded.data.clone();
        let embedded = EmbeddedOap::start_with(embedded).await?;
        let address = embedded.local_addr();
        tracing::info!(%address, "the built-in OAP listens");
        if let Some(address) = embedded.query_addr() {
            tracing::info!(%address, "the built-in OAP answers GraphQL");
        }
        let mark = neighbour::announce(&[address.to_string()]);
        // The database's lock keeps a second one out of the folder.
        let journal = match &data {
            DataDir::Directory(dir) => Some(StateFolder::open(&dir.join(JOURNAL_DIR))?),
            DataDir::Memory => None, // its tasks end with it
        };
        let journal = journal.map(|folder| TaskJournal::open(folder, unix_ms_now()));
        let journal = journal.transpose()?;
        let client = OapConfig {
            token: token.into(),
            known_tasks: known_tasks(journal.as_ref()),
            ..OapConfig::embedded(address.to_string(), embedded.store().created())
        };
        let result = control::run(Start {
            early_reload,
            config,
            source,
            oap: client,
            journal,
            mark,
            statistics,
            metrics,
        });
        let result = result.await;
        embedded.shutdown().await;
        result
    })
}

/// Tasks that a daemon before has received.
fn known_tasks(journal: Option<&TaskJournal>) -> Vec<ProfileTask> {
    let saved = journal.into_iter().flat_map(TaskJournal::tasks);
    saved.map(SavedTask::task).collect()
}

/// The token that callers of the built-in OAP must send. It is made if there is none yet.
fn standalone_token(config: &Config) -> Result<Option<String>> {
    if let Some(Secret(token)) = &config.oap.authentication {
        tracing::info!("callers of the built-in OAP need the token of oap.authentication");
        return Ok(Some(token.clone()));
    }
    let Some(file) = config.token_files().into_iter().next() else {
        tracing::warn!(
            "the built-in OAP asks for no token: everybody who reaches its ports, including every user of \
             this host, can create profile tasks and read stacks and URLs of other users' processes"
        );
        return Ok(None);
    };
    let token = keep_token(&file)?;
    tracing::info!(
        token_file = %file.display(),
        "callers of the built-in OAP need the token in this file; `profilerd task` uses it if it may read the file"
    );
    Ok(Some(token))
}

/// What the overhead guard measures the programs by; nothing if its budget is all of the host.
fn statistics(config: &Config) -> Option<StatisticsKeeper> {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    if config.limits.max_cpu_percent as usize >= 100 * cpus {
        return None;
    }
    StatisticsKeeper::start()
        .inspect_err(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "the time in BPF programs cannot be measured: limits.max_cpu_percent covers the daemon alone"
            );
        })
        .ok()
}

/// Runs to the end, on threads of its own.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    // Before the first server listens: each of its clients takes a descriptor.
    limit::raise_open_files();
    limit::check_threads()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the asynchronous runtime")?;
    let result = runtime.block_on(work);
    // A look at a process may be under way, and take seconds.
    runtime.shutdown_background();
    result
}

/// From now on a first SIGTERM or SIGINT is for who waits for it, and a second one ends the program at once, whatever its threads
/// do.
///
/// # Errors
///
/// The system refuses.
fn end_at_second_signal() -> Result<()> {
    let has_come = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first one only sets the flag.
        register_conditional_shutdown(signal, 128 + signal, Arc::clone(&has_come))
            .and_then(|_| register(signal, Arc::clone(&has_come)))
            .with_context(|| format!("failed to catch signal {signal}"))?;
    }
    Ok(())
}
