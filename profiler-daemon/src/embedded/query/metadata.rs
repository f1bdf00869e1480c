//! Services, their instances and endpoints; the health of the OAP.

use std::collections::BTreeSet;

use async_graphql::{Context, Enum, ID, Object, Result, SimpleObject};

use super::super::store::InstanceRecord;
use super::super::task::{endpoint_id, endpoint_names, instance_id, service_id, service_name};
use super::long::Long;
use super::time::Duration;
use super::{LIST, on_store};
use crate::model::clock::unix_ms_now;

/// The only layer there is: services that agents report.
pub(super) const LAYER: &str = "GENERAL";

#[derive(Debug, Default)]
pub(super) struct MetadataQuery;

#[derive(Debug, SimpleObject)]
struct Service {
    id: ID,
    name: String,
    group: String,
    short_name: String,
    layers: Vec<String>,
    normal: Option<bool>,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum Language {
    Unknown,
    Java,
    Dotnet,
    Nodejs,
    Python,
    Ruby,
    Go,
    Lua,
    Php,
}

#[derive(Debug, SimpleObject)]
pub(super) struct Attribute {
    name: String,
    value: String,
}

#[derive(Debug, SimpleObject)]
struct ServiceInstance {
    id: ID,
    name: String,
    attributes: Vec<Attribute>,
    language: Language,
    #[graphql(name = "instanceUUID")]
    instance_uuid: String,
}

#[derive(Debug, SimpleObject)]
struct Endpoint {
    id: ID,
    name: String,
}

#[derive(Debug, SimpleObject)]
struct EndpointInfo {
    id: ID,
    name: String,
    service_id: ID,
    service_name: String,
}

#[derive(Debug, SimpleObject)]
struct TimeInfo {
    timezone: Option<String>,
    current_timestamp: Option<Long>,
}

#[derive(Debug, SimpleObject)]
struct HealthStatus {
    /// Zero is healthy.
    score: i32,
    details: Option<String>,
}

#[Object]
impl MetadataQuery {
    async fn list_layers(&self) -> Vec<&str> {
        vec![LAYER]
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn list_services(
        &self,
        context: &Context<'_>,
        layer: Option<String>,
    ) -> Result<Vec<Service>> {
        if layer.is_some_and(|layer| layer != LAYER) {
            return Ok(Vec::new());
        }
        let names = service_names(context).await?;
        Ok(names.into_iter().map(Service::of).collect())
    }

    /// All services, or those of a group; what `swctl service list` asks for.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_all_services(
        &self,
        context: &Context<'_>,
        #[graphql(name = "duration")] _duration: Duration,
        group: Option<String>,
    ) -> Result<Vec<Service>> {
        let names = service_names(context).await?;
        let services = names.into_iter().map(Service::of);
        let group = group.unwrap_or_default();
        Ok(services
            .filter(|service| group.is_empty() || service.group == group)
            .collect())
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_service(
        &self,
        context: &Context<'_>,
        service_id: String,
    ) -> Result<Option<Service>> {
        let name = service_name(&service_id).unwrap_or_default();
        known_service(context, name).await
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn find_service(
        &self,
        context: &Context<'_>,
        service_name: String,
    ) -> Result<Option<Service>> {
        known_service(context, service_name).await
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn list_instances(
        &self,
        context: &Context<'_>,
        #[graphql(name = "duration")] _duration: Duration,
        service_id: ID,
    ) -> Result<Vec<ServiceInstance>> {
        let service = service_name(&service_id).unwrap_or_default();
        let instances = on_store(context, |store| store.instances()).await?;
        let wanted = instances.into_iter().filter(|((of, _), _)| *of == service);
        Ok(wanted
            .map(|((service, name), record)| ServiceInstance::of(&service, name, record))
            .collect())
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_instance(
        &self,
        context: &Context<'_>,
        #[graphql(name = "instanceId")] id: String,
    ) -> Result<Option<ServiceInstance>> {
        let instances = on_store(context, |store| store.instances()).await?;
        let mut wanted = instances
            .into_iter()
            .filter(|((service, name), _)| instance_id(service, name) == id);
        Ok(wanted
            .next()
            .map(|((service, name), record)| ServiceInstance::of(&service, name, record)))
    }

    /// Endpoints that tasks were created for or that profiled requests had.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn find_endpoint(
        &self,
        context: &Context<'_>,
        keyword: Option<String>,
        service_id: ID,
        limit: i32,
        #[graphql(name = "duration")] _duration: Option<Duration>,
    ) -> Result<Vec<Endpoint>> {
        let service = service_name(&service_id).unwrap_or_default();
        let of = service.clone();
        let names = on_store(context, move |store| store.endpoints(&of)).await?;
        let keyword = keyword.unwrap_or_default();
        Ok(names
            .into_iter()
            .filter(|name| name.contains(&keyword))
            .take(usize::try_from(limit).unwrap_or_default())
            .map(|name| Endpoint {
                id: endpoint_id(&service, &name).into(),
                name,
            })
            .collect())
    }

    /// What an id of an endpoint stands for, whether the endpoint is known or not.
    async fn get_endpoint_info(&self, endpoint_id: ID) -> Option<EndpointInfo> {
        let (service, name) = endpoint_names(&endpoint_id)?;
        Some(EndpointInfo {
            id: endpoint_id,
            name,
            service_id: service_id(&service).into(),
            service_name: service,
        })
    }

    /// All times in answers are epoch milliseconds, so any zone will do.
    async fn get_time_info(&self) -> Option<TimeInfo> {
        Some(TimeInfo {
            timezone: Some("+0000".to_owned()),
            current_timestamp: Some(Long(unix_ms_now())),
        })
    }

    async fn check_health(&self) -> HealthStatus {
        HealthStatus {
            score: 0,
            details: Some(String::new()),
        }
    }
}

async fn known_service(context: &Context<'_>, name: String) -> Result<Option<Service>> {
    let is_known = service_names(context).await?.contains(&name);
    Ok(is_known.then(|| Service::of(name)))
}

async fn service_names(context: &Context<'_>) -> Result<BTreeSet<String>> {
    let instances = on_store(context, |store| store.instances()).await?;
    let names = instances.into_iter().map(|((service, _), _)| service);
    Ok(names.collect())
}

impl Service {
    /// `group::name` names a group, as in OAP.
    fn of(name: String) -> Self {
        let (group, short_name) = name.split_once("::").unwrap_or(("", &name));
        Self {
            id: service_id(&name).into(),
            group: group.to_owned(),
            short_name: short_name.to_owned(),
            layers: vec![LAYER.to_owned()],
            normal: Some(true),
            name,
        }
    }
}

impl ServiceInstance {
    fn of(service: &str, name: String, record: InstanceRecord) -> Self {
        let id = instance_id(service, &name);
        let language = record.properties.get("language");
        Self {
            language: language.map_or(Language::Unknown, |text| Language::of(text)),
            attributes: record
                .properties
                .into_iter()
                .filter(|(name, _)| name != "language")
                .map(|(name, value)| Attribute { name, value })
                .collect(),
            instance_uuid: id.clone(),
            id: id.into(),
            name,
        }
    }
}

impl Language {
    fn of(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "java" => Self::Java,
            "dotnet" => Self::Dotnet,
            "nodejs" => Self::Nodejs,
            "python" => Self::Python,
            "ruby" => Self::Ruby,
            "go" => Self::Go,
            "lua" => Self::Lua,
            "php" => Self::Php,
            _ => Self::Unknown,
        }
    }
}
