//! The token for the OAP as it is now: given, or in a file that others replace.
//!
//! In:  a [`TokenSource`], which a reload may replace; its file, read again and again
//! Out: [`TokenNow`], the latest always, to [`super::link`] and to who asks by GraphQL
//! Lost: nothing. Without a token that should be there, no OAP is spoken to; the reason is told
//!
//! # Why the file is read again
//!
//! Kubernetes changes the file of a Secret by a link that it replaces, for which no file is ever written. One read in
//! ten seconds costs nothing and sees every way of changing a file.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::auth::Token;

/// Time between two reads of the file.
const REREAD: Duration = Duration::from_secs(10);
/// The longest token of a service account has a few kilobytes.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// Where the token is.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// None is sent.
    #[default]
    None,
    /// Here.
    Given(String),
    /// In this file, without the space around it.
    File(PathBuf),
}

/// The token, or why there is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum TokenNow {
    /// None is sent.
    #[default]
    None,
    /// This one.
    Is(Arc<str>),
    /// It cannot be read.
    Unreadable(Arc<str>),
}

impl TokenSource {
    /// Checks a token that is given; a file may come and change.
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub(super) fn check(&self) -> Result<()> {
        if let Self::Given(token) = self {
            Token::new(Some(token))?;
        }
        Ok(())
    }

    fn read(&self) -> TokenNow {
        match self {
            Self::None => TokenNow::None,
            Self::Given(token) => TokenNow::Is(token.as_str().into()),
            Self::File(path) => match read(path) {
                Ok(token) => TokenNow::Is(token.into()),
                Err(error) => TokenNow::Unreadable(format!("oap.token_file: {error:#}").into()),
            },
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = File::open(path);
    let length = file.and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text));
    let length = length.with_context(|| format!("failed to read {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() || length as u64 > FILE_MAX_BYTES {
        bail!("{} holds no token", path.display());
    }
    Token::new(Some(token)).with_context(|| path.display().to_string())?;
    Ok(token.to_owned())
}

impl TokenNow {
    /// The token, if one is to be sent.
    ///
    /// # Errors
    ///
    /// It cannot be read; the text says why.
    pub fn get(&self) -> Result<Option<&str>> {
        match self {
            Self::None => Ok(None),
            Self::Is(token) => Ok(Some(token)),
            Self::Unreadable(reason) => bail!("{reason}"),
        }
    }
}

impl From<Option<String>> for TokenSource {
    fn from(token: Option<String>) -> Self {
        token.map_or(Self::None, Self::Given)
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Given(_) => f.write_str("Given(secret)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl fmt::Debug for TokenNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Is(_) => f.write_str("Is(secret)"),
            Self::Unreadable(reason) => f.debug_tuple("Unreadable").field(reason).finish(),
        }
    }
}

/// Keeps the token up to date; ends when nobody can replace its source.
#[derive(Debug)]
pub(super) struct TokenKeeper {
    source: watch::Receiver<TokenSource>,
    now: watch::Sender<TokenNow>,
    reread: Duration,
}

impl TokenKeeper {
    /// Reads the token for the first time.
    pub(super) fn new(source: watch::Receiver<TokenSource>) -> (Self, watch::Receiver<TokenNow>) {
        let (now, receiver) = watch::channel(source.borrow().read());
        let keeper = Self {
            source,
            now,
            reread: REREAD,
        };
        (keeper, receiver)
    }

    pub(super) async fn run(mut self) {
        let mut is_told = false;
        loop {
            let source = self.source.borrow_and_update().clone();
            let is_new = match &source {
                TokenSource::None | TokenSource::Given(_) => {
                    if self.source.changed().await.is_err() {
                        return;
                    }
                    true
                }
                TokenSource::File(_) => match timeout(self.reread, self.source.changed()).await {
                    Ok(Ok(())) => true,
                    Ok(Err(_)) => return,
                    Err(_) => false,
                },
            };
            let source = self.source.borrow().clone();
            let Ok(read) = spawn_blocking(move || source.read()).await else {
                continue;
            };
            self.take(read, is_new, &mut is_told);
        }
    }

    /// A token that was read once stays in use while its file cannot be read.
    fn take(&self, read: TokenNow, is_new_source: bool, is_told: &mut bool) {
        let is_known = matches!(*self.now.borrow(), TokenNow::Is(_));
        if let TokenNow::Unreadable(reason) = &read
            && is_known
            && !is_new_source
        {
            if !std::mem::replace(is_told, true) {
                tracing::warn!("the token read before stays in use: {reason}");
            }
            return;
        }
        *is_told = false;
        let has_changed = self.now.send_if_modified(|now| {
            let is_other = *now != read;
            if is_other {
                *now = read;
            }
            is_other
        });
        if has_changed {
            tracing::info!("the token for the OAP has changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Check that a file is read without the space around its token, and what is refused.
    #[test]
    fn a_file_holds_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let now = TokenSource::File(path.clone()).read();
            now.get().map(|token| token.map(str::to_owned))
        };
        assert_eq!(read(" t0ken\n").unwrap().as_deref(), Some("t0ken"));
        for bad in ["", "\n", "se\u{1b}cret", &"x".repeat(70_000)] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.starts_with("oap.token_file: "), "{error}");
            assert!(
                error.contains("/token") && !error.contains("cret"),
                "{error}"
            );
        }
        let missing = TokenSource::File(folder.path().join("none")).read();
        assert!(
            missing
                .get()
                .unwrap_err()
                .to_string()
                .contains("failed to read")
        );
    }

    /// Check that neither is shown.
    #[test]
    fn a_token_is_not_shown() {
        let source = TokenSource::Given("s3cret".to_owned());
        assert!(!format!("{source:?} {:?}", source.read()).contains("s3cret"));
    }

    /// Check that a link that is replaced, as Kubernetes does it, gives the new token, that a file that goes away leaves
    /// the one that was read, and that another source counts at once.
    #[tokio::test]
    async fn a_replaced_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("one"), "one").unwrap();
        std::fs::write(at("two"), "two").unwrap();
        std::os::unix::fs::symlink(at("one"), at("token")).unwrap();
        let (sender, source) = watch::channel(TokenSource::File(at("token")));
        let (keeper, mut now) = TokenKeeper::new(source);
        let keeper = TokenKeeper {
            reread: Duration::from_millis(5),
            ..keeper
        };
        assert_eq!(now.borrow().get().unwrap(), Some("one"));
        let running = tokio::spawn(keeper.run());
        std::os::unix::fs::symlink(at("two"), at("next")).unwrap();
        std::fs::rename(at("next"), at("token")).unwrap();
        let mut is = async |token: &'static str| {
            let is_it = |now: &TokenNow| now.get().ok().flatten() == Some(token);
            let waited = timeout(DEADLINE, now.wait_for(is_it)).await;
            waited.expect(token).unwrap();
        };
        is("two").await;
        std::fs::remove_file(at("token")).unwrap();
        sender.send_replace(TokenSource::Given("three".to_owned()));
        is("three").await;
        sender.send_replace(TokenSource::File(at("gone")));
        let is_unreadable = |now: &TokenNow| now.get().is_err();
        let waited = timeout(DEADLINE, now.wait_for(is_unreadable)).await;
        waited.unwrap().unwrap();
        drop(sender);
        timeout(DEADLINE, running).await.unwrap().unwrap();
    }
}
