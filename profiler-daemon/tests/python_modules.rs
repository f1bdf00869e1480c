//! Signatures of live Python functions: packages as far as they can be known, and no two files alike.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use profiler_daemon::model::{AddrFrame, Coverage, Pid, UnwindEnd};
use profiler_daemon::process::ProcessMemory;
use profiler_daemon::process::python::{CodeSignature, PythonNamer, PythonRuntime};
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;
use profiler_test_support::{ChildGuard, needs_root, pythons};

const SCRIPT: &str = include_str!("fixtures/python_modules.py");

/// A Python process that has printed a line and waits for the end of its input.
struct Blocked(ChildGuard);

impl Blocked {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ChildGuard::spawn("python", command).unwrap();
        let mut line = String::new();
        let stdout = child.process().stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?}");
        Self(child)
    }

    /// Signatures of the main thread, innermost first.
    fn signatures(&self, namer: &mut PythonNamer) -> Vec<String> {
        let pid = Pid(self.0.id());
        let runtime = PythonRuntime::detect(pid).unwrap().unwrap();
        let memory = ProcessMemory::new(pid);
        let chain = walk_chain(&memory, &runtime, pid.0);
        let merged = merge(&[], UnwindEnd::StackCut, &[], Some((&chain, &runtime)));
        let mut losses = Coverage::default();
        let named = merged.frames.into_iter().filter_map(|frame| match frame {
            AddrFrame::Python(python) => namer.frame(&memory, &runtime, python, &mut losses),
            other => panic!("{other:?} in a Python chain"),
        });
        let named = named.map(|frame| frame.signature.to_string()).collect();
        assert_eq!(losses, Coverage::default());
        named
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Functions without their lines.
fn functions(signatures: &[String]) -> Vec<&str> {
    signatures
        .iter()
        .map(|signature| signature.rsplit_once(':').unwrap().0)
        .collect()
}

/// Check that functions of one name and line in files of one name have the names of their packages,
/// or their paths, and that no two of them are alike.
#[test]
fn functions_of_different_files_have_different_signatures() {
    for python in pythons() {
        let folder = tempfile::tempdir().unwrap();
        let app = folder.path().join("app");
        write(&app.join("main.py"), SCRIPT);
        let process = Blocked::start(Command::new(&python).arg("main.py").current_dir(&app));
        let mut namer = PythonNamer::default();
        let signatures = process.signatures(&mut namer);
        assert_eq!(process.signatures(&mut namer), signatures, "they are kept");

        let runs = signatures.iter().filter(|name| name.ends_with(".run:2"));
        let runs: Vec<&str> = runs.map(String::as_str).rev().collect();
        let path = |text: &str| folder.path().join(text).display().to_string();
        let context = format!("{}: {runs:#?}", python.display());
        assert_eq!(
            runs[..2],
            ["a.handlers.run:2", "b.handlers.run:2"],
            "{context}"
        );
        // The inner one of a class and a module of one name was named first.
        assert_eq!(
            runs[2..4],
            [&path("app/shop/__init__.py.cart.run:2"), "shop.cart.run:2"],
            "{context}"
        );
        assert_eq!(runs[4], "views.run:2", "{context}");
        assert_eq!(
            runs[5..7],
            [
                path("app/second/views.py.run:2"),
                path("elsewhere.py.run:2")
            ],
            "{context}"
        );
        assert_eq!(
            runs[7..11],
            [
                "web.app.run:2",
                "zipped.inner.run:2",
                "<string>.run:2",
                "relative.thing.run:2"
            ],
            "{context}"
        );
        assert!(
            runs[11..].iter().all(|name| name.starts_with('/')),
            "{context}"
        );
        assert_eq!(runs.len(), 16, "{context}");
        let different: BTreeSet<&str> = runs.iter().copied().collect();
        assert_eq!(different.len(), runs.len(), "{context}");
        assert!(
            signatures
                .iter()
                .all(|name| !name.contains(char::is_control))
        );

        // The script itself, and what called it.
        let outer = signatures[signatures.len() - 2..].to_vec();
        assert_eq!(functions(&outer), ["main.main", "main.<module>"]);
    }
}

/// Check that a module that is run by `-m` has its own name, and that what Python froze keeps its own.
#[test]
fn a_module_run_by_name_has_its_package() {
    for python in pythons() {
        let folder = tempfile::tempdir().unwrap();
        let text = "def main():\n    print('ready', flush=True)\n    input()\nmain()\n";
        for file in [
            "shop/__init__.py",
            "shop/tools/__main__.py",
            "shop/serve.py",
        ] {
            let text = if file.ends_with("__init__.py") {
                ""
            } else {
                text
            };
            write(&folder.path().join(file), text);
        }
        for (arguments, module) in [
            (&["-m", "shop.serve"][..], "shop.serve"),
            (&["-m", "shop.tools"], "shop.tools.__main__"),
            (&["shop/tools"], "tools.__main__"),
            (&["shop/serve.py"], "shop.serve"),
            // Without the script's folder in `sys.path`.
            (&["-I", "shop/serve.py"], "shop.serve"),
        ] {
            let mut command = Command::new(&python);
            let process = Blocked::start(command.args(arguments).current_dir(folder.path()));
            let signatures = process.signatures(&mut PythonNamer::new(CodeSignature::Function));
            let context = format!("{} {arguments:?}: {signatures:?}", python.display());
            assert_eq!(signatures[0], format!("{module}.main:1"), "{context}");
            assert_eq!(signatures[1], format!("{module}.<module>:1"), "{context}");
            if arguments[0] == "-m" {
                assert!(signatures[2].starts_with("runpy._run_code:"), "{context}");
            }
        }
    }
}

/// Check that the files of a process are looked for where the process sees them: in a mount namespace
/// of its own, and in a root that is a folder of ours.
#[test]
fn packages_are_looked_for_in_the_root_of_the_process() {
    needs_root!();
    let text = "def main():\n    print('ready', flush=True)\n    input()\nmain()\n";
    let folder = tempfile::tempdir().unwrap();
    let hidden: PathBuf = folder.path().join("mounted");
    std::fs::create_dir(&hidden).unwrap();
    for python in pythons() {
        let script = "set -e; mount -t tmpfs none \"$1\"; mkdir \"$1/shop\"; cd \"$1/shop\"; \
            : > __init__.py; printf %s \"$3\" > serve.py; exec \"$2\" serve.py";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        let process = Blocked::start(command.arg(&hidden).arg(&python).arg(text));
        let signatures = process.signatures(&mut PythonNamer::default());
        assert_eq!(signatures, ["shop.serve.main:1", "shop.serve.<module>:1"]);

        // Below the new root everything is there again, this folder included.
        let root = folder.path().join("root");
        let site = folder.path().join("site");
        std::fs::create_dir_all(&root).unwrap();
        write(&site.join("store/serve.py"), text);
        let script = "set -e; mount --rbind / \"$1\"; exec chroot \"$1\" sh -c 'cd \"$1\"; exec \"$2\" -I store/serve.py' \
            sh \"$2\" \"$3\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        let process = Blocked::start(command.arg(&root).arg(&site).arg(&python));
        let signatures = process.signatures(&mut PythonNamer::default());
        assert_eq!(signatures, ["store.serve.main:1", "store.serve.<module>:1"]);
    }
}

/// Check that functions whose long names differ in the middle, at the end, or in a character that is not shown have
/// signatures of their own, of bounded length, and so have modules with long paths.
#[test]
fn long_names_stay_apart() {
    let python = &pythons()[0];
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("main.py");
    write(
        &script,
        r#"
import os
names = ["f" * 600 + "1", "f" * 600 + "2", "f" * 300 + "1" + "f" * 300, "e\udc01", "e\udc02"]
files = ["/srv/" + "d" * 200 + "/" + "e" * 200 + end for end in ("1.py", "2.py")]
call = lambda: (print("ready", flush=True), input())
def nest(inner, name, file):
    code = compile("def f(inner):\n    inner()\n", file, "exec")
    space = {}
    exec(code, space)
    f = space["f"]
    f.__code__ = f.__code__.replace(co_name=name, co_qualname=name)
    return lambda: f(inner)
for name in names:
    for file in files:
        call = nest(call, name, file)
call()
"#,
    );
    let process = Blocked::start(Command::new(python).arg(&script));
    let signatures = process.signatures(&mut PythonNamer::default());
    let long: Vec<&String> = signatures.iter().filter(|s| s.contains("/srv/")).collect();
    assert_eq!(long.len(), 10, "{signatures:#?}");
    let different: BTreeSet<&String> = long.iter().copied().collect();
    assert_eq!(different.len(), 10, "{long:#?}");
    assert!(long.iter().all(|s| s.chars().count() < 500), "{long:#?}");
    // The end is kept: what tells names apart most often.
    assert!(long.iter().any(|s| s.contains("ff2#")), "{long:#?}");
}

/// Check that one module below different roots has one name in two processes: replicas, and the releases of a rolling
/// deployment, are one service, and one function is one node of their tree.
#[test]
fn replicas_below_different_roots_have_the_same_names() {
    let text = "def main():\n    print('ready', flush=True)\n    input()\nmain()\n";
    let folder = tempfile::tempdir().unwrap();
    let mut namer = PythonNamer::default();
    let mut signatures = ["releases/1", "releases/2"].map(|release| {
        let root = folder.path().join(release);
        write(&root.join("shop/__init__.py"), "");
        write(&root.join("shop/serve.py"), text);
        let mut command = Command::new(&pythons()[0]);
        let process = Blocked::start(command.args(["-m", "shop.serve"]).current_dir(&root));
        process.signatures(&mut namer)
    });
    assert_eq!(signatures[0][0], "shop.serve.main:1");
    let [first, second] = &mut signatures;
    assert_eq!(first, second);
}
