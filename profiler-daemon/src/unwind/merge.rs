//! Puts native, kernel and Python frames of one sample into one stack.
//!
//! In:  return addresses of the native walk, kernel frames, the chain of the Python walk
//! Out: [`Merged`]: frames innermost first, each native frame of the interpreter loop replaced by the
//!      Python frames it was running
//! Lost: counts that do not fit -> `mismatch` (`Counter::PythonMergeMismatch`), nothing is dropped
//!       but the native frames between interpreter loops
//!
//! # How they fit
//! One call of the interpreter loop runs a *group* of Python frames: Python-to-Python calls do not
//! use the C stack. The group's outermost frame is marked: on 3.11 by `is_entry`, from 3.12 on by a
//! shim frame below it, which is not shown.
//!
//! ```text
//! native            Python, 3.12           merged
//! clock_nanosleep                          clock_nanosleep
//! time_sleep                               time_sleep
//! loop  <---------- method1                method1
//!                   method2                method2
//!                   (shim)
//! vectorcall                               vectorcall
//! loop  <---------- run                    run
//!                   (shim)
//! main                                     main
//! ```
//!
//! # When counts differ
//! * One loop frame more than groups, and the innermost one is the leaf itself: the thread was
//!   stopped in the loop's first or last instructions, where the frame is not linked yet or no
//!   longer. Groups belong to the outer loop frames.
//! * The native walk ended early (the copied stack was cut): both are matched from the leaf, and the
//!   Python frames left over follow at the root side. A leaf in the loop's first instructions then
//!   shifts the groups by one; the Python frames are right, only the C functions between them move.
//! * The Python walk ended early: matched from the leaf; outer loop frames stay native.
//! * Anything else: the Python frames, all of them, go between the native frames inside the innermost
//!   loop and those outside the outermost one.

use profiler_common::{PythonFrameRecord, python_flag};

use crate::model::{AddrFrame, PythonChain, PythonRef, UnwindEnd};
use crate::process::python::PythonRuntime;

/// `is_entry` on 3.11.
const IS_ENTRY: u16 = 1;
/// `owner` of shim frames: `FRAME_OWNED_BY_CSTACK` is 3 on 3.12 and 3.13; 3.14 has 3
/// (`_INTERPRETER`) and 4 (`_CSTACK`).
const OWNER_SHIM: u16 = 3;

/// The frames of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// All frames, innermost first.
    pub frames: Vec<AddrFrame>,
    /// Native and Python frames contradict each other.
    pub mismatch: bool,
}

/// Merges the walks of one sample. `native` are lookup addresses, innermost first, and `native_end`
/// says how that walk ended; `kernel` are return addresses, innermost first.
#[must_use]
pub fn merge(
    native: &[u64],
    native_end: UnwindEnd,
    kernel: &[u64],
    python: Option<(&PythonChain, &PythonRuntime)>,
) -> Merged {
    let mut frames: Vec<AddrFrame> = kernel.iter().copied().map(AddrFrame::Kernel).collect();
    let Some((chain, runtime)) = python else {
        frames.extend(native.iter().copied().map(AddrFrame::Native));
        return Merged {
            frames,
            mismatch: false,
        };
    };
    let groups = Groups::new(chain, runtime);
    let loops: Vec<usize> = (0..native.len())
        .filter(|&index| runtime.is_loop(native[index]))
        .collect();
    let fitted = fit(&groups, &loops, native_end);
    match fitted {
        Some(skipped) => interleave(&mut frames, native, &loops[skipped..], &groups, runtime),
        None => stack_on_leaf(&mut frames, native, &loops, &groups),
    }
    Merged {
        frames,
        mismatch: fitted.is_none(),
    }
}

/// Python frames by the call of the interpreter loop that runs them, innermost first.
struct Groups {
    /// A group may be empty: the loop has just left its last frame.
    groups: Vec<Vec<PythonRef>>,
    /// The chain reaches its root.
    whole: bool,
}

impl Groups {
    fn new(chain: &PythonChain, runtime: &PythonRuntime) -> Self {
        let entry_is_marked = (runtime.version.major, runtime.version.minor) == (3, 11);
        let mut groups = Vec::new();
        let mut group = Vec::new();
        let mut open = false;
        for record in &chain.frames {
            let PythonFrameRecord { owner, flags, .. } = *record;
            let is_shim = !entry_is_marked && owner >= OWNER_SHIM;
            if flags & python_flag::UNREADABLE == 0 && !is_shim {
                group.push(PythonRef::from(record));
            }
            open = !(is_shim || entry_is_marked && owner == IS_ENTRY);
            if !open {
                groups.push(std::mem::take(&mut group));
            }
        }
        if !group.is_empty() {
            groups.push(group);
        }
        Self {
            groups,
            whole: !open && !chain.partial && !chain.no_thread && chain.next == 0,
        }
    }

    fn frames(&self) -> impl Iterator<Item = AddrFrame> {
        self.groups.iter().flatten().copied().map(AddrFrame::Python)
    }
}

/// How many of the innermost loop frames have no group, `None` if frames contradict each other.
fn fit(groups: &Groups, loops: &[usize], native_end: UnwindEnd) -> Option<usize> {
    let native_whole = native_end == UnwindEnd::Root;
    let count = groups.groups.len();
    let leaf_in_loop = loops.first() == Some(&0);
    match loops.len() {
        n if n == count => Some(0),
        n if n == count + 1 && leaf_in_loop && groups.whole => Some(1),
        n if n < count && !native_whole => Some(0),
        n if n > count && !groups.whole => Some(0),
        _ => None,
    }
}

/// Replaces each of `loops` by its group. Loop frames inside of them are dropped; groups without a
/// loop frame come last.
fn interleave(
    frames: &mut Vec<AddrFrame>,
    native: &[u64],
    loops: &[usize],
    groups: &Groups,
    runtime: &PythonRuntime,
) {
    let innermost = loops.first().copied().unwrap_or(native.len());
    let mut remaining = groups.groups.iter();
    for (index, &address) in native.iter().enumerate() {
        if !runtime.is_loop(address) {
            frames.push(AddrFrame::Native(address));
        } else if index >= innermost {
            match remaining.next() {
                Some(group) => frames.extend(group.iter().copied().map(AddrFrame::Python)),
                None => frames.push(AddrFrame::Native(address)),
            }
        }
    }
    frames.extend(remaining.flatten().copied().map(AddrFrame::Python));
}

/// The native frames inside the innermost loop, the Python frames, the native frames outside.
fn stack_on_leaf(frames: &mut Vec<AddrFrame>, native: &[u64], loops: &[usize], groups: &Groups) {
    let inner = loops.first().copied().unwrap_or(native.len());
    let outer = loops.last().map_or(native.len(), |last| last + 1);
    frames.extend(native[..inner].iter().copied().map(AddrFrame::Native));
    frames.extend(groups.frames());
    frames.extend(native[outer..].iter().copied().map(AddrFrame::Native));
}

#[cfg(test)]
mod tests {
    use profiler_common::PythonOffsets;

    use super::*;
    use crate::model::{Pid, ProcessKey};
    use crate::process::python::{Layout, PythonVersion};

    const LOOP: std::ops::Range<u64> = 0x1000..0x2000;
    const VERSIONS: [u8; 4] = [11, 12, 13, 14];

    fn runtime(minor: u8) -> PythonRuntime {
        let version = PythonVersion {
            major: 3,
            minor: 12,
            micro: 0,
        };
        PythonRuntime {
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            version: PythonVersion { minor, ..version },
            runtime: 0,
            offsets: PythonOffsets::default(),
            code: Layout::from_table(version).unwrap().code,
            loop_ranges: vec![LOOP, 0x9000..0x9008],
        }
    }

    /// A frame named by one letter as a native address or a code object.
    fn address(name: &str) -> u64 {
        u64::from(name.as_bytes()[0])
    }

    /// `"s t L v L m"`: L is a frame of the interpreter loop, l one of its cold part.
    fn native(drawn: &str) -> Vec<u64> {
        drawn
            .split_whitespace()
            .map(|name| match name {
                "L" => LOOP.start + 4,
                "l" => 0x9004,
                name => address(name),
            })
            .collect()
    }

    /// `"a b | c |"`: a bar ends the frames of one call of the interpreter loop. `?` is an unreadable
    /// frame, `g` is owned by a generator.
    fn chain(drawn: &str, minor: u8) -> PythonChain {
        let mut chain = PythonChain::default();
        for name in drawn.split_whitespace() {
            match (name, minor) {
                ("|", 11) => chain.frames.last_mut().unwrap().owner = 1,
                ("|", _) => chain.frames.push(PythonFrameRecord {
                    // The trampoline's code object (3.12), None (3.13, 3.14).
                    code: 0xffff,
                    owner: 3,
                    ..PythonFrameRecord::default()
                }),
                ("?", _) => {
                    chain.partial = true;
                    chain.frames.push(PythonFrameRecord {
                        flags: python_flag::UNREADABLE,
                        ..PythonFrameRecord::default()
                    });
                }
                (name, _) => chain.frames.push(PythonFrameRecord {
                    code: address(name),
                    owner: u16::from(name == "g" && minor != 11),
                    ..PythonFrameRecord::default()
                }),
            }
        }
        chain
    }

    /// Python frames in parentheses, kernel frames in brackets, loop frames as L.
    fn draw(frames: &[AddrFrame]) -> String {
        let letter = |address: u64| char::from(address as u8);
        let drawn: Vec<String> = frames
            .iter()
            .map(|frame| match *frame {
                AddrFrame::Kernel(address) => format!("[{}]", letter(address)),
                AddrFrame::Native(address) if address > 0xff => "L".to_owned(),
                AddrFrame::Native(address) => letter(address).to_string(),
                AddrFrame::Python(python) => format!("({})", letter(python.code)),
            })
            .collect();
        drawn.join(" ")
    }

    fn merged(
        native_drawn: &str,
        end: UnwindEnd,
        python: &PythonChain,
        minor: u8,
    ) -> (String, bool) {
        let runtime = runtime(minor);
        let kernel = [address("k"), address("e")];
        let merged = merge(
            &native(native_drawn),
            end,
            &kernel,
            Some((python, &runtime)),
        );
        let drawn = draw(&merged.frames);
        let drawn = drawn.strip_prefix("[k] [e]").unwrap().trim_start();
        (drawn.to_owned(), merged.mismatch)
    }

    /// Check, for every version's way of marking entries, that walks which fit are interleaved.
    #[test]
    fn fitting_walks_are_interleaved() {
        use UnwindEnd::{Root, StackCut};
        let cases = [
            // Native, how it ended, Python, merged.
            ("s t L m", Root, "a b |", "s t (a) (b) m"),
            ("s L v L m", Root, "a | b c |", "s (a) v (b) (c) m"),
            ("s L v l m", Root, "a | b |", "s (a) v (b) m"),
            ("s L v L m", Root, "g a | b |", "s (g) (a) v (b) m"),
            ("L m", Root, "a |", "(a) m"),
            ("s m", Root, "", "s m"),
            // The leaf has not linked its frame yet, or has unlinked it.
            ("L v L m", Root, "a |", "v (a) m"),
            ("L m", Root, "", "m"),
            // The copied stack ends before its root.
            (
                "s t L v",
                StackCut,
                "a b | c | d |",
                "s t (a) (b) v (c) (d)",
            ),
            ("s t", StackCut, "a | b |", "s t (a) (b)"),
            ("s L v L", StackCut, "a | b |", "s (a) v (b)"),
            // The Python chain does.
            ("s L v L m", Root, "a | ?", "s (a) v L m"),
            ("s L v L m", Root, "a | b ?", "s (a) v (b) m"),
            ("s L v L w L m", Root, "a | b ?", "s (a) v (b) w L m"),
        ];
        for minor in VERSIONS {
            for (native, end, python, expected) in cases {
                let python_chain = chain(python, minor);
                assert_eq!(
                    merged(native, end, &python_chain, minor),
                    (expected.to_owned(), false),
                    "3.{minor}: {native} with {python}"
                );
            }
        }
    }

    /// Check that contradicting walks keep all Python frames, between leaf and root, and say so.
    #[test]
    fn contradicting_walks_put_python_on_the_leaf() {
        use UnwindEnd::{Root, StackCut};
        let cases = [
            // A loop frame more, but the leaf is elsewhere.
            ("s L v L m", Root, "a |", "s (a) m"),
            // More groups than loop frames although the walk was complete.
            ("s L m", Root, "a | b | c |", "s (a) (b) (c) m"),
            // The loop was not found at all.
            ("s t v m", Root, "a b |", "s t v m (a) (b)"),
            // Two loop frames too many.
            ("L v L w L m", Root, "a |", "(a) m"),
            ("s L v L w", StackCut, "a |", "s (a) w"),
        ];
        for minor in VERSIONS {
            for (native, end, python, expected) in cases {
                let python_chain = chain(python, minor);
                assert_eq!(
                    merged(native, end, &python_chain, minor),
                    (expected.to_owned(), true),
                    "3.{minor}: {native} with {python}"
                );
            }
        }
    }

    /// Check that from 3.12 on a loop that has left its last frame shows none, and its caller keeps
    /// its place.
    #[test]
    fn an_empty_group_takes_its_loop_frame() {
        for minor in &VERSIONS[1..] {
            let python = chain("| a |", *minor);
            assert_eq!(
                merged("x L v L m", UnwindEnd::Root, &python, *minor),
                ("x v (a) m".to_owned(), false)
            );
        }
    }

    /// Check that 3.14's second kind of shim ends a group too.
    #[test]
    fn owner_4_is_a_shim_on_3_14() {
        let mut python = chain("a | b |", 14);
        python.frames[1].owner = 4;
        assert_eq!(
            merged("s L v L m", UnwindEnd::Root, &python, 14),
            ("s (a) v (b) m".to_owned(), false)
        );
    }

    /// Check that native frames pass through when there is no Python, and that a thread that the
    /// interpreter lost keeps its native frames.
    #[test]
    fn native_frames_survive_without_python() {
        let plain = merge(&native("s m"), UnwindEnd::Root, &[address("k")], None);
        assert_eq!(draw(&plain.frames), "[k] s m");
        let lost = PythonChain {
            no_thread: true,
            ..PythonChain::default()
        };
        assert_eq!(
            merged("s L m", UnwindEnd::Root, &lost, 12),
            ("s L m".to_owned(), false)
        );
    }
}
