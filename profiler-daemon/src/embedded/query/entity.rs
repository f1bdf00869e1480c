//! What a figure is of: a service, an instance, an endpoint, or a relation of two.

use async_graphql::{Enum, InputObject};

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
#[graphql(rename_items = "PascalCase")]
pub(super) enum Scope {
    All,
    Service,
    ServiceInstance,
    Endpoint,
    Process,
    ServiceRelation,
    ServiceInstanceRelation,
    EndpointRelation,
    ProcessRelation,
}

#[derive(Debug, InputObject)]
pub(super) struct Entity {
    scope: Option<Scope>,
    service_name: Option<String>,
    normal: Option<bool>,
    service_instance_name: Option<String>,
    endpoint_name: Option<String>,
    process_name: Option<String>,
    dest_service_name: Option<String>,
    dest_normal: Option<bool>,
    dest_service_instance_name: Option<String>,
    dest_endpoint_name: Option<String>,
    dest_process_name: Option<String>,
}
