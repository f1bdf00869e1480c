//! Turns snapshots into a profile for `go tool pprof` and all that read its format.
//!
//! Each sample has two values, snapshots and wall-clock milliseconds ([`super::weight`]), and two
//! labels, the trace segment and the endpoint, for `-tagfocus`. Functions have names only: there
//! are no addresses, since merged stacks of interpreter and machine code have none in common.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use profiler_proto::pprof::{Function, Label, Line, Location, Profile, Sample, ValueType};
use prost::Message;

use super::weight::weigh;
use crate::model::ProfileReport;

pub(super) fn write(report: &ProfileReport, out: &mut dyn Write) -> Result<()> {
    let bytes = profile(report).encode_to_vec();
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&bytes)
        .and_then(|()| gzip.finish().map(drop))
        .context("failed to write the pprof profile")
}

fn profile(report: &ProfileReport) -> Profile {
    let mut strings = Strings::new();
    let samples_type = strings.value_type("samples", "count");
    let wall_type = strings.value_type("wall", "milliseconds");
    let (segment_key, endpoint_key) = (strings.index("segment"), strings.index("endpoint"));
    let mut locations = Locations::default();
    let mut samples = Vec::new();
    for segment in &report.segments {
        let mut sums: BTreeMap<Vec<u64>, [i64; 2]> = BTreeMap::new();
        for weighted in weigh(segment) {
            // Leaf first here, root first in a snapshot.
            let frames = weighted.stack.iter().rev();
            let ids = frames
                .map(|frame| locations.id(strings.index(frame)))
                .collect();
            let [count, wall_ms] = sums.entry(ids).or_default();
            *count += 1;
            *wall_ms = wall_ms.saturating_add(weighted.wall_ms);
        }
        let label = |key, text| Label {
            key,
            str: text,
            ..Label::default()
        };
        let mut labels = vec![
            label(segment_key, strings.index(&segment.segment_id)),
            label(endpoint_key, strings.index(&segment.endpoint)),
        ];
        if let Some(concrete) = segment.concrete() {
            labels.push(label(strings.index("request"), strings.index(&concrete)));
        }
        samples.extend(sums.into_iter().map(|(location_id, values)| Sample {
            location_id,
            value: values.to_vec(),
            label: labels.clone(),
        }));
    }
    let task = &report.task;
    let comment = format!("endpoint {} of service {}", task.endpoint, task.service);
    Profile {
        sample_type: vec![samples_type, wall_type],
        sample: samples,
        location: locations.locations(),
        function: locations.functions(),
        time_nanos: task.start_ms.saturating_mul(1_000_000),
        duration_nanos: task.duration_ms.saturating_mul(1_000_000),
        period_type: Some(wall_type),
        period: i64::from(task.dump_period_ms),
        comment: vec![strings.index(&comment)],
        default_sample_type: wall_type.r#type,
        string_table: strings.table,
        ..Profile::default()
    }
}

/// The string table; entry 0 is the empty string.
struct Strings {
    table: Vec<String>,
    indices: HashMap<String, i64>,
}

impl Strings {
    fn new() -> Self {
        let mut strings = Self {
            table: Vec::new(),
            indices: HashMap::new(),
        };
        strings.index("");
        strings
    }

    fn index(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.indices.get(text) {
            return index;
        }
        let index = i64::try_from(self.table.len()).expect("a table in memory is shorter");
        self.table.push(text.to_owned());
        self.indices.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType {
            r#type: self.index(name),
            unit: self.index(unit),
        }
    }
}

/// One location per function; ids are from 1, in order of appearance.
#[derive(Default)]
struct Locations {
    names: Vec<i64>,
    ids: HashMap<i64, u64>,
}

impl Locations {
    fn id(&mut self, name: i64) -> u64 {
        *self.ids.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u64
        })
    }

    fn locations(&self) -> Vec<Location> {
        let ids = 1..=self.names.len() as u64;
        ids.map(|id| Location {
            id,
            line: vec![Line {
                function_id: id,
                ..Line::default()
            }],
            ..Location::default()
        })
        .collect()
    }

    fn functions(&self) -> Vec<Function> {
        let named = (1..).zip(&self.names);
        named
            .map(|(id, &name)| Function {
                id,
                name,
                system_name: name,
                ..Function::default()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Command;

    use flate2::read::GzDecoder;

    use profiler_test_support::skip;

    use super::super::{Format, sample, write};
    use super::*;

    fn encoded() -> Vec<u8> {
        let mut out = Vec::new();
        write(&sample::report(), Format::Pprof, &mut out).unwrap();
        out
    }

    /// Check the decoded profile: leaf first, values summed per stack, labels, times.
    #[test]
    fn the_profile_decodes() {
        let mut bytes = Vec::new();
        GzDecoder::new(encoded().as_slice())
            .read_to_end(&mut bytes)
            .unwrap();
        let profile = Profile::decode(bytes.as_slice()).unwrap();
        let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
        assert_eq!(text(0), "");
        let name = |location: u64| {
            let function = profile.location[location as usize - 1].line[0].function_id;
            text(profile.function[function as usize - 1].name)
        };
        let mut stacks: Vec<(Vec<&str>, Vec<i64>)> = profile
            .sample
            .iter()
            .map(|s| {
                let names = s.location_id.iter().map(|&id| name(id)).collect();
                (names, s.value.clone())
            })
            .collect();
        stacks.sort();
        assert_eq!(
            stacks,
            [
                (vec!["a", "main"], vec![2, 20]),
                (vec!["b", "a", "main"], vec![3, 30]),
                (vec!["c", "main"], vec![2, 10]),
            ]
        );
        assert_eq!(text(profile.sample[0].label[0].str), "s1");
        assert_eq!(text(profile.default_sample_type), "wall");
        assert_eq!(profile.time_nanos, 1_700_000_000_000_000_000);
    }

    /// Check that `go tool pprof` reads the profile, where Go is installed.
    #[test]
    fn go_tool_pprof_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), encoded()).unwrap();
        let output = Command::new("go")
            .args(["tool", "pprof", "-top"])
            .arg(file.path())
            .output();
        let Ok(output) = output else {
            skip!("no go on this machine");
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains("Type: wall"), "{text}");
        let row = text.lines().find(|line| line.ends_with("main")).unwrap();
        assert!(row.contains("60ms"), "main has all of the time: {row}");
    }
}
