//! Calls code that may panic on hostile input, without the panic's text on standard error.
//!
//! In:  a call
//! Out: its value, or none if it panicked
//! Lost: the text of such a panic; all other panics, of this thread before and after and of others, are as loud as ever
//!
//! The default hook writes the text before anybody can catch the panic. A user who names a function of their own program so
//! that a demangler fails would fill the daemon's log.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `call` returns; `None` if it panics. The caller throws away what `call` may have left half changed.
pub(crate) fn catch_quietly<T>(call: impl FnOnce() -> T) -> Option<T> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                usual(info);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_QUIET.set(was_quiet);
    result.ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    const CHILD: &str = "PROFILERD_TEST_OF_PANICS";

    /// Check that what is caught is not seen, and that other panics are: of another thread meanwhile, and of this thread
    /// afterwards. In a process of its own, whose standard error can be read.
    #[test]
    fn only_what_is_caught_is_quiet() {
        if std::env::var_os(CHILD).is_some() {
            assert_eq!(catch_quietly(|| 1), Some(1));
            let caught = catch_quietly(|| {
                let other = thread::spawn(|| panic!("another thread"));
                assert!(other.join().is_err());
                assert_eq!(catch_quietly(|| panic!("hostile within")), None::<()>);
                panic!("hostile")
            });
            assert_eq!(caught, None::<()>);
            panic!("afterwards");
        }
        let own = thread::current().name().unwrap_or_default().to_owned();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &own, "--nocapture", "--test-threads=1"]);
        let output = child.env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("another thread"), "{text}");
        assert!(text.contains("afterwards"), "{text}");
        assert!(!text.contains("hostile"), "{text}");
    }
}
