//! Asks which instances of a service report to an OAP, and what they say of themselves.

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use super::GraphqlClient;
use super::spans::{Dialect, between};
use crate::embedded::task::service_id;
use crate::model::name::{SERVICE_MAX, cut};

const INSTANCES: &str = "query($d: Duration!, $s: ID!){ \
    it: listInstances(duration: $d, serviceId: $s){ name attributes{ name value } } }";

/// An instance, with its properties.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ListedInstance {
    /// Its name.
    pub name: String,
    attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Attribute {
    name: String,
    value: String,
}

impl ListedInstance {
    /// What it says under a name.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let mut named = self.attributes.iter().filter(|it| it.name == name);
        named.next().map(|it| it.value.as_str())
    }
}

impl GraphqlClient {
    /// Instances of a service that were heard of between two times, epoch milliseconds.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub async fn instances(
        &self,
        service: &str,
        unix_ms: (i64, i64),
        dialect: Dialect,
    ) -> Result<Vec<ListedInstance>> {
        let service_id = service_id(cut(service, SERVICE_MAX));
        let variables = json!({ "d": between(unix_ms, dialect), "s": service_id });
        self.query(INSTANCES, variables).await
    }
}

/// Reads a body as the answer.
#[cfg(feature = "fuzzing")]
pub(super) fn read(body: &[u8]) {
    if let Ok(list) = super::parse_answer::<Vec<ListedInstance>>(body) {
        list.iter()
            .filter_map(|it| it.attribute("hostname"))
            .for_each(drop);
    }
}
