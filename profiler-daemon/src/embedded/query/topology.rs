//! Which services call which, and which lie above which: not looked at here, so maps are empty.

use async_graphql::{Enum, ID, Object, SimpleObject};

use super::debug::DebuggingTrace;
use super::metadata::LAYER;
use super::time::Duration;

#[derive(Debug, Default)]
pub(super) struct TopologyQuery;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum DetectPoint {
    Client,
    Server,
    Proxy,
}

#[derive(Debug, SimpleObject)]
struct Call {
    source: ID,
    source_components: Vec<ID>,
    target: ID,
    target_components: Vec<ID>,
    id: ID,
    detect_points: Vec<DetectPoint>,
}

#[derive(Debug, SimpleObject)]
struct Node {
    id: ID,
    name: String,
    #[graphql(name = "type")]
    kind: Option<String>,
    is_real: bool,
    layers: Vec<String>,
}

#[derive(Debug, SimpleObject)]
struct ServiceInstanceNode {
    id: ID,
    name: String,
    service_id: ID,
    service_name: String,
    #[graphql(name = "type")]
    kind: Option<String>,
    is_real: bool,
}

#[derive(Debug, SimpleObject)]
struct EndpointNode {
    id: ID,
    name: String,
    service_id: ID,
    service_name: String,
    #[graphql(name = "type")]
    kind: Option<String>,
    is_real: bool,
}

#[derive(Debug, SimpleObject)]
struct ProcessNode {
    id: ID,
    service_id: ID,
    service_name: String,
    service_instance_id: ID,
    service_instance_name: String,
    name: String,
    is_real: bool,
}

#[derive(Debug, Default, SimpleObject)]
struct Topology {
    nodes: Vec<Node>,
    calls: Vec<Call>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, Default, SimpleObject)]
struct ServiceInstanceTopology {
    nodes: Vec<ServiceInstanceNode>,
    calls: Vec<Call>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, Default, SimpleObject)]
struct EndpointTopology {
    nodes: Vec<EndpointNode>,
    calls: Vec<Call>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, Default, SimpleObject)]
struct ProcessTopology {
    nodes: Vec<ProcessNode>,
    calls: Vec<Call>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, SimpleObject)]
struct HierarchyRelatedService {
    id: ID,
    name: String,
    layer: String,
    normal: bool,
}

#[derive(Debug, SimpleObject)]
struct HierarchyServiceRelation {
    upper_service: HierarchyRelatedService,
    lower_service: HierarchyRelatedService,
}

#[derive(Debug, SimpleObject)]
struct ServiceHierarchy {
    relations: Vec<HierarchyServiceRelation>,
}

#[derive(Debug, SimpleObject)]
struct HierarchyRelatedInstance {
    id: ID,
    name: String,
    service_id: ID,
    service_name: String,
    layer: String,
    normal: bool,
}

#[derive(Debug, SimpleObject)]
struct HierarchyInstanceRelation {
    upper_instance: HierarchyRelatedInstance,
    lower_instance: HierarchyRelatedInstance,
}

#[derive(Debug, SimpleObject)]
struct InstanceHierarchy {
    relations: Vec<HierarchyInstanceRelation>,
}

#[derive(Debug, SimpleObject)]
struct LayerLevel {
    layer: String,
    level: i32,
}

#[Object]
impl TopologyQuery {
    async fn get_global_topology(
        &self,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "layer")] _layer: Option<String>,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<Topology> {
        Some(Topology::default())
    }

    async fn get_service_topology(
        &self,
        #[graphql(name = "serviceId")] _service_id: ID,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<Topology> {
        Some(Topology::default())
    }

    async fn get_services_topology(
        &self,
        #[graphql(name = "serviceIds")] _service_ids: Vec<ID>,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<Topology> {
        Some(Topology::default())
    }

    async fn get_service_instance_topology(
        &self,
        #[graphql(name = "clientServiceId")] _client_service_id: ID,
        #[graphql(name = "serverServiceId")] _server_service_id: ID,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<ServiceInstanceTopology> {
        Some(ServiceInstanceTopology::default())
    }

    async fn get_endpoint_dependencies(
        &self,
        #[graphql(name = "endpointId")] _endpoint_id: ID,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<EndpointTopology> {
        Some(EndpointTopology::default())
    }

    async fn get_process_topology(
        &self,
        #[graphql(name = "serviceInstanceId")] _service_instance_id: ID,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<ProcessTopology> {
        Some(ProcessTopology::default())
    }

    async fn get_service_hierarchy(
        &self,
        #[graphql(name = "serviceId")] _service_id: ID,
        #[graphql(name = "layer")] _layer: String,
    ) -> ServiceHierarchy {
        ServiceHierarchy {
            relations: Vec::new(),
        }
    }

    async fn get_instance_hierarchy(
        &self,
        #[graphql(name = "instanceId")] _instance_id: ID,
        #[graphql(name = "layer")] _layer: String,
    ) -> InstanceHierarchy {
        InstanceHierarchy {
            relations: Vec::new(),
        }
    }

    /// The only layer is above and below nothing.
    async fn list_layer_levels(&self) -> Vec<LayerLevel> {
        vec![LayerLevel {
            layer: LAYER.to_owned(),
            level: 0,
        }]
    }
}
