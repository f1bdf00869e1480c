//! The agent of skywalking-python.
//!
//! In:  environment, mapped files, the folder of installed packages
//! Out: [`Agent`]
//! Lost: an agent that a program starts itself, with neither gRPC nor a variable; names and settings
//!       that it gives in its code
//!
//! `sw-python` puts its loader in front of `PYTHONPATH` and executes the program: all that is set comes
//! from variables. A program that calls `agent.start()` itself leaves the package's dependencies mapped,
//! and may have set anything in its code.

use std::path::{Path, PathBuf};

use super::{Agent, AgentLanguage, Facts};
use crate::process::fact::tidy;
use crate::process::foreign_file;

/// Where `sw-python` has its `sitecustomize.py`, below the folder of packages.
const LOADER: &str = "/skywalking/bootstrap/loader";
/// Folders of packages looked into: a virtual environment and two of the system.
const FOLDERS_MAX: usize = 4;
/// The service's name if nobody gives one.
const DEFAULT_SERVICE: &str = "Python Service Name";

pub(super) fn detect(facts: &Facts<'_>) -> Option<Agent> {
    let loader = loader(facts);
    let (version, evidence) = match loader {
        Some(packages) => (
            version(facts, Path::new(packages)),
            "PYTHONPATH with the loader of sw-python".to_owned(),
        ),
        None => {
            let (packages, version) = installed(facts)?;
            let shown = tidy(&packages.to_string_lossy());
            (Some(version), format!("package in {shown}"))
        }
    };
    let is_started_by_loader = loader.is_some();
    let service = facts.service();
    Some(Agent {
        language: AgentLanguage::Python,
        version,
        evidence,
        profiles: profiles(facts, is_started_by_loader),
        service: service.or_else(|| is_started_by_loader.then(|| DEFAULT_SERVICE.to_owned())),
        // With its support of forks the agent adds process ids to the name.
        instance: facts.instance().filter(|_| !has_fork_support(facts)),
    })
}

/// The folder of packages that `sw-python` is in.
fn loader<'a>(facts: &'a Facts<'_>) -> Option<&'a str> {
    let mut paths = facts.variable("PYTHONPATH")?.split(':');
    paths.find_map(|path| path.trim_end_matches('/').strip_suffix(LOADER))
}

/// A folder of packages with the agent among them, from which the process has loaded a library.
fn installed(facts: &Facts<'_>) -> Option<(PathBuf, String)> {
    let has_grpc = facts
        .images
        .iter()
        .any(|image| image.name().starts_with("cygrpc."));
    if !has_grpc && !facts.has_agent_variable() {
        return None; // it could not report, or nobody meant it to
    }
    let mut folders: Vec<&Path> = Vec::new();
    for image in facts.images {
        let path = Path::new(&image.path);
        let folder = path
            .ancestors()
            .find(|folder| folder.ends_with("site-packages") || folder.ends_with("dist-packages"));
        if let Some(folder) = folder
            && !folders.contains(&folder)
            && folders.len() < FOLDERS_MAX
        {
            folders.push(folder);
        }
    }
    let mut folders = folders.into_iter();
    folders.find_map(|folder| Some((folder.to_owned(), version(facts, folder)?)))
}

/// Version of the package in a folder, from the name of its `apache_skywalking-1.2.0.dist-info`.
fn version(facts: &Facts<'_>, packages: &Path) -> Option<String> {
    let names = foreign_file::names(facts.pid, packages);
    names.iter().find_map(|name| {
        let rest = name.strip_prefix("apache_skywalking-")?;
        rest.strip_suffix(".dist-info").map(tidy)
    })
}

/// Only gRPC carries profile tasks. A program that starts the agent itself may have set it otherwise.
fn profiles(facts: &Facts<'_>, is_started_by_loader: bool) -> Option<bool> {
    let protocol = facts.variable("SW_AGENT_PROTOCOL").unwrap_or("grpc");
    let active = facts.variable("SW_AGENT_PROFILE_ACTIVE");
    if !protocol.eq_ignore_ascii_case("grpc") {
        return Some(false);
    }
    match active {
        Some(text) => Some(!text.eq_ignore_ascii_case("false")),
        None => is_started_by_loader.then_some(true),
    }
}

fn has_fork_support(facts: &Facts<'_>) -> bool {
    let is_set = facts
        .variable("SW_AGENT_EXPERIMENTAL_FORK_SUPPORT")
        .is_some_and(|text| text.eq_ignore_ascii_case("true"));
    is_set || facts.variable("prefork").is_some() // `sw-python run -p`
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::Pid;
    use crate::process::mapped_image::MappedImage;

    fn detected(environment: &[(&str, &str)], library: Option<&str>) -> Option<Agent> {
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("lib/python3.11/site-packages");
        fs::create_dir_all(packages.join("apache_skywalking-1.2.0.dist-info")).unwrap();
        let packages = packages.to_string_lossy();
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.replace("SP", &packages));
        let environment: Vec<_> = environment.iter().map(own).collect();
        let image = |library: &str| MappedImage {
            path: format!("{packages}/{library}"),
            base: 0,
            is_executable: false,
        };
        let images: Vec<_> = library.map(image).into_iter().collect();
        detect(&Facts {
            pid: Pid(std::process::id()),
            images: &images,
            command: &[],
            environment: &environment,
        })
    }

    const LOADED: (&str, &str) = ("PYTHONPATH", "SP/skywalking/bootstrap/loader:SP/x");
    const GRPC: &str = "grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so";

    /// Check what a program under `sw-python` is said to have.
    #[test]
    fn sw_python_is_recognised() {
        let agent = detected(&[LOADED], None).unwrap();
        assert_eq!(agent.version.as_deref(), Some("1.2.0"));
        assert_eq!(agent.service.as_deref(), Some("Python Service Name"));
        assert_eq!((agent.instance, agent.profiles), (None, Some(true)));
        let named = [
            LOADED,
            ("SW_AGENT_NAME", "shop"),
            ("SW_AGENT_NAMESPACE", "eu"),
            ("SW_AGENT_INSTANCE_NAME", "one"),
            ("SW_AGENT_PROFILE_ACTIVE", "False"),
        ];
        let agent = detected(&named, None).unwrap();
        assert_eq!(agent.service.as_deref(), Some("shop|eu"));
        assert_eq!(agent.instance.as_deref(), Some("one"));
        assert_eq!(agent.profiles, Some(false));
        let forks = [&named[..], &[("prefork", "gunicorn")]].concat();
        assert_eq!(detected(&forks, None).unwrap().instance, None);
        let http = [LOADED, ("SW_AGENT_PROTOCOL", "http")];
        assert_eq!(detected(&http, None).unwrap().profiles, Some(false));
    }

    /// Check that a program that starts the agent itself is found by what it has loaded.
    #[test]
    fn an_agent_in_the_code_is_recognised() {
        let agent = detected(&[], Some(GRPC)).unwrap();
        assert!(agent.evidence.ends_with("site-packages"));
        assert_eq!((agent.service, agent.profiles), (None, None));
        assert_eq!(detected(&[], Some("wrapt/_wrappers.so")), None);
        let named = [("SW_AGENT_NAME", "shop")];
        let agent = detected(&named, Some("wrapt/_wrappers.so")).unwrap();
        assert_eq!(agent.service.as_deref(), Some("shop"));
        assert_eq!(detected(&named, None), None);
    }
}
