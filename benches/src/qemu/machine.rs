use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrated_netns::Pair;
use serde_json::{Value, json};

use super::counters::{self, Counters, Image};
use super::qmp::Qmp;
use super::{Program, Request};
use crate::guest::Guest;
use crate::lab::PATIENCE;

/// Time between two looks at whether the guest is ready.
const LOOK: Duration = Duration::from_millis(50);

/// One QEMU in a network namespace, with the workload guest or waiting for it. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Machine {
    /// The host that it runs on.
    pub(super) host: usize,
    child: Child,
    pub(super) qmp: Qmp,
    files: PathBuf,
    saved: u32,
}

/// What all machines of a journey have in common.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) pair: &'a Pair,
    pub(super) program: &'a Program,
    pub(super) binary: &'a Path,
    pub(super) image: Image,
    pub(super) guest: &'a Guest,
    pub(super) dir: &'a Path,
}

impl Machine {
    /// Starts one at host `index`; `incoming` says whether it waits for a guest. `n` tells its files apart.
    pub(super) fn start(ground: &Ground<'_>, index: usize, n: u32, incoming: bool) -> Result<Self> {
        let files = ground.dir.join(format!("qemu-{n}"));
        std::fs::create_dir(&files)?;
        let socket = files.join("qmp.sock");
        // QEMU's own default, touched before it is measured.
        let memory = format!("memory-backend-ram,id=ram,size={}M,prealloc=on", ground.guest.memory_mib);
        let mut command = ground.pair.command(index, &ground.program.path);
        ground.program.set_up(&mut command);
        command
            // No device that a migration would have to move besides CPU and serial line; no firmware of a PC.
            .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
            .args(["-M", "microvm,pic=off,pit=off,rtc=off,isa-serial=on,memory-backend=ram"])
            .args(["-object", &memory, "-m", &format!("{}M", ground.guest.memory_mib)])
            .args(["-smp", &ground.guest.vcpus.to_string()])
            // Its threads are told apart by their names.
            .args(["-name", "measured,debug-threads=on"])
            .args([
                "-nodefaults",
                "-nographic",
                "-serial",
                &format!("file:{}", files.join("console").display()),
            ])
            .arg("-kernel")
            .arg(&ground.image.image)
            .args(["-append", &ground.guest.workload])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let log = std::fs::File::create(files.join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut child = child.context("can't start QEMU")?;
        let qmp = Qmp::connect(&socket).map_err(|error| {
            // A killed child can always be waited for.
            let _ = child.kill().and_then(|()| child.wait());
            error.context(std::fs::read_to_string(files.join("log")).unwrap_or_default())
        })?;
        Ok(Self { host: index, child, qmp, files, saved: 0 })
    }

    /// Waits until the guest has filled its memory and runs.
    pub(super) fn await_ready(&mut self, ground: &Ground<'_>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let file = self.save(&ground.image)?;
            let counters = counters::read(ground.binary, &[file])?.pop().flatten();
            if counters.is_some_and(|counters| counters.total.running == ground.guest.vcpus) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let said = std::fs::read(self.files.join("console")).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                bail!("the guest under QEMU is not ready within {PATIENCE:?}: {said}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Saves the guest's counters as they are now to a file, to be read when nothing is being measured.
    pub(super) fn save(&mut self, image: &Image) -> Result<PathBuf> {
        self.saved += 1;
        let file = self.files.join(format!("counters-{}", self.saved));
        let arguments =
            json!({ "val": image.counters_address, "size": image.counters_bytes, "filename": &file });
        self.qmp.execute("pmemsave", arguments)?;
        Ok(file)
    }

    /// The guest's counters now.
    pub(super) fn counters(&mut self, ground: &Ground<'_>) -> Result<Counters> {
        let file = self.save(&ground.image)?;
        let read = counters::read(ground.binary, &[file])?.pop().flatten();
        read.context("the guest under QEMU has no counters")
    }

    /// Sets what a migration is to use.
    pub(super) fn prepare(&mut self, request: &Request, guest: &Guest) -> Result<()> {
        self.qmp.execute("migrate-set-capabilities", request.method.capabilities())?;
        self.qmp.execute("migrate-set-parameters", request.parameters(guest.memory_mib))?;
        Ok(())
    }

    /// What QEMU says of its migration.
    pub(super) fn migration(&mut self) -> Result<Value> {
        self.qmp.execute("query-migrate", json!({}))
    }

    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.qmp.execute("query-status", json!({}))?["running"] == true)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A killed child can always be waited for; one that has ended by itself can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
