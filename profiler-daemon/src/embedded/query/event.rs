//! Events and alarms of agents: accepted and forgotten, so there are none to list.

use async_graphql::{Enum, ID, InputObject, Object, SimpleObject};

use super::entity::Scope;
use super::long::Long;
use super::page::{Order, Pagination};
use super::span::KeyValue;
use super::time::Duration;

#[derive(Debug, Default)]
pub(super) struct EventQuery;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(rename_items = "PascalCase")]
enum EventType {
    Normal,
    Error,
}

#[derive(Debug, SimpleObject)]
struct Source {
    service: Option<String>,
    service_instance: Option<String>,
    endpoint: Option<String>,
}

#[derive(Debug, SimpleObject)]
struct Event {
    uuid: String,
    source: Source,
    name: String,
    #[graphql(name = "type")]
    kind: EventType,
    message: Option<String>,
    parameters: Option<Vec<KeyValue>>,
    start_time: Long,
    end_time: Option<Long>,
    layer: String,
}

#[derive(Debug, SimpleObject)]
struct Events {
    events: Vec<Event>,
}

#[derive(Debug, InputObject)]
struct SourceInput {
    service: Option<String>,
    service_instance: Option<String>,
    endpoint: Option<String>,
}

#[derive(Debug, InputObject)]
struct EventQueryCondition {
    uuid: Option<String>,
    source: Option<SourceInput>,
    name: Option<String>,
    #[graphql(name = "type")]
    kind: Option<EventType>,
    time: Option<Duration>,
    order: Option<Order>,
    layer: Option<String>,
    paging: Pagination,
}

#[derive(Debug, SimpleObject)]
struct AlarmMessage {
    start_time: Long,
    scope: Option<Scope>,
    id: ID,
    message: String,
    events: Vec<Event>,
    tags: Vec<KeyValue>,
}

#[derive(Debug, SimpleObject)]
struct Alarms {
    msgs: Vec<AlarmMessage>,
}

#[derive(Debug, InputObject)]
struct AlarmTag {
    key: String,
    value: Option<String>,
}

#[Object]
impl EventQuery {
    async fn query_events(
        &self,
        #[graphql(name = "condition")] _condition: Option<EventQueryCondition>,
    ) -> Option<Events> {
        Some(Events { events: Vec::new() })
    }

    async fn get_alarm(
        &self,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "scope")] _scope: Option<Scope>,
        #[graphql(name = "keyword")] _keyword: Option<String>,
        #[graphql(name = "paging")] _paging: Pagination,
        #[graphql(name = "tags")] _tags: Option<Vec<Option<AlarmTag>>>,
    ) -> Option<Alarms> {
        Some(Alarms { msgs: Vec::new() })
    }

    async fn query_alarm_tag_autocomplete_keys(
        &self,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    async fn query_alarm_tag_autocomplete_values(
        &self,
        #[graphql(name = "tagKey")] _tag_key: String,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}
