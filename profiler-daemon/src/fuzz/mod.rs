//! One entry point per parser of bytes that someone else controls, for the fuzzer and for
//! `tests/hostile.rs`. Not an interface for anybody else.
//!
//! In:  any bytes; `fuzz/seeds/<name>` has some that get far
//! Out: nothing: an entry point returns, soon and without a panic, whatever it is given
//!
//! Entry points call what the daemon calls, with the same limits. What they need besides the bytes, such
//! as a task or a memory, they make up.

mod process;
mod text;
mod wire;

use crate::model::Service;

/// The service of every task.
fn service() -> Service {
    Service {
        name: "s".to_owned(),
        instance: "i".to_owned(),
    }
}

/// An entry point.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the function, the fuzz target and the folder of its seeds.
    pub name: &'static str,
    /// Takes the bytes.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident::$name:ident),* $(,)?) => {
        $(pub use $module::$name;)*

        /// All of them.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), run: $module::$name }),*];
    };
}

targets! {
    wire::request_records,
    wire::sample_record,
    wire::kernel_types,
    wire::agent_reports,
    wire::agent_log,
    wire::agent_messages,
    wire::client_segment,
    wire::spool_file,
    wire::task_journal,
    text::request_head,
    text::endpoint_name,
    text::response_head,
    text::sw8,
    text::mappings,
    text::proc_texts,
    text::identity_files,
    text::perf_map,
    text::analysis_lines,
    text::task_command,
    text::config_file,
    text::graphql_query,
    text::graphql_answer,
    process::object,
    process::debug_info,
    process::symbol_name,
    process::stack,
    process::wait_sets,
    process::python_memory,
    process::python_methods,
}
