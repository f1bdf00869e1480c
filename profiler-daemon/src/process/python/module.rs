//! Derives the module's name from `co_filename`.
//!
//! A code object knows its file but not its module. The module is the path below the folder that
//! Python imported it from, which is the longest entry of `sys.path` above the file. Folders with an
//! `__init__.py` belong to a package, also when one of them is an entry itself.
//!
//! With `sys.path` `/srv/shop`, `/usr/lib/python312.zip`, `/usr/lib/python3.11`:
//!
//! | file | module |
//! |---|---|
//! | `/srv/shop/views/cart.py`, `views` with or without `__init__.py` | `views.cart` |
//! | the same, if `/srv/shop` has an `__init__.py` | `shop.views.cart` |
//! | `/srv/shop/views/__init__.py` | `views` |
//! | `/srv/shop/serve.py` (a script) | `serve` |
//! | `/srv/shop/__main__.py` | `shop.__main__` |
//! | `/usr/lib/python3.11/http/server.py` | `http.server` |
//! | `/opt/venv/lib/python3.12/site-packages/flask/app.py`, whatever `sys.path` | `flask.app` |
//! | `/usr/lib/python312.zip/json/decoder.py` | `json.decoder` |
//! | `tools/report.py` or `/work/tools/report.py`, working folder `/work` | `tools.report` |
//! | `<frozen importlib._bootstrap>` | `importlib._bootstrap` |
//! | `<string>` | `<string>` |
//!
//! Everything else is named by its whole path: a file below none of these, one that an earlier entry
//! of `sys.path` hides, one whose folder has a dot in its name.

/// `__init__.py` above each other that are looked for. No package is nested as deep.
const PACKAGE_DEPTH_MAX: usize = 16;

/// Where the modules of a process are imported from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImportPath {
    /// The components of each entry of `sys.path`, in its order.
    entries: Vec<Vec<String>>,
    /// Those of the working folder; none if it is the root or unknown.
    working_folder: Vec<String>,
}

/// A file with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModuleName {
    /// Dotted, or a path if nothing else tells the file from others.
    pub(super) text: String,
    /// An entry of `sys.path` or the working folder is above the file.
    pub(super) is_rooted: bool,
}

impl ImportPath {
    /// `entries` as `sys.path` has them: relative ones begin at the working folder.
    pub(super) fn new(entries: &[String], working_folder: &str) -> Self {
        let working_folder = owned(&components(working_folder));
        let entries = entries.iter().map(|entry| {
            let own = owned(&components(entry));
            if entry.starts_with('/') {
                own
            } else {
                [working_folder.clone(), own].concat()
            }
        });
        Self {
            entries: entries.collect(),
            working_folder,
        }
    }

    /// The name of `file`. `exists` tells whether an absolute path is a regular file.
    pub(super) fn name(&self, file: &str, mut exists: impl FnMut(&str) -> bool) -> ModuleName {
        if let Some(inner) = file.strip_prefix('<') {
            let frozen = inner.strip_prefix("frozen ");
            return ModuleName {
                text: frozen
                    .map_or(file, |name| name.trim_end_matches('>'))
                    .to_owned(),
                is_rooted: true,
            };
        }
        let parts = if file.starts_with('/') {
            components(file)
        } else {
            let folder = self.working_folder.iter().map(String::as_str);
            folder.chain(components(file)).collect()
        };
        let (root, is_rooted) = self.root(&parts, &mut exists);
        let dotted = root.filter(|&root| !self.is_hidden(&parts, root, &mut exists));
        ModuleName {
            text: dotted
                .and_then(|root| dotted_name(&parts, root))
                .unwrap_or_else(|| path_name(file)),
            is_rooted,
        }
    }

    /// How many components of the path are above the outermost package, and whether an entry or the
    /// working folder told.
    fn root(&self, parts: &[&str], exists: &mut impl FnMut(&str) -> bool) -> (Option<usize>, bool) {
        let entry = self.entries.iter().filter(|entry| is_below(parts, entry));
        let entry = entry.map(Vec::len).max();
        let library = library_root(parts);
        if library.is_some() && entry.is_none_or(|entry| Some(entry) <= library) {
            return (library, entry.is_some());
        }
        let folder = Some(&self.working_folder)
            .filter(|folder| !folder.is_empty() && is_below(parts, folder))
            .map(Vec::len);
        let known = entry.or(folder);
        let outermost = known.unwrap_or(parts.len().saturating_sub(1));
        let mut root = outermost;
        while root > 0
            && outermost - root < PACKAGE_DEPTH_MAX
            && exists(&format!("/{}/__init__.py", parts[..root].join("/")))
        {
            root -= 1;
        }
        let is_known = known.is_some() || root < outermost;
        (is_known.then_some(root), known.is_some())
    }

    /// Whether an import finds another file first: an earlier entry has one of the same name.
    fn is_hidden(
        &self,
        parts: &[&str],
        root: usize,
        exists: &mut impl FnMut(&str) -> bool,
    ) -> bool {
        let Some(own) = self
            .entries
            .iter()
            .position(|entry| entry == &parts[..root])
        else {
            return false;
        };
        let below = parts[root..].join("/");
        self.entries[..own]
            .iter()
            .any(|entry| exists(&format!("/{}/{below}", entry.join("/"))))
    }
}

/// The path itself; always told from a dotted name by its slash.
pub(super) fn path_name(file: &str) -> String {
    if file.contains('/') || file.starts_with('<') {
        file.to_owned()
    } else {
        format!("./{file}")
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

fn owned(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|&part| part.to_owned()).collect()
}

fn is_below(parts: &[&str], folder: &[String]) -> bool {
    parts.len() > folder.len() && parts[..folder.len()] == *folder
}

/// The components below `root` with dots between them; `None` if that would not tell where the dots
/// of the name come from.
fn dotted_name(parts: &[&str], root: usize) -> Option<String> {
    let (&last, folders) = parts.split_last()?;
    let stem = [".py", ".pyc", ".pyw"]
        .iter()
        .find_map(|suffix| last.strip_suffix(suffix))
        .unwrap_or(last);
    let packages = match folders.get(root..)? {
        // `__main__` alone is the name of many.
        [] if stem.starts_with("__") => &folders[root.saturating_sub(1)..],
        packages => packages,
    };
    if stem.contains('.') || packages.iter().any(|package| package.contains('.')) {
        return None;
    }
    Some(match stem {
        "__init__" if !packages.is_empty() => packages.join("."),
        _ => [packages, &[stem]].concat().join("."),
    })
}

/// How many components are above a file's package if one of them is a folder that only holds
/// libraries; the innermost counts.
fn library_root(parts: &[&str]) -> Option<usize> {
    let (_, parents) = parts.split_last()?;
    let last = (0..parents.len()).rev().find(|&index| {
        let part = parents[index];
        let below_lib = index > 0 && parents[index - 1].starts_with("lib");
        part == "site-packages"
            || part == "dist-packages"
            || is_versioned(part, "") && below_lib
            || is_versioned(part, ".zip")
    });
    last.map(|index| index + 1)
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
    use std::cell::RefCell;

    use super::*;

    fn path(entries: &[&str], working_folder: &str) -> ImportPath {
        ImportPath::new(&owned(entries), working_folder)
    }

    fn name(path: &ImportPath, file: &str, files: &[&str]) -> String {
        path.name(file, |path| files.contains(&path)).text
    }

    /// Check the table of the module documentation, and odd paths.
    #[test]
    fn modules_follow_from_the_path() {
        let shop = path(
            &["/srv/shop", "/usr/lib/python312.zip", "/usr/lib/python3.11"],
            "/work",
        );
        for (file, module) in [
            ("/srv/shop/views/cart.py", "views.cart"),
            ("/srv//shop/./views/cart.py", "views.cart"),
            ("/srv/shop/views/__init__.py", "views"),
            ("/srv/shop/serve.py", "serve"),
            ("/srv/shop/my-script.py", "my-script"),
            ("/srv/shop/script", "script"),
            ("/srv/shop/köche.py", "köche"),
            ("/srv/shop/__main__.py", "shop.__main__"),
            ("/srv/shop/vendor/lib/python3/x.py", "x"),
            ("/usr/lib/python3.11/http/server.py", "http.server"),
            ("/usr/lib/python3.11/socketserver.py", "socketserver"),
            (
                "/opt/venv/lib/python3.12/site-packages/flask/app.py",
                "flask.app",
            ),
            ("/usr/lib/python3/dist-packages/yaml/__init__.py", "yaml"),
            ("/usr/lib/python312.zip/json/decoder.py", "json.decoder"),
            ("tools/report.py", "tools.report"),
            ("./tools/report.py", "tools.report"),
            ("/work/tools/report.py", "tools.report"),
            ("<frozen importlib._bootstrap>", "importlib._bootstrap"),
            ("<frozen runpy>", "runpy"),
            ("<string>", "<string>"),
            ("<a/b>", "<a/b>"),
            // Known by nothing but its path.
            ("/opt/plugin/handlers.py", "/opt/plugin/handlers.py"),
            ("/srv/shop/v1.2/cart.py", "/srv/shop/v1.2/cart.py"),
            ("/srv/shop/cart.test.py", "/srv/shop/cart.test.py"),
            ("/srv/shopping/cart.py", "/srv/shopping/cart.py"),
            ("/srv/shop", "/srv/shop"),
            ("/", "/"),
        ] {
            assert_eq!(name(&shop, file, &[]), module, "{file}");
        }
        // Neither the path nor the working folder is known.
        let unknown = ImportPath::default();
        assert_eq!(name(&unknown, "a.py", &[]), "./a.py");
        assert_eq!(name(&unknown, "", &[]), "./");
        assert_eq!(name(&unknown, "/srv/a.py", &[]), "/srv/a.py");
    }

    /// Check that packages reach as far up as there is an `__init__.py`, with and without an entry.
    #[test]
    fn packages_follow_from_their_init_files() {
        let inits = ["/srv/shop/__init__.py", "/srv/shop/views/__init__.py"];
        let file = "/srv/shop/views/cart.py";
        for entries in [&["/srv/shop/views"][..], &["/srv/shop"], &["/srv"], &[]] {
            let path = path(entries, "/");
            assert_eq!(name(&path, file, &inits), "shop.views.cart", "{entries:?}");
        }
        let half = path(&["/srv/shop/views"], "/");
        assert_eq!(name(&half, file, &inits[1..]), "views.cart");
        // A tower of them ends.
        let looked = RefCell::new(0);
        let deep = format!("/{}x.py", "a/".repeat(500));
        path(&[], "/").name(&deep, |_| {
            *looked.borrow_mut() += 1;
            true
        });
        assert_eq!(looked.into_inner(), PACKAGE_DEPTH_MAX);
    }

    /// Check that of two files that an import could mean, the one it does not find keeps its path.
    #[test]
    fn a_hidden_file_is_named_by_its_path() {
        let files = ["/srv/a/handlers.py", "/srv/b/handlers.py"];
        let both = path(&["/srv/a", "/srv/b"], "/");
        assert_eq!(name(&both, files[0], &files), "handlers");
        assert_eq!(name(&both, files[1], &files), files[1]);
        // From their common folder both have a name.
        let common = path(&["/srv"], "/");
        assert_eq!(name(&common, files[0], &files), "a.handlers");
        assert_eq!(name(&common, files[1], &files), "b.handlers");
    }

    /// Check that relative entries, as `PYTHONPATH=lib` or an empty one, begin at the working folder.
    #[test]
    fn relative_entries_begin_at_the_working_folder() {
        let path = path(&["", "lib", "../more"], "/srv/shop");
        assert_eq!(name(&path, "/srv/shop/lib/x/y.py", &[]), "x.y");
        assert_eq!(name(&path, "lib/x/y.py", &[]), "x.y");
        assert_eq!(name(&path, "/srv/shop/../more/z.py", &[]), "z");
        assert_eq!(name(&path, "/srv/shop/x.py", &[]), "x");
    }
}
