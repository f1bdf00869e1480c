//! Settings of the connection to Kubernetes.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where pods are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

impl Default for KubernetesSettings {
    fn default() -> Self {
        let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            enabled: Enabled::False,
            api_server: None,
            node_name: None,
            token_file: account.join("token"),
            ca_file: account.join("ca.crt"),
        }
    }
}
