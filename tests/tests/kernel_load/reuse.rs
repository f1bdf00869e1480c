//! Descriptors that are given away while the close that has freed them is still under way.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use profiler_common::{EndReason, KernelCounter};
use profiler_daemon::model::{Pid, RequestEvent};

use crate::harness::Watch;

/// A descriptor that no other test of this process is given.
const FD: i32 = 700;
/// How long a close waits for its client.
const LINGER: Duration = Duration::from_secs(10);

/// A new connection: both ends.
fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Has a client ask for a target, and reads that.
fn ask(client: &mut TcpStream, server: &mut TcpStream, target: &str) {
    let head = format!("GET {target} HTTP/1.1\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    assert_ne!(server.read(&mut [0; 256]).unwrap(), 0);
}

/// Answers with more than fits between the two ends.
fn answer_at_length(server: &mut TcpStream) {
    server.set_nonblocking(true).unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let bytes = vec![b'.'; 1 << 20];
    loop {
        match server.write(&bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    server.set_nonblocking(false).unwrap();
}

/// Moves a connection to [`FD`].
fn move_to_fd(server: TcpStream, is_free: bool) -> TcpStream {
    let fd = if is_free {
        fcntl(&server, FcntlArg::F_DUPFD_CLOEXEC(FD)).unwrap()
    } else {
        // SAFETY: whatever the descriptor names is closed.
        unsafe { libc::dup2(server.as_raw_fd(), FD) }
    };
    assert_eq!(fd, FD);
    // SAFETY: nobody else owns it.
    TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_free(fd: i32) -> bool {
    // SAFETY: the descriptor is only asked about.
    unsafe { libc::fcntl(fd, libc::F_GETFD) == -1 }
}

/// Check that a close that returns when its descriptor is another connection's ends the request of the one that it
/// has closed, and not that of the other one, which is followed to its own end.
#[test]
fn a_late_close_is_not_of_the_descriptors_next_connection() {
    // The next connection's head may be read in the instant in which the close removes the record of the one before: then
    // its request is not followed, and counted.
    const TRIES: u32 = 10;
    let is_followed = (0..TRIES).any(|_| a_late_close() == 0);
    assert!(is_followed, "left out {TRIES} times");
}

/// Closes late, and gives the descriptor away meanwhile. Returns how many hooks were left out.
fn a_late_close() -> u64 {
    let this = Pid(std::process::id());
    let mut watch = Watch::new(this, "/late/");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut slow_client, slow) = connection(&listener);
    // From here on its only descriptor.
    let mut slow = move_to_fd(slow, true);
    ask(&mut slow_client, &mut slow, "/late/first");
    answer_at_length(&mut slow);
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: i32::try_from(LINGER.as_secs()).unwrap(),
    };
    setsockopt(&slow, sockopt::Linger, &linger).unwrap();
    // From Linux 6.6 on the call returns when the client has taken all, or has left.
    let close = std::thread::spawn(move || drop(slow));
    watch.wait("free descriptor", |_| is_free(FD));

    let (mut client, server) = connection(&listener);
    let mut server = move_to_fd(server, false);
    ask(&mut client, &mut server, "/late/second");
    drop(slow_client);
    close.join().unwrap();
    write!(server, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    drop(server);
    drop(client);

    let left_out =
        |watch: &Watch| watch.kernel.left_out_runs() + watch.count(KernelCounter::HookBusy);
    watch.wait("end of both requests", |watch| {
        watch.ends().len() == 2 || left_out(watch) > 0
    });
    if left_out(&watch) > 0 {
        return left_out(&watch);
    }
    let starts = watch.starts();
    let [(first, ..), (second, ..)] = starts[..] else {
        panic!("{starts:?}");
    };
    let (id, reason) = watch.ends()[0];
    assert_eq!(id, first);
    // Told by the close itself, by the call that has put the next connection in its place, or, if the close had not
    // come to its socket by then, by that connection's head.
    let reasons = [
        EndReason::Closed,
        EndReason::DupOver,
        EndReason::SocketReplaced,
    ];
    assert!(reasons.contains(&reason), "{reason:?}");
    assert_eq!(watch.ends()[1..], [(second, EndReason::Closed)]);
    assert_eq!(watch.written(second), Some(27));
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 0);
    0
}

/// Connections of the storm, one request each.
const STORM: usize = 1000;
/// Threads that serve them, and as many that ask.
const STORM_THREADS: usize = 4;
const STORM_ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// Asks so often, by so many threads, and reads each answer up to the close.
const STORM_CLIENT: &str = r#"
import socket, sys, threading
port, requests, threads = map(int, sys.argv[1:])

def ask():
    for _ in range(requests // threads):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /storm HTTP/1.1\r\n\r\n")
            while connection.recv(4096):
                pass

all_threads = [threading.Thread(target=ask) for _ in range(threads)]
for thread in all_threads:
    thread.start()
for thread in all_threads:
    thread.join()
"#;

/// Answers one request per connection, which is closed then. The descriptor goes to a connection of another thread.
fn serve_storm(listener: &TcpListener) {
    for _ in 0..STORM / STORM_THREADS {
        let (mut server, _) = listener.accept().unwrap();
        assert_ne!(server.read(&mut [0; 256]).unwrap(), 0);
        server.write_all(STORM_ANSWER).unwrap();
    }
}

/// Check that threads that close and accept the same few descriptors at the same time do not end each other's requests:
/// each has one end, behind its whole answer.
#[test]
fn threads_that_share_descriptors_do_not_end_each_others_requests() {
    let mut watch = Watch::new(Pid(std::process::id()), "/storm");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut client = Command::new("python3");
    client.args(["-c", STORM_CLIENT, &port]);
    client.args([STORM, STORM_THREADS].map(|number| number.to_string()));
    let mut client = client.spawn().unwrap();
    std::thread::scope(|scope| {
        let threads = [(); STORM_THREADS].map(|()| scope.spawn(|| serve_storm(&listener)));
        while threads.iter().any(|thread| !thread.is_finished()) {
            watch.drain();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert!(client.wait().unwrap().success());
    watch.drain();

    let left_out = watch.kernel.left_out_runs() + watch.count(KernelCounter::HookBusy);
    let starts = watch.starts();
    let is_told = starts.len() as u64 + left_out >= STORM as u64;
    assert!(is_told, "{} requests, {left_out} left out", starts.len());
    let mut written = BTreeMap::<_, Vec<_>>::new();
    for event in &watch.events {
        if let RequestEvent::End {
            id, written_bytes, ..
        } = event
        {
            written.entry(*id).or_default().push(*written_bytes);
        }
    }
    let whole = vec![STORM_ANSWER.len() as u64];
    let wrong = starts
        .iter()
        .filter(|(id, ..)| written.get(id) != Some(&whole));
    let wrong: Vec<_> = wrong.map(|(id, ..)| (id, written.get(id))).collect();
    assert!(
        wrong.len() as u64 <= left_out,
        "{left_out} left out; {wrong:?}"
    );
}
