//! How long data is kept, in days. Since OAP 10.2; pages offer no older times.

use std::sync::Arc;
use std::time::Duration;

use async_graphql::{Context, Object, SimpleObject};

use super::super::store::Store;

/// There are no slower disks that data is moved to.
const NO_COLD_STAGE: i32 = -1;
const DAY: Duration = Duration::from_hours(24);

#[derive(Debug, Default)]
pub(super) struct LifetimeQuery;

#[derive(Debug, SimpleObject)]
#[graphql(name = "RecordsTTL")]
struct RecordsLifetime {
    normal: i32,
    trace: i32,
    zipkin_trace: i32,
    log: i32,
    browser_error_log: i32,
    cold_normal: i32,
    cold_trace: i32,
    cold_zipkin_trace: i32,
    cold_log: i32,
    cold_browser_error_log: i32,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "MetricsTTL")]
struct MetricsLifetime {
    metadata: i32,
    minute: i32,
    hour: i32,
    day: i32,
    cold_minute: i32,
    cold_hour: i32,
    cold_day: i32,
}

/// What the store keeps a task for, a day at least.
fn days(context: &Context<'_>) -> i32 {
    // The schema is never made without it.
    let store: &Arc<Store> = context.data_unchecked();
    let days = store.limits().retention.as_secs() / DAY.as_secs();
    i32::try_from(days).unwrap_or(i32::MAX).max(1)
}

#[Object]
impl LifetimeQuery {
    #[graphql(name = "getRecordsTTL")]
    async fn records(&self, context: &Context<'_>) -> Option<RecordsLifetime> {
        let days = days(context);
        Some(RecordsLifetime {
            normal: days,
            trace: days,
            zipkin_trace: days,
            log: days,
            browser_error_log: days,
            cold_normal: NO_COLD_STAGE,
            cold_trace: NO_COLD_STAGE,
            cold_zipkin_trace: NO_COLD_STAGE,
            cold_log: NO_COLD_STAGE,
            cold_browser_error_log: NO_COLD_STAGE,
        })
    }

    #[graphql(name = "getMetricsTTL")]
    async fn metrics(&self, context: &Context<'_>) -> Option<MetricsLifetime> {
        let days = days(context);
        Some(MetricsLifetime {
            metadata: days,
            minute: days,
            hour: days,
            day: days,
            cold_minute: NO_COLD_STAGE,
            cold_hour: NO_COLD_STAGE,
            cold_day: NO_COLD_STAGE,
        })
    }
}
