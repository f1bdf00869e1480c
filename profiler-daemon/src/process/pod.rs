//! The pods of this node, as [`crate::kubernetes`] has learned them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cgroup::{Cgroup, Container};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name in its namespace.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// The workload that made it, such as a deployment.
    pub workload: Option<String>,
    /// IP address, `None` before it has one.
    pub ip: Option<String>,
    /// Whether it is to be profiled, if its owner says so.
    pub may_profile: Option<bool>,
    /// Labels, for rules.
    pub labels: BTreeMap<String, String>,
    /// Names of its containers by id.
    pub containers: HashMap<String, String>,
}

/// Pods by their id (`metadata.uid`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods(HashMap<String, Arc<Pod>>);

impl Pods {
    /// The pod that a control group belongs to. The group of a pod that the kubelet runs from a file
    /// has another id than the API server gives; its containers tell.
    #[must_use]
    pub fn find(&self, cgroup: &Cgroup) -> Option<&Arc<Pod>> {
        let by_id = cgroup.pod_uid.as_ref().and_then(|uid| self.0.get(uid));
        by_id.or_else(|| {
            let Some(Container::Id(id)) = cgroup.container.as_ref().filter(|_| !cgroup.is_users)
            else {
                return None;
            };
            let mut pods = self.0.values();
            pods.find(|pod| pod.containers.contains_key(id))
        })
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, uid: String, pod: Pod) {
        self.0.insert(uid, Arc::new(pod));
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.0.values().map(Arc::as_ref)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
