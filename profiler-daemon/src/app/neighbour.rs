//! Finds other daemons of this host that report to the same OAP: each request would be profiled by both.
//!
//! In:  `/proc/PID/{comm,fd,ns/net}`
//! Out: a warning at the start of the second one
//! Lost: a daemon in a pid namespace that we do not see, or whose program has another name
//!
//! ```text
//!  daemon A    /proc/A/fd/7 -> /memfd:profilerd-oap (deleted)      "oap1:11800\noap2:11800\n"
//!                                  ^ read at its start by
//!  daemon B    /proc/B/fd/7 -> /memfd:profilerd-oap (deleted)      "oap2:11800\n"
//! ```
//!
//! # Why
//! A package and a container share neither files nor, as a rule, the network, so a lock file or an abstract socket
//! of one is not seen by the other. Both see the processes of the host, or they would not profile the same
//! ones. A file in memory that a process holds open is seen where the process is, says what is in it, and is gone
//! when the process is, `kill -9` included.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Name of the file, as it is in `/proc/PID/fd`.
const NAME: &str = "profilerd-oap";
/// Names of our processes begin with this.
const PROGRAM: &str = "profilerd";
/// Bytes read of one: dozens of addresses.
const TEXT_MAX_BYTES: u64 = 4096;
/// Most descriptors of a process that are read.
const DESCRIPTORS_MAX: usize = 65_536;

/// Says where we report to, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Mark {
    _file: File,
}

/// Another daemon.
#[derive(Debug, PartialEq, Eq)]
struct Neighbour {
    pid: u32,
    addresses: Vec<String>,
    /// An address of the loopback means the same for both.
    shares_network: bool,
}

/// Says where we report to, and warns of those who were here first and do so as well. A host on which that cannot
/// be done has no mark of ours.
pub(super) fn announce(addresses: &[String]) -> Option<Mark> {
    let mark = mark(addresses)
        .inspect_err(|error| tracing::debug!(%error, "other daemons cannot notice this one"))
        .ok();
    for neighbour in neighbours() {
        tell(&neighbour, addresses);
    }
    mark
}

fn mark(addresses: &[String]) -> io::Result<Mark> {
    let mut file = File::from(memfd_create(NAME, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(addresses.join("\n").as_bytes())?;
    Ok(Mark { _file: file })
}

fn tell(neighbour: &Neighbour, addresses: &[String]) {
    let pid = neighbour.pid;
    match neighbour.shared(addresses) {
        Some(address) => tracing::warn!(
            pid,
            "another profilerd of this host reports to {address} as well: every request is profiled twice, \
             and takes two of its task's places. Stop one of the two; they may be a package and a container"
        ),
        None => tracing::info!(
            pid,
            addresses = ?neighbour.addresses,
            "another profilerd of this host reports elsewhere; if that is the same OAP by another name, every \
             request is profiled twice"
        ),
    }
}

impl Neighbour {
    /// An address that both of us report to.
    fn shared<'a>(&self, ours: &'a [String]) -> Option<&'a str> {
        let is_same = |our: &str, their: &str| match (place(our), place(their)) {
            (Some((Host::This, our)), Some((Host::This, their))) => {
                our == their && self.shares_network
            }
            (Some(our), Some(their)) => our == their,
            _ => false,
        };
        let theirs = &self.addresses;
        let shared = ours
            .iter()
            .find(|our| theirs.iter().any(|their| is_same(our, their)));
        shared.map(String::as_str)
    }
}

/// The host of an address.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// The loopback, or all addresses of a network namespace.
    This,
    Named(String),
}

fn place(address: &str) -> Option<(Host, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let is_this = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback() || address.is_unspecified());
    let host = if is_this {
        Host::This
    } else {
        Host::Named(host)
    };
    Some((host, port))
}

fn neighbours() -> Vec<Neighbour> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid: &u32| pid != std::process::id())
        .filter_map(neighbour)
        .collect()
}

/// What a process says of itself, if it is one of us. Another user's is not believed.
fn neighbour(pid: u32) -> Option<Neighbour> {
    let process = Path::new("/proc").join(pid.to_string());
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let owner = fs::metadata(&process).ok()?.uid();
    if !name.starts_with(PROGRAM) || (owner != 0 && owner != nix::unistd::geteuid().as_raw()) {
        return None;
    }
    let wanted = format!("/memfd:{NAME} (deleted)");
    let descriptors = fs::read_dir(process.join("fd")).ok()?;
    let mark = descriptors
        .take(DESCRIPTORS_MAX)
        .flatten()
        .map(|entry| entry.path())
        .find(|path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*wanted))?;
    let mut text = String::new();
    let file = File::open(mark).ok()?;
    file.take(TEXT_MAX_BYTES).read_to_string(&mut text).ok()?;
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    Some(Neighbour {
        pid,
        addresses: text.lines().map(str::to_owned).collect(),
        shares_network: network(&process) == network(Path::new("/proc/self")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    /// Check which addresses are one OAP: by name and port, and those of the loopback in one network only.
    #[test]
    fn one_oap_has_one_address() {
        let shared = |theirs: &[&str], shares_network: bool, ours: &[&str]| {
            let neighbour = Neighbour {
                pid: 1,
                addresses: texts(theirs),
                shares_network,
            };
            neighbour.shared(&texts(ours)).map(str::to_owned)
        };
        let found = shared(&["a:1", "OAP:11800"], false, &["b:1", "oap:11800"]);
        assert_eq!(found.as_deref(), Some("oap:11800"));
        assert_eq!(
            shared(&["oap:11800"], true, &["oap:11801", "oap2:11800"]),
            None
        );
        for local in [
            "127.0.0.1:11800",
            "localhost:11800",
            "[::1]:11800",
            "0.0.0.0:11800",
        ] {
            assert!(
                shared(&[local], true, &["127.0.0.1:11800"]).is_some(),
                "{local}"
            );
            assert_eq!(
                shared(&[local], false, &["127.0.0.1:11800"]),
                None,
                "{local}"
            );
            assert_eq!(shared(&[local], true, &["127.0.0.1:1"]), None, "{local}");
        }
        assert_eq!(shared(&[], true, &["oap:11800"]), None);
        assert_eq!(shared(&["garbage"], true, &["garbage"]), None);
    }

    /// Check that a mark is seen from outside the process as long as it is kept.
    #[test]
    fn a_mark_is_seen_while_it_is_kept() {
        let seen = || {
            let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
            let targets = fds.filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                target.to_str()?.contains(NAME).then(|| entry.path())
            });
            targets.collect::<Vec<_>>()
        };
        let mark = mark(&texts(&["a:1", "b:2"])).unwrap();
        let [path] = &seen()[..] else {
            panic!("{:?}", seen())
        };
        assert_eq!(fs::read_to_string(path).unwrap(), "a:1\nb:2");
        drop(mark);
        assert_eq!(seen().len(), 0);
    }
}
