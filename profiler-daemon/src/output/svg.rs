//! Turns snapshots into a flame graph: one SVG file that needs no server, coloured by kind of frame.

use std::io::Write;

use anyhow::{Context, Result, bail};
use inferno::flamegraph::color::{Color, PaletteMap};
use inferno::flamegraph::{self, Options};

use super::folded;
use super::own::own_endpoints;
use super::style::Class;
use super::text::clean;
use crate::model::ProfileReport;

/// What the colours mean, in the order of the legend.
const LEGEND: [(Class, &str); 3] = [
    (Class::Language, "language"),
    (Class::Native, "native"),
    (Class::Kernel, "kernel, waiting"),
];
/// Columns of a legend entry: a square and its word.
const LEGEND_ENTRY_PX: usize = 84;
/// Where inferno writes the subtitle, to the right of the legend.
const LEGEND_BASELINE_PX: usize = 48;

pub(super) fn write(report: &ProfileReport, out: &mut dyn Write) -> Result<()> {
    let mut lines = folded::lines(report, |weighted| weighted.wall_ms);
    if lines.is_empty() {
        // Requests shorter than a millisecond have snapshots and no time: draw the snapshots.
        lines = folded::lines(report, |_| 1);
    }
    if lines.is_empty() {
        bail!("there is no stack to draw: no request was profiled");
    }
    let mut palette = palette(&lines);
    let mut options = Options::default();
    options.title = title(report);
    options.subtitle = Some(subtitle(report));
    options.count_name = "ms".to_owned();
    options.name_type = "Function:".to_owned();
    options.palette_map = Some(&mut palette);
    // Equal input, equal picture.
    options.deterministic = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .context("failed to draw the flame graph")?;
    let svg = String::from_utf8(svg).context("failed to draw the flame graph as text")?;
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    let (head, tail) = svg.split_at(end);
    for part in [head, &legend(), tail] {
        out.write_all(part.as_bytes())
            .context("failed to write the flame graph")?;
    }
    Ok(())
}

/// A colour for each function of folded lines.
fn palette(lines: &[String]) -> PaletteMap {
    let mut palette = PaletteMap::default();
    palette.insert("", shade(Class::Other, 0)); // the base that carries all stacks
    for line in lines {
        let stack = line.rsplit_once(' ').map_or("", |(stack, _)| stack);
        for name in stack.split(';') {
            if palette.get(name).is_none() {
                palette.insert(name, shade(Class::of(name), hash(name)));
            }
        }
    }
    palette
}

/// A colour of a class; neighbours differ a little, so that their edges are seen.
fn shade(class: Class, variation: u8) -> Color {
    let by = variation % 32;
    let (r, g, b) = match class {
        Class::Language => (98 + by, 190 + by, 98 + by),
        Class::Native => (222 + by, 164 + by, 70 + by),
        Class::Kernel => (108 + by, 160 + by, 218 + by),
        Class::Other => (200, 200, 200),
    };
    Color { r, g, b }
}

/// The same for the same name, in every picture (FNV-1a, folded to a byte).
fn hash(name: &str) -> u8 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.to_le_bytes()
        .iter()
        .fold(0, |folded, byte| folded ^ byte)
}

/// Squares with what their colours mean.
fn legend() -> String {
    let mut drawn = String::from(r#"<g id="legend">"#);
    for (index, (class, meaning)) in LEGEND.into_iter().enumerate() {
        let Color { r, g, b } = shade(class, 16);
        let x = 10 + index * LEGEND_ENTRY_PX;
        drawn.push_str(&format!(
            r#"<rect x="{x}" y="{}" width="10" height="10" fill="rgb({r},{g},{b})"/><text x="{}" y="{LEGEND_BASELINE_PX}">{meaning}</text>"#,
            LEGEND_BASELINE_PX - 9,
            x + 14,
        ));
    }
    drawn + "</g>"
}

/// What was asked for, and what requests were to if that is another endpoint.
fn title(report: &ProfileReport) -> String {
    let task = &report.task.endpoint;
    let own = own_endpoints(task, &report.segments).filter(|_| !task.is_empty());
    let title = own.map_or_else(|| task.clone(), |own| format!("{task}: {own}"));
    clean(&title).into_owned()
}

fn subtitle(report: &ProfileReport) -> String {
    let requests = report.segments.len();
    let total_ms = report
        .segments
        .iter()
        .fold(0_i64, |sum, s| sum.saturating_add(s.duration_ms));
    format!(
        "{}: {requests} request{}, {total_ms} ms of wall-clock time, one stack per {} ms",
        clean(&report.task.service),
        if requests == 1 { "" } else { "s" },
        report.task.dump_period_ms
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Format, sample, write};
    use super::*;

    /// Check that the graph is titled by the endpoint, weighs milliseconds and escapes names.
    #[test]
    fn the_graph_weighs_milliseconds() {
        let mut out = Vec::new();
        write(&sample::report(), Format::Svg, &mut out).unwrap();
        let svg = String::from_utf8(out).unwrap();
        assert!(svg.contains("GET:/a&lt;b"), "the title");
        assert!(svg.contains("<title>main (60 ms, 100.00%)</title>"));
        assert!(svg.contains("<title>b (30 ms, 50.00%)</title>"));
        assert!(svg.contains("shop: 1 request, 60 ms"));
    }

    /// Check that each kind of frame has its colour, the same one each time, and that a legend tells.
    #[test]
    fn frames_are_coloured_by_kind() {
        let stack: &[&str] = &["shop.pay:7", "PQexec (libpq.so.5)", "[system call read]"];
        let mut report = sample::report();
        report.segments = vec![sample::segment("s", &[stack, stack])];
        let draw = || {
            let mut out = Vec::new();
            write(&report, Format::Svg, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let svg = draw();
        for name in stack {
            let Color { r, g, b } = shade(Class::of(name), hash(name));
            let frame = svg
                .split("<title>")
                .find(|part| part.starts_with(name))
                .unwrap();
            assert!(frame.contains(&format!("rgb({r},{g},{b})")), "{frame}");
        }
        for (_, meaning) in LEGEND {
            assert_eq!(
                svg.matches(&format!(">{meaning}</text>")).count(),
                1,
                "{meaning}"
            );
        }
        assert!(
            svg.ends_with("</g></svg>"),
            "the legend is part of the picture"
        );
        assert_eq!(draw(), svg);
    }

    /// Check that a report without stacks is an error, not an empty picture.
    #[test]
    fn nothing_to_draw_is_an_error() {
        let mut out = Vec::new();
        let error = write(&ProfileReport::default(), Format::Svg, &mut out).unwrap_err();
        assert!(error.to_string().contains("no stack to draw"));
        assert!(out.is_empty());
    }
}
