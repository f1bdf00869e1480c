//! The agents of skywalking-nodejs, skywalking-php and skywalking-ruby.
//!
//! In:  mapped files, folders of installed packages, environment
//! Out: [`Agent`]
//! Lost: agents of Node.js and Ruby that a program starts with neither a variable nor, for Ruby, gRPC
//!       from the same folder
//!
//! None of them has a profiler. That of PHP is a library and cannot be overlooked; the others are
//! scripts, of which only the package can be seen.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Agent, AgentLanguage, Facts};
use crate::process::fact::tidy;
use crate::process::foreign_file;

const NODE_PACKAGE: &str = "node_modules/skywalking-backend-js/package.json";
const PACKAGE_MAX_BYTES: u64 = 256 << 10;
/// Folders above the program that are looked into.
const ANCESTORS_MAX: usize = 12;
/// Folders of gems that are looked into.
const GEM_HOMES_MAX: usize = 4;

fn agent(language: AgentLanguage, version: Option<String>, evidence: &Path) -> Agent {
    Agent {
        language,
        version,
        evidence: tidy(&evidence.to_string_lossy()),
        profiles: Some(false),
        service: None,
        instance: None,
    }
}

/// A package that Node.js finds from the program's folder or one above.
pub(super) fn detect_node(facts: &Facts<'_>) -> Option<Agent> {
    if !facts.has_agent_variable() {
        return None; // packages are often there unused
    }
    let folder = foreign_file::working_folder(facts.pid).ok()?;
    let scripts = facts
        .command
        .iter()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let places = scripts.take(1).map(|script| folder.join(script));
    let places: Vec<PathBuf> = places.chain([folder.join("here")]).collect();
    let mut folders = places
        .iter()
        .flat_map(|place| place.ancestors().skip(1).take(ANCESTORS_MAX));
    let (path, version) = folders.find_map(|folder| {
        let path = folder.join(NODE_PACKAGE);
        let json = foreign_file::read(facts.pid, &path, PACKAGE_MAX_BYTES).ok()?;
        Some((path, package_version(&json)))
    })?;
    Some(Agent {
        service: facts.variable("SW_AGENT_NAME").map(tidy),
        instance: facts.variable("SW_AGENT_INSTANCE").map(tidy),
        ..agent(AgentLanguage::NodeJs, version, &path)
    })
}

pub(crate) fn package_version(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Package {
        version: String,
    }
    let package: Package = serde_json::from_slice(json).ok()?;
    Some(tidy(&package.version))
}

/// The extension, as a mapped library.
pub(super) fn detect_php(facts: &Facts<'_>) -> Option<Agent> {
    let mut images = facts.images.iter();
    let image = images.find(|image| image.name() == "skywalking_agent.so")?;
    Some(agent(AgentLanguage::Php, None, Path::new(&image.path)))
}

/// The gem beside another one from which the process has loaded a library.
pub(super) fn detect_ruby(facts: &Facts<'_>) -> Option<Agent> {
    let has_grpc = facts.images.iter().any(|image| image.name() == "grpc_c.so");
    if !has_grpc && !facts.has_agent_variable() {
        return None;
    }
    let mut homes: Vec<&str> = Vec::new();
    for image in facts.images {
        let home = ["/extensions/", "/gems/"]
            .iter()
            .find_map(|folder| Some(image.path.split_once(folder)?.0));
        if let Some(home) = home
            && !homes.contains(&home)
            && homes.len() < GEM_HOMES_MAX
        {
            homes.push(home);
        }
    }
    homes.into_iter().find_map(|home| {
        let gems = Path::new(home).join("gems");
        let names = foreign_file::names(facts.pid, &gems);
        let version = names.iter().find_map(|name| {
            let version = name.strip_prefix("skywalking-")?;
            version
                .starts_with(|c: char| c.is_ascii_digit())
                .then_some(version)
        })?;
        Some(Agent {
            service: facts.variable("SW_AGENT_SERVICE_NAME").map(tidy),
            instance: facts.instance(),
            ..agent(AgentLanguage::Ruby, Some(tidy(version)), &gems)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::Pid;
    use crate::process::mapped_image::MappedImage;

    fn detected(
        detect: fn(&Facts<'_>) -> Option<Agent>,
        command: &[&str],
        images: &[&str],
        environment: &[(&str, &str)],
    ) -> Option<Agent> {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let environment: Vec<_> = environment.iter().map(own).collect();
        let command: Vec<_> = command
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        let image = |path: &&str| MappedImage {
            path: (*path).to_owned(),
            base: 0,
            is_executable: false,
        };
        let images: Vec<_> = images.iter().map(image).collect();
        detect(&Facts {
            pid: Pid(std::process::id()),
            images: &images,
            command: &command,
            environment: &environment,
        })
    }

    /// Check that the package is found above the program, with a variable only.
    #[test]
    fn node_packages_are_found() {
        let root = tempfile::tempdir().unwrap();
        let package = root.path().join(NODE_PACKAGE);
        fs::create_dir_all(package.parent().unwrap()).unwrap();
        fs::write(
            &package,
            r#"{"name":"skywalking-backend-js","version":"0.9.0"}"#,
        )
        .unwrap();
        let script = root.path().join("src/server.js");
        let command = ["node", "--trace", script.to_str().unwrap(), "x"];
        let named = [("SW_AGENT_NAME", "shop"), ("SW_AGENT_INSTANCE", "i")];
        let agent = detected(detect_node, &command, &[], &named).unwrap();
        assert_eq!(agent.to_string(), "Node.js 0.9.0, profiler off");
        assert_eq!(agent.service.as_deref(), Some("shop"));
        assert_eq!(agent.instance.as_deref(), Some("i"));
        assert_eq!(detected(detect_node, &command, &[], &[]), None);
        assert_eq!(package_version(b"[]"), None);
    }

    /// Check the library of PHP and the gem of Ruby.
    #[test]
    fn libraries_lead_to_agents() {
        let php = "/usr/lib/php/20220829/skywalking_agent.so";
        let agent = detected(detect_php, &[], &["/usr/lib/php/opcache.so", php], &[]).unwrap();
        assert_eq!(agent.evidence, php);
        assert_eq!(
            detected(detect_php, &[], &["/usr/lib/libskywalking.so"], &[]),
            None
        );
        let home = tempfile::tempdir().unwrap();
        let gems = home.path().join("gems");
        fs::create_dir_all(gems.join("skywalking-0.2.0")).unwrap();
        fs::create_dir_all(gems.join("skywalking-rails-x")).unwrap();
        let home = home.path().to_str().unwrap();
        let grpc = format!("{home}/extensions/x86_64-linux/3.1.0/grpc-1.62.0/grpc/grpc_c.so");
        let agent = detected(
            detect_ruby,
            &[],
            &[&grpc],
            &[("SW_AGENT_SERVICE_NAME", "shop")],
        )
        .unwrap();
        assert_eq!(agent.version.as_deref(), Some("0.2.0"));
        assert_eq!(agent.service.as_deref(), Some("shop"));
        let json = format!("{home}/gems/json-2.7/lib/json.so");
        assert_eq!(detected(detect_ruby, &[], &[&json], &[]), None);
    }
}
