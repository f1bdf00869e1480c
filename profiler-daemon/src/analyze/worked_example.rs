//! The worked example and its variants: values that OAP's own classes gave.

use std::sync::Arc;

use super::*;

/// A snapshot: segment, sequence, time, frames joined by `>`.
type Line<'a> = (&'a str, i32, i64, &'a str);

fn analyse(lines: &[Line<'_>], queries: &[Query<'_>]) -> Analysis {
    let stacks: Vec<Vec<Arc<str>>> = lines
        .iter()
        .map(|(_, _, _, stack)| stack.split('>').map(Arc::from).collect())
        .collect();
    let rows: Vec<Row<'_>> = lines
        .iter()
        .zip(&stacks)
        .map(|(&(segment, sequence, time_ms, _), stack)| Row {
            segment,
            sequence,
            time_ms,
            stack,
        })
        .collect();
    analyze(&rows, queries)
}

const WHOLE: Query<'_> = Query {
    segment: "s",
    start_ms: i64::MIN,
    end_ms: i64::MAX,
};

/// One line per element: `id<parent frame duration/self/count`, trees parted by an empty line.
fn table(analysis: &Analysis) -> String {
    let tree = |tree: &Tree| {
        tree.elements()
            .iter()
            .map(|e| {
                format!(
                    "{}<{} {} {}/{}/{}\n",
                    e.id, e.parent_id, e.code_signature, e.duration_ms, e.self_ms, e.count
                )
            })
            .collect::<String>()
    };
    let trees: Vec<String> = analysis.trees.iter().map(tree).collect();
    trees.join("\n")
}

/// Ten snapshots, 10 ms apart: four of `first`, then six of `second`.
fn two_phases<'a>(first: &'a str, second: &'a str) -> Vec<Line<'a>> {
    (0..10)
        .map(|i| {
            (
                "s",
                i,
                i64::from(i) * 10,
                if i < 4 { first } else { second },
            )
        })
        .collect()
}

/// Check the worked example: the step between two callees is their caller's own time.
#[test]
fn the_step_between_two_callees_belongs_to_the_caller() {
    let analysis = analyse(&two_phases("main>A>B>C", "main>A>B>D"), &[WHOLE]);
    assert_eq!(
        table(&analysis),
        "1<0 main 90/0/10\n2<1 A 90/0/10\n3<2 B 90/10/10\n4<3 C 30/30/4\n5<3 D 50/50/6\n"
    );
    assert_eq!(analysis.tip, None);
}

/// Check that one function reached by two paths is two nodes.
#[test]
fn one_function_on_two_paths_is_two_nodes() {
    let analysis = analyse(&two_phases("main>A>B>C", "main>B>D"), &[WHOLE]);
    assert_eq!(
        table(&analysis),
        "1<0 main 90/10/10\n2<1 A 30/0/4\n3<1 B 50/0/6\n4<2 B 30/0/4\n5<3 D 50/50/6\n\
         6<4 C 30/30/4\n"
    );
}

/// Check that a second root frame makes a second tree and that the time between them vanishes.
#[test]
fn two_root_frames_make_two_trees() {
    let analysis = analyse(&two_phases("main>A>B>C", "B>D"), &[WHOLE]);
    // Buckets of 16: "B" is 66 -> 2; "main" hashes to 3343801 -> 10.
    assert_eq!(
        table(&analysis),
        "1<0 B 50/0/6\n2<1 D 50/50/6\n\n\
         1<0 main 30/0/4\n2<1 A 30/0/4\n3<2 B 30/0/4\n4<3 C 30/30/4\n"
    );
}

/// Check that a missing sequence splits the run and loses two periods.
#[test]
fn a_missing_sequence_loses_two_periods() {
    let mut lines = two_phases("main>A>B>C", "main>A>B>D");
    lines.remove(5);
    let expected = "1<0 main 70/0/9\n2<1 A 70/0/9\n3<2 B 70/10/9\n4<3 C 30/30/4\n5<3 D 30/30/5\n";
    assert_eq!(table(&analyse(&lines, &[WHOLE])), expected);
    lines.reverse(); // the order of arrival does not matter
    assert_eq!(table(&analyse(&lines, &[WHOLE])), expected);
}

/// Check that renumbering after a loss keeps the time and loses only the count.
#[test]
fn renumbering_after_a_loss_keeps_the_time() {
    let mut lines = two_phases("main>A>B>C", "main>A>B>D");
    lines.remove(5);
    for (line, sequence) in lines.iter_mut().zip(0..) {
        line.1 = sequence;
    }
    assert_eq!(
        table(&analyse(&lines, &[WHOLE])),
        "1<0 main 90/0/9\n2<1 A 90/0/9\n3<2 B 90/10/9\n4<3 C 30/30/4\n5<3 D 50/50/5\n"
    );
}

/// Check that two callees in turn have no duration at all: each run is one snapshot.
#[test]
fn alternating_callees_have_no_duration() {
    let lines: Vec<Line<'_>> = (0..10)
        .map(|i| {
            let stack = ["main>A>C", "main>A>D"][i as usize % 2];
            ("s", i, i64::from(i) * 10, stack)
        })
        .collect();
    assert_eq!(
        table(&analyse(&lines, &[WHOLE])),
        "1<0 main 90/0/10\n2<1 A 90/90/10\n3<2 C 0/0/5\n4<2 D 0/0/5\n"
    );
}

/// Check that alternating root frames give trees without duration.
#[test]
fn alternating_roots_have_no_duration() {
    let lines = [("s", 0, 0, "m"), ("s", 1, 10, "n"), ("s", 2, 20, "m")];
    assert_eq!(
        table(&analyse(&lines, &[WHOLE])),
        "1<0 m 0/0/2\n\n1<0 n 0/0/1\n"
    );
}

/// Check that time running backwards gives a negative self time.
#[test]
fn time_running_backwards_gives_negative_self_time() {
    let lines = [
        ("s", 0, 0, "main>A"),
        ("s", 1, 50, "main>A"),
        ("s", 2, 20, "main>B"),
        ("s", 3, 60, "main>B"),
    ];
    assert_eq!(
        table(&analyse(&lines, &[WHOLE])),
        "1<0 main 60/-30/4\n2<1 A 50/50/2\n3<1 B 40/40/2\n"
    );
}

/// Check that two segments in one analysis are told apart by nothing but the sequence, as in OAP.
#[test]
fn two_segments_lose_rows_of_equal_sequence() {
    let mut lines: Vec<Line<'_>> = (0..4)
        .map(|i| ("one", i, 1000 + i64::from(i) * 10, "main>X"))
        .collect();
    lines.extend((0..6).map(|i| ("two", i, 5000 + i64::from(i) * 10, "main>Y")));
    let query = |segment| Query { segment, ..WHOLE };
    assert_eq!(
        table(&analyse(&lines, &[query("one"), query("two")])),
        "1<0 main 4050/4010/6\n2<1 X 30/30/4\n3<1 Y 10/10/2\n"
    );
}

/// Check the window 30..60 of the worked example: both ends are inside.
#[test]
fn a_window_includes_both_its_ends() {
    let window = Query {
        segment: "s",
        start_ms: 30,
        end_ms: 60,
    };
    assert_eq!(
        table(&analyse(&two_phases("main>A>B>C", "main>A>B>D"), &[window])),
        "1<0 main 30/0/4\n2<1 A 30/0/4\n3<2 B 30/10/4\n4<3 C 0/0/1\n5<3 D 20/20/3\n"
    );
}

/// Check that disjoint windows are separate runs, and that recursion nests.
#[test]
fn disjoint_windows_and_recursion() {
    let lines = two_phases("f>f", "f>f>f");
    let window = |start_ms, end_ms| Query {
        segment: "s",
        start_ms,
        end_ms,
    };
    assert_eq!(
        table(&analyse(&lines, &[window(0, 20), window(70, 90)])),
        "1<0 f 40/0/6\n2<1 f 40/20/6\n3<2 f 20/20/3\n"
    );
}

/// Check that a snapshot without frames is skipped, and that an empty frame name is a name.
#[test]
fn empty_stacks_are_skipped_and_empty_names_kept() {
    let named = [Arc::from("main"), Arc::from("")];
    let row = |sequence, stack| Row {
        segment: "s",
        sequence,
        time_ms: i64::from(sequence),
        stack,
    };
    let rows = [row(0, &named[..]), row(1, &[]), row(2, &named[..])];
    assert_eq!(
        table(&analyze(&rows, &[WHOLE])),
        "1<0 main 0/0/2\n2<1  0/0/2\n"
    );
}

/// Check that the widest times and sequences saturate, and that deep stacks stop at the limit.
#[test]
fn extreme_values_do_not_overflow() {
    let lines = [
        ("s", i32::MIN, i64::MIN, "main"),
        ("s", 0, i64::MIN, "main"),
        ("s", 1, i64::MAX, "main"),
        ("s", 2, i64::MIN, "main>A"),
        ("s", i32::MAX, i64::MAX, "main"),
    ];
    let analysis = analyse(&lines, &[WHOLE]);
    assert!(analysis.tip.is_some());
    let tail = Query {
        start_ms: i64::MIN,
        end_ms: i64::MIN,
        ..WHOLE
    };
    let _ = analyse(&lines[1..], &[tail]);

    let deep: Vec<Arc<str>> = vec![Arc::from("f"); 100_000];
    let row = Row {
        segment: "s",
        sequence: 0,
        time_ms: 0,
        stack: &deep,
    };
    let analysis = analyze(&[row], &[WHOLE]);
    assert_eq!(analysis.trees[0].elements().len(), MAX_DEPTH);
    let mut node = &analysis.trees[0].to_node();
    let mut depth = 1;
    while let Some(child) = node.children.first() {
        node = child;
        depth += 1;
    }
    assert_eq!(depth, MAX_DEPTH);
}

/// Check over many generated inputs: counts of children never exceed the parent's, self time is
/// total less children, ids are breadth first, and the accepted form of a tree is what we emit.
#[test]
fn invariants_hold_for_generated_input() {
    let names: Vec<Arc<str>> = ["a", "b", "c", "d"].map(Arc::from).to_vec();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..300 {
        let stacks: Vec<Vec<Arc<str>>> = (0..next(40))
            .map(|_| {
                (0..next(6))
                    .map(|_| names[next(4) as usize].clone())
                    .collect()
            })
            .collect();
        let rows: Vec<Row<'_>> = stacks
            .iter()
            .map(|stack| Row {
                segment: ["s", "t"][next(2) as usize],
                sequence: next(50) as i32 - 5,
                time_ms: next(1000) as i64 - 100,
                stack,
            })
            .collect();
        let queries: Vec<Query<'_>> = (0..next(4))
            .map(|_| Query {
                segment: ["s", "t"][next(2) as usize],
                start_ms: next(500) as i64 - 100,
                end_ms: next(1000) as i64,
            })
            .collect();
        for tree in analyze(&rows, &queries).trees {
            let elements = tree.elements();
            for parent in elements {
                let children = elements.iter().filter(|e| e.parent_id == parent.id);
                let (count, total) = children.fold((0, 0), |(count, total), child| {
                    (count + child.count, total + child.duration_ms)
                });
                assert!(count <= parent.count && parent.count > 0);
                assert_eq!(parent.self_ms, parent.duration_ms - total);
            }
            assert_eq!(Tree::try_from_elements(elements.to_vec()), Ok(tree.clone()));
        }
    }
}
