//! Settings of the connection to Kubernetes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize, Serializer};

use super::file;

/// Where pods are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesSettings {
    /// Whether to ask the API server for the pods of this node.
    pub enabled: Enabled,
    /// `https://host:port`; if not given, as `KUBERNETES_SERVICE_HOST` and `_PORT` say.
    pub api_server: Option<String>,
    /// Name of this node; if not given, as `NODE_NAME` says.
    pub node_name: Option<String>,
    /// Token of a service account. Read for each call, because it is replaced within hours.
    pub token_file: PathBuf,
    /// Certificates of the API server, in PEM.
    pub ca_file: PathBuf,
    /// Namespaces whose pods are never profiled.
    #[serde(deserialize_with = "file::section")]
    pub deny_namespaces: Vec<String>,
    /// Of pods, only those that ask for it are profiled: with `profilerd.io/profile: "true"`.
    pub only_annotated: bool,
    /// Processes of this host that are in no pod are profiled as well.
    pub host_processes: bool,
}

impl KubernetesSettings {
    /// Whether some processes are left out by these settings, beside those of pods that refuse.
    #[must_use]
    pub fn restricts(&self) -> bool {
        !self.deny_namespaces.is_empty() || self.only_annotated || !self.host_processes
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.enabled == Enabled::False && self.restricts() {
            bail!(
                "kubernetes.deny_namespaces, kubernetes.only_annotated and kubernetes.host_processes need \
                 kubernetes.enabled: set it to true, or remove them; without the API server no pod is known"
            );
        }
        Ok(())
    }
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enabled {
    /// Yes; what is missing for it is an error.
    True,
    /// No.
    #[default]
    False,
    /// If what it needs is there.
    Auto,
}

impl Enabled {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(Self::True),
            "false" => Ok(Self::False),
            "auto" => Ok(Self::Auto),
            other => Err(format!("{other:?} is not one of auto, true, false")),
        }
    }
}

impl<'de> Deserialize<'de> for Enabled {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Without quotes YAML has booleans here, and a text type takes either.
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Enabled {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::True => to.serialize_bool(true),
            Self::False => to.serialize_bool(false),
            Self::Auto => to.serialize_str("auto"),
        }
    }
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            enabled: Enabled::False,
            api_server: None,
            node_name: None,
            token_file: account.join("token"),
            ca_file: account.join("ca.crt"),
            deny_namespaces: Vec::new(),
            only_annotated: false,
            host_processes: true,
        }
    }
}
