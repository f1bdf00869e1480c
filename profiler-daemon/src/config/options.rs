//! Options of commands that stand for keys of the configuration. They come last, so they win.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::origin::{Origin, Origins};
use super::{Config, LogFormat, TokenFile, state_folder};

/// What was given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--backend`, any number of times.
    pub backends: Vec<String>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--metrics`, an address or `off`.
    pub metrics: Option<Option<SocketAddr>>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--data-dir` of `standalone`.
    pub data_dir: Option<PathBuf>,
    /// `--token-file` and `--no-token` of `standalone`.
    pub token_file: Option<TokenFile>,
}

impl Options {
    pub(super) fn apply(&self, config: &mut Config, origins: &mut Origins) {
        let mut set = |key, option| origins.set(key, Origin::Option(option));
        if !self.backends.is_empty() {
            config.oap.backends.clone_from(&self.backends);
            set("oap.backends", "--backend");
        }
        if let Some(folder) = &self.state_dir {
            config.state_dir = match folder.to_str() {
                Some(text) => state_folder(text),
                None => Some(folder.clone()),
            };
            set("state_dir", "--state-dir");
        }
        if let Some(address) = self.metrics {
            config.metrics = address;
            set("metrics", "--metrics");
        }
        if let Some(format) = self.log_format {
            config.log.format = format;
            set("log.format", "--log-format");
        }
        if let Some(folder) = &self.data_dir {
            config.standalone.data_dir = Some(folder.clone());
            set("standalone.data_dir", "--data-dir");
        }
        if let Some(file) = &self.token_file {
            let option = match file {
                TokenFile::Off => "--no-token",
                TokenFile::At(_) | TokenFile::InStateDir => "--token-file",
            };
            config.standalone.token_file = file.clone();
            config.oap.authentication = None;
            set("standalone.token_file", option);
            set("oap.authentication", option);
        }
    }
}
