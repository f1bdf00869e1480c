//! Derives the module's name from `co_filename`.
//!
//! A code object knows its file but not its module. Files below a library directory have one
//! module name; for other files the import root is unknown, so the file's own name has to do. The
//! result depends on the text of the path only, so a function has the same name in every process
//! and at every time.
//!
//! | file | module |
//! |---|---|
//! | `/usr/lib/python3.11/http/server.py` | `http.server` |
//! | `/opt/venv/lib/python3.12/site-packages/flask/app.py` | `flask.app` |
//! | `/usr/lib/python3/dist-packages/yaml/__init__.py` | `yaml` |
//! | `/usr/lib/python312.zip/json/decoder.py` | `json.decoder` |
//! | `<frozen importlib._bootstrap>` | `importlib._bootstrap` |
//! | `/srv/shop/views/cart.py` | `cart` |
//! | `/srv/shop/views/__init__.py` | `views` |
//! | `/srv/shop/__main__.py` | `shop.__main__` |
//! | `<string>` | `<string>` |

/// The module of a file, as far as its path tells.
pub(crate) fn module_of(file: &str) -> String {
    if let Some(inner) = file.strip_prefix('<') {
        return match inner.strip_prefix("frozen ") {
            Some(module) => module.trim_end_matches('>').to_owned(),
            None => file.to_owned(),
        };
    }
    let parts: Vec<&str> = file.split('/').filter(|part| !part.is_empty()).collect();
    let Some((&last, parents)) = parts.split_last() else {
        return file.to_owned();
    };
    let stem = [".py", ".pyc", ".pyw"]
        .iter()
        .find_map(|suffix| last.strip_suffix(suffix))
        .unwrap_or(last);
    let packages = match library_root(parents) {
        Some(root) => &parents[root + 1..],
        // Not importable from a known root: only what disambiguates the special files.
        None if stem.starts_with("__") => &parents[parents.len().saturating_sub(1)..],
        None => &[],
    };
    match stem {
        "__init__" if !packages.is_empty() => packages.join("."),
        _ => [packages, &[stem]].concat().join("."),
    }
}

/// Index of the innermost directory that Python imports libraries from.
fn library_root(parents: &[&str]) -> Option<usize> {
    (0..parents.len()).rev().find(|&index| {
        let part = parents[index];
        let below_lib = index > 0 && parents[index - 1].starts_with("lib");
        part == "site-packages"
            || part == "dist-packages"
            || is_versioned(part, "") && below_lib
            || is_versioned(part, ".zip")
    })
}

/// Whether `part` is `python3.11`, `python3` or, with `suffix` `.zip`, `python311.zip`.
fn is_versioned(part: &str, suffix: &str) -> bool {
    part.strip_suffix(suffix)
        .and_then(|part| part.strip_prefix("python3"))
        .is_some_and(|version| {
            version
                .chars()
                .all(|c| c.is_ascii_digit() || c == '.' || c == 't')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the table of the module documentation, and odd paths.
    #[test]
    fn modules_follow_from_the_path() {
        for (file, module) in [
            ("/usr/lib/python3.11/http/server.py", "http.server"),
            ("/usr/lib/python3.11/socketserver.py", "socketserver"),
            (
                "/opt/venv/lib/python3.12/site-packages/flask/app.py",
                "flask.app",
            ),
            ("/usr/lib/python3/dist-packages/yaml/__init__.py", "yaml"),
            ("/usr/lib/python312.zip/json/decoder.py", "json.decoder"),
            ("<frozen importlib._bootstrap>", "importlib._bootstrap"),
            ("<frozen runpy>", "runpy"),
            ("/srv/shop/views/cart.py", "cart"),
            ("/srv/shop/views/__init__.py", "views"),
            ("/srv/shop/__main__.py", "shop.__main__"),
            ("<string>", "<string>"),
            ("server.py", "server"),
            ("/srv/python3.11/server.py", "server"),
            ("__init__.py", "__init__"),
            ("/srv/köche.py", "köche"),
            ("script", "script"),
            ("", ""),
            ("/", "/"),
        ] {
            assert_eq!(module_of(file), module, "{file}");
        }
    }
}
