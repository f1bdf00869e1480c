//! What a shell offers for `--service` and `--endpoint`: the services of this host, and the endpoints that the built-in OAP
//! of this host knows.
//!
//! In:  the command line so far, processes, the configuration, the OAP at its usual address
//! Out: candidates; none if nothing is known or may be read
//! Lost: reasons: a shell that waits for a word shows no messages
//!
//! The shell asks by `COMPLETE=SHELL profilerd`, see the help of `profilerd`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::engine::ArgValueCompleter;
use tokio::time::timeout;

use super::token::TokenArgs;
use crate::config::{Config, ConfigSource};
use crate::embedded::TaskClient;
use crate::model::plain::is_plain;
use crate::process::ProcessTable;

/// Where `profilerd standalone` listens unless told otherwise.
pub(super) const OAP_DEFAULT: &str = "127.0.0.1:11800";
/// How long a person who has pressed a key may wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// For `--service`.
pub(super) fn services() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, known_services()))
}

/// For `--endpoint`.
pub(super) fn endpoints() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let words: Vec<String> = std::env::args().collect();
        let service = service_of(&words);
        candidates(current, service.map_or_else(Vec::new, known_endpoints))
    })
}

/// Those that begin as the word does, as far as a terminal can show them.
fn candidates(
    current: &OsStr,
    names: impl IntoIterator<Item = String>,
) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fits = |name: &String| name.starts_with(&*current) && is_plain(name);
    names
        .into_iter()
        .filter(fits)
        .map(CompletionCandidate::new)
        .collect()
}

/// The service that the command line names.
fn service_of(words: &[String]) -> Option<&str> {
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "--service" {
            return words.next();
        }
        if let Some(service) = word.strip_prefix("--service=") {
            return Some(service);
        }
    }
    None
}

fn config() -> Option<Config> {
    let file = std::env::var_os("PROFILERD_CONFIG").map(PathBuf::from);
    let loaded = ConfigSource::of_process(file).load().ok()?;
    Some(loaded.config)
}

fn known_services() -> Vec<String> {
    let rules = config().map(|config| config.services);
    let mut table = ProcessTable::new(rules.unwrap_or_default());
    if table.scan().is_err() {
        return Vec::new();
    }
    let served = table.iter().filter(|process| process.may_serve());
    let names: BTreeSet<String> = served
        .map(|process| process.identity.service.name.clone())
        .collect();
    names.into_iter().collect()
}

fn known_endpoints(service: &str) -> Vec<String> {
    let ask = async {
        let credential = TokenArgs::default().find(&config()?, "127.0.0.1").ok()?;
        let (token, users) = (credential.token.as_deref(), &credential.local_users);
        let mut client = TaskClient::connect_to(OAP_DEFAULT, token, users)
            .await
            .ok()?;
        client.endpoints(service).await.ok()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let known = runtime
        .map(|runtime| runtime.block_on(async { timeout(PATIENCE, ask).await.ok().flatten() }));
    known.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the service is found in both forms that an option has.
    #[test]
    fn the_service_is_the_one_of_the_command_line() {
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            service_of(&words).map(str::to_owned)
        };
        assert_eq!(
            of(&["record", "--service", "shop", "--endpoint"]).unwrap(),
            "shop"
        );
        assert_eq!(of(&["record", "--service=shop"]).unwrap(), "shop");
        assert_eq!(of(&["record", "--pid", "7"]), None);
        assert_eq!(of(&["record", "--service"]), None);
    }

    /// Check that candidates begin as the word does, and that what others have chosen does nothing to a terminal.
    #[test]
    fn candidates_begin_as_the_word() {
        let names = ["GET:/a", "GET:/b", "POST:/a", "GET:/\u{1b}[31m"].map(str::to_owned);
        let found = candidates(OsStr::new("GET:"), names);
        let found: Vec<_> = found.iter().map(|it| it.get_value().to_owned()).collect();
        assert_eq!(found, ["GET:/a", "GET:/b"]);
    }
}
