use super::*;

/// Frames from words, innermost first: `k` kernel, `c` C library, `i` interpreter (`i:f=label`), `n` other
/// native code, `p` Python, `a` activity, as in `c:read i:os_read=os.read p:main`. `_` stands for a blank.
fn stack(drawn: &str) -> Vec<Frame> {
    drawn
        .split_whitespace()
        .map(|word| {
            let (kind, name) = word.split_once(':').unwrap();
            let (name, label) = match name.split_once('=') {
                Some((name, label)) => (name, Some(label.replace('_', " ").into())),
                None => (name, None),
            };
            let (kind, signature) = match kind {
                "k" => (FrameKind::Kernel, format!("{name} [kernel]")),
                "a" => (FrameKind::Activity, name.replace('_', " ")),
                "c" => (FrameKind::CLibrary, format!("{name} (libc.so.6)")),
                "i" => (
                    FrameKind::RuntimeInternal,
                    format!("{name} (libpython3.12.so.1.0)"),
                ),
                "n" => (FrameKind::Native, format!("{name} (libpq.so.5)")),
                "p" => (FrameKind::Python, name.to_owned()),
                _ => panic!("{word}"),
            };
            Frame {
                label,
                ..Frame::new(signature, kind)
            }
        })
        .collect()
}

fn shown(drawn: &str) -> Vec<String> {
    let frames = FrameSet::Application.apply(&stack(drawn));
    frames.iter().map(|f| f.signature.to_string()).collect()
}

const SLEEP: &str = "k:__schedule k:do_nanosleep k:__x64_sys_clock_nanosleep k:do_syscall_64";
const ROOT: &str = "i:_PyEval_Vector i:thread_run c:start_thread c:clone3";

/// Check that of a request that sleeps the Python functions, the builtin and the system call are left.
#[test]
fn a_sleep_is_a_builtin_in_a_system_call() {
    let drawn = format!(
        "{SLEEP} c:clock_nanosleep i:pysleep i:time_sleep=time.sleep i:cfunction_vectorcall_O \
         p:shop.pay:7 p:shop.cart:3 {ROOT}"
    );
    assert_eq!(
        shown(&drawn),
        [
            "[system call clock_nanosleep]",
            "time.sleep",
            "shop.pay:7",
            "shop.cart:3"
        ]
    );
}

/// Check that the other set is every frame as it was, without what this one adds.
#[test]
fn all_is_every_frame() {
    let drawn = format!("{SLEEP} c:clock_nanosleep i:time_sleep=time.sleep p:shop.pay:7 {ROOT}");
    let frames = stack(&drawn);
    let with_activity = [stack("a:[system_call_clock_nanosleep]"), frames.clone()].concat();
    assert_eq!(FrameSet::All.apply(&with_activity), frames);
}

/// Check that a builtin without a name is not guessed, and that the C library is left out only where it
/// makes the interpreter's system call.
#[test]
fn nothing_is_guessed() {
    assert_eq!(
        shown("k:__x64_sys_read c:read i:unknown p:main:1 i:run c:clone3"),
        ["[system call read]", "main:1"]
    );
    assert_eq!(
        shown("c:memmove i:bytes_join=bytes.join p:main:1 i:run"),
        ["memmove (libc.so.6)", "bytes.join", "main:1"]
    );
    assert_eq!(
        shown("k:exc_page_fault c:memset c:calloc i:list_new p:main:1"),
        [
            "[page fault]",
            "memset (libc.so.6)",
            "calloc (libc.so.6)",
            "main:1"
        ]
    );
}

/// Check that code of other libraries stays wherever it is: below a builtin with its own way into the
/// kernel, between Python functions, and above the first of them.
#[test]
fn other_libraries_stay() {
    assert_eq!(
        shown(
            "k:__x64_sys_poll c:poll n:PQgetResult n:execute i:call p:main:1 i:run n:worker c:start_thread c:clone3"
        ),
        [
            "[system call poll]",
            "poll (libc.so.6)",
            "PQgetResult (libpq.so.5)",
            "execute (libpq.so.5)",
            "main:1",
            "worker (libpq.so.5)",
        ]
    );
    // A C function that calls back, through ctypes.
    assert_eq!(
        shown(
            "p:compare:9 i:closure_fcn i:ffi_closure c:qsort i:ffi_call i:PyCFuncPtr_call p:main:1 i:run c:clone3"
        ),
        ["compare:9", "qsort (libc.so.6)", "main:1"]
    );
}

/// Check that builtins which call one another, or back into Python, are shown below the innermost Python
/// function only.
#[test]
fn builtins_between_python_functions_are_left_out() {
    assert_eq!(
        shown("i:time_sleep=time.sleep i:list_sort=list.sort i:builtin_sorted=sorted p:main:1"),
        ["time.sleep", "list.sort", "sorted", "main:1"]
    );
    assert_eq!(
        shown("p:key:5 i:list_sort=list.sort i:builtin_sorted=sorted p:main:1"),
        ["key:5", "main:1"]
    );
}

/// Check that waits inside the interpreter are told: its lock, its garbage collector.
#[test]
fn waits_of_the_interpreter_are_told() {
    assert_eq!(
        shown(
            "k:__x64_sys_futex c:pthread_cond_timedwait i:take_gil=[waiting_for_the_GIL] p:main:1"
        ),
        ["[system call futex]", "[waiting for the GIL]", "main:1"]
    );
    assert_eq!(
        shown("i:visit_decref i:gc_collect_main=[garbage_collection] p:main:1 i:run"),
        ["[garbage collection]", "main:1"]
    );
}

/// Check that of the interpreter's signal handler nothing is left below the function that it interrupted.
#[test]
fn a_signal_handler_is_the_interpreters() {
    assert_eq!(
        shown("i:trip_signal i:signal_handler c:__restore_rt p:main:1 i:run c:clone3"),
        ["main:1"]
    );
    assert_eq!(
        shown("c:memmove i:bytes_join=bytes.join p:main:1 i:trip_signal c:__restore_rt p:outer:2"),
        ["memmove (libc.so.6)", "bytes.join", "main:1", "outer:2"]
    );
}

/// Check that a run of the import machinery is one frame, at the leaf as well as between modules, and that
/// two imports stay two.
#[test]
fn an_import_is_one_frame() {
    let bootstrap = |name: &str| format!("p:importlib._bootstrap{name}");
    let machinery = [
        bootstrap("._call_with_frames_removed:241"),
        bootstrap("_external.SourceLoader.exec_module:935"),
        bootstrap("._find_and_load:1165"),
    ]
    .join(" i:object_vacall ");
    assert_eq!(
        shown(&format!(
            "p:b.<module>:1 i:exec {machinery} i:import p:a.<module>:1 {machinery} p:main:1"
        )),
        [
            "b.<module>:1",
            "importlib._bootstrap._find_and_load:1165",
            "a.<module>:1",
            "importlib._bootstrap._find_and_load:1165",
            "main:1",
        ]
    );
    assert_eq!(
        shown(&format!("c:read i:os_read=os.read {machinery} p:main:1")),
        [
            "read (libc.so.6)",
            "os.read",
            "importlib._bootstrap._find_and_load:1165",
            "main:1",
        ]
    );
}

/// Check that a native program keeps all its frames, and its kernel frames become one.
#[test]
fn a_native_program_keeps_its_frames() {
    assert_eq!(
        shown(
            "k:__schedule k:futex_wait k:__x64_sys_futex c:pthread_cond_wait n:serve c:start_thread c:clone3"
        ),
        [
            "[system call futex]",
            "pthread_cond_wait (libc.so.6)",
            "serve (libpq.so.5)",
            "start_thread (libc.so.6)",
            "clone3 (libc.so.6)",
        ]
    );
    assert_eq!(
        shown("n:leaf n:main"),
        ["leaf (libpq.so.5)", "main (libpq.so.5)"]
    );
}

/// Check that a stack of nothing but the interpreter keeps its outermost frame, one of nothing but the
/// kernel what it says, and one without frames has none.
#[test]
fn no_stack_is_lost() {
    assert_eq!(
        shown("k:__x64_sys_futex c:sem_wait i:take_gil i:thread_run c:start_thread c:clone3"),
        ["[system call futex]", "thread_run (libpython3.12.so.1.0)"]
    );
    assert_eq!(
        shown("k:do_nanosleep k:__x64_sys_nanosleep"),
        ["[system call nanosleep]"]
    );
    assert_eq!(shown("a:[waiting_for_a_CPU]"), ["[waiting for a CPU]"]);
    assert_eq!(shown("c:read"), ["read (libc.so.6)"]);
    assert!(shown("").is_empty());
}

/// Check that what is known of the thread wins over the names of kernel frames.
#[test]
fn a_known_activity_is_taken() {
    assert_eq!(
        shown("a:[system_call_read] k:ksys_read c:read i:os_read=os.read p:main:1"),
        ["[system call read]", "os.read", "main:1"]
    );
}

/// Check that reducing what is reduced changes nothing, and that signatures are reduced by their text.
#[test]
fn signatures_are_reduced_by_their_text() {
    let full = [
        "clone3 (libc.so.6)",
        "thread_run (libpython3.12.so.1.0)",
        "main:1",
        "time_sleep (libpython3.12.so.1.0)",
        "clock_nanosleep (libc.so.6)",
        "__x64_sys_clock_nanosleep [kernel]",
        "do_nanosleep [kernel]",
    ]
    .map(Arc::from);
    let reduced = FrameSet::Application.apply_to_signatures(&full);
    let expected = ["main:1", "[system call clock_nanosleep]"].map(Arc::from);
    assert_eq!(reduced, expected);
    assert_eq!(FrameSet::Application.apply_to_signatures(&reduced), reduced);
    assert_eq!(FrameSet::All.apply_to_signatures(&full), full);
    let labelled = ["main:1", "time.sleep", "[system call clock_nanosleep]"].map(Arc::from);
    assert_eq!(
        FrameSet::Application.apply_to_signatures(&labelled),
        labelled
    );
}
