//! Finds the kind of a frame by the text of its signature.
//!
//! Results come back from an OAP as text only; colours and [`super::FrameSet`] need the kind. The forms
//! are those of `symbolize/signature.rs`; what has none of them is a function of a language, also one
//! that a language agent has reported.

use super::activity;
use crate::model::FrameKind;
use crate::process::mapping::is_c_library;
use crate::process::python::is_interpreter;

/// The kind of frame that a signature is of.
#[must_use]
pub fn kind_of(signature: &str) -> FrameKind {
    if signature == "..." {
        return FrameKind::Elided;
    }
    if activity::is_activity(signature) {
        return FrameKind::Activity;
    }
    if signature == "[kernel]" {
        return FrameKind::Kernel;
    }
    if let Some((_, mark)) = bracketed(signature, '[', ']') {
        return match mark {
            "vdso" => FrameKind::CLibrary,
            "jit" => FrameKind::Native,
            _ => FrameKind::Kernel, // or a module of it
        };
    }
    if let Some((_, object)) = bracketed(signature, '(', ')') {
        return match object {
            "python" => FrameKind::Python, // a frame whose code object could not be read
            object if is_interpreter(object) => FrameKind::RuntimeInternal,
            object if is_c_library(object) => FrameKind::CLibrary,
            _ => FrameKind::Native,
        };
    }
    if let Some((object, offset)) = signature.rsplit_once("+0x")
        && offset.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return match object {
            object if is_interpreter(object) => FrameKind::RuntimeInternal,
            object if is_c_library(object) => FrameKind::CLibrary,
            _ => FrameKind::Native,
        };
    }
    match signature {
        "[unknown]" => FrameKind::Native,
        _ if signature.ends_with(']') && signature.starts_with('[') => FrameKind::Builtin,
        _ => FrameKind::Python,
    }
}

/// `text (mark)` as its two parts.
fn bracketed(signature: &str, open: char, close: char) -> Option<(&str, &str)> {
    let (rest, mark) = signature.strip_suffix(close)?.rsplit_once(open)?;
    Some((rest.strip_suffix(' ')?, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the forms of signatures, with names that look like another form.
    #[test]
    fn signatures_tell_their_kind() {
        use FrameKind as K;
        for (signature, kind) in [
            ("...", K::Elided),
            ("[system call futex]", K::Activity),
            ("[page fault]", K::Activity),
            ("[waiting for a CPU]", K::Activity),
            ("do_nanosleep [kernel]", K::Kernel),
            ("ext4_write [ext4]", K::Kernel),
            ("[kernel]", K::Kernel),
            ("__vdso_time [vdso]", K::CLibrary),
            ("script::handler main.js:7 [jit]", K::Native),
            ("Vec<T>::push (inlined) (server)", K::Native),
            (
                "std::vector<int>::operator[](unsigned long) (server)",
                K::Native,
            ),
            ("clock_nanosleep (libc.so.6)", K::CLibrary),
            ("__clone (ld-musl-x86_64.so.1)", K::CLibrary),
            ("memcpy (libcrypto.so.3)", K::Native),
            ("_PyEval_Vector (libpython3.12.so.1.0)", K::RuntimeInternal),
            ("Py_BytesMain (python3.11)", K::RuntimeInternal),
            ("run (python_plugin.so)", K::Native),
            ("ffi_call (libffi.so.8)", K::RuntimeInternal),
            ("libx.so+0x1234", K::Native),
            ("libpython3.12.so.1.0+0x1f0", K::RuntimeInternal),
            ("[unknown] (libx.so)", K::Native),
            ("[unknown] [jit]", K::Native),
            ("[unknown]", K::Native),
            ("[garbage collection]", K::Builtin),
            ("shop.views.cart:12", K::Python),
            ("time.sleep", K::Python),
            ("[unknown] (python)", K::Python),
            ("com.acme.Shop.cart:12", K::Python),
            ("f[0", K::Python),
            ("", K::Python),
        ] {
            assert_eq!(kind_of(signature), kind, "{signature}");
        }
    }
}
