//! What the virtual machine boots: a kernel of Debian and an initramfs around test binaries.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use profiler_test_support::{build_c_server, kernel_test_folder, target_dir, workspace_root};

use crate::command::{output, run};
use crate::setup::download_kernel;

use super::TestRun;

/// Debian's CPython: the one on `PATH` may be a version manager's script.
const PYTHON: &str = "/usr/bin/python3";

/// Folders of the standard library that no server imports: they are most of its size.
const PYTHON_UNUSED: &[&str] = &[
    "test",
    "idlelib",
    "tkinter",
    "lib2to3",
    "ensurepip",
    "__pycache__",
];

/// The kernel image of this version, fetched once.
pub(super) fn kernel(version: &str, suite: &str) -> Result<PathBuf> {
    let folder = target_dir().join("vm").join(version);
    let vmlinuz = folder.join("vmlinuz");
    if vmlinuz.exists() {
        return Ok(vmlinuz);
    }
    fs::create_dir_all(&folder)?;
    let prefix = format!("linux-image-{version}.");
    let package = download_kernel(suite, "linux-image-cloud-amd64", &prefix, &folder)?;
    let unpacked = folder.join("package");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .args([&package, &unpacked]))?;
    let found =
        find_kernel(&unpacked)?.with_context(|| format!("no kernel in {}", package.display()))?;
    fs::copy(found, &vmlinuz)?;
    // The modules in the package are ten times the size of the kernel.
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&package)?;
    Ok(vmlinuz)
}

/// The kernel in an unpacked package: `boot/vmlinuz-VERSION`, or from Linux 7 on
/// `usr/lib/modules/VERSION/vmlinuz`.
fn find_kernel(unpacked: &Path) -> Result<Option<PathBuf>> {
    let mut folders = vec![unpacked.join("boot")];
    let modules = unpacked.join("usr/lib/modules");
    if modules.exists() {
        for version in fs::read_dir(modules)? {
            folders.push(version?.path());
        }
    }
    for folder in folders.iter().filter(|folder| folder.exists()) {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("vmlinuz") {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

/// An initramfs that runs these one after the other; `profilerd` is there for those that start it.
pub(super) fn initramfs(runs: &[TestRun], profilerd: &Path) -> Result<PathBuf> {
    let folder = target_dir().join("vm");
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    let init = workspace_root().join("xtask/src/vm/init.c");
    run(Command::new("cc")
        .args(["-static", "-O1", "-Wall", "-o"])
        .args([root.join("init"), init]))
    .context("cannot link /init statically (Debian: package libc6-dev)")?;
    let mut files = install(profilerd, &root.join("profilerd"))?;
    let mut lines = String::new();
    for run in runs {
        files.extend(install(&run.binary, &root.join(&run.test))?);
        // What init.c reads: the program, then its arguments, with tabs between them.
        lines += &[&[format!("/{}", run.test)], &run.args[..]]
            .concat()
            .join("\t");
        lines.push('\n');
    }
    fs::write(root.join("runs"), lines)?;
    if Path::new(PYTHON).exists() {
        files.extend(python(&root)?);
    }
    for file in &files {
        copy_into(&root, file)?;
    }
    copy_folder(&root, &workspace_root().join("tests/services"))?;
    copy_folder(&root, &kernel_test_folder())?;
    // Where init.c says it is; its libraries are among those of the test.
    build_c_server(&root.join("server"))?;
    let image = folder.join("initramfs.gz");
    pack(&root, &image)?;
    Ok(image)
}

/// Puts a program into the image; yields the libraries it needs.
fn install(program: &Path, to: &Path) -> Result<BTreeSet<PathBuf>> {
    // Debug information would be most of the image; symbols stay.
    run(Command::new("objcopy")
        .arg("--strip-debug")
        .args([program, to]))?;
    shared_libraries(program)
}

/// The libraries and the loader that `ldd` names.
fn shared_libraries(binary: &Path) -> Result<BTreeSet<PathBuf>> {
    let text = output(Command::new("ldd").arg(binary))?;
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)", "/lib64/ld-linux-x86-64.so.2 (0x..)"
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Copies CPython's standard library; yields the interpreter and the libraries that are still missing.
fn python(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let script =
        "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib'))";
    let text = output(Command::new(PYTHON).args(["-I", "-c", script]))?;
    let (executable, library) = text
        .trim()
        .split_once('\n')
        .with_context(|| format!("{PYTHON} printed {text:?}"))?;
    copy_folder(root, Path::new(library))?;
    let mut files = shared_libraries(Path::new(executable))?;
    files.insert(PathBuf::from(executable));
    for module in fs::read_dir(Path::new(library).join("lib-dynload"))? {
        let module = module?.path();
        // Modules such as _ssl, that servers import without need, bring their own libraries.
        if module
            .extension()
            .is_some_and(|extension| extension == "so")
        {
            files.extend(shared_libraries(&module)?);
        }
    }
    Ok(files)
}

/// Copies a file to the same path below `root`, the target in place of a link.
fn copy_into(root: &Path, file: &Path) -> Result<()> {
    let to = root.join(file.strip_prefix("/").context("an absolute path")?);
    fs::create_dir_all(to.parent().expect("the path is below root"))?;
    fs::copy(file, &to).with_context(|| format!("failed to copy {}", file.display()))?;
    Ok(())
}

fn copy_folder(root: &Path, folder: &Path) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?
    {
        let entry = entry?;
        let path = entry.path();
        // Links (to site configuration, to other folders) are left out: nothing needed is one.
        if entry.file_type()?.is_dir() {
            let name = entry.file_name();
            if !PYTHON_UNUSED.iter().any(|unused| *unused == name) {
                copy_folder(root, &path)?;
            }
        } else if entry.file_type()?.is_file() {
            copy_into(root, &path)?;
        }
    }
    Ok(())
}

/// `cpio` in the format that the kernel unpacks, gzip at its fastest.
fn pack(root: &Path, image: &Path) -> Result<()> {
    let mut names = String::new();
    list(root, Path::new("."), &mut names)?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start cpio")?;
    let packed = cpio.stdout.take().expect("stdout is a pipe");
    let mut gzip = Command::new("gzip")
        .arg("-1")
        .stdin(packed)
        .stdout(fs::File::create(image)?)
        .spawn()
        .context("failed to start gzip")?;
    let mut stdin = cpio.stdin.take().expect("stdin is a pipe");
    stdin.write_all(names.as_bytes())?;
    drop(stdin);
    ensure!(cpio.wait()?.success(), "cpio failed");
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(())
}

fn list(root: &Path, folder: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        names.push_str(&name.to_string_lossy());
        names.push('\n');
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}
