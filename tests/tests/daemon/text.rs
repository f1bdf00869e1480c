//! Text that others choose, with characters that act on a terminal or forge lines, in every field that there is.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use profiler_daemon::embedded::TaskClient;
use profiler_daemon::embedded::task::service_id;
use profiler_daemon::model::plain::{HOSTILE, is_plain};
use profiler_proto::DESCRIPTORS;
use profiler_tests::{HttpClient, SampleService, free_port, needs_root, read_json};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::DEADLINE;
use crate::daemon::{Answer, Daemon};
use crate::recording::Recording;

/// Longest wait for an answer to a call; most are refusals.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Messages in messages that are made up.
const DEPTH_MAX: usize = 4;

/// The services that the built-in OAP has, from their files.
struct Schema {
    messages: HashMap<String, DescriptorProto>,
    /// Path and input of each call.
    calls: Vec<(String, String)>,
}

impl Schema {
    fn new() -> Self {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
        let mut schema = Self {
            messages: HashMap::new(),
            calls: Vec::new(),
        };
        for file in files {
            let package = file.package().to_owned();
            for message in &file.message_type {
                schema.add(&format!(".{package}"), message);
            }
            for service in &file.service {
                for call in &service.method {
                    let path = format!("/{package}.{}/{}", service.name(), call.name());
                    schema.calls.push((path, call.input_type().to_owned()));
                }
            }
        }
        schema
    }

    fn add(&mut self, parent: &str, message: &DescriptorProto) {
        let name = format!("{parent}.{}", message.name());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
        self.messages.insert(name, message.clone());
    }

    /// A message with all of its fields; `text` has the texts, by the names of their fields.
    fn message(&self, name: &str, depth: usize, text: &mut dyn FnMut(&str) -> String) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in &self.messages[name].field {
            let tag = |wire: u64| (field.number().cast_unsigned() as u64) << 3 | wire;
            let content = match field.r#type() {
                Type::String => text(field.name()).into_bytes(),
                Type::Message if depth < DEPTH_MAX => {
                    self.message(field.type_name(), depth + 1, text)
                }
                Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64 | Type::Bool => {
                    put_number(&mut bytes, tag(0));
                    // Within the limits of all of them.
                    put_number(
                        &mut bytes,
                        if field.name() == "duration_minutes" {
                            1
                        } else {
                            9
                        },
                    );
                    continue;
                }
                _ => continue,
            };
            put_number(&mut bytes, tag(2));
            put_number(&mut bytes, content.len() as u64);
            bytes.extend(content);
        }
        bytes
    }
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Sends bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Makes every call with hostile text in each of its fields, one at a time, then in all; returns how often.
async fn call_with_hostile_texts(daemon: &Daemon, service: &str, task_id: &str) -> usize {
    let schema = Schema::new();
    let address = format!("http://{}", daemon.oap());
    let channel = Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let token = daemon.token();
    let usual = |field: &str| match field {
        "task_id" => task_id.to_owned(),
        "service" => service.to_owned(),
        _ => "x".to_owned(),
    };
    let mut calls = 0;
    for (path, input) in &schema.calls {
        let mut fields = 0;
        schema.message(input, 0, &mut |_| {
            fields += 1;
            String::new()
        });
        for hostile in 0..=fields {
            let mut number = 0;
            let message = schema.message(input, 0, &mut |field| {
                number += 1;
                let is_hostile = hostile == fields || number == hostile + 1;
                usual(field) + if is_hostile { HOSTILE } else { "" }
            });
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let mut request = Request::new(tokio_stream::iter([message]));
            request.set_timeout(CALL_DEADLINE);
            request
                .metadata_mut()
                .insert("authentication", token.parse().unwrap());
            let path: PathAndQuery = path.parse().unwrap();
            // Whether it is refused does not matter here.
            if let Ok(answer) = client.streaming(request, path, Raw).await {
                let mut answer = answer.into_inner();
                while let Ok(Some(_)) = answer.message().await {}
            }
            calls += 1;
        }
    }
    calls
}

/// Asks for tasks with hostile names in GraphQL; yields the reasons why not.
fn create_by_graphql(http: SocketAddr, token: &str, service: &str) -> Vec<String> {
    let mutation = "mutation ($it: ProfileTaskCreationRequest) { it: createProfileTask(creationRequest: $it) \
                    { errorReason id } }";
    let create = |service: String, endpoint: String| {
        let it = json!({
            "serviceId": service_id(&service), "endpointName": endpoint, "duration": 1, "minDurationThreshold": 0,
            "dumpPeriod": 10, "maxSamplingCount": 5,
        });
        let body = json!({ "query": mutation, "variables": { "it": it } }).to_string();
        let mut client = HttpClient::connect(http, DEADLINE).unwrap();
        let length = body.len();
        let head = format!(
            "POST /graphql HTTP/1.1\r\nHost: {http}\r\nContent-Type: application/json\r\nauthentication: {token}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        client.send_raw((head + &body).as_bytes()).unwrap();
        let (_, answer) = client.read_response().unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["data"]["it"]["errorReason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    vec![
        create(format!("{service}{HOSTILE}"), "GET:/x".to_owned()),
        create(service.to_owned(), format!("GET:/x{HOSTILE}")),
    ]
}

#[track_caller]
fn assert_plain(what: &str, text: &str) {
    let bad = text.lines().find(|line| !is_plain(line));
    assert_eq!(bad, None, "{what}");
}

/// Check that characters which act on a terminal reach neither it nor the log, whoever chose them: a process by its
/// name, arguments and requests, a client in any field of any call. What can be refused is.
#[test]
fn nothing_from_outside_reaches_a_terminal() {
    needs_root!();
    // No variable and argument has a zero byte, no comment and head of a request a line feed.
    let hostile = HOSTILE.replace('\0', "");
    let on_a_line = hostile.replace(['\r', '\n', '\u{85}', '\u{2028}'], "");
    let script =
        format!("import sys; sys.argv = sys.argv[2:]; exec(open(sys.argv[0]).read()) #{on_a_line}");
    let mut python = Command::new("python3");
    python
        .args(["-c", &script, &hostile])
        .env("SW_AGENT_INSTANCE_NAME", format!("one{hostile}"));
    let server = SampleService::start_by(python, &format!("text-{hostile}"), None).unwrap();
    let address = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let (http, metrics) = (address(), address());
    let (http_listen, metrics_listen) = (http.to_string(), metrics.to_string());
    let variables = [
        ("PROFILERD_HTTP_LISTEN", http_listen.as_str()),
        ("PROFILERD_METRICS", metrics_listen.as_str()),
    ];
    let mut daemon = Daemon::standalone_with(":memory:", &variables);
    daemon.wait_for_log("answers GraphQL", 1);

    let listed: Value = read_json(&daemon.run(&["ps", "--json"]).out).unwrap();
    let rows = listed.as_array().unwrap();
    let row = rows.iter().find(|row| row["pid"] == server.id()).unwrap();
    let service = row["service"].as_str().unwrap().to_owned();
    let task_id = daemon.create_task(&service, "*");
    let mut client = server.connect().unwrap();
    let path = on_a_line.replace(['\t', ' '], "");
    client
        .request_with("GET", &format!("/busy/{path}"), &[("X", &path)], "")
        .unwrap();
    let mut client = server.connect().unwrap();
    client.request("GET", "/busy", "").unwrap();
    daemon.wait_for_segments(&task_id, 1);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let calls = runtime.block_on(call_with_hostile_texts(&daemon, &service, &task_id));
    assert!(calls > 40, "{calls}");
    let known = runtime.block_on(async {
        let token = daemon.token();
        let mut client = TaskClient::connect(&daemon.oap().to_string(), Some(&token))
            .await
            .unwrap();
        client.instances().await.unwrap()
    });
    for instance in known {
        let properties = instance
            .properties
            .iter()
            .flat_map(|(key, value)| [key, value]);
        let mut texts = properties.chain([&instance.service, &instance.service_instance]);
        assert!(
            texts.all(|text| is_plain(text)),
            "{:?}",
            instance.service_instance
        );
    }
    for reason in create_by_graphql(http, &daemon.token(), &service) {
        assert!(reason.contains("control character"), "{reason}");
    }
    let tasks: Value = read_json(&daemon.task(&["list", "--json"]).out).unwrap();
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1, "{tasks}");

    let mut commands: Vec<Vec<&str>> = vec![
        vec!["ps"],
        vec!["ps", "--all"],
        vec!["ps", "--all", "--json"],
        vec!["status", "--metrics", &metrics_listen],
        vec!["status", "--metrics", &metrics_listen, "--json"],
        vec!["doctor"],
    ];
    let oap = daemon.oap().to_string();
    for task in [
        &["list"][..],
        &["list", "--json"],
        &["show", &task_id],
        &["show", &task_id, "--json"],
        &["show", "no-such-task"],
        &["result", &task_id],
        &["result", &task_id, "--format", "json"],
        &["result", &task_id, "--format", "folded"],
        &["result", &task_id, "--format", "svg"],
        &["list", "--service", &hostile],
        &["result", &hostile],
    ] {
        commands.push([&["task", "--oap", &oap], task].concat());
    }
    for command in &commands {
        let Answer { out, err, .. } = daemon.run(command);
        assert!(!out.is_empty() || !err.is_empty(), "{command:?}");
        assert_plain(&format!("{command:?}: {out:?}"), &out);
        assert_plain(&format!("{command:?}: {err:?}"), &err);
    }
    daemon.signal(libc::SIGTERM);
    daemon.wait();
    assert_plain("the log", &daemon.log());

    let recording = Recording::start("*", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect().unwrap();
    client.request("GET", "/busy", "").unwrap();
    let recorded = recording.finish();
    assert_plain("record", &recorded.out);
    assert_plain("the log of record", &recorded.err);
}
