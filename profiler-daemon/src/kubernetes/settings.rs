//! Where the API server is and which node this is.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use hyper::Uri;

use crate::config::{Enabled, KubernetesSettings};

/// An API server, and how to be let in.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    pub(super) node: String,
    pub(super) token_file: PathBuf,
    pub(super) ca_file: PathBuf,
}

impl Target {
    /// `None` if pods are not to be asked for.
    pub(super) fn from(
        settings: &KubernetesSettings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        if settings.enabled == Enabled::False {
            return Ok(None);
        }
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let server = settings.api_server.clone().or_else(|| {
            let host = set("KUBERNETES_SERVICE_HOST")?;
            let port = set("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            let host = match host.contains(':') {
                true => format!("[{host}]"), // IPv6
                false => host,
            };
            Some(format!("https://{host}:{port}"))
        });
        let node = settings.node_name.clone().or_else(|| set("NODE_NAME"));
        let (Some(server), Some(node)) = (server, node) else {
            if settings.enabled == Enabled::Auto {
                return Ok(None);
            }
            bail!(
                "kubernetes.enabled is true, but the API server or the node is not known: set \
                 kubernetes.api_server (or KUBERNETES_SERVICE_HOST) and kubernetes.node_name (or NODE_NAME)"
            );
        };
        let uri: Uri = server
            .parse()
            .with_context(|| format!("kubernetes.api_server: {server:?} is not an address"))?;
        let (host, scheme) = (uri.host(), uri.scheme_str());
        let (Some(host), Some(scheme @ ("http" | "https"))) = (host, scheme) else {
            bail!("kubernetes.api_server: {server:?} is not https://HOST:PORT");
        };
        let is_tls = scheme == "https";
        Ok(Some(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            is_tls,
            node,
            token_file: settings.token_file.clone(),
            ca_file: settings.ca_file.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(enabled: Enabled, variables: &[(&str, &str)]) -> Result<Option<Target>> {
        let settings = KubernetesSettings {
            enabled,
            ..KubernetesSettings::default()
        };
        Target::from(&settings, |name| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    /// Check when it is on, and that what is missing is an error only where it must be on.
    #[test]
    fn it_is_on_where_it_can_be() {
        let pod = [("KUBERNETES_SERVICE_HOST", "fd00::1"), ("NODE_NAME", "n1")];
        assert!(target(Enabled::False, &pod).unwrap().is_none());
        let found = target(Enabled::Auto, &pod).unwrap().unwrap();
        assert_eq!(
            (found.host.as_str(), found.port, found.is_tls),
            ("fd00::1", 443, true)
        );
        assert_eq!(found.node, "n1");
        assert!(target(Enabled::Auto, &pod[..1]).unwrap().is_none());
        let error = target(Enabled::True, &pod[..1]).unwrap_err().to_string();
        assert!(error.contains("NODE_NAME"), "{error}");
    }

    /// Check that an address without a scheme is refused.
    #[test]
    fn an_address_needs_a_scheme() {
        for bad in ["10.0.0.1:443", "ftp://a:1", "a b", ""] {
            let settings = KubernetesSettings {
                enabled: Enabled::True,
                api_server: Some(bad.to_owned()),
                node_name: Some("n1".to_owned()),
                ..KubernetesSettings::default()
            };
            let error = Target::from(&settings, |_| None).unwrap_err().to_string();
            assert!(error.contains("kubernetes.api_server"), "{error}");
        }
    }
}
