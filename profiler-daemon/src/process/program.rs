//! Turns a command line into the name of a program, the last resort of service identity.
//!
//! | started as | name |
//! |---|---|
//! | `/usr/sbin/nginx -g ...` | `nginx` |
//! | `python3 app.py`, `python3 /srv/app/__main__.py` | `app` |
//! | `python3 -m uvicorn shop:app` | `uvicorn` |
//! | `/usr/bin/python3 /usr/bin/gunicorn shop` | `gunicorn` |
//! | `gunicorn: worker [shop]` (a title it gave itself) | `gunicorn` |
//! | `node --require x server.js` | `server` |
//! | `java -Xmx1g -jar shop-1.2.jar`, `java -cp x com.acme.Shop` | `shop-1.2`, `Shop` |

use std::path::Path;

/// An interpreter and those of its options that take the next argument.
struct Interpreter {
    /// Beginning of the executable's file name; what follows may only be a version.
    name: &'static str,
    with_value: &'static [&'static str],
}

const INTERPRETERS: &[Interpreter] = &[
    Interpreter {
        name: "python",
        with_value: &["-W", "-X", "-Q", "--check-hash-based-pycs"],
    },
    Interpreter {
        name: "pypy",
        with_value: &["-W", "-X"],
    },
    Interpreter {
        name: "node",
        with_value: &[
            "-r",
            "--require",
            "--import",
            "--loader",
            "--experimental-loader",
            "-C",
            "--conditions",
        ],
    },
    Interpreter {
        name: "nodejs",
        with_value: &["-r", "--require", "--import", "--loader"],
    },
    Interpreter {
        name: "ruby",
        with_value: &["-I", "-r", "-C", "-E"],
    },
    Interpreter {
        name: "perl",
        with_value: &["-I"],
    },
    Interpreter {
        name: "php",
        with_value: &["-c", "-d", "-S", "-t"],
    },
    Interpreter {
        name: "bash",
        with_value: &["-o", "-O", "--rcfile", "--init-file"],
    },
    Interpreter {
        name: "dash",
        with_value: &["-o"],
    },
    Interpreter {
        name: "sh",
        with_value: &["-o"],
    },
    Interpreter {
        name: "java",
        with_value: &[
            "-cp",
            "-classpath",
            "--class-path",
            "-p",
            "--module-path",
            "--add-modules",
            "--add-opens",
            "--add-exports",
            "--add-reads",
        ],
    },
];

/// Name of the program: never empty, without folders and endings.
#[must_use]
pub fn program_name(exe: Option<&Path>, comm: &str, command: &[String]) -> String {
    let first = command.first().map_or("", String::as_str);
    let exe_name = exe.map_or_else(|| file_name(first), |exe| file_name(&exe.to_string_lossy()));
    let interpreter = INTERPRETERS
        .iter()
        .find(|i| is_version_of(&exe_name, i.name));
    let script = interpreter.and_then(|interpreter| match interpreter.name {
        "java" => java_name(interpreter, command),
        _ => script_name(interpreter, command).or_else(|| title_name(first)),
    });
    let names = [script, Some(exe_name), Some(comm.to_owned())];
    let mut named = names
        .into_iter()
        .flatten()
        .filter(|name| !name.trim().is_empty());
    named.next().unwrap_or_else(|| "unknown".to_owned())
}

/// `python`, `python3`, `python3.11`, `python3-dbg` are all versions of `python`.
fn is_version_of(exe_name: &str, interpreter: &str) -> bool {
    let rest = exe_name.strip_prefix(interpreter);
    rest.is_some_and(|rest| rest.is_empty() || !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// The script or module that an interpreter runs.
fn script_name(interpreter: &Interpreter, command: &[String]) -> Option<String> {
    let mut arguments = command.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if interpreter.name == "python" && argument == "-m" {
            let module = arguments.next()?;
            return Some(module.split('.').next().unwrap_or(module).to_owned());
        }
        if matches!(argument.as_str(), "-c" | "-e" | "-") {
            return None; // the program is text, not a file
        }
        if interpreter.with_value.contains(&argument.as_str()) {
            arguments.next();
        } else if !argument.starts_with('-') {
            return Some(stem(argument));
        }
    }
    None
}

/// The archive or class that a Java machine runs.
fn java_name(interpreter: &Interpreter, command: &[String]) -> Option<String> {
    let mut arguments = command.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "-jar" {
            return arguments.next().map(|archive| stem(archive));
        }
        if argument == "-m" || argument == "--module" {
            let module = arguments.next()?;
            return Some(module.split('/').next().unwrap_or(module).to_owned());
        }
        if interpreter.with_value.contains(&argument.as_str()) {
            arguments.next();
        } else if !argument.starts_with(['-', '@']) {
            return Some(argument.rsplit('.').next().unwrap_or(argument).to_owned());
        }
    }
    None
}

/// What is meant for the Java machine itself, not for the program it runs.
pub(super) fn java_options(command: &[String]) -> Vec<&str> {
    let java = INTERPRETERS.iter().find(|i| i.name == "java");
    let with_value = java.map_or(&[][..], |java| java.with_value);
    let mut options = Vec::new();
    let mut arguments = command.iter().skip(1).map(String::as_str);
    while let Some(argument) = arguments.next() {
        if !argument.starts_with(['-', '@']) || matches!(argument, "-jar" | "-m" | "--module") {
            break;
        }
        options.push(argument);
        if with_value.contains(&argument) {
            arguments.next();
        }
    }
    options
}

/// `gunicorn: worker [shop]`: a process that has overwritten its command line.
fn title_name(first: &str) -> Option<String> {
    let (name, _) = first.split_once(": ")?;
    let is_word = !name.is_empty() && !name.contains(['/', ' ']);
    is_word.then(|| name.to_owned())
}

/// `/srv/shop/app.py` is `app`; `/srv/shop/__main__.py` is `shop`.
fn stem(path: &str) -> String {
    let path = Path::new(path);
    let stem = |path: &Path| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let own = stem(path);
    match path.parent() {
        Some(folder) if own == "__main__" && folder.file_name().is_some() => stem(folder),
        _ => own,
    }
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(exe: &str, command: &str) -> String {
        let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
        program_name(Some(Path::new(exe)), "comm", &command)
    }

    /// Check the table of the module text, and more.
    #[test]
    fn programs_have_names() {
        for (exe, command, expected) in [
            ("/usr/sbin/nginx", "nginx: master", "nginx"),
            ("/usr/bin/python3.11", "python3 app.py", "app"),
            (
                "/usr/bin/python3.11",
                "python3 -u -W ignore -X dev /srv/shop/app.py --port 1",
                "app",
            ),
            (
                "/usr/bin/python3.11",
                "python3 /srv/shop/__main__.py",
                "shop",
            ),
            ("/usr/bin/python3", "python3 __main__.py", "__main__"),
            ("/usr/bin/python3", "python3 -m uvicorn shop:app", "uvicorn"),
            ("/usr/bin/python3", "python3 -m http.server", "http"),
            (
                "/usr/bin/python3",
                "/usr/bin/python3 /usr/bin/gunicorn shop",
                "gunicorn",
            ),
            ("/usr/bin/python3", "python3 -c import", "python3"),
            ("/usr/bin/python3", "python3", "python3"),
            ("/usr/bin/node", "node --require x server.js", "server"),
            (
                "/usr/bin/java",
                "java -Xmx1g -jar /opt/shop-1.2.jar",
                "shop-1.2",
            ),
            ("/usr/bin/java", "java -cp a:b com.acme.Shop arg", "Shop"),
            ("/usr/bin/java", "java -m acme/com.acme.Main", "acme"),
            ("/bin/bash", "bash /opt/run.sh", "run"),
            ("/bin/bash", "bash -c sleep", "bash"),
            ("/usr/bin/shutdown", "shutdown now", "shutdown"),
            ("/usr/bin/nodeos", "nodeos x", "nodeos"),
        ] {
            assert_eq!(name(exe, command), expected, "{command}");
        }
        let title = ["gunicorn: worker [shop]".to_owned()];
        assert_eq!(
            program_name(Some(Path::new("/usr/bin/python3")), "gunicorn", &title),
            "gunicorn"
        );
    }

    /// Check that there is a name whatever is missing.
    #[test]
    fn there_is_always_a_name() {
        assert_eq!(program_name(None, "comm", &[]), "comm");
        assert_eq!(program_name(None, "", &[]), "unknown");
        assert_eq!(program_name(None, "c", &["/a/b".to_owned()]), "b");
        assert_eq!(program_name(Some(Path::new("/")), "c", &[]), "c");
    }
}
