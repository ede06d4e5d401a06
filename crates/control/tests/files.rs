//! What a daemon and a VM process leave for each other on disk.

use migrated_control::{
    BootPlan, BootSource, EpochRecord, EpochState, ExitReport, VmDir, VmSpec, VmStart, VmState, read_epoch,
};
use migrated_cpuid::{BaselineSpec, CpuTable, CustomBaseline, FeatureSet, GuestCpu};

#[test]
fn an_epoch_is_armed_once_and_then_says_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    assert_eq!(read_epoch(&path).unwrap(), None);
    let record = EpochRecord::arm(&path, 7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Armed)));
    assert_eq!(record.commit(8).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    record.commit(7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Committed)));
    record.never_ran(7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::NeverRan)));
    assert!(EpochRecord::arm(&path, 7).is_err(), "a record that is there is not replaced");
    std::fs::write(&path, "").unwrap();
    assert_eq!(read_epoch(&path).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn an_armed_epoch_of_another_boot_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    std::fs::write(&path, "armed     7 00000000-0000-0000-0000-000000000000\n").unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Unknown)));
    std::fs::write(&path, "committed 7 00000000-0000-0000-0000-000000000000\n").unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Committed)));
}

#[test]
fn start_and_exit_come_back_as_they_were_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = VmDir::new(root.path());
    let spec = VmSpec {
        name: "a".into(),
        memory_bytes: 64 << 20,
        vcpus: 1,
        boot: BootSource::Workload { cmdline: "hot=16M".into() },
        backing: migrated_control::MemoryBacking::Memfd,
        prefault: false,
        cpu_baseline: BaselineSpec::Custom(CustomBaseline {
            base: "host".into(),
            ..CustomBaseline::default()
        }),
        network: Vec::new(),
    };
    let table = CpuTable { feature_msrs: [(0x10a, 1 << 63)].into(), ..CpuTable::default() };
    let cpu = GuestCpu {
        baseline: "host".into(),
        table,
        unmasked: FeatureSet::EMPTY,
        tsc_khz: 2_600_000,
        saved_msrs: vec![0x3b],
    };
    let plan = BootPlan { spec: spec.clone(), networks: Vec::new(), cpu, simulated: false, again: false };
    dir.write_start(&VmStart::Boot(Box::new(plan.clone()))).unwrap();
    let start = dir.read_start().unwrap();
    assert_eq!(start.spec(), &spec);
    assert!(matches!(start, VmStart::Boot(read) if *read == plan));
    assert_eq!(dir.read_exit(), None);
    let report = ExitReport {
        state: VmState::Stopped,
        code: "shutdown".into(),
        message: "asked".into(),
        record: None,
    };
    dir.write_exit(&report).unwrap();
    assert_eq!(dir.read_exit(), Some(report));
}
