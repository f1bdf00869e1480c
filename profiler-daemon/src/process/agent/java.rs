//! The agent of skywalking-java.
//!
//! In:  options of the JVM, the jar's manifest, `agent.config`
//! Out: [`Agent`]
//! Lost: options in an `@file` of the command line; agents that were attached while the JVM ran
//!
//! ```text
//! JAVA_TOOL_OPTIONS, JDK_JAVA_OPTIONS, command line, _JAVA_OPTIONS      the later wins
//!   -javaagent:/opt/agent/skywalking-agent.jar=profile.active=false
//!               |                              `-- options of the agent
//!               `-- META-INF/MANIFEST.MF: Premain-Class, Implementation-Version
//!   -Dskywalking_config=FILE, else config/agent.config beside the jar
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;

use super::settings::Settings;
use super::{Agent, AgentLanguage, Facts};
use crate::model::Pid;
use crate::process::fact::tidy;
use crate::process::foreign_file;
use crate::process::program::java_options;

const PREMAIN_CLASS: &str = "org.apache.skywalking.apm.agent.SkyWalkingAgent";
/// A jar begins with its manifest; SkyWalking's is 23 KiB packed, as Maven's shade plugin leaves it.
const JAR_BEGIN_BYTES: u64 = 128 << 10;
/// Manifests beyond this are cut: the attributes of the jar itself come first.
const MANIFEST_MAX_BYTES: u64 = 64 << 10;
/// Begins an entry.
const ENTRY: &[u8] = b"PK\x03\x04";
/// Bit of the flags: the sizes stand behind the data.
const SIZE_FOLLOWS: usize = 8;
/// Entries read: the folder `META-INF/` may stand before the manifest.
const ENTRIES_MAX: usize = 4;
/// The file as it is delivered has 20 KiB.
const CONFIG_MAX_BYTES: u64 = 256 << 10;
/// Most agents of one JVM that are read.
const JARS_MAX: usize = 8;

pub(super) fn detect(facts: &Facts<'_>) -> Option<Agent> {
    let options = options(facts);
    let jars = options.iter().filter_map(|o| o.strip_prefix("-javaagent:"));
    for jar in jars.take(JARS_MAX) {
        let (jar, agent_options) = jar.split_once('=').unwrap_or((jar, ""));
        let Some(path) = absolute(facts.pid, Path::new(jar)) else {
            continue;
        };
        let Ok(begin) = foreign_file::read(facts.pid, &path, JAR_BEGIN_BYTES) else {
            continue; // replaced by an update while the JVM runs, or not ours to read
        };
        let Some(manifest) = manifest(&begin) else {
            continue;
        };
        if attribute(&manifest, "Premain-Class") != Some(PREMAIN_CLASS) {
            continue;
        }
        let version = attribute(&manifest, "Implementation-Version").map(tidy);
        return Some(describe(facts, &options, &path, agent_options, version));
    }
    None
}

fn describe(
    facts: &Facts<'_>,
    options: &[&str],
    jar: &Path,
    agent_options: &str,
    version: Option<String>,
) -> Agent {
    let properties: Vec<_> = options
        .iter()
        .filter_map(|o| o.strip_prefix("-D"))
        .collect();
    let properties: Vec<_> = properties
        .iter()
        .filter_map(|p| p.split_once('='))
        .collect();
    let given = properties.iter().rev().find(|p| p.0 == "skywalking_config");
    let file = match given {
        Some((_, path)) => absolute(facts.pid, Path::new(path)),
        None => jar
            .parent()
            .map(|folder| folder.join("config/agent.config")),
    };
    let text = file.and_then(|file| foreign_file::read(facts.pid, &file, CONFIG_MAX_BYTES).ok());
    let text = text.unwrap_or_default(); // the agent goes on with its defaults then
    let text = String::from_utf8_lossy(&text);
    let settings = Settings::new(&text, &properties, agent_options, facts.environment);
    let profiles = settings.get("profile.active");
    Agent {
        language: AgentLanguage::Java,
        version,
        evidence: format!("-javaagent:{}", tidy(&jar.to_string_lossy())),
        profiles: Some(profiles.is_none_or(|text| text.trim().eq_ignore_ascii_case("true"))),
        service: service(&settings),
        instance: settings.get("agent.instance_name").map(|name| tidy(&name)),
    }
}

/// `name|namespace|cluster` once one of the latter is given, as the agent joins them.
fn service(settings: &Settings<'_>) -> Option<String> {
    let name = settings.get("agent.service_name")?;
    let suffixes = ["agent.namespace", "agent.cluster"].map(|key| settings.get(key));
    if suffixes.iter().all(Option::is_none) {
        return Some(tidy(&name));
    }
    let [namespace, cluster] = suffixes.map(Option::unwrap_or_default);
    Some(tidy(&format!("{name}|{namespace}|{cluster}")))
}

/// All options of the JVM, those that count most at the end.
fn options<'a>(facts: &'a Facts<'_>) -> Vec<&'a str> {
    let words = |name| {
        let text = facts.variable(name).unwrap_or_default();
        text.split_ascii_whitespace()
            .map(|word| word.trim_matches(['"', '\'']))
    };
    let mut options: Vec<&str> = words("JAVA_TOOL_OPTIONS").collect();
    options.extend(words("JDK_JAVA_OPTIONS"));
    options.extend(java_options(facts.command));
    options.extend(words("_JAVA_OPTIONS"));
    options
}

fn absolute(pid: Pid, path: &Path) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    Some(foreign_file::working_folder(pid).ok()?.join(path))
}

/// Text of `META-INF/MANIFEST.MF`, which stands first or second in a jar (`JarInputStream` asks for it).
///
/// ```text
/// | "PK\3\4" | version 2 | flags 2 | method 2 | time 4 | crc 4 | packed 4 | size 4 | name 2 | extra 2 |
/// ```
/// With bit 3 of the flags the sizes follow the data, and the packed bytes end where inflating ends.
pub(crate) fn manifest(jar: &[u8]) -> Option<String> {
    let mut rest = jar;
    for _ in 0..ENTRIES_MAX {
        let (header, data) = rest.split_first_chunk::<30>()?;
        if !header.starts_with(ENTRY) {
            return None;
        }
        let short = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let long = |at: usize| short(at) | short(at + 2) << 16;
        let name = data.get(..short(26))?;
        let content = data.get(short(26) + short(28)..)?;
        let packed = long(18);
        if name == b"META-INF/MANIFEST.MF" {
            let mut bytes = Vec::new();
            // A damaged end still leaves what came before it.
            let _ = match short(8) {
                0 => content
                    .get(..packed)?
                    .take(MANIFEST_MAX_BYTES)
                    .read_to_end(&mut bytes),
                8 => DeflateDecoder::new(content)
                    .take(MANIFEST_MAX_BYTES)
                    .read_to_end(&mut bytes),
                _ => return None,
            };
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        // Behind a folder of unknown size there are some bytes and then the next entry.
        rest = match short(6) & SIZE_FOLLOWS {
            0 => content.get(packed..)?,
            _ => content.get(content.windows(4).position(|at| at == ENTRY)?..)?,
        };
    }
    None
}

/// A main attribute; those end at the first empty line.
fn attribute<'a>(manifest: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = manifest.lines().take_while(|line| !line.is_empty());
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    use super::*;

    /// A jar with a folder and a packed manifest, whose sizes stand behind them, as `jar` leaves it.
    fn jar(manifest: &str) -> Vec<u8> {
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::default());
        packed.write_all(manifest.as_bytes()).unwrap();
        let entry = |name: &str, flags: u8, method: u8, data: &[u8]| {
            let mut entry = b"PK\x03\x04\x14\0".to_vec();
            entry.extend([flags, 0, method, 0]);
            entry.extend([0; 16]);
            entry.extend([u8::try_from(name.len()).unwrap(), 0, 0, 0]);
            [entry, name.as_bytes().to_vec(), data.to_vec()].concat()
        };
        [
            entry(
                "META-INF/",
                8,
                8,
                b"\x03\0PK\x07\x08\0\0\0\0\x02\0\0\0\0\0\0\0",
            ),
            entry("META-INF/MANIFEST.MF", 8, 8, &packed.finish().unwrap()),
        ]
        .concat()
    }

    fn skywalking() -> Vec<u8> {
        jar(&format!(
            "Manifest-Version: 1.0\r\nImplementation-Version: 9.4.0\r\nPremain-Class: {PREMAIN_CLASS}\r\n\r\nName: x\r\n"
        ))
    }

    fn detected(
        jar: &[u8],
        config: &str,
        options: &str,
        environment: &[(&str, &str)],
    ) -> Option<Agent> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::write(folder.path().join("config/agent.config"), config).unwrap();
        let path = folder.path().join("a.jar");
        fs::write(&path, jar).unwrap();
        let options = options.replace("JAR", &path.to_string_lossy());
        let command: Vec<_> = options.split(' ').map(str::to_owned).collect();
        let own = |&(name, value): &(&str, &str)| {
            (
                name.to_owned(),
                value.replace("JAR", &path.to_string_lossy()),
            )
        };
        let environment: Vec<_> = environment.iter().map(own).collect();
        detect(&Facts {
            pid: Pid(std::process::id()),
            images: &[],
            command: &command,
            environment: &environment,
        })
    }

    const CONFIG: &str = "\
agent.service_name=${SW_AGENT_NAME:Your_ApplicationName}
agent.namespace=${SW_AGENT_NAMESPACE:}
agent.cluster=${SW_AGENT_CLUSTER:}
agent.instance_name=${SW_AGENT_INSTANCE_NAME:}
profile.active=${SW_AGENT_PROFILE_ACTIVE:true}
";

    /// Check that a manifest of some kilobytes that inflates to many megabytes is read up to its limit.
    #[test]
    fn a_manifest_that_inflates_is_cut() {
        let bomb = jar(&"Premain-Class: x\r\n".repeat(4 << 20));
        assert!(bomb.len() < 512 << 10, "{}", bomb.len());
        let text = manifest(&bomb).unwrap();
        assert_eq!(text.len() as u64, MANIFEST_MAX_BYTES);
    }

    /// Check names, version and profiler of an agent as it is delivered.
    #[test]
    fn the_agent_is_described() {
        let command = "java -Xmx1g -javaagent:JAR -jar shop.jar";
        let agent = detected(&skywalking(), CONFIG, command, &[("SW_AGENT_NAME", "shop")]).unwrap();
        assert_eq!(agent.version.as_deref(), Some("9.4.0"));
        assert_eq!(agent.service.as_deref(), Some("shop"));
        assert_eq!(agent.instance, None);
        assert_eq!(agent.profiles, Some(true));
        assert!(agent.to_string().starts_with("Java 9.4.0, profiler on"));
        let cluster = [("SW_AGENT_NAME", "shop"), ("SW_AGENT_CLUSTER", "c")];
        let agent = detected(&skywalking(), CONFIG, command, &cluster).unwrap();
        assert_eq!(agent.service.as_deref(), Some("shop||c"));
    }

    /// Check all the ways to turn the profiler off, and that a property after the main class is none.
    #[test]
    fn the_profiler_is_on_or_off() {
        let profiles = |options: &str, environment: &[(&str, &str)], config: &str| {
            detected(&skywalking(), config, options, environment)
                .unwrap()
                .profiles
        };
        let plain = "java -javaagent:JAR Main";
        let off = ("SW_AGENT_PROFILE_ACTIVE", "false");
        assert_eq!(profiles(plain, &[off], CONFIG), Some(false));
        assert_eq!(profiles(plain, &[], "profile.active=false"), Some(false));
        // The variable acts through the placeholder in the file only.
        assert_eq!(profiles(plain, &[off], ""), Some(true));
        let property = "java -Dskywalking.profile.active=false -javaagent:JAR Main";
        assert_eq!(profiles(property, &[], CONFIG), Some(false));
        let option = "java -javaagent:JAR=profile.active=false Main";
        assert_eq!(profiles(option, &[], CONFIG), Some(false));
        let late = "java -javaagent:JAR Main -Dskywalking.profile.active=false";
        assert_eq!(profiles(late, &[], CONFIG), Some(true));
        let tool = [(
            "JAVA_TOOL_OPTIONS",
            "-javaagent:JAR -Dskywalking.profile.active=false",
        )];
        assert_eq!(profiles("java Main", &tool, CONFIG), Some(false));
    }

    /// Check that other agents, and files that are no jars, are none.
    #[test]
    fn other_agents_are_not_ours() {
        let other = jar("Premain-Class: com.acme.Agent\n");
        let below = jar(&format!("A: b\n\nPremain-Class: {PREMAIN_CLASS}\n"));
        for bytes in [other.as_slice(), &below, b"", b"PK\x03\x04", b"not a jar"] {
            assert_eq!(detected(bytes, "", "java -javaagent:JAR Main", &[]), None);
        }
        assert_eq!(
            detected(&skywalking(), "", "java Main -javaagent:JAR", &[]),
            None
        );
    }
}
