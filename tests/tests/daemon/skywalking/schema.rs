//! The query side of the built-in OAP beside that of a SkyWalking OAP.

use std::collections::BTreeMap;

use profiler_daemon::embedded::sdl;
use profiler_tests::SkywalkingOap;
use serde_json::{Value, json};

const TYPE: &str = "query ($n: String!) { it: __type(name: $n) { kind \
    fields { name type { ...T } args { name type { ...T } } } \
    inputFields { name type { ...T } } enumValues { name } } } \
    fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name } } } }";

/// What newer pages and commands ask for, by type; of OAP 10.2 and 10.3.
const NEWER: [(&str, &str); 6] = [
    ("Duration", "coldStage:Boolean"),
    ("MetricsTTL", ""),
    ("Query", "getMetricsTTL:MetricsTTL"),
    ("Query", "getRecordsTTL:RecordsTTL"),
    ("Query", "hasQueryTracesV2Support:Boolean!"),
    ("RecordsTTL", ""),
];

/// Check that each type, field and argument is one of OAP 10.1.0, with the same type. More fields and arguments
/// than ours it may have only where whole operations are left out.
#[test]
fn the_schema_is_a_part_of_the_oaps() {
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let ours = parse(&sdl());
    assert!(ours.len() > 20, "{ours:?}");
    for (name, mut ours) in ours {
        if NEWER.contains(&(name.as_str(), "")) {
            continue;
        }
        ours.retain(|line| !NEWER.contains(&(name.as_str(), line.as_str())));
        let answer = oap.graphql(TYPE, &json!({ "n": name })).unwrap();
        let theirs = lines(&answer["it"]);
        for line in &ours {
            // Newer ones than 10.1.0 take a time here.
            let line = match line.strip_prefix("findEndpoint(") {
                Some(_) => &line.replace(",duration:Duration", ""),
                None => line,
            };
            assert!(
                theirs.contains(line),
                "{name}: {line} is none of {theirs:?}"
            );
        }
        if !["Query", "Mutation"].contains(&name.as_str()) {
            assert_eq!(ours.len(), theirs.len(), "{name}: {ours:?}, {theirs:?}");
        }
    }
}

/// The fields or values of each type in a schema's text, as [`lines`] has them.
fn parse(sdl: &str) -> BTreeMap<String, Vec<String>> {
    let mut types = BTreeMap::new();
    let mut body: Option<(String, Vec<String>)> = None;
    let mut is_comment = false;
    for line in sdl.lines().map(str::trim) {
        if line == "\"\"\"" {
            is_comment = !is_comment;
        } else if is_comment || line.is_empty() {
        } else if line == "}" {
            types.extend(body.take());
        } else if let Some((_, lines)) = &mut body {
            lines.push(line.replace(' ', ""));
        } else if let ["type" | "input" | "enum", name, "{"] =
            line.split(' ').collect::<Vec<_>>()[..]
        {
            body = Some((name.to_owned(), Vec::new()));
        }
    }
    types
}

/// The fields or values of a type, such as `version:String`.
fn lines(answer: &Value) -> Vec<String> {
    let all = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let typed = |it: &Value| format!("{}:{}", text(&it["name"]), type_text(&it["type"]));
    let fields = all("fields").into_iter().map(|field| {
        let args = field["args"].as_array().cloned().unwrap_or_default();
        let args: Vec<String> = args.iter().map(typed).collect();
        let args = match args.is_empty() {
            true => String::new(),
            false => format!("({})", args.join(",")),
        };
        let (name, of) = (text(&field["name"]), type_text(&field["type"]));
        format!("{name}{args}:{of}")
    });
    let inputs = all("inputFields");
    let values = all("enumValues");
    fields
        .chain(inputs.iter().map(typed))
        .chain(values.iter().map(|value| text(&value["name"]).to_owned()))
        .collect()
}

/// A type as the schema's text has it.
fn type_text(of: &Value) -> String {
    match text(&of["kind"]) {
        "NON_NULL" => format!("{}!", type_text(&of["ofType"])),
        "LIST" => format!("[{}]", type_text(&of["ofType"])),
        _ => text(&of["name"]).to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
