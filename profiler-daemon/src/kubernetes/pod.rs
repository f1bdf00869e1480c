//! Reads pods out of the API server's JSON.
//!
//! In:  a `PodList`, or one event of a watch
//! Out: [`Pod`]s by uid, and the version to go on from
//! Lost: labels and containers beyond a bound

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::model::name;
use crate::process::{PROFILE_KEY, Pod};

/// Labels, and containers, kept of a pod.
const ENTRIES_MAX: usize = 64;
/// Longest text; the names of Kubernetes have 253 characters at most.
const TEXT_UNITS_MAX: usize = 256;

/// One page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct List {
    pub(super) pods: Vec<(String, Pod)>,
    pub(super) version: String,
    /// Where the next page begins, empty at the end.
    pub(super) next: String,
}

/// An event of a watch.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A pod is there, new or changed.
    Is {
        uid: String,
        pod: Box<Pod>,
        version: String,
    },
    /// A pod is not there any more.
    Gone { uid: String, version: String },
    /// Nothing has happened up to this version.
    Bookmark { version: String },
    /// The version to go on from is too old.
    Expired,
    /// The watch cannot go on.
    Failed(String),
}

#[derive(Deserialize)]
struct RawList {
    kind: String,
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(default)]
    items: Option<Vec<RawPod>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawListMeta {
    resource_version: String,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent {
    r#type: String,
    object: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPod {
    metadata: RawMeta,
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMeta {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<RawOwner>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawOwner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    container_statuses: Option<Vec<RawContainer>>,
    init_container_statuses: Option<Vec<RawContainer>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawContainer {
    name: String,
    /// `containerd://<64 hexadecimal digits>`, empty before it runs.
    #[serde(rename = "containerID")]
    id: Option<String>,
}

impl List {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let raw: RawList =
            serde_json::from_slice(json).context("the list of pods cannot be read")?;
        // Another answer must not count as a node without pods.
        ensure!(
            raw.kind == "PodList",
            "not a list of pods: {}",
            text(&raw.kind)
        );
        let pods = raw.items.unwrap_or_default().into_iter();
        Ok(Self {
            pods: pods
                .map(RawPod::into_pod)
                .filter(|(uid, _)| !uid.is_empty())
                .collect(),
            version: raw.metadata.resource_version,
            next: raw.metadata.r#continue.unwrap_or_default(),
        })
    }
}

impl Event {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let raw: RawEvent = serde_json::from_slice(json).context("an event cannot be read")?;
        if raw.r#type == "ERROR" {
            if raw.object["code"] == 410 {
                return Ok(Self::Expired);
            }
            let message = raw.object["message"]
                .as_str()
                .unwrap_or("no reason is given");
            return Ok(Self::Failed(text(message)));
        }
        let pod: RawPod = serde_json::from_value(raw.object).context("a pod cannot be read")?;
        let version = pod.metadata.resource_version.clone();
        Ok(match raw.r#type.as_str() {
            "ADDED" | "MODIFIED" => {
                let (uid, pod) = pod.into_pod();
                Self::Is {
                    uid,
                    pod: Box::new(pod),
                    version,
                }
            }
            "DELETED" => Self::Gone {
                uid: pod.metadata.uid,
                version,
            },
            _ => Self::Bookmark { version },
        })
    }
}

impl RawMeta {
    /// Whether the pod is to be profiled. A label and an annotation must both allow it, and a slip does not.
    fn may_profile(&self) -> Option<bool> {
        let given = [&self.labels, &self.annotations];
        let given = given.into_iter().flatten();
        let mut values = given.filter_map(|it| it.get(PROFILE_KEY)).peekable();
        values.peek()?;
        Some(values.all(|value| value == "true"))
    }
}

impl RawPod {
    fn into_pod(self) -> (String, Pod) {
        let (meta, status) = (self.metadata, self.status);
        let may_profile = meta.may_profile();
        let labels = meta
            .labels
            .unwrap_or_default()
            .into_iter()
            .take(ENTRIES_MAX);
        let labels: BTreeMap<String, String> = labels
            .map(|(key, value)| (text(&key), text(&value)))
            .collect();
        let owners = meta.owner_references.unwrap_or_default();
        let controller = owners
            .into_iter()
            .find(|owner| owner.controller == Some(true));
        let lists = [status.container_statuses, status.init_container_statuses];
        let containers = lists
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|container| {
                let id = container.id?;
                let id = id.rsplit_once("://").map_or(id.as_str(), |(_, id)| id);
                Some((text(id), text(&container.name)))
            });
        let hash = labels.get("pod-template-hash").map(String::as_str);
        let pod = Pod {
            // A pod without a controller is a workload of its own.
            workload: Some(match controller {
                Some(owner) => workload(&owner.kind, &text(&owner.name), hash),
                None => text(&meta.name),
            }),
            name: text(&meta.name),
            namespace: text(&meta.namespace),
            ip: status.pod_ip.as_deref().map(text),
            containers: containers.take(ENTRIES_MAX).collect(),
            may_profile,
            labels,
        };
        (text(&meta.uid), pod)
    }
}

/// What people deployed, by the names that controllers give to what they make:
/// `<deployment>-<pod-template-hash>` for a ReplicaSet, `<cron job>-<minutes>` for a Job.
fn workload(kind: &str, name: &str, hash: Option<&str>) -> String {
    let stem = match kind {
        "ReplicaSet" => hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')),
        "Job" => name.rsplit_once('-').and_then(|(stem, time)| {
            let is_time = time.len() >= 8 && time.chars().all(|c| c.is_ascii_digit());
            is_time.then_some(stem)
        }),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty())
        .unwrap_or(name)
        .to_owned()
}

fn text(text: &str) -> String {
    name::tidy(text, TEXT_UNITS_MAX)
}

/// Reads bytes as each answer there is.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_as_anything(json: &[u8]) {
    let _ = List::parse(json);
    let _ = Event::parse(json);
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"metadata":{"name":"shop-7d9f6b5c4-x2x7p","namespace":"prod","uid":"u1","resourceVersion":"7",
        "labels":{"app":"shop","pod-template-hash":"7d9f6b5c4"},
        "ownerReferences":[{"kind":"Other","name":"o"},{"kind":"ReplicaSet","name":"shop-7d9f6b5c4","controller":true}]},
        "status":{"podIP":"10.1.2.3","containerStatuses":[{"name":"app","containerID":"containerd://abc"},{"name":"late"}]}}"#;

    /// Check what is kept of a pod, and that a page may be the last or not.
    #[test]
    fn a_list_is_read() {
        let json = format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"9","continue":"c"}},"items":[{POD},{{}}]}}"#
        );
        let list = List::parse(json.as_bytes()).unwrap();
        assert_eq!((list.version.as_str(), list.next.as_str()), ("9", "c"));
        let [(uid, pod)] = list.pods.as_slice() else {
            panic!("{list:?}");
        };
        assert_eq!(uid, "u1");
        assert_eq!(
            (pod.name.as_str(), pod.namespace.as_str()),
            ("shop-7d9f6b5c4-x2x7p", "prod")
        );
        assert_eq!(pod.workload.as_deref(), Some("shop"));
        assert_eq!(pod.ip.as_deref(), Some("10.1.2.3"));
        assert_eq!(pod.labels["app"], "shop");
        assert_eq!(pod.containers["abc"], "app");
        let empty =
            List::parse(br#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":null}"#)
                .unwrap();
        assert!(empty.pods.is_empty() && empty.next.is_empty());
        for bad in ["", "[]", "{}", "{\"kind\":\"Status\"}", "<html>"] {
            assert!(List::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    /// Check that label and annotation say whether a pod is to be profiled, and that what is not `true` refuses.
    #[test]
    fn a_pod_says_whether_it_is_to_be_profiled() {
        let of = |labels: &str, annotations: &str| {
            let json = format!(
                r#"{{"metadata":{{"uid":"u","labels":{labels},"annotations":{annotations}}}}}"#
            );
            let pod: RawPod = serde_json::from_str(&json).unwrap();
            pod.into_pod().1.may_profile
        };
        let says = |value: &str| format!(r#"{{"profilerd.io/profile":"{value}"}}"#);
        let (yes, no, slip) = (says("true"), says("false"), says("flase"));
        assert_eq!(of("null", "null"), None);
        assert_eq!(of("{\"a\":\"b\"}", &yes), Some(true));
        assert_eq!(of(&yes, "{}"), Some(true));
        for (label, annotation) in [(&no, &yes), (&yes, &no), (&slip, &yes), (&no, &no)] {
            assert_eq!(of(label, annotation), Some(false));
        }
        // However many labels there are.
        let many: Vec<String> = (0..200).map(|n| format!("\"a{n}\":\"\"")).collect();
        let many = format!("{{{},\"profilerd.io/profile\":\"false\"}}", many.join(","));
        assert_eq!(of(&many, "null"), Some(false));
    }

    /// Check every event of a watch.
    #[test]
    fn events_are_read() {
        let event = |kind: &str, object: &str| {
            Event::parse(format!(r#"{{"type":"{kind}","object":{object}}}"#).as_bytes()).unwrap()
        };
        assert!(matches!(event("MODIFIED", POD), Event::Is { version, .. } if version == "7"));
        let gone = Event::Gone {
            uid: "u1".into(),
            version: "7".into(),
        };
        assert_eq!(event("DELETED", POD), gone);
        let bookmark = r#"{"kind":"Pod","metadata":{"resourceVersion":"12"}}"#;
        assert_eq!(
            event("BOOKMARK", bookmark),
            Event::Bookmark {
                version: "12".into()
            }
        );
        let expired = event(
            "ERROR",
            r#"{"code":410,"message":"too old resource version"}"#,
        );
        assert_eq!(expired, Event::Expired);
        let failed = event("ERROR", r#"{"code":500,"message":"etcd is away"}"#);
        assert_eq!(failed, Event::Failed("etcd is away".into()));
        assert!(Event::parse(b"{}").is_err());
    }

    /// Check the names of workloads by what controls the pod.
    #[test]
    fn workloads_have_the_names_people_gave() {
        assert_eq!(workload("ReplicaSet", "shop-7d9f", Some("7d9f")), "shop");
        assert_eq!(workload("ReplicaSet", "shop-7d9f", None), "shop-7d9f");
        assert_eq!(workload("StatefulSet", "db", None), "db");
        assert_eq!(workload("Job", "clean-28934400", None), "clean");
        assert_eq!(workload("Job", "clean-once", None), "clean-once");
        assert_eq!(workload("Job", "-28934400", None), "-28934400");
    }
}
