//! No tag survives its thread, its process or its connection.

use profiler_common::{EndReason, KernelCounter};
use profiler_daemon::model::{Pid, RequestEvent};

use crate::harness::{Server, Watch};

/// Check that a server killed in the middle of requests leaves no tag, and that its end is told.
#[test]
fn a_killed_server_leaves_no_tag() {
    let mut server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/forever");
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect();
        client.send(b"GET /forever HTTP/1.1\r\n\r\n");
        clients.push(client);
    }
    watch.wait("tags", |watch| watch.kernel.tags().len() == 3);
    let pid = server.pid();
    server.kill();
    // From Linux 7.0 on a thread may be preempted in the program at its end. That of another thread, which ends on this
    // CPU meanwhile, is left out then, and counted.
    let left_out = watch.kernel.left_out_runs();
    let tags = watch.kernel.tags();
    assert!(
        tags.len() as u64 <= left_out,
        "{left_out} left out; {tags:?}"
    );
    watch.wait("ends", |watch| watch.ends().len() as u64 + left_out >= 3);
    for (_, reason) in watch.ends() {
        assert_eq!(reason, EndReason::ThreadExit);
    }
    if left_out == 0 {
        watch.wait("exit", |watch| has_exited(watch, pid));
        assert_eq!(watch.kernel.targets(), []);
    }
}

fn has_exited(watch: &Watch, pid: Pid) -> bool {
    let is_it =
        |event: &RequestEvent| matches!(event, RequestEvent::Exit { pid: of, .. } if *of == pid);
    watch.events.iter().any(is_it)
}

#[track_caller]
fn wait_for_exec(watch: &mut Watch, pid: Pid) {
    let is_it =
        |event: &RequestEvent| matches!(event, RequestEvent::Exec { pid: of, .. } if *of == pid);
    watch.wait("exec", |watch| watch.events.iter().any(is_it));
}

/// Check that a server that executes another program leaves no tag.
#[test]
fn a_server_that_executes_another_program_leaves_no_tag() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/exec");
    let mut client = server.connect();
    client.send(b"GET /exec HTTP/1.1\r\n\r\n");
    wait_for_exec(&mut watch, server.pid());
    assert_eq!(watch.kernel.tags(), []);
    assert_eq!(watch.ends().len(), 1);
}

/// Check that a connection which a process keeps over an exec has no state of the program before: the next head on it
/// begins a request, and is not taken for pipelining.
#[test]
fn a_connection_kept_over_an_exec_begins_anew() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/after");
    let mut client = server.connect();
    client.send(b"GET /inherit HTTP/1.1\r\n\r\n");
    wait_for_exec(&mut watch, server.pid());
    assert_eq!(
        watch.kernel.connection_count(),
        1,
        "nobody goes through all"
    );
    assert_eq!(client.get("/after"), b"ok\n");
    client.close();
    watch.wait_for_ends(1);
    let starts = watch.starts();
    assert_eq!(starts.len(), 1);
    assert_eq!(watch.ends(), [(starts[0].0, EndReason::Closed)]);
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 0);
}

/// Check that a forked child joins the target set and leaves it when it exits.
#[test]
fn a_forked_child_joins_and_leaves_the_target_set() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/fork");
    let mut client = server.connect();
    client.get("/fork");
    let parent = server.pid();
    let mut child = Pid(0);
    watch.wait("fork and exit", |watch| {
        for event in &watch.events {
            if let RequestEvent::Fork {
                parent: of,
                child: pid,
                ..
            } = event
            {
                assert_eq!(*of, parent);
                child = *pid;
            }
        }
        has_exited(watch, child)
    });
    let targets: Vec<_> = watch
        .kernel
        .targets()
        .into_iter()
        .map(|target| target.0)
        .collect();
    assert_eq!(targets, [parent]);
}

/// Check that detaching forgets everything but rules and targets, and that nothing arrives then.
#[test]
fn detaching_forgets_connections_and_tags() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/sleep");
    let mut client = server.connect();
    client.send(b"GET /sleep HTTP/1.1\r\n\r\n");
    watch.wait("tag", |watch| watch.kernel.tags().len() == 1);
    watch.kernel.detach().unwrap();
    assert_eq!(watch.kernel.tags(), []);
    assert_eq!(watch.kernel.connection_count(), 0);
    watch.drain();
    let before = watch.events.len();
    client.response();
    client.get("/sleep");
    watch.drain();
    assert_eq!(watch.events.len(), before);
    assert_eq!(watch.kernel.targets().len(), 1);
}
