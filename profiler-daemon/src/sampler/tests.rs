use std::cell::{Cell, RefCell};
use std::io::Error;

use profiler_common::{KERNEL_FRAMES_MAX, REGS_MAX};

use super::*;
use crate::model::Pid;

struct Thread {
    states: RefCell<Vec<ThreadState>>,
    reads: Cell<u32>,
}

impl ThreadStates for Thread {
    fn thread_state(&self, _tid: Tid) -> Option<ThreadState> {
        let mut states = self.states.borrow_mut();
        if states.len() > 1 {
            Some(states.remove(0))
        } else {
            states.first().copied()
        }
    }
}

impl ReadMemory for Thread {
    fn read(&self, _address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        self.reads.set(self.reads.get() + 1);
        buffer[..8].copy_from_slice(&7_u64.to_ne_bytes());
        Ok(8)
    }
}

impl Thread {
    /// What is found of it, one look after the other.
    fn new(states: Vec<ThreadState>) -> Self {
        Self {
            states: RefCell::new(states),
            reads: Cell::new(0),
        }
    }

    fn sources<'a>(&'a self, walker: &'a mut NoPython) -> Sources<'a, Self, Self, NoPython> {
        Sources {
            states: self,
            memory: self,
            walker,
            now_ktime_ns: || 97,
        }
    }
}

struct NoPython;

impl ChainWalker for NoPython {
    fn walk(
        &mut self,
        _process: ProcessKey,
        _tid: Tid,
        _thread_pointer: u64,
    ) -> Option<PythonChain> {
        None
    }
}

fn state(seq: u64, flags: u32) -> ThreadState {
    ThreadState {
        seq,
        ktime_ns: 10 * seq,
        in_ktime_ns: 0,
        window_ktime_ns: 0,
        stacks_in_window: 0,
        recorded_count: 0,
        recorded_seq: 0,
        recorded_ktime_ns: 0,
        recorded_end_ktime_ns: 0,
        prev_state: 1,
        flags,
        tgid: 1,
        kernel_frame_count: 1,
        thread_pointer: 0,
        regs: [0; REGS_MAX],
        kernel_frames: [9; KERNEL_FRAMES_MAX],
    }
}

fn at(ktime_ns: u64) -> Tick {
    Tick {
        first_ktime_ns: ktime_ns - 2,
        last_ktime_ns: ktime_ns,
    }
}

fn watched() -> Watched {
    Watched {
        request: RequestId(1),
        start_ktime_ns: 100,
        process: ProcessKey {
            pid: Pid(1),
            start_ticks: 0,
        },
        tid: Tid(1),
    }
}

/// What was found at a tick, as words.
fn draw(found: &[RawSample]) -> String {
    let word = |sample: &RawSample| match sample.kind {
        SampleKind::OnCpu(_) => "on".to_owned(),
        SampleKind::OffCpu { since_ktime_ns, .. } => {
            assert!(since_ktime_ns <= sample.ktime_ns);
            format!("off since {since_ktime_ns}")
        }
        SampleKind::Unchanged => "unchanged".to_owned(),
        SampleKind::Ended => format!("ended {}", sample.ktime_ns),
    };
    found.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// Ticks at 100, 110, 120 ...; `state(n, _)` switched at 10 * n.
fn ticks(states: Vec<ThreadState>, n: u64) -> (Vec<String>, u32, Coverage) {
    let thread = Thread::new(states);
    let (mut sampler, mut walker) = (Sampler::default(), NoPython);
    let mut losses = Coverage::default();
    let ticks = (0..n)
        .map(|tick| {
            let mut found = Vec::new();
            let at = at(100 + 10 * tick);
            let sources = &mut thread.sources(&mut walker);
            sampler.sample(watched(), at, sources, &mut losses, &mut found);
            draw(&found)
        })
        .collect();
    (ticks, thread.reads.get(), losses)
}

/// Check that a thread that sleeps over several ticks is read once.
#[test]
fn a_sleeping_thread_is_read_once() {
    let (kinds, reads, losses) = ticks(vec![state(8, 0)], 3);
    assert_eq!(kinds, ["off since 80", "unchanged", "unchanged"]);
    assert_eq!((reads, losses.get(Counter::SamplesUnchanged)), (1, 2));
}

/// Check that a running thread is left to its CPU's tick.
#[test]
fn a_running_thread_is_not_read() {
    let (kinds, reads, _) = ticks(vec![state(8, thread_state_flag::ON_CPU)], 1);
    assert_eq!(kinds, [""]);
    assert_eq!(reads, 0);
}

/// Check that a read is repeated when the thread ran meanwhile, and then succeeds.
#[test]
fn a_read_that_raced_is_repeated() {
    let (kinds, reads, losses) = ticks(
        vec![
            state(8, 0),
            ThreadState {
                seq: 12,
                ..state(9, 0)
            },
            ThreadState {
                seq: 12,
                ..state(9, 0)
            },
        ],
        1,
    );
    assert_eq!(kinds, ["off since 90"]);
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (2, 0));
}

/// Check that a thread that never holds still is counted, not guessed.
#[test]
fn a_thread_that_never_holds_still_is_counted() {
    let states = (0..40)
        .map(|n| ThreadState {
            seq: n * 4,
            ..state(1, 0)
        })
        .collect();
    let (kinds, _, losses) = ticks(states, 1);
    assert_eq!(kinds, [""]);
    assert_eq!(losses.get(Counter::SamplesRaced), 1);
}

/// Check that the last tick of a block counts although the thread ran before we looked.
#[test]
fn a_thread_that_woke_after_the_tick_was_blocked_at_it() {
    let off = state(8, 0);
    let woken = ThreadState {
        ktime_ns: 111,
        in_ktime_ns: 111,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (kinds, reads, losses) = ticks(vec![off, off, woken], 3);
    assert_eq!(kinds, ["off since 80", "unchanged, ended 111", ""]);
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (1, 0));
}

/// Check that the end of a block is told once, whether the thread runs or is blocked again, and not
/// guessed if it has been on a CPU twice since.
#[test]
fn the_end_of_a_block_is_told_if_it_is_known() {
    let off = state(8, 0);
    let running = ThreadState {
        ktime_ns: 104,
        in_ktime_ns: 104,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (kinds, ..) = ticks(vec![off, off, running], 3);
    assert_eq!(kinds, ["off since 80", "ended 104", ""]);
    let blocked_again = |seq| ThreadState {
        ktime_ns: 106,
        in_ktime_ns: 104,
        ..state(seq, 0)
    };
    let (kinds, ..) = ticks(vec![off, off, blocked_again(12)], 3);
    assert_eq!(
        kinds,
        ["off since 80", "ended 104, off since 106", "unchanged"]
    );
    let (kinds, ..) = ticks(vec![off, off, blocked_again(16)], 3);
    assert_eq!(kinds, ["off since 80", "off since 106", "unchanged"]);
}

/// Check that a block that began and ended around one tick, too short to be read, is counted.
#[test]
fn a_block_that_was_over_before_we_looked_is_counted() {
    let woken = ThreadState {
        ktime_ns: 101,
        in_ktime_ns: 101,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (kinds, reads, losses) = ticks(vec![woken], 1);
    assert_eq!(kinds, [""]);
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 1));
}

/// Check that a thread that woke after the tick and is blocked again was off its CPU at the tick: in the
/// block that was read, or else its next block is told, which began after the tick.
#[test]
fn a_thread_that_is_blocked_again_was_blocked_at_the_tick() {
    let off = state(8, 0);
    let again = |in_ktime_ns, ktime_ns| ThreadState {
        ktime_ns,
        in_ktime_ns,
        ..state(12, 0)
    };
    let (kinds, reads, losses) = ticks(vec![off, off, again(112, 115)], 3);
    assert_eq!(
        kinds,
        ["off since 80", "unchanged, ended 112", "off since 115"]
    );
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (2, 0));
    let (kinds, reads, losses) = ticks(vec![again(102, 105)], 2);
    assert_eq!(kinds, ["off since 105", "unchanged"]);
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (1, 0));
    assert_eq!(losses.get(Counter::SamplesLate), 1);
}

/// Check that a thread that blocked after the tick is left to its CPU, which saw it running.
#[test]
fn a_thread_that_blocked_after_the_tick_was_running_at_it() {
    let (kinds, reads, losses) = ticks(vec![state(12, 0)], 1);
    assert_eq!(kinds, [""]);
    assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 0));
}

/// Check that a thread that woke while the CPUs ticked is left to its CPU, and not counted as lost.
#[test]
fn a_thread_that_woke_during_the_tick_is_left_to_its_cpu() {
    let woken = ThreadState {
        ktime_ns: 99,
        in_ktime_ns: 99,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (kinds, _, losses) = ticks(vec![woken], 1);
    assert_eq!(kinds, [""]);
    assert_eq!(losses.get(Counter::SamplesRaced), 0);
}

/// Check that a tick before the request is not sampled.
#[test]
fn a_tick_before_the_request_is_not_its() {
    let thread = Thread::new(vec![state(8, 0)]);
    let mut losses = Coverage::default();
    let mut found = Vec::new();
    let (at, mut walker) = (at(99), NoPython);
    let sources = &mut thread.sources(&mut walker);
    Sampler::default().sample(watched(), at, sources, &mut losses, &mut found);
    assert!(found.is_empty());
}

/// What a look ahead of the tick at 100 finds, and then the tick; with the number of reads.
fn ahead_and_at(states: Vec<ThreadState>) -> (String, String, u32, Coverage) {
    read_by_and_at(|| 97, states)
}

/// The same with a look ahead that has read at another time.
fn read_by_and_at(
    now_ktime_ns: fn() -> u64,
    states: Vec<ThreadState>,
) -> (String, String, u32, Coverage) {
    let thread = Thread::new(states);
    let (mut sampler, mut walker) = (Sampler::default(), NoPython);
    let (mut ahead, mut found) = (Vec::new(), Vec::new());
    let mut losses = Coverage::default();
    let sources = &mut thread.sources(&mut walker);
    sources.now_ktime_ns = now_ktime_ns;
    sampler.look_ahead(watched(), sources, &mut ahead);
    sampler.sample(watched(), at(100), sources, &mut losses, &mut found);
    (draw(&ahead), draw(&found), thread.reads.get(), losses)
}

/// Check that a thread that wakes at the tick is told with what was read of it before.
#[test]
fn a_thread_that_wakes_at_the_tick_was_read_before() {
    let woken = ThreadState {
        ktime_ns: 101,
        in_ktime_ns: 101,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let off = state(8, 0);
    let (ahead, found, reads, losses) = ahead_and_at(vec![off, woken]);
    assert_eq!(
        (&*ahead, &*found, reads),
        ("", "off since 80, ended 101", 1)
    );
    assert_eq!(losses.get(Counter::SamplesRaced), 0);
    assert_eq!(losses.get(Counter::SamplesOffCpu), 1);
    let again = ThreadState {
        ktime_ns: 105,
        in_ktime_ns: 101,
        ..state(12, 0)
    };
    let (_, found, reads, losses) = ahead_and_at(vec![off, again]);
    assert_eq!((&*found, reads), ("off since 80, ended 101", 1));
    assert_eq!(losses.get(Counter::SamplesLate), 0);
}

/// Check that a read that a thread may have run in is not told: a look ahead that came late.
#[test]
fn a_read_that_was_not_over_when_the_thread_ran_is_not_told() {
    let woken = |in_ktime_ns| ThreadState {
        ktime_ns: in_ktime_ns,
        in_ktime_ns,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (_, found, _, losses) = ahead_and_at(vec![state(8, 0), woken(101)]);
    assert_eq!(found, "off since 80, ended 101");
    assert_eq!(losses.get(Counter::SamplesRaced), 0);
    let (ahead, found, _, losses) = read_by_and_at(|| 102, vec![state(8, 0), woken(101)]);
    assert_eq!((&*ahead, &*found), ("", ""));
    assert_eq!(losses.get(Counter::SamplesRaced), 1);
    let (.., losses) = read_by_and_at(|| 102, vec![state(8, 0), woken(103)]);
    assert_eq!(losses.get(Counter::SamplesRaced), 0);
}

/// Check that nothing is told of a block that no tick falls into, and that one read before is not read again.
#[test]
fn only_blocks_at_a_tick_are_told() {
    let off = state(8, 0);
    let (ahead, found, reads, _) = ahead_and_at(vec![off]);
    assert_eq!((&*ahead, &*found, reads), ("", "off since 80", 1));
    let running = ThreadState {
        ktime_ns: 95,
        in_ktime_ns: 95,
        ..state(10, thread_state_flag::ON_CPU)
    };
    let (ahead, found, reads, losses) = ahead_and_at(vec![off, running]);
    assert_eq!((&*ahead, &*found, reads), ("", "", 1));
    assert_eq!(losses.get(Counter::SamplesRaced), 0);
    let (ahead, found, reads, _) = ahead_and_at(vec![running, off]);
    assert_eq!((&*ahead, &*found, reads), ("", "off since 80", 1));
}

/// Check that a look ahead tells the end of a block that it still knows, and the tick does not tell it again.
#[test]
fn a_look_ahead_tells_the_end_of_a_block() {
    let off = state(8, 0);
    let next = ThreadState {
        ktime_ns: 106,
        in_ktime_ns: 104,
        ..state(12, 0)
    };
    let thread = Thread::new(vec![off, off, next]);
    let (mut sampler, mut walker) = (Sampler::default(), NoPython);
    let (mut found, mut losses) = (Vec::new(), Coverage::default());
    let sources = &mut thread.sources(&mut walker);
    sampler.sample(watched(), at(100), sources, &mut losses, &mut found);
    sampler.look_ahead(watched(), sources, &mut found);
    sampler.sample(watched(), at(110), sources, &mut losses, &mut found);
    assert_eq!(draw(&found), "off since 80, ended 104, off since 106");
}

/// The thread left its CPU for the `seq / 4`-th time.
fn switch_out(seq: u64, ktime_ns: u64) -> SampleRecord {
    SampleRecord::SwitchOut(SwitchOut {
        request: watched().request,
        pid: watched().process.pid,
        tid: watched().tid,
        ktime_ns,
        seq,
        captured: captured(),
    })
}

/// Its CPU has captured it.
fn tick_record(ktime_ns: u64) -> SampleRecord {
    SampleRecord::Tick(watched().sample(ktime_ns, SampleKind::OnCpu(captured())))
}

fn captured() -> Box<Captured> {
    Box::new(Captured {
        regs: [0; REGS_MAX],
        stack: StackBytes {
            sp: 0,
            skipped: 0,
            bytes: vec![1; 100],
            cut: false,
        },
        kernel_frames: vec![9],
        python: None,
    })
}

/// What a tick at 100 finds of a thread of which these records exist.
fn tick_of_recorded(
    records: Vec<SampleRecord>,
    states: Vec<ThreadState>,
) -> (String, u32, Coverage) {
    let thread = Thread::new(states);
    let (mut sampler, mut walker) = (Sampler::default(), NoPython);
    let (mut losses, mut found) = (Coverage::default(), Vec::new());
    for record in records {
        sampler.note(record);
    }
    let sources = &mut thread.sources(&mut walker);
    sampler.sample(watched(), at(100), sources, &mut losses, &mut found);
    (draw(&found), thread.reads.get(), losses)
}

/// A thread that runs; its latest recorded block ended at `end_ktime_ns`.
fn runs_since(seq: u64, recorded_seq: u64, end_ktime_ns: u64) -> ThreadState {
    ThreadState {
        ktime_ns: 103,
        in_ktime_ns: 103,
        recorded_seq,
        recorded_end_ktime_ns: end_ktime_ns,
        ..state(seq, thread_state_flag::ON_CPU)
    }
}

/// Check that a block over before we looked is told from its record, with its end, however often the thread has switched
/// since then.
#[test]
fn a_block_that_was_recorded_is_told_although_it_is_over() {
    for seq in [10, 30] {
        let (kinds, reads, losses) =
            tick_of_recorded(vec![switch_out(8, 98)], vec![runs_since(seq, 8, 101)]);
        assert_eq!(kinds, "off since 98, ended 101");
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 0));
        assert_eq!(losses.get(Counter::SamplesOffCpu), 1);
    }
}

/// Check that a record tells nothing of a tick it did not last to, began after, or of another request or switch.
#[test]
fn a_record_tells_of_its_own_time_only() {
    let mut of_other = switch_out(8, 98);
    if let SampleRecord::SwitchOut(out) = &mut of_other {
        out.request = RequestId(2);
    }
    for (record, recorded_seq, end_ktime_ns) in [
        (switch_out(8, 96), 8, 97),
        (switch_out(8, 101), 8, 102),
        (switch_out(8, 98), 12, 101),
        (of_other, 8, 101),
    ] {
        let state = runs_since(10, recorded_seq, end_ktime_ns);
        let (kinds, _, losses) = tick_of_recorded(vec![record.clone()], vec![state]);
        assert_eq!(kinds, "", "{record:?}");
        assert_eq!(losses.get(Counter::SamplesRaced), 1);
    }
}

/// Check that a thread that is still in its block is read: memory has more than the record.
#[test]
fn a_recorded_block_that_goes_on_is_read() {
    let still = ThreadState {
        recorded_seq: 8,
        ..state(8, 0)
    };
    let (kinds, reads, _) = tick_of_recorded(vec![switch_out(8, 80)], vec![still]);
    assert_eq!((kinds.as_str(), reads), ("off since 80", 1));
}

/// Check that a thread that its CPU has captured is neither lost nor told twice, whatever it did right after the tick.
#[test]
fn a_thread_that_ran_at_the_tick_is_told_by_its_cpu() {
    let blocked_again = ThreadState {
        ktime_ns: 103,
        in_ktime_ns: 101,
        ..state(12, 0)
    };
    for state in [runs_since(10, 0, 1), blocked_again] {
        let (kinds, reads, losses) = tick_of_recorded(vec![tick_record(99)], vec![state]);
        assert_eq!((kinds.as_str(), reads), ("", 0));
        assert_eq!(losses.get(Counter::SamplesRaced), 0);
    }
    // Of another tick.
    let (_, _, losses) = tick_of_recorded(vec![tick_record(90)], vec![runs_since(10, 0, 1)]);
    assert_eq!(losses.get(Counter::SamplesRaced), 1);
}

/// Check that records are kept no longer than needed, and no more of them than memory allows.
#[test]
fn records_are_forgotten_after_their_tick() {
    let mut sampler = Sampler::default();
    for tid in 0..200_000 {
        let mut record = switch_out(8, 98);
        if let SampleRecord::SwitchOut(out) = &mut record {
            out.tid = Tid(tid);
        }
        sampler.note(record);
    }
    let kept = sampler.recent.kept();
    assert!(kept.1 > 1_000 && kept.0 <= 16 << 20, "{kept:?}");
    sampler.end_ticks(97);
    assert_eq!(sampler.recent.kept(), kept);
    sampler.end_ticks(100);
    assert_eq!(sampler.recent.kept(), (0, 0));
}
