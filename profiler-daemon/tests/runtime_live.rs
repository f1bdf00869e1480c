//! Asks real programs of several languages what they run, and which agent is in them.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use profiler_daemon::model::Pid;
use profiler_daemon::process::{Agent, AgentLanguage, NamedFrames, RequestModel, Runtime};
use profiler_test_support::{pythons, skip};

/// A child process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a program that waits for its standard input. It has been executed when this returns,
    /// though it may still load its libraries.
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Waits for a line of output.
    fn wait_for_line(mut self) -> Self {
        let mut line = String::new();
        let mut stdout = BufReader::new(self.0.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        self
    }

    fn runtime(&self) -> Runtime {
        Runtime::detect(Pid(self.0.id())).unwrap()
    }

    fn agent(&self, command: &[&str]) -> Option<Agent> {
        let command: Vec<String> = command
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        Agent::detect(Pid(self.0.id()), &self.runtime(), &command).unwrap()
    }
}

/// The program in `PATH` or where Go installs itself; the test is skipped without it.
macro_rules! find {
    ($program:literal) => {
        match find($program) {
            Some(program) => program,
            None => skip!("no {} on this machine", $program),
        }
    };
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/go/bin")])
        .map(|directory| directory.join(program))
        .find(|program| program.is_file())
}

/// Check that a program without a language runtime is native.
#[test]
fn cat_is_native() {
    let running = Running::start(&mut Command::new("cat"));
    assert_eq!(running.runtime(), Runtime::Native);
}

/// Check that every CPython is recognised with the version that it prints.
#[test]
fn pythons_are_recognised_with_their_version() {
    for python in pythons() {
        let mut command = Command::new(&python);
        command.args(["-c", "import os; print(flush=True); os.read(0, 1)"]);
        let running = Running::start(&mut command).wait_for_line();
        let printed = Command::new(&python).arg("-V").output().unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        let runtime = running.runtime();
        assert_eq!(format!("{runtime}\n"), format!("C{printed}"));
        assert_eq!(runtime.request_model(), RequestModel::ThreadPerRequest);
    }
}

/// Check that a Go program is recognised with the version of its tool chain, and that its request
/// model is refused.
#[test]
fn gofmt_is_go() {
    let (go, gofmt) = (find!("go"), find!("gofmt"));
    let running = Running::start(&mut Command::new(gofmt));
    let output = Command::new(go)
        .args(["env", "GOVERSION"])
        .output()
        .unwrap();
    let version = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let runtime = running.runtime();
    assert_eq!(
        runtime,
        Runtime::Go {
            version: Some(version)
        }
    );
    assert!(matches!(
        runtime.request_model(),
        RequestModel::Unsupported(_)
    ));
}

/// Check that Node.js is recognised, and that its request model is refused.
#[test]
fn node_is_node() {
    let node = find!("node");
    let mut command = Command::new(node);
    command.args(["-e", "process.stdin.resume(); console.log()"]);
    let running = Running::start(&mut command).wait_for_line();
    assert_eq!(running.runtime(), Runtime::Node);
    assert!(matches!(
        Runtime::Node.request_model(),
        RequestModel::Unsupported(_)
    ));
}

/// Check that a Java program is recognised by the virtual machine it loads.
#[test]
fn java_is_a_jvm() {
    // A program in one file is compiled first.
    let (java, _) = (find!("java"), find!("javac"));
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("Wait.java");
    let program = "public class Wait { public static void main(String[] a) throws Exception { \
                   System.out.println(); System.in.read(); } }";
    std::fs::write(&source, program).unwrap();
    let running = Running::start(Command::new(java).arg(source)).wait_for_line();
    let runtime = running.runtime();
    assert!(matches!(runtime, Runtime::Jvm { version: Some(_) }));
    let named = runtime.named_frames();
    assert!(matches!(named, NamedFrames::NativeOnly(why) if why.contains("Java")));
}

/// Check that a Python program under `sw-python` has an agent, and one without has none.
#[test]
fn an_agent_of_python_is_recognised() {
    let packages = tempfile::tempdir().unwrap();
    std::fs::create_dir(packages.path().join("apache_skywalking-1.2.0.dist-info")).unwrap();
    // An empty folder in place of the loader: the interpreter goes on without it.
    let loader = packages.path().join("skywalking/bootstrap/loader");
    for python in pythons() {
        let mut command = Command::new(&python);
        command.args(["-c", "import os; print(flush=True); os.read(0, 1)"]);
        command.env_remove("PYTHONPATH").env_remove("SW_AGENT_NAME");
        assert_eq!(
            Running::start(&mut command).wait_for_line().agent(&[]),
            None
        );
        command
            .env("PYTHONPATH", &loader)
            .env("SW_AGENT_NAME", "shop");
        command.env("SW_AGENT_PROFILE_ACTIVE", "false");
        let agent = Running::start(&mut command).wait_for_line().agent(&[]);
        let agent = agent.unwrap();
        assert_eq!(agent.to_string(), "Python 1.2.0, profiler off");
        assert_eq!(agent.service.as_deref(), Some("shop"));
    }
}

/// Check that a JVM with an agent whose jar starts SkyWalking's class has it, with the jar's version.
#[test]
fn an_agent_of_java_is_recognised() {
    let (java, javac, jar) = (find!("java"), find!("javac"), find!("jar"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(
        path("SkyWalkingAgent.java"),
        "package org.apache.skywalking.apm.agent; public class SkyWalkingAgent {
           public static void premain(String options) { }
           public static void main(String[] a) throws Exception { System.out.println(); System.in.read(); } }",
    )
    .unwrap();
    std::fs::write(
        path("manifest"),
        "Implementation-Version: 9.4.0\nPremain-Class: org.apache.skywalking.apm.agent.SkyWalkingAgent\n",
    )
    .unwrap();
    let run = |command: &mut Command| {
        assert!(
            command
                .current_dir(folder.path())
                .status()
                .unwrap()
                .success()
        );
    };
    run(Command::new(javac).args(["-d", ".", "SkyWalkingAgent.java"]));
    run(Command::new(jar).args(["cfm", "agent.jar", "manifest", "org"]));
    let arguments = [
        "-javaagent:agent.jar=profile.active=false,agent.service_name=shop",
        "-cp",
        "agent.jar",
        "org.apache.skywalking.apm.agent.SkyWalkingAgent",
    ];
    let mut command = Command::new(java);
    command.args(arguments).current_dir(folder.path());
    let running = Running::start(&mut command).wait_for_line();
    let agent = running
        .agent(&[&["java"][..], &arguments].concat())
        .unwrap();
    assert_eq!(agent.language, AgentLanguage::Java);
    assert_eq!(agent.version.as_deref(), Some("9.4.0"));
    assert_eq!(agent.service.as_deref(), Some("shop"));
    assert_eq!(agent.profiles, Some(false));
}
