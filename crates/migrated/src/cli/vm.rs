use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use migrated_api::{BootSource, MemoryBacking, NetworkSpec, Vm, VmList, VmSpec};

use super::balloon::{self, BalloonArgs};
use super::console::{self, ConsoleArgs};
use super::cpu::list::wrapped;
use super::cpu::source::baseline_spec;
use super::network::{self, bridges, in_words};
use super::output::{Output, table};
use super::shutdown::{self, ShutdownArgs};
use crate::client::ApiClient;
use crate::units;

/// Making a large VM touches all of its memory.
const CREATE: Duration = Duration::from_secs(3600);

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Make a VM and boot it.
    Create(CreateArgs),
    /// List the VMs on the host.
    List,
    /// Show one VM, with what it is doing at the moment.
    Show(VmArg),
    /// Stop a VM's vCPUs.
    Pause(VmArg),
    /// Run a paused VM's vCPUs.
    Resume(VmArg),
    /// Press a VM's power button and wait until the guest has shut down.
    Shutdown(ShutdownArgs),
    /// Ask a VM's guest to give up RAM to its host, or to take it again.
    Balloon(BalloonArgs),
    /// End a VM and remove everything of it.
    Delete(VmArg),
    /// Use a VM's console: as a terminal, or in a pipe.
    Console(ConsoleArgs),
}

#[derive(Debug, Args)]
pub struct VmArg {
    /// Name or id of the VM.
    vm: String,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name, unique on the host.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    boot: BootArgs,
    /// Guest RAM: a multiple of 2M.
    #[arg(long, default_value = "512M", value_parser = units::size)]
    memory: u64,
    /// Number of vCPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// The CPU that the guest gets: a baseline's name (`migrated cpu baseline --list`), `host` for everything
    /// of this host that is safe to migrate, or a TOML file that changes one.
    #[arg(long, value_name = "NAME|FILE|host", default_value = "host")]
    cpu_baseline: String,
    /// What backs the RAM.
    #[arg(long, value_enum, default_value_t = Backing::Memfd)]
    backing: Backing,
    /// Touch all RAM at creation.
    #[arg(long)]
    prefault: bool,
    /// A network interface, on a TAP that becomes a port of this bridge of the host; may be given several times.
    /// `bridge@HOST=` names the bridge on a host where it is another one; `mac=` and `tap=` are chosen where they
    /// are left out.
    #[arg(
        long,
        value_name = "bridge=BRIDGE[,mac=MAC][,tap=NAME][,mtu=BYTES][,bridge@HOST=BRIDGE]…",
        value_parser = network::network
    )]
    net: Vec<NetworkSpec>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct BootArgs {
    /// Boot the built-in workload guest with these parameters, e.g. 'hot=128M rate=10000 pattern=random'.
    #[arg(long, value_name = "PARAMETERS", conflicts_with_all = ["kernel", "initramfs", "cmdline"])]
    workload: Option<String>,
    /// Boot this kernel, a file of the host's: a vmlinuz (bzImage), or a vmlinux with a PVH entry point.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initramfs for the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backing {
    /// 4 KiB pages of a memfd.
    Memfd,
    /// A memfd with transparent huge pages asked for.
    Thp,
    /// 2 MiB pages of hugetlbfs, reserved by the host.
    Hugetlb2m,
}

impl CreateArgs {
    fn spec(self) -> Result<VmSpec> {
        // The daemon's working directory is not ours.
        let absolute = |path: PathBuf| -> Result<String> {
            let path = std::path::absolute(path)?;
            path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
        };
        let boot = match self.boot.kernel {
            Some(kernel) => BootSource::Kernel {
                kernel: absolute(kernel)?,
                initramfs: self.boot.initramfs.map(absolute).transpose()?,
                cmdline: self.boot.cmdline.unwrap_or_default(),
            },
            None => BootSource::Workload { cmdline: self.boot.workload.unwrap_or_default() },
        };
        let backing = match self.backing {
            Backing::Memfd => MemoryBacking::Memfd,
            Backing::Thp => MemoryBacking::Thp,
            Backing::Hugetlb2m => MemoryBacking::Hugetlb2m,
        };
        Ok(VmSpec {
            name: self.name,
            memory_bytes: self.memory,
            vcpus: self.vcpus,
            boot,
            backing,
            prefault: self.prefault,
            cpu_baseline: baseline_spec(&self.cpu_baseline)?,
            network: self.net,
        })
    }
}

pub async fn run(client: &ApiClient, output: Output, command: VmCommand) -> Result<()> {
    match command {
        VmCommand::Create(args) => {
            let vm: Vm = client.post("/v1/vms", &args.spec()?, CREATE).await?;
            output.value(&vm, |vm| format!("{} {} ({})", vm.name, vm.state, vm.id))
        }
        VmCommand::List => {
            let list: VmList = client.get("/v1/vms").await?;
            output.value(&list, list_for_people)
        }
        VmCommand::Show(VmArg { vm }) => {
            let vm: Vm = client.get(&format!("/v1/vms/{vm}")).await?;
            output.value(&vm, vm_for_people)
        }
        VmCommand::Pause(VmArg { vm }) => {
            let vm: Vm = client.post_empty(&format!("/v1/vms/{vm}/pause")).await?;
            output.value(&vm, |vm| format!("{} {}", vm.name, vm.state))
        }
        VmCommand::Resume(VmArg { vm }) => {
            let vm: Vm = client.post_empty(&format!("/v1/vms/{vm}/resume")).await?;
            output.value(&vm, |vm| format!("{} {}", vm.name, vm.state))
        }
        VmCommand::Shutdown(args) => shutdown::run(client, output, args).await,
        VmCommand::Balloon(args) => balloon::run(client, output, args).await,
        VmCommand::Delete(VmArg { vm }) => Ok(client.delete(&format!("/v1/vms/{vm}")).await?),
        VmCommand::Console(args) => console::run(client, args).await,
    }
}

fn list_for_people(list: &VmList) -> String {
    let rows = list.vms.iter().map(|vm| {
        vec![
            vm.name.clone(),
            vm.state.to_string(),
            vm.spec.vcpus.to_string(),
            units::show_bytes(vm.spec.memory_bytes),
            bridges(&vm.spec),
            vm.migration.clone().unwrap_or_default(),
            vm.id.clone(),
        ]
    });
    table(&["name", "state", "vcpus", "memory", "network", "migration", "id"], rows)
}

fn vm_for_people(vm: &Vm) -> String {
    let mut rows = vec![
        vec!["name".into(), vm.name.clone()],
        vec!["id".into(), vm.id.clone()],
        vec!["state".into(), vm.state.to_string()],
        vec!["vcpus".into(), vm.spec.vcpus.to_string()],
        vec!["memory".into(), units::show_bytes(vm.spec.memory_bytes)],
    ];
    let mut row =
        |name: &str, value: Option<String>| rows.extend(value.map(|value| vec![name.to_owned(), value]));
    row("error", vm.error.clone());
    row("process", vm.pid.map(|pid| pid.to_string()));
    row("migration", vm.migration.clone());
    row(
        "boots",
        Some(match &vm.spec.boot {
            BootSource::Kernel { kernel, cmdline, .. } => format!("{kernel} {cmdline}"),
            BootSource::Workload { cmdline } => format!("the workload guest: {cmdline}"),
        }),
    );
    for network in &vm.spec.network {
        row("network", Some(in_words(network)));
    }
    row("balloon", vm.balloon.map(|balloon| balloon::in_words(&balloon)));
    row("agent", vm.agent_socket.clone());
    if let Some(cpu) = &vm.cpu {
        let best = cpu.best.clone().unwrap_or_else(|| "no named baseline".into());
        row("cpu", Some(format!("{best} (made from {})", cpu.baseline)));
        row("cpu, not hidden", (!cpu.unmasked.is_empty()).then(|| wrapped(&cpu.unmasked)));
        row("CPU SIMULATED", cpu.simulated.then(|| "ITS HOST ONLY PRETENDS TO HAVE THAT CPU".into()));
    }
    if let Some(work) = &vm.workload {
        row("passes", Some(work.passes.to_string()));
        row("pages written", Some(work.writes.to_string()));
        row("pages read", Some(work.reads.to_string()));
        row("memory errors", Some(work.errors.to_string()));
        row("longest gap", Some(units::show_us(work.gap_max_us)));
        row("TSC backward", Some(work.tsc_backward.to_string()));
    }
    table(&[], rows)
}
