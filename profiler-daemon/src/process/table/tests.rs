//! The table against real processes, and against a /proc of our own where ids must come again.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use profiler_test_support::{needs_root, skip};

use super::*;
use crate::config::KubernetesSettings;
use crate::config::{RuleMatch, Template};
use crate::model::Service;
use crate::process::{Denial, Pod};

/// A process as a scan would find it, known by a name.
pub(in crate::process) fn process(pid: Pid, name: &str) -> Process {
    let stat = Stat {
        name: name.to_owned(),
        start_ticks: 1,
        start_stack: 1,
        is_dead: false,
        is_kernel: false,
    };
    let mut identity = Identity::unknown();
    identity.service.name = name.to_owned();
    Process {
        key: stat.key(pid),
        uid: None,
        parent: Pid(0),
        comm: name.to_owned(),
        exe: None,
        command: Vec::new(),
        cgroup: Cgroup::default(),
        container: None,
        pod: None,
        listen_ports: Vec::new(),
        runtime: None,
        agent: None,
        identity,
        denial: None,
        environment: Vec::new(),
        net_namespace: 0,
        stat,
        folder: Procfs::default().pids().unwrap()[0].1,
        scans: 0,
        ports_look: 0,
        settled: None,
        agent_instance: AgentInstance::Unasked,
    }
}

/// A shell that ends with the test, ready when it has said so.
struct Shell(Child);

impl Shell {
    fn start(name: &str) -> Self {
        let child = Command::new("sh")
            .arg("-s")
            .env("SW_AGENT_NAME", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut shell = Self(child);
        shell.run("echo ready");
        shell
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }

    /// Sends a line and waits for a line.
    fn run(&mut self, line: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.read()
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        let out = self.0.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Check that a process appears once with its name, and disappears when it ends.
#[test]
fn a_process_comes_and_goes() {
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    let shell = Shell::start("table-test-a");
    let pid = shell.pid();
    let changes = table.scan().unwrap();
    assert!(changes.added.contains(&pid));
    let process = table.get(pid).unwrap();
    assert_eq!(process.identity.service.name, "table-test-a");
    assert!(process.may_serve() && process.command[0] == "sh");
    let service = process.identity.service.clone();
    assert_eq!(table.processes_of(&service).count(), 1);
    assert!(!table.scan().unwrap().added.contains(&pid));
    drop(shell);
    let changes = table.scan().unwrap();
    assert!(changes.removed.iter().any(|process| process.key.pid == pid));
    assert!(table.get(pid).is_none());
}

/// Check that an exec is noticed although the process is the same, even of the same program.
#[test]
fn an_exec_is_noticed() {
    let mut table = ProcessTable::new(Vec::new());
    let mut shell = Shell::start("table-test-b");
    let pid = shell.pid();
    table.scan().unwrap();
    shell.run("SW_AGENT_NAME=table-test-c exec sh -c 'echo ready; read x; read x'");
    let changes = table.scan().unwrap();
    assert!(changes.changed.contains(&pid));
    assert_eq!(
        table.get(pid).unwrap().identity.service.name,
        "table-test-c"
    );
}

/// Check that a process that calls itself something else is not taken for one that has executed another program: nothing is
/// read again, however often it does.
#[test]
fn a_new_name_is_no_exec() {
    let mut table = ProcessTable::new(Vec::new());
    let mut shell = Shell::start("table-test-renamed");
    let pid = shell.pid();
    table.scan().unwrap();
    for turn in 0..3 {
        let name = format!("name-{turn}");
        shell.run(&format!("printf {name} > /proc/$$/comm; echo done"));
        let changes = table.scan().unwrap();
        assert!(!changes.changed.contains(&pid) && !changes.added.contains(&pid));
        let process = table.get(pid).unwrap();
        assert_eq!(
            (process.comm.as_str(), process.scans),
            (name.as_str(), turn + 1)
        );
    }
}

/// Check that a user whose processes take too long to look at is told, that theirs are not listed until there is time, and that
/// those of others are.
#[test]
fn processes_of_a_user_wait_when_there_is_no_time() {
    let mut table = ProcessTable::new(Vec::new()).with_budget();
    table.scan().unwrap();
    let user = Some(nix::unistd::geteuid().as_raw());
    if user == Some(0) {
        // Root has what all have.
        let all = Duration::from_secs(3600);
        let now = table.began.elapsed();
        table.budget.as_mut().unwrap().spend(user, all, now);
    }
    let shell = Shell::start("table-test-waits");
    let changes = table.scan().unwrap();
    assert!(changes.postponed[&user] >= 1);
    assert!(table.get(shell.pid()).is_none());
    table.budget = None;
    assert!(table.scan().unwrap().added.contains(&shell.pid()));
}

/// Check that an exec of an old process is noticed too, within one round of looks.
#[test]
fn a_late_exec_is_noticed_within_a_round() {
    let mut table = ProcessTable::new(Vec::new());
    let mut shell = Shell::start("table-test-d");
    let pid = shell.pid();
    for _ in 0..=YOUNG_SCANS {
        table.scan().unwrap();
    }
    shell.run("SW_AGENT_NAME=table-test-e exec sh -c 'echo ready; read x; read x'");
    let changed = |_| table.scan().unwrap().changed.contains(&pid);
    assert!((0..OLD_STRIDE).any(changed));
}

/// Check that a port rule decides once the process listens, which is after its start.
#[test]
fn a_port_that_opens_later_changes_the_identity() {
    let script = "import socket\nprint('up', flush=True)\ninput()\ns=socket.socket()\ns.bind(('127.0.0.1',0))\ns.listen()\nprint(s.getsockname()[1], flush=True)\ninput()";
    let child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Shell(child);
    assert_eq!(child.read(), "up");
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    let pid = child.pid();
    assert!(table.get(pid).unwrap().listen_ports.is_empty());
    assert!(!table.get(pid).unwrap().may_serve());
    let port: u16 = child.run("").parse().unwrap();
    table.rules = vec![ServiceRule {
        matches: RuleMatch {
            listen_port: Some(port),
            ..RuleMatch::default()
        },
        service: Template::parse("by-port", &[]).unwrap(),
        ..ServiceRule::default()
    }];
    assert!(table.scan().unwrap().changed.contains(&pid));
    let process = table.get(pid).unwrap();
    assert_eq!(process.listen_ports, [port]);
    assert_eq!(process.identity.service.name, "by-port");
}

/// Check that neither kernel threads nor we are in the table.
#[test]
fn kernel_threads_and_we_are_left_out() {
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    assert!(table.get(Pid(std::process::id())).is_none());
    assert!(
        table
            .get(Pid(2))
            .is_none_or(|process| process.comm != "kthreadd")
    );
    assert!(
        table
            .iter()
            .all(|process| !process.identity.service.name.is_empty())
    );
}

/// Processes that end with the test.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Check that hundreds of processes that come and go leave nothing behind, and that each that is seen
/// is told once when it comes and once when it goes.
#[test]
fn churn_leaves_nothing_behind() {
    let mut table = ProcessTable::new(Vec::new());
    let mut seen: BTreeSet<ProcessKey> = BTreeSet::new();
    let mut account = |table: &ProcessTable, changes: &Changes| {
        for process in &changes.removed {
            seen.remove(&process.key);
        }
        for pid in &changes.added {
            let key = table.get(*pid).unwrap().key;
            assert!(seen.insert(key), "{pid} came twice");
        }
        let kept: BTreeSet<_> = table.iter().map(|p| p.key).collect();
        assert_eq!(seen, kept);
    };
    let changes = table.scan().unwrap();
    account(&table, &changes);
    let mut ours = BTreeSet::new();
    for _ in 0..8 {
        let sleep = || {
            let sleep = Command::new("sleep")
                .arg("1000")
                .env("SW_AGENT_NAME", "churn")
                .spawn();
            sleep.unwrap()
        };
        let children = Children((0..40).map(|_| sleep()).collect());
        let changes = table.scan().unwrap();
        account(&table, &changes);
        let pids = children.0.iter().map(|child| Pid(child.id()));
        ours.extend(pids);
        assert!(
            children
                .0
                .iter()
                .all(|child| table.get(Pid(child.id())).is_some())
        );
        drop(children);
    }
    let changes = table.scan().unwrap();
    account(&table, &changes);
    assert!(ours.iter().all(|&pid| table.get(pid).is_none()));
    assert_eq!(table.processes_of_name("churn").count(), 0);
}

/// Check that an id in use again is another process, and that one whose files are gone is none.
#[test]
fn an_id_may_come_again() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("4000000");
    std::fs::create_dir(&folder).unwrap();
    let write = |start_ticks: u32| {
        let fields = format!("0 0 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 {start_ticks} 0 0 0 0 0 1 0");
        std::fs::write(folder.join("stat"), format!("4000000 (shop) S 1 {fields}")).unwrap();
    };
    write(100);
    let mut table = ProcessTable::new(Vec::new());
    table.procfs = Procfs::new(root.path());
    let pid = Pid(4_000_000);
    assert_eq!(table.scan().unwrap().added, [pid]);
    assert_eq!(table.get(pid).unwrap().identity.service.name, "shop");
    write(200);
    let changes = table.scan().unwrap();
    assert_eq!(changes.added, [pid]);
    assert_eq!(changes.removed[0].key.start_ticks, 100);
    assert!(changes.changed.is_empty());
    std::fs::remove_file(folder.join("stat")).unwrap();
    let changes = table.scan().unwrap();
    assert_eq!(changes.removed[0].key.start_ticks, 200);
    assert_eq!(table.iter().count(), 0);
}

/// Check that processes of one instance are reported once, and that services which an OAP takes for one
/// are told.
#[test]
fn instances_are_reported_once() {
    let name = |end: &str| format!("{}{end}", "n".repeat(70));
    let start = |name: &str, instance: &str| {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").env("SW_AGENT_NAME", name);
        sleep
            .env("SW_AGENT_INSTANCE_NAME", instance)
            .spawn()
            .unwrap()
    };
    let children = [
        start(&name("-a"), "one"),
        start(&name("-a"), "one"),
        start(&name("-b"), "two"),
    ];
    let _children = Children(children.into());
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    let of_ours = table.instances().filter(|i| i.service.name == name(""));
    let instances: Vec<_> = of_ours.map(|i| i.service.instance.as_str()).collect();
    assert_eq!(instances, ["one", "two"]);
    let clashes = table.clashes();
    let full = clashes[name("").as_str()]
        .iter()
        .copied()
        .collect::<Vec<_>>();
    assert_eq!(full, [name("-a"), name("-b")]);
}

/// A process with this name and instance, of a user.
fn of_user(uid: u32, name: &str) -> Child {
    let mut sleep = Command::new("sleep");
    sleep
        .arg("1000")
        .env("SW_AGENT_NAME", name)
        .env("SW_AGENT_INSTANCE_NAME", "one");
    sleep.current_dir("/").uid(uid).gid(uid).spawn().unwrap()
}

/// Skips where all processes of a test belong together: in a container or a unit.
macro_rules! needs_no_common_place {
    () => {
        let own = Cgroup::parse(&Procfs::default().cgroup(Pid(std::process::id())).unwrap());
        if own.container.is_some() || own.systemd_unit.is_some() {
            skip!("the tests run in a container or a unit, whose processes are one service");
        }
    };
}

/// Check that a process of another user who gives it the name and the instance of a service does not join that, whoever
/// comes first, is told, and gets the name when the other is gone.
#[test]
fn another_user_is_another_service() {
    needs_root!();
    needs_no_common_place!();
    const NAME: &str = "table-test-users";
    let impostor = Children(vec![of_user(1001, NAME)]);
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    let service = |table: &ProcessTable, child: &Child| {
        table
            .get(Pid(child.id()))
            .unwrap()
            .identity
            .service
            .name
            .clone()
    };
    assert_eq!(service(&table, &impostor.0[0]), NAME);
    assert_eq!(table.posing().filter(|(_, name)| *name == NAME).count(), 0);
    let real = Children(vec![of_user(0, NAME), of_user(0, NAME)]);
    let changes = table.scan().unwrap();
    assert!(changes.changed.contains(&Pid(impostor.0[0].id())));
    assert_eq!(
        service(&table, &impostor.0[0]),
        format!("{NAME} (uid 1001)")
    );
    assert!(real.0.iter().all(|child| service(&table, child) == NAME));
    let shop = Service {
        name: NAME.to_owned(),
        instance: "one".to_owned(),
    };
    assert_eq!(table.processes_of(&shop).count(), 2);
    assert_eq!(table.processes_of_name(NAME).count(), 2);
    let posing: Vec<_> = table.posing().filter(|(_, name)| *name == NAME).collect();
    assert_eq!(posing.len(), 1);
    assert_eq!(posing[0].0.uid, Some(1001));
    drop(real);
    assert!(
        table
            .scan()
            .unwrap()
            .changed
            .contains(&Pid(impostor.0[0].id()))
    );
    assert_eq!(service(&table, &impostor.0[0]), NAME);
}

/// Check that a master that runs as root and its workers that do not are one service, whatever a scan saw of them first,
/// and that an impostor of the workers' name is none of them.
#[test]
fn workers_that_drop_privileges_stay() {
    needs_root!();
    needs_no_common_place!();
    const NAME: &str = "table-test-workers";
    let script = "import os\nfor _ in range(2):\n r,w=os.pipe()\n pid=os.fork()\n if pid==0:\n  os.close(w)\n  os.read(r,1)\n  os.setgid(33)\n  os.setuid(33)\n  os.write(1,b'up\\n')\n  os.read(0,1)\n  os._exit(0)\n print(pid,w,flush=True)\ninput()\nos.write(4,b'x')\nos.write(6,b'x')\ninput()";
    let child = Command::new("python3")
        .args(["-c", script])
        .env("SW_AGENT_NAME", NAME)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut master = Shell(child);
    let workers: Vec<Pid> = (0..2)
        .map(|_| Pid(master.read().split(' ').next().unwrap().parse().unwrap()))
        .collect();
    let _impostor = Children(vec![of_user(1001, NAME)]);
    let mut table = ProcessTable::new(Vec::new());
    table.scan().unwrap();
    let users = |table: &ProcessTable| -> Vec<Option<u32>> {
        table
            .processes_of_name(NAME)
            .map(|process| process.uid)
            .collect()
    };
    assert_eq!(users(&table), [Some(0); 3]);
    assert_eq!(master.run(""), "up");
    assert_eq!(master.read(), "up");
    table.scan().unwrap();
    assert_eq!(users(&table), [Some(0), Some(33), Some(33)]);
    assert!(
        workers
            .iter()
            .all(|&pid| table.get(pid).unwrap().identity.service.name == NAME)
    );
    assert_eq!(table.posing().filter(|(_, name)| *name == NAME).count(), 1);
    for pid in workers {
        let pid = nix::unistd::Pid::from_raw(pid.0.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

/// Check that a pod that becomes known later names its processes, and that they keep the name.
#[test]
fn a_pod_names_its_processes() {
    let mut table = ProcessTable::new(Vec::new());
    let shell = Shell::start("");
    let pid = shell.pid();
    table.scan().unwrap();
    let uid = "6ab0d9b8-37d4-4a9f-8a4b-2f8f6f7b3a55";
    let cgroup = Cgroup::parse(&format!("0::/kubepods/burstable/pod{uid}/x"));
    Arc::make_mut(table.processes.0.get_mut(&pid).unwrap()).cgroup = cgroup;
    let mut pods = Pods::default();
    let pod = Pod {
        name: "shop-1".to_owned(),
        namespace: "prod".to_owned(),
        workload: Some("shop".to_owned()),
        ..Pod::default()
    };
    pods.insert(uid.to_owned(), pod);
    for pods in [pods, Pods::default()] {
        table.set_pods(Arc::new(pods));
        table.scan().unwrap();
        let identity = &table.get(pid).unwrap().identity;
        assert_eq!(identity.service.name, "shop.prod");
        assert!(identity.service.instance.starts_with("shop-1:"));
    }
}

/// Check that a process of a pod is denied until its pod is known, and when the pod refuses; that it is not among those of its
/// service then; and that rules and choice can be replaced.
#[test]
fn a_denied_process_is_none_of_its_service() {
    let settings = KubernetesSettings::default();
    let mut table = ProcessTable::new(Vec::new());
    let shell = Shell::start("chosen");
    let pid = shell.pid();
    table.scan().unwrap();
    assert!(table.get(pid).unwrap().may_serve());
    let uid = "6ab0d9b8-37d4-4a9f-8a4b-2f8f6f7b3a55";
    let cgroup = Cgroup::parse(&format!("0::/kubepods/burstable/pod{uid}/x"));
    Arc::make_mut(table.processes.0.get_mut(&pid).unwrap()).cgroup = cgroup;
    let mut scan = |pod: Option<Option<bool>>, settings: &KubernetesSettings| {
        if let Some(may_profile) = pod {
            let mut pods = Pods::default();
            let pod = Pod {
                namespace: "prod".to_owned(),
                may_profile,
                ..Pod::default()
            };
            pods.insert(uid.to_owned(), pod);
            table.set_pods(Arc::new(pods));
        }
        table.set_rules(Vec::new(), Choice::new(settings, true));
        let changes = table.scan().unwrap();
        let process = table.get(pid).unwrap();
        let denial = process.denial.clone();
        assert_eq!(process.may_serve(), denial.is_none());
        assert!(process.is_server());
        let others = table.processes_of_name("chosen");
        assert_eq!(others.count(), usize::from(denial.is_none()));
        assert_eq!(table.denial_of_name("chosen"), denial.as_ref());
        (denial, changes.changed.contains(&pid))
    };
    assert_eq!(scan(None, &settings), (Some(Denial::UnknownPod), true));
    assert_eq!(scan(Some(None), &settings), (None, true));
    assert_eq!(scan(None, &settings), (None, false));
    assert_eq!(
        scan(Some(Some(false)), &settings),
        (Some(Denial::Refused), true)
    );
    assert_eq!(scan(Some(None), &settings), (None, true));
    let opt_in = KubernetesSettings {
        only_annotated: true,
        ..settings
    };
    assert_eq!(scan(None, &opt_in), (Some(Denial::NotAsked), true));
    assert_eq!(scan(Some(Some(true)), &opt_in), (None, true));
    let everything = ServiceRule {
        matches: RuleMatch {
            namespace: Some("prod".to_owned()),
            ..RuleMatch::default()
        },
        service: Template::parse("renamed", &[]).unwrap(),
        ..ServiceRule::default()
    };
    table.set_rules(vec![everything], Choice::new(&opt_in, true));
    table.scan().unwrap();
    assert_eq!(table.get(pid).unwrap().identity.service.name, "renamed");
}

/// Check that a server in another network namespace is found, and its second port when that opens
/// long after it was young.
#[test]
fn ports_of_another_namespace_are_found() {
    let script = "import socket\ns=[]\nfor port in (8080,7070):\n x=socket.socket()\n x.bind(('0.0.0.0',port))\n x.listen()\n s.append(x)\n print('up',flush=True)\n input()";
    let child = Command::new("unshare")
        .args(["--net", "python3", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Shell(child);
    if server.read() != "up" {
        skip!("no network namespace may be made here");
    }
    let pid = server.pid();
    let mut table = ProcessTable::new(Vec::new());
    for _ in 0..=YOUNG_SCANS {
        table.scan().unwrap();
        assert_eq!(table.get(pid).unwrap().listen_ports, [8080]);
    }
    // Its namespace has no place of its own, so the port alone would not tell instances apart.
    let instance = &table.get(pid).unwrap().identity.service.instance;
    assert!(instance.ends_with(&format!(":{pid}")), "{instance}");
    assert_eq!(server.run(""), "up");
    assert!(table.scan().unwrap().changed.contains(&pid));
    assert_eq!(table.get(pid).unwrap().listen_ports, [7070, 8080]);
}
