//! Reads a configuration from all its sources: at the start, and again when it is to be reloaded.
//!
//! In:  a file, variables, options
//! Out: [`Loaded`]

use std::path::PathBuf;

use anyhow::Result;

use super::origin::{Origin, Origins};
use super::{Config, Options, entry, environment, file};

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct ConfigSource {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables; those of others are left alone.
    pub variables: Vec<(String, String)>,
    /// Options of the command.
    pub options: Options,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its values.
    pub config: Config,
    /// Where each comes from.
    pub origins: Origins,
    /// For the log, which may not have been started.
    pub warnings: Vec<String>,
}

impl ConfigSource {
    /// From a file, if there is one, and the variables of this process.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        // A variable that is not UTF-8 is none of ours.
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self {
            file,
            variables: variables.collect(),
            options: Options::default(),
        }
    }

    /// Defaults, then the file, then variables, then options.
    ///
    /// # Errors
    ///
    /// The file cannot be read, has an unknown key, or a value is out of range; the text names the place, the key
    /// and what is accepted.
    pub fn load(&self) -> Result<Loaded> {
        let mut config = Config::default();
        let mut origins = Origins::default();
        if let Some(path) = &self.file {
            let text = file::read(path)?;
            let name = path.display().to_string();
            let known = config.entries()?.into_iter().map(|(key, _)| key).collect();
            config = file::parse(&text, &name)?;
            for key in entry::keys_of(&file::value(&text)?, &known) {
                origins.set(&key, Origin::File);
            }
        }
        let warnings = environment::apply(&mut config, &mut origins, &self.variables)?;
        self.options.apply(&mut config, &mut origins);
        config.check()?;
        Ok(Loaded {
            config,
            origins,
            warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the later source wins, and that each value has its source: option over environment over file over
    /// default.
    #[test]
    fn the_later_source_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        let text = "oap: {backends: [file:1], authentication: from-file}\nstate_dir: /file\nmetrics: 127.0.0.1:1\n";
        std::fs::write(&path, text).unwrap();
        let variables = [
            ("SW_AGENT_COLLECTOR_BACKEND_SERVICES", "a:1, b:2"),
            ("PROFILERD_METRICS", "127.0.0.1:2"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let source = ConfigSource {
            file: Some(path),
            variables: variables.to_vec(),
            options: Options {
                metrics: Some(None),
                ..Options::default()
            },
        };
        let Loaded {
            config,
            origins,
            warnings,
        } = source.load().unwrap();
        assert_eq!(config.oap.backends, ["a:1", "b:2"]);
        assert_eq!(config.oap.authentication.unwrap().0, "from-file");
        assert_eq!(config.metrics, None);
        assert!(warnings.is_empty());
        let of = |key: &str| origins.of(key).to_string();
        assert_eq!(
            of("oap.backends"),
            "variable SW_AGENT_COLLECTOR_BACKEND_SERVICES"
        );
        assert_eq!(of("oap.authentication"), "file");
        assert_eq!(of("state_dir"), "file");
        assert_eq!(of("metrics"), "option --metrics");
        assert_eq!(of("limits.spool"), "default");
    }
}
