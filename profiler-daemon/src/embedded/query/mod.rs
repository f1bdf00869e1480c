//! The query side of the built-in OAP: GraphQL for SkyWalking's UI and `swctl`.
//!
//! In:  `POST /graphql`, `GET /healthcheck` over HTTP/1.1, plain
//! Out: tasks, profiled requests, their call trees, services; tasks that users create
//! Lost: nothing; what is asked for beyond a limit is refused with the limit in the text
//!
//! | file | has |
//! |---|---|
//! | `server` | HTTP: limits, token, time |
//! | `bound` | the size of a query, before it is validated |
//! | `budget` | fields and time of an answer |
//! | `threads` | threads that compute answers |
//! | `task` | tasks and their logs |
//! | `trace` | profiled requests and their analysis |
//! | `search` | traces, profiled or not |
//! | `span` | spans of both |
//! | `component` | names of the libraries that spans are of |
//! | `metadata` | services, instances, endpoints, health |
//! | `lifetime` | how long data is kept |
//! | `dashboard` | menu and dashboards of SkyWalking's UI |
//! | `metric`, `event`, `log`, `topology`, `rover` | what is not kept here: empty answers |
//! | `time`, `page`, `entity`, `debug` | arguments and fields that many have |
//! | `long` | the scalar `Long` |
//!
//! Names, arguments and types are those of OAP 10.1.0 (apache/skywalking-query-protocol), for the part that
//! trace profiling, SkyWalking's UI and `swctl` ask for; `tests/fixtures/query.graphqls` is the whole of it. What differs:
//!
//! - of a segment, at most 16 KiB of spans are kept;
//! - what newer pages and commands ask for is there: `getRecordsTTL`, `getMetricsTTL`, `hasQueryTracesV2Support`, `coldStage` of times;
//! - the time range of `listInstances`, `getAllServices`, and of `findEndpoint` (since OAP 10.2), is not looked at: all that is known
//!   is listed.

mod bound;
mod budget;
mod component;
mod dashboard;
mod debug;
mod entity;
mod event;
mod lifetime;
mod log;
mod long;
mod metadata;
mod metric;
mod page;
mod rover;
mod search;
pub(super) mod server;
mod span;
mod task;
mod threads;
mod time;
mod topology;
mod trace;

use std::sync::Arc;

use async_graphql::{Context, EmptySubscription, MergedObject, Object, Schema, SchemaBuilder};
use tokio::sync::Semaphore;

use super::storage::StorageError;
use super::store::Store;

/// Most fields of one query, as in OAP.
const COMPLEXITY_MAX: usize = 3000;
/// Fields that a list from the store counts as: 29 of them fit into one query. Each is read, and kept until all are
/// there.
const LIST: usize = 100;
/// An introspection by usual tools is 13 deep.
const DEPTH_MAX: usize = 20;
/// Reads of the store that run at a time: each takes a thread, and an analysis takes it for seconds.
const READS_MAX: usize = 2;

/// What OAP's version begins with decides which operations `swctl` uses.
const VERSION: &str = concat!("10.1.0-profilerd-", env!("CARGO_PKG_VERSION"));

type QuerySchema = Schema<Query, Mutation, EmptySubscription>;

/// All questions.
#[derive(Debug, Default, MergedObject)]
struct Query(
    Version,
    metadata::MetadataQuery,
    task::TaskQuery,
    trace::TraceQuery,
    search::SearchQuery,
    dashboard::DashboardQuery,
    lifetime::LifetimeQuery,
    metric::MetricQuery,
    event::EventQuery,
    log::LogQuery,
    topology::TopologyQuery,
    rover::RoverQuery,
);

/// All that changes something.
#[derive(Debug, Default, MergedObject)]
struct Mutation(Version, task::TaskMutation, dashboard::DashboardMutation);

/// Both root types have this field.
#[derive(Debug, Default)]
struct Version;

#[Object]
impl Version {
    /// The OAP whose operations these are, and ours.
    async fn version(&self) -> Option<&str> {
        Some(VERSION)
    }
}

type QueryBuilder = SchemaBuilder<Query, Mutation, EmptySubscription>;

fn builder() -> QueryBuilder {
    Schema::build(Query::default(), Mutation::default(), EmptySubscription)
        .limit_complexity(COMPLEXITY_MAX)
        .limit_depth(DEPTH_MAX)
        .extension(budget::Budgets {
            time: server::ANSWER_TIMEOUT,
        })
}

fn schema(store: Arc<Store>) -> QuerySchema {
    let reads = Arc::new(Semaphore::new(READS_MAX));
    builder().data(store).data(reads).finish()
}

/// The schema as text.
#[must_use]
pub fn sdl() -> String {
    builder().finish().sdl()
}

/// Uses the store on a thread that may wait. Goes on to its end, and keeps its place, when the asker has left.
async fn on_store<T, E>(
    context: &Context<'_>,
    work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StorageError> + Send + 'static,
{
    // The schema is never made without both.
    let store: &Arc<Store> = context.data_unchecked();
    let reads: &Arc<Semaphore> = context.data_unchecked();
    let place = Arc::clone(reads).acquire_owned().await;
    let place = place.map_err(StorageError::new)?;
    let work = move |store: &Store| {
        let result = work(store);
        drop(place);
        result
    };
    store.run(work).await
}
