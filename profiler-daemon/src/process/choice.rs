//! Says which processes may be profiled at all: as the operator and the owners of pods want it.
//!
//! In:  the section `kubernetes` of the configuration; the control group and the pod of a process
//! Out: [`Denial`], if the process is never to be profiled or reported
//! Lost: nothing; `profilerd ps` names the reason
//!
//! A process in a pod that is not known yet is denied until it is: its owner may have refused.

use std::fmt;

use super::cgroup::Cgroup;
use super::pod::Pod;
use crate::config::KubernetesSettings;

/// Label or annotation of a pod by which its owner refuses (`"false"`) or asks (`"true"`) to be profiled.
pub const PROFILE_KEY: &str = "profilerd.io/profile";

/// What the operator wants. By default every process may be profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    deny_namespaces: Vec<String>,
    only_annotated: bool,
    host_processes: bool,
    /// Pods matter, so one that is not known is not profiled.
    minds_pods: bool,
}

/// Why a process is not profiled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denial {
    /// It is in no pod.
    Host,
    /// Its pod is not known.
    UnknownPod,
    /// By its namespace.
    Namespace(String),
    /// Its pod refuses.
    Refused,
    /// Its pod does not ask for it.
    NotAsked,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("it is in no pod, and kubernetes.host_processes is false"),
            Self::UnknownPod => {
                f.write_str("the API server has not named its pod, which may refuse to be profiled")
            }
            Self::Namespace(name) => write!(f, "kubernetes.deny_namespaces has {name}"),
            Self::Refused => write!(
                f,
                "its pod refuses: the label or annotation {PROFILE_KEY} is not \"true\""
            ),
            Self::NotAsked => write!(
                f,
                "kubernetes.only_annotated is true, and its pod has no label or annotation {PROFILE_KEY}: \"true\""
            ),
        }
    }
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            deny_namespaces: Vec::new(),
            only_annotated: false,
            host_processes: true,
            minds_pods: false,
        }
    }
}

impl Choice {
    /// As the settings say; `reads_pods` says whether pods are asked for.
    #[must_use]
    pub fn new(settings: &KubernetesSettings, reads_pods: bool) -> Self {
        Self {
            deny_namespaces: settings.deny_namespaces.clone(),
            only_annotated: settings.only_annotated,
            host_processes: settings.host_processes,
            minds_pods: reads_pods || settings.restricts(),
        }
    }

    /// Why a process is not profiled; `None` if it may be.
    pub(super) fn denial(&self, cgroup: &Cgroup, pod: Option<&Pod>) -> Option<Denial> {
        let Some(pod) = pod else {
            if cgroup.pod_uid.is_some() {
                return self.minds_pods.then_some(Denial::UnknownPod);
            }
            return (!self.host_processes).then_some(Denial::Host);
        };
        if self.deny_namespaces.contains(&pod.namespace) {
            return Some(Denial::Namespace(pod.namespace.clone()));
        }
        match pod.may_profile {
            Some(false) => Some(Denial::Refused),
            None if self.only_annotated => Some(Denial::NotAsked),
            Some(true) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_POD: &str = "0::/kubepods/burstable/pod01234567-89ab-cdef-0123-456789abcdef/x";

    fn pod(namespace: &str, may_profile: Option<bool>) -> Pod {
        Pod {
            namespace: namespace.to_owned(),
            may_profile,
            ..Pod::default()
        }
    }

    fn choice(change: impl FnOnce(&mut KubernetesSettings)) -> Choice {
        let mut settings = KubernetesSettings::default();
        change(&mut settings);
        Choice::new(&settings, true)
    }

    /// Check who is denied: by namespace, by the pod's own word, for lack of it, and as long as its pod is not known.
    #[test]
    fn pods_are_denied_by_operator_and_owner() {
        let cgroup = Cgroup::parse(IN_POD);
        let usual = choice(|_| {});
        let deny = choice(|it| it.deny_namespaces = vec!["kube-system".to_owned()]);
        let opt_in = choice(|it| it.only_annotated = true);
        let of = |choice: &Choice, pod: &Pod| choice.denial(&cgroup, Some(pod));
        assert_eq!(of(&usual, &pod("prod", None)), None);
        assert_eq!(of(&usual, &pod("prod", Some(false))), Some(Denial::Refused));
        let namespace = Denial::Namespace("kube-system".to_owned());
        // What the owner of a pod asks for does not count there.
        let asks = pod("kube-system", Some(true));
        assert_eq!(of(&deny, &asks), Some(namespace));
        assert_eq!(of(&deny, &pod("prod", None)), None);
        assert_eq!(of(&opt_in, &pod("prod", None)), Some(Denial::NotAsked));
        assert_eq!(of(&opt_in, &asks), None);
        assert_eq!(usual.denial(&cgroup, None), Some(Denial::UnknownPod));
        // Where nobody asks for pods, they do not matter.
        assert_eq!(Choice::default().denial(&cgroup, None), None);
    }

    /// Check that processes outside of pods are profiled unless that is switched off.
    #[test]
    fn processes_of_the_host_are_chosen_apart() {
        let cgroup = Cgroup::parse("0::/system.slice/shop.service");
        assert_eq!(
            choice(|it| it.only_annotated = true).denial(&cgroup, None),
            None
        );
        let none = choice(|it| it.host_processes = false);
        assert_eq!(none.denial(&cgroup, None), Some(Denial::Host));
    }
}
