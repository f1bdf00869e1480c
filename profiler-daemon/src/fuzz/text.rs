//! Texts: HTTP heads, what `/proc` shows, perf maps, commands, configuration, answers of an OAP.

use profiler_common::{line_of, line_status};
use profiler_proto::skywalking::{Command, KeyStringValuePair};

use super::service;
use crate::analyze::{self, Lines, Query};
use crate::config::Template;
use crate::kubernetes;
use crate::oap::{command, graphql};
use crate::process::procfs::parse_stat;
use crate::process::program::program_name;
use crate::process::{Cgroup, ContainerNames, Mappings, agent, go_build, namespace};
use crate::request::{Endpoint, RequestHead, Templates, response::ResponseHead};
use crate::symbolize::PerfMap;

/// Rows that are analysed at most.
const ROWS_MAX: usize = 10_000;

/// `endpoint \n request head`.
pub fn request_head(data: &[u8]) {
    let (endpoint, head) = first_line(data);
    let endpoint = Endpoint::parse(&endpoint);
    let rule = endpoint.as_ref().ok().map(Endpoint::rule);
    let bytes = head;
    let Some(head) = RequestHead::parse(bytes) else {
        return;
    };
    let _ = head.path();
    if let Ok(endpoint) = &endpoint
        && endpoint.matches(&head.method, &head.target, head.host.as_deref())
    {
        // What matches passes the prefilter, if the line is whole and nothing stands before it.
        let line = line_of(bytes);
        let byte = |index: u64| bytes.get(index as usize).copied().unwrap_or(0);
        let rule = rule.and_then(|rule| rule.to_kernel());
        let is_whole = line.status() == line_status::WHOLE;
        assert!(!is_whole || rule.is_some_and(|rule| rule.passes(line, byte)));
    }
    if let Some(value) = &head.sw8 {
        let _ = crate::request::sw8::parse(value);
    }
}

/// `method \n path of a rule \n path of a request`.
pub fn endpoint_name(data: &[u8]) {
    let (method, rest) = first_line(data);
    let (rule, path) = first_line(rest);
    let path = String::from_utf8_lossy(path);
    for templates in [Ok(Templates::default()), Templates::new([("*", &*rule)])] {
        let name = templates.ok().and_then(|it| it.name("s", &method, &path));
        let Some(name) = name else { continue };
        assert!(name.chars().count() < 150, "{name:?}");
        let endpoint = Endpoint::parse(&name).expect("a name is an endpoint");
        // No path has a query by then.
        let has_query = path.contains('?');
        assert!(has_query || endpoint.matches(&method.to_uppercase(), &path, None));
    }
}

/// `method \n response head`.
pub fn response_head(data: &[u8]) {
    let (method, head) = first_line(data);
    let _ = ResponseHead::parse(head, &method);
}

/// The value of an `sw8` header.
pub fn sw8(data: &[u8]) {
    let _ = crate::request::sw8::parse(&String::from_utf8_lossy(data));
}

/// `/proc/PID/maps`, whose paths the process has chosen.
pub fn mappings(data: &[u8]) {
    let Ok(mappings) = Mappings::parse(data) else {
        return;
    };
    for mapping in mappings.as_slice() {
        let _ = (mapping.file_name(), mapping.is_file(), mapping.is_vdso());
        let found = mappings.index_of(mapping.start);
        assert!(found.is_some_and(|index| mappings.as_slice()[index].start == mapping.start));
    }
    let _ = mappings.find(u64::MAX);
}

/// Other files of `/proc/PID`: its first line as `stat`, `cgroup` and command name, all as words of the
/// command line.
pub fn proc_texts(data: &[u8]) {
    let (line, _) = first_line(data);
    let _ = parse_stat(&line);
    let _ = Cgroup::parse(&String::from_utf8_lossy(data));
    let command: Vec<String> = data
        .split(|&byte| byte == 0 || byte == b'\n')
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let exe = command.first().map(std::path::Path::new);
    let _ = program_name(exe, &line, &command);
}

/// Files that tell an agent, a container or a pod: a jar's beginning or the build information of Go as
/// bytes, `agent.config` and `sockstat` as text, and what is JSON as each of them.
pub fn identity_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(manifest) = agent::java_manifest(data) {
        assert!(manifest.len() <= 3 * (64 << 10), "a manifest is bounded");
    }
    let environment = [("A".to_owned(), "${A}".to_owned())];
    agent::java_settings(&text, &environment);
    let _ = agent::package_version(data);
    let _ = go_build::module(data, "github.com/apache/skywalking-go");
    let _ = namespace::in_use(&text, "TCP:");
    let _ = ContainerNames::from_docker(data);
    let _ = ContainerNames::from_oci(data);
    let _ = ContainerNames::from_storage(data, "0");
    kubernetes::read_as_anything(data);
    let groups = ["a".to_owned()];
    if let Ok(template) = Template::parse(&text, &groups) {
        assert_eq!(
            Template::parse(&template.to_string(), &groups),
            Ok(template)
        );
    }
}

/// `/tmp/perf-PID.map`.
pub fn perf_map(data: &[u8]) {
    let mut map = PerfMap::default();
    let (first, rest) = data.split_at(data.len() / 2);
    map.append(first);
    map.append(rest);
    for address in [0, 0x1000, u64::MAX] {
        let _ = map.find(address);
    }
}

/// The input of `profilerd analyze`.
pub fn analysis_lines(data: &[u8]) {
    let rows: Vec<_> = Lines::new(data).flatten().take(ROWS_MAX).collect();
    let rows: Vec<_> = rows.iter().map(analyze::OwnedRow::as_row).collect();
    let query = |segment| Query {
        segment,
        start_ms: i64::MIN,
        end_ms: i64::MAX,
    };
    let queries: Vec<_> = rows.iter().take(8).map(|row| query(row.segment)).collect();
    for tree in analyze::analyze(&rows, &queries).trees {
        let _ = tree.to_node();
    }
}

/// A command of an OAP: lines of `key=value`.
pub fn task_command(data: &[u8]) {
    const NOW_MS: i64 = 1_700_000_000_000;
    let text = String::from_utf8_lossy(data);
    let args = text.lines().map(|line| {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        KeyStringValuePair {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    });
    let command = Command {
        args: args.collect(),
        ..Command::default()
    };
    let _ = command::create_time(&command, NOW_MS);
    if let Ok(parsed) = command::parse(&command, &service(), NOW_MS) {
        let _ = Endpoint::parse(&parsed.task.endpoint);
    }
}

/// The configuration's file.
pub fn config_file(data: &[u8]) {
    let _ = crate::config::Config::parse(&String::from_utf8_lossy(data));
}

/// The body of a query to the built-in OAP.
pub fn graphql_query(data: &[u8]) {
    crate::embedded::answer_anything(data);
}

/// The body of an answer of an OAP's query side.
pub fn graphql_answer(data: &[u8]) {
    graphql::read_as_anything(data);
}

fn first_line(data: &[u8]) -> (String, &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n');
    let (line, rest) = match end {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[][..]),
    };
    (String::from_utf8_lossy(line).into_owned(), rest)
}
