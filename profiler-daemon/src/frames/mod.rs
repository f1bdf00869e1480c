//! Removes frames from a stack that are not the application's: one pure function and its inputs.
//!
//! In:  a named stack, see [`crate::symbolize`]
//! Out: [`FrameSet::apply`]: the frames to show, innermost first
//! Lost: nothing that OAP counts: times and the number of snapshots are decided before, on whole stacks
//!
//! ```text
//! all                                        application
//! __schedule [kernel]                        [system call clock_nanosleep]
//! __x64_sys_clock_nanosleep [kernel]
//! clock_nanosleep (libc.so.6)
//! time_sleep (libpython3.12.so.1.0)          time.sleep
//! cfunction_vectorcall_O (libpython3.12.so.1.0)
//! shop.views.cart:12                         shop.views.cart:12
//! _PyEval_Vector (libpython3.12.so.1.0)
//! PyObject_CallMethod (libpython3.12.so.1.0)
//! handle (libgrpc.so.37)                     handle (libgrpc.so.37)
//! start_thread (libc.so.6)
//! clone3 (libc.so.6)
//! ```
//!
//! # The rules
//! 1. The kernel's frames become one frame that says what the thread is in ([`activity`]).
//! 2. A stack without an interpreter or virtual machine keeps all its user frames.
//! 3. Any other loses the interpreter's own frames. Of those below the innermost function of the language
//!    the ones with a name in the language stay, under that name; without one nothing is guessed.
//! 4. It loses the C library where that only starts the thread (at the root), returns from a signal handler, or
//!    only makes a system call for the interpreter (directly below it). Elsewhere it tells something: `memmove` below `bytes.join`.
//! 5. Of the import machinery, which is Python code of the interpreter, the outermost frame of each run
//!    stays: it says `import`.
//! 6. Frames of other libraries stay wherever they are, and a stack never becomes empty.
//!
//! The rules know frames by [`FrameKind`]; where code lies decides about the kind, so that they hold
//! without symbols too.

pub mod activity;
mod call_name;
mod kind;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use kind::kind_of;

use crate::model::{Frame, FrameKind};

/// Which frames are shown and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameSet {
    /// Those of the application, with what it called and what it waits for.
    #[default]
    Application,
    /// All, those of the interpreter and the kernel included.
    All,
}

impl FrameSet {
    /// All, in the order of the help text.
    pub const ALL: [Self; 2] = [Self::Application, Self::All];

    /// Name in configuration and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::All => "all",
        }
    }

    /// The frames of a stack that belong to the set. Both are innermost first.
    #[must_use]
    pub fn apply(self, frames: &[Frame]) -> Vec<Frame> {
        match self {
            Self::All => {
                let real = frames.iter().filter(|f| f.kind != FrameKind::Activity);
                real.cloned().collect()
            }
            Self::Application => application(frames),
        }
    }

    /// The same for signatures as they are sent, root first. What kind of frame a signature is of, its
    /// text tells; functions of the interpreter have no label there.
    #[must_use]
    pub fn apply_to_signatures(self, stack: &[Arc<str>]) -> Vec<Arc<str>> {
        if self == Self::All {
            return stack.to_vec();
        }
        let frames = stack.iter().rev();
        let frames: Vec<Frame> = frames
            .map(|signature| Frame::new(Arc::clone(signature), kind_of(signature)))
            .collect();
        let shown = self.apply(&frames).into_iter().rev();
        shown.map(|frame| frame.signature).collect()
    }
}

fn application(frames: &[Frame]) -> Vec<Frame> {
    let is_kernel = |f: &&Frame| matches!(f.kind, FrameKind::Kernel | FrameKind::Activity);
    let user: Vec<&Frame> = frames.iter().filter(|f| !is_kernel(f)).collect();
    let activity = activity_of(frames);
    let shown = if user.iter().any(|f| is_managed(f)) {
        managed(&user, activity.as_ref())
    } else {
        user.into_iter().cloned().collect()
    };
    activity.into_iter().chain(shown).collect()
}

/// The frame of an interpreter or virtual machine, or of what it runs.
fn is_managed(frame: &Frame) -> bool {
    matches!(
        frame.kind,
        FrameKind::Python | FrameKind::Builtin | FrameKind::RuntimeInternal
    )
}

/// What the thread is in, if it is in the kernel.
fn activity_of(frames: &[Frame]) -> Option<Frame> {
    let known = frames.iter().find(|f| f.kind == FrameKind::Activity);
    known.cloned().or_else(|| {
        let kernel = frames.iter().filter(|f| f.kind == FrameKind::Kernel);
        let names: Vec<&str> = kernel.map(|f| &*f.signature).collect();
        activity::of_kernel_frames(&names)
            .map(|activity| Frame::new(activity.to_string(), FrameKind::Activity))
    })
}

/// The user frames to show of a stack with an interpreter in it.
fn managed(user: &[&Frame], activity: Option<&Frame>) -> Vec<Frame> {
    let is_language = |f: &&Frame| f.kind == FrameKind::Python;
    let innermost = user.iter().position(is_language).unwrap_or(user.len());
    let calls_start = system_call_frames(user, activity);
    let root_start = user.len() - thread_start_frames(user);
    let mut shown: Vec<Frame> = Vec::with_capacity(user.len());
    for (index, &frame) in user.iter().enumerate() {
        let is_shown = match frame.kind {
            FrameKind::RuntimeInternal => {
                if index < innermost
                    && let Some(label) = &frame.label
                {
                    shown.push(Frame::new(Arc::clone(label), FrameKind::Builtin));
                }
                false
            }
            FrameKind::Python => {
                if is_import(frame) && shown.last().is_some_and(is_import) {
                    shown.pop(); // the outermost of a run stays
                }
                true
            }
            FrameKind::Native | FrameKind::CLibrary => {
                index >= calls_start && index < root_start && !is_signal_return(frame)
            }
            _ => true,
        };
        if is_shown {
            shown.push(frame.clone());
        }
    }
    if shown.is_empty() {
        let own = user.iter().rfind(|f| f.kind == FrameKind::RuntimeInternal);
        shown.extend(own.or(user.last()).map(|&f| f.clone()));
    }
    shown
}

/// How many frames at the leaf are the C library's way from the interpreter into the kernel.
fn system_call_frames(user: &[&Frame], activity: Option<&Frame>) -> usize {
    let count = user
        .iter()
        .take_while(|f| f.kind == FrameKind::CLibrary)
        .count();
    let is_call = activity.is_some_and(|f| activity::is_system_call(&f.signature))
        || user
            .first()
            .is_some_and(|f| f.signature.ends_with("[vdso]"));
    let is_below_interpreter = user.get(count).is_some_and(|f| is_managed(f));
    if is_call && is_below_interpreter {
        count
    } else {
        0
    }
}

/// How many frames at the root start the thread and the interpreter.
fn thread_start_frames(user: &[&Frame]) -> usize {
    let starts = |f: &&&Frame| {
        matches!(f.kind, FrameKind::CLibrary | FrameKind::RuntimeInternal)
            || f.signature.starts_with("_start (")
    };
    user.iter().rev().take_while(starts).count()
}

/// Whether the frame is the code that a signal handler returns to, of glibc or musl: the interpreter's
/// handler only takes note, and runs none of the application.
fn is_signal_return(frame: &Frame) -> bool {
    frame.kind == FrameKind::CLibrary && frame.signature.starts_with("__restore")
}

/// Whether the frame is of the machinery behind `import`, whose source is compiled into the interpreter.
fn is_import(frame: &Frame) -> bool {
    let signature = frame.signature.strip_prefix("<frozen ");
    let signature = signature.unwrap_or(&frame.signature);
    frame.kind == FrameKind::Python && signature.starts_with("importlib._bootstrap")
}

#[cfg(test)]
mod tests;
