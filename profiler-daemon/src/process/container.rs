//! Finds what people call a container, in the files its runtime keeps about it.
//!
//! In:  files of Docker, Podman, CRI-O and containerd on the host
//! Out: [`ContainerNames`]: the container's name, and its pod's where the runtime knows it
//! Lost: containers whose files are not readable or larger than a bound; they keep their short id
//!
//! | runtime | file | name |
//! |---|---|---|
//! | Docker | `/var/lib/docker/containers/ID/config.v2.json` | `Name`, a label of Compose |
//! | Podman, CRI-O | `/var/lib/containers/storage/overlay-containers/containers.json` | `names` of the entry |
//! | CRI-O | `/run/containers/storage/overlay-containers/ID/userdata/config.json` | annotations |
//! | containerd | `/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json` | annotations |
//!
//! profilerd reads the files and does not ask the runtime: access to its socket is control of the whole host.
//! They are looked for in the root of process 1, which is the host's also for a daemon in a container
//! with the host's process ids, and then in our own, where somebody may have mounted them.

use std::path::Path;

use serde::Deserialize;

use super::foreign_file;
use crate::model::Pid;

/// An OCI configuration has some 20 KiB; the list of all containers some 500 bytes for each.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// containerd's namespaces: of Kubernetes, of `nerdctl`, of Docker.
const CONTAINERD_NAMESPACES: [&str; 3] = ["k8s.io", "default", "moby"];
/// Who has the host's files.
const HOST: Pid = Pid(1);

/// What a runtime calls a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerNames {
    /// The container's name.
    pub name: Option<String>,
    /// What it is one of several of: the service of Docker Compose.
    pub group: Option<String>,
    /// The pod it belongs to.
    pub pod: Option<String>,
    /// The pod's Kubernetes namespace.
    pub namespace: Option<String>,
}

impl ContainerNames {
    /// Looks for the names of a container by its id.
    #[must_use]
    pub fn read(id: &str) -> Self {
        let roots = [HOST, Pid(std::process::id())];
        Self::find(id, &|path| {
            let mut read = roots
                .iter()
                .map(|&pid| foreign_file::read(pid, path, FILE_MAX_BYTES));
            read.find_map(Result::ok)
        })
    }

    fn find(id: &str, file: &dyn Fn(&Path) -> Option<Vec<u8>>) -> Self {
        let read = |path: String| file(Path::new(&path));
        let docker = || {
            let names = Self::from_docker(&read(format!(
                "/var/lib/docker/containers/{id}/config.v2.json"
            ))?)?;
            Some(names)
        };
        let oci = || {
            let containerd = CONTAINERD_NAMESPACES.map(|namespace| {
                format!(
                    "/run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json"
                )
            });
            let crio =
                format!("/run/containers/storage/overlay-containers/{id}/userdata/config.json");
            let mut paths = containerd.into_iter().chain([crio]);
            paths.find_map(|path| Self::from_oci(&read(path)?))
        };
        let storage = || {
            let list = "/var/lib/containers/storage/overlay-containers/containers.json";
            Self::from_storage(&read(list.to_owned())?, id)
        };
        docker().or_else(oci).or_else(storage).unwrap_or_default()
    }

    /// Docker's own file about a container.
    pub(crate) fn from_docker(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "Name")]
            name: String,
            #[serde(rename = "Config", default)]
            labelled: Labelled,
        }
        #[derive(Default, Deserialize)]
        struct Labelled {
            #[serde(rename = "Labels", default)]
            labels: Option<Labels>,
        }
        #[derive(Default, Deserialize)]
        struct Labels {
            #[serde(rename = "com.docker.compose.service")]
            compose: Option<String>,
        }
        let config: Config = serde_json::from_slice(json).ok()?;
        Some(Self {
            name: Some(config.name.trim_start_matches('/').to_owned()),
            group: config.labelled.labels.and_then(|labels| labels.compose),
            ..Self::default()
        })
    }

    /// An OCI configuration: the runtimes leave their names as annotations.
    pub(crate) fn from_oci(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            annotations: Annotations,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Annotations {
            #[serde(rename = "io.kubernetes.cri.container-name")]
            containerd: Option<String>,
            #[serde(rename = "io.kubernetes.cri.sandbox-name")]
            containerd_pod: Option<String>,
            #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
            containerd_namespace: Option<String>,
            #[serde(rename = "io.kubernetes.container.name")]
            crio: Option<String>,
            #[serde(rename = "io.kubernetes.pod.name")]
            crio_pod: Option<String>,
            #[serde(rename = "io.kubernetes.pod.namespace")]
            crio_namespace: Option<String>,
            #[serde(rename = "nerdctl/name")]
            nerdctl: Option<String>,
        }
        let given = serde_json::from_slice::<Config>(json).ok()?.annotations;
        let names = Self {
            name: given.containerd.or(given.crio).or(given.nerdctl),
            group: None,
            pod: given.containerd_pod.or(given.crio_pod),
            namespace: given.containerd_namespace.or(given.crio_namespace),
        };
        names.name.is_some().then_some(names)
    }

    /// The list of all containers that the library of Podman and CRI-O keeps.
    pub(crate) fn from_storage(json: &[u8], id: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Entry {
            id: String,
            #[serde(default)]
            names: Vec<String>,
        }
        let entries: Vec<Entry> = serde_json::from_slice(json).ok()?;
        let entry = entries.into_iter().find(|entry| entry.id == id)?;
        Some(Self {
            name: Some(entry.names.into_iter().next()?),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn found(path: &str, json: &str) -> ContainerNames {
        ContainerNames::find(ID, &|asked| {
            (asked == Path::new(path)).then(|| json.as_bytes().to_vec())
        })
    }

    /// Check the file of each runtime, at its place.
    #[test]
    fn every_runtime_has_its_file() {
        let docker = format!("/var/lib/docker/containers/{ID}/config.v2.json");
        let names = found(
            &docker,
            r#"{"StreamConfig":{},"Name":"/p-shop-1","Config":{"Labels":{"com.docker.compose.service":"shop"}}}"#,
        );
        assert_eq!(names.name.as_deref(), Some("p-shop-1"));
        assert_eq!(names.group.as_deref(), Some("shop"));
        assert_eq!(
            found(&docker, r#"{"Name":"/a","Config":{"Labels":null}}"#).group,
            None
        );
        let podman = "/var/lib/containers/storage/overlay-containers/containers.json";
        let list = format!(
            r#"[{{"id":"f","names":["x"]}},{{"id":"{ID}","names":["web","y"],"image":"i"}}]"#
        );
        assert_eq!(found(podman, &list).name.as_deref(), Some("web"));
        let task = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json");
        let annotations = r#"{"ociVersion":"1.0","annotations":{"io.kubernetes.cri.container-name":"app",
            "io.kubernetes.cri.sandbox-name":"shop-7d-x","io.kubernetes.cri.sandbox-namespace":"prod"}}"#;
        let names = found(&task, annotations);
        assert_eq!(names.name.as_deref(), Some("app"));
        assert_eq!(names.pod.as_deref(), Some("shop-7d-x"));
        assert_eq!(names.namespace.as_deref(), Some("prod"));
        let crio = format!("/run/containers/storage/overlay-containers/{ID}/userdata/config.json");
        let annotations = r#"{"annotations":{"io.kubernetes.container.name":"app"}}"#;
        assert_eq!(found(&crio, annotations).name.as_deref(), Some("app"));
    }

    /// Check that what is not as expected gives no names.
    #[test]
    fn other_files_give_no_names() {
        let docker = format!("/var/lib/docker/containers/{ID}/config.v2.json");
        for json in ["", "{", "[]", "{\"Name\":7}", "{\"Name\":null}"] {
            assert_eq!(found(&docker, json), ContainerNames::default());
        }
        assert_eq!(ContainerNames::from_storage(b"[{\"id\":\"a\"}]", "a"), None);
        assert_eq!(ContainerNames::from_oci(b"{\"annotations\":{}}"), None);
        assert_eq!(
            ContainerNames::read("no-such-container"),
            ContainerNames::default()
        );
    }
}
