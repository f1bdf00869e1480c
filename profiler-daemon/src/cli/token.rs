//! The token that `profilerd task` sends, and what to say when it is refused.
//!
//! In:  `--token-file`, the configuration and its variables; the token file of this host
//! Out: [`Credential`]
//! Lost: nothing; a token file that was not asked for by name may be missing or closed to this user
//!
//! A token that nobody has given is taken from the file where `profilerd standalone` keeps it, and goes to this host
//! only. There the owner of that file may listen, beside root, our own user and `oap.local_users`
//! ([`crate::connection::trust`]): `standalone` may run as a user of its own.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::{Config, Secret};
use crate::oap::auth::TOKEN_REMEDY;
use crate::state::{TokenError, read_token};

#[derive(Args, Clone, Debug, Default)]
pub(super) struct TokenArgs {
    /// Was an option once: other users see it in the list of processes.
    #[arg(long, global = true, value_name = "TEXT", hide = true)]
    token: Option<String>,

    /// File with the token of the OAP; without it, the token in SW_AGENT_AUTHENTICATION, or the one of `profilerd
    /// standalone` on this host
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The token to send, if any.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) token: Option<String>,
    /// Why it may be refused, and what to do then.
    pub(super) remedy: String,
    /// Users who may listen at this host's end.
    pub(super) local_users: Vec<u32>,
}

impl Credential {
    fn given(token: String, by: &str) -> Self {
        Self {
            token: Some(token),
            remedy: format!("the token {by} is not the one it asks for; {TOKEN_REMEDY}"),
            local_users: Vec::new(),
        }
    }

    fn none(why: &str) -> Self {
        Self {
            token: None,
            remedy: format!("it asks for a token, and {why}; {TOKEN_REMEDY}"),
            local_users: Vec::new(),
        }
    }
}

impl TokenArgs {
    /// Why the arguments are not accepted: a token among them is not secret.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        let refusal = "--token is not accepted: other users would see the token in the list of processes. Write it to a \
                       file that only you can read, and name that with --token-file, or set SW_AGENT_AUTHENTICATION";
        self.token.as_ref().map(|_| refusal)
    }

    /// Arguments of a command that is to find the token again.
    pub(super) fn again(&self) -> impl Iterator<Item = String> {
        let file = self.token_file.iter();
        file.flat_map(|file| ["--token-file".to_owned(), file.display().to_string()])
    }

    /// Finds the token for an OAP at a host.
    ///
    /// # Errors
    ///
    /// The file that was named cannot be used, or a user of the configuration is none.
    pub(super) fn find(&self, config: &Config, host: &str) -> Result<Credential> {
        let mut found = self.find_token(config, host)?;
        found.local_users.extend(config.local_users()?);
        Ok(found)
    }

    fn find_token(&self, config: &Config, host: &str) -> Result<Credential> {
        if let Some(path) = &self.token_file {
            return Ok(Credential::given(
                read_token(path)?,
                &format!("in {}", path.display()),
            ));
        }
        if let Some(Secret(token)) = &config.oap.authentication {
            let by = "of oap.authentication or SW_AGENT_AUTHENTICATION";
            return Ok(Credential::given(token.clone(), by));
        }
        if !is_this_host(host) {
            return Ok(Credential::none(
                "the token of this host is not sent to another host",
            ));
        }
        Ok(of_this_host(&config.token_files()))
    }
}

fn is_this_host(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The token of the first of the files that is there.
fn of_this_host(files: &[PathBuf]) -> Credential {
    let mut absent = Vec::new();
    for path in files {
        match read_token(path) {
            Ok(token) => {
                let mut found = Credential::given(token, &format!("in {}", path.display()));
                let owner = path.metadata().map(|metadata| metadata.uid());
                found.local_users.extend(owner);
                return found;
            }
            Err(TokenError::Absent(path)) => absent.push(path.display().to_string()),
            // A later one would be of another daemon.
            Err(error) => return Credential::none(&format!("{error} (try as root)")),
        }
    }
    Credential::none(&match &absent[..] {
        [] => "standalone.token_file is none".to_owned(),
        [one] => format!("there is no token file {one}"),
        [others @ .., last] => {
            format!(
                "of its token files neither {} nor {last} is there",
                others.join(" nor ")
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn args(file: Option<&Path>) -> TokenArgs {
        TokenArgs {
            token: None,
            token_file: file.map(Path::to_owned),
        }
    }

    /// Check the order: the flag, then the configuration, then the file of this host.
    #[test]
    fn what_is_given_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("given");
        fs::write(&file, "from-file\n").unwrap();
        fs::write(folder.path().join("token"), "of-host\n").unwrap();
        let mut config = Config {
            state_dir: Some(folder.path().to_owned()),
            ..Config::default()
        };
        let find = |args: TokenArgs, config: &Config, host: &str| {
            let found = args.find(config, host).unwrap();
            (found.token, found.remedy)
        };
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            let (token, remedy) = find(args(None), &config, host);
            assert_eq!(token.as_deref(), Some("of-host"), "{host}");
            assert!(remedy.contains(folder.path().to_str().unwrap()), "{remedy}");
        }
        let (token, remedy) = find(args(None), &config, "oap.example");
        assert_eq!(token, None);
        assert!(remedy.contains("not sent to another host"), "{remedy}");
        config.oap.authentication = Some(Secret("configured".to_owned()));
        let (token, _) = find(args(None), &config, "oap.example");
        assert_eq!(token.as_deref(), Some("configured"));
        let (token, _) = find(args(Some(&file)), &config, "oap.example");
        assert_eq!(token.as_deref(), Some("from-file"));
        let again: Vec<String> = args(Some(&file)).again().collect();
        assert_eq!(again, ["--token-file", file.to_str().unwrap()]);
        let absent = folder.path().join("absent");
        let error = args(Some(&absent)).find(&config, "127.0.0.1").unwrap_err();
        assert!(
            error.to_string().contains(absent.to_str().unwrap()),
            "{error}"
        );
    }

    /// Check that the owner of a token that was found may be sent it, beside users of the configuration, and that each
    /// reason for having none is told with the file.
    #[test]
    fn a_found_token_may_go_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (here, absent) = (folder.path().join("here"), folder.path().join("absent"));
        fs::write(&here, "secret\n").unwrap();
        let owner = here.metadata().unwrap().uid();
        let found = of_this_host(&[absent.clone(), here.clone()]);
        assert_eq!(found.token.as_deref(), Some("secret"));
        assert_eq!(found.local_users, [owner]);
        let mut config = Config::default();
        config.oap.local_users = vec!["4711".to_owned()];
        config.oap.authentication = Some(Secret("configured".to_owned()));
        let given = args(None).find(&config, "127.0.0.1").unwrap();
        assert_eq!(given.local_users, [4711]);

        let other = folder.path().join("other");
        let (one, two) = (absent.display(), other.display());
        for (files, expected) in [
            (
                &[absent.clone()][..],
                format!("there is no token file {one};"),
            ),
            (
                &[absent.clone(), other.clone()],
                format!("neither {one} nor {two} is there;"),
            ),
        ] {
            let none = of_this_host(files);
            assert!(none.remedy.contains(&expected), "{}", none.remedy);
        }
        let unusable = of_this_host(&[folder.path().to_owned(), here]);
        assert_eq!(unusable.token, None);
        assert!(
            unusable.remedy.contains("cannot be read"),
            "{}",
            unusable.remedy
        );
        assert!(of_this_host(&[]).remedy.contains("token_file is none"));
    }
}
