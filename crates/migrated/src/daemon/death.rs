use migrated_api::{MigrationRecord, VmState};
use migrated_control::{ControlError, ErrorKind, ExitReport, VmDir};

/// How a VM process ended, as far as that can be known.
#[derive(Clone, Debug)]
pub struct Death {
    /// What the VM ended as.
    pub state: VmState,
    /// Stable and machine-readable.
    pub code: String,
    /// For people.
    pub reason: String,
    /// Its last migration's record, if it left one.
    pub record: Option<Box<MigrationRecord>>,
}

impl Death {
    /// Reads what the process left in its directory; `how` is what the system says.
    pub fn read(dir: &VmDir, how: String) -> Self {
        if let Some(report) = dir.read_exit() {
            let (state, code) = (report.state, report.code);
            return Self { state, code, reason: report.message, record: report.record };
        }
        let log = std::fs::read_to_string(dir.log()).unwrap_or_default();
        let reason = match log.trim_end().lines().next_back() {
            Some(line) => format!("the VM process ended: {how}; the last it said was: {line}"),
            None => format!("the VM process ended: {how}"),
        };
        Self { state: VmState::Failed, code: "vm_process_died".into(), reason, record: None }
    }

    /// Whether the guest wants to begin anew.
    pub fn is_reset(&self) -> bool {
        self.state == VmState::Stopped && self.code == ExitReport::RESET
    }

    /// As the reason why the VM could not be made.
    pub fn to_error(&self) -> ControlError {
        ControlError::new(ErrorKind::Internal, self.code.clone(), self.reason.clone())
    }
}
