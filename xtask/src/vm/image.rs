//! What the virtual machine boots: a kernel of Debian and an initramfs around test binaries.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use profiler_test_support::{build_c_server_by, kernel_test_folder, workspace_root};

use super::arch::Arch;
use super::sysroot::{Python, Sysroot};
use super::test_binary::TestRun;
use crate::command::run;
use crate::setup::Archive;

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
pub(super) fn kernel(arch: Arch, version: &str, suite: &str) -> Result<PathBuf> {
    let folder = arch.folder().join(version);
    let vmlinuz = folder.join("vmlinuz");
    if vmlinuz.exists() {
        return Ok(vmlinuz);
    }
    fs::create_dir_all(&folder)?;
    let archive = Archive::open(suite, arch.debian_name(), &folder)?;
    let meta = format!("linux-image-cloud-{}", arch.debian_name());
    let unpacked = folder.join("package");
    archive.unpack_kernel(&meta, &format!("linux-image-{version}."), &unpacked)?;
    let found = find_kernel(&unpacked)?.with_context(|| format!("no kernel in {meta}"))?;
    fs::copy(found, &vmlinuz)?;
    // The modules in the package are ten times the size of the kernel.
    fs::remove_dir_all(&unpacked)?;
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
pub(super) fn initramfs(
    arch: Arch,
    sysroot: Sysroot,
    runs: &[TestRun],
    profilerd: Option<&Path>,
) -> Result<PathBuf> {
    let folder = arch.folder();
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    let init = workspace_root().join("xtask/src/vm/init.c");
    run(arch
        .c_compiler()
        .args(["-static", "-O1", "-Wall", "-o"])
        .args([root.join("init"), init]))
    .context("cannot link /init statically (Debian: package libc6-dev)")?;
    let image = Image {
        sysroot,
        arch,
        root,
    };
    let mut files = match profilerd {
        Some(profilerd) => image.install(profilerd, "profilerd")?,
        None => BTreeSet::new(),
    };
    let mut lines = String::new();
    for run in runs {
        files.extend(image.install(&run.binary, &run.test)?);
        // The format that init.c reads: the program, then its arguments, with tabs between them.
        lines += &[&[format!("/{}", run.test)], &run.args[..]]
            .concat()
            .join("\t");
        lines.push('\n');
    }
    fs::write(image.root.join("runs"), lines)?;
    if let Some(python) = image.sysroot.python()? {
        files.extend(image.install_python(&python)?);
    }
    for file in &files {
        image.copy(&image.sysroot, file)?;
    }
    image.copy_folder(&Sysroot::Host, &workspace_root().join("tests/services"))?;
    image.copy_folder(&Sysroot::Host, &kernel_test_folder())?;
    // Where init.c says it is; its libraries are among those of the test.
    build_c_server_by(&mut arch.c_compiler(), &image.root.join("server"))?;
    let initramfs = folder.join("initramfs.gz");
    pack(&image.root, &initramfs)?;
    Ok(initramfs)
}

/// The files of the machine, in the making.
struct Image {
    arch: Arch,
    sysroot: Sysroot,
    /// The folder that becomes `/`.
    root: PathBuf,
}

impl Image {
    /// Puts a program of ours into `/`; yields the libraries it needs.
    fn install(&self, program: &Path, name: &str) -> Result<BTreeSet<PathBuf>> {
        // Debug information would be most of the image; symbols stay.
        run(self
            .arch
            .objcopy()
            .arg("--strip-debug")
            .args([program, &self.root.join(name)]))?;
        self.sysroot.libraries(program)
    }

    /// Copies CPython's standard library; yields the interpreter and the libraries that are still missing.
    fn install_python(&self, python: &Python) -> Result<BTreeSet<PathBuf>> {
        self.copy_folder(&self.sysroot, &python.library)?;
        let executable = self.sysroot.locate(&python.executable);
        let mut files = self.sysroot.libraries(&executable)?;
        files.insert(python.executable.clone());
        let modules = self.sysroot.locate(&python.library).join("lib-dynload");
        for module in fs::read_dir(modules)? {
            let module = module?.path();
            // Modules such as _ssl, that servers import without need, bring their own libraries.
            if module
                .extension()
                .is_some_and(|extension| extension == "so")
            {
                files.extend(self.sysroot.libraries(&module)?);
            }
        }
        Ok(files)
    }

    /// Copies a file to the same path in the machine, the target in place of a link.
    fn copy(&self, from: &Sysroot, file: &Path) -> Result<()> {
        let to = self
            .root
            .join(file.strip_prefix("/").context("an absolute path")?);
        fs::create_dir_all(to.parent().expect("the path is below root"))?;
        let file = from.locate(file);
        fs::copy(&file, &to).with_context(|| format!("failed to copy {}", file.display()))?;
        Ok(())
    }

    fn copy_folder(&self, from: &Sysroot, folder: &Path) -> Result<()> {
        let there = from.locate(folder);
        for entry in
            fs::read_dir(&there).with_context(|| format!("failed to read {}", there.display()))?
        {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            // Links (to site configuration, to other folders) are left out: nothing needed is one.
            if entry.file_type()?.is_dir() {
                let name = entry.file_name();
                if !PYTHON_UNUSED.iter().any(|unused| *unused == name) {
                    self.copy_folder(from, &path)?;
                }
            } else if entry.file_type()?.is_file() {
                self.copy(from, &path)?;
            }
        }
        Ok(())
    }
}

/// `cpio` in the format that the kernel unpacks, gzip at its fastest.
pub(super) fn pack(root: &Path, image: &Path) -> Result<()> {
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
