//! Request lines of every form, and what may stand before them.

use std::time::Duration;

use profiler_common::KernelCounter;

use crate::calls::server;
use crate::harness::{Client, Watch};

const HEAD: &[u8] = b"GET /target HTTP/1.1\r\nHost: test\r\n\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Lets the server read what was sent before more comes.
fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

/// PROXY headers of both versions: with and without addresses, and with more than addresses.
fn proxy_headers() -> Vec<Vec<u8>> {
    let second = |command: &[u8; 2], rest: &[u8]| {
        let len = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, command, &len, rest].concat()
    };
    let addresses = [10, 0, 0, 1, 10, 0, 0, 2, 0xdb, 0x04, 0, 80];
    let unique_id = [&[5, 2, 88][..], &[b'i'; 600]].concat();
    vec![
        b"PROXY TCP4 10.0.0.1 10.0.0.2 56068 80\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::1 2001:db8::2 56068 80\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        second(b"\x21\x11", &addresses),
        second(b"\x20\x00", b""),
        second(b"\x21\x11", &[&addresses[..], &unique_id].concat()),
    ]
}

/// The heads that opened a request; each of them was seen, and nothing else was.
#[track_caller]
fn heads(watch: &mut Watch, count: usize) -> Vec<String> {
    watch.wait("answers", |watch| watch.responses().len() >= count);
    let heads: Vec<_> = watch.starts().into_iter().map(|start| start.2).collect();
    assert_eq!(heads.len(), count, "{heads:?}");
    assert_eq!(watch.count(KernelCounter::RequestsSeen), count as u64);
    assert_eq!(watch.count(KernelCounter::PartialHeadDropped), 0);
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 0);
    assert_eq!(watch.count(KernelCounter::NotServerSocket), 0);
    heads
}

/// Check that a PROXY header hides no request, read with the head or before it, at once or in pieces.
#[test]
fn a_proxy_header_hides_no_request() {
    // With the head; so that the header ends within a read; byte by byte, and then the head.
    for mode in ["proxied1000", "proxied16", "proxied1"] {
        let server = server(mode);
        let mut watch = Watch::new(server.pid(), "/target");
        let mut clients: Vec<Client> = Vec::new();
        for header in proxy_headers() {
            let mut client = server.connect();
            client.send(&[&header, HEAD].concat());
            client.response();
            clients.push(client);
        }
        let begin = |head: &String| head.starts_with("GET /target ");
        let heads = heads(&mut watch, clients.len());
        assert!(heads.iter().all(begin), "{mode}: {heads:?}");
        if mode == "proxied1000" {
            assert!(heads.iter().all(|head| head.as_bytes() == HEAD));
        }
    }
}

/// Check that a PROXY header and a head that arrive byte by byte are told apart.
#[test]
fn a_proxy_header_in_pieces_hides_no_request() {
    let server = server("proxied1000");
    let mut watch = Watch::new(server.pid(), "/target");
    let headers = proxy_headers();
    for header in &headers[..4] {
        let mut client = server.connect();
        for byte in [header, HEAD].concat() {
            client.send(&[byte]);
            pause();
        }
        client.response();
    }
    for head in heads(&mut watch, 4) {
        assert!(head.starts_with("GET /target "), "{head}");
    }
}

/// Check that requests of any method and form of target are seen, also behind empty lines.
#[test]
fn requests_of_any_method_and_form_are_seen() {
    let server = server("plain");
    let mut watch = Watch::new(server.pid(), "/target");
    let long = format!("{} /target HTTP/1.1", "M".repeat(31));
    let lines = [
        "PROPFIND /target HTTP/1.1",
        "REPORT /target HTTP/1.1",
        "MKCOL /target HTTP/1.1",
        "VERSION-CONTROL /target HTTP/1.1",
        "M-SEARCH /target;v=1 HTTP/1.1",
        "get /target HTTP/1.1",
        "PROXY /target HTTP/1.1",
        &long,
        "OPTIONS * HTTP/1.1",
        "CONNECT shop:443 HTTP/1.1",
        "GET http://shop/target HTTP/1.1",
        "PUT HTTPS://shop/target HTTP/1.1",
        "DELETE /t%61rget HTTP/1.1",
    ];
    for (number, line) in lines.iter().enumerate() {
        let mut client = server.connect();
        let empty = ["", "\r\n", "\n\r\n"][number % 3];
        client.send(format!("{empty}{line}\r\nHost: test\r\n\r\n").as_bytes());
        client.response();
    }
    let expected = lines.map(|line| format!("{line}\r\nHost: test\r\n\r\n"));
    assert_eq!(heads(&mut watch, lines.len()), expected);
}

/// Check that an unusual method in pieces is joined, and that commands of other protocols open nothing.
#[test]
fn unusual_methods_in_pieces_are_joined() {
    let server = server("proxied1000");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    for byte in b"PROXY UNKNOWN\r\nPROPPATCH /target HTTP/1.1\r\n\r\n" {
        client.send(&[*byte]);
        pause();
    }
    client.response();
    assert!(heads(&mut watch, 1)[0].starts_with("PROPPATCH /target HTTP/1"));

    for command in [
        "RETR /target\r\n",
        "RENAME /target /b\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(command.as_bytes());
        pause();
        client.close();
    }
    let mut client = server.connect();
    client.send(&[b"PROXY UNKNOWN\r\n", HEAD].concat());
    client.response();
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 2);
}
