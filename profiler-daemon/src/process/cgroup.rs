//! Turns the control group of a process into a container id and a systemd unit.
//!
//! ```text
//! 0::/system.slice/shop.service                                   unit shop.service
//! 0::/system.slice/docker-<64 hex digits>.scope                   container, by Docker under systemd
//! 0::/kubepods.slice/.../cri-containerd-<64 hex digits>.scope     container, by containerd
//! 0::/kubepods/burstable/pod<uid>/<64 hex digits>                 container, without systemd
//! 1:name=systemd:/user.slice/user-1000.slice/session-3.scope      version 1; no unit of interest
//! ```

/// Length of a container id as the runtimes write it.
const CONTAINER_ID_CHARS: usize = 64;

/// Where a process stands in the hierarchy of control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path in the hierarchy.
    pub path: String,
    /// Id of the container, 64 hexadecimal digits.
    pub container_id: Option<String>,
    /// Name of the systemd service without `.service`, of a template without its instance.
    pub systemd_unit: Option<String>,
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
        let container_id = container_id(&path);
        // A runtime's own service is not the container's.
        let systemd_unit = container_id
            .is_none()
            .then(|| systemd_unit(&path))
            .flatten();
        Self {
            path,
            container_id,
            systemd_unit,
        }
    }
}

fn container_id(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        part.split(|c: char| !c.is_ascii_hexdigit())
            .find(|run| run.len() == CONTAINER_ID_CHARS)
            .map(str::to_owned)
    })
}

fn systemd_unit(path: &str) -> Option<String> {
    let unit = path
        .rsplit('/')
        .find_map(|part| part.strip_suffix(".service"))?;
    let (name, instance) = unit.split_once('@').unwrap_or((unit, ""));
    // `user@1000.service` is everything that a user runs.
    let is_login = name == "user" && !instance.is_empty();
    (!is_login && !name.is_empty()).then(|| unescape(name))
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

    /// Check units: services, templates, escapes, and what is no service.
    #[test]
    fn units_are_found() {
        let unit = |path: &str| Cgroup::parse(&format!("0::{path}\n")).systemd_unit;
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
        let user = "/user.slice/user-1000.slice/user@1000.service";
        assert_eq!(
            unit(&format!("{user}/app.slice/web.service")).as_deref(),
            Some("web")
        );
        for none in [user, "/user.slice/session-3.scope", "/init.scope", "/", ""] {
            assert_eq!(unit(none), None, "{none}");
        }
        assert_eq!(unescape("a\\xz"), "a\\xz");
    }

    /// Check container ids of the runtimes' naming schemes, and that a container has no unit.
    #[test]
    fn containers_are_found() {
        for path in [
            format!("/system.slice/docker-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods/burstable/pod1/{ID}"),
            format!("/system.slice/containerd.service/kubepods-besteffort:cri-containerd:{ID}"),
        ] {
            let cgroup = Cgroup::parse(&format!("0::{path}\n"));
            assert_eq!(cgroup.container_id.as_deref(), Some(ID), "{path}");
            assert_eq!(cgroup.systemd_unit, None, "{path}");
        }
    }

    /// Check that with version 1 the hierarchy of systemd is taken.
    #[test]
    fn version_1_is_read() {
        let text = "12:cpu:/a.slice\n1:name=systemd:/system.slice/shop.service\n0::/\n";
        assert_eq!(Cgroup::parse(text).systemd_unit.as_deref(), Some("shop"));
        assert_eq!(Cgroup::parse("nonsense"), Cgroup::default());
    }
}
