//! Turns records of the `SAMPLES` ring into [`SampleRecord`]s.
//!
//! In:  record bytes, written by `profiler-ebpf/src/sample.rs`
//! Out: [`RawSample`] of kind [`SampleKind::OnCpu`], or [`SwitchOut`]
//! Lost: nothing here; a record that does not fit is a [`BadRecord`] for the caller to count
//!
//! # Layout
//!
//! | `SampleHeader` 336 B | kernel u64 x n | `PythonFrameRecord` 24 B x m | stack bytes from sp upwards |

use profiler_common::{
    KERNEL_FRAMES_MAX, PYTHON_FRAMES_MAX, PythonFrameRecord, REGS_MAX, SampleHeader, sample_flag,
};

use super::bad_record::{BadRecord, Reader};
use super::regs::stack_pointer;
use crate::model::{
    Captured, Pid, PythonChain, RawSample, RequestId, SampleKind, SampleRecord, StackBytes,
    SwitchOut, Tid,
};

const HEADER: usize = size_of::<SampleHeader>();

/// Decodes one record.
///
/// # Errors
///
/// The bytes are not what the programs write.
pub fn decode_sample(bytes: &[u8]) -> Result<SampleRecord, BadRecord> {
    let mut reader = Reader::new(bytes);
    let header = read_header(&mut reader).ok_or(BadRecord::Short {
        len: bytes.len(),
        header: HEADER,
    })?;
    for (count, limit) in [
        (header.kernel_frame_count, KERNEL_FRAMES_MAX),
        (header.python_frame_count, PYTHON_FRAMES_MAX),
    ] {
        if count as usize > limit {
            return Err(BadRecord::Frames(count));
        }
    }
    let announced = HEADER
        + 8 * header.kernel_frame_count as usize
        + size_of::<PythonFrameRecord>() * header.python_frame_count as usize;
    let announced = announced.saturating_add(header.stack_bytes as usize);
    let length = BadRecord::Length {
        len: bytes.len(),
        announced,
    };
    if announced != bytes.len() {
        return Err(length);
    }
    let kernel_frames = (0..header.kernel_frame_count)
        .map(|_| reader.u64())
        .collect::<Option<Vec<_>>>()
        .ok_or(length)?;
    let python_frames = (0..header.python_frame_count)
        .map(|_| read_python_frame(&mut reader))
        .collect::<Option<Vec<_>>>()
        .ok_or(length)?;
    let stack = reader.take(header.stack_bytes as usize).ok_or(length)?;

    let has = |flag| header.flags & flag != 0;
    let python = has(sample_flag::PYTHON).then(|| PythonChain {
        frames: python_frames,
        next: header.python_next,
        partial: has(sample_flag::PYTHON_PARTIAL),
        no_thread: has(sample_flag::PYTHON_NO_THREAD),
    });
    let captured = Box::new(Captured {
        stack: StackBytes {
            sp: stack_pointer(&header.regs),
            skipped: header.stack_skipped_bytes,
            bytes: stack.to_vec(),
            cut: has(sample_flag::STACK_CUT),
        },
        regs: header.regs,
        kernel_frames,
        python,
    });
    let (request, pid, tid) = (
        RequestId(header.request_id),
        Pid(header.tgid),
        Tid(header.tid),
    );
    let ktime_ns = header.ktime_ns;
    Ok(if has(sample_flag::SWITCH_OUT) {
        SampleRecord::SwitchOut(SwitchOut {
            request,
            pid,
            tid,
            ktime_ns,
            seq: header.switch_seq,
            captured,
        })
    } else {
        SampleRecord::Tick(RawSample {
            request,
            pid,
            tid,
            ktime_ns,
            kind: SampleKind::OnCpu(captured),
        })
    })
}

fn read_header(reader: &mut Reader<'_>) -> Option<SampleHeader> {
    let mut header = SampleHeader {
        request_id: reader.u64()?,
        ktime_ns: reader.u64()?,
        switch_seq: reader.u64()?,
        tgid: reader.u32()?,
        tid: reader.u32()?,
        slot: reader.u32()?,
        flags: reader.u32()?,
        kernel_frame_count: reader.u32()?,
        python_frame_count: reader.u32()?,
        stack_bytes: reader.u32()?,
        stack_skipped_bytes: reader.u32()?,
        python_next: reader.u64()?,
        regs: [0; REGS_MAX],
    };
    for word in &mut header.regs {
        *word = reader.u64()?;
    }
    Some(header)
}

fn read_python_frame(reader: &mut Reader<'_>) -> Option<PythonFrameRecord> {
    Some(PythonFrameRecord {
        code: reader.u64()?,
        instr: reader.u64()?,
        owner: reader.u16()?,
        flags: reader.u16()?,
        identity: reader.u32()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(flags: u32, kernel: &[u64], python: &[(u64, u64, u16)], stack: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [7_u64, 1_000, 12] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [
            100,
            101,
            2,
            flags,
            kernel.len() as u32,
            python.len() as u32,
            stack.len() as u32,
            0x30,
        ] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(0xabc0_u64.to_ne_bytes());
        for word in 0..REGS_MAX as u64 {
            bytes.extend((0x1000 + word).to_ne_bytes());
        }
        kernel
            .iter()
            .for_each(|frame| bytes.extend(frame.to_ne_bytes()));
        for (code, instr, owner) in python {
            bytes.extend(code.to_ne_bytes());
            bytes.extend(instr.to_ne_bytes());
            for half in [*owner, 0, 5, 0] {
                bytes.extend(half.to_ne_bytes());
            }
        }
        bytes.extend(stack);
        bytes
    }

    /// Check that frames, registers and stack bytes arrive in order.
    #[test]
    fn a_sample_keeps_frames_registers_and_stack() {
        let flags = sample_flag::PYTHON | sample_flag::PYTHON_CUT | sample_flag::STACK_CUT;
        let bytes = record(flags, &[1, 2], &[(0x10, 0x20, 3)], b"stack");
        let SampleRecord::Tick(sample) = decode_sample(&bytes).unwrap() else {
            panic!("no tick");
        };
        assert_eq!(sample.request, RequestId(7));
        assert_eq!((sample.pid, sample.tid), (Pid(100), Tid(101)));
        let SampleKind::OnCpu(captured) = sample.kind else {
            panic!("not on-CPU");
        };
        assert_eq!(captured.kernel_frames, [1, 2]);
        assert_eq!(captured.regs[0], 0x1000);
        assert_eq!(captured.stack.skipped, 0x30);
        assert_eq!(captured.stack.bytes, b"stack");
        assert!(captured.stack.cut);
        let python = captured.python.unwrap();
        assert_eq!(python.next, 0xabc0);
        assert_eq!(python.frames[0].code, 0x10);
        assert_eq!(python.frames[0].instr, 0x20);
        assert_eq!(python.frames[0].owner, 3);
        assert_eq!(python.frames[0].identity, 5);
    }

    /// Check that a switch-out is told apart from a tick, and that a thread of another process has no Python chain.
    #[test]
    fn a_switch_out_is_no_tick() {
        let bytes = record(sample_flag::SWITCH_OUT, &[1], &[], b"stack");
        let SampleRecord::SwitchOut(out) = decode_sample(&bytes).unwrap() else {
            panic!("no switch-out");
        };
        assert_eq!((out.request, out.tid), (RequestId(7), Tid(101)));
        assert_eq!((out.ktime_ns, out.seq), (1_000, 12));
        assert_eq!(out.captured.stack.bytes, b"stack");
        assert_eq!(out.captured.python, None);
    }

    /// Check that cut records and impossible counts are errors, not panics.
    #[test]
    fn damaged_records_are_errors() {
        let bytes = record(0, &[1], &[(1, 2, 3)], b"stack");
        for len in 0..bytes.len() {
            assert!(decode_sample(&bytes[..len]).is_err(), "cut at {len}");
        }
        for at in [40, 44, 48] {
            let mut damaged = bytes.clone();
            damaged[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
            assert!(decode_sample(&damaged).is_err(), "count at {at}");
        }
    }
}
