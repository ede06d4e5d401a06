//! A VM process without a guest: this test program started again, with the control protocol's real
//! server. The VM's workload command line says what it does wrong.
//!
//! | word | what it does |
//! |---|---|
//! | `refuse` | can't be made, and says why |
//! | `die` | dies while it is made, and says nothing |
//! | `endless` | its pre-copy ends only when cancelled, or when something is typed |
//! | `lose-ack` | the link dies after the commit arrived |
//! | `lose-commit` | the link dies before the commit arrives |
//! | `die-in-switchover` | dies after it sent the commit |
//! | `busy` | is seen to write 60 000 pages a second |
//! | `departing` | can't be watched, because a migration begins |
//! | `loops` | once it was reset, it resets itself again at once |
//! | `homeless` | once it was reset, it finds no kernel |
//! | `driverless` | has no driver for its balloon |
//! | `measured` | its migration says that it sent 64 MiB at 3 Gbit/s, in the record of its end |

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use migrated_api::{MigrationRecord, MigrationState, RecordError, RecordRole};
use migrated_control::{
    Balloon, BootSource, ConsoleFile, ControlError, EpochRecord, ErrorKind, Event, EventSink, ExitReport,
    GuestDescription, GuestSample, IncomingPlan, MigratePlan, PendingResolution, Request, Resolution,
    Response, SectionRef, Status, VmDir, VmService, VmStart, VmState, WriteWindow, listener_from_stdin,
    serve,
};
use migrated_cpuid::GuestCpu;
use migrated_testkit::wait_until;
use parking_lot::Mutex;

use super::host::PATIENCE;

/// What `VmCommand` puts before `--dir`.
pub const ARGS: [&str; 4] = ["--exact", "tests::fake_vm::fake_vm_process", "--nocapture", "--"];

/// What makes it reset itself, when it is typed.
pub const RESET: &[u8] = b"reset";

const GREETING: &[u8] = b"hello from the guest\n";

/// No test: what a fake VM process runs. Without `--dir` the test program is not one.
#[test]
fn fake_vm_process() {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--dir") {
        FakeVm::run(PathBuf::from(&args[at + 1]));
    }
}

struct FakeVm {
    dir: VmDir,
    start: VmStart,
    events: EventSink,
    inner: Mutex<Inner>,
    console: Mutex<ConsoleFile>,
    answers: Mutex<Option<Sender<Resolution>>>,
}

struct Inner {
    state: VmState,
    record: MigrationRecord,
    unresolved: Option<PendingResolution>,
    balloon: Balloon,
    cancelled: bool,
    /// At a destination: its epoch is committed, or it promised never to run.
    settled: Option<Resolution>,
    listener: Option<TcpListener>,
}

impl FakeVm {
    fn run(dir: PathBuf) {
        let dir = VmDir::new(dir);
        let start = dir.read_start().unwrap();
        let mut console = ConsoleFile::create(&dir.console(), 4096).unwrap();
        console.append(GREETING).unwrap();
        let (state, listener) = match &start {
            VmStart::Boot(_) => (VmState::Running, None),
            VmStart::Incoming(plan) => (VmState::Incoming, Some(TcpListener::bind((plan.ip, 0)).unwrap())),
        };
        let inner = Inner {
            state,
            record: MigrationRecord::default(),
            unresolved: None,
            balloon: Balloon::default(),
            cancelled: false,
            settled: None,
            listener: listener.as_ref().map(|listener| listener.try_clone().unwrap()),
        };
        let vm = Arc::new(Self {
            dir,
            start,
            events: EventSink::new(),
            inner: Mutex::new(inner),
            console: Mutex::new(console),
            answers: Mutex::new(None),
        });
        let again = matches!(&vm.start, VmStart::Boot(plan) if plan.again);
        if again && vm.does("loops") {
            vm.exit(VmState::Stopped, ExitReport::RESET);
        }
        if again && vm.does("homeless") {
            vm.exit(VmState::Stopped, "file_unreadable");
        }
        if vm.does("die") {
            exit(3);
        }
        if let (VmStart::Incoming(plan), Some(listener)) = (&vm.start, listener) {
            vm.expect(plan);
            let (vm, plan) = (Arc::clone(&vm), plan.clone());
            std::thread::spawn(move || vm.receive(&plan, &listener));
        }
        let sink = vm.events.clone();
        serve(listener_from_stdin().unwrap(), Arc::new(Service(vm)), sink).unwrap();
    }

    fn does(&self, word: &str) -> bool {
        let (BootSource::Workload { cmdline } | BootSource::Kernel { cmdline, .. }) = &self.start.spec().boot;
        cmdline.split(' ').any(|is| is == word)
    }

    fn has_balloon(&self) -> bool {
        matches!(self.start.spec().boot, BootSource::Kernel { .. })
    }

    fn set_state(&self, state: VmState) {
        self.inner.lock().state = state;
        self.events.send(Event::VmState { state, reason: None });
    }

    fn report(&self, state: MigrationState, code: Option<&str>) {
        let mut inner = self.inner.lock();
        inner.record.state = Some(state);
        inner.record.error = code.map(|code| RecordError {
            code: code.into(),
            message: code.into(),
            phase: None,
            details: None,
        });
        self.events.send(Event::MigrationRecord(Box::new(inner.record.clone())));
    }

    fn exit(&self, state: VmState, code: &str) -> ! {
        let record = Some(Box::new(self.inner.lock().record.clone()));
        self.dir.write_exit(&ExitReport { state, code: code.into(), message: code.into(), record }).unwrap();
        exit(0)
    }

    fn send(self: &Arc<Self>, plan: &MigratePlan) {
        let mut stream = TcpStream::connect(plan.endpoints[0]).unwrap();
        writeln!(stream, "{}", plan.token.to_hex()).unwrap();
        self.report(MigrationState::Precopy, None);
        if self.does("endless") {
            wait_until("the end of pre-copy", PATIENCE, || {
                self.inner.lock().cancelled || self.console.lock().range().end > GREETING.len() as u64
            });
        }
        if self.inner.lock().cancelled {
            drop(stream);
            return self.report(MigrationState::Cancelled, Some("cancelled"));
        }
        self.set_state(VmState::Paused);
        self.report(MigrationState::Switchover, None);
        if !self.does("lose-commit") {
            writeln!(stream, "commit").unwrap();
        }
        let mut answer = String::new();
        if self.does("lose-ack") || self.does("die-in-switchover") {
            BufReader::new(&stream).read_line(&mut answer).unwrap();
            if self.does("die-in-switchover") {
                std::process::abort();
            }
        }
        if self.does("lose-ack") || self.does("lose-commit") {
            drop(stream);
            return self.ask_what_became_of_it(plan);
        }
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert_eq!(answer, "ack\n");
        self.leave();
    }

    fn ask_what_became_of_it(self: &Arc<Self>, plan: &MigratePlan) {
        let pending =
            PendingResolution { migration: plan.migration, epoch: plan.epoch, peer: plan.peer.clone() };
        let (sender, answers): (_, Receiver<Resolution>) = channel();
        *self.answers.lock() = Some(sender);
        self.inner.lock().unresolved = Some(pending.clone());
        self.report(MigrationState::Indeterminate, None);
        self.events.send(Event::NeedsResolution(pending));
        let answer = answers.recv().unwrap();
        self.inner.lock().unresolved = None;
        match answer {
            Resolution::Committed => self.leave(),
            Resolution::NeverRan => {
                self.set_state(VmState::Running);
                self.report(MigrationState::Failed, Some("link_lost"));
            }
            other => panic!("a daemon must not bring {other:?}"),
        }
    }

    fn leave(&self) -> ! {
        if self.does("measured") {
            let record = &mut self.inner.lock().record;
            (record.ram.pages_sent, record.throughput_bps) = (16 << 10, 3e9);
        }
        self.report(MigrationState::Settling, None);
        self.report(MigrationState::Completed, None);
        self.exit(VmState::MigratedAway, "migrated_away");
    }

    /// Knows its migration before anybody can ask for it.
    fn expect(&self, plan: &IncomingPlan) {
        let record = &mut self.inner.lock().record;
        record.id = plan.migration.to_string();
        record.vm.clone_from(&plan.vm);
        record.role = RecordRole::Destination;
        record.started_unix_ms = plan.started.unix_ms;
        record.peer.clone_from(&plan.peer);
    }

    fn receive(&self, plan: &IncomingPlan, listener: &TcpListener) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), plan.token.to_hex());
        self.report(MigrationState::Receiving, None);
        line.clear();
        reader.read_line(&mut line).unwrap_or_default();
        let mut inner = self.inner.lock();
        if line != "commit\n" || inner.settled.is_some() {
            drop(inner);
            self.give_up();
        }
        EpochRecord::arm(&plan.epoch_file, plan.epoch).unwrap().commit(plan.epoch).unwrap();
        inner.settled = Some(Resolution::Committed);
        drop(inner);
        self.set_state(VmState::Running);
        self.report(MigrationState::Running, None);
        // The source may be gone already.
        let _ = writeln!(&stream, "ack");
        self.report(MigrationState::Completed, None);
    }

    fn give_up(&self) -> ! {
        self.report(MigrationState::Failed, Some("link_lost"));
        self.exit(VmState::Failed, "link_lost");
    }

    fn cancel(&self, migration: &str) -> Result<Response, ControlError> {
        let mut inner = self.inner.lock();
        if inner.record.id != migration {
            return Err(ControlError::new(ErrorKind::Conflict, "migration_not_found", "not known"));
        }
        if let VmStart::Incoming(_) = self.start {
            if inner.settled == Some(Resolution::Committed) {
                return Err(ControlError::new(ErrorKind::Conflict, "migration_committed", "too late"));
            }
            inner.settled = Some(Resolution::NeverRan);
            drop(inner);
            self.give_up();
        }
        inner.cancelled = true;
        Ok(Response::Done)
    }

    fn sample(&self, sample_ms: u32) -> GuestSample {
        let ram_pages = self.start.spec().memory_bytes / 4096;
        let pages = if self.does("busy") { u64::from(sample_ms) * 60 } else { 0 };
        GuestSample {
            ram_pages,
            nonzero_pages: ram_pages / 2,
            writes: vec![WriteWindow { window_ms: sample_ms.into(), pages: pages.min(ram_pages) }],
            harvest_us: 100.0,
            took_ms: sample_ms.into(),
        }
    }

    fn record_of(&self, plan: &MigratePlan) -> MigrationRecord {
        MigrationRecord {
            id: plan.migration.to_string(),
            vm: plan.vm.clone(),
            role: RecordRole::Source,
            peer: plan.peer.clone(),
            mode: plan.mode,
            bandwidth_bps: plan.limits.bandwidth_bps,
            transport: plan.transport.name().into(),
            started_unix_ms: plan.started.unix_ms,
            setup_ms: plan.started.elapsed_ms,
            ..MigrationRecord::default()
        }
    }
}

/// What `serve` asks; a migration goes on in a thread that shares the VM.
struct Service(Arc<FakeVm>);

impl VmService for Service {
    fn handle(&self, request: Request) -> Result<Response, ControlError> {
        let vm = &self.0;
        match request {
            Request::AwaitReady if vm.does("refuse") => {
                return Err(ControlError::new(ErrorKind::InvalidInput, "kernel_not_elf", "not an ELF file"));
            }
            Request::AwaitReady => {
                let inner = vm.inner.lock();
                let listener = inner.listener.as_ref();
                let endpoints = listener.map(|listener| listener.local_addr().unwrap()).into_iter().collect();
                return Ok(Response::Ready { endpoints });
            }
            Request::Status => {
                let inner = vm.inner.lock();
                return Ok(Response::Status(Box::new(Status {
                    state: inner.state,
                    reason: None,
                    console: vm.console.lock().range(),
                    workload: None,
                    balloon: vm.has_balloon().then_some(inner.balloon),
                    vcpu_blocked_us: 7,
                    endpoints: Vec::new(),
                    migration: inner.record.id.parse().ok(),
                    unresolved: inner.unresolved.clone(),
                })));
            }
            Request::Describe => {
                let cpu = match &vm.start {
                    VmStart::Boot(plan) => plan.cpu.clone(),
                    VmStart::Incoming(plan) => plan.description.cpu.clone(),
                };
                let simulated = match &vm.start {
                    VmStart::Boot(plan) => plan.simulated,
                    VmStart::Incoming(plan) => plan.simulated,
                };
                let description =
                    GuestDescription { simulated, ..description(vm.start.spec().memory_bytes, cpu) };
                return Ok(Response::Description(Box::new(description)));
            }
            Request::SampleDirty { sample_ms } => {
                if vm.does("departing") {
                    return Err(ControlError::new(ErrorKind::Conflict, "migration_in_progress", "it begins"));
                }
                return Ok(Response::Sample(Box::new(vm.sample(sample_ms))));
            }
            Request::Pause => vm.set_state(VmState::Paused),
            Request::Resume => vm.set_state(VmState::Running),
            Request::PressPowerButton => vm.exit(VmState::Stopped, "shutdown"),
            Request::SetBalloon { .. } if vm.does("driverless") => {
                return Err(ControlError::new(ErrorKind::Conflict, "balloon_without_driver", "no driver"));
            }
            // This guest gives half at once.
            Request::SetBalloon { bytes } => {
                vm.inner.lock().balloon =
                    Balloon { target_bytes: bytes, actual_bytes: bytes / 2, given_back_bytes: bytes / 2 };
            }
            Request::Shutdown => vm.exit(VmState::Stopped, "shutdown"),
            Request::ConsoleRead { from, max, .. } => {
                return Ok(Response::Console(vm.console.lock().read(from, max as usize).unwrap()));
            }
            Request::ConsoleInput { bytes } if bytes == RESET => vm.exit(VmState::Stopped, ExitReport::RESET),
            Request::ConsoleInput { bytes } => vm.console.lock().append(&bytes).unwrap(),
            Request::Migrate(plan) => {
                vm.inner.lock().record = vm.record_of(&plan);
                let vm = Arc::clone(vm);
                std::thread::spawn(move || vm.send(&plan));
            }
            Request::CancelMigration { migration } => return vm.cancel(&migration.to_string()),
            Request::RecoverMigration { .. } => {}
            Request::MigrationRecord { migration } => {
                let record = vm.inner.lock().record.clone();
                if record.id != migration.to_string() {
                    return Err(ControlError::new(ErrorKind::Conflict, "migration_not_found", "not known"));
                }
                return Ok(Response::Record(Box::new(record)));
            }
            Request::Resolve { .. } => {
                let answer = *vm.inner.lock().settled.get_or_insert(Resolution::NeverRan);
                return Ok(Response::Resolution(answer));
            }
            Request::ResolutionKnown { answer, .. } => {
                let waiting = vm.answers.lock();
                waiting.as_ref().expect("it was asked for").send(answer).unwrap();
            }
        }
        Ok(Response::Done)
    }
}

/// What a fake guest of that much RAM and with that CPU needs.
pub fn description(memory_bytes: u64, cpu: GuestCpu) -> GuestDescription {
    let block = serde_json::json!([{ "name": "ram0", "guest_base": 0, "pages": memory_bytes / 4096 }]);
    GuestDescription {
        ram: serde_json::from_value(serde_json::json!({ "blocks": block })).unwrap(),
        sections: vec![SectionRef { kind: "vcpu".into(), instance: 0, version: 1 }],
        cpu,
        simulated: false,
    }
}
