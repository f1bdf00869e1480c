//! What a daemon holds in the kernel, and what of it is left when the daemon is gone.
//!
//! Asked by id, of the process's descriptors and of the kernel's lists: other programs of this machine,
//! another profilerd included, come and go meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use profiler_tests::wait_until;

use crate::DEADLINE;

/// Commands of bpf(2), include/uapi/linux/bpf.h.
const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_long = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;

/// Ids of BPF objects, and the number of perf events that no link holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Attached {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
    perf_events: usize,
}

impl Attached {
    /// Perf events that no link holds.
    pub(crate) fn perf_events(&self) -> usize {
        self.perf_events
    }

    /// What a process holds by its descriptors.
    pub(crate) fn of(pid: u32) -> Self {
        let mut attached = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let fd = entry.unwrap();
            let target = fs::read_link(fd.path()).unwrap_or_default();
            if target == Path::new("anon_inode:[perf_event]") {
                attached.perf_events += 1;
            }
            let info = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(fd.file_name());
            // A descriptor may be closed while we look.
            for line in fs::read_to_string(info).unwrap_or_default().lines() {
                let Some((name, value)) = line.split_once(':') else {
                    continue;
                };
                let ids = match name {
                    "prog_id" => &mut attached.programs,
                    "map_id" => &mut attached.maps,
                    "link_id" => &mut attached.links,
                    _ => continue,
                };
                ids.insert(value.trim().parse().unwrap());
            }
        }
        attached
    }

    /// What a process with a live task holds; the kernel must list all of it.
    #[track_caller]
    pub(crate) fn of_live(pid: u32) -> Self {
        let attached = Self::of(pid);
        assert!(attached.programs.len() >= 6, "{attached:?}");
        assert!(!attached.links.is_empty(), "{attached:?}");
        assert_eq!(attached.left(), attached);
        attached
    }

    /// What of it the kernel still has.
    fn left(&self) -> Self {
        let left = |ids: &BTreeSet<u32>, command| &listed(command) & ids;
        Self {
            programs: left(&self.programs, BPF_PROG_GET_NEXT_ID),
            maps: left(&self.maps, BPF_MAP_GET_NEXT_ID),
            links: left(&self.links, BPF_LINK_GET_NEXT_ID),
            perf_events: 0, // as nothing but descriptors holds them
        }
    }

    /// Waits until the kernel has nothing of it any more: it frees after a grace period.
    #[track_caller]
    pub(crate) fn wait_until_gone(&self) {
        let mut left = Self::default();
        wait_until("the kernel to let everything go", DEADLINE, || {
            left = self.left();
            Ok((left == Self::default()).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}; left are {left:?}"));
    }
}

/// All ids of one kind, from the kernel.
fn listed(command: libc::c_long) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    // Start of union bpf_attr for these commands: start_id, next_id, open_flags.
    let mut attr = [0_u32; 3];
    loop {
        // SAFETY: the kernel reads and writes `size` bytes of `attr`, which it has.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attr.as_mut_ptr(),
                size_of_val(&attr),
            )
        };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
            return ids;
        }
        ids.insert(attr[1]);
        attr[0] = attr[1];
    }
}

/// Everything pinned in the BPF file system.
pub(crate) fn pinned() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/sys/fs/bpf")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}
