//! The least of a VMM: memory, vCPUs, a serial line that only listens. Stopping hands the vCPUs back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use migrated_kernel::MemorySlots;
use migrated_testkit::wait_until;
use migrated_vmm::boot::{BootPlan, load_workload};
use migrated_vmm::workload::{WorkloadCounters, read};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Long enough for the slowest machine; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
const SERIAL: u16 = 0x3f8;

pub struct Machine {
    _vm: Arc<VmFd>,
    _slots: MemorySlots,
    pub memory: GuestMemoryMmap<()>,
    stopped: Vec<VcpuFd>,
    running: Vec<JoinHandle<VcpuFd>>,
    stop: Arc<AtomicBool>,
    console: Arc<Mutex<VecDeque<u8>>>,
}

impl Machine {
    /// A workload guest that runs.
    pub fn start(ram: &[(u64, usize)], vcpus: u32, cmdline: &str) -> Self {
        let mut machine = Self::stopped(ram, vcpus, |memory, tsc_khz| {
            load_workload(memory, cmdline, vcpus, tsc_khz).expect("the workload guest loads")
        });
        machine.run();
        machine
    }

    /// A guest that `load` has put into memory and that never ran.
    pub fn stopped(
        ram: &[(u64, usize)],
        vcpus: u32,
        load: impl FnOnce(&GuestMemoryMmap<()>, u32) -> BootPlan,
    ) -> Self {
        register_signal_handler(SIGRTMIN(), on_kick).unwrap();
        let kvm = Kvm::new().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        let ranges: Vec<_> = ram.iter().map(|(start, size)| (GuestAddress(*start), *size)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let slots = MemorySlots::register(vm.clone(), memory.clone()).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let fds: Vec<_> = (0..vcpus).map(|index| vm.create_vcpu(index.into()).unwrap()).collect();
        let plan = load(&memory, fds[0].get_tsc_khz().unwrap());
        for (index, vcpu) in (0..).zip(&fds) {
            vcpu.set_cpuid2(&cpuid).unwrap();
            if plan.starts_running(index) {
                vcpu.set_sregs(&plan.sregs(vcpu.get_sregs().unwrap())).unwrap();
                vcpu.set_regs(&plan.regs(index)).unwrap();
                vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
            }
        }
        Self {
            _vm: vm,
            _slots: slots,
            memory,
            stopped: fds,
            running: vec![],
            stop: Arc::default(),
            console: Arc::default(),
        }
    }

    /// Runs the vCPUs (on).
    pub fn run(&mut self) {
        self.stop.store(false, Ordering::SeqCst);
        for mut vcpu in self.stopped.drain(..) {
            let (stop, console) = (self.stop.clone(), self.console.clone());
            self.running.push(thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    match vcpu.run() {
                        Ok(VcpuExit::IoOut(SERIAL, data)) => console.lock().unwrap().extend(data.iter()),
                        Ok(VcpuExit::Intr) => {}
                        Err(error) if error.errno() == libc::EINTR => {}
                        other => {
                            let exit = format!("{other:?}");
                            panic!("{exit} at {:#x?} {:#x?}", vcpu.get_regs(), vcpu.get_sregs());
                        }
                    }
                }
                vcpu
            }));
        }
    }

    /// Stops all vCPUs.
    pub fn stop(&mut self) {
        for vcpu in self.join() {
            self.stopped.push(vcpu.expect("a vCPU's thread does not panic"));
        }
    }

    fn join(&mut self) -> Vec<thread::Result<VcpuFd>> {
        self.stop.store(true, Ordering::SeqCst);
        let join = |thread: JoinHandle<VcpuFd>| {
            // The signal may come just before KVM_RUN and be lost on it: once more, until the thread ends. Not without
            // a pause, or the thread would handle signals and do nothing else.
            wait_until("a vCPU's thread ends", PATIENCE, || {
                let ended = thread.is_finished();
                if !ended {
                    thread.kill(SIGRTMIN()).unwrap();
                }
                ended
            });
            thread.join()
        };
        self.running.drain(..).map(join).collect()
    }

    /// Stops a single vCPU that writes its `pages` one after the other, at a moment when it is not at work on page `slot`.
    pub fn stop_outside(&mut self, slot: u64, pages: u64) -> WorkloadCounters {
        loop {
            self.stop();
            let counters = self.counters().unwrap();
            if counters.total.pages_written % pages != slot {
                return counters;
            }
            self.run();
            // A thread that is stopped before it first enters the guest leaves it where it was.
            let written = counters.total.pages_written;
            self.wait("a page written", |counters| counters.total.pages_written > written);
        }
    }

    /// Sets the instruction pointer of a stopped vCPU.
    pub fn set_rip(&self, vcpu: usize, rip: u64) {
        let mut regs = self.stopped[vcpu].get_regs().unwrap();
        regs.rip = rip;
        self.stopped[vcpu].set_regs(&regs).unwrap();
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_console(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.console().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {}", self.console());
            thread::yield_now();
        }
    }

    pub fn console(&self) -> String {
        self.console.lock().unwrap().iter().map(|byte| char::from(*byte)).collect()
    }

    pub fn counters(&self) -> Option<WorkloadCounters> {
        read(&self.memory)
    }

    /// Waits until the counters are as they should become, and returns them.
    pub fn wait(&self, what: &str, until: impl Fn(&WorkloadCounters) -> bool) -> WorkloadCounters {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = self.counters();
            if let Some(counters) = &counters
                && until(counters)
            {
                return counters.clone();
            }
            assert!(Instant::now() < deadline, "no {what}: {counters:#?}, console: {}", self.console());
            thread::yield_now();
        }
    }

    /// Waits until every vCPU runs its loop.
    pub fn wait_running(&self, vcpus: u32) -> WorkloadCounters {
        self.wait("running vCPUs", |counters| counters.total.running == vcpus)
    }

    pub fn load(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn store(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn page(&self, address: u64) -> [u8; 4096] {
        let mut page = [0; 4096];
        self.memory.read_slice(&mut page, GuestAddress(address)).unwrap();
        page
    }

    pub fn set_page(&self, address: u64, page: &[u8; 4096]) {
        self.memory.write_slice(page, GuestAddress(address)).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The memory must outlive the guest's run.
        let _ = self.join();
    }
}

/// A signal with a handler interrupts KVM_RUN; there is nothing else to do.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
