//! The state directory: what a daemon leaves for the one after it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use migrated_api::RecordRole;
use migrated_control::{VmDir, VmSpec, write_atomic};
use migrated_cpuid::CpuDump;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::migration::{Migration, StoredMigration};
use super::process::ProcessId;
use super::spec::is_id;

/// The state directory, held by one daemon at a time.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the directory, making it where it is missing, and locks it.
    pub fn open(root: &Path) -> Result<Self> {
        let what = || format!("can't use the state directory {}", root.display());
        for dir in [root.to_owned(), root.join("vms"), root.join("migrations")] {
            make_dir(&dir).with_context(what)?;
        }
        let root = root.canonicalize().with_context(what)?;
        let lock = File::create(root.join("lock")).with_context(what)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{}: another daemon runs on it", what()))?;
        Ok(Self { root, _lock: lock })
    }

    /// A directory for a VM that comes, which does not exist yet. It has the VM's id as its name, and a number
    /// behind it where a process that the VM has left is still going away.
    pub fn fresh_vm_dir(&self, id: &str) -> VmDir {
        let vms = self.root.join("vms");
        let numbered = (1..u32::MAX).map(|n| vms.join(format!("{id}.{n}")));
        let mut candidates = std::iter::once(vms.join(id)).chain(numbered);
        let free = candidates.find(|path| !path.exists());
        VmDir::new(free.expect("a VM does not leave billions of processes behind"))
    }

    /// Makes the directory of a new VM and writes its specification.
    pub fn create_vm(&self, dir: &VmDir, spec: &VmSpec) -> io::Result<()> {
        make_dir(dir.path())?;
        write_json(&dir.spec(), spec)
    }

    /// Removes the directory of a VM.
    pub fn remove_vm(&self, dir: &VmDir) {
        match fs::remove_dir_all(dir.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("can't remove {}: {e}; remove it by hand", dir.path().display());
            }
            _ => {}
        }
    }

    /// Ids and directories of all VMs that have one.
    pub fn vm_dirs(&self) -> io::Result<Vec<(String, VmDir)>> {
        let vms = self.root.join("vms");
        let with_id = |name: String| {
            let id = name.split('.').next().filter(|id| is_id(id))?.to_owned();
            Some((id, VmDir::new(vms.join(name))))
        };
        Ok(names(&vms)?.into_iter().filter_map(with_id).collect())
    }

    /// Remembers which process a VM's is.
    pub fn write_process(&self, dir: &VmDir, process: &ProcessId) -> io::Result<()> {
        write_json(&dir.pid(), process)
    }

    /// Which process a VM's was.
    pub fn read_process(&self, dir: &VmDir) -> Option<ProcessId> {
        read_json(&dir.pid()).ok()
    }

    /// Keeps what the host's CPU offers.
    pub fn write_host_cpu(&self, dump: &CpuDump) -> io::Result<()> {
        write_json(&self.host_cpu(), dump)
    }

    /// What the host's CPU offered when a daemon last looked, if one did.
    pub fn read_host_cpu(&self) -> io::Result<Option<CpuDump>> {
        match read_json(&self.host_cpu()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    fn host_cpu(&self) -> PathBuf {
        self.root.join("host-cpu.json")
    }

    /// Where the committed epoch of a migration is recorded at its destination.
    pub fn epoch_file(&self, migration: &str) -> PathBuf {
        self.root.join("migrations").join(migration).join("epoch")
    }

    /// Keeps a migration.
    pub fn write_migration(&self, migration: &Migration) -> io::Result<()> {
        let dir = self.root.join("migrations").join(migration.id.to_string());
        make_dir(&dir)?;
        write_json(&dir.join(file_name(migration.role())), &migration.to_stored())
    }

    /// Forgets a migration.
    pub fn remove_migration(&self, id: &str) {
        if let Err(e) = fs::remove_dir_all(self.root.join("migrations").join(id)) {
            tracing::warn!(migration = id, "can't remove an old migration's record: {e}");
        }
    }

    /// All migrations kept.
    pub fn migrations(&self) -> io::Result<Vec<Migration>> {
        let mut migrations = Vec::new();
        for id in names(&self.root.join("migrations"))? {
            let dir = self.root.join("migrations").join(&id);
            let Ok(number) = id.parse() else { continue };
            for role in [RecordRole::Source, RecordRole::Destination] {
                let path = dir.join(file_name(role));
                match read_json::<StoredMigration>(&path) {
                    Ok(stored) => {
                        migrations.push(Migration::new(number, stored.peer, stored.epoch, stored.record));
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => tracing::warn!("{}: {e}; the record is left as it is", path.display()),
                }
            }
        }
        Ok(migrations)
    }
}

const fn file_name(role: RecordRole) -> &'static str {
    match role {
        RecordRole::Source => "source.json",
        RecordRole::Destination => "destination.json",
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec_pretty(value)?)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
