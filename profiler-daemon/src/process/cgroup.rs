//! Turns the control group of a process into a container, a pod and a systemd unit.
//!
//! In:  text of `/proc/PID/cgroup`; inside a container it is what the runtime has made of it
//! Out: [`Cgroup`]
//! Lost: containers of runtimes that name their groups otherwise; they count as none
//!
//! ```text
//! 0::/system.slice/shop.service                                   unit shop.service
//! 0::/system.slice/docker-<64 hex digits>.scope                   container, by Docker under systemd
//! 0::/docker/<64 hex digits>                                      container, by Docker without
//! 0::/kubepods.slice/...-pod<uid>.slice/cri-containerd-<64>.scope container, by containerd
//! 0::/kubepods.slice/...-pod<uid>.slice/crio-<64>.scope           container, by CRI-O
//! 0::/kubepods/burstable/pod<uid>/<64 hex digits>                 container, without systemd
//! 0::/machine.slice/libpod-<64>.scope/container                   container, by Podman
//! 0::/machine.slice/machine-web.scope/payload                     container, by systemd-nspawn
//! 0::/lxc.payload.web/...                                         container, by LXC
//! 1:name=systemd:/user.slice/user-1000.slice/session-3.scope      version 1; no unit of interest
//! ```
//!
//! Of nested containers the outermost counts, and of units too: whoever has a group can make groups of any name in it. For
//! the same reason nothing below `user.slice` is a unit or a pod, and a container there is one of the user's making
//! ([`Cgroup::is_users`]). The process that watches a container (`conmon`,
//! `lxc.monitor`) is not in it, and `machine-qemu-*` is a virtual machine.

/// Length of a container id as the runtimes write it.
const CONTAINER_ID_CHARS: usize = 64;
/// Digits of an id that people are shown.
const SHORT_ID_CHARS: usize = 12;

/// Where a process stands in the hierarchy of control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path in the hierarchy.
    pub path: String,
    /// The container it is in.
    pub container: Option<Container>,
    /// Kubernetes' id of the pod, with hyphens.
    pub pod_uid: Option<String>,
    /// Name of the systemd service without `.service`, of a template without its instance.
    pub systemd_unit: Option<String>,
    /// It is in a part of the hierarchy that is a user's, who gives groups there what names they like.
    pub is_users: bool,
}

/// A container as its control group shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// 64 hexadecimal digits; the name stands elsewhere.
    Id(String),
    /// LXC and systemd-nspawn have names only.
    Name(String),
}

impl Container {
    /// The id's beginning, or the name.
    #[must_use]
    pub fn short(&self) -> &str {
        match self {
            Self::Id(id) => id.get(..SHORT_ID_CHARS).unwrap_or(id),
            Self::Name(name) => name,
        }
    }
}

impl Cgroup {
    /// Reads the text of `/proc/PID/cgroup`, lines of `hierarchy:controllers:path`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            Some((parts.next()?, parts.next()?, parts.next()?))
        });
        // The unified hierarchy; beside version 1 it may be there and empty.
        let mut best = ("", 0);
        for (hierarchy, controllers, path) in lines {
            let rank = match (hierarchy, controllers) {
                _ if path == "/" => 1,
                ("0", "") => 4,
                (_, "name=systemd") => 3,
                _ => 2,
            };
            if rank > best.1 {
                best = (path, rank);
            }
        }
        let path = best.0.to_owned();
        // Seen from another control group, a path may lead up first.
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !part.is_empty() && *part != "..")
            .collect();
        let is_users = parts
            .iter()
            .take_while(|part| container(part).is_none())
            .any(is_user);
        let (container, inside) = match parts
            .iter()
            .enumerate()
            .find_map(|(at, part)| Some((at, container(part)?)))
        {
            Some((at, container)) => (Some(container), at),
            None => (None, parts.len()),
        };
        let around = &parts[..inside];
        // A runtime's own service is not the container's.
        let is_unit = container.is_none() && !is_users;
        Self {
            pod_uid: pod_uid(around).filter(|_| !is_users),
            systemd_unit: is_unit.then(|| systemd_unit(around)).flatten(),
            container,
            is_users,
            path,
        }
    }
}

/// The container that one part of the path names.
fn container(part: &str) -> Option<Container> {
    let mut runs = part.split(|c: char| !c.is_ascii_hexdigit());
    if let Some(id) = runs.find(|run| run.len() == CONTAINER_ID_CHARS) {
        let is_monitor = part.contains("conmon-");
        return (!is_monitor).then(|| Container::Id(id.to_owned()));
    }
    let lxc = part.strip_prefix("lxc.payload.");
    let machine = || part.strip_prefix("machine-")?.strip_suffix(".scope");
    let unit = || {
        part.strip_prefix("systemd-nspawn@")?
            .strip_suffix(".service")
    };
    let name = unescape(lxc.or_else(machine).or_else(unit)?);
    let is_machine = name.starts_with("qemu-");
    (!is_machine && !name.is_empty()).then_some(Container::Name(name))
}

/// `pod<uid>` as a folder, or at the end of a slice's name, where systemd has `_` for `-`.
fn pod_uid(parts: &[&str]) -> Option<String> {
    let mut parts = parts
        .iter()
        .filter(|part| part.starts_with("kubepods") || part.starts_with("pod"));
    parts.find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let (before, uid) = part.rsplit_once("pod")?;
        let is_name = before.is_empty() || before.ends_with('-');
        let is_uid = uid.len() >= 32
            && uid
                .chars()
                .all(|c| c.is_ascii_hexdigit() || "-_".contains(c));
        (is_name && is_uid).then(|| uid.replace('_', "-"))
    })
}

/// Whether a part of the path, and all below it, is a user's.
fn is_user(part: &&str) -> bool {
    *part == "user.slice" || part.starts_with("user@") && part.ends_with(".service")
}

fn systemd_unit(parts: &[&str]) -> Option<String> {
    let unit = parts
        .iter()
        .find_map(|part| part.strip_suffix(".service"))?;
    let (name, _) = unit.split_once('@').unwrap_or((unit, ""));
    (!name.is_empty()).then(|| unescape(name))
}

/// systemd writes what is not allowed in a unit name as `\x2d`.
fn unescape(name: &str) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        let digits = rest.get(at + 2..at + 4);
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            break;
        };
        text.push_str(&rest[..at]);
        text.push(char::from(byte));
        rest = &rest[at + 4..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "6ab0d9b8-37d4-4a9f-8a4b-2f8f6f7b3a55";

    fn parse(path: &str) -> Cgroup {
        Cgroup::parse(&format!("0::{path}\n"))
    }

    /// Check units: services, templates, escapes, and what is no service.
    #[test]
    fn units_are_found() {
        let unit = |path: &str| parse(path).systemd_unit;
        assert_eq!(unit("/system.slice/shop.service").as_deref(), Some("shop"));
        assert_eq!(
            unit("/system.slice/shop.service/worker").as_deref(),
            Some("shop")
        );
        assert_eq!(
            unit("/system.slice/system-a.slice/a@7.service").as_deref(),
            Some("a")
        );
        assert_eq!(
            unit("/system.slice/my\\x2dshop.service").as_deref(),
            Some("my-shop")
        );
        assert_eq!(
            unit("/../../system.slice/shop.service/evil.service").as_deref(),
            Some("shop")
        );
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let own = format!("{user}/app.slice/shop.service");
        for none in [
            user,
            &own,
            "/user.slice/session-3.scope",
            "/init.scope",
            "/",
            "",
        ] {
            assert_eq!(unit(none), None, "{none}");
        }
        assert!(parse(&own).is_users);
        assert!(!parse("/system.slice/shop.service/user.slice.service").is_users);
        assert_eq!(unescape("a\\xz"), "a\\xz");
    }

    /// Check container ids of the runtimes' naming schemes, and that a container has no unit.
    #[test]
    fn containers_are_found() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        for path in [
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/docker/{ID}/docker/{}", "f".repeat(64)),
            format!(
                "/docker/{ID}/user.slice/user@0.service/docker-{}.scope",
                "f".repeat(64)
            ),
            format!("/../docker-{ID}.scope"),
            format!("/system.slice/nerdctl-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope/container"),
            format!("/kubepods/burstable/pod1/{ID}"),
            format!("/system.slice/containerd.service/kubepods-besteffort:cri-containerd:{ID}"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/libpod_parent/libpod-{ID}"),
            format!("{user}/user.slice/libpod-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service"),
        ] {
            let cgroup = parse(&path);
            assert_eq!(
                cgroup.container,
                Some(Container::Id(ID.to_owned())),
                "{path}"
            );
            assert_eq!(cgroup.systemd_unit, None, "{path}");
            assert_eq!(cgroup.is_users, path.starts_with(user), "{path}");
        }
        for (path, name) in [
            ("/machine.slice/machine-web\\x2d1.scope/payload", "web-1"),
            (
                "/machine.slice/systemd-nspawn@web.service/payload/a.service",
                "web",
            ),
            ("/lxc.payload.web/system.slice/x.service", "web"),
        ] {
            assert_eq!(
                parse(path).container,
                Some(Container::Name(name.to_owned()))
            );
        }
    }

    /// Check that monitors, virtual machines and slices are no containers.
    #[test]
    fn what_watches_a_container_is_not_in_it() {
        for path in [
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/kubepods.slice/crio-conmon-{ID}.scope"),
            "/lxc.monitor.web".to_owned(),
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope".to_owned(),
            "/machine.slice/machine-.scope".to_owned(),
            format!("/system.slice/{}.scope", &ID[1..]),
        ] {
            assert_eq!(parse(&path).container, None, "{path}");
        }
        assert_eq!(Container::Id(ID.to_owned()).short(), "0123456789ab");
    }

    /// Check the pod's id with and without systemd.
    #[test]
    fn pods_are_found() {
        let uid = |path: &str| parse(path).pod_uid;
        assert_eq!(
            uid(&format!("/kubepods/burstable/pod{UID}/{ID}")).as_deref(),
            Some(UID)
        );
        let slice = UID.replace('-', "_");
        let path = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/x"
        );
        assert_eq!(uid(&path).as_deref(), Some(UID));
        assert_eq!(uid("/kubepods.slice/kubepods-pod1.slice"), None);
        assert_eq!(uid(&format!("/user/tripod{UID}")), None);
        // By the owner of a container, and by a user.
        assert_eq!(uid(&format!("/docker/{ID}/kubepods/pod{UID}")), None);
        assert_eq!(uid(&format!("/user.slice/pod{UID}/{ID}")), None);
    }

    /// Check that with version 1 the hierarchy of systemd is taken.
    #[test]
    fn version_1_is_read() {
        let text = "12:cpu:/a.slice\n1:name=systemd:/system.slice/shop.service\n0::/\n";
        assert_eq!(Cgroup::parse(text).systemd_unit.as_deref(), Some("shop"));
        assert_eq!(Cgroup::parse("nonsense"), Cgroup::default());
    }
}
